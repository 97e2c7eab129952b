"""Two stacks: a bidirectional encoder of the source, and a decoder with cross-attention to its states."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.errors import UserError
from lm.models.attend import Mask
from lm.models.attention import Cache
from lm.models.heads import Head
from lm.models.layers import fold
from lm.models.model import Inputs, declare_vocabulary, extended, token_table, vocabulary
from lm.models.stack import Stack
from lm.models.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """The configs of both stacks, which share vocabulary, token table and head: those of the decoder's fields."""

    encoder: Transformer
    decoder: Transformer

    def __post_init__(self):
        for name in ("vocab", "pad_vocab", "width", "embed", "mup_base", "dtype"):
            source, target = getattr(self.encoder, name), getattr(self.decoder, name)
            if source != target:
                raise UserError(f"encoder.{name}={source} and decoder.{name}={target} must be the same: they share one table")
        if self.decoder.parallel:
            raise UserError("a decoder with attention to a source has no parallel blocks: decoder.parallel=False")
        if self.decoder.embed_size != self.decoder.width or self.decoder.transform:
            raise UserError("an encoder-decoder has tables of its width and no transform before the vocabulary")

    def sized(self, vocab: int) -> "EncoderDecoder":
        """Set the vocabulary size of both sides."""
        return EncoderDecoder(encoder=self.encoder.sized(vocab), decoder=self.decoder.sized(vocab))

    @property
    def vocab(self) -> int:
        return self.decoder.vocab

    @property
    def width(self) -> int:
        return self.decoder.width

    @property
    def context(self) -> int:
        """Longest target."""
        return self.decoder.context

    @property
    def mup(self) -> float:
        return self.decoder.mup


class Seq2Seq(nn.Module):
    """An encoder-decoder: source and target tokens to the decoder's states, and the head that maps those to logits."""

    config: EncoderDecoder

    def setup(self) -> None:
        encoder, decoder = self.config.encoder, self.config.decoder
        self.embed = token_table(decoder)
        self.encoder_input, self.encoder = Inputs(encoder), Stack(encoder)
        self.decoder_input, self.decoder = Inputs(decoder), Stack(decoder)
        declare_vocabulary(self, decoder)

    def __call__(
        self,
        source_BS: jax.Array,
        tokens_BT: jax.Array,
        *,
        source_positions_BS: jax.Array | None = None,
        source_segments_BS: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        keys_B: jax.Array | None = None,
        causal: bool = True,
        collect: bool = False,
    ) -> jax.Array | tuple[jax.Array, jax.Array | Cache]:
        """Return the decoder's states (B, T, D); with `collect` also those before and after each layer (L + 1, B, T, D).

        Segments number the packed pairs of a row from 1 (0: padding); a target attends to the source of its own number.
        """
        # The head has parameters that no state needs.
        if self.is_initializing():
            self.head()
        h_BSD = self.encode(source_BS, source_positions_BS, source_segments_BS, keys_B)
        options: dict[str, Any] = {"keys_B": keys_B, "causal": causal, "collect": collect}
        options |= {"source_BSD": h_BSD, "source_segments_BS": source_segments_BS}
        return self.decode(tokens_BT, positions_BT, segments_BT, **options)

    def encode(
        self,
        source_BS: jax.Array,
        positions_BS: jax.Array | None = None,
        segments_BS: jax.Array | None = None,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Encode source tokens: (B, S, D)."""
        return self.encode_states(self.vectors(source_BS), positions_BS, segments_BS, keys_B)

    def encode_states(
        self,
        x_BSD: jax.Array,
        positions_BS: jax.Array | None = None,
        segments_BS: jax.Array | None = None,
        keys_B: jax.Array | None = None,
    ) -> jax.Array:
        """Encode a source of vectors: `vectors` of tokens, perhaps with a further slot (Mask-Predict's length)."""
        if positions_BS is None:
            positions_BS = jnp.broadcast_to(jnp.arange(x_BSD.shape[1]), x_BSD.shape[:2])
        x_BSD = self.encoder_input(x_BSD, positions_BS, None, keys_B)
        mask = Mask(segments_BT=segments_BS, segments_BS=segments_BS, causal=False)
        return self.encoder(x_BSD, positions_BS, mask, keys_B)[0]

    def decode(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array | None = None,
        segments_BT: jax.Array | None = None,
        *,
        source_BSD: jax.Array | None,
        source_segments_BS: jax.Array | None = None,
        keys_B: jax.Array | None = None,
        causal: bool = True,
        cache: Cache | None = None,
        collect: bool = False,
    ) -> jax.Array | tuple[jax.Array, jax.Array | Cache]:
        """Decode the target given the encoder's states: (B, T, D).

        With a cache (`lm.models.model.empty_cache` of the decoder, each layer beside None) segments are needed, and
        the new cache is returned as well; it holds the source's keys and values, so later calls take `source_BSD=None`.
        """
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        if (segments_BT is None) != (source_segments_BS is None):
            raise ValueError("segments for both sides or for none")
        keys_B = fold(keys_B, 1)  # else both stacks would drop out the same entries
        x_BTD = self.decoder_input(self.vectors(tokens_BT), positions_BT, None, keys_B)
        start, keys_segments = extended(cache, segments_BT)
        mask = Mask(segments_BT=segments_BT, segments_BS=keys_segments, start=start, causal=causal)
        # Cross-attention is bounded by segments alone: a target attends to all of its source.
        source: dict[str, Any] = {
            "source_BSD": source_BSD,
            "source_mask": Mask(segments_BT=segments_BT, segments_BS=source_segments_BS, causal=False),
        }

        layers = None if cache is None else cache.layers
        h_BTD, layers, states = self.decoder(x_BTD, positions_BT, mask, keys_B, layers, **source, collect=collect)
        if collect:
            return h_BTD, jnp.concatenate([x_BTD[None], states])
        if cache is None:
            return h_BTD
        length = jnp.asarray((0 if start is None else start) + tokens_BT.shape[1], jnp.int32)
        return h_BTD, Cache(layers=layers, segments_BS=keys_segments, length=length)

    def vectors(self, tokens: jax.Array) -> jax.Array:
        """Look tokens up in the shared table."""
        return self.embed(tokens, jnp.dtype(self.config.decoder.dtype))

    def head(self) -> Head:
        return vocabulary(self, self.config.decoder)
