"""Multi-task fine-tuning of one network; each step is of one task, which has its own examples (Liu et al. 2019).

python -m lm.objectives.multitask [--config=configs/tasks_nano.py]
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import jax
import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.rows.examples import Examples, Parted
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check
from lm.fields import derived
from lm.objectives.base import Batch, Example, Objective, Sums
from lm.objectives.finetune import network
from lm.objectives.mixture import Part, Parts


@dataclass(frozen=True, kw_only=True)
class Tasks(Parts, Objective):
    """Fine-tune one network for several tasks; each keeps its head and its metrics, named `part/metric`.

    Part k learns from source k of `data.source`, a `Mixture` of labelled examples, whose weights (or numbers of examples,
    and `temperature`) are the shares of the steps. All rows of a step belong to one part, which alone is computed. A
    part's `weight` is the coefficient of its loss.

    Each source has its own held-out examples; every part is evaluated as if it were alone, and the loss is the mean over
    the parts by share and weight.
    """

    paper: ClassVar[str] = "Liu et al. 2019 (MT-DNN), algorithm 1; Arivazhagan et al. 2019 (temperature)"
    holds: ClassVar[str] = "the arrays of every part, as part/name, zero but for one part's; part (B,), its number"
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
            # Compared without vocabulary heads, which fine-tuning drops: the parts share the rest.
            check(
                network.bare(objective.model) == network.bare(self.model),
                f"part '{part.name}' has another network than '{self.parts[0].name}'{difference(objective.model, self.model)}: "
                "give all parts the same model",
            )

    # -- as its parts --------------------------------------------------------------------------------------------------

    @property
    def portions(self) -> tuple[float, ...]:
        """Return the parts' shares of the steps; equal before `study`."""
        return self.shares or (1 / len(self.parts),) * len(self.parts)

    @property
    def records(self) -> Parted:
        return Parted(parts=tuple(part.objective.records for part in self.parts), shares=self.portions)

    @property
    def scales(self) -> Mapping[str, float]:
        return {f"{p.name}/{k}": p.weight * s for p in self.parts for k, s in p.objective.scales.items()}

    def of(self, parts: tuple[Part, ...], shares: tuple[float, ...] | None = None) -> Self:
        """Copy with other parts."""
        return dataclasses.replace(self, parts=parts, shares=shares or self.shares)

    def measured(self) -> Self:
        """Weight the losses by share as well, so that their mean is the expected training loss."""
        return self.of(
            tuple(
                dataclasses.replace(part, objective=part.objective.measured(), weight=part.weight * share)
                for part, share in zip(self.parts, self.portions)
            )
        )

    def study(self, corpus: Corpus) -> Self:
        """Let each part study its own source; raises UserError where parts and sources do not match."""
        network.examples_of(corpus)  # refuses running text
        check(
            len(corpus.train) == len(self.parts),
            f"{len(self.parts)} parts and {len(corpus.train)} source(s): data.source is a Mixture with one source a part, in "
            "the parts' order",
        )
        parts = []
        for k, part in enumerate(self.parts):
            # An empty held-out side is an error only where other parts have one: a run may do without any.
            held_out = corpus.validation.of(k)
            check(
                len(held_out) or not len(corpus.validation),
                f"part '{part.name}' has no held-out example: let data.validation be a share, or a Mixture with one source a "
                "part",
            )
            # Its own source alone, so that labels and statistics are those of the task.
            own = dataclasses.replace(corpus, train=corpus.train[k : k + 1], validation=held_out)
            parts.append(dataclasses.replace(part, objective=part.objective.study(own)))
        return self.of(tuple(parts), tuple(share for share, _ in corpus.train))

    # -- one part a batch ----------------------------------------------------------------------------------------------

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        part = self.parts[record["part"]]
        return {**part.named(part.objective.corrupt(rng, record)), "part": np.int32(record["part"])}

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        return self.alone(number(batch), lambda part: part.loss(params, batch, keys_B)), memory

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array] | None:
        return self.alone(number(batch), lambda part: part.predict(params, batch)) or None

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        return self.parts[int(example["part"])].show(tokenizer, example, found)

    def flops(self) -> float:
        return sum(share * part.objective.flops() for part, share in zip(self.parts, self.portions))


def number(batch: Batch) -> jax.Array:
    """Return the number of the rows' part; padding rows of a batch have 0."""
    return batch["part"].max()


def difference(model: Any, first: Any) -> str:
    """Return the first field in which a network differs from that of the first part, and both values, for the error."""
    if type(model) is not type(first):
        return f" ({type(model).__name__}, {type(first).__name__})"
    pairs = ((field.name, getattr(model, field.name), getattr(first, field.name)) for field in fields(first))
    return next((f" ({name} {a}, {b})" for name, a, b in pairs if a != b and not dataclasses.is_dataclass(a)), "")


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/tasks_nano.py")
