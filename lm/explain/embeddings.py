"""The table of token embeddings: nearest tokens by cosine, and a map of some of them in two dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check
from lm.explain.attribution import Params

WORDS = 24  # of a text, at most
POINTS = 90  # of a map, at most
WIDTH, HEIGHT, MARGIN = 760, 520, 36  # of a map
LETTER, LINE = 7.3, 13  # size of a label's character


@dataclass(frozen=True)
class Neighbours:
    """A token with the tokens whose embeddings have the highest cosine to its own, best first."""

    id: int
    token: str
    ids: list[int]
    tokens: list[str]
    cosines: np.ndarray


def table_of(params: Params, tokenizer: Tokenizer) -> np.ndarray:
    """Return the rows of the table that the tokenizer has ids for, float32 (V, E)."""
    return np.asarray(params["embed"]["table"], np.float32)[: tokenizer.vocab]


def ids_of(tokenizer: Tokenizer, words: Sequence[str]) -> list[int]:
    """Return the id of each word: of a name in the vocabulary, or of a word that is one token alone or behind a space."""
    found = []
    for word in words:
        options = [tokenizer.encode(text).tolist() for text in (f" {word}", word)]
        single = [ids[0] for ids in options if len(ids) == 1]
        named = tokenizer.token_id(word)
        if named is None and not single:
            parts = ", ".join(map(repr, tokenizer.pieces(options[1])))
            raise UserError(f"{word!r} is no single token of this vocabulary but {parts}; name tokens")
        found.append(single[0] if single else int(named))
    return found


def ids_in(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the different tokens of a text in their order, `WORDS` of them at most."""
    return list(dict.fromkeys(tokenizer.encode(text).tolist()))[:WORDS]


def neighbours(params: Params, tokenizer: Tokenizer, ids: Sequence[int], count: int = 8) -> list[Neighbours]:
    """Return the `count` nearest other tokens of each id by cosine; ties go to the lower id."""
    table = table_of(params, tokenizer)
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    result = []
    for id in ids:
        cosines_V = table @ table[id]
        cosines_V[id] = -np.inf
        best = np.argsort(-cosines_V, kind="stable")[: min(count, len(table) - 1)]
        names = tokenizer.pieces([id, *best])
        result.append(Neighbours(int(id), names[0], best.tolist(), names[1:], cosines_V[best]))
    return result


def principal_plane(vectors_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project onto the first two principal components, (N, 2), and return their shares of the variance, (2,).

    The sign of a component makes its largest coordinate positive, so that the same table gives the same map.
    """
    check(len(vectors_NE) > 2, "a map needs at least three different tokens")
    centred = (vectors_NE - vectors_NE.mean(0)).astype(np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :2] * sizes[:2]
    signs = np.sign(points[np.abs(points).argmax(0), np.arange(2)])
    return points * np.where(signs == 0, 1, signs), sizes[:2] ** 2 / max(float((sizes**2).sum()), 1e-30)


@dataclass(frozen=True)
class Point:
    """A token on a map, in pixels, and its label's left end and baseline; `hidden`: no room for the label."""

    id: int
    token: str
    chosen: bool  # one of the tokens asked for, not a neighbour
    x: float
    y: float
    label_x: float
    label_y: float
    hidden: bool


def embedding_map(params: Params, tokenizer: Tokenizer, near: Sequence[Neighbours]) -> tuple[list[Point], np.ndarray]:
    """Lay tokens and their nearest neighbours out on a map; return the points and the two components' shares."""
    chosen = list(dict.fromkeys(one.id for one in near))
    others = [id for rank in range(4) for one in near for id in one.ids[rank : rank + 1]]
    ids = list(dict.fromkeys([*chosen, *others]))[:POINTS]
    plane, shares = principal_plane(table_of(params, tokenizer)[ids])
    low, size = plane.min(0), np.maximum(np.ptp(plane, axis=0), 1e-12)
    at = MARGIN + (plane - low) / size * (np.array([WIDTH, HEIGHT]) - 2 * MARGIN)
    at[:, 1] = HEIGHT - at[:, 1]
    names = tokenizer.pieces(ids)
    labels = place_labels(at, [visible(name) for name in names], len(chosen))
    return [
        Point(id, name, k < len(chosen), float(x), float(y), *labels[k])
        for k, (id, name, (x, y)) in enumerate(zip(ids, names, at))
    ], shares


def visible(token: str) -> str:
    """Return a token as its label: spaces at its ends and line ends as signs, the rest cut."""
    text = token.replace("\n", "↵").replace("\t", "⇥")
    text = "·" + text[1:] if text.startswith(" ") else text
    return text if len(text) <= 16 else text[:15] + "…"


def place_labels(points_N2: np.ndarray, texts: Sequence[str], first: int) -> list[tuple[float, float, bool]]:
    """Place labels one after another where they cover least of the points and the labels before: (x, y, hidden).

    A label beyond the `first` ones that would cover others by more than a quarter is hidden.
    """
    marks = np.concatenate([points_N2 - 4, points_N2 + 4], 1)
    taken = np.zeros((0, 4))
    placed = []
    for k, ((x, y), text) in enumerate(zip(points_N2, texts)):
        width = LETTER * len(text) + 2
        lefts = (x + 7, x - 7 - width, x - width / 2, x - width / 2, x + 5, x + 5, x - 5 - width, x - 5 - width)
        tops = (y - LINE / 2, y - LINE / 2, y - 6 - LINE, y + 6, y - 5 - LINE, y + 5, y - 5 - LINE, y + 5)
        boxes = np.array([(a, b, a + width, b + LINE) for a, b in zip(lefts, tops)])
        outside = (boxes[:, 0] < 0) | (boxes[:, 1] < 0) | (boxes[:, 2] > WIDTH) | (boxes[:, 3] > HEIGHT)
        covered = overlap(boxes, taken).sum(1) + overlap(boxes, marks).sum(1) + outside * width * LINE
        best = int(covered.argmin())
        hidden = k >= first and covered[best] > width * LINE / 4
        if not hidden:
            taken = np.concatenate([taken, boxes[best : best + 1]])
        placed.append((float(boxes[best, 0]), float(boxes[best, 3] - 3), bool(hidden)))
    return placed


def overlap(boxes_A4: np.ndarray, others_B4: np.ndarray) -> np.ndarray:
    """Return the area that boxes (left, top, right, bottom) share with others, (A, B)."""
    low = np.maximum(boxes_A4[:, None, :2], others_B4[None, :, :2])
    high = np.minimum(boxes_A4[:, None, 2:], others_B4[None, :, 2:])
    return np.maximum(high - low, 0).prod(-1)
