"""Values of the page's panels as JSON: ablation, two networks on one text, embeddings, probes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.explain.ablation import Ablation
from lm.explain.compare import Comparison
from lm.explain.embeddings import HEIGHT, WIDTH, Neighbours, Point, visible
from lm.explain.probing import Probing


def short(x: float) -> float | None:
    """Round to four significant digits; None, JSON's null, for NaN."""
    return None if np.isnan(x) else float(f"{float(x):.4g}")


def panels(explanation: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the panels that an explanation has."""
    data: dict[str, Any] = {}
    if "ablation" in explanation:
        data["ablation"] = ablation_of(explanation["ablation"])
    if "beside" in explanation:
        data["beside"] = {"name": explanation["beside"]["name"], **comparison_of(**explanation["beside"])}
    if explanation.get("neighbours"):
        data["neighbours"] = [neighbours_of(one) for one in explanation["neighbours"]]
    if "map" in explanation:
        data["map"] = map_of(*explanation["map"])
    if "probe" in explanation:
        data["probe"] = probe_of(explanation["probe"])
    return data


def ablation_of(ablation: Ablation) -> dict[str, Any]:
    heads = {name: [[short(x) for x in layer] for layer in changes] for name, changes in ablation.heads.items()}
    neurons = [{**vars(one), "estimate": short(one.estimate), "change": short(one.change)} for one in ablation.neurons]
    return {"loss": short(ablation.loss), "heads": heads, "neurons": neurons}


def comparison_of(name: str, comparison: Comparison, text: str) -> dict[str, Any]:
    values = zip(comparison.spans, comparison.first, comparison.second, comparison.difference)
    return {
        "spans": [[text[start:stop], *map(short, numbers)] for (start, stop), *numbers in values],
        "totals": [short(x) for x in comparison.totals], "tokens": [len(one.tokens) for one in comparison.scores],
        "kinds": [one.kind for one in comparison.scores], "shared": int(comparison.shared.sum()),
    }  # fmt: skip


def neighbours_of(one: Neighbours) -> dict[str, Any]:
    return {"token": one.token, "near": [[token, short(x)] for token, x in zip(one.tokens, one.cosines)]}


def map_of(points: Sequence[Point], shares: np.ndarray) -> dict[str, Any]:
    rounded = [
        {"text": visible(p.token), "chosen": p.chosen, "hidden": p.hidden, "at": [round(x, 1) for x in (p.x, p.y)],
         "label": [round(x, 1) for x in (p.label_x, p.label_y)]}
        for p in points
    ]  # fmt: skip
    return {"points": rounded, "shares": [short(x) for x in shares], "width": WIDTH, "height": HEIGHT}


def probe_of(one: Probing) -> dict[str, Any]:
    rows = zip(one.accuracy, one.low, one.high, one.control, one.selectivity)
    return {
        "rows": [[short(x) for x in row] for row in rows], "majority": short(one.majority), "labels": one.labels,
        "unit": one.unit, "counts": one.counts,
    }  # fmt: skip
