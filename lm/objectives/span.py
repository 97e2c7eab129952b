"""Span corruption: T5 and T5.1.1 (Raffel et al. 2020; Shazeer 2020).

python -m lm.objectives.span [--config=configs/t5_nano.py]
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from lm.data.records import Windows
from lm.errors import check, check_range
from lm.flops import train_flops
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import Head, cross_entropy
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Example, Objective, Sums, fit
from lm.objectives.layouts import Layout, Sides, Symbols, draw, restored
from lm.objectives.spans import Denoiser


@dataclass(frozen=True, kw_only=True)
class Span(Objective):
    """Spans of the text go; the encoder reads a sentinel for each, the decoder writes each sentinel and its span.

    `rate` and `mean` length of the spans; `noise="iid"` takes tokens one by one, `roll` turns the mask by a random
    offset (both off in the paper's models). The text is as long as fills `model.encoder.context`, and the decoder's
    rows as long as its targets then are: nothing is wasted. That holds with data.packing="windows", where a row is one
    stretch of the stream, as the paper's. With "documents" each document is corrupted for itself, with an end on both
    sides and no attention to others; their ends take room, so part of the last one is left out, unless `targets` is
    larger than it must be. The published loss has z_loss=1e-4 (T5X); `smoothing` is T5X's: its minimum is 0.
    """

    paper: ClassVar[str] = "Raffel et al. 2020, T5; Shazeer 2020 (T5.1.1)"
    holds: ClassVar[str] = (
        "source source_segments source_positions (B, S); tokens targets weights segments positions (B, T)"
    )

    model: EncoderDecoder
    noise: Literal["spans", "iid"] = "spans"
    rate: float = 0.15
    mean: float = 3.0
    roll: bool = False
    targets: int = 0  # length of the decoder's rows, 0: what one full stretch of text gives
    z_loss: float = 0.0
    smoothing: float = 0.0
    chunk: int = 0
    # Filled in by `resolve`.
    separator: int | None = None
    end: int | None = None
    pad: int | None = None
    sentinels: tuple[int, ...] = ()

    def __post_init__(self):
        check_range(self, 0, float("inf"), "chunk", "z_loss", "targets")
        check_range(self, 0, 1, "smoothing")
        check(isinstance(self.model, EncoderDecoder), "span corruption needs an EncoderDecoder; Prefix takes either")
        check(self.raw >= 2, f"model.encoder.context={self.model.encoder.context} has no room for a span")
        needed = self.denoiser.sizes(self.raw).targets + 1
        check(
            not self.targets or self.targets >= needed,
            f"targets={self.targets} is less than the {needed} of a full row; leave it at 0",
        )
        check(
            self.layout.targets <= self.model.decoder.context,
            f"model.decoder.context={self.model.decoder.context} is shorter than the {self.layout.targets} targets of a row",
        )

    @functools.cached_property
    def denoiser(self) -> Denoiser:
        return Denoiser(kind=self.noise, rate=self.rate, mean=self.mean, roll=self.roll)

    @functools.cached_property
    def raw(self) -> int:
        """Tokens of text in a row."""
        return self.denoiser.fill(self.model.encoder.context)

    @functools.cached_property
    def layout(self) -> Sides:
        inputs = self.model.encoder.context
        return Sides(inputs, self.targets or self.denoiser.sizes(self.raw).targets + 1)

    @functools.cached_property
    def symbols(self) -> Symbols:
        return Symbols(self.end, self.pad, np.array(self.sentinels, np.int32), {})

    @property
    def records(self) -> Windows:
        return Windows(length=self.raw, stride=self.raw)

    @property
    def special(self) -> tuple[str, ...]:
        return ("[PAD]", "[SEP]", *sentinel_names(self.denoiser.sentinels(self.raw)))

    @property
    def scales(self):
        return {"loss": 1.0}

    def resolve(self, tokenizer):
        pad, end, *sentinels = map(tokenizer.special_id, self.special)
        found = {"pad": pad, "end": end, "sentinels": tuple(sentinels), "separator": tokenizer.separator}
        return dataclasses.replace(self, model=fit(self.model, tokenizer), **found)

    def corrupt(self, rng, record):
        return draw(rng, record, (self.denoiser,), self.layout, self.symbols, self.separator)

    def init(self, key, batch):
        return Seq2Seq(self.model).init(key, batch["source"], batch["tokens"])["params"]

    def weights(self, batch):
        return {"loss": batch["weights"].sum()}

    def loss(self, params, batch, memory, keys_B):
        h_BTD, head = read(self.model, params, batch, keys_B)
        return target_sums(h_BTD, head, batch, self.z_loss, self.smoothing, self.chunk), memory

    def predict(self, params, batch):
        return guess(*read(self.model, params, batch, None))

    def show(self, tokenizer, example, found=None):
        return show(tokenizer, example, found, self.sentinels)

    def flops(self):
        return row_flops(self.model, self.layout)


def sentinel_names(number: int) -> tuple[str, ...]:
    """Name the first sentinels as T5's vocabulary does."""
    return tuple(f"<extra_id_{k}>" for k in range(number))


def read(model: Transformer | EncoderDecoder, params: Any, batch: Mapping, keys_B: jax.Array | None):
    """Return the states (B, T, D) at the targets and the head."""
    variables = {"params": params}
    places = {"positions_BT": batch["positions"], "segments_BT": batch["segments"], "keys_B": keys_B}
    if isinstance(model, Transformer):
        h_BTD, _ = Model(model).apply(variables, batch["tokens"], prefix_BT=batch["prefix"], **places)
        return h_BTD, Model(model).apply(variables, method="head")
    places |= {f"source_{name}_BS": batch[f"source_{name}"] for name in ("positions", "segments")}
    h_BTD = Seq2Seq(model).apply(variables, batch["source"], batch["tokens"], **places)
    return h_BTD, Seq2Seq(model).apply(variables, method="head")


def target_sums(h_BTD: jax.Array, head: Head, batch: Mapping, z_loss: float, smoothing: float, chunk: int) -> Sums:
    """Sum cross-entropy and hits over the targets; `smoothing` e gives each wrong token e / (V - 1), as in T5X.

    The entropy of the smoothed targets is taken off, so that a perfect network has a loss of 0.
    """
    count, vocab = batch["weights"].sum(), head.vocab
    # e / (V - 1) for all but the target is e' / V for all with e' = e V / (V - 1).
    spread = smoothing * vocab / (vocab - 1)
    extras = {"z_loss": z_loss, "smoothing": spread, "chunk": chunk}
    sums = cross_entropy(h_BTD, head, batch["targets"], batch["weights"], **extras)
    entropy = 0.0
    if smoothing:
        entropy = -(1 - smoothing) * math.log(1 - smoothing) - smoothing * math.log(smoothing / (vocab - 1))
    result = {"loss": (sums["total"] - entropy * count, count), "accuracy": (sums["hits"], count)}
    if z_loss or smoothing:
        result["nll"] = sums["nll"], count
    if z_loss:
        result["z"] = sums["z"], count
    return result


def guess(h_BTD: jax.Array, head: Head) -> dict[str, jax.Array]:
    """Return the likeliest token at each place, every one given the true tokens before it; a row at a time."""
    return {"guess": jax.lax.map(lambda h_TD: head.logits(h_TD).argmax(-1).astype("int32"), h_BTD)}


def show(tokenizer: Any, example: Example, found: Example | None, sentinels: tuple[int, ...]) -> str:
    """Write each document of a row: the text, what is read, what is asked for and, if given, what is guessed."""
    lines = []
    for number in range(1, int(example["segments"].max(initial=0)) + 1):
        mine = example["segments"] == number
        asked = mine & (example["weights"] > 0)
        if "source" in example:
            inputs = example["source"][example["source_segments"] == number]
        else:
            inputs = example["tokens"][mine & example["prefix"]]
        text = tokenizer.decode(restored(inputs, example["targets"][asked], sentinels))
        parts = {"reads": inputs, "writes": example["targets"][asked]}
        parts |= {} if found is None else {"guesses": found["guess"][asked]}
        lines += [f"{'text':<8}{text!r}"]
        lines += [f"{name:<8}{tokenizer.decode(ids, special=True)!r}" for name, ids in parts.items()]
    return "\n".join(lines) or "an empty row"


def row_flops(model: Transformer | EncoderDecoder, layout: Layout) -> float:
    """Count the operations of a training step on one row; in a decoder, attention to the source counts as well."""
    if isinstance(model, Transformer):
        return layout.length * train_flops(model, layout.length)
    source, target, d = layout.inputs, layout.targets, model.decoder
    encoder = source * train_flops(dataclasses.replace(model.encoder, vocab=0), source)
    matrices = 2 * d.width * d.head_size * (d.heads * target + d.kv * source)
    scores = 2 * d.heads * d.head_size * source * target
    return encoder + target * train_flops(d, target) + 6 * d.depth * (matrices + scores)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/t5_nano.py")
