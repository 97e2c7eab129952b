"""Several fine-tuning tasks on one network, each with examples of its own; a step is of one task (Liu et al. 2019).

    python -m lm.objectives.multitask [--config=configs/tasks_nano.py]
"""

import dataclasses
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import numpy as np

from lm.data.rows.examples import Examples, Parted
from lm.errors import UserError, check
from lm.fields import derived
from lm.objectives.base import Objective
from lm.objectives.finetune import network
from lm.objectives.mixture import Part, Parts


@dataclass(frozen=True, kw_only=True)
class Tasks(Parts, Objective):
    """Fine-tune one network for several tasks; each keeps its head and its metrics, named `part/metric`.

    Part k learns from source k of `data.source`, a `Mixture` of labelled examples, whose weights (or numbers of examples,
    and `temperature`) are the shares of the steps. All rows of a step are of one part, and only that is computed. A
    part's `weight` is on the loss of its steps.

    Held-out examples are those of each source; every part is measured as if it were alone, and the loss is the mean over
    the parts by share and weight.
    """

    paper: ClassVar[str] = "Liu et al. 2019 (MT-DNN), algorithm 1; Arivazhagan et al. 2019 (temperature)"
    holds: ClassVar[str] = "the arrays of every part, as part/name, zeros but for one's; part (B,), its number"
    apart: ClassVar[bool] = True

    parts: tuple[Part, ...]
    shares: tuple[float, ...] | None = derived()

    def __post_init__(self):
        super().__post_init__()
        for part in self.parts:
            objective = part.objective
            if not isinstance(objective.records, Examples):
                raise UserError(
                    f"part '{part.name}', {type(objective).__name__}, reads running text: parts of Tasks learn from labelled "
                    "examples (for running text: lm.objectives.mixture.Multitask)"
                )
            check(
                network.bare(objective.model) == network.bare(self.model),
                f"part '{part.name}' has another network than '{self.parts[0].name}'{odd(objective.model, self.model)}: give "
                "all parts the same model",
            )

    # -- as its parts --------------------------------------------------------------------------------------------------

    @property
    def portions(self) -> tuple[float, ...]:
        """Shares of the steps; the same for all parts until the corpus tells."""
        return self.shares or (1 / len(self.parts),) * len(self.parts)

    @property
    def records(self):
        return Parted(parts=tuple(part.objective.records for part in self.parts), shares=self.portions)

    @property
    def scales(self):
        return {f"{p.name}/{k}": p.weight * s for p in self.parts for k, s in p.objective.scales.items()}

    def of(self, parts: tuple[Part, ...], shares: tuple[float, ...] | None = None) -> "Tasks":
        """Copy with other parts."""
        return dataclasses.replace(self, parts=parts, shares=shares or self.shares)

    def measured(self):
        """Weigh losses by share, too: the mean of them is that of training."""
        return self.of(
            tuple(
                dataclasses.replace(part, objective=part.objective.measured(), weight=part.weight * share)
                for part, share in zip(self.parts, self.portions)
            )
        )

    def study(self, corpus):
        """Let each part study its own examples; raise UserError where parts and sources do not fit."""
        network.examples_of(corpus)
        check(
            len(corpus.train) == len(self.parts),
            f"{len(self.parts)} parts and {len(corpus.train)} source(s): data.source is a Mixture with one source a part, in "
            "the parts' order",
        )
        parts = []
        for k, part in enumerate(self.parts):
            held_out = corpus.validation.of(k)
            check(
                len(held_out) or not len(corpus.validation),
                f"part '{part.name}' has no held-out example: let data.validation be a share, or a Mixture with one source a "
                "part",
            )
            own = dataclasses.replace(corpus, train=corpus.train[k : k + 1], validation=held_out)
            parts.append(dataclasses.replace(part, objective=part.objective.study(own)))
        return self.of(tuple(parts), tuple(share for share, _ in corpus.train))

    # -- one part a batch ----------------------------------------------------------------------------------------------

    def corrupt(self, rng, record):
        part = self.parts[record["part"]]
        return {**part.named(part.objective.corrupt(rng, record)), "part": np.int32(record["part"])}

    def loss(self, params, batch, memory, keys_B):
        def run(part):
            return part.named(part.objective.loss(part.params(params), part.of(batch), None, keys_B)[0])

        return self.alone(number(batch), run), memory

    def predict(self, params, batch):
        def run(part):
            return part.named(part.objective.predict(part.params(params), part.of(batch)) or {})

        return self.alone(number(batch), run) or None

    def show(self, tokenizer, example, found=None):
        return self.parts[int(example["part"])].show(tokenizer, example, found)

    def flops(self):
        return sum(share * part.objective.flops() for part, share in zip(self.parts, self.portions))


def number(batch: Any) -> jax.Array:
    """Give the number of the part that the rows are of; rows that fill a batch up have 0."""
    return batch["part"].max()


def odd(theirs: Any, ours: Any) -> str:
    """Name the first field in which two networks differ."""
    if type(theirs) is not type(ours):
        return f" ({type(theirs).__name__}, {type(ours).__name__})"
    pairs = ((field.name, getattr(theirs, field.name), getattr(ours, field.name)) for field in fields(ours))
    return next((f" ({name} {a}, {b})" for name, a, b in pairs if a != b and not dataclasses.is_dataclass(a)), "")


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/tasks_nano.py")
