"""Put the tokens of a text back in order: a whole objective in one file, as the README's example."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lm.data.rows.records import Windows
from lm.models.heads import cross_entropy
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Objective


@dataclass(frozen=True, kw_only=True)
class Shuffled(Objective):
    """Move tokens by at most `distance` positions within their document; predict the original tokens."""

    paper: ClassVar[str] = "Lample et al. 2018, 3.2.1 (the noise)"
    holds: ClassVar[str] = "tokens targets weights segments positions (B, T)"

    model: Transformer
    distance: int = 3

    @property
    def records(self):
        return Windows(length=self.model.context, stride=self.model.context)

    def corrupt(self, rng, record):
        place = np.arange(self.model.context) + rng.uniform(0, self.distance + 1, self.model.context)
        document = np.cumsum(record["positions"] == 0)
        tokens = record["tokens"][np.lexsort((place, document))]
        weights = record["weights"] * (tokens != record["tokens"])
        rest = {name: record[name] for name in ("segments", "positions")}
        return {"tokens": tokens, "targets": record["tokens"], "weights": weights, **rest}

    def init(self, key, batch):
        return Model(self.model).init(key, batch["tokens"])["params"]

    def loss(self, params, batch, memory, keys_B):
        model, text = Model(self.model), (batch["tokens"], batch["positions"], batch["segments"])
        h_BTD, _ = model.apply({"params": params}, *text, keys_B=keys_B, causal=False)
        head = model.apply({"params": params}, method="head")
        sums, count = cross_entropy(h_BTD, head, batch["targets"], batch["weights"]), batch["weights"].sum()
        return {"loss": (sums["total"], count), "accuracy": (sums["hits"], count)}, memory

    def show(self, tokenizer, example, found=None):
        return "\n".join(tokenizer.decode(example[name], special=True) for name in ("tokens", "targets"))
