"""Next-token prediction: GPT (Radford et al. 2018, 2019; Brown et al. 2020).

    python -m lm.objectives.causal [--config=configs/gpt_nano.py]
"""

import dataclasses
from dataclasses import dataclass

from lm.errors import UserError, check_range
from lm.models.heads import cross_entropy
from lm.models.transformer import Model, Transformer


@dataclass(frozen=True, kw_only=True)
class Causal:
    """Cross-entropy of each token given those before it in its document.

    `z_loss` adds that much of log(Z)^2 a token, which keeps the logits from drifting (Chowdhery et al. 2022, 5;
    1e-4 there). `chunk`: tokens a device that go through the vocabulary at once, 0 chooses.
    """

    model: Transformer
    z_loss: float = 0.0
    chunk: int = 0
    separator: int | None = None  # the tokenizer's end-of-document token, filled in by `resolve`

    def __post_init__(self):
        check_range(self, 0, float("inf"), "chunk", "z_loss")

    @property
    def window(self) -> int:
        return self.model.context + 1

    @property
    def stride(self) -> int:
        return self.model.context

    @property
    def scales(self):
        return {"loss": 1.0}

    def resolve(self, tokenizer):
        if self.model.vocab and self.model.vocab < tokenizer.vocab:
            raise UserError(
                f"objective.model.vocab={self.model.vocab} is smaller than the tokenizer's {tokenizer.vocab}; leave it at 0"
            )
        model = dataclasses.replace(self.model, vocab=self.model.vocab or tokenizer.vocab)
        return dataclasses.replace(self, model=model, separator=tokenizer.separator)

    def corrupt(self, rng, record):
        tokens, segments = record["tokens"], record["segments"]
        # The separator that ends a document also begins the next one: the only target across a border.
        inside = (segments[:-1] == segments[1:]) | (tokens[1:] == self.separator)
        return {
            "tokens": tokens[:-1],
            "targets": tokens[1:],
            "weights": record["weights"][1:] * inside,
            "segments": segments[:-1],
            "positions": record["positions"][:-1],
        }

    def init(self, key, batch):
        return Model(self.model).init(key, batch["tokens"])["params"]

    def weights(self, batch):
        return {"loss": batch["weights"].sum()}

    def loss(self, params, batch, memory, keys_B):
        model, variables = Model(self.model), {"params": params}
        h_BTD, _ = model.apply(variables, batch["tokens"], batch["positions"], batch["segments"], keys_B=keys_B)
        head = model.apply(variables, method="head")
        sums = cross_entropy(h_BTD, head, batch["targets"], batch["weights"], z_loss=self.z_loss, chunk=self.chunk)
        count = batch["weights"].sum()
        result = {"loss": (sums["total"], count), "accuracy": (sums["hits"], count)}
        if self.z_loss:
            result |= {"nll": (sums["nll"], count), "z": (sums["z"], count)}
        return result, memory


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/gpt_nano.py")
