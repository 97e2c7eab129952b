"""One HTML page of the worst errors of a fine-tuned network, most confident first; it fetches nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lm.data.types import Example
from lm.evaluation.metrics.statistics import Figures
from lm.evaluation.predictions import CLASSES, LABELS, NUMBERS, OPTIONS, SPANS, TAGS, TEXTS, Found, Prediction
from lm.evaluation.report import facets
from lm.evaluation.report.facets import INDEXES, Run, entities
from lm.pages import render

TEMPLATE = Path(__file__).with_name("errors_page.html")
MOST = 500  # errors on a page
LONG = 4000  # characters shown of a text
View = dict[str, Any]  # the parts of an error that the template shows: see errors_page.html
Chip = tuple[str, str]  # text, CSS class


class Style(NamedTuple):
    """Presentation of one form of predictions: the name of its order (`INDEXES`), and the view of an error."""

    order: str
    view: Callable[[Any, Prediction, Example], View]


def page(name: str, found: Found, figures: Figures, run: Run | None = None) -> str:
    """Render the worst errors of predictions, with the headline figures; with a run each has the command that explains it."""
    style, index = STYLES[found.form.name], INDEXES[found.form.name]
    wrong = [k for k, prediction in enumerate(found.predictions) if prediction.get("right", 0.0) < 1]
    first, falling = index.sorts[0].value, index.sorts[0].falling
    wrong.sort(key=lambda k: float(first(found.predictions[k]) or 0), reverse=falling)
    noun = "largest differences" if found.form is NUMBERS else "errors"
    shares = f"{min(MOST, len(wrong)):,} of {len(wrong):,} {noun} in {len(found.predictions):,} held-out examples"
    shown = [(found.predictions[k], found.examples[k], k) for k in wrong[:MOST]]
    labels = [facets.labels_of(index, found, prediction) for prediction, _, _ in shown]
    filters = [(facet.name, facet.title, facets.counts_of(labels, i)) for i, facet in enumerate(index.facets)]
    values = {
        "title": name,
        "form": found.form.name,
        "figures": [(key, figures[key]) for key in found.form.headline if key in figures],
        "about": f"{shares}, {style.order}",
        "sorts": facets.names_of(index),
        "facets": filters,
        "confusions": facets.confusions(labels),
        "errors": [
            {
                "found": prediction,
                "view": style.view(found.objective, prediction, example),
                "keys": facets.keys_of(index, prediction, k),
                "notes": facets.notes_of(index, prediction),
                "labels": sides,
                "command": facets.command(found, prediction, example, run),
            }
            for (prediction, example, k), sides in zip(shown, labels)
        ],
    }
    return render(TEMPLATE, values)


def shortened(text: str) -> str:
    return text if len(text) <= LONG else text[:LONG] + " …"


def texts(example: Example, fields: Sequence[str]) -> list[str]:
    return [shortened(str(example.values.get(field, ""))) for field in fields]


def bars(shares: dict[str, float], gold: Collection[str], guess: Collection[str]) -> list[tuple[float, str, str]]:
    """List (probability, text, CSS class) of the five most probable answers, the true and the predicted ones."""
    ranked = sorted(shares, key=lambda name: -shares[name])
    kinds = {**dict.fromkeys(guess, "guess"), **dict.fromkeys(gold, "gold")}
    return [(shares[name], name, kinds.get(name, "plain")) for k, name in enumerate(ranked) if k < 5 or name in kinds]


def class_view(objective: Any, found: Prediction, example: Example) -> View:
    verdict = ([(found["gold"], "gold")], [(found["guess"], "guess")])
    shares = bars(found["probabilities"], [found["gold"]], [found["guess"]])
    return {"verdict": verdict, "texts": texts(example, objective.answers.reads), "bars": shares}


def labels_view(objective: Any, found: Prediction, example: Example) -> View:
    gold, guess = found["gold"], found["guess"]
    verdict = [
        [(label, "gold" if label in other else wrong) for label in side] or [("", "plain")]
        for side, other, wrong in ((gold, guess, "missed"), (guess, gold, "guess"))
    ]
    shares = bars(found["probabilities"], gold, guess)
    return {"verdict": verdict, "texts": texts(example, objective.answers.reads), "bars": shares}


def number_view(objective: Any, found: Prediction, example: Example) -> View:
    verdict = ([(f"{found['gold']:.4g}", "gold")], [(f"{found['guess']:.4g}", "guess")])
    return {"verdict": verdict, "texts": texts(example, objective.answers.reads)}


def options_view(objective: Any, found: Prediction, example: Example) -> View:
    kinds = {found["guess"]: "guess", found["gold"]: "gold"}
    pairs = zip(found["probabilities"], objective.offered(example))
    fields = [field for field in (objective.context, objective.question) if field]
    options = [(share, text, kinds.get(k, "plain")) for k, (share, text) in enumerate(pairs)]
    return {"texts": texts(example, fields), "options": options}


def tags_view(objective: Any, found: Prediction, example: Example) -> View:
    """Mark entities: right, missed, spurious or confused; of tags that are no spans, each wrong word."""
    words, space = found["words"], " " if example.values.get("spaced", True) else ""
    gold, guess = (entities(objective, found[side]) for side in ("gold", "guess"))
    pieces, k = [], 0
    while k < len(words):
        starting = [s for s in gold | guess if s[1] == k]
        if not starting:
            pieces.append((words[k], "", ""))
            k += 1
            continue
        stop = max(s[2] for s in starting)
        # Spans of both sides that overlap, directly or through others, are one piece.
        while (more := max(s[2] for s in gold | guess if k <= s[1] < stop)) > stop:
            stop = more
        inside = [sorted(s for s in side if k <= s[1] < stop) for side in (gold, guess)]
        pieces.append((space.join(words[k:stop]), *comment(*inside)))
        k = stop
    return {"entities": pieces, "space": space}


def comment(gold: list, guess: list) -> tuple[str, str]:
    """Return CSS class and comment of overlapping gold and predicted spans."""
    names = [" + ".join(kind for kind, _, _ in side) for side in (gold, guess)]
    if gold == guess:
        return "good", names[0]
    if not guess:
        return "missed", f"{names[0]}, missed"
    if not gold:
        return "bad", f"{names[1]}, made up"
    if [s[0] for s in gold] == [s[0] for s in guess]:
        return "bad", f"{names[0]}, other bounds"
    return "bad", f"{names[0]}, taken for {names[1]}"


def answer_view(objective: Any, found: Prediction, example: Example) -> View:
    context = example.get("context")
    marks = [(start, start + len(text), "gold") for text, start in objective.gold(example)[:1]]
    start = context.find(found["guess"]) if found["guess"] else -1
    marks += [(start, start + len(found["guess"]), "guess")] if start >= 0 else []
    return {
        "question": example.get("question").strip(),
        "verdict": ([(text, "gold") for text in dict.fromkeys(found["gold"])] or [("", "gold")], [(found["guess"], "guess")]),
        "marked": marked(context, marks),
        "bars": bars(found["probabilities"], found["gold"] or [""], [found["guess"]]),
    }


def text_view(objective: Any, found: Prediction, example: Example) -> View:
    sides = [*((text, "gold") for text in found["gold"]), (found["guess"], "guess")]
    return {"texts": [shortened(found["prompt"])], "sides": sides}


def marked(text: str, marks: Sequence[tuple[int, int, str]]) -> list[Chip]:
    """Split a text at the ends of marked spans, which may overlap; a long text is cut to the surroundings of the marks."""
    low = max(0, min((start for start, _, _ in marks), default=0) - LONG // 2)
    high = min(len(text), max((stop for _, stop, _ in marks), default=0) + LONG // 2)
    edges = sorted({low, high, *(e for start, stop, _ in marks for e in (start, stop))})
    pieces = [("… ", "")] * (low > 0)
    for a, b in itertools.pairwise(edges):
        pieces.append((text[a:b], " ".join(kind for start, stop, kind in marks if start <= a and b <= stop)))
    return pieces + [(" …", "")] * (high < len(text))


STYLES = {
    CLASSES.name: Style("the surest first", class_view),
    LABELS.name: Style("the surest first", labels_view),
    OPTIONS.name: Style("the surest first", options_view),
    NUMBERS.name: Style("the largest first", number_view),
    TAGS.name: Style("most wrong words first", tags_view),
    SPANS.name: Style("the surest first", answer_view),
    TEXTS.name: Style("the least like a reference first", text_view),
}
