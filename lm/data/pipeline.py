"""Batches as pure functions of (seed, step), over Grain's indexed datasets.

An objective asks for records of `window` tokens of which `stride` are new (causal language modelling: T + 1 and T).
A record is a row of `lm.data.packing` and `weights`, float32 [window]: 1 where the token counts as a target, 0 where it
is padding or was a target of the record before. `corrupt(rng, record)` makes an example, a dict of arrays, of it.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np

from lm.data.packing import Row, ring, window, wrapped
from lm.data.prepare import Corpus
from lm.data.store import Tokens
from lm.errors import UserError

Example = dict[str, np.ndarray]
Corrupt = Callable[[np.random.Generator, Row], Example]
Train = tuple[tuple[float, Tokens], ...]


class Indexed(Protocol):
    """Anything that gives batch `step` by index."""

    def __getitem__(self, step: int) -> Example: ...


def rows(train: Train, length: int, stride: int, packing: str, seed: int):
    """Return the endless, shuffled `grain.MapDataset` of training records; any index costs the same.

    Each epoch cuts a stream into windows `stride` apart, in an order of its own and, from the second on, from an
    origin of its own; windows are full, going on at the stream's beginning at its end (less than a stride of an epoch
    is left out). A mixture draws rows from its streams by weight.
    """
    import grain

    parts = [_stream(grain, tokens, length, stride, packing, _derive(seed, k)) for k, (_, tokens) in enumerate(train)]
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, [share for share, _ in train])


def _stream(grain, tokens: Tokens, length: int, stride: int, packing: str, seed: int):
    size = _targets(tokens)
    count = max(1, size // stride)
    weights = _weights(length, length - stride)

    @functools.lru_cache(maxsize=4)
    def origin(epoch: int) -> int:
        return 0 if epoch == 0 else _derive(seed, epoch) % size

    def record(index: int, number: int) -> Row:
        row = wrapped(tokens, origin(index // count) + number * stride, length, packing)
        return row | {"weights": weights}

    return grain.MapDataset.range(count).shuffle(seed=seed).repeat().map_with_index(record)


def lanes(train: Train, length: int, stride: int, packing: str, batch: int):
    """Return records in reading order: row r of each batch goes on where row r of the batch before stopped.

    For objectives with a memory; `batch` lanes start at equal distances in the one stream.
    """
    import grain

    if len(train) > 1:
        raise UserError("a mixture has no reading order: an objective with a memory needs a single source")
    tokens = train[0][1]
    size = _targets(tokens)
    weights = _weights(length, length - stride)

    def record(index: int) -> Row:
        step, lane = divmod(index, batch)
        return wrapped(tokens, lane * size // batch + step * stride, length, packing) | {"weights": weights}

    return grain.MapDataset.range(sys.maxsize).map(record)


class Batches:
    """`batches[step]` is rows [lo, hi) of global batch `step`: arrays stacked over rows.

    A pure function of (seed, step): shards put together give the whole batch, and no step needs the one before.
    `corrupt` is called once a row with a generator that depends only on (seed, row number).
    """

    def __init__(
        self,
        corpus: Corpus | Train,
        window: int,
        stride: int,
        corrupt: Corrupt,
        batch: int,
        seed: int = 0,
        packing: Literal["documents", "windows"] = "documents",
        shard: tuple[int, int] | None = None,
        order: Literal["shuffled", "reading"] = "shuffled",
    ):
        train = corpus.train if isinstance(corpus, Corpus) else corpus
        _check(window, stride, batch, shard)
        if order == "shuffled":
            records = rows(train, window, stride, packing, seed)
        else:
            records = lanes(train, window, stride, packing, batch)
        self.batch, self.shard = batch, shard or (0, batch)
        self.examples = _corrupted(records, corrupt, seed)

    def __getitem__(self, step: int) -> Example:
        low, high = self.shard
        return _stack([self.examples[i] for i in range(step * self.batch + low, step * self.batch + high)])

    def __iter__(self) -> Iterator[Example]:
        return (self[step] for step in itertools.count())


class Evaluation:
    """The whole of a split, once, in order: `len()` batches of equal shape.

    Every token but the stream's first is a target of exactly one record. What fills up the last window has segment 0
    and weight 0; rows that fill up the last batch are all zeros.
    """

    def __init__(
        self,
        tokens: Tokens,
        window: int,
        stride: int,
        corrupt: Corrupt,
        batch: int,
        packing: Literal["documents", "windows"] = "documents",
        seed: int = 0,
        shard: tuple[int, int] | None = None,
    ):
        import grain

        _check(window, stride, batch, shard)
        if len(tokens) < 2:
            raise UserError("nothing to evaluate: the held-out text is empty; set validation to a share or a source")
        self.tokens, self.window, self.stride, self.packing = tokens, window, stride, packing
        self.batch, self.shard = batch, shard or (0, batch)
        self.rows = 1 + max(0, -(-(len(tokens) - window) // stride))
        self.examples = _corrupted(grain.MapDataset.range(self.rows).map(self._record), corrupt, seed)

    def __len__(self) -> int:
        return -(-self.rows // self.batch)

    def __getitem__(self, step: int) -> Example:
        if not 0 <= step < len(self):
            raise IndexError(step)
        low, high = self.shard
        numbers = range(step * self.batch + low, step * self.batch + high)
        real = [self.examples[i] for i in numbers if i < self.rows]
        if len(real) < len(numbers):
            example = real[0] if real else self.examples[0]
            empty = {name: np.zeros_like(value) for name, value in example.items()}
            real += [empty] * (len(numbers) - len(real))
        return _stack(real)

    def __iter__(self) -> Iterator[Example]:
        return (self[step] for step in range(len(self)))

    def _record(self, number: int) -> Row:
        overlap = self.window - self.stride
        row = window(self.tokens, number * self.stride, self.window, self.packing)
        # The first record has no record before it: only its very first token has nothing to be predicted from.
        weights = _weights(self.window, overlap if number else min(overlap, 1))
        return row | {"weights": weights * (row["segments"] > 0)}


def prefetch(batches: Indexed, start: int, stop: int | None = None, depth: int = 2) -> Iterator[Example]:
    """Yield batches[start], ..., batches[stop - 1] (endless without stop), made up to `depth` ahead in a thread.

    An exception comes out where its batch would. Closing the iterator, or leaving it, stops the thread.
    """
    steps = itertools.count(start) if stop is None else range(start, stop)
    with ThreadPoolExecutor(1, "prefetch") as pool:
        pending: deque = deque()
        try:
            for step in steps:
                pending.append(pool.submit(batches.__getitem__, step))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _corrupted(records, corrupt: Corrupt, seed: int):
    return records.random_map(lambda record, rng: corrupt(rng, record), seed=_derive(seed, -1))


def _derive(seed: int, *path: int) -> int:
    """Return 32 bits that depend on the seed and the path; 64-bit words keep negative numbers legal."""
    words = [number % 2**64 for number in (seed, *path)]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@functools.lru_cache(maxsize=8)
def _weights(length: int, overlap: int) -> np.ndarray:
    weights = np.ones(length, np.float32)
    weights[:overlap] = 0
    weights.flags.writeable = False
    return weights


def _targets(tokens: Tokens) -> int:
    """Return the stream's length as a ring; without one token to predict it is a user's mistake."""
    if len(tokens) < 2 or not tokens.documents:
        raise UserError("nothing to train on: the training text has less than two tokens; lower validation or add text")
    return ring(tokens)


def _check(window: int, stride: int, batch: int, shard: tuple[int, int] | None) -> None:
    if not 1 <= stride <= window:
        raise ValueError(f"stride {stride} must lie in 1..{window}, the window")
    if batch < 1:
        raise UserError(f"batch={batch}: give at least 1")
    low, high = shard or (0, batch)
    if not 0 <= low < high <= batch:
        raise ValueError(f"shard {shard} is not a range of rows of a batch of {batch}")


def _stack(examples: list[Example]) -> Example:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
