"""One HTML file of the worst errors of a fine-tuned network: the surest first, nothing fetched, no text trusted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lm.data.types import Example
from lm.evaluation.metrics.statistics import Figures
from lm.evaluation.metrics.tagging import spans
from lm.evaluation.predictions import CLASSES, LABELS, NUMBERS, OPTIONS, SPANS, TAGS, TEXTS, Prediction, scheme_of

MOST = 100  # errors on a page
LONG = 4000  # characters of a text that are shown
HERE = Path(__file__).parent


def page(name: str, found: Any, figures: Figures) -> str:
    """Write the page of a `lm.evaluation.downstream.Found`."""
    order, body = DRAWN[found.form.name]
    wrong = [pair for pair in zip(found.predictions, found.examples) if pair[0].get("right", 0.0) < 1]
    wrong.sort(key=lambda pair: -order(pair[0]))
    shown = [section(k, found.objective, *pair, body) for k, pair in enumerate(wrong[:MOST], 1)]
    headline = [(key, figures[key]) for key in found.form.headline if key in figures]
    told = " · ".join(f"{escape(key)} <b>{figure.value:.3f}</b> ± {figure.error:.3f}" for key, figure in headline)
    what = "largest differences" if found.form is NUMBERS else "errors"
    about = f"{min(MOST, len(wrong))} of {len(wrong):,} {what} in {len(found.predictions):,} held-out examples"
    frame = (HERE / "errors_page.html").read_text(encoding="utf-8")
    parts = {
        "title": escape(name), "figures": told, "about": about + f", {ORDERS[found.form.name]}",
        "legend": LEGENDS.get(found.form.name, ""), "body": "\n".join(shown) or "<section>Not one error.</section>",
    }  # fmt: skip
    head, *rest = frame.split("{{")
    return head + "".join(parts[key] + text for key, _, text in (one.partition("}}") for one in rest))


def section(number: int, objective: Any, found: Prediction, example: Example, body: Callable) -> str:
    sure = f'<span class="sure">{found["confidence"]:.1%} sure</span>' if "confidence" in found else ""
    where = f'<span class="where">{escape(found["where"])}</span>'
    head = f'<p class="head"><a href="#e{number}">{number}</a> {sure} {where}</p>'
    return f'<section id="e{number}">{head}{body(objective, found, example)}</section>'


def chip(text: Any, kind: str) -> str:
    return f'<span class="chip {kind}">{escape(str(text)) or "(none)"}</span>'


def verdict(gold: str, guess: str) -> str:
    return f'<p class="verdict">true {gold} predicted {guess}</p>'


def prose(text: str) -> str:
    cut = text if len(text) <= LONG else text[:LONG] + " …"
    return f'<p class="text" dir="auto">{escape(cut)}</p>'


def texts(example: Example, fields: Sequence[str]) -> str:
    found = [str(example.values.get(field, "")) for field in fields]
    return "".join(prose(text) for text in found)


def bars(shares: dict[str, float], gold: Sequence[str], most: int = 5) -> str:
    """Draw the largest probabilities; the true ones are among them."""
    ranked = sorted(shares, key=lambda name: -shares[name])
    shown = ranked[:most] + [name for name in ranked[most:] if name in gold]
    rows = [
        f'<tr><td class="n">{shares[name]:.1%}</td><td>{chip(name, "gold" if name in gold else "plain")}</td>'
        f'<td class="wide"><span class="bar" style="width:{100 * shares[name]:.1f}%"></span></td></tr>'
        for name in shown
    ]
    return f'<table class="bars">{"".join(rows)}</table>'


def of_class(objective: Any, found: Prediction, example: Example) -> str:
    said = verdict(chip(found["gold"], "gold"), chip(found["guess"], "guess"))
    return said + texts(example, objective.fields) + bars(found["probabilities"], [found["gold"]])


def of_labels(objective: Any, found: Prediction, example: Example) -> str:
    gold, guess = found["gold"], found["guess"]
    sides = [
        " ".join(chip(x, "gold" if x in other else wrong) for x in side) or chip("", "plain")
        for side, other, wrong in ((gold, guess, "missed"), (guess, gold, "guess"))
    ]
    return verdict(*sides) + texts(example, objective.fields) + bars(found["probabilities"], gold)


def of_number(objective: Any, found: Prediction, example: Example) -> str:
    said = verdict(chip(f"{found['gold']:.4g}", "gold"), chip(f"{found['guess']:.4g}", "guess"))
    return said + texts(example, objective.fields)


def of_options(objective: Any, found: Prediction, example: Example) -> str:
    rows = []
    for k, (option, p) in enumerate(zip(objective.offered(example), found["probabilities"])):
        kind = "gold" if k == found["gold"] else "guess" if k == found["guess"] else "plain"
        rows.append(f'<tr><td class="n">{p:.1%}</td><td>{chip(option, kind)}</td></tr>')
    asked = [field for field in (objective.context, objective.question) if field]
    return texts(example, asked) + f'<table class="bars">{"".join(rows)}</table>'


def of_tags(objective: Any, found: Prediction, example: Example) -> str:
    """Mark entities: right, missed (below: what it is) and made up; of tags that are no spans, each wrong word."""
    words, space = found["words"], " " if example.values.get("spaced", True) else ""
    gold, guess = (pieces(objective, found[side]) for side in ("gold", "guess"))
    out, k = [], 0
    while k < len(words):
        at = [sorted(s for s in side if s[1] == k) for side in (gold, guess)]
        if not at[0] and not at[1]:
            out.append(escape(words[k]))
            k += 1
            continue
        stop = max(s[2] for side in at for s in side)
        while True:  # what overlaps is shown as one
            more = max([s[2] for s in gold | guess if k <= s[1] < stop], default=stop)
            if more <= stop:
                break
            stop = more
        inside = [sorted(s for s in side if k <= s[1] < stop) for side in (gold, guess)]
        out.append(entity(words[k:stop], *inside, space))
        k = stop
    return f'<p class="text tags" dir="auto">{space.join(out)}</p>'


def pieces(objective: Any, tags: Sequence[str]) -> set[tuple[str, int, int]]:
    scheme = scheme_of(objective.labels)
    if scheme is None:
        return {(tag, k, k + 1) for k, tag in enumerate(tags) if tag != "O"}
    return {tuple(span) for span in spans(tags, None if scheme == "conlleval" else scheme)}


def entity(words: Sequence[str], gold: list, guess: list, space: str) -> str:
    names = [" + ".join(kind for kind, _, _ in side) for side in (gold, guess)]
    if gold == guess:
        kind, told = "good", names[0]
    elif not guess:
        kind, told = "missed", f"{names[0]}, missed"
    elif not gold:
        kind, told = "bad", f"{names[1]}, made up"
    elif [s[0] for s in gold] == [s[0] for s in guess]:
        kind, told = "bad", f"{names[0]}, other bounds"
    else:
        kind, told = "bad", f"{names[0]}, taken for {names[1]}"
    return f'<span class="ent {kind}"><span>{escape(space.join(words))}</span><small>{escape(told)}</small></span>'


def of_answer(objective: Any, found: Prediction, example: Example) -> str:
    gold = " ".join(chip(text, "gold") for text in dict.fromkeys(found["gold"])) or chip("", "gold")
    asked = f'<p class="asked" dir="auto">{escape(example.get("question").strip())}</p>'
    context = example.get("context")
    marks = [(start, start + len(text), "gold") for text, start in objective.gold(example)[:1]]
    place = context.find(found["guess"]) if found["guess"] else -1
    marks += [(place, place + len(found["guess"]), "guess")] if place >= 0 else []
    said = verdict(gold, chip(found["guess"], "guess")) + marked(context, marks)
    return asked + said + bars(found["probabilities"], found["gold"])


def of_text(objective: Any, found: Prediction, example: Example) -> str:
    sides = "".join(f'<p class="text" dir="auto">{chip(text, kind)}</p>' for text, kind in sides_of(found))
    return prose(found["prompt"]) + sides


def sides_of(found: Prediction) -> list[tuple[str, str]]:
    return [*((text, "gold") for text in found["gold"]), (found["guess"], "guess")]


def marked(text: str, marks: Sequence[tuple[int, int, str]]) -> str:
    """Mark spans of a text, also where they overlap; of a long one what lies around them."""
    low = max(0, min((start for start, _, _ in marks), default=0) - LONG // 2)
    high = min(len(text), max((stop for _, stop, _ in marks), default=0) + LONG // 2)
    edges = sorted({low, high, *(e for start, stop, _ in marks for e in (start, stop))})
    out = []
    for a, b in itertools.pairwise(edges):
        kinds = [kind for start, stop, kind in marks if start <= a and b <= stop]
        part = escape(text[a:b])
        out.append(f'<mark class="{" ".join(kinds)}">{part}</mark>' if kinds else part)
    return f'<p class="text" dir="auto">{"… " * (low > 0)}{"".join(out)}{" …" * (high < len(text))}</p>'


def wrong_entities(found: Prediction) -> float:
    """Words tagged wrongly."""
    return sum(a != b for a, b in zip(found["gold"], found["guess"]))


def sure(found: Prediction) -> float:
    return found["confidence"]


def unlike(found: Prediction) -> float:
    return -found["right"]


def off(found: Prediction) -> float:
    return found["error"]


# What the worst is, and how an error is shown.
DRAWN: dict[str, tuple[Callable[[Prediction], float], Callable[[Any, Prediction, Example], str]]] = {
    CLASSES.name: (sure, of_class),
    LABELS.name: (sure, of_labels),
    OPTIONS.name: (sure, of_options),
    NUMBERS.name: (off, of_number),
    TAGS.name: (wrong_entities, of_tags),
    SPANS.name: (sure, of_answer),
    TEXTS.name: (unlike, of_text),
}
ORDERS = dict.fromkeys(DRAWN, "the surest first") | {
    NUMBERS.name: "the largest first", TAGS.name: "most wrong words first", TEXTS.name: "the least like a reference first",
}  # fmt: skip
LEGENDS = {
    TAGS.name: '<span class="ent good"><span>right</span></span> <span class="ent missed"><span>missed</span></span> '
    '<span class="ent bad"><span>wrong or made up</span></span>',
    SPANS.name: '<mark class="gold">true answer</mark> <mark class="guess">predicted</mark> '
    '<mark class="gold guess">both</mark>',
    OPTIONS.name: '<span class="chip gold">right option</span> <span class="chip guess">chosen</span>',
}
