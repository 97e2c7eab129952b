"""What the objectives of fine-tuning are alike in: labelled examples in rows, read by a pre-trained network."""

import dataclasses
from typing import Any

from lm.data.rows.examples import Examples
from lm.data.rows.templates import Frame
from lm.data.types import Example
from lm.objectives.base import fit
from lm.objectives.finetune import network
from lm.objectives.finetune.network import Rows, Trunk


class Tuned:
    """A frozen dataclass that inherits this has `model` and `rows` among its fields, and says how examples are laid out."""

    model: Trunk
    rows: Rows
    frame: Frame | None = None  # no field: a tokenizer tells it (`trunk.knowing`), and dataclasses.replace forgets it

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
        found = dataclasses.replace(self, model=fit(self.model, tokenizer))
        return network.knowing(found, network.frame(self.model, self.rows, tokenizer))

    def flops(self):
        return network.step_flops(self.model, self.row)
