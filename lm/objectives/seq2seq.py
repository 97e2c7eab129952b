"""Sequence-to-sequence learning: the original Transformer (Vaswani et al. 2017).

python -m lm.objectives.seq2seq [--config=configs/translate_nano.py]
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from lm.data.rows.records import Documents
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check_range
from lm.models.encoder_decoder import EncoderDecoder
from lm.objectives.base import Batch, Example, Objective, Sums, fit
from lm.objectives.rows import SourceTarget, forced, read, target_sums


@dataclass(frozen=True, kw_only=True)
class Seq2seq(SourceTarget, Objective):
    """Cross-entropy of each target token, given the source and the target tokens before it.

    Label `smoothing` e assigns e / (V - 1) to every wrong token and 1 - e to the right one (Szegedy et al. 2016, in
    fairseq's form; Vaswani et al. 2017, 5.4). With `pack` a row holds as many pairs as fit, without attention between
    them; otherwise one.
    """

    paper: ClassVar[str] = "Vaswani et al. 2017 (the Transformer)"

    model: EncoderDecoder
    smoothing: float = 0.0
    pack: bool = True
    chunk: int = 0
    template: bool = False  # prompts are encoded by the tokenizer's template (published models)
    start: int | None = None  # first id that the decoder reads (Marian: padding); None: end
    end: int | None = None  # last id of a source and a target, set by `resolve`

    def __post_init__(self):
        check_range(self, 0, 1, "smoothing")
        check_range(self, 0, float("inf"), "chunk")

    @property
    def special(self) -> tuple[str, ...]:
        return ("[SEP]",)

    @property
    def limits(self) -> tuple[int, int]:
        return self.model.encoder.context, self.model.decoder.context

    @property
    def records(self) -> Documents:
        return Documents(fields=2, limit=self.limits, pack=self.pack)

    def resolve(self, tokenizer: Tokenizer) -> "Seq2seq":
        return dataclasses.replace(self, model=fit(self.model, tokenizer), end=tokenizer.special_id("[SEP]"))

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        return forced(*closed(record["documents"], self.limits, self.end), self.limits, self.start)

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        h_BTD, head = read(self.model, params, batch, keys_B)
        return target_sums(h_BTD, head, batch, smoothing=self.smoothing, chunk=self.chunk), memory


def closed(
    documents: Sequence[Sequence[np.ndarray]], limits: tuple[int, int], end: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the sources and the targets of pairs, each truncated to its limit with the end token behind."""
    # A truncated text ends like a whole one, in training and as a prompt.
    ending = np.array([end], np.int32)
    sources, targets = (
        [np.concatenate([fields[k][: limit - 1], ending], dtype=np.int32) for fields in documents]
        for k, limit in enumerate(limits)
    )
    return sources, targets


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/translate_nano.py")
