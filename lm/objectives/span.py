"""Span corruption: T5 and T5.1.1 (Raffel et al. 2020; Shazeer 2020).

python -m lm.objectives.span [--config=configs/t5_nano.py]
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from lm.corruption.layouts import Sides, Symbols, draw, restored
from lm.corruption.spans import Denoiser
from lm.data.rows.records import Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_range
from lm.models.encoder_decoder import EncoderDecoder
from lm.objectives.base import Batch, Example, Objective, Sums, fit
from lm.objectives.rows import SourceTarget, read, target_sums, text_accuracy


@dataclass(frozen=True, kw_only=True)
class Span(SourceTarget, Objective):
    """Replace spans by sentinels in the encoder's input; the decoder writes each sentinel and its span (3.1.4, 3.3.4).

    `rate` of tokens in spans of `mean` length; `noise="iid"` selects single tokens, `roll` rotates the mask by a random
    offset (neither in the paper's models). The text length is chosen to fill `model.encoder.context`, and the decoder's
    rows have the length of its targets, without padding, with data.packing="windows", where a row is one stretch of the
    stream, as in the paper. With "documents" each document is corrupted on its own, with an end token on both sides and
    without attention to others; their end tokens displace text at the end of the row unless `targets` is larger than
    needed. The published loss has z_loss=1e-4 (T5X); `smoothing` is T5X's, with minimum 0.
    """

    paper: ClassVar[str] = "Raffel et al. 2020, T5; Shazeer 2020 (T5.1.1)"

    model: EncoderDecoder
    noise: Literal["spans", "iid"] = "spans"
    rate: float = 0.15
    mean: float = 3.0
    roll: bool = False
    targets: int = 0  # length of the decoder's rows, 0: that of the targets of a full row
    z_loss: float = 0.0
    smoothing: float = 0.0
    chunk: int = 0
    template: bool = False  # prompts are encoded by the tokenizer's template (published models)
    # Ids, set by `resolve`.
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
        """Return the number of text tokens in a row, before corruption."""
        return self.denoiser.fill(self.model.encoder.context)

    @functools.cached_property
    def layout(self) -> Sides:
        inputs = self.model.encoder.context
        return Sides(inputs, self.targets or self.denoiser.sizes(self.raw).targets + 1)

    @property
    def limits(self) -> tuple[int, ...]:
        return self.layout.room

    @functools.cached_property
    def symbols(self) -> Symbols:
        return Symbols(self.end, self.pad, np.array(self.sentinels, np.int32), {})

    @property
    def records(self) -> Windows:
        return Windows(length=self.raw, stride=self.raw)

    @property
    def special(self) -> tuple[str, ...]:
        return ("[PAD]", "[SEP]", *sentinel_names(self.denoiser.sentinels(self.raw)))

    def resolve(self, tokenizer: Tokenizer) -> "Span":
        pad, end, *sentinels = map(tokenizer.special_id, self.special)
        ids: dict[str, Any] = {"pad": pad, "end": end, "sentinels": tuple(sentinels), "separator": tokenizer.separator}
        return dataclasses.replace(self, model=fit(self.model, tokenizer), **ids)

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        return draw(rng, record, (self.denoiser,), self.layout, self.symbols, self.separator)

    @property
    def first(self) -> int:
        # T5's vocabulary has no <s>: its decoder starts from padding.
        return self.pad

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        return denoised(self, params, batch, keys_B), memory

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        return show_documents(tokenizer, example, found, self.sentinels)


def denoised(objective: Any, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
    """Sum the loss of a denoising objective, and in evaluation the accuracy on text targets alone."""
    h_BTD, head = read(objective.model, params, batch, keys_B)
    extras = objective.z_loss, objective.smoothing, objective.chunk
    sums = target_sums(h_BTD, head, batch, *extras, from_zero=True)
    # In evaluation only: it costs a second pass over the vocabulary.
    if keys_B is None and objective.sentinels:
        sums |= text_accuracy(h_BTD, head, batch, (*objective.sentinels, objective.end))
    return sums


def sentinel_names(number: int) -> tuple[str, ...]:
    """Return the first sentinels' names in T5's vocabulary."""
    return tuple(f"<extra_id_{k}>" for k in range(number))


def show_documents(tokenizer: Tokenizer, example: Example, found: Example | None, sentinels: tuple[int, ...]) -> str:
    """Format each document of a row: text, inputs, targets, and the prediction if there is one."""
    lines = []
    for number in range(1, int(example["segments"].max(initial=0)) + 1):
        own = example["segments"] == number
        counted = own & (example["weights"] > 0)
        if "source" in example:
            inputs = example["source"][example["source_segments"] == number]
        else:
            inputs = example["tokens"][own & example["prefix"]]
        text = tokenizer.decode(restored(inputs, example["targets"][counted], sentinels))
        parts = {"reads": inputs, "writes": example["targets"][counted]}
        parts |= {} if found is None else {"guesses": found["guess"][counted]}
        lines += [f"{'text':<8}{text!r}"]
        lines += [f"{name:<8}{tokenizer.decode(ids, special=True)!r}" for name, ids in parts.items()]
    return "\n".join(lines) or "an empty row"


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/t5_nano.py")
