"""StarCoder2: pre-norm, rotary positions, a plain feed-forward; with and without biases in its dense layers.

Its norms have a bias in any case: a network of ours without biases is written with zeros there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.convert.families.llama import SIZES, rotary, scaling
from lm.convert.family import ACTIVATIONS, Family, Fields, name_of, written
from lm.convert.layouts import TOKEN, Heads, decoder
from lm.convert.rules import Rule, dense, normal
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal


class StarCoder2(Family):
    """Lozhkov et al. 2024; of the plain laptop decoders, those with rotary positions have this shape."""

    name = "starcoder2"
    prefix = "model."
    heads = Heads("Starcoder2", "decoder", decoder("score", "transformer.", TOKEN))
    copies = ((r"^lm_head\.weight$", "embed/table"),)
    buffers = r"rotary_emb\.inv_freq$"

    def objective(self, settings: Mapping[str, Any]) -> Causal:
        fields = Fields(settings)
        sizes = fields.sizes(SIZES)
        # Defaults of absent fields are those of their class in transformers. One rate of ours covers embeddings and
        # branches.
        kv, dropout = fields.get("num_key_value_heads", default=2), fields.get("residual_dropout", default=0.0)
        fields.refuse(embedding_dropout=dropout)
        model = Transformer(
            **sizes,
            kv_heads=kv if kv != sizes["heads"] else 0,
            activation=fields.one_of("hidden_act", ACTIVATIONS, default="gelu_pytorch_tanh"),
            eps=fields.get("norm_epsilon", default=1e-5),
            positions="rotary",
            rotary=rotary(fields),
            windows=(fields.get("sliding_window", default=0),),
            bias=fields.get("use_bias", default=True),
            tied=fields.get("tie_word_embeddings", default=True),
            dropout=dropout,
            attention_dropout=fields.get("attention_dropout", default=0.0),
            init=fields.get("initializer_range", default=0.018042),
        )
        return Causal(model=model)

    def settings(self, objective: Causal) -> dict[str, Any]:
        c = objective.model
        names = {"eps": "norm_epsilon", "bias": "use_bias", "tied": "tie_word_embeddings", "init": "initializer_range",
                 "dropout": "residual_dropout", "attention_dropout": "attention_dropout"}  # fmt: skip
        return {
            "model_type": self.name,
            "architectures": ["Starcoder2ForCausalLM"],
            **written(c, {**SIZES, **names}),
            "num_key_value_heads": c.kv,
            "embedding_dropout": c.dropout,
            "hidden_act": name_of(c.activation),
            "sliding_window": c.windows[0] or None,
            "rope_theta": c.rotary.base,
            "rope_scaling": scaling(c.rotary),
        }

    def rules(self, objective: Causal) -> list[Rule]:
        c, layer, ours = objective.model, "model.layers.{i}", "stack/layers"
        rules = [
            Rule("embed/table", "model.embed_tokens.weight"),
            *normal(f"{ours}/norm0", f"{layer}.input_layernorm", bias=c.bias),
            *normal(f"{ours}/norm1", f"{layer}.post_attention_layernorm", bias=c.bias),
            *normal("stack/norm", "model.norm", bias=c.bias),
            *dense(f"{ours}/attention/out", f"{layer}.self_attn.o_proj", bias=c.bias, inputs=2),
            *dense(f"{ours}/mlp/up", f"{layer}.mlp.c_fc", bias=c.bias),
            *dense(f"{ours}/mlp/down", f"{layer}.mlp.c_proj", bias=c.bias),
        ]
        for name in ("query", "key", "value"):
            rules += dense(f"{ours}/attention/{name}", f"{layer}.self_attn.{name[0]}_proj", bias=c.bias)
        return rules if c.tied else [*rules, Rule("output/table", "lm_head.weight")]

    def implied(self, objective: Causal) -> dict[str, np.ndarray]:
        c = objective.model
        if c.bias:
            return {}
        pair = "input_layernorm", "post_attention_layernorm"
        norms = ["model.norm", *(f"model.layers.{i}.{name}" for i in range(c.depth) for name in pair)]
        return {f"{norm}.bias": np.zeros(c.width, np.float32) for norm in norms}


FAMILIES = (StarCoder2(),)
