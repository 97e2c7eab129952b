"""Split documents and labelled examples into training and validation: deterministic, by hashes of their content."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from lm.data.types import Example, Read, Reader, strings, without_labels
from lm.errors import UserError, check

# Only the start of a document is hashed: a long one need not be in memory, and its first piece is longer than this.
HEAD = 1 << 16


@dataclass(frozen=True)
class Split:
    """Hold out the documents with a hash, in [0, 1), under `below`; of a single document, the characters from `cut` on."""

    below: float = 0.0
    cut: int | None = None


class Part(NamedTuple):
    """Text of one document on one side; `piece`: its index in the reader; `borders` and `marks` as in `Piece`."""

    piece: int
    held_out: bool
    text: str
    first: bool
    last: bool
    borders: tuple[int, ...] = ()
    marks: Callable[[], np.ndarray] | None = None


def position(text: str) -> float:
    """Hash a document's first HEAD characters to [0, 1): exact duplicates are on one side."""
    digest = blake2b(text[:HEAD].encode("utf-8", "surrogatepass"), digest_size=8).digest()
    # 53 bits are exact in a double, so no hash rounds up to 1.
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def choose_split(reader: Reader, share: float) -> Split:
    """Choose the rule for one source so that both sides have a document, or a part of the only one.

    Reads until both sides have a document: a few dozen documents, or all of a corpus that has only one.
    """
    low, high, documents, characters, fresh, fields = 1.0, -1.0, 0, 0, True, False
    for i in range(len(reader)):
        text, end, borders, _ = reader[i]
        fields = fields or bool(borders)
        if fresh and text:
            low, high, documents, fresh = min(low, position(text)), max(high, position(text)), documents + 1, False
        if (share == 0 and documents) or low < share <= high:
            return Split(below=share)
        characters += len(text)
        fresh = fresh or end
    if not documents:
        raise UserError(f"{reader.name} has no text in it: give a file with text")
    if documents == 1:
        if fields:
            raise UserError(f"{reader.name} has a single document, whose fields cannot be cut; use validation=0")
        cut = int(characters * (1 - share))
        if not 0 < cut < characters:
            raise UserError(f"{reader.name} has {characters} characters: too few to hold out a share of {share}")
        return Split(cut=cut)
    if low == high:
        raise UserError(f"{reader.name}: all {documents} documents begin alike, so none can be held out; use validation=0")
    # The share would put all on one side: hold out the least hash alone, or all but the greatest.
    return Split(below=math.nextafter(low, 1) if low >= share else high)


def split_parts(reader: Reader, split: Split) -> Iterator[Part]:
    """Yield the parts of all documents with their sides; empty documents are left out."""
    held_out, open_, seen = False, False, 0
    for i in range(len(reader)):
        text, end, borders, marks = reader[i]
        first = not open_
        if first and not text:
            continue
        if split.cut is not None:
            at = max(0, split.cut - seen)
            before, after = text[:at], text[at:]
            if before:
                yield Part(i, False, before, seen == 0, seen + len(before) == split.cut, (), _sliced(marks, None, at))
            if after or end:
                first = seen <= split.cut < seen + len(text)
                yield Part(i, True, after, first, end, (), _sliced(marks, at, None))
            seen += len(text)
        else:
            # The first piece decides for its document.
            held_out = position(text) < split.below if first else held_out
            yield Part(i, held_out, text, first, end, borders, marks)
        open_ = not end


def _sliced(marks: Callable[[], np.ndarray] | None, start: int | None, stop: int | None) -> Callable[[], np.ndarray] | None:
    return None if marks is None else lambda: marks()[start:stop]


def parse_fold(fold: str) -> tuple[int, int]:
    """Parse "2/5", the second fold of five."""
    match = re.fullmatch(r"(\d+)/(\d+)", fold)
    if not match or not 1 <= int(match[1]) <= int(match[2]) or int(match[2]) < 2:
        raise UserError(f"fold={fold!r}: write 2/5 for the second of five parts")
    return int(match[1]), int(match[2])


def group_key(example: Example) -> str:
    """Return the key of the examples that stay together: the group; without one the texts, whatever their labels."""
    texts = strings(without_labels(example.values))
    return example.group or json.dumps(texts or example.values, sort_keys=True, ensure_ascii=False)


def assign_folds(examples: Sequence[Example], count: int) -> np.ndarray:
    """Assign each example to a fold, int [N] from 0 to count - 1.

    Whole groups, the larger ones first and equal ones by their hashes, each to the smallest fold: folds of single examples
    differ in size by at most one, and none is empty. Raises UserError for fewer groups than folds.
    """
    keys = [position(group_key(example)) for example in examples]
    order, own_N, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    check(len(order) >= count, f"{len(order)} group(s) of different examples cannot be dealt into {count} folds; take fewer")
    part_G, total_K = np.zeros(len(order), int), np.zeros(count, int)
    for group in np.argsort(-sizes, kind="stable"):
        part_G[group] = total_K.argmin()
        total_K[part_G[group]] += sizes[group]
    return part_G[own_N]


def hold_out_fold(read: Sequence[Read], fold: str) -> tuple[list[list[Example]], list[Example]]:
    """Hold out one fold of all sources' examples; return the remaining examples of each source, and the fold."""
    number, count = parse_fold(fold)
    part_N = assign_folds([example for one in read for example in one], count)
    train: list[list[Example]] = []
    out: list[Example] = []
    for one, parts in zip(read, np.split(part_N, np.cumsum([len(one) for one in read])[:-1])):
        train.append([example for example, part in zip(one, parts) if part != number - 1])
        out += [example for example, part in zip(one, parts) if part == number - 1]
        check(bool(train[-1]), f"fold={fold} leaves {one.name} without a training example; take more folds")
    return train, out
