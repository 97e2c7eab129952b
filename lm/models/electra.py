"""ELECTRA's two networks (Clark et al. 2020): a small masked-LM generator and a discriminator of replaced tokens.

They share the embeddings of tokens, positions and types, and the norm on their sum, all of the discriminator's width.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.models.attend import Mask
from lm.models.heads import Head, gather
from lm.models.layers import Linear, fold, named
from lm.models.mlp import ACTIVATIONS
from lm.models.model import Inputs, Transform, projection, token_table
from lm.models.stack import Stack
from lm.models.transformer import Transformer


def generator_of(model: Transformer, width: float, depth: float = 1.0) -> Transformer:
    """Scale a discriminator's width and depth to a generator: heads of 64, feed-forward of four times the width."""
    size = round(model.width * width)
    heads = max(1, size // 64)
    return replace(
        model,
        embed=model.embed_size,
        width=size,
        heads=heads if size % heads == 0 else 1,
        kv_heads=0,
        head=0,
        mlp=4 * size,
        depth=max(1, round(model.depth * depth)),
        transform=True,
        head_bias=True,
    )


class Generator(nn.Module):
    """The stack and transform of the masked-LM generator."""

    config: Transformer

    def setup(self) -> None:
        c = self.config
        self.project = projection(c)
        self.stack = Stack(c)
        self.transform = Transform(c)
        self.head_bias = self.param("head_bias", named(nn.initializers.zeros, ("vocab",)), (c.rows,))

    def __call__(
        self,
        x_BTE: jax.Array,
        places_BP: jax.Array,
        positions_BT: jax.Array,
        mask: Mask,
        keys_B: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return transformed states (B, P, E) at the masked positions and the bias of the vocabulary."""
        x_BTD = x_BTE if self.project is None else self.project(x_BTE)
        h_BTD = self.stack(x_BTD, positions_BT, mask, keys_B)[0]
        return self.transform(gather(h_BTD, places_BP)), self.head_bias


class Discriminator(nn.Module):
    """Logits of "this token is not the original": stack, dense layer, activation and one number per token."""

    config: Transformer

    def setup(self) -> None:
        c = self.config
        self.project = projection(c)
        self.stack = Stack(c)
        self.dense = Linear((c.width, c.width), ("embed", None), **c.linear(c.width))
        self.judge = Linear((c.width, 1), ("embed", None), **c.linear(c.width))

    def __call__(
        self, x_BTE: jax.Array, positions_BT: jax.Array, mask: Mask, keys_B: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        x_BTD = x_BTE if self.project is None else self.project(x_BTE)
        h_BTD = self.stack(x_BTD, positions_BT, mask, keys_B)[0]
        return self.judge(ACTIVATIONS[self.config.activation][0](self.dense(h_BTD)))[..., 0].astype(jnp.float32), h_BTD


class Electra(nn.Module):
    """Both networks; `guess` runs the generator, `judge` the discriminator, which fine-tuning keeps."""

    small: Transformer  # the generator
    model: Transformer  # the discriminator

    def setup(self) -> None:
        self.embed = token_table(self.model)
        self.input = Inputs(self.model)
        self.generator = Generator(self.small)
        self.discriminator = Discriminator(self.model)

    def __call__(self, tokens_BT: jax.Array, places_BP: jax.Array) -> tuple[jax.Array, Any]:
        row = jnp.zeros_like(tokens_BT)
        h_BPE, _ = self.guess(tokens_BT, places_BP, row, row, row)
        return h_BPE, self.judge(tokens_BT, row, row, row)

    def read(self, tokens_BT: jax.Array, positions_BT: jax.Array, types_BT: jax.Array, keys_B: jax.Array | None) -> jax.Array:
        """Return the shared embeddings (B, T, E)."""
        return self.input(self.embed(tokens_BT, jnp.dtype(self.model.dtype)), positions_BT, types_BT, keys_B)

    def guess(
        self,
        tokens_BT: jax.Array,
        places_BP: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        types_BT: jax.Array,
        keys_B: jax.Array | None = None,
    ) -> tuple[jax.Array, Head]:
        """Return the generator's states at the masked positions (B, P, E) and the head that maps those to logits."""
        keys_B = fold(keys_B, 1)  # both networks read the same embeddings, with dropout of their own
        x_BTE = self.read(tokens_BT, positions_BT, types_BT, keys_B)
        h_BPE, bias_V = self.generator(x_BTE, places_BP, positions_BT, both_ways(segments_BT), keys_B)
        # Tied to the shared table: the generator's softmax moves all tokens' vectors, the discriminator only those that
        # it reads (Clark et al. 2020, 3.2).
        return h_BPE, Head(table_VD=self.embed.table, bias_V=bias_V, vocab=self.model.vocab)

    def judge(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        segments_BT: jax.Array,
        types_BT: jax.Array,
        keys_B: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return logits (B, T) that a token was replaced, and the discriminator's states (B, T, D)."""
        keys_B = fold(keys_B, 2)
        x_BTE = self.read(tokens_BT, positions_BT, types_BT, keys_B)
        return self.discriminator(x_BTE, positions_BT, both_ways(segments_BT), keys_B)


def both_ways(segments_BT: jax.Array) -> Mask:
    """Return the bidirectional mask of packed segments."""
    return Mask(segments_BT=segments_BT, segments_BS=segments_BT, causal=False)
