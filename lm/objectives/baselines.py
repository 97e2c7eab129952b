"""A recurrent baseline: next-token prediction by an LSTM on the rows of the causal objective.

    python -m lm.objectives.baselines [--config=configs/lstm_nano.py]

The n-gram baseline needs no network: `python -m lm.evaluation.kneser_ney`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.prompts import Prompt, continued
from lm.data.rows.records import Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check_range
from lm.models.heads import cross_entropy
from lm.models.lstm import LSTM, LSTMModel, State
from lm.objectives.base import Batch, Example, Objective, Sums
from lm.objectives.causal import Causal


@dataclass(frozen=True, kw_only=True)
class LSTMLanguageModel(Objective):
    """Cross-entropy of each token given the tokens before it in its document.

    `carry` reads the corpus in order, each row starting in the final state of the same row of the previous batch
    (truncated back-propagation through time, Mikolov et al. 2010); otherwise rows are shuffled and start at zero.
    """

    paper: ClassVar[str] = "Hochreiter & Schmidhuber 1997; Zaremba et al. 2014 (LSTM)"
    holds: ClassVar[str] = Causal.holds
    writes: ClassVar[str] = "text"
    nats: ClassVar[str] = "loss"

    model: LSTM
    carry: bool = False
    chunk: int = 0
    separator: int | None = None  # end-of-document id, set by `resolve`

    def __post_init__(self):
        check_range(self, 0, float("inf"), "chunk")

    @functools.cached_property
    def causal(self) -> Causal:
        """Return the causal objective, whose rows and targets these are."""
        return Causal(model=self.model, separator=self.separator)  # type: ignore[arg-type]  # only its context is read

    @property
    def records(self) -> Windows:
        length = self.model.context
        return Windows(length=length + 1, stride=length, order="reading" if self.carry else "shuffled")

    @property
    def scales(self) -> Mapping[str, float]:
        return self.causal.scales

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        return self.causal.corrupt(rng, record)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return self.causal.weights(batch)

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        return self.causal.show(tokenizer, example, found)

    def prompt(self, tokenizer: Tokenizer, text: str) -> Prompt:
        return continued(tokenizer, text)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        return LSTMModel(self.model).init(key, batch["tokens"])["params"]

    def initial_memory(self, rows: int) -> Any:
        if not self.carry:
            return None
        shape = (rows, self.model.depth, self.model.width)
        return State(cell_BD=jnp.zeros(shape), hidden_BD=jnp.zeros(shape))

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        model, variables = LSTMModel(self.model), {"params": params}
        state = None if memory is None else self.enter(memory, batch["tokens"])
        h_BTD, state = model.apply(variables, batch["tokens"], batch["segments"], state, keys_B=keys_B)
        head = model.apply(variables, method="head")
        sums = cross_entropy(h_BTD, head, batch["targets"], batch["weights"], chunk=self.chunk)
        count = batch["weights"].sum()
        # The network's state has layers first, a memory rows first, to be sharded like the batch.
        memory = None if memory is None else State(state.cell_BD.swapaxes(0, 1), state.hidden_BD.swapaxes(0, 1))
        return {"loss": (sums["total"], count), "accuracy": (sums["hits"], count)}, memory

    def enter(self, memory: State, tokens_BT: jax.Array) -> State:
        """Return the initial state, layers first: zero where a row starts with the separator, thus with a new document."""
        inside_B = jnp.ones(len(tokens_BT), bool) if self.separator is None else tokens_BT[:, 0] != self.separator
        cell, hidden = (jnp.where(inside_B[:, None, None], x, 0).swapaxes(0, 1) for x in (memory.cell_BD, memory.hidden_BD))
        return State(cell_BD=cell, hidden_BD=hidden)

    def flops(self) -> float:
        return self.records.tokens * self.model.flops()


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/lstm_nano.py")
