"""How alike two texts are, as the cosine of their vectors: sentence embeddings learnt from scores (Reimers & Gurevych 2019).

    python -m lm.objectives.rank [--config=configs/rank_nano.py]
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np

from lm.data.labelled.check import encoded, number_of, refuse_empties
from lm.data.rows.templates import Laid
from lm.data.types import Example
from lm.errors import check, check_choices
from lm.objectives.base import Answers, Objective
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Rows, Stacks


@dataclass(frozen=True, kw_only=True)
class Rank(Tuned, Objective):
    """Bring the cosine of both texts' vectors to their score: the squared error of cosine and score / `top`.

    Each of the two `fields` is read by itself; its vector is the `pool` of its states. `top` is the highest score (0: of
    the training examples).
    """

    paper: ClassVar[str] = "Reimers & Gurevych 2019 (Sentence-BERT)"
    holds: ClassVar[str] = "tokens types segments positions (B, T); places (B, P, 2); targets weights (B, P)"

    model: Stacks
    fields: tuple[str, str] = ("sentence1", "sentence2")
    label: str = "score"
    top: float = 0.0
    pool: Literal["mean", "first", "last"] = "mean"
    rows: Rows = Rows()

    def __post_init__(self):
        check_choices(self)
        check(len(self.fields) == 2, f"fields={self.fields}: two texts are compared")
        check(isinstance(self.model, Stacks), "both texts lie in one row, all of which XLNet sees: take another network")
        check(0 <= self.top < float("inf"), f"top={self.top} must be positive, or 0 to take the highest score")
        network.check_rows(self.model, dataclasses.replace(self.rows, row=0))

    # -- host ----------------------------------------------------------------------------------------------------------

    @property
    def row(self) -> int:
        return self.rows.row or 2 * network.limit(self.model, self.rows)

    def study(self, corpus):
        """Find the highest score; refuse empty texts."""
        examples = network.examples_of(corpus)
        refuse_empties([*examples, *corpus.validation.examples], *self.fields)
        scores = [self.score(example) for example in [*examples, *corpus.validation.examples]]
        top = self.top or max(scores[: len(examples)])
        check(top > 0, f"no {self.label!r} above 0: nothing to bring together")
        rows = self.rows if self.rows.row else dataclasses.replace(self.rows, row=self.row)
        return dataclasses.replace(self, top=float(top), rows=rows)

    def score(self, example: Example) -> float:
        return number_of(example, self.label)

    def lay(self, example: Example) -> list[Laid]:
        longest = network.limit(self.model, self.rows)
        return [self.frame.join([encoded(self.frame, example, field)], longest) for field in self.fields]

    def sizes(self, example: Example) -> list[tuple[int, int]]:
        return [(sum(len(one.tokens) for one in self.lay(example)), 1)]

    def corrupt(self, rng, record):
        examples, room = [example for example, _ in record["examples"]], record["room"]
        laid = [one for example in examples for one in self.lay(example)]
        row, begins = network.lay_row(laid, self.model, self.frame, self.row)
        row |= {"places": np.zeros((room, 2), np.int32)}
        row |= {"targets": np.zeros(room, np.float32), "weights": np.zeros(room, np.float32)}
        edges = begins[1:] - 1 if self.pool == "last" else begins[:-1]
        count = len(examples)
        row["places"][:count] = edges.reshape(-1, 2)
        row["targets"][:count] = [self.score(example) / self.top for example in examples]
        row["weights"][:count] = 1
        return row

    # -- device --------------------------------------------------------------------------------------------------------

    def init(self, key, batch):
        return network.draw(self.model, key, self.rows)

    def cosines(self, params, batch, keys_B=None):
        """Compare both texts of each example: float32 (B, P)."""
        h_BTD = network.states(self.model, params, batch, keys_B, self.rows.causal)
        places = batch["places"]
        flat = {**batch, "places": places.reshape(len(places), -1)}
        z_BP2D = network.pooled(h_BTD, flat, self.pool).astype(jnp.float32).reshape(*places.shape, -1)
        squares_BP2 = jnp.sum(z_BP2D**2, -1)
        return jnp.prod(z_BP2D, 2).sum(-1) / jnp.sqrt(jnp.maximum(squares_BP2.prod(-1), 1e-16))

    def loss(self, params, batch, memory, keys_B):
        error_BP = self.cosines(params, batch, keys_B) - batch["targets"]
        weights_BP = batch["weights"]
        count = weights_BP.sum()
        total, off = (jnp.sum(x * weights_BP) for x in (error_BP**2, jnp.abs(error_BP)))
        return {"loss": (total, count), "error": (off, count), "filled": network.filled(batch)}, memory

    def predict(self, params, batch):
        """Give the cosine of each pair (B, P)."""
        return {"cosine": self.cosines(params, batch)}

    # -- for people ----------------------------------------------------------------------------------------------------

    @property
    def answers(self):
        return Answers("numbers", "ranker", tuple(self.fields))

    def placeholder(self, example):
        return {self.label: 0}

    def outcomes(self, record, found) -> list[dict[str, Any]]:
        """Say of each example of a record how alike its texts are."""
        return [
            {"where": example.where, "gold": self.score(example), "guess": float(found["cosine"][k]) * self.top}
            for k, (example, _) in enumerate(record["examples"])
        ]

    def show(self, tokenizer, example, found=None):
        texts, lines = network.texts_of(tokenizer, example), []
        for k in np.flatnonzero(example["weights"]):
            guess = "" if found is None else f", guess {found['cosine'][k]:.2f}"
            lines += [f"first   {texts[2 * k]}", f"second  {texts[2 * k + 1]}", f"alike   {example['targets'][k]:.2f}{guess}"]
        return "\n".join(lines) or network.EMPTY


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/rank_nano.py")
