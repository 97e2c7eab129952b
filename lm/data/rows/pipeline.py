"""Batches as pure functions of (seed, step), over Grain's indexed shuffle.

An objective names its records (`lm.data.rows.records`); `corrupt(rng, record)` makes an example of each, a dict of arrays.
The generator depends only on the seed and the row's number; with `Windows(copies=k)` on the seed, the record's number and
the epoch modulo k.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.rows.examples import Examples, ExampleStream, Parted, TaskStream
from lm.data.rows.records import Documents, DocumentStream, Record, Windows, WindowStream, derive
from lm.errors import UserError
from lm.sizes import check_memory

Example = dict[str, np.ndarray]
Corrupt = Callable[[np.random.Generator, Record], Example]
Train = tuple[tuple[float, Any], ...]
Stream = WindowStream | DocumentStream | ExampleStream | TaskStream
Place = tuple[int, int, tuple[int, ...]]  # stream, index in it, key of the row's generator
BLOCK = 1000  # steps of several tasks whose order is drawn together


class Indexed(Protocol):
    """Batches by index."""

    def __getitem__(self, step: int) -> Example: ...


def shuffled(streams: list[Stream], shares: list[float], seed: int, copies: int) -> Callable[[int], Place]:
    """Return the map from training row i to its place: each stream's records shuffled anew each epoch, in constant time.

    A mixture draws rows from its streams by weight.
    """
    import grain

    parts = [ordered(k, stream, seed, copies) for k, stream in enumerate(streams)]
    mixed = parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, shares)
    return mixed.__getitem__


def ordered(k: int, stream: Stream, seed: int, copies: int):
    """Return stream k's places, endless: its records shuffled anew each epoch."""
    import grain

    def place(index: int, number: int) -> Place:
        epoch = index // stream.count
        if not copies:
            return k, stream.at(number, epoch), ()
        # The generator is keyed by record and copy, not by row: epochs k and k + copies mask alike.
        epoch %= copies
        return k, stream.at(number, epoch), (1 + k, number, epoch)

    return grain.MapDataset.range(stream.count).shuffle(seed=derive(seed, k)).repeat().map_with_index(place)


def by_task(streams: list[Stream], shares: list[float], seed: int, batch: int) -> Callable[[int], Place]:
    """Return the map from training row i to its place when all rows of a step are of one stream, which continues itself.

    Every stream has its share of the steps 1 to BLOCK, and so on, in an order that is drawn for each BLOCK.
    """
    import grain

    rows = [ordered(k, stream, seed, 0) for k, stream in enumerate(streams)]
    turns = [grain.MapDataset.range(1).repeat().map_with_index(lambda n, _, k=k: (k, n)) for k in range(len(streams))]
    even = turns[0] if len(turns) == 1 else grain.MapDataset.mix(turns, shares)

    @functools.lru_cache(maxsize=4)
    def block(number: int) -> np.ndarray:
        turns = np.array([even[i] for i in range(number * BLOCK, (number + 1) * BLOCK)])
        drawn = np.random.default_rng([derive(seed, -2), number]).permutation(turns)
        for k in range(len(streams)):  # a stream's own batches stay in order, so that its epochs do
            drawn[drawn[:, 0] == k] = turns[turns[:, 0] == k]
        return drawn

    def place(index: int) -> Place:
        step, row = divmod(index, batch)
        k, turn = block(step // BLOCK)[step % BLOCK].tolist()
        return rows[k][turn * batch + row]

    return place


def reading(streams: Sequence[Any], batch: int) -> Callable[[int], Place]:
    """Return the map from training row i to its place when row r of each batch continues row r of the batch before."""
    if len(streams) > 1:
        raise UserError("a mixture has no reading order: an objective with a memory needs a single source")
    return lambda index: (0, streams[0].lane(*divmod(index, batch), batch), ())


class Draws(threading.local):
    """Generators that depend on (seed, kind, number, copy) alone.

    Each thread has one, set anew for each row: a microsecond, where a new one takes five.
    """

    def __init__(self, seed: int):
        bits = np.random.Philox(key=np.array([seed, 0], np.uint64))
        self.bits, self.state, self.generator = bits, bits.state, np.random.Generator(bits)

    def __call__(self, kind: int, number: int, copy: int) -> np.random.Generator:
        # The first word of the counter counts the draws of the row.
        self.state["state"]["counter"] = np.array((0, kind, number, copy), np.uint64)
        self.bits.state = self.state
        return self.generator


class Batches:
    """`batches[step]` is rows [lo, hi) of global batch `step`: arrays stacked over rows.

    A pure function of (seed, step): shards put together give the whole batch, and no step needs the one before.
    """

    def __init__(
        self,
        corpus: Corpus | Train,
        records: Windows | Documents | Examples | Parted,
        corrupt: Corrupt,
        batch: int,
        seed: int = 0,
        packing: Literal["documents", "windows"] = "documents",
        shard: tuple[int, int] | None = None,
    ):
        train = corpus.train if isinstance(corpus, Corpus) else corpus
        _check(batch, shard)
        if any(len(tokens) < 2 or not tokens.documents for _, tokens in train):
            raise UserError("nothing to train on: the training text has less than two tokens; lower validation or add text")
        self.batch, self.shard, self.corrupt, self.draws = batch, shard or (0, batch), corrupt, Draws(derive(seed, -1))
        self.streams = [records.open(tokens, packing, derive(seed, k)) for k, (_, tokens) in enumerate(train)]
        rows = self.shard[1] - self.shard[0]  # each has its tokens as int32, at least
        check_memory(4 * rows * records.tokens, f"a batch of {rows:,} rows of {records.tokens:,} tokens", "lower batch")
        self.blank: Example = {}
        shares = [share for share, _ in train]
        if records.order == "reading":
            self.place = reading(self.streams, batch)
        elif records.order == "tasks":
            self.place = by_task(self.streams, shares, seed, batch)
            for stream in self.streams:  # a batch has the arrays of all tasks, zeros but for those of its own
                row = corrupt(self.draws(0, 0, 0), stream.held_out(self.draws(0, 0, 0), 0))
                self.blank |= {name: np.zeros_like(value) for name, value in row.items()}
        else:
            self.place = shuffled(self.streams, shares, seed, records.copies)

    def __getitem__(self, step: int) -> Example:
        low, high = self.shard
        rows = []
        for i in range(step * self.batch + low, step * self.batch + high):
            rows.append(self._example(i))
            if len(rows) == 1:  # once more when they are stacked
                size = 2 * (high - low) * sum(x.nbytes for x in rows[0].values())
                check_memory(size, f"a batch of {high - low:,} rows", "lower batch")
        return _stack([{**self.blank, **row} for row in rows] if self.blank else rows)

    def _example(self, index: int) -> Example:
        stream, at, key = self.place(index)
        # Keyed by the row's number alone: a resume at any step draws what an unbroken run would have drawn.
        rng = self.draws(*(key or (0, index, 0)))
        return self.corrupt(rng, self.streams[stream].record(rng, at))

    def __iter__(self) -> Iterator[Example]:
        return (self[step] for step in itertools.count())


class Evaluation:
    """The whole of a split, once: `len()` batches of equal shape.

    Of windows every token but the stream's first is a target of exactly one record, of documents each is given once.
    Records come in order; with `order="reading"` row r of each batch goes on where row r of the batch before stopped.
    Rows that fill up a batch are all zeros.
    """

    def __init__(
        self,
        tokens: Any,
        records: Windows | Documents | Examples,
        corrupt: Corrupt,
        batch: int,
        packing: Literal["documents", "windows"] = "documents",
        seed: int = 0,
        shard: tuple[int, int] | None = None,
    ):
        _check(batch, shard)
        if len(tokens) < (1 if isinstance(records, Examples) else 2):  # a token is predicted from those before it
            raise UserError("nothing to evaluate: the held-out text is empty; set validation to a share or a source")
        self.stream = records.open(tokens, packing, seed)
        self.batch, self.shard, self.corrupt, self.draws = batch, shard or (0, batch), corrupt, Draws(derive(seed, -1))
        self.rows, self.reading = self.stream.once, records.order == "reading"

    def __len__(self) -> int:
        return -(-self.rows // self.batch)

    def __getitem__(self, step: int) -> Example:
        if not 0 <= step < len(self):
            raise IndexError(step)
        low, high = self.shard
        if self.reading:
            # Each row takes consecutive records, one a batch, as its memory needs them.
            numbers = range(low * len(self) + step, high * len(self) + step, len(self))
        else:
            numbers = range(step * self.batch + low, step * self.batch + high)
        real = [self._example(i) for i in numbers if i < self.rows]
        if len(real) < len(numbers):
            # Rows of zeros keep the shape; their weights are 0, so they count nowhere.
            example = real[0] if real else self._example(0)
            empty = {name: np.zeros_like(value) for name, value in example.items()}
            real += [empty] * (len(numbers) - len(real))
        return _stack(real)

    def _example(self, number: int) -> Example:
        rng = self.draws(0, number, 0)
        return self.corrupt(rng, self.stream.held_out(rng, number))

    def __iter__(self) -> Iterator[Example]:
        return (self[step] for step in range(len(self)))


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
            # Nobody will take what is pending; without this the pool would make it all before it closes.
            pool.shutdown(wait=False, cancel_futures=True)


def _check(batch: int, shard: tuple[int, int] | None) -> None:
    if batch < 1:
        raise UserError(f"batch={batch}: give at least 1")
    low, high = shard or (0, batch)
    if not 0 <= low < high <= batch:
        raise ValueError(f"shard {shard} is not a range of rows of a batch of {batch}")


def _stack(examples: list[Example]) -> Example:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
