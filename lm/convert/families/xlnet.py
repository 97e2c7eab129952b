"""XLNet: the two-stream network, with almost our layout of attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.convert.family import ACTIVATIONS, Family, Fields, name_of, written
from lm.convert.layouts import ANSWER, LAST, SEQUENCE, SPAN, TOKEN, Heads, Layout, summary
from lm.convert.rules import Rule, dense, normal
from lm.errors import check
from lm.models import two_stream
from lm.objectives.permuted import Permuted

SIZES = {"width": "d_model", "depth": "n_layer", "heads": "n_head", "mlp": "d_inner"}
PARTS = {"query": "q", "key": "k", "value": "v", "position": "r"}
VECTORS = {"content_bias": "r_w_bias", "position_bias": "r_r_bias", "segment_bias": "r_s_bias", "segments": "seg_embed"}


class Out(Rule):
    """The matrix out of the heads: (width, heads, head) there, its inputs first here."""

    __slots__ = ()

    def take(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return super().take(np.moveaxis(array, 0, -1), shape)

    def exported(self, array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, -1, 0)


class XLNet(Family):
    """Permutation language models; the length of a row is no part of a file, so the context is free."""

    name = "xlnet"
    prefix = "transformer."
    heads = Heads("XLNet", "xlnet", {
        SEQUENCE: summary("tanh", "last", "logits_proj"), TOKEN: Layout(LAST),
        ANSWER: Layout(SPAN, name="QuestionAnsweringSimple"),
    })  # fmt: skip
    copies = ((r"^lm_loss\.weight$", "embed/table"),)

    def objective(self, settings: Mapping[str, Any]) -> Permuted:
        fields = Fields(settings)
        fields.refuse(attn_type="bi", bi_data=False, same_length=False, untie_r=True, tie_word_embeddings=True)
        heads, width = fields.get("n_head"), fields.get("d_model")
        fields.refuse(d_head=width // heads)
        model = two_stream.XLNet(
            vocab=fields.get("vocab_size", "n_token"),
            memory=fields.get("mem_len", default=0),
            **fields.sizes(SIZES),
            activation=fields.one_of("ff_activation", ACTIVATIONS, default="gelu"),
            eps=fields.get("layer_norm_eps", default=1e-12),
            clamp=max(0, fields.get("clamp_len", default=0)),
            dropout=fields.get("dropout", default=0.1),
            # Their file has one rate for both.
            attention_dropout=fields.get("dropout", default=0.1),
            init=fields.get("initializer_range", default=0.02),
        )
        return Permuted(model=model, reuse=fields.get("reuse_len", default=0))

    def settings(self, objective: Permuted) -> dict[str, Any]:
        c = objective.model
        check(c.head_size * c.heads == c.width, f"XLNet's heads divide the width among them: not {c.heads} x {c.head_size}")
        return {
            "model_type": "xlnet",
            "architectures": ["XLNetLMHeadModel"],
            "vocab_size": c.vocab,
            **written(c, SIZES),
            "ff_activation": name_of(c.activation),
            "layer_norm_eps": c.eps,
            "mem_len": c.memory or None,
            "reuse_len": objective.reuse or None,
            "clamp_len": c.clamp or -1,
            "dropout": c.dropout,
            "initializer_range": c.init,
            "attn_type": "bi",
            "bi_data": False,
            "same_length": False,
            "untie_r": True,
        }

    def rules(self, objective: Permuted) -> list[Rule]:
        layer, ours = "transformer.layer.{i}", "stack/layers"
        found = [
            Rule("embed/table", "transformer.word_embedding.weight"),
            Rule("query", "transformer.mask_emb", lead=2),
            *normal(f"{ours}/norm0", f"{layer}.rel_attn.layer_norm"),
            *dense(f"{ours}/mlp/up", f"{layer}.ff.layer_1"),
            *dense(f"{ours}/mlp/down", f"{layer}.ff.layer_2"),
            *normal(f"{ours}/norm1", f"{layer}.ff.layer_norm"),
            Out(f"{ours}/attention/out/kernel", f"{layer}.rel_attn.o"),
            Rule("head_bias", "lm_loss.bias"),
        ]
        # No transposition: theirs are plain parameters of (width, heads, head), not torch's linear layers.
        found += [Rule(f"{ours}/attention/{name}/kernel", f"{layer}.rel_attn.{part}") for name, part in PARTS.items()]
        return found + [Rule(f"{ours}/attention/{name}", f"{layer}.rel_attn.{part}") for name, part in VECTORS.items()]

    def unread(self, objective: Any) -> dict[str, np.ndarray]:
        """The query of predicted tokens, which their classes for tasks have too."""
        return {"transformer.mask_emb": np.zeros((1, 1, objective.model.width), np.float32)} if objective.task else {}


FAMILIES = (XLNet(),)
