"""Classification heads of published models: one vector of each sequence to the scores of labels."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.models.heads import Pooler
from lm.models.layers import Linear, dropout, fold

Inner = Literal["pooler", "summary", "dense", "none"]
ACTIVATIONS = {"tanh": jnp.tanh, "gelu": lambda x: jax.nn.gelu(x, approximate=False), "relu": jax.nn.relu}


class Dense(nn.Module):
    """Dropout, dense layer, activation, dropout, scores (RoBERTa, ELECTRA, BART)."""

    width: int
    outputs: int
    activation: str
    rate: float
    std: float
    truncate: bool

    @nn.compact
    def __call__(self, x_BPD: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        init: dict[str, Any] = {"std": self.std, "truncate": self.truncate}
        # Numbered, or both would drop the same entries.
        x_BPD = dropout(x_BPD, self.rate, keys_B, 0)
        x_BPD = Linear((self.width, self.width), ("embed", None), name="dense", **init)(x_BPD)
        x_BPD = dropout(ACTIVATIONS[self.activation](x_BPD), self.rate, keys_B, 1)
        last = Linear((self.width, self.outputs), ("embed", None), name="out", **init)
        return last(x_BPD.astype(jnp.float32))


class Scores(nn.Module):
    """States of sequences (B, P, D) to float32 scores (B, P, outputs).

    `inner`: "pooler" BERT's dense layer and tanh, which pre-training may have trained; "summary" the same in XLNet;
    "dense" a layer of the classifier; "none" only the last linear layer, which every kind has, with `bias` or not.
    `rate`: dropout before each of them.
    """

    width: int
    outputs: int
    inner: Inner = "none"
    activation: str = "tanh"
    rate: float = 0.0
    bias: bool = True
    std: float = 0.02
    truncate: bool = False

    @nn.compact
    def __call__(self, x_BPD: jax.Array, keys_B: jax.Array | None = None) -> jax.Array:
        keys_B, lead = fold(keys_B, 1000), x_BPD.shape[:-1]  # beyond the layers' numbers
        init: dict[str, Any] = {"std": self.std, "truncate": self.truncate}
        if self.inner == "dense":
            dense = Dense(self.width, self.outputs, self.activation, self.rate, **init, name="classifier")
            return dense(x_BPD, keys_B)
        if self.inner == "pooler":
            x_BPD = Pooler(self.width, name="pooler", **init)(x_BPD.reshape(-1, 1, self.width)).reshape(*lead, -1)
        elif self.inner == "summary":
            x_BPD = Linear((self.width, self.width), ("embed", None), name="summary", **init)(x_BPD)
            x_BPD = ACTIVATIONS[self.activation](x_BPD)
        x_BPD = dropout(x_BPD, self.rate, keys_B, 1)
        last = Linear((self.width, self.outputs), ("embed", None), bias=self.bias, name="classifier", **init)
        return last(x_BPD.astype(jnp.float32))  # float32: a regression target can lie between two bfloat16 numbers
