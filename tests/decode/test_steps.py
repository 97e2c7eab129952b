"""The step functions of every architecture against its whole forward pass: ragged rows, several tokens, rows moved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.rows.prompts import Prompt
from lm.decode.prefill import KINDS, batch_prompts
from lm.decode.steps import StackSteps
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.lstm import LSTM, LSTMModel
from lm.models.memory import MemoryModel, TransformerXL, empty_memory
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.models.two_stream import TwoStream, XLNet
from lm.sharding import unbox
from tests.marks import quick

VOCAB, LENGTHS, NEW = 30, (5, 1, 9), 6
TINY = {"vocab": VOCAB, "context": 64, "width": 32, "depth": 2, "heads": 4}
LOUD = {**TINY, "init": 0.3, "init_positions": 0.3}
SIDES = {
    "bart": Transformer(**LOUD, placement="post", embed_norm=True, offset=2, head_bias=True),
    "t5": Transformer(**LOUD, head=10, positions="bucket", norm="rms", bias=False, scale=1.0, activation="geglu", tied=False),
    "marian": Transformer(**LOUD, placement="post", positions="sinusoidal", embed_scale=32**0.5, activation="silu"),
}
MODELS = {
    "causal": Transformer(**LOUD, positions="rotary", kv_heads=2, windows=(4, 0)),
    "prefix": Transformer(**LOUD, positions="bucket"),
    "beside a masked part": Transformer(**LOUD, transform=True),  # which a mixture's causal part does not use
    "shared": Transformer(**LOUD, share=True),
    **{name: EncoderDecoder(encoder=side, decoder=side) for name, side in SIDES.items()},
    "memory": TransformerXL(**TINY, memory=32, init=0.3, cutoffs=(10, 20), divide=2),
    "memory of zeros": TransformerXL(**TINY, memory=8, init=0.3, begin="zeros", same_length=True, clamp=6),
    "lstm": LSTM(vocab=VOCAB, context=32, width=32, depth=2),
    "xlnet": XLNet(**TINY, memory=0, init=0.3),
}


@functools.cache  # jit knows a method of the same object again
def steps_of(name):
    model = MODELS[name]
    return StackSteps(model, prefix=name == "prefix") if isinstance(model, Transformer) else KINDS[type(model)](model)


def rows():
    draw = np.random.default_rng(0)
    return [draw.integers(1, VOCAB, n + NEW).astype(np.int32) for n in LENGTHS], [
        draw.integers(1, VOCAB, n).astype(np.int32) for n in (7, 3, 4)
    ]


@functools.cache
def whole(name):
    """Parameters, and the logits after each of the new tokens by one pass over each row alone, without padding."""
    model, (tokens, sources) = MODELS[name], rows()
    key, ids = jax.random.key(1), np.ones((1, 4), np.int32)
    kind = {LSTM: LSTMModel, TransformerXL: MemoryModel, XLNet: TwoStream, EncoderDecoder: Seq2Seq}.get(type(model), Model)
    network = kind(model)
    params = unbox(jax.jit(network.init)(key, *[ids] * (2 if kind is Seq2Seq else 1))["params"])
    variables, found = {"params": params}, []
    ask = jax.jit(functools.partial(asked, network))
    run = jax.jit(lambda variables, *args, **more: network.apply(variables, *args, **more))
    logits = jax.jit(lambda variables, h_TD: network.apply(variables, method="head").logits(h_TD))
    for ids, source, length in zip(tokens, sources, LENGTHS):
        row = ids[None]
        if kind is Seq2Seq:
            h_TD = run(variables, source[None], row)[0]
        elif kind is TwoStream:  # every place by a pass of its own, over what stands before it
            h_TD = jnp.stack([ask(variables, ids, at + 1) for at in range(len(ids))])
        elif name == "memory of zeros":
            h_TD = run(variables, row, None, empty_memory(model, 1))[0][0]
        elif name == "prefix":
            prefix = (np.arange(len(ids)) < length)[None]
            h_TD = run(variables, row, prefix_BT=prefix, segments_BT=np.ones_like(row))[0][0]
        else:
            h_TD = run(variables, row)[0][0]
        found.append(np.asarray(logits(variables, h_TD))[length - 1 :])
    return params, np.stack(found)


def asked(network, variables, ids, count):
    """XLNet's state for the place behind the first `count` tokens, which see each other; nobody sees the rest."""
    text = jnp.append(ids, 0)[None]
    rank = (jnp.arange(text.shape[1]) >= count)[None].astype(jnp.int32)
    places = jnp.broadcast_to(count, (1, 1))
    return network.apply(variables, text, rank_BT=rank, reach_BT=jnp.ones_like(text), places_BP=places)[1][0, 0]


def begin(name, rows_of=(0, 1, 2)):
    params, wanted = whole(name)
    steps, (tokens, sources) = steps_of(name), rows()
    source = sources if isinstance(MODELS[name], EncoderDecoder) else [None] * 3
    prompts = batch_prompts([Prompt(tokens[i][: LENGTHS[i]], source[i]) for i in rows_of])
    prepared = steps.prepare(params, len(rows_of))
    h_BTD, state = jax.jit(steps.prefill, static_argnums=2)(prepared, prompts, NEW)
    new = np.stack([tokens[i][LENGTHS[i] :] for i in rows_of])
    return steps, prepared, h_BTD, state, new, wanted[list(rows_of)]


def close(steps, prepared, h_BTD, wanted_BTV):
    np.testing.assert_allclose(np.asarray(steps.logits(prepared, h_BTD)), wanted_BTV, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", quick(MODELS, ("causal", "prefix", *[*SIDES][:1], "memory", "lstm", "xlnet")))
@pytest.mark.parametrize("rows_of", [(0, 1, 2), pytest.param((2,), marks=pytest.mark.slow)], ids=["ragged", "single"])
def test_token_by_token_is_the_whole_pass(name, rows_of):
    steps, prepared, h_BTD, state, new, wanted = begin(name, rows_of)
    close(steps, prepared, h_BTD[:, -1:], wanted[:, :1])
    step = jax.jit(steps.step)
    for at in range(NEW):
        h_BTD, state = step(prepared, state, new[:, at : at + 1])
        close(steps, prepared, h_BTD, wanted[:, at + 1 : at + 2])


@pytest.mark.parametrize("name", MODELS)
def test_several_tokens_in_one_step(name):
    steps, prepared, _, state, new, wanted = begin(name)
    step = jax.jit(steps.step)
    h_BTD, state = step(prepared, state, new[:, :3])
    close(steps, prepared, h_BTD, wanted[:, 1:4])
    h_BTD, _ = step(prepared, state, new[:, 3:])
    close(steps, prepared, h_BTD, wanted[:, 4:])


@pytest.mark.parametrize("name", MODELS)
def test_rows_move_with_what_they_have_read(name):
    steps, prepared, _, state, new, wanted = begin(name)
    step = jax.jit(steps.step)
    _, state = step(prepared, state, new[:, :1])
    order = np.array([2, 0, 2, 1])
    h_BTD, _ = step(prepared, steps.select(state, order), new[order, 1:2])
    close(steps, prepared, h_BTD, wanted[order, 2:3])
    one = steps.select(state, order[:1])
    h_BTD, _ = step(steps.prepare(whole(name)[0], 1), one, new[order[:1], 1:2])
    close(steps, prepared, h_BTD, wanted[order[:1], 2:3])


@pytest.mark.parametrize("name", [name for name in MODELS if steps_of(name).rewinds])
def test_what_is_taken_back_leaves_no_trace(name):
    steps, prepared, _, state, new, wanted = begin(name)
    step = jax.jit(steps.step)
    _, state = step(prepared, state, new[:, :2])
    _, state = step(prepared, state, (new[:, 2:4] + 7) % VOCAB)
    h_BTD, _ = step(prepared, steps.rewind(state, 2), new[:, 2:4])
    close(steps, prepared, h_BTD, wanted[:, 3:5])
