"""What the objectives of labelled examples share: how a row is made of them, and what a tokenizer must have and tells."""

import dataclasses
from typing import Any

from lm.data.framing import Frame
from lm.data.packed import Examples
from lm.objectives import trunk
from lm.objectives.base import Objective, fit
from lm.objectives.trunk import Rows, Trunk


class Tuned(Objective):
    """An objective of labelled examples, laid into rows for a network that is tuned; it lays them out and scores them.

    `sizes(example)`: tokens and targets of each of its parts. `frame` is what a tokenizer tells (`knowing`).
    """

    model: Trunk
    rows: Rows
    frame: Frame | None

    @property
    def special(self):
        return trunk.special(self.model, self.rows)

    @property
    def records(self):
        return Examples(length=self.row, sizes=self.sizes, pack=self.rows.pack)

    @property
    def row(self) -> int:
        return self.rows.row or trunk.limit(self.model, self.rows)

    def resolve(self, tokenizer):
        found = dataclasses.replace(self, model=fit(self.model, tokenizer))
        return trunk.knowing(found, trunk.frame(self.model, self.rows, tokenizer))

    def sizes(self, example: Any) -> list[tuple[int, int]]:
        raise NotImplementedError
