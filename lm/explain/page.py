"""One HTML file from what `lm.explain` found: numbers packed into it, nothing fetched from elsewhere, no text trusted."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from lm.explain.attribution import rollout

ROOM = 6_000_000  # weights of attention that a page holds unless told otherwise, a byte each
HERE = Path(__file__).parent


def page(found: dict[str, Any]) -> str:
    """Write the page of `lm.explain.explain`'s values, with a "name"."""
    data = {key: found[key] for key in ("name", "kind", "objective", "parameters", "columns", "split", "baseline", "depth")}
    data["predictions"] = [prediction(one) for one in found["predictions"]]
    data["attention"], notes = pictures(found["attention"], found["layers"])
    weighed = sum("integrated" in one for one in found["predictions"])
    if weighed < len(found["predictions"]):
        whole = len(found["predictions"])
        notes.append(f"Integrated gradients: {weighed} of {whole} predictions (--attribute=all for every one).")
    data["notes"] = notes
    # No "<" in the script: text that says "</script>" stays text.
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    frame = (HERE / "page.html").read_text(encoding="utf-8")
    head, middle = frame.split("{{title}}")
    return head + html.escape(f"{data['name']}: {found['text'][:60]}".encode("utf-8", "replace").decode()) + middle.replace(
        "{{data}}", text
    )  # fmt: skip


def short(x: float) -> float:
    """Keep four digits."""
    return float(f"{float(x):.4g}")


def prediction(one: dict[str, Any]) -> dict[str, Any]:
    """Shorten one prediction's numbers."""
    result = {key: one[key] for key in ("column", "token", "rank", "own")}
    result |= {"logp": short(one["logp"]), "entropy": short(one["entropy"]), "top": [[t, short(p)] for t, p in one["top"]]}
    result["lens"] = [[x["layer"], short(x["p"]), x["rank"], [[t, short(p)] for t, p in x["top"]]] for x in one["lens"]]
    if "input" in one:
        result["input"] = [short(x) for x in one["input"]]
    if "integrated" in one:
        found = one["integrated"]
        numbers = {"difference": short(found.difference), "gap": short(found.gap), "steps": found.steps}
        result["integrated"] = {"values": [short(x) for x in found.values], **numbers}
    return result


def pictures(attention: dict[str, np.ndarray], layers: str | list[int]) -> tuple[list[dict[str, Any]], list[str]]:
    """Pack each stack's attention (L, N, T, S), and the rollout of those that look at themselves."""
    found, notes, whole = [], [], sum(x.size for x in attention.values())
    for name, weights_LNTS in attention.items():
        depth = len(weights_LNTS)
        shown = [k - 1 for k in layers if k <= depth] if isinstance(layers, list) else list(range(depth))
        if layers == "auto" and whole > ROOM:
            most = max(1, int(depth * ROOM / whole))
            shown = sorted({round(x) for x in np.linspace(0, depth - 1, most)}) if most > 1 else [depth - 1]
        if len(shown) < depth:
            notes.append(f"{name}: layers {', '.join(str(k + 1) for k in shown)} of {depth} (--layers=all for every one).")
        square = weights_LNTS.shape[2] == weights_LNTS.shape[3] and "source" not in name
        causal = bool(square and not np.triu(weights_LNTS.max((0, 1)), 1).any())
        packed = {str(k + 1): pack(weights_LNTS[k], causal) for k in shown}
        one = {"name": name, "layers": packed, "causal": causal, "heads": weights_LNTS.shape[1]}
        one |= {"rows": weights_LNTS.shape[2], "columns": weights_LNTS.shape[3]}
        if square:
            flow = rollout(weights_LNTS.astype(np.float64))
            one["rollout"] = {str(k + 1): pack(flow[k][None], causal) for k in shown}
        found.append(one)
    return found, notes


def pack(weights_NTS: np.ndarray, causal: bool) -> str:
    """Give weights as base64, a byte each, round(255 sqrt(w)): small ones keep their digits; the lower half if causal."""
    bytes_NTS = np.rint(255 * np.sqrt(np.clip(weights_NTS, 0, 1))).astype(np.uint8)
    if causal:
        bytes_NTS = bytes_NTS[:, *np.tril_indices(bytes_NTS.shape[1])]
    return base64.b64encode(bytes_NTS.tobytes()).decode()
