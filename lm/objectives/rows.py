"""Objectives with a source and a target: rows of them, the loss of the targets, and what people see."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.models import flops
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import Head, cross_entropy
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Batch, Example, Sums

HOLDS = "source source_segments source_positions (B, S); tokens targets weights segments positions (B, T)"


def lay(sequences: Sequence[np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put sequences into a row: tokens, segments (from 1) and positions, int32 [length]; what does not fit is cut off."""
    tokens, segments, positions = (np.zeros(length, np.int32) for _ in range(3))
    if sequences:
        sizes = np.array([len(sequence) for sequence in sequences])
        flat = np.concatenate(sequences)[:length]
        tokens[: len(flat)] = flat
        segments[: len(flat)] = np.repeat(np.arange(1, len(sizes) + 1), sizes)[:length]
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)[:length]
        positions[: len(flat)] = np.arange(len(flat)) - first
    return tokens, segments, positions


def forced(
    sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], limits: tuple[int, int], start: int | None = None
) -> Example:
    """Make the row of pairs whose decoder reads each target with its last token moved to the front (fairseq).

    `limits` are the row's lengths for the encoder and for the decoder. A `start` stands in front in that token's place.
    """
    first = [target[-1:] if start is None else np.array([start], target.dtype) for target in targets]
    source, source_segments, source_positions = lay(sources, limits[0])
    wanted, segments, positions = lay(targets, limits[1])
    read = lay([np.concatenate([one, target[:-1]]) for one, target in zip(first, targets, strict=True)], limits[1])[0]
    return {
        "source": source,
        "source_segments": source_segments,
        "source_positions": source_positions,
        "tokens": read,
        "targets": wanted,
        "weights": (segments > 0).astype(np.float32),
        "segments": segments,
        "positions": positions,
    }


def read(model: Transformer | EncoderDecoder, params: Any, batch: Batch, keys_B: jax.Array | None = None):
    """Return the states (B, T, D) at the targets and the head."""
    variables = {"params": params}
    places = {"positions_BT": batch["positions"], "segments_BT": batch["segments"], "keys_B": keys_B}
    if isinstance(model, Transformer):
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
    """Sum cross-entropy and hits over the targets; `smoothing` e gives each wrong token e / (V - 1) (fairseq, T5X).

    `from_zero` takes the entropy of the smoothed targets off, so that a perfect network has a loss of 0 (T5X). With
    either extra, "nll" is the plain loss beside it.
    """
    count, vocab = batch["weights"].sum(), head.vocab
    # e / (V - 1) for all but the target is e' / V for all with e' = e V / (V - 1).
    spread = smoothing * vocab / (vocab - 1)
    extras = {"z_loss": z_loss, "smoothing": spread, "chunk": chunk}
    sums = cross_entropy(h_BTD, head, batch["targets"], batch["weights"], **extras)
    entropy = 0.0
    if smoothing and from_zero:
        entropy = -(1 - smoothing) * math.log(1 - smoothing) - smoothing * math.log(smoothing / (vocab - 1))
    result = {"loss": (sums["total"] - entropy * count, count), "accuracy": (sums["hits"], count)}
    if z_loss or smoothing:
        result["nll"] = sums["nll"], count
    if z_loss:
        result["z"] = sums["z"], count
    return result


def text_accuracy(h_BTD: jax.Array, head: Head, batch: Batch, others: Sequence[int]) -> Sums:
    """Count the hits among targets that are text: sentinels and ends (`others`), easy to foresee, left out."""
    weights = batch["weights"] * ~jnp.isin(batch["targets"], jnp.array(others, jnp.int32))
    return {"text_accuracy": (cross_entropy(h_BTD, head, batch["targets"], weights)["hits"], weights.sum())}


def guess(h_BTD: jax.Array, head: Head) -> dict[str, jax.Array]:
    """Return the likeliest token at each place, every one given the true tokens before it; a row at a time."""
    return {"guess": jax.lax.map(lambda h_TD: head.logits(h_TD).argmax(-1).astype("int32"), h_BTD)}


def show_pairs(tokenizer, example: Example, found: Example | None, names=("source", "target")) -> str:
    """Write each pair of a row: what the encoder reads, what is asked for, and what was guessed."""
    lines = []
    for number in range(1, int(max(example["segments"].max(), example["source_segments"].max())) + 1):
        source = example["source"][example["source_segments"] == number]
        place = example["segments"] == number
        lines.append(f"{names[0]:<9}{tokenizer.decode(source, special=True)!r}")
        lines.append(f"{names[1]:<9}{tokenizer.decode(example['targets'][place], special=True)!r}")
        if found is not None:
            lines.append(f"{'guess':<9}{tokenizer.decode(found['guess'][place], special=True)!r}")
    return "\n".join(lines)


def row_flops(model: Transformer | EncoderDecoder, *lengths: int) -> float:
    """Count the operations of a training step on one row of so many tokens (source and target of an encoder-decoder)."""
    if isinstance(model, Transformer):
        return lengths[0] * flops.train_flops(model, lengths[0])
    source, target, decoder = *lengths, model.decoder
    size = decoder.depth * decoder.head_size
    projections = 6 * decoder.width * size * (2 * decoder.heads * target + 2 * decoder.kv * source)
    scores = 12 * size * decoder.heads * source * target
    encoder = flops.train_flops(dataclasses.replace(model.encoder, vocab=0), source) * source
    return encoder + flops.train_flops(decoder, target) * target + projections + scores
