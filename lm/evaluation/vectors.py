"""Text embeddings of any model: a contrastive run's own embedding, else the mean of the last layer's states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.prefill import batch_prompts, bucket, opened_steps
from lm.decode.search.masked import framed, padded
from lm.errors import check
from lm.evaluation.subject import Subject
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.sharding import NO_MESH


def vectors(subject: Subject, texts: Sequence[str]) -> np.ndarray:
    """Embed texts: float32 (N, D), in order; texts are truncated to the context.

    A contrastive model embeds as its paper tests it, a network that writes by the mean of its states over the text, a
    masked one by the mean over [CLS] text [SEP] (Reimers & Gurevych 2019).
    """
    rows = subject.tokenizer.encode_batch(list(texts))
    check(all(len(ids) for ids in rows), "a text without tokens has no embedding")
    objective, params = subject.objective.writer(subject.params)
    if objective.embeds:
        embed = partial(sentences, objective)
        limit = objective.length - 2  # [CLS] and [SEP]
    elif objective.writes == "text":
        steps = opened_steps(objective)
        with jax.sharding.use_abstract_mesh(NO_MESH):
            params = steps.prepare(params, 2)
        embed, limit = partial(continued, steps), steps.limit or objective.model.context
    else:
        kind = type(objective).__name__
        check(isinstance(objective.model, Transformer), f"a model of {kind} has no embedding of a text")
        embed, limit = partial(encoded, objective, subject.tokenizer), objective.model.context - 2
    report = subject.progress("embeddings", len(rows))
    embedded: list[Any] = [None] * len(rows)
    # Rows of one bucket of widths go together: few shapes to compile for, little padding.
    for part in batches([min(bucket(len(ids)), limit) for ids in rows], subject.tokens):
        with jax.sharding.use_abstract_mesh(NO_MESH):
            values = np.asarray(embed(params, [rows[i][:limit] for i in part]))
        for i, value in zip(part, values):
            embedded[i] = value
        report(len(part))
    return np.stack(embedded).astype(np.float32)


def batches(widths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield batches of row indices of equal width, at most `tokens` tokens each."""
    for width in sorted(set(widths)):
        members, size = [i for i, w in enumerate(widths) if w == width], max(1, tokens // width)
        yield from (members[low : low + size] for low in range(0, len(members), size))


def sentences(objective: Any, params: Any, rows: Sequence[np.ndarray]) -> jax.Array:
    """Embed by a contrastive objective, without dropout."""
    tokens_BFT = np.full((len(rows), 1, objective.length), objective.pad, np.int32)
    for i, ids in enumerate(rows):
        tokens_BFT[i, 0, : len(ids) + 2] = [objective.cls, *ids, objective.sep]
    batch = {"sentences": tokens_BFT, "segments": (tokens_BFT != objective.pad).astype(np.int32)}
    return jax.jit(lambda params, batch: objective.embed(params, batch, None, drop=False)[:, 0])(params, batch)


def continued(steps: Any, prepared: Any, rows: Sequence[np.ndarray]) -> jax.Array:
    """Average the states over each text, read from left to right."""
    prompts = batch_prompts([Prompt(ids.astype(np.int32)) for ids in rows])
    return mean_states(prepared, prompts, steps=steps)


@partial(jax.jit, static_argnames="steps")
def mean_states(prepared: Any, prompts: Any, *, steps: Any) -> jax.Array:
    h_BTD, _ = steps.prefill(prepared, prompts, 0)
    return averaged(h_BTD, prompts.segments_BT[:, -h_BTD.shape[1] :])


def encoded(objective: Any, tokenizer: Tokenizer, params: Any, rows: Sequence[np.ndarray]) -> jax.Array:
    """Average the states of [CLS] text [SEP], as sentence-transformers pools them."""
    return mean_encoded(params, *padded([framed(tokenizer, ids, objective) for ids in rows]), model=objective.model)


@partial(jax.jit, static_argnames="model")
def mean_encoded(params: Any, tokens_BT: jax.Array, segments_BT: jax.Array, *, model: Transformer) -> jax.Array:
    h_BTD, _ = Model(model).apply({"params": params}, tokens_BT, None, segments_BT, causal=False)
    return averaged(h_BTD, segments_BT)


def averaged(h_BTD: jax.Array, real_BT: jax.Array) -> jax.Array:
    # Summed in float32: over a long text the eight bits of bfloat16 would be lost in the sum.
    return (h_BTD.astype(jnp.float32) * real_BT[..., None]).sum(1) / real_BT.sum(1)[:, None]
