"""Masked models: candidates for the masks of a text (fill-mask), and whole texts by Gibbs sampling."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.prefill import check_finite
from lm.decode.results import Candidate, Filled
from lm.decode.sampling import Sampling, log_probability
from lm.errors import check, unknown
from lm.models.electra import Electra
from lm.models.heads import gather
from lm.models.model import Model
from lm.objectives.base import Objective

Order = Literal["once", "left_to_right", "confident"]
Walk = Literal["random", "left_to_right", "parallel"]
NAMES = ("[MASK]", "<mask>")  # of a mask, in published vocabularies
ROWS = 32  # texts that go through the model together
WIDTH = 16  # rows are padded to a multiple of this: few shapes to compile for


def place_logits(
    network: Model | Electra, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array, places_BP: jax.Array
) -> jax.Array:
    """Compute the logits at P positions of each row, given the rest of the row: float32 (B, P, V)."""
    variables = {"params": params}
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    if isinstance(network, Electra):
        row = tokens_BT, places_BP, positions_BT, segments_BT, jnp.zeros_like(tokens_BT)
        h_BPE, head = network.apply(variables, *row, method="guess")
        return head.logits(h_BPE)
    h_BTD, _ = network.apply(variables, tokens_BT, positions_BT, segments_BT, causal=False)
    h_BPE = network.apply(variables, gather(h_BTD, places_BP), method="transform")
    return network.apply(variables, method="head").logits(h_BPE)


def fill_masks(
    objective: Objective, params: Any, tokenizer: Tokenizer, texts: Sequence[str], *, top_k: int = 5, order: Order = "once",
) -> list[Filled]:  # fmt: skip
    """Fill the masks of each text: [MASK], or the tokenizer's own name; other special tokens may be written too.

    `objective`: of masked tokens (BERT and its line; ELECTRA, whose generator fills).
    `order`: "once" predicts every mask in one pass, independently (as Hugging Face's fill-mask); else one mask after
    another gets its likeliest token and the model runs again, "left_to_right" or the most "confident" mask first.
    `top_k`: candidates to report. Raises UserError for a text without a mask or longer than the model's context.
    """
    network = objective.masked_network()
    if order not in get_args(Order):
        raise unknown("order", order, get_args(Order))
    check(top_k >= 1, f"top_k={top_k}: report at least 1 candidate")
    # Every text is encoded, and refused where it must be, before the network runs.
    mask, rows = tokenizer.special_id("[MASK]"), []
    for text in texts:
        ids = framed(tokenizer, tokenizer.encode(named_mask(tokenizer, text), special=True), objective)
        name = tokenizer.core.id_to_token(mask)
        check((ids == mask).any(), f"{text!r} has no {name} to fill; write one where a token is missing")
        rows.append(ids)
    results = []
    for low in range(0, len(rows), ROWS):
        part = rows[low : low + ROWS]
        settled = settle(network, params, part, mask, min(top_k, objective.model.vocab), order)
        columns = texts[low : low + ROWS], part, *settled, [mask] * len(part)
        results += [as_filled(tokenizer, *row) for row in zip(*columns, strict=True)]
    return results


def named_mask(tokenizer: Tokenizer, text: str) -> str:
    """Replace published names of the mask by the tokenizer's own, where it lacks them."""
    own = tokenizer.core.id_to_token(tokenizer.special_id("[MASK]"))
    for name in NAMES:
        if tokenizer.token_id(name) is None:
            text = text.replace(name, own)
    return text


def framed(tokenizer: Tokenizer, ids: np.ndarray, objective: Objective) -> np.ndarray:
    """Put a text's ids between [CLS] and [SEP], as in training; raises UserError where they pass the context."""
    frame = [tokenizer.special_id(name) for name in ("[CLS]", "[SEP]")]
    context = objective.model.context
    check(len(ids) + 2 <= context, f"{len(ids)} tokens and two more pass the model's context of {context}: shorten the text")
    return np.concatenate([frame[:1], ids, frame[1:]]).astype(np.int32)


def padded(rows: Sequence[np.ndarray], width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad rows of ids on the right: tokens and segments (1 real, 0 padding), int32 (B, T)."""
    width = -(-max(width, *map(len, rows)) // WIDTH) * WIDTH if rows else 0
    tokens_BT, segments_BT = np.zeros((2, len(rows), width), np.int32)
    for i, ids in enumerate(rows):
        tokens_BT[i, : len(ids)], segments_BT[i, : len(ids)] = ids, 1
    return tokens_BT, segments_BT


@partial(jax.jit, static_argnames=("network", "count"))
def likeliest(
    network: Model | Electra, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array, places_BP: jax.Array, *, count: int,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Return log-probabilities and ids, both (B, P, count), of the likeliest tokens at P positions, best first."""
    logits_BPV = place_logits(network, params, tokens_BT, segments_BT, places_BP)
    return jax.lax.top_k(jax.nn.log_softmax(logits_BPV), count)


def settle(
    network: Model | Electra, params: Any, rows: Sequence[np.ndarray], mask: int, top_k: int, order: Order
) -> Iterator[list[np.ndarray]]:
    """Choose a token for every mask of the rows.

    Yields, as lists over the rows, the chosen ids [M], their log-probabilities [M], and log-probabilities and ids [M, K]
    of the candidates, masks from left to right.
    """
    # The number of masks is padded to a power of two: few shapes to compile for.
    tokens_BT, segments_BT = padded(rows)
    masks = [np.flatnonzero(ids == mask) for ids in rows]
    places_BP = np.zeros((len(rows), 1 << (max(map(len, masks)) - 1).bit_length()), np.int32)
    for i, places in enumerate(masks):
        places_BP[i, : len(places)] = places
    open_BP = np.arange(places_BP.shape[1]) < np.array([[len(places)] for places in masks])
    logprobs_BPK, ids_BPK = np.zeros((*places_BP.shape, top_k), np.float32), np.zeros((*places_BP.shape, top_k), np.int32)

    # Each pass settles all open masks of a row, or one of them.
    while open_BP.any():
        best = likeliest(network, params, tokens_BT, segments_BT, places_BP, count=top_k)
        values, ids = (np.asarray(x) for x in best)
        now_BP = open_BP.copy()
        if order != "once":  # one mask a row: the first, or the one whose best token is likeliest
            rank_BP = values[..., 0] if order == "confident" else -places_BP
            best_B = np.where(open_BP, rank_BP, -np.inf).argmax(1)
            now_BP &= np.arange(places_BP.shape[1]) == best_B[:, None]
        # The chosen tokens stand in the rows when the remaining masks are predicted.
        logprobs_BPK[now_BP], ids_BPK[now_BP] = values[now_BP], ids[now_BP]
        row, _ = np.nonzero(now_BP)
        tokens_BT[row, places_BP[now_BP]] = ids[now_BP][:, 0]
        open_BP &= ~now_BP
    cut = [len(places) for places in masks]
    return ([x[:n] for x, n in zip(array, cut)] for array in (ids_BPK[..., 0], logprobs_BPK[..., 0], logprobs_BPK, ids_BPK))


def as_filled(
    tokenizer: Tokenizer, prompt: str, row: np.ndarray, chosen: np.ndarray, logprobs: np.ndarray, candidates: np.ndarray,
    ids: np.ndarray, mask: int,
) -> Filled:  # fmt: skip
    """Decode the tokens chosen for one text."""
    check_finite(logprobs, f"the masks of {prompt!r}")
    row = row.copy()
    row[row == mask] = chosen
    masks = [
        [Candidate(int(i), tokenizer.decode([i], special=True), float(np.exp(p))) for i, p in zip(*at_mask, strict=True)]
        for at_mask in zip(ids, candidates, strict=True)
    ]
    return Filled(prompt, tokenizer.decode(row), chosen.tolist(), float(logprobs.sum(dtype=np.float64)), masks)


def gibbs(
    objective: Objective, params: Any, tokenizer: Tokenizer, *, count: int = 1, length: int = 40, prefix: str = "",
    walk: Walk = "random", iterations: int = 500, burn_in: int = 250, top_k: int = 100, temperature: float = 1.0,
    seed: int = 0,
) -> list[Filled]:  # fmt: skip
    """Draw `count` texts of `length` tokens behind a prefix from a masked model (Wang and Cho 2019; their constants).

    All new tokens are masks at first. An iteration masks one of them, at "random" or in cycles "left_to_right", and draws
    it given all others; "parallel" draws all of them at once, from the unmasked text. The first `burn_in` iterations draw
    from the whole vocabulary, the rest from the `top_k` likeliest tokens. The conditionals do not define a distribution
    over texts: this is a heuristic, and `logprob` the sum of each token's log-probability when it was drawn last. Each
    text has a key of its own: it does not depend on their number.
    """
    network = objective.masked_network()
    if walk not in get_args(Walk):
        raise unknown("walk", walk, get_args(Walk))
    check(count >= 1 and length >= 1 and iterations >= 1, "count, length and iterations must be at least 1")
    check(walk != "left_to_right" or iterations >= length, f"iterations={iterations} do not reach all {length} tokens")

    # One row a text: [CLS] prefix masks [SEP].
    mask, head = tokenizer.special_id("[MASK]"), tokenizer.encode(prefix, special=True)
    ids = framed(tokenizer, np.concatenate([head, np.full(length, mask)]), objective)
    tokens_BT, segments_BT = padded([ids] * count)

    # Two stages of one compiled chain, as top-k is a static setting.
    keys_B = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(count))
    whole = Sampling(temperature=temperature)
    stages = (whole, min(burn_in, iterations)), (dataclasses.replace(whole, top_k=top_k), iterations)
    drawn = chain(
        network,
        params,
        tokens_BT,
        segments_BT,
        keys_B,
        first=1 + len(head),
        length=length,
        mask=mask,
        walk=walk,
        stages=stages,
    )
    tokens_BT, logprobs_BL = (np.asarray(x) for x in drawn)
    check_finite(logprobs_BL, f"what follows {prefix!r}")
    inside, new = slice(1, len(ids) - 1), slice(1 + len(head), 1 + len(head) + length)
    return [
        Filled(prefix, tokenizer.decode(row[inside]), row[new].tolist(), float(logprobs.sum(dtype=np.float64)))
        for row, logprobs in zip(tokens_BT, logprobs_BL, strict=True)
    ]


@partial(jax.jit, static_argnames=("network", "first", "length", "mask", "walk", "stages"))
def chain(
    network: Model | Electra, params: Any, tokens_BT: jax.Array, segments_BT: jax.Array, keys_B: jax.Array, *, first: int,
    length: int, mask: int, walk: Walk, stages: tuple[tuple[Sampling, int], ...],
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Run the Markov chain; return tokens (B, T) and log-probabilities (B, L).

    `first`: index of the first of the L drawn tokens; `stages`: (sampling, iteration at which its stage ends).
    """
    rows = jnp.arange(len(tokens_BT))[:, None]

    def step(i: jax.Array, carry: tuple[jax.Array, jax.Array], sampling: Sampling) -> tuple[jax.Array, jax.Array]:
        # Indices of the drawn tokens that this iteration resamples.
        tokens_BT, logprobs_BL = carry
        now_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
        if walk == "parallel":
            at_BP = jnp.broadcast_to(jnp.arange(length), (len(tokens_BT), length))
        elif walk == "left_to_right":
            at_BP = jnp.full((len(tokens_BT), 1), i % length)
        else:
            at_BP = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, length), (1,), 0, length))(now_B)

        # Draw them given the rest; a key of its own for each index, so that "parallel" draws are independent.
        read_BT = tokens_BT if walk == "parallel" else tokens_BT.at[rows, first + at_BP].set(mask)
        logits_BPV = place_logits(network, params, read_BT, segments_BT, first + at_BP)
        keys_BP = jax.vmap(lambda key, at_P: jax.vmap(partial(jax.random.fold_in, key))(at_P))(now_B, at_BP)
        ids_BP = jax.vmap(sampling.choose, (1, 1), 1)(logits_BPV, keys_BP)
        drawn_BP = jax.vmap(log_probability, (1, 1), 1)(logits_BPV, ids_BP)
        return tokens_BT.at[rows, first + at_BP].set(ids_BP), logprobs_BL.at[rows, at_BP].set(drawn_BP)

    carry, start = (tokens_BT, jnp.zeros((len(tokens_BT), length))), 0
    for sampling, end in stages:
        carry = jax.lax.fori_loop(start, max(start, end), partial(step, sampling=sampling), carry)
        start = end
    return carry
