"""One text through a network, as plain values: probabilities, predictions of layers, attributions, attention."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lm.data.tokenizer.special import find
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check
from lm.explain.attribution import (
    CHUNK,
    Inputs,
    Network,
    Params,
    Sides,
    baseline_of,
    embed,
    gradient_times_input,
    integrated_gradients,
    lens,
    observe,
)  # fmt: skip
from lm.explain.numbers import numbers
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.objectives.base import Objective

BUDGET = 2e12  # operations that 'auto' spends on each of the two attributions
LEVELS = 6000  # predictions of layers in one page


@dataclasses.dataclass(frozen=True)
class Reading:
    """One text as a network reads it: rows, and the target of each prediction (-1: the likeliest token)."""

    network: Network
    inputs: Inputs
    shown: Inputs  # one row, whose attention is shown
    kind: str
    predictions: list[tuple[int, int, int, int]]  # (row, position, target, its column among the shown tokens or -1)


def lay_out(objective: Objective, params: Params, tokenizer: Tokenizer, text: str, target: str | None) -> Reading:
    """Lay a text out as the objective's network reads it; raises UserError for networks without a page."""
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


def fits(count: int, limit: int, flag: str) -> None:
    check(count <= limit, f"{flag} has {count} tokens, more than the {limit} that the model reads at once; shorten it")


def onward(network: Network, objective: Objective, tokenizer: Tokenizer, text: str) -> Reading:
    """Predict every token from those before it, and the next one, with the objective's first tokens in front."""
    (ids,) = objective.encode(tokenizer, [text])
    check(len(ids) > 0, "--text has no tokens in this model's tokenizer")
    row = np.array([[*objective.lead(tokenizer), *ids]], np.int32)
    fits(row.shape[1], network.model.context, "--text")
    inputs = Inputs(row)
    targets = [(0, t, int(row[0, t + 1]), t + 1) for t in range(row.shape[1] - 1)]
    return Reading(network, inputs, inputs, "causal", [*targets, (0, row.shape[1] - 1, -1, -1)])


def hidden(network: Network, tokenizer: Tokenizer, text: str) -> Reading:
    """Predict the masks of [CLS] text [SEP], or without any each token in turn behind a mask, in a row of its own."""
    cls, sep, mask = (tokenizer.special_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    written = find(tokenizer.core, "[MASK]")
    text = text.replace("[MASK]", written)
    ids = tokenizer.encode(text, special=written in text)
    check(len(ids) > 0, "--text has no tokens in this model's tokenizer")
    row = np.array([[cls, *ids, sep]], np.int32)
    fits(row.shape[1], network.model.context, "--text")
    if masked := [t for t in range(1, row.shape[1] - 1) if row[0, t] == mask]:
        return Reading(network, Inputs(row), Inputs(row), "masked", [(0, t, -1, t) for t in masked])
    positions = np.arange(1, row.shape[1] - 1)
    rows = np.repeat(row, len(positions), 0)
    rows[np.arange(len(positions)), positions] = mask
    targets = [(k, int(t), int(row[0, t]), int(t)) for k, t in enumerate(positions)]
    return Reading(network, Inputs(rows), Inputs(row), "masked", targets)


def answer(
    network: Network, objective: Objective, params: Params, tokenizer: Tokenizer, text: str, target: str | None
) -> Reading:
    """Predict the target of a source, or the greedy answer to it, token by token."""
    prompt, context = objective.prompt(tokenizer, text), network.last.context
    source, begin = prompt.source[None], prompt.tokens.tolist()
    if isinstance(network.model, EncoderDecoder):
        fits(source.shape[1], network.model.encoder.context, "--text")
    stops, row, own = objective.stops(tokenizer), list(begin), target is None
    if own:
        # Rows of one width, so that one compiled program serves all steps.
        most = min(context, len(begin) + 48)
        step = jax.jit(lambda p, s, t, n: network.logits(p, network.read(p, (s, t))[:, n])[0].argmax())
        while len(row) < most and (len(row) == len(begin) or row[-1] not in stops):
            padded = np.array([row + [0] * (most - len(row))], np.int32)
            row.append(int(step(params, source, padded, len(row) - 1)))
    else:
        row += tokenizer.encode(target, special=True).tolist() + list(stops[:1])
    check(len(row) > len(begin), "--target has no tokens in this model's tokenizer")
    fits(len(row) - 1, context, "--target")
    inputs = Inputs(np.array([row[:-1]], np.int32), source)
    first = len(begin) - 1
    targets = [(0, t, row[t + 1], source.shape[1] + t + 1 if t + 2 < len(row) else -1) for t in range(first, len(row) - 1)]
    return Reading(network, inputs, inputs, "encoder-decoder", targets)


def loss_on_text(reading: Reading, params: Params) -> tuple[Network, Sides, tuple[np.ndarray, ...]]:
    """Return a network, its rows, and the (rows, positions, ids) of the text's tokens; without any, of its own guesses."""
    given = [one for one in reading.predictions if one[2] >= 0] or reading.predictions
    rows, positions, ids = (np.array([one[k] for one in given], np.int32) for k in range(3))
    sides = reading.inputs.take(range(len(reading.inputs.tokens)))
    if (ids < 0).any():
        h_RTD, _, _ = observe(reading.network, params, sides)
        ids = np.asarray(reading.network.logits(params, h_RTD[rows, positions]).argmax(-1), np.int32)
    return reading.network, sides, (rows, positions, ids)


def explain(
    objective: Objective, params: Params, tokenizer: Tokenizer, text: str, *, target: str | None = None, layers: str = "auto",
    attribute: str = "auto", baseline: str = "mean", top: int = 5, translators: Callable[..., Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the predictions on a text, as plain values and arrays; `translators`: of a tuned lens beside the logit lens."""
    reading = lay_out(objective, params, tokenizer, text, target)
    network, inputs = reading.network, reading.inputs
    baseline_E = baseline_of(baseline, params, tokenizer)
    _, _, seen = observe(network, params, reading.shown.take([0]))

    # Attention of the shown row, one batch of one.
    attention = {name: np.asarray(x)[:, 0] for name, x in jax.device_get(seen).items()}
    named, depth = numbers(layers, 1, "layers"), max(map(len, attention.values()))
    check(not named or max(named) <= depth, f"--layers={layers}: the model has {depth} layers, numbered from 1")

    # Predictions first, so that attributions go to the likeliest token where there is no target.
    predictions = predict(reading, params, tokenizer, min(top, network.last.vocab), translators)
    columns = [int(i) for side in reading.shown.take([0]) for i in side[0]]
    split = 0 if inputs.source is None else inputs.source.shape[1]
    size = sum(x.size for x in jax.tree.leaves(params))
    attribute_inputs(reading, params, predictions, baseline_E, attribute, 6 * size * len(columns))
    return {
        "kind": reading.kind, "objective": type(objective).__name__, "parameters": size, "text": text,
        "columns": tokenizer.pieces(columns), "split": split, "predictions": predictions, "attention": attention,
        "layers": named or layers, "baseline": baseline, "depth": network.last.depth, "notes": [],
    }  # fmt: skip


def predict(
    reading: Reading, params: Params, tokenizer: Tokenizer, top: int, translators: Callable[..., Any] | None = None
) -> list[dict[str, Any]]:
    """Compute the probability, the rivals and the layers' predictions (logit lens) of each target."""
    network, targets = reading.network, reading.predictions
    positions, ids = (np.array([target[k] for target in targets], np.int32) for k in (1, 2))

    # Hidden states at the predicted positions, of the last layer and of each, a chunk of rows at a time.
    last, levels = [], []
    rows = sorted({target[0] for target in targets})
    for low in range(0, len(rows), CHUNK):
        part = rows[low : low + CHUNK]
        mine = [k for k, target in enumerate(targets) if target[0] in part]
        h_RTD, states, _ = observe(network, params, reading.inputs.take(part))
        at = np.array([part.index(targets[k][0]) for k in mine]), positions[mine]
        last.append(np.asarray(h_RTD[at]))
        levels.append(np.asarray(states[(slice(None), *at)]))
    h_PD, states = np.concatenate(last), np.concatenate(levels, 1)

    # Without a target, the likeliest token is explained.
    p, best, logp, entropy, _ = (np.asarray(x) for x in lens(network, params, h_PD, ids, top))
    ids = np.where(ids < 0, best[:, 0], ids)
    rank = np.asarray(lens(network, params, h_PD, ids, top, ids)[4])
    depth = len(states) - 1
    shown = sorted({round(x) for x in np.linspace(0, depth, min(depth + 1, max(2, LEVELS // len(targets))))})
    predictions: list[dict[str, Any]] = [
        {"place": int(position), "column": targets[k][3], "token": tokenizer.pieces([ids[k]])[0], "id": int(ids[k]),
         "row": targets[k][0], "own": targets[k][2] < 0, "logp": float(logp[k]), "entropy": float(entropy[k]),
         "rank": int(rank[k]), "top": pairs(tokenizer, best[k], p[k])}
        for k, position in enumerate(positions)
    ]  # fmt: skip

    # Logit lens: a layer's state through the final norm and the head; tuned lens: behind the layer's translator.
    lenses = {"lens": lambda level, state: state} | ({"tuned": translators} if translators else {})
    for (name, translate), level in itertools.product(lenses.items(), shown):
        state = h_PD if level == depth else network.finish(params, translate(level, states[level]))
        p, near, here, _, ranks = (np.asarray(x) for x in lens(network, params, state, ids, top, best[:, 0]))
        for k, prediction in enumerate(predictions):
            tops = pairs(tokenizer, near[k], p[k])
            guess = {"layer": level, "top": tops, "p": float(np.exp(here[k])), "rank": int(ranks[k])}
            prediction.setdefault(name, []).append(guess)
    return predictions


def pairs(tokenizer: Tokenizer, ids: np.ndarray, p: np.ndarray) -> list[tuple[str, float]]:
    return list(zip(tokenizer.pieces(ids), p.tolist()))


def attribute_inputs(
    reading: Reading,
    params: Params,
    predictions: list[dict[str, Any]],
    baseline_E: np.ndarray,
    attribute: str,
    cost: float,
) -> None:
    """Add "input" (gradient x input) and "integrated" gradients: to all predictions, the named, or as many as time allows."""

    count, named = len(predictions), numbers(attribute, 1, "attribute")
    check(not named or max(named) <= count, f"--attribute={attribute}: the text has {count} predictions, numbered from 1")
    chosen = [k - 1 for k in named] if named else list(range(count))
    # The last predictions have the longest context: they come first where time is short.
    few = slice(None) if attribute != "auto" else slice(-max(1, int(BUDGET / cost)), None)
    most = slice(None) if attribute != "auto" else slice(-max(1, int(BUDGET / cost / 64)), None)
    rows, positions, ids = ([predictions[k][name] for k in chosen[few]] for name in ("row", "place", "id"))
    sides = reading.inputs.take(rows)
    values = gradient_times_input(reading.network, params, sides, embed(params, sides), positions, ids)
    for k, weights in zip(chosen[few], values):
        predictions[k]["input"] = weights
    for k in chosen[most]:
        row, position, id = (predictions[k][name] for name in ("row", "place", "id"))
        sides = reading.inputs.take([row])
        result = integrated_gradients(reading.network, params, sides, embed(params, sides), position, id, baseline_E)
        predictions[k]["integrated"] = result
