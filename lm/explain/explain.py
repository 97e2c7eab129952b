"""One text as a network sees it, as plain values: probabilities, predictions of layers, attributions, attention."""

import dataclasses
from typing import Any

from lm.errors import UserError, check

BUDGET = 2e12  # operations that 'auto' spends on each of the two attributions
LEVELS = 6000  # predictions of layers in one page


def numbers(text: str, low: int, name: str) -> list[int] | None:
    """Read 'auto', 'all' (None for either) or numbers from `low` on."""
    if text in ("auto", "all"):
        return None
    parts = text.split(",")
    check(all(part.strip().isdecimal() and len(part) < 10 and int(part) >= low for part in parts),
          f"--{name}={text}: give auto, all, or numbers from {low} on, joined by commas")  # fmt: skip
    return [int(part) for part in parts]


@dataclasses.dataclass(frozen=True)
class Reading:
    """One text as a network reads it: rows, and which place of which row predicts which token (-1: its own guess)."""

    network: Any
    inputs: Any  # lm.explain.attribution.Inputs
    shown: Any  # the rows whose attention is shown, as Inputs of one row
    kind: str
    predictions: list[tuple[int, int, int, int]]  # (row, place, token, its column among the shown tokens or -1)


def read(objective: Any, params: Any, tokenizer: Any, text: str, target: str | None) -> Reading:
    """Lay a text out as the objective's network reads it; raises UserError for networks without a page."""
    from lm.explain.attribution import Network
    from lm.models.encoder_decoder import EncoderDecoder
    from lm.models.transformer import Transformer

    model, name = objective.model, type(objective).__name__
    if isinstance(model, EncoderDecoder) and objective.writes == "answer":
        return answer(Network(model, True), objective, params, tokenizer, text, target)
    check(target is None, f"--target is for encoder-decoders; this is a model of {name}")
    if isinstance(model, Transformer) and "stack" in params:
        if "[MASK]" in objective.special:
            return hidden(Network(model, False), tokenizer, text)
        if objective.writes == "text":
            return onward(Network(model, True), objective, tokenizer, text)
    raise UserError(f"lm.explain shows Transformers that predict tokens (causal, masked, encoder-decoder), no model of {name}")


def fits(count: int, limit: int, what: str) -> None:
    check(count <= limit, f"{what} has {count} tokens, more than the {limit} that the model reads at once; shorten it")


def onward(network: Any, objective: Any, tokenizer: Any, text: str) -> Reading:
    """Left to right, as the objective begins a text: every token from those before it, and what comes next."""
    import numpy as np

    from lm.explain.attribution import Inputs

    (ids,) = objective.encode(tokenizer, [text])
    check(len(ids) > 0, "--text has no tokens in this model's tokenizer")
    row = np.array([[*objective.lead(tokenizer), *ids]], np.int32)
    fits(row.shape[1], network.model.context, "--text")
    inputs = Inputs(row)
    asked = [(0, t, int(row[0, t + 1]), t + 1) for t in range(row.shape[1] - 1)]
    return Reading(network, inputs, inputs, "causal", [*asked, (0, row.shape[1] - 1, -1, -1)])


def hidden(network: Any, tokenizer: Any, text: str) -> Reading:
    """[CLS] text [SEP]: the tokens written as the mask, or else each token with the mask in its place."""
    import numpy as np

    from lm.data.tokenizer.special import find
    from lm.explain.attribution import Inputs

    cls, sep, mask = (tokenizer.special_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    written = find(tokenizer.core, "[MASK]")
    text = text.replace("[MASK]", written)
    ids = tokenizer.encode(text, special=written in text)
    check(len(ids) > 0, "--text has no tokens in this model's tokenizer")
    row = np.array([[cls, *ids, sep]], np.int32)
    fits(row.shape[1], network.model.context, "--text")
    if masked := [t for t in range(1, row.shape[1] - 1) if row[0, t] == mask]:
        return Reading(network, Inputs(row), Inputs(row), "masked", [(0, t, -1, t) for t in masked])
    places = np.arange(1, row.shape[1] - 1)
    rows = np.repeat(row, len(places), 0)
    rows[np.arange(len(places)), places] = mask
    asked = [(k, int(t), int(row[0, t]), int(t)) for k, t in enumerate(places)]
    return Reading(network, Inputs(rows), Inputs(row), "masked", asked)


def answer(network: Any, objective: Any, params: Any, tokenizer: Any, text: str, target: str | None) -> Reading:
    """A source and, token by token, the target or the greedy answer to it."""
    import jax
    import numpy as np

    from lm.explain.attribution import Inputs

    prompt, room = objective.prompt(tokenizer, text), network.last.context
    source, begin = prompt.source[None], prompt.tokens.tolist()
    fits(source.shape[1], network.model.encoder.context, "--text")
    stops, row, own = objective.stops(tokenizer), list(begin), target is None
    if own:
        most = min(room, len(begin) + 48)
        step = jax.jit(lambda p, s, t, n: network.logits(p, network.read(p, (s, t))[:, n])[0].argmax())
        while len(row) < most and (len(row) == len(begin) or row[-1] not in stops):
            padded = np.array([row + [0] * (most - len(row))], np.int32)
            row.append(int(step(params, source, padded, len(row) - 1)))
    else:
        row += tokenizer.encode(target, special=True).tolist() + list(stops[:1])
    check(len(row) > len(begin), "--target has no tokens in this model's tokenizer")
    fits(len(row) - 1, room, "--target")
    inputs = Inputs(np.array([row[:-1]], np.int32), source)
    first = len(begin) - 1
    asked = [(0, t, row[t + 1], source.shape[1] + t + 1 if t + 2 < len(row) else -1) for t in range(first, len(row) - 1)]
    return Reading(network, inputs, inputs, "encoder-decoder", asked)


def explain(
    objective: Any, params: Any, tokenizer: Any, text: str, *, target: str | None = None, layers: str = "auto",
    attribute: str = "auto", baseline: str = "mean", top: int = 5,
) -> dict[str, Any]:  # fmt: skip
    """Return all that a page shows, as plain values and arrays (see `lm.explain.page.page`)."""
    import jax
    import numpy as np

    from lm.explain.attribution import observe

    reading = read(objective, params, tokenizer, text, target)
    network, inputs = reading.network, reading.inputs
    begin = start_of(baseline, params, tokenizer, network)
    _, _, seen = observe(network, params, reading.shown.take([0]))
    attention = {name: np.asarray(x)[:, 0] for name, x in jax.device_get(seen).items()}
    named, depth = numbers(layers, 1, "layers"), max(map(len, attention.values()))
    check(not named or max(named) <= depth, f"--layers={layers}: the model has {depth} layers, numbered from 1")
    predictions = look(reading, params, tokenizer, min(top, network.last.vocab))
    columns = [int(i) for side in reading.shown.take([0]) for i in side[0]]
    split = 0 if inputs.source is None else inputs.source.shape[1]
    size = sum(x.size for x in jax.tree.leaves(params))
    weigh(reading, params, predictions, begin, attribute, 6 * size * len(columns))
    return {
        "kind": reading.kind, "objective": type(objective).__name__, "parameters": size, "text": text,
        "columns": tokenizer.pieces(columns), "split": split, "predictions": predictions, "attention": attention,
        "layers": named or layers, "baseline": baseline, "depth": network.last.depth,
    }  # fmt: skip


def start_of(baseline: str, params: Any, tokenizer: Any, network: Any) -> Any:
    """Give the vector that integrated gradients begin at, (E,)."""
    import numpy as np

    table = np.asarray(params["embed"]["table"], np.float32)[: network.last.vocab]
    if baseline in ("mean", "zero"):
        return table.mean(0) if baseline == "mean" else np.zeros_like(table[0])
    token = tokenizer.token_id(baseline)
    check(token is not None, f"--baseline={baseline}: give mean, zero, or a token of the vocabulary ([MASK], [PAD])")
    return table[token]


def look(reading: Reading, params: Any, tokenizer: Any, top: int) -> list[dict[str, Any]]:
    """Find each prediction's probability, its rivals, and what every layer would say."""
    import numpy as np

    from lm.explain.attribution import CHUNK, lens, observe

    network, asked = reading.network, reading.predictions
    places, ids = (np.array([p[k] for p in asked], np.int32) for k in (1, 2))
    last, levels = [], []
    rows = sorted({p[0] for p in asked})
    for low in range(0, len(rows), CHUNK):
        part = rows[low : low + CHUNK]
        mine = [k for k, p in enumerate(asked) if p[0] in part]
        h_RTD, states, _ = observe(network, params, reading.inputs.take(part))
        at = np.array([part.index(asked[k][0]) for k in mine]), places[mine]
        last.append(np.asarray(h_RTD[at]))
        levels.append(np.asarray(states[(slice(None), *at)]))
    h_PD, states = np.concatenate(last), np.concatenate(levels, 1)
    p, best, logp, entropy, _ = (np.asarray(x) for x in lens(network, params, h_PD, ids, top))
    ids = np.where(ids < 0, best[:, 0], ids)
    rank = np.asarray(lens(network, params, h_PD, ids, top, ids)[4])
    depth = len(states) - 1
    shown = sorted({round(x) for x in np.linspace(0, depth, min(depth + 1, max(2, LEVELS // len(asked))))})
    found = [
        {"place": int(place), "column": asked[k][3], "token": tokenizer.pieces([ids[k]])[0], "id": int(ids[k]),
         "row": asked[k][0], "own": asked[k][2] < 0, "logp": float(logp[k]), "entropy": float(entropy[k]),
         "rank": int(rank[k]), "top": pairs(tokenizer, best[k], p[k]), "lens": []}
        for k, place in enumerate(places)
    ]  # fmt: skip
    for level in shown:
        state = h_PD if level == depth else network.finish(params, states[level])
        p, near, here, _, place = (np.asarray(x) for x in lens(network, params, state, ids, top, best[:, 0]))
        for k, one in enumerate(found):
            tops = pairs(tokenizer, near[k], p[k])
            one["lens"].append({"layer": level, "top": tops, "p": float(np.exp(here[k])), "rank": int(place[k])})
    return found


def pairs(tokenizer: Any, ids: Any, p: Any) -> list[tuple[str, float]]:
    return list(zip(tokenizer.pieces(ids), p.tolist()))


def weigh(reading: Reading, params: Any, predictions: list[dict], begin: Any, attribute: str, cost: float) -> None:
    """Add "input" (gradient x input) and "integrated" to predictions: to all, to those named, or to as many as time allows."""
    from lm.explain.attribution import gradient_times_input, integrated_gradients

    count, named = len(predictions), numbers(attribute, 1, "attribute")
    check(not named or max(named) <= count, f"--attribute={attribute}: the text has {count} predictions, numbered from 1")
    chosen = [k - 1 for k in named] if named else list(range(count))
    few = slice(None) if attribute != "auto" else slice(-max(1, int(BUDGET / cost)), None)
    most = slice(None) if attribute != "auto" else slice(-max(1, int(BUDGET / cost / 64)), None)
    rows, places, ids = ([predictions[k][name] for k in chosen[few]] for name in ("row", "place", "id"))
    values = gradient_times_input(reading.network, params, reading.inputs, rows, places, ids)
    for k, found in zip(chosen[few], values):
        predictions[k]["input"] = found
    for k in chosen[most]:
        one = predictions[k]
        one["integrated"] = integrated_gradients(
            reading.network, params, reading.inputs, one["row"], one["place"], one["id"], begin
        )
