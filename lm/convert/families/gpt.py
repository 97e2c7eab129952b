"""GPT-1 and GPT-2 (DialoGPT too).

A network of ours without biases is written with biases of zero and `"use_bias": false`, which transformers ignores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.convert.family import ACTIVATIONS, Family, Fields, name_of, written
from lm.convert.layouts import ANSWER, TOKEN, Heads, decoder
from lm.convert.rules import Rule, dense, normal
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal

SIZES = {"vocab": "vocab_size", "width": "n_embd", "depth": "n_layer", "heads": "n_head"}


@dataclass(frozen=True)
class GPT(Family):
    """Learned positions, Conv1D matrices with query, key and value side by side, a tied table; `first`: GPT-1."""

    name: str
    heads: Heads
    first: bool = False

    prefix = "transformer."
    copies = ((r"^lm_head\.(decoder\.)?weight$", "embed/table"),)
    buffers = r"\.attn\.(bias|masked_bias)$|position_ids$"

    def objective(self, settings: Mapping[str, Any]) -> Causal:
        fields, first = Fields(settings), self.first
        fields.refuse(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
        fields.refuse(reorder_and_upcast_attn=False, tie_word_embeddings=True)
        if first:  # its "gelu" is the tanh form
            activation = fields.one_of("afn", {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu"}, default="gelu")
        else:
            activation = fields.one_of("activation_function", ACTIVATIONS, default="gelu_new")
        model = Transformer(
            **fields.sizes(SIZES),
            context=fields.get("n_positions", "n_ctx"),
            mlp=fields.get("n_inner", default=0),
            activation=activation,
            eps=fields.get("layer_norm_epsilon", default=1e-5),
            placement="post" if first else "pre",
            bias=fields.get("use_bias", default=True),
            dropout=fields.get("resid_pdrop", default=0.1),
            attention_dropout=fields.get("attn_pdrop", default=0.1),
            # GPT-2 divides the initial matrices into the residual stream by the root of their number (Radford et al.
            # 2019, section 2.3); GPT-1 does not.
            init_scale_depth=not first,
        )  # fmt: skip
        return Causal(model=model)

    def settings(self, objective: Causal) -> dict[str, Any]:
        c, name = objective.model, name_of(objective.model.activation)
        own = {"activation_function": name, "n_inner": c.mlp or None}
        if self.first:
            # Files of GPT-1 call the tanh form gelu.
            own = {"afn": name.replace("gelu_new", "gelu")}
        return {
            "model_type": self.name,
            "architectures": [f"{self.heads.name}LMHeadModel"],
            **written(c, SIZES),
            "n_positions": c.context,
            **own,
            "layer_norm_epsilon": c.eps,
            "resid_pdrop": c.dropout,
            "embd_pdrop": c.dropout,
            "attn_pdrop": c.attention_dropout,
            **({} if c.bias else {"use_bias": False}),
        }

    def rules(self, objective: Causal) -> list[Rule]:
        tokens, places = ("tokens_embed", "positions_embed") if self.first else ("wte", "wpe")
        layer, ours, bias = "transformer.h.{i}", "stack/layers", objective.model.bias
        rules = [
            Rule("embed/table", f"transformer.{tokens}.weight"),
            Rule("input/places/table", f"transformer.{places}.weight"),
            *normal(f"{ours}/norm0", f"{layer}.ln_1", bias=bias),
            *normal(f"{ours}/norm1", f"{layer}.ln_2", bias=bias),
            *dense(f"{ours}/attention/out", f"{layer}.attn.c_proj", bias=bias, form="conv", inputs=2),
            *dense(f"{ours}/mlp/up", f"{layer}.mlp.c_fc", bias=bias, form="conv"),
            *dense(f"{ours}/mlp/down", f"{layer}.mlp.c_proj", bias=bias, form="conv"),
        ]
        # One Conv1D holds the three side by side: each of ours is a third of its outputs.
        for k, name in enumerate(("query", "key", "value")):
            rules += dense(f"{ours}/attention/{name}", f"{layer}.attn.c_attn", bias=bias, form="conv", part=(k, 3))
        # The post-norm layers of GPT-1 end in a norm: it has none behind the last.
        return rules if self.first else rules + normal("stack/norm", "transformer.ln_f", bias=bias)

    def implied(self, objective: Causal) -> dict[str, np.ndarray]:
        c = objective.model
        if c.bias:
            return {}
        sizes = {"ln_1": c.width, "ln_2": c.width, "attn.c_attn": 3 * c.width, "attn.c_proj": c.width,
                 "mlp.c_fc": c.mlp or 4 * c.width, "mlp.c_proj": c.width}  # fmt: skip
        biases = {f"transformer.h.{i}.{name}.bias": size for i in range(c.depth) for name, size in sizes.items()}
        biases |= {} if self.first else {"transformer.ln_f.bias": c.width}
        return {name: np.zeros(size, np.float32) for name, size in biases.items()}


FAMILIES = (
    GPT("gpt2", Heads("GPT2", "decoder", decoder("classifier", None, TOKEN, ANSWER))),
    GPT("openai-gpt", Heads("OpenAIGPT", "decoder", decoder("", None)), first=True),
)
