"""Semantic similarity as the cosine of two sentence embeddings (Sentence-BERT).

python -m lm.objectives.rank [--config=configs/rank_nano.py]
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.labelled.check import encoded, number_of, refuse_empties
from lm.data.rows.templates import Laid
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example
from lm.errors import check, check_choices
from lm.objectives.base import Answers, Batch, Objective, Scored, Sums
from lm.objectives.base import Example as Row
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Rows, Stacks


@dataclass(frozen=True, kw_only=True)
class Rank(Tuned, Objective):
    """Squared error between the cosine of two texts' embeddings and their gold score / `top`.

    Each of the two `fields` is encoded by itself; its embedding is the `pool` of its states. `top`: the highest score
    (0: that of the training examples).
    """

    paper: ClassVar[str] = "Reimers & Gurevych 2019 (Sentence-BERT)"
    holds: ClassVar[str] = "tokens types segments positions (B, T); places (B, P, 2); targets weights (B, P)"

    model: Stacks
    fields: tuple[str, str] = ("sentence1", "sentence2")
    label: str = "score"
    top: float = 0.0
    pool: Literal["mean", "first", "last"] = "mean"
    rows: Rows = Rows()

    def __post_init__(self) -> None:
        check_choices(self)
        check(len(self.fields) == 2, f"fields={self.fields}: two texts are compared")
        check(isinstance(self.model, Stacks), "both texts lie in one row, all of which XLNet sees: take another network")
        check(0 <= self.top < float("inf"), f"top={self.top} must be positive, or 0 to take the highest score")
        network.check_rows(self.model, dataclasses.replace(self.rows, row=0))

    # -- host ----------------------------------------------------------------------------------------------------------

    @property
    def texts(self) -> int:
        return 2

    def learn(self, training: Sequence[Example], held_out: Sequence[Example]) -> Self:
        """Set the highest score."""
        top = self.top or max(map(self.score, training))
        check(top > 0, f"no {self.label!r} above 0: nothing to bring together")
        return dataclasses.replace(self, top=float(top))

    def check_example(self, example: Example) -> None:
        refuse_empties([example], *self.fields)
        self.score(example)

    def choose_row(self, corpus: Corpus) -> int:
        # Both texts are truncated to `limit`, and a row has twice that: no example can be too long.
        return self.row

    def score(self, example: Example) -> float:
        return number_of(example, self.label)

    def lay(self, example: Example) -> list[Laid]:
        return [self.frame.join([encoded(self.frame, example, field)], self.limit) for field in self.fields]

    def target(self, example: Example) -> tuple[np.float32, float]:
        return np.float32(self.score(example) / self.top), 1.0

    # -- device --------------------------------------------------------------------------------------------------------

    def scored(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> Scored:
        """Score each pair by its cosine; the state is both embeddings, one behind the other."""
        shape = batch["places"].shape
        z_BP2D = self.pooled(params, batch, keys_B).astype(jnp.float32).reshape(*shape, -1)
        # The product is bounded before its root, whose gradient at 0 is infinite; 1e-16 is 1e-8 of the norms (torch).
        squares_BP2 = jnp.sum(z_BP2D**2, -1)
        cosine_BP = jnp.prod(z_BP2D, 2).sum(-1) / jnp.sqrt(jnp.maximum(squares_BP2.prod(-1), 1e-16))
        return Scored(cosine_BP[..., None], z_BP2D.reshape(*shape[:2], -1))

    def cosines(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> jax.Array:
        """Return the cosine of each pair, float32 (B, P)."""
        return self.scored(params, batch, keys_B).scores_BPC[..., 0]

    def terms(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
        error_BP = self.cosines(params, batch, keys_B) - batch["targets"]
        weights_BP = batch["weights"]
        count = weights_BP.sum()
        squared, absolute = (jnp.sum(x * weights_BP) for x in (error_BP**2, jnp.abs(error_BP)))
        return {"loss": (squared, count), "error": (absolute, count)}

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return the "cosine" of each pair (B, P)."""
        return {"cosine": self.cosines(params, batch)}

    # -- after training ------------------------------------------------------------------------------------------------

    @property
    def answers(self) -> Answers:
        return Answers("numbers", "ranker", tuple(self.fields))

    def placeholder(self, example: Example) -> dict[str, Any]:
        return {self.label: 0}

    def outcome(self, example: Example, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {"gold": self.score(example), "guess": float(outputs["cosine"]) * self.top}

    def lines(self, tokenizer: Tokenizer, row: Row, outputs: Row | None) -> list[str]:
        texts, lines = network.texts_of(tokenizer, row), []
        for k in np.flatnonzero(row["weights"]):
            guess = "" if outputs is None else f", guess {outputs['cosine'][k]:.2f}"
            lines += [f"first   {texts[2 * k]}", f"second  {texts[2 * k + 1]}", f"alike   {row['targets'][k]:.2f}{guess}"]
        return lines


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/rank_nano.py")
