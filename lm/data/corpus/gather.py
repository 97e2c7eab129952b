"""Prepare a corpus of labelled examples: both sides of the split, and a tokenizer."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.corpus.augment import augmented
from lm.data.corpus.split import group_key, hold_out_fold, position
from lm.data.sources import components
from lm.data.tokenizer.tokenizer import Characters, Pretrained, Tokenizer
from lm.data.types import Example, ExampleSet, Read, labelled, strings, without_labels
from lm.errors import UserError, check


def gather(data: Any, root: Path, report: Callable[[str], None]):
    """Prepare the corpus of a `Data` with labelled sources; its vocabulary is kept under `root`."""
    from lm.data.corpus.corpus import Corpus

    check(data.words is None, f"words={data.words}: labelled examples have no marks; leave it out")
    parts = components(data.source)
    check(all(labelled(source) for _, source in parts), "a mixture of labelled examples and running text: part them")
    read = [numbered(source.open(), k) for k, (_, source) in enumerate(parts)]
    for one in read:
        check(len(one) > 0, f"{one.name} has no example in it")
    if data.fold:
        train, held_out = hold_out_fold(read, data.fold)
    elif isinstance(data.validation, int | float):
        sides = [hold_out_share(one, data.validation) for one in read]
        train, held_out = [side[0] for side in sides], [x for side in sides for x in side[1]]
    else:
        check(labelled(data.validation), "validation: the training examples are labelled, so these must be, too")
        train, sources = [list(one) for one in read], components(data.validation)
        held_out = [x for k, (_, source) in enumerate(sources) for x in numbered(source.open(), k)]
        check(bool(held_out), "validation: its source has no example")
    # Shares that are left out follow the numbers of training examples, which are known only after the split.
    parts = components(data.source, [len(side) for side in train])
    everything = [example for side in (*train, held_out) for example in side]
    name = f"fold {data.fold} of " * bool(data.fold) + "+".join(one.name for one in read)
    tokenizer, folder = corpus_tokenizer(data.tokenizer, train, everything, root, name, report)
    if data.augment:
        train = augmented(train, data.augment)
        copies = sum(map(len, (*train, held_out))) - len(everything)
        report(f"augmentation: {copies:,} copies beside {len(everything) - len(held_out):,} training examples")
        everything = [example for side in (*train, held_out) for example in side]
    # Copies included: a run may resume on the same examples only.
    digest = hashlib.sha256("".join(map(text_of, everything)).encode("utf-8", "surrogatepass")).hexdigest()
    sets = tuple((share, ExampleSet(one.name, side)) for (share, _), one, side in zip(parts, read, train))
    validation = ExampleSet(f"validation of {name}", held_out)
    size = sum(side.raw_bytes for _, side in sets) + validation.raw_bytes
    return Corpus(tokenizer, sets, validation, name, size, digest, folder)


def numbered(read: Read, part: int) -> Read:
    """Set every example's `part`, the number of its source in a mixture."""
    return dataclasses.replace(read, examples=tuple(example._replace(part=part) for example in read))


def text_of(example: Example) -> str:
    """Serialise all values."""
    return json.dumps(example.values, sort_keys=True, ensure_ascii=False)


def hold_out_share(read: Read, share: float) -> tuple[list[Example], list[Example]]:
    """Hold out the groups (`group_key`) with the least hashes, as near to the share as possible; both sides have one.

    A bound on the hash, which suits endless text, would miss a small set's share.
    """
    if share == 0:
        return list(read), []
    keys = [group_key(example) for example in read]
    least: dict[str, float] = {}  # over a group's examples: the same in any order
    for name, example in zip(keys, read):
        least[name] = min(position(example.group or text_of(example)), least.get(name, 1.0))
    places = [least[name] for name in keys]
    order, sizes = np.unique(places, return_counts=True)
    if len(order) < 2:
        raise UserError(f"{read.name}: all examples are alike, so none can be held out; use validation=0")
    # The number of groups that comes nearest to the share; at least one group stays to train on.
    count = int(np.abs(np.cumsum(sizes) - share * len(places)).argmin()) + 1
    below = order[min(count, len(order) - 1)]
    sides: tuple[list[Example], list[Example]] = [], []
    for example, place in zip(read, places):
        sides[int(place < below)].append(example)
    return sides


def corpus_tokenizer(
    rule: Any, train: list[list[Example]], everything: list[Example], root: Path, name: str, report: Callable[[str], None]
) -> tuple[Tokenizer, Path]:
    """Build or load the tokenizer; return it and the corpus's folder in the cache."""

    def training_texts() -> Iterator[str]:
        # An alphabet must hold every character to come; a vocabulary that is learned must not see held-out text.
        chosen = everything if isinstance(rule, Characters) else [x for side in train for x in side]
        for example in chosen:
            texts = without_labels(example.values)
            between = " " if example.values.get("spaced", True) else ""
            words = texts.pop("words", [])
            yield from (between.join(words), *strings(texts)) if words else strings(texts)

    facts = [repr(rule), *map(text_of, everything)]
    if isinstance(rule, Pretrained):
        facts.append(Tokenizer.load(rule.path).sha256())
    own = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    folder = root / f"{name.replace('/', '_').replace(':', '_')[:40]}-{own}"
    path = folder / "tokenizer.json"
    if not path.exists():
        if not isinstance(rule, Pretrained):
            report("making the vocabulary")
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f"tokenizer.{os.uname().nodename}-{os.getpid()}"  # several processes may make the same
        rule.build(training_texts).save(fresh)
        fresh.replace(path)
    return Tokenizer.load(folder), folder
