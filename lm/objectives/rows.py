"""Rows of a source and a target: their layout, the loss on the targets, and the mixin of objectives that have both."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.packing import lay
from lm.data.rows.prompts import Prompt, answered
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.models import flops
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import Head, cross_entropy
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Batch, Example, Sums

HOLDS = "source source_segments source_positions (B, S); tokens targets weights segments positions (B, T)"


class SourceTarget:
    """Mixin of objectives that write a target from a source: prompt, parameters, predictions, display, FLOPs."""

    holds: ClassVar[str] = HOLDS
    model: EncoderDecoder | Transformer
    start: int | None
    begin: int | None
    end: int | None
    template: bool

    @property
    def writes(self) -> str:
        return "answer"

    @property
    def limits(self) -> tuple[int, ...]:
        """Lengths of a row for the encoder and the decoder, or for a decoder alone."""
        raise NotImplementedError

    def prompt(self, tokenizer: Tokenizer, text: str) -> Prompt:
        """Encode a source between `begin`, if there is one, and `end`; the decoder starts as in training."""
        begin = () if self.begin is None else (self.begin,)
        return answered(tokenizer, text, start=self.first, begin=begin, end=[self.end], template=self.template)

    @property
    def first(self) -> int:
        """Return the first id that the decoder reads."""
        return self.end if self.start is None else self.start

    def stops(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return () if self.end is None else (self.end,)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        if isinstance(self.model, Transformer):
            return Model(self.model).init(key, batch["tokens"])["params"]
        return Seq2Seq(self.model).init(key, batch["source"], batch["tokens"])["params"]

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        return guess(*read(self.model, params, batch))

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        return show_pairs(tokenizer, example, found)

    def flops(self) -> float:
        return row_flops(self.model, *self.limits)


def forced(
    sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], limits: tuple[int, ...], start: int | None = None
) -> Example:
    """Lay pairs out for teacher forcing; the decoder reads each target shifted right behind its own last token (fairseq).

    `limits`: lengths of the row for the encoder and for the decoder. `start` replaces the last token in front.
    """
    first = [target[-1:] if start is None else np.array([start], target.dtype) for target in targets]
    # A pair has one segment number on both sides, which confines cross-attention to it.
    source, source_segments, source_positions = lay(sources, limits[0])
    labels, segments, positions = lay(targets, limits[1])
    # Shifted before packing: a shift of the whole row would feed the last token of one pair to the next.
    shifted = [np.concatenate([token, target[:-1]]) for token, target in zip(first, targets, strict=True)]
    return {
        "source": source,
        "source_segments": source_segments,
        "source_positions": source_positions,
        "tokens": lay(shifted, limits[1])[0],
        "targets": labels,
        "weights": (segments > 0).astype(np.float32),
        "segments": segments,
        "positions": positions,
    }


def read(
    model: Transformer | EncoderDecoder, params: Any, batch: Batch, keys_B: jax.Array | None = None
) -> tuple[jax.Array, Head]:
    """Return the hidden states (B, T, D) at the targets and the vocabulary head."""
    variables = {"params": params}
    places = {"positions_BT": batch["positions"], "segments_BT": batch["segments"], "keys_B": keys_B}
    if isinstance(model, Transformer):
        # A decoder alone reads inputs and targets in one row; `prefix` marks the inputs.
        h_BTD, _ = Model(model).apply(variables, batch["tokens"], prefix_BT=batch["prefix"], **places)
        return h_BTD, Model(model).apply(variables, method="head")
    places |= {f"source_{name}_BS": batch[f"source_{name}"] for name in ("positions", "segments")}
    h_BTD = Seq2Seq(model).apply(variables, batch["source"], batch["tokens"], **places)
    return h_BTD, Seq2Seq(model).apply(variables, method="head")


def target_sums(
    h_BTD: jax.Array,
    head: Head,
    batch: Batch,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
    chunk: int = 0,
    from_zero: bool = False,
) -> Sums:
    """Sum cross-entropy and hits over the targets; `smoothing` e assigns each wrong token e / (V - 1) (fairseq, T5X).

    `from_zero` subtracts the entropy of the smoothed targets, so that the minimum of the loss is 0 (T5X). With z-loss or
    smoothing, "nll" is the plain cross-entropy.
    """
    count, vocab = batch["weights"].sum(), head.vocab
    # cross_entropy spreads over all V tokens: e / (V - 1) on the wrong ones alone is e' / V with e' = e V / (V - 1).
    spread = smoothing * vocab / (vocab - 1)
    labels = batch["targets"], batch["weights"]
    sums = cross_entropy(h_BTD, head, *labels, z_loss=z_loss, smoothing=spread, chunk=chunk)
    # Constant in the parameters: the gradient stays that of the cross-entropy.
    entropy = 0.0
    if smoothing and from_zero:
        entropy = -(1 - smoothing) * math.log(1 - smoothing) - smoothing * math.log(smoothing / (vocab - 1))
    result = {"loss": (sums["total"] - entropy * count, count), "accuracy": (sums["hits"], count)}
    # Perplexity is exp of the plain cross-entropy, which neither term may enter.
    if z_loss or smoothing:
        result["nll"] = sums["nll"], count
    if z_loss:
        result["z"] = sums["z"], count
    return result


def text_accuracy(h_BTD: jax.Array, head: Head, batch: Batch, others: Sequence[int]) -> Sums:
    """Count hits among text targets; `others`, sentinels and ends, are easy to predict and left out."""
    weights = batch["weights"] * ~jnp.isin(batch["targets"], jnp.array(others, jnp.int32))
    return {"text_accuracy": (cross_entropy(h_BTD, head, batch["targets"], weights)["hits"], weights.sum())}


def guess(h_BTD: jax.Array, head: Head) -> dict[str, jax.Array]:
    """Return the argmax token at each position under teacher forcing; a row at a time, to bound the logits in memory."""
    return {"guess": jax.lax.map(lambda h_TD: head.logits(h_TD).argmax(-1).astype("int32"), h_BTD)}


def show_pairs(
    tokenizer: Tokenizer, example: Example, found: Example | None, names: tuple[str, str] = ("source", "target")
) -> str:
    """Format each pair of a row: source, target, and the prediction if there is one."""
    lines = []
    for number in range(1, int(max(example["segments"].max(), example["source_segments"].max())) + 1):
        own = example["segments"] == number
        parts = {names[0]: example["source"][example["source_segments"] == number], names[1]: example["targets"][own]}
        parts |= {} if found is None else {"guess": found["guess"][own]}
        lines += [f"{name:<9}{tokenizer.decode(ids, special=True)!r}" for name, ids in parts.items()]
    return "\n".join(lines)


def row_flops(model: Transformer | EncoderDecoder, *lengths: int) -> float:
    """Count the FLOPs of a training step on one row; `lengths`: of source and target, or of a decoder's row."""
    if isinstance(model, Transformer):
        return lengths[0] * flops.train_flops(model, lengths[0])
    source, target, decoder = *lengths, model.decoder
    size = decoder.depth * decoder.head_size
    # Cross-attention: query and output projections run over the target, key and value projections over the source.
    projections = 6 * decoder.width * size * (2 * decoder.heads * target + 2 * decoder.kv * source)
    # Two products, scores and weighted values, of 6 operations each: 2 forward, 4 backward.
    scores = 12 * size * decoder.heads * source * target
    # Only the decoder projects onto the vocabulary.
    encoder = flops.train_flops(dataclasses.replace(model.encoder, vocab=0), source) * source
    return encoder + flops.train_flops(decoder, target) * target + projections + scores
