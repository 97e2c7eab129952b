"""What the objectives of fine-tuning are alike in: labelled examples in rows, read by a pre-trained network."""

import dataclasses
from typing import Any

from lm.data.rows.examples import Examples
from lm.data.rows.templates import Frame
from lm.data.types import Example
from lm.fields import derived
from lm.objectives.base import fit
from lm.objectives.finetune import network


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """Base of fine-tuning objectives: labelled examples in rows that a pre-trained network reads.

    A subclass has the fields `model: Trunk` and `rows: Rows`, and declares in `sizes` how an example is laid out.
    """

    frame: Frame | None = derived()

    def sizes(self, example: Example) -> list[tuple[Any, int]]:
        """Give the parts of an example, as (tokens, places asked for)."""
        raise NotImplementedError

    @property
    def special(self):
        return network.special(self.model, self.rows)

    @property
    def records(self):
        return Examples(length=self.row, sizes=self.sizes, pack=self.rows.pack)

    @property
    def row(self) -> int:
        """Tokens of a row."""
        return self.rows.row or network.limit(self.model, self.rows)

    def resolve(self, tokenizer):
        frame = network.frame(self.model, self.rows, tokenizer)
        return dataclasses.replace(self, model=fit(self.model, tokenizer), frame=frame)

    def flops(self):
        return network.step_flops(self.model, self.row)
