"""Augmentation: config values that add changed copies of training examples, which keep their labels.

Only the training side is augmented, after the split; every example stays, and copies stand behind it. A copy is drawn from the
`seed`, its number and the example's own values: every process and every resumed run makes the same. A copy equal to the
example or to an earlier copy is left out. The vocabulary is made of the examples alone.

`fields` names the texts to edit, in examples that have them. The default is the names of the objectives' defaults and of GLUE
(TEXTS): other texts may be labels. Of questions about paragraphs only the question is edited: answers are characters of the
paragraph. Words with tags are edited word by word. How a text is cut into words:
`lm.data.corpus.rewording`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lm.data.tokenizer.special import ALIASES, SEPARATORS
from lm.data.types import Augmentation, Example, Rewrite
from lm.errors import check, check_range

TEXTS = ("text", "sentence", "sentence1", "sentence2", "premise", "hypothesis", "question", "question1", "question2")
LABELS = ("id", "label", "tags", "answers", "starts", "spaced")


@dataclass(frozen=True, kw_only=True)
class Edits(Augmentation):
    """EDA, Wei & Zou 2019: replace words by synonyms, insert synonyms, swap words, leave words out.

    Each copy is made by one of the four, taken in turn, on max(1, `rate` x words) words of each text (deletion too, which the
    paper draws word by word). `synonyms`: a file of groups, one a line, words in lower case with tabs or commas between; words
    in no group (stop words) have none. Without it words are swapped and left out only.
    With tags: words are replaced by single words, and words tagged O are left out with their tag.
    """

    idle: ClassVar[str] = "no text has a second word, or a word with synonyms"

    copies: int = 1
    rate: float = 0.1
    synonyms: str = ""
    fields: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        _check(self)
        check(0 < self.rate < 1, f"Edits(rate={self.rate}): give a share of the words above 0 and below 1")

    def open(self) -> Rewrite:
        from lm.data.corpus import rewording
        from lm.data.corpus.rewording import insert, line_of, remove, replace, share, swap

        table = rewording.synonyms(self.synonyms) if self.synonyms else {}

        def rewrite(example: Example, number: int) -> Mapping[str, Any]:
            names = chosen(example, self.fields)
            free = all(line_of(example.values, name).movable for name in names)
            edits = [*[replace] * bool(table), *[insert] * (bool(table) and free), *[swap] * free, remove]
            # The first kind of edit is the example's own, so that one copy of each already brings all four.
            rng, first = generator(self.seed, example, number), value_hash(example) + number
            for k in range(len(edits)):
                values = dict(example.values)
                for line in [line_of(values, name) for name in names]:
                    edits[(first + k) % len(edits)](rng, line, table, share(self.rate, len(line.words)))
                    values |= line.written()
                if values != example.values:  # else the next kind: this one had nothing to work on
                    break
            return values

        return rewrite


@dataclass(frozen=True, kw_only=True)
class SpanCutoff(Augmentation):
    """Mask a span of max(1, `rate` x words) words, each by `mask` (Shen et al. 2020, cutoff of a span); tags stay.

    Shen et al. take the span's embeddings away. In a text that is not yet tokens the nearest is a blank word, "_" as in
    Xie et al. 2017 (blank noising), or with mask="" to leave the span out. A special token cannot be the mask: objectives
    read "[MASK]" in a text as these letters, so that no text that people write can place one.
    """

    idle: ClassVar[str] = "no text has a second word"

    copies: int = 1
    rate: float = 0.1
    mask: str = "_"
    fields: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        _check(self)
        check(0 < self.rate < 1, f"SpanCutoff(rate={self.rate}): give a share of the words above 0 and below 1")
        known = {name for names in (*ALIASES, SEPARATORS) for name in names}
        check(
            self.mask not in known,
            f"SpanCutoff(mask={self.mask!r}): in a text this would be read as letters; give a plain word, or ''",
        )
        check(self.mask == "" or bool(self.mask.strip()), "SpanCutoff(mask): a blank one; give a word, or ''")

    def open(self) -> Rewrite:
        from lm.data.corpus.rewording import line_of, share

        def rewrite(example: Example, number: int) -> Mapping[str, Any]:
            rng, values = generator(self.seed, example, number), dict(example.values)
            for line in [line_of(values, name) for name in chosen(example, self.fields)]:
                able = bool(self.mask) or line.movable
                check(able, f"{example.where}: words with tags keep their number; give SpanCutoff a mask, such as '_'")
                size = len(line.words)
                count = share(self.rate, size)
                start = int(rng.integers(size - count + 1)) if size > 1 else 0
                for i in range(start, start + count if size > 1 else 0):
                    if self.mask:
                        line.words[i] = self.mask
                    else:
                        # The next word of the span moves up to the same place.
                        line.remove(start)
                values |= line.written()
            return values

        return rewrite


@dataclass(frozen=True, kw_only=True)
class CodeSwitch(Augmentation):
    """CoSDA-ML, Qin et al. 2020: replace words by translations from bilingual dictionaries, `paths` one a language.

    A copy is made of the share `sentences` of the examples; in it the share `rate` of the words that a dictionary has is
    translated, each by any of the languages that have it and any of its translations. Two values of one path each make
    copies of one language each. Files: WORD<TAB>TRANSLATION a line, or a space between (MUSE, Lample et al. 2018). With
    tags only translations of one word are taken. Only single words are looked up; of Chinese texts, single characters.
    """

    idle: ClassVar[str] = "no word of the texts is in its dictionaries, or rate and sentences are too small"

    paths: tuple[str, ...]
    copies: int = 1
    sentences: float = 1.0
    rate: float = 0.5
    fields: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        _check(self)
        _check_paths(self)
        for name in ("rate", "sentences"):
            value = getattr(self, name)
            check(0 < value <= 1, f"CodeSwitch({name}={value}): give a share above 0 and at most 1")

    def open(self) -> Rewrite:
        from lm.data.corpus.rewording import dictionary, line_of, options, pick

        tables = [dictionary(path) for path in self.paths]

        def rewrite(example: Example, number: int) -> Mapping[str, Any]:
            rng, values, names = generator(self.seed, example, number), dict(example.values), chosen(example, self.fields)
            switched = rng.random() < self.sentences
            for line in [line_of(values, name) for name in names if switched]:
                for i in np.flatnonzero(rng.random(len(line.words)) < self.rate).tolist():
                    if offers := [found for table in tables if (found := options(line, i, table))]:
                        line.words[i] = pick(rng, pick(rng, offers))
                values |= line.written()
            return values

        return rewrite


@dataclass(frozen=True, kw_only=True)
class Paraphrases(Augmentation):
    """Other wordings of whole texts from files, as of back-translation (Sennrich et al. 2016; Xie et al. 2020).

    `paths`: .jsonl of {"prompt": text, "text": another wording}, the output of `lm.generate --prompts --output`. A text is
    looked up in the first file, its wordings there in the second, and so on; the first `copies` results are the copies.
    `prefixes`, one a file: the instruction before the text in its prompts. From English to German and back with T5's:

        jq -c '{prompt: ("translate English to German: " + .text)}' train.jsonl > to.jsonl
        python -m lm.generate --model=MODEL --prompts=to.jsonl --num_samples=2 --output=de.jsonl
        jq -c '{prompt: ("translate German to English: " + .text)}' de.jsonl > back.jsonl
        python -m lm.generate --model=MODEL --prompts=back.jsonl --output=en.jsonl
        Paraphrases(paths=("de.jsonl", "en.jsonl"), prefixes=("translate English to German: ", "translate German to English: "))
    """

    idle: ClassVar[str] = 'no "prompt" is the text of a training example, or each "text" is the same; tagged words have none'

    paths: tuple[str, ...]
    prefixes: tuple[str, ...] = ()
    copies: int = 1
    fields: tuple[str, ...] = ()

    def __post_init__(self):
        _check(self)
        _check_paths(self)
        check(
            len(self.prefixes) in (0, len(self.paths)) and not isinstance(self.prefixes, str),
            f"Paraphrases(prefixes={self.prefixes!r}): a tuple, one for each of {len(self.paths)} paths",
        )

    def open(self) -> Rewrite:
        from lm.data.corpus.rewording import paraphrases

        tables = [paraphrases(*pair) for pair in zip(self.paths, self.prefixes or [""] * len(self.paths))]

        def reword(text: str) -> list[str]:
            wordings = [text.strip()]
            for table in tables:
                wordings = [other for wording in wordings for other in table.get(wording, ())]
            return [wording for wording in dict.fromkeys(wordings) if wording != text.strip()]

        def rewrite(example: Example, number: int) -> Mapping[str, Any]:
            values = dict(example.values)
            for name in chosen(example, self.fields):
                others = reword(values[name]) if name != "words" else []
                values[name] = others[number] if number < len(others) else values[name]
            return values

        return rewrite


def _check(kind: Any) -> None:
    check_range(kind, 1, float("inf"), "copies")
    check(not isinstance(kind.fields, str), f"fields={kind.fields!r}: a tuple of names, ({kind.fields!r},)")


def _check_paths(kind: Any) -> None:
    good = not isinstance(kind.paths, str) and len(kind.paths) > 0
    check(good, f"{type(kind).__name__}(paths={kind.paths!r}): a tuple of files, ('FILE',)")


def chosen(example: Example, fields: Sequence[str]) -> list[str]:
    """List the names of the values to edit, texts or "words"; raises UserError for a value that must not change."""
    values = example.values
    if not fields:
        names = [name for name in TEXTS if isinstance(values.get(name), str)]
        names += ["words"] if isinstance(values.get("words"), list) else []
        others = ", ".join(name for name, value in values.items() if isinstance(value, str)) or "no text"
        check(bool(names), f"{example.where}: which texts are to be augmented? Name them in fields; it has {others}")
        return names
    names = [name for name in fields if name in values]
    for name in names:
        value = example.get(name, (str, list))
        check(name not in LABELS, f"{example.where}: {name!r} is no text to augment; take it out of fields")
        moved = name == "context" and ("starts" in values or "answers" in values)
        check(not moved, f"{example.where}: answers are characters of 'context', edits would move them; augment 'question'")
        single = isinstance(value, str) or name == "words"
        check(single, f"{example.where}: {name!r} is a list, not a text; take it out of fields")
    return names


def value_hash(example: Example) -> int:
    """Hash the values, 64 bits."""
    # Not Python's hash, which changes from process to process: copies must be the same in all of them and after a
    # restart.
    text = json.dumps(example.values, sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def generator(seed: int, example: Example, number: int) -> np.random.Generator:
    return np.random.default_rng([seed % 2**32, number, value_hash(example)])


def augmented(sides: Sequence[Sequence[Example]], kinds: Sequence[Augmentation]) -> list[list[Example]]:
    """Add the copies of each example behind it; raises UserError for an augmentation without any copy."""
    for name in [name for kind in kinds for name in kind.fields]:
        there = any(name in example.values for side in sides for example in side)
        check(there, f"augment: no training example has {name!r}; {sides[0][0].where} has {', '.join(sides[0][0].values)}")
    opened = [(kind, kind.open()) for kind in kinds]
    counts = [0] * len(kinds)
    result: list[list[Example]] = []
    for side in sides:
        result.append([])
        for example in side:
            result[-1].append(example)
            for k, (kind, rewrite) in enumerate(opened):
                copies = _copies(example, kind.copies, rewrite)
                counts[k] += len(copies)
                result[-1] += copies
    # One that never applies is a mistake in the config, which the run would not show.
    for kind, count in zip(kinds, counts):
        check(count > 0, f"augment: {type(kind).__name__} made no copy of any example: {kind.idle}")
    return result


def _copies(example: Example, copies: int, rewrite: Rewrite) -> list[Example]:
    distinct = [example.values]
    for number in range(copies):
        values = dict(rewrite(example, number))
        if values not in distinct:
            distinct.append(values)
    return [example._replace(values=values, where=f"{example.where}, copy {k}") for k, values in enumerate(distinct[1:], 1)]
