"""Similar words by their contexts in a corpus: MacBERT's replacements; numpy only.

Cui et al. 2020 take similar words from a word2vec tool; here words become vectors by the positive pointwise mutual
information with the most frequent words beside them, cut to its first singular vectors (Levy & Goldberg 2014), which
needs the corpus and half a minute. Targets are aligned with the input, so a word's neighbours have as many pieces as it.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

LONGEST = 8  # pieces of a word in the table
NEAR = 5  # neighbours kept


@dataclass(frozen=True, kw_only=True)
class Words:
    """A table of W words. `keys`: uint64 [W], ascending, hashes of their pieces; `pieces`: int32 [W, LONGEST];

    `sizes`: int [W], pieces of each; `near`: int32 [W, NEAR], numbers of the nearest words of that size, -1 where there
    are none. `known`, int [W]: how many there are; `groups`: for each size the words that have it.
    """

    keys: np.ndarray
    pieces: np.ndarray
    sizes: np.ndarray
    near: np.ndarray

    @cached_property
    def known(self) -> np.ndarray:
        return np.count_nonzero(self.near >= 0, 1)

    @cached_property
    def groups(self) -> tuple[np.ndarray, ...]:
        return groups_of(self.sizes)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the numbers of words by their hashes, -1 for a word outside the table."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = self.keys.searchsorted(keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


def hashes(tokens: np.ndarray, first: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Hash the words that begin at `first`, uint64 [U]: a sum over their pieces, each mixed with its position in the word."""
    # Without the position in each summand, words of the same pieces in another order would have one hash.
    place = np.arange(sizes.sum()) - (sizes.cumsum() - sizes).repeat(sizes)
    piece = tokens[first.repeat(sizes) + place].astype(np.uint64)
    mixed = (piece * np.uint64(LONGEST) + place.clip(max=LONGEST - 1).astype(np.uint64) + np.uint64(1)) * np.uint64(
        0x9E3779B97F4A7C15
    )
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return np.add.reduceat(mixed, sizes.cumsum() - sizes) if len(sizes) else mixed


def similar_words(
    tokens: np.ndarray,
    first: np.ndarray,
    sizes: np.ndarray,
    *,
    most: int = 20_000,
    least: int = 5,
    contexts: int = 500,
    reach: int = 2,
    width: int = 100,
) -> Words:
    """Build the table of a corpus whose words begin at `first`, int [U], in the stream `tokens`, and have `sizes` pieces.

    The `most` frequent words that occur `least` times; contexts are the frequent words up to `reach` words to the left
    and to the right, each distance and side for itself: words are alike that could stand in each other's place.
    """
    keys, where, number, count = np.unique(
        hashes(tokens, first, sizes), return_index=True, return_inverse=True, return_counts=True
    )
    # Stable: words of one count keep the order of their hashes, so the table is the same everywhere.
    kept = np.argsort(-count, kind="stable")[:most]
    kept = kept[(count[kept] >= least) & (sizes[where[kept]] <= LONGEST)]
    rank = np.full(len(keys), -1)
    rank[kept] = np.arange(len(kept))
    vectors = embed(rank[number], len(kept), min(contexts, len(kept)), reach, width)
    # `find` bisects, so the table is stored by ascending hash.
    order = np.argsort(keys[kept])
    kept = kept[order]
    size = sizes[where[kept]]
    pieces = np.zeros((len(kept), LONGEST), np.int32)
    for place in range(LONGEST):
        inside = size > place
        pieces[inside, place] = tokens[first[where[kept[inside]]] + place]
    return Words(keys=keys[kept], pieces=pieces, sizes=size, near=nearest(vectors[order], size))


def groups_of(sizes: np.ndarray) -> tuple[np.ndarray, ...]:
    """List the words of each size 0, 1, ..., LONGEST."""
    return tuple((sizes == n).nonzero()[0] for n in range(LONGEST + 1))


def embed(words: np.ndarray, vocab: int, contexts: int, reach: int, width: int) -> np.ndarray:
    """Turn a stream of word ranks (-1: none) into unit vectors (vocab, width)."""
    parts = []
    for distance in range(1, reach + 1):
        for left, right in ((words[:-distance], words[distance:]), (words[distance:], words[:-distance])):
            seen = (left >= 0) & (right >= 0) & (right < contexts)
            pairs = np.bincount(left[seen] * contexts + right[seen], minlength=vocab * contexts)
            parts.append(information(pairs.reshape(vocab, contexts).astype(np.float32)))
    matrix = np.concatenate(parts, 1)
    if not matrix.size:
        return np.zeros((vocab, width), np.float32)
    # The eigenvectors of the small square are the right singular vectors: no decomposition of all words.
    values, vectors = np.linalg.eigh(matrix.T @ matrix)
    top = np.argsort(-values)[:width]
    # Singular vectors times the roots of their values: plain products favour the first few directions too much.
    vectors = (matrix @ vectors[:, top]) / np.maximum(values[top], 1e-6) ** 0.25
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)


def information(pairs: np.ndarray) -> np.ndarray:
    """Positive pointwise mutual information of counts (vocab, contexts), context counts to the power 0.75."""
    # The power weakens the bias of mutual information toward rare contexts (Levy et al. 2015).
    side = pairs.sum(0) ** 0.75
    expected = pairs.sum(1, keepdims=True) * (side / max(side.sum(), 1e-6))
    return np.log(np.maximum(pairs / np.maximum(expected, 1e-6), 1.0))


def nearest(vectors: np.ndarray, sizes: np.ndarray, block: int = 2048) -> np.ndarray:
    """Find for each word the NEAR most similar others of its size, best first."""
    near = np.full((len(vectors), NEAR), -1, np.int32)
    for group in groups_of(sizes):
        kept = min(NEAR, len(group) - 1)
        if kept < 1:
            continue
        # In blocks: the similarities of all pairs of 20,000 words would take gigabytes.
        for low in range(0, len(group), block):
            rows = group[low : low + block]
            likeness = vectors[rows] @ vectors[group].T
            likeness[np.arange(len(rows)), np.arange(low, low + len(rows))] = -np.inf
            best = np.argpartition(-likeness, kept - 1)[:, :kept]
            order = np.argsort(-np.take_along_axis(likeness, best, 1), 1, kind="stable")
            near[rows, :kept] = group[np.take_along_axis(best, order, 1)]
    return near


def replace_words(
    rng: np.random.Generator,
    tokens: np.ndarray,
    first: np.ndarray,
    sizes: np.ndarray,
    table: Words,
    shares: tuple[float, float, float],
    low: int,
    vocab: int,
) -> np.ndarray:
    """Replace words in a copy of a row's `tokens`, int32 [T].

    Words begin at `first` and have `sizes` pieces, int [U]. Each is replaced by one of its neighbours, by a random word
    of as many pieces, or stays, with the three shares; a word without neighbours gets a random one (Cui et al. 2020).
    Where the table has none of the size, the pieces are drawn one by one from [low, vocab).
    """
    fed = tokens.copy()
    draw = rng.random(len(first))
    number = table.find(hashes(tokens, first, sizes))
    # One number a word, reduced to the choices later: the random stream does not depend on the table.
    pick = rng.integers(0, 2**31, len(first))
    known = table.known
    choices = zip(first.tolist(), sizes.tolist(), draw.tolist(), number.tolist(), pick.tolist())
    for begin, size, share, word, which in choices:  # a word, not a token
        if share >= shares[0] + shares[1]:
            continue
        group = table.groups[size] if size <= LONGEST else ()
        if share < shares[0] and word >= 0 and known[word]:
            fed[begin : begin + size] = table.pieces[table.near[word, which % known[word]], :size]
        elif len(group):
            fed[begin : begin + size] = table.pieces[group[which % len(group)], :size]
        else:
            fed[begin : begin + size] = rng.integers(low, vocab, size)
    return fed


def save(table: Words, path: Path) -> None:
    """Write the table beside its final name and put it there whole."""
    fresh = path.with_name(f"{path.stem}.{os.getpid()}.npz")
    np.savez(fresh, keys=table.keys, pieces=table.pieces, sizes=table.sizes, near=table.near)
    fresh.replace(path)


def load(path: Path) -> Words:
    """Read a table."""
    with np.load(path) as file:
        return Words(**{name: file[name] for name in ("keys", "pieces", "sizes", "near")})
