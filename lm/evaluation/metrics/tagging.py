"""Entity-level precision, recall and F1 of tagged sequences, with spans decoded by seqeval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from lm.errors import check, unknown
from lm.evaluation.metrics.classification import apart, averaged, ratios
from lm.evaluation.metrics.statistics import Figures, bootstrap_sums, divide, same_length

Tags = Sequence[str]
Sort = Literal["type", "bounds", "both", "missed", "spurious"]
SORTS = ("type", "bounds", "both", "missed", "spurious")
SCHEMES = {"IOB1": "OIB", "IOB2": "OIB", "IOE1": "OIE", "IOE2": "OIE", "IOBES": "OIBES", "BILOU": "OBILU"}


class Span(NamedTuple):
    """An entity: its type, its first word, and the word after its last one."""

    kind: str
    start: int
    stop: int


def spans(tags: Tags, scheme: str | None = None) -> list[Span]:
    """Decode the entities of one sentence.

    Without a scheme by conlleval's rules for any tags (BIO, IOB1, IOBES, BMES): an I- without a predecessor starts an
    entity. With one of SCHEMES only well-formed entities count (seqeval's strict mode).
    """
    if scheme is not None and scheme not in SCHEMES:
        raise unknown("scheme", scheme, [*SCHEMES])
    letters = "OIBESM" if scheme is None else SCHEMES[scheme]
    wrong = next((t for t in tags if not (t == "O" or (t[:1] in letters[1:] and t[1:2] == "-" and t[2:]))), None)
    allowed = ", ".join(f"{letter}-TYPE" for letter in letters[1:])
    check(wrong is None, f"tag {wrong!r} is neither O nor one of {allowed}" + (f" ({scheme})" if scheme else ""))
    if scheme is None:
        from seqeval.metrics.sequence_labeling import get_entities

        plain = [f"I{t[1:]}" if t[0] == "M" else t for t in tags]  # in BMES the middle of a span is M
        return [Span(kind, start, last + 1) for kind, start, last in get_entities(plain)]
    import seqeval.scheme

    (decoded,) = seqeval.scheme.Entities([list(tags)], getattr(seqeval.scheme, scheme)).entities
    return [Span(entity.tag, entity.start, entity.end) for entity in decoded]


def entities(gold: Sequence[Tags], predicted: Sequence[Tags], scheme: str | None = None, seed: int = 0) -> Figures:
    """Measure tagged sentences: micro-averaged precision, recall and f1 over entities, and tag accuracy.

    Also NAME/macro, NAME/weighted (by gold entities) and NAME/TYPE for each type. `mistakes`/SORT is the share of gold
    entities (spurious: of predicted ones) with this error. The bootstrap resamples sentences.
    """
    pairs = _spans_of_all(gold, predicted, scheme)
    kinds = sorted({span.kind for pair in pairs for side in pair for span in side})
    place = {kind: k for k, kind in enumerate(kinds)}
    rows = np.zeros((len(pairs), 3, len(kinds)))
    for row, (true, guessed) in zip(rows, pairs):
        for part, counted in zip(row, (true & guessed, true, guessed)):
            np.add.at(part, [place[span.kind] for span in counted], 1)
    # Each sentence's addends: spans by type (hit, gold, predicted), errors by sort, tags.
    wrong = np.zeros((len(pairs), len(SORTS)))
    for mistake in mistakes(gold, predicted, scheme):
        wrong[mistake.sentence, SORTS.index(mistake.sort)] += 1
    tags = np.array([(sum(g == p for g, p in zip(*pair)), len(pair[0])) for pair in zip(gold, predicted)], float)
    formulas: dict[str, Callable] = {}
    for which, name in enumerate(("precision", "recall", "f1")):
        formulas[name] = partial(_averaged, which=which, how="micro")
        formulas |= {f"{name}/{how}": partial(_averaged, which=which, how=how) for how in ("macro", "weighted")}
        formulas |= {f"{name}/{apart(kind)}": partial(_one, which=which, k=k) for k, kind in enumerate(kinds)}
    formulas["accuracy"] = lambda sums: divide(sums[..., -2], sums[..., -1], np.nan)
    formulas |= {f"mistakes/{sort}": partial(_wrong, k=k) for k, sort in enumerate(SORTS)}
    return bootstrap_sums(np.concatenate([rows.reshape(len(pairs), -1), wrong, tags], 1), formulas, seed)


def _parts(sums: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.split(sums[..., : -len(SORTS) - 2], 3, -1))


def _wrong(sums: np.ndarray, k: int) -> np.ndarray:
    _, gold, guessed = (part.sum(-1) for part in _parts(sums))
    return divide(sums[..., k - len(SORTS) - 2], guessed if SORTS[k] == "spurious" else gold)


def _one(sums: np.ndarray, which: int, k: int) -> np.ndarray:
    return ratios(*(part[..., k] for part in _parts(sums)))[which]


def _averaged(sums: np.ndarray, which: int, how: str) -> np.ndarray:
    hits, truths, guesses = _parts(sums)
    if not hits.shape[-1]:  # neither side has an entity
        return np.zeros(sums.shape[:-1])
    return averaged(hits, truths, guesses, which, how)


def _spans_of_all(gold: Sequence[Tags], predicted: Sequence[Tags], scheme: str | None) -> list[tuple[set, set]]:
    same_length(gold=gold, predicted=predicted)
    for i, (g, p) in enumerate(zip(gold, predicted)):
        check(len(g) == len(p), f"sentence {i}: {len(g)} gold tags, {len(p)} predicted; each word needs one of each")
    return [(set(spans(g, scheme)), set(spans(p, scheme))) for g, p in zip(gold, predicted)]


@dataclass(frozen=True)
class Mistake:
    """A wrong entity: gold and predicted span, None where one side has no entity."""

    sentence: int
    sort: Sort
    gold: Span | None
    predicted: Span | None


def mistakes(gold: Sequence[Tags], predicted: Sequence[Tags], scheme: str | None = None) -> list[Mistake]:
    """List wrong entities by sentence, each gold span paired with the predicted span of the largest overlap."""
    wrong = []
    for i, (true, guessed) in enumerate(_spans_of_all(gold, predicted, scheme)):
        # Sorted, as the order of a set of texts changes from process to process, and the first of equal overlaps is
        # taken.
        unmatched = sorted(guessed - true, key=lambda span: span.start)
        for span in sorted(true - guessed, key=lambda span: span.start):
            partner = max(unmatched, key=partial(_overlap, span), default=None)
            if partner is None or not _overlap(span, partner):
                wrong.append(Mistake(i, "missed", span, None))
                continue
            # A predicted span explains one gold span only.
            unmatched.remove(partner)
            wrong.append(Mistake(i, _sort(span, partner), span, partner))
        wrong += [Mistake(i, "spurious", None, span) for span in unmatched]
    return wrong


def _overlap(a: Span, b: Span) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


def _sort(a: Span, b: Span) -> Sort:
    same_bounds = (a.start, a.stop) == (b.start, b.stop)
    return "type" if same_bounds else "bounds" if a.kind == b.kind else "both"
