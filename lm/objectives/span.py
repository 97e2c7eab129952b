"""Span corruption: T5 and T5.1.1 (Raffel et al. 2020; Shazeer 2020).

    python -m lm.objectives.span [--config=configs/t5_nano.py]
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from lm.corruption.layouts import Sides, Symbols, draw, restored
from lm.corruption.spans import Denoiser
from lm.data.rows.prompts import answered
from lm.data.rows.records import Windows
from lm.errors import check, check_range
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.objectives.base import Batch, Example, Objective, Sums, fit
from lm.objectives.rows import guess, read, row_flops, target_sums, text_accuracy


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
    writes: ClassVar[str] = "answer"

    model: EncoderDecoder
    noise: Literal["spans", "iid"] = "spans"
    rate: float = 0.15
    mean: float = 3.0
    roll: bool = False
    targets: int = 0  # length of the decoder's rows, 0: what one full stretch of text gives
    z_loss: float = 0.0
    smoothing: float = 0.0
    chunk: int = 0
    template: bool = False  # prompts are encoded as the tokenizer's own files say (published models)
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

    def resolve(self, tokenizer):
        pad, end, *sentinels = map(tokenizer.special_id, self.special)
        found = {"pad": pad, "end": end, "sentinels": tuple(sentinels), "separator": tokenizer.separator}
        return dataclasses.replace(self, model=fit(self.model, tokenizer), **found)

    def corrupt(self, rng, record):
        return draw(rng, record, (self.denoiser,), self.layout, self.symbols, self.separator)

    def prompt(self, tokenizer, text):
        ends = {"start": self.pad, "begin": (), "end": [self.end]}
        return answered(tokenizer, text, template=self.template, **ends)

    def stops(self, tokenizer):
        return (self.end,)

    def init(self, key, batch):
        return Seq2Seq(self.model).init(key, batch["source"], batch["tokens"])["params"]

    def loss(self, params, batch, memory, keys_B):
        return denoised(self, params, batch, keys_B), memory

    def predict(self, params, batch):
        return guess(*read(self.model, params, batch, None))

    def show(self, tokenizer, example, found=None):
        return show(tokenizer, example, found, self.sentinels)

    def flops(self):
        return row_flops(self.model, *self.layout.room)


def denoised(objective: Any, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
    """Sum the loss of a denoiser's targets, and in an evaluation the hits among those that are text."""
    h_BTD, head = read(objective.model, params, batch, keys_B)
    extras = objective.z_loss, objective.smoothing, objective.chunk
    sums = target_sums(h_BTD, head, batch, *extras, from_zero=True)
    if keys_B is None and objective.sentinels:
        sums |= text_accuracy(h_BTD, head, batch, (*objective.sentinels, objective.end))
    return sums


def sentinel_names(number: int) -> tuple[str, ...]:
    """Name the first sentinels as T5's vocabulary does."""
    return tuple(f"<extra_id_{k}>" for k in range(number))


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


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/t5_nano.py")
