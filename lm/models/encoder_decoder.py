"""Two stacks: an encoder that sees all of its source, and a decoder that attends to it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.errors import UserError
from lm.models.attention import Cache, Mask
from lm.models.heads import Head
from lm.models.layers import Embed, fold, named
from lm.models.model import Inputs, token_table
from lm.models.stack import Stack
from lm.models.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """The shapes of both stacks; vocabulary, token table and head are one for both, as the decoder's fields say."""

    encoder: Transformer
    decoder: Transformer

    def __post_init__(self):
        for name in ("vocab", "pad_vocab", "width", "embed", "mup_base", "dtype"):
            ours, theirs = getattr(self.encoder, name), getattr(self.decoder, name)
            if ours != theirs:
                raise UserError(f"encoder.{name}={ours} and decoder.{name}={theirs} must be the same: they share one table")
        if self.decoder.parallel:
            raise UserError("a decoder with attention to a source has no parallel blocks: decoder.parallel=False")
        if self.decoder.embed_size != self.decoder.width or self.decoder.transform:
            raise UserError("an encoder-decoder has tables of its width and no transform before the vocabulary")

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
    """Source and target tokens to the decoder's states, and the head that turns those into logits."""

    config: EncoderDecoder

    def setup(self):
        encoder, decoder = self.config.encoder, self.config.decoder
        self.embed = token_table(decoder)
        self.encoder_input, self.encoder = Inputs(encoder), Stack(encoder)
        self.decoder_input, self.decoder = Inputs(decoder), Stack(decoder)
        if not decoder.tied:
            self.output = Embed(decoder.rows, decoder.width, std=decoder.head_std, truncate=decoder.init_truncate)
        if decoder.head_bias:
            self.bias = self.param("head_bias", named(nn.initializers.zeros, ("vocab",)), (decoder.rows,))

    def __call__(
        self,
        source_BS,
        tokens_BT,
        *,
        source_positions_BS=None,
        source_segments_BS=None,
        positions_BT=None,
        segments_BT=None,
        keys_B=None,
        causal=True,
        collect=False,
    ):
        """Return the decoder's states (B, T, D); with `collect` also those before and after each layer (L + 1, B, T, D).

        Segments number the packed pairs of a row from 1 (0: padding); a target sees the source of its own number.
        """
        if self.is_initializing():
            self.head()
        h_BSD = self.encode(source_BS, source_positions_BS, source_segments_BS, keys_B)
        source = {"source_BSD": h_BSD, "source_segments_BS": source_segments_BS}
        return self.decode(
            tokens_BT, positions_BT, segments_BT, keys_B=keys_B, causal=causal, collect=collect, **source
        )

    def encode(self, source_BS, positions_BS=None, segments_BS=None, keys_B=None):
        """Read the source: states (B, S, D)."""
        return self.encode_states(self.vectors(source_BS), positions_BS, segments_BS, keys_B)

    def encode_states(self, x_BSD, positions_BS=None, segments_BS=None, keys_B=None):
        """Read a source that is vectors already (`vectors` of tokens, with or without a slot that is no token)."""
        if positions_BS is None:
            positions_BS = jnp.broadcast_to(jnp.arange(x_BSD.shape[1]), x_BSD.shape[:2])
        x_BSD = self.encoder_input(x_BSD, positions_BS, None, keys_B)
        mask = Mask(segments_BT=segments_BS, segments_BS=segments_BS, causal=False)
        return self.encoder(x_BSD, positions_BS, mask, keys_B)[0]

    def decode(
        self,
        tokens_BT,
        positions_BT=None,
        segments_BT=None,
        *,
        source_BSD,
        source_segments_BS=None,
        keys_B=None,
        causal=True,
        cache=None,
        collect=False,
    ):
        """Read the target beside the encoder's states: (B, T, D). The stacks' dropout draws from keys of their own.

        With a cache (`lm.models.model.empty_cache` of the decoder, each layer beside None) segments are needed, and
        the new cache is returned as well; it holds the source's keys and values, so later calls take `source_BSD=None`.
        """
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        if (segments_BT is None) != (source_segments_BS is None):
            raise ValueError("segments for both sides or for none")
        keys_B = fold(keys_B, 1)
        x_BTD = self.decoder_input(self.vectors(tokens_BT), positions_BT, None, keys_B)
        start = None if cache is None else cache.length
        seen, offset = segments_BT, 0 if start is None else start
        if cache is not None:
            seen = jax.lax.dynamic_update_slice(cache.segments_BS, segments_BT, (0, offset))
        mask = Mask(segments_BT=segments_BT, segments_BS=seen, start=start, causal=causal)
        source = {
            "source_BSD": source_BSD,
            "source_mask": Mask(segments_BT=segments_BT, segments_BS=source_segments_BS, causal=False),
        }
        layers = None if cache is None else cache.layers
        h_BTD, layers, states = self.decoder(x_BTD, positions_BT, mask, keys_B, layers, **source, collect=collect)
        if collect:
            return h_BTD, jnp.concatenate([x_BTD[None], states])
        if cache is None:
            return h_BTD
        length = jnp.asarray(offset + tokens_BT.shape[1], jnp.int32)
        return h_BTD, Cache(layers=layers, segments_BS=seen, length=length)

    def vectors(self, tokens):
        """Look tokens up in the shared table."""
        return self.embed(tokens, jnp.dtype(self.config.decoder.dtype))

    def head(self) -> Head:
        """Give the vocabulary projection."""
        c = self.config.decoder
        bias_V = self.bias if c.head_bias else None
        table = self.embed.table if c.tied else self.output.table
        return Head(table_VD=table, bias_V=bias_V, vocab=c.vocab, scale=c.logit_scale / c.mup, cap=c.logit_cap)
