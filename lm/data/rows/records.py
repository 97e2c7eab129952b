"""Records, the input of an objective's `corrupt`: a window of the stream, or whole documents with their fields.

`Windows` and `Documents` describe them; `open` binds a description to one `Tokens` stream. An opened stream has `count`
records an epoch and `once` in an evaluation; `at(number, epoch)` is the place of a training record, `record(rng, at)` the
record, `held_out(rng, number)` the evaluation's.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lm.data.corpus.store import Tokens
from lm.data.rows.packing import boundaries, next_fit, ring, window, wrapped
from lm.errors import UserError, check_choices

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Windows:
    """`length` tokens of the stream, of which `stride` are new.

    | key of a record | type | meaning |
    |---|---|---|
    | tokens | int32 [length] | ids; the separator opens each document |
    | segments | int32 [length] | documents of the row 1, 2, ...; 0 is padding |
    | positions | int32 [length] | position within the document |
    | weights | float32 [length] | 1 where the token is a new target, 0 for padding and the targets of the record before |
    | marks | uint8 [length] | bits of `lm.data.text.words`; all 0 when the corpus has none |
    | marked | bool | whether the corpus has marks |
    | others | list of `others` records | windows from uniformly random places of the same stream |
    | documents | int64 [length] | with `others` that are `apart`: number of each token's document in the stream |
    | backward | bool | whether all arrays are turned round: the row is read from right to left |

    `order="reading"`: row r of each batch goes on where row r of the batch before stopped, for objectives with a memory.
    `mirrored`: only the even rows do; each odd row reads the same text as the row before it, from right to left (Yang et
    al. 2019). `copies=k`: a window and its random draws are one of k, cycled by epoch (Devlin et al. 2019: 10); 0 draws anew
    each epoch. Arrays may be shared between records: do not write into them. `apart`: where the stream has two documents, an
    other window's first half has text of another document than whichever is chosen of the first half of the record's own.
    """

    length: int
    stride: int
    others: int = 0
    order: Literal["shuffled", "reading"] = "shuffled"
    copies: int = 0
    mirrored: bool = False
    apart: bool = False

    def __post_init__(self):
        check_choices(self)
        if not 1 <= self.stride <= self.length:
            raise ValueError(f"stride {self.stride} must lie in 1..{self.length}, the window")
        if min(self.others, self.copies) < 0 or (self.copies and self.order == "reading"):
            raise ValueError(f"{self}: others and copies are at least 0, and a reading order has no copies")

    @property
    def tokens(self) -> int:
        """New tokens a record."""
        return self.stride

    def open(self, tokens: Tokens, packing: str = "documents", seed: int = 0) -> WindowStream:
        return WindowStream(self, tokens, packing, seed)


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Whole documents, each a list of its fields; a record is {"documents": [[int32 [n], ...], ...]}.

    `fields` must be the number that every document has, with `limit` tokens for each field of a row, where a field
    counts one token more than it has (its end). `fields=0` takes documents of any number of fields (the turns of
    dialogues), with one limit for all fields of a row together. With `pack` a record is as many adjacent documents as
    fit, else exactly one. What does not fit a row by itself loses its end. `ends` counts other numbers of tokens than
    one for the fields (a slot before a source and an end behind it: 2).
    """

    fields: int = 2
    limit: tuple[int, ...] = (512, 512)
    pack: bool = True
    ends: tuple[int, ...] = ()  # (): 1 for each field

    def __post_init__(self):
        object.__setattr__(self, "limit", tuple(self.limit))
        object.__setattr__(self, "ends", tuple(self.ends) or (1,) * len(self.limit))
        if self.fields < 0 or len(self.limit) != max(1, self.fields) or min(self.limit) < 2:
            raise ValueError(f"{self}: give one limit of at least 2 for each field, or one in all for fields=0")
        if len(self.ends) != len(self.limit) or any(not 0 < n < limit for n, limit in zip(self.ends, self.limit)):
            raise ValueError(f"{self}: ends are one number for each limit, above 0 and below it")

    order = "shuffled"
    copies = 0

    @property
    def tokens(self) -> int:
        """New tokens a record, at most."""
        return sum(self.limit)

    def open(self, tokens: Tokens, packing: str = "documents", seed: int = 0) -> DocumentStream:
        return DocumentStream(self, tokens)


class WindowStream:
    """Windows over one stream.

    Training windows are full: they go on at the stream's beginning at its end (less than a stride of an epoch is left
    out), and each epoch but the first has an origin of its own. Evaluation meets every token but the first as a
    target of exactly one record; the padding of the last one has segment 0 and weight 0.
    """

    def __init__(self, spec: Windows, tokens: Tokens, packing: str, seed: int):
        self.spec, self.tokens, self.packing, self.seed = spec, tokens, packing, seed
        self.size = ring(tokens)
        self.count = max(1, self.size // spec.stride)
        self.once = 1 + max(0, -(-(len(tokens) - spec.length) // spec.stride))
        self.overlap = spec.length - spec.stride
        self.origin = functools.lru_cache(maxsize=32)(self._origin)

    def _origin(self, epoch: int) -> int:
        # Later epochs cut the stream at other places, so that windows do not always start with the same tokens.
        return 0 if epoch == 0 else derive(self.seed, epoch) % self.size

    def at(self, number: int, epoch: int) -> int:
        return self.origin(epoch) + number * self.spec.stride

    def lane(self, step: int, lane: int, lanes: int) -> int:
        """Return where row `lane` of batch `step` lies in reading order: lanes start at equal distances.

        A place below 0 is to be read from right to left: ~place of the text.
        """
        if not self.spec.mirrored:
            return lane * self.size // lanes + step * self.spec.stride
        if lanes % 2:
            raise UserError(f"batch={lanes} must be even: half of its rows read from right to left")
        at = (lane // 2 + lane % 2) * self.size // (lanes // 2)
        if lane % 2 == 0:
            return at + step * self.spec.stride
        return ~((at - self.spec.length - step * self.spec.stride) % self.size)

    def record(self, rng: np.random.Generator, at: int) -> Record:
        length, backward = self.spec.length, at < 0
        at = ~at if backward else at
        row: Record = wrapped(self.tokens, at, length, self.packing)
        self._mark(row, at % self.size, True)
        if backward:
            row = {name: x[::-1] if isinstance(x, np.ndarray) else x for name, x in row.items()}
        row |= {"weights": _weights(length, self.overlap), "backward": backward}
        return self._with_others(rng, row, at % self.size)

    def held_out(self, rng: np.random.Generator, number: int) -> Record:
        length, at = self.spec.length, number * self.spec.stride
        row: Record = window(self.tokens, at, length, self.packing)
        # The first record has no record before it: only its very first token has nothing to be predicted from.
        weights = _weights(length, self.overlap if number else min(self.overlap, 1))
        row |= {"weights": weights * (row["segments"] > 0), "backward": False}
        self._mark(row, at, False)
        return self._with_others(rng, row, at)

    def _with_others(self, rng: np.random.Generator, row: Record, at: int) -> Record:
        if not self.spec.others:
            return row
        places = rng.integers(self.size, size=self.spec.others).tolist()
        if self.spec.apart:
            places = [self._apart(rng, at, place) for place in places]
        row["others"] = [self._alone.record(rng, ~place if row["backward"] else place) for place in places]
        if self.spec.apart:
            for one, place in zip((row, *row["others"]), (at, *places)):
                documents = self._documents(place, self.spec.length)
                one["documents"] = documents[::-1] if one["backward"] else documents
        return row

    def _documents(self, at: int, length: int) -> np.ndarray:
        """Number the documents of a stretch of the ring, int64 [length]."""
        return self.tokens.starts.searchsorted((at + np.arange(length)) % self.size, "right")

    def _apart(self, rng: np.random.Generator, at: int, place: int) -> int:
        """Return a window's place, or another one where its first half is of a single document, one of the row's own."""
        reach, starts = max(0, self.spec.length // 2 - 1), self.tokens.starts
        ends = np.array((at, at + reach, place, place + reach)) % self.size
        first, last, there, beyond = starts.searchsorted(ends, "right").tolist()
        # Past the ring's end the numbers of documents begin again, so the row's may be the last few and the first.
        mine = first <= there <= last if first <= last else there >= first or there <= last
        if there != beyond or not mine:
            return place
        if first != last:
            return at  # with several documents, one of them differs from any
        low, high = int(starts[first - 1]), int(starts[first]) if first < len(starts) else self.size
        if high - low >= self.size:
            return place  # there is no other document
        # Uniform over the places outside of the row's only document: drawn as if it were cut out, then moved behind it.
        other = int(rng.integers(self.size - (high - low)))
        return other + (high - low if other >= low else 0)

    @functools.cached_property
    def _alone(self) -> WindowStream:
        return dataclasses.replace(self.spec, others=0).open(self.tokens, self.packing, self.seed)

    def _mark(self, row: Record, at: int, wrap: bool) -> None:
        marks, length = self.tokens.marks, self.spec.length
        row["marked"] = marks is not None
        if marks is None:
            row["marks"] = _zeros(length)
        elif at + length <= self.size:
            row["marks"] = marks[at : at + length]
        elif wrap:
            row["marks"] = marks[(at + np.arange(length)) % self.size]
        else:
            row["marks"] = np.zeros(length, np.uint8)
            row["marks"][: max(0, len(marks) - at)] = marks[at : at + length]


class DocumentStream:
    """Documents of one stream; where they and their fields lie is found once, at opening."""

    def __init__(self, spec: Documents, tokens: Tokens):
        self.spec, self.tokens = spec, tokens
        self.low, self.high, self.first = boundaries(tokens)
        if spec.fields and tokens.documents:
            number = np.diff(self.first)
            wrong = np.flatnonzero(number != spec.fields)
            if len(wrong):
                raise UserError(
                    f"document {wrong[0]} of {tokens.documents} has {number[wrong[0]]} fields where the objective needs "
                    f"{spec.fields}: name them in the source, as in JsonLines(path=..., fields=('source', 'target'))"
                )
        self.packs = np.arange(tokens.documents + 1) if not spec.pack else next_fit(self._sizes(), spec.limit)
        self.count = self.once = len(self.packs) - 1

    def _sizes(self) -> np.ndarray:
        """Return the tokens of each document towards each limit, ends included: int64 [documents, limits]."""
        sizes = self.high - self.low
        if self.spec.fields:
            sizes = sizes.reshape(-1, self.spec.fields) + np.array(self.spec.ends)
        else:
            sizes = sizes + self.spec.ends[0]
            sizes = np.add.reduceat(sizes, self.first[:-1])[:, None] if len(sizes) else sizes[:, None]
        return np.minimum(sizes, self.spec.limit)

    def at(self, number: int, epoch: int) -> int:
        return number

    def record(self, rng: np.random.Generator, at: int) -> Record:
        return {"documents": [self._document(i) for i in range(self.packs[at], self.packs[at + 1])]}

    held_out = record

    def _document(self, i: int) -> list[np.ndarray]:
        """Return the fields of document i, int32 [n] each, cut to the limits."""
        a, b = self.first[i], self.first[i + 1]
        low, high = self.low[a:b].tolist(), self.high[a:b].tolist()
        if self.spec.fields:
            spans = [(x, min(y, x + most - n)) for x, y, most, n in zip(low, high, self.spec.limit, self.spec.ends)]
        else:
            stop = low[0] + self.spec.limit[0] - 1
            spans = [(x, min(y, stop)) for x, y in zip(low, high) if x < stop or x == low[0]]
        return [self.tokens.tokens[x:y].astype(np.int32) for x, y in spans]


def derive(seed: int, *path: int) -> int:
    """Return 32 bits that depend on the seed and the path; 64-bit words keep negative numbers legal."""
    words = [number % 2**64 for number in (seed, *path)]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@functools.lru_cache(maxsize=8)
def _weights(length: int, overlap: int) -> np.ndarray:
    weights = np.ones(length, np.float32)
    weights[:overlap] = 0
    # Shared by all records: a write would change the others.
    weights.flags.writeable = False
    return weights


@functools.lru_cache(maxsize=8)
def _zeros(length: int) -> np.ndarray:
    zeros = np.zeros(length, np.uint8)
    zeros.flags.writeable = False
    return zeros
