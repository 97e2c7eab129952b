"""The LSTM as a language model, on the causal objective's rows and with its targets: a baseline for it.

    python -m lm.objectives.baselines [--config=configs/lstm_nano.py]

The n-gram needs no network: `python -m lm.evaluation.kneser_ney`.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from lm.data.rows.prompts import continued
from lm.data.rows.records import Windows
from lm.errors import check_range
from lm.models.heads import cross_entropy
from lm.models.lstm import LSTM, LSTMModel, State
from lm.objectives.base import Objective
from lm.objectives.causal import Causal


@dataclass(frozen=True, kw_only=True)
class LSTMLanguageModel(Objective):
    """Cross-entropy of each token given those before it in its document.

    `carry` reads the corpus in order, every row going on from the state in which the row of the batch before ended
    (truncated back-propagation, Mikolov et al. 2010); otherwise rows come shuffled and start from nothing, as the
    Transformer's do.
    """

    paper: ClassVar[str] = "Hochreiter & Schmidhuber 1997; Zaremba et al. 2014 (LSTM)"
    holds: ClassVar[str] = Causal.holds
    writes: ClassVar[str] = "text"
    nats: ClassVar[str] = "loss"

    model: LSTM
    carry: bool = False
    chunk: int = 0
    separator: int | None = None  # the tokenizer's end-of-document token, filled in by `resolve`

    def __post_init__(self):
        check_range(self, 0, float("inf"), "chunk")

    @functools.cached_property
    def causal(self) -> Causal:
        """What is asked: only the network and what it remembers are another."""
        return Causal(model=self.model, separator=self.separator)

    @property
    def records(self) -> Windows:
        return dataclasses.replace(self.causal.records, order="reading" if self.carry else "shuffled")

    @property
    def scales(self):
        return self.causal.scales

    def resolve(self, tokenizer):
        found = self.causal.resolve(tokenizer)
        return dataclasses.replace(self, model=found.model, separator=found.separator)

    def corrupt(self, rng, record):
        return self.causal.corrupt(rng, record)

    def weights(self, batch):
        return self.causal.weights(batch)

    def show(self, tokenizer, example, found=None):
        return self.causal.show(tokenizer, example, found)

    def prompt(self, tokenizer, text):
        return continued(tokenizer, text)

    def init(self, key, batch):
        return LSTMModel(self.model).init(key, batch["tokens"])["params"]

    def initial_memory(self, rows):
        if not self.carry:
            return None
        shape = (rows, self.model.depth, self.model.width)
        return State(cell_BD=jnp.zeros(shape), hidden_BD=jnp.zeros(shape))

    def loss(self, params, batch, memory, keys_B):
        model, variables = LSTMModel(self.model), {"params": params}
        state = None if memory is None else self.enter(memory, batch["tokens"])
        h_BTD, state = model.apply(variables, batch["tokens"], batch["segments"], state, keys_B=keys_B)
        head = model.apply(variables, method="head")
        sums = cross_entropy(h_BTD, head, batch["targets"], batch["weights"], chunk=self.chunk)
        count = batch["weights"].sum()
        memory = None if memory is None else State(state.cell_BD.swapaxes(0, 1), state.hidden_BD.swapaxes(0, 1))
        return {"loss": (sums["total"], count), "accuracy": (sums["hits"], count)}, memory

    def enter(self, memory, tokens_BT):
        """Take up the state, layers first; a row that begins with the separator begins a document, from nothing."""
        inside_B = jnp.ones(len(tokens_BT), bool) if self.separator is None else tokens_BT[:, 0] != self.separator
        cell, hidden = (
            jnp.where(inside_B[:, None, None], x, 0).swapaxes(0, 1) for x in (memory.cell_BD, memory.hidden_BD)
        )
        return State(cell_BD=cell, hidden_BD=hidden)

    def flops(self):
        return self.records.tokens * self.model.flops()


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/lstm_nano.py")
