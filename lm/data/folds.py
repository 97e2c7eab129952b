"""k-fold cross-validation: part labelled examples into equal shares, the same way on every machine and in every run."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from lm.data.examples import Example, Read, strings, told
from lm.data.split import position
from lm.errors import UserError, check


def numbers(fold: str) -> tuple[int, int]:
    """Read "2/5", the second part of five."""
    found = re.fullmatch(r"(\d+)/(\d+)", fold)
    if not found or not 1 <= int(found[1]) <= int(found[2]) or int(found[2]) < 2:
        raise UserError(f"fold={fold!r}: write 2/5 for the second of five parts")
    return int(found[1]), int(found[2])


def key(example: Example) -> str:
    """Say what keeps examples together: their group, without one their texts, whatever their labels and numbers."""
    return example.group or json.dumps(strings(told(example.values)) or example.values, sort_keys=True, ensure_ascii=False)


def dealt(examples: Sequence[Example], count: int) -> np.ndarray:
    """Give each example its part, 0 to count - 1, (N,) int.

    Whole groups are dealt out, the larger ones first and equal ones by their hashes, each to the part that is smallest: of
    single examples no part has more than one above another, and every part has some. Raises UserError for fewer groups.
    """
    order, own_N, sizes = np.unique([position(key(one)) for one in examples], return_inverse=True, return_counts=True)
    check(len(order) >= count, f"{len(order)} group(s) of different examples cannot be dealt into {count} folds; take fewer")
    part_G, total_K = np.zeros(len(order), int), np.zeros(count, int)
    for group in np.argsort(-sizes, kind="stable"):
        part_G[group] = total_K.argmin()
        total_K[part_G[group]] += sizes[group]
    return part_G[own_N]


def held(read: Sequence[Read], fold: str) -> tuple[list[list[Example]], list[Example]]:
    """Hold one part of all sources' examples out; give what is left of each source, and the part."""
    number, count = numbers(fold)
    part_N = dealt([example for one in read for example in one], count)
    train: list[list[Example]] = []
    out: list[Example] = []
    for one, parts in zip(read, np.split(part_N, np.cumsum([len(one) for one in read])[:-1])):
        train.append([example for example, part in zip(one, parts) if part != number - 1])
        out += [example for example, part in zip(one, parts) if part == number - 1]
        check(bool(train[-1]), f"fold={fold} leaves {one.name} without a training example; take more folds")
    return train, out
