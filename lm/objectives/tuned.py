"""What the objectives of fine-tuning are alike in: labelled examples in rows, read by a pre-trained network."""

import dataclasses
from typing import Any

from lm.data.examples import Example
from lm.data.framing import Frame
from lm.data.packed import Examples
from lm.objectives import trunk
from lm.objectives.base import fit
from lm.objectives.trunk import Rows, Trunk


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
        return trunk.special(self.model, self.rows)

    @property
    def records(self):
        return Examples(length=self.row, sizes=self.sizes, pack=self.rows.pack)

    @property
    def row(self) -> int:
        """Tokens of a row."""
        return self.rows.row or trunk.limit(self.model, self.rows)

    def resolve(self, tokenizer):
        found = dataclasses.replace(self, model=fit(self.model, tokenizer))
        return trunk.knowing(found, trunk.frame(self.model, self.rows, tokenizer))

    def flops(self):
        return trunk.step_flops(self.model, self.row)
