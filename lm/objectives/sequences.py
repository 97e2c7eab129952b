"""Rows of an encoder-decoder: sequences laid one after another, and the loss of a target given its source."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from lm import flops
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import cross_entropy
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


def forced(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], limits: tuple[int, int]) -> Example:
    """Make the row of pairs whose decoder reads each target with its last token moved to the front (fairseq).

    `limits` are the row's lengths for the encoder and for the decoder.
    """
    source, source_segments, source_positions = lay(sources, limits[0])
    wanted, segments, positions = lay(targets, limits[1])
    read = lay([np.concatenate([target[-1:], target[:-1]]) for target in targets], limits[1])[0]
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


def states(model: EncoderDecoder, params, batch: Batch, keys_B=None):
    """Run both stacks on a batch: the decoder's states (B, T, D), and the head."""
    variables = {"params": params}
    sides = {f"{name}_BS": batch[name] for name in ("source_positions", "source_segments")}
    sides |= {f"{name}_BT": batch[name] for name in ("positions", "segments")}
    h_BTD = Seq2Seq(model).apply(variables, batch["source"], batch["tokens"], keys_B=keys_B, **sides)
    return h_BTD, Seq2Seq(model).apply(variables, method="head")


def forced_loss(model: EncoderDecoder, params, batch: Batch, keys_B, smoothing: float = 0.0, chunk: int = 0) -> Sums:
    """Cross-entropy of the targets; with `smoothing` "loss" is the smoothed one and "nll" the plain one beside it."""
    h_BTD, head = states(model, params, batch, keys_B)
    sums = cross_entropy(h_BTD, head, batch["targets"], batch["weights"], smoothing=smoothing, chunk=chunk)
    count = batch["weights"].sum()
    plain = {"nll": (sums["nll"], count)} if smoothing else {}
    return {"loss": (sums["total"], count), **plain, "accuracy": (sums["hits"], count)}


def guesses(model: EncoderDecoder, params, batch: Batch):
    """Give the likeliest token at each place of the target, (B, T), the right ones before it being known."""
    h_BTD, head = states(model, params, batch)
    return jnp.argmax(head.logits(h_BTD), -1)


def side_by_side(tokenizer, example: Example, found: Example | None, names=("source", "target")) -> str:
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


def row_flops(model: EncoderDecoder, source: int, target: int) -> float:
    """Count the operations of a training step on one row: both stacks, and the attention from one to the other."""
    decoder = model.decoder
    size = decoder.depth * decoder.head_size
    projections = 6 * decoder.width * size * (2 * decoder.heads * target + 2 * decoder.kv * source)
    scores = 12 * size * decoder.heads * source * target
    encoder = flops.train_flops(dataclasses.replace(model.encoder, vocab=0), source) * source
    return encoder + flops.train_flops(decoder, target) * target + projections + scores
