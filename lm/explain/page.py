"""The HTML page of an explanation: numbers packed into one file, no network access, all text escaped."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from lm.explain.attribution import rollout
from lm.explain.panels import panels, short
from lm.pages import render

CAPACITY = 6_000_000  # attention weights of a page with --layers=auto, a byte each
HERE = Path(__file__).parent
PLAIN = ("name", "kind", "objective", "parameters", "columns", "split", "baseline", "depth")  # values shown as they are


def page(explanation: dict[str, Any]) -> str:
    """Return the HTML of `lm.explain.contents.contents`' values."""
    data = {key: explanation[key] for key in PLAIN}
    predictions = explanation["predictions"]
    data["predictions"] = [shortened(prediction) for prediction in predictions]
    data["form"] = explanation.get("form")
    data["attention"], notes = pictures(explanation["attention"], explanation["layers"])
    attributed = sum("integrated" in prediction for prediction in predictions)
    if attributed < len(predictions):
        notes.append(f"Integrated gradients: {attributed} of {len(predictions)} predictions (--attribute=all for every one).")
    data["notes"] = [*notes, *explanation["notes"]]
    data |= panels(explanation)
    # No "<" in the script: a text with "</script>" in it stays text.
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    title = f"{data['name']}: {explanation['text'][:60]}".encode("utf-8", "replace").decode()
    return render(HERE / "page.html", {"title": title, "data": text})


def shortened(prediction: dict[str, Any]) -> dict[str, Any]:
    """Round the numbers of a prediction: a page holds thousands."""
    kept = ("column", "token", "rank", "own", "nearest", "word")
    result: dict[str, Any] = {key: prediction[key] for key in kept if key in prediction}
    figures = ((key, prediction.get(key)) for key in ("logp", "entropy", "score"))
    result |= {key: None if value is None else short(value) for key, value in figures}
    result["top"] = [[t, short(p)] for t, p in prediction["top"]]
    for name in ("lens", "tuned"):
        levels = prediction.get(name, [])
        result[name] = [[x["layer"], short(x["p"]), x["rank"], [[t, short(p)] for t, p in x["top"]]] for x in levels]
    if "input" in prediction:
        result["input"] = [short(x) for x in prediction["input"]]
    if "integrated" in prediction:
        integrated = prediction["integrated"]
        numbers = {"difference": short(integrated.difference), "gap": short(integrated.gap), "steps": integrated.steps}
        result["integrated"] = {"values": [short(x) for x in integrated.values], **numbers}
    return result


def pictures(attention: dict[str, np.ndarray], layers: str | list[int]) -> tuple[list[dict[str, Any]], list[str]]:
    """Pack each stack's attention (L, N, T, S), and the rollout of self-attention."""
    stacks, notes, whole = [], [], sum(x.size for x in attention.values())
    for name, weights_LNTS in attention.items():
        depth = len(weights_LNTS)
        # Evenly spaced layers up to the last, as many as the page can hold.
        shown = [k - 1 for k in layers if k <= depth] if isinstance(layers, list) else list(range(depth))
        if layers == "auto" and whole > CAPACITY:
            most = max(1, int(depth * CAPACITY / whole))
            shown = sorted({round(x) for x in np.linspace(0, depth - 1, most)}) if most > 1 else [depth - 1]
        if len(shown) < depth:
            notes.append(f"{name}: layers {', '.join(str(k + 1) for k in shown)} of {depth} (--layers=all for every one).")
        # Of causal attention the upper triangle is zero, and is left out.
        square = weights_LNTS.shape[2] == weights_LNTS.shape[3] and "source" not in name
        causal = bool(square and not np.triu(weights_LNTS.max((0, 1)), 1).any())
        packed = {str(k + 1): pack(weights_LNTS[k], causal) for k in shown}
        stack = {"name": name, "layers": packed, "causal": causal, "heads": weights_LNTS.shape[1]}
        stack |= {"rows": weights_LNTS.shape[2], "columns": weights_LNTS.shape[3]}
        if square:
            flow = rollout(weights_LNTS.astype(np.float64))
            stack["rollout"] = {str(k + 1): pack(flow[k][None], causal) for k in shown}
        stacks.append(stack)
    return stacks, notes


def pack(weights_NTS: np.ndarray, causal: bool) -> str:
    """Encode weights as base64, a byte each, round(255 sqrt(w)): small ones keep digits; the lower triangle if causal."""
    bytes_NTS = np.rint(255 * np.sqrt(np.clip(weights_NTS, 0, 1))).astype(np.uint8)
    if causal:
        bytes_NTS = bytes_NTS[:, *np.tril_indices(bytes_NTS.shape[1])]
    return base64.b64encode(bytes_NTS.tobytes()).decode()
