"""A target text from a source text: the original Transformer (Vaswani et al. 2017).

    python -m lm.objectives.seq2seq [--config=configs/translate_nano.py]
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lm.data.rows.prompts import answered
from lm.data.rows.records import Documents
from lm.errors import check_range
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.objectives.base import Objective, fit
from lm.objectives.rows import HOLDS, forced, guess, read, row_flops, show_pairs, target_sums


@dataclass(frozen=True, kw_only=True)
class Seq2seq(Objective):
    """Cross-entropy of each token of the target, given the source and the target's tokens before it.

    `smoothing` e gives every wrong token e / (V - 1) and the right one 1 - e (Szegedy et al. 2016; fairseq's form).
    With `pack` a row holds as many pairs as fit, which see nothing of each other; without, one.
    """

    paper: ClassVar[str] = "Vaswani et al. 2017 (the Transformer)"
    holds: ClassVar[str] = HOLDS
    writes: ClassVar[str] = "answer"

    model: EncoderDecoder
    smoothing: float = 0.0
    pack: bool = True
    chunk: int = 0
    template: bool = False  # prompts are encoded as the tokenizer's own files say (published models)
    start: int | None = None  # the id that begins what the decoder reads (in Marian's models that of padding); None: end
    end: int | None = None  # the id that ends a source and a target; from `resolve`

    def __post_init__(self):
        check_range(self, 0, 1, "smoothing")
        check_range(self, 0, float("inf"), "chunk")

    @property
    def special(self):
        return ("[SEP]",)

    @property
    def limits(self) -> tuple[int, int]:
        """Lengths of a row for the encoder and for the decoder."""
        return self.model.encoder.context, self.model.decoder.context

    @property
    def records(self):
        return Documents(fields=2, limit=self.limits, pack=self.pack)

    def resolve(self, tokenizer):
        return dataclasses.replace(self, model=fit(self.model, tokenizer), end=tokenizer.special_id("[SEP]"))

    def corrupt(self, rng, record):
        return forced(*closed(record["documents"], self.limits, self.end), self.limits, self.start)

    def prompt(self, tokenizer, text):
        ends = {"start": self.end if self.start is None else self.start, "begin": (), "end": [self.end]}
        return answered(tokenizer, text, template=self.template, **ends)

    def stops(self, tokenizer):
        return (self.end,)

    def init(self, key, batch):
        return Seq2Seq(self.model).init(key, batch["source"], batch["tokens"])["params"]

    def loss(self, params, batch, memory, keys_B):
        found = read(self.model, params, batch, keys_B)
        return target_sums(*found, batch, smoothing=self.smoothing, chunk=self.chunk), memory

    def predict(self, params, batch):
        return guess(*read(self.model, params, batch))

    def show(self, tokenizer, example, found=None):
        return show_pairs(tokenizer, example, found)

    def flops(self):
        return row_flops(self.model, *self.limits)


def closed(documents, limits: tuple[int, int], end: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Give the sources and the targets of pairs, each with the end token behind and cut to what one row can hold."""
    ending = np.array([end], np.int32)
    return tuple(
        [np.concatenate([fields[k][: limit - 1], ending], dtype=np.int32) for fields in documents]
        for k, limit in enumerate(limits)
    )


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/translate_nano.py")
