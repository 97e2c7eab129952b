"""DistilBERT: BERT without token types and pooler, under names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm.convert.family import ACTIVATIONS, Fields, name_of
from lm.convert.rules import Rule, dense, normal
from lm.models.transformer import Transformer
from lm.objectives.masked import Masked

EPS = 1e-12  # of every norm; their config.json has no field for it


class DistilBert:
    """Post-norm layers and BERT's head for masked tokens; sinusoids, where a file has them, are a table like another."""

    types = ("distilbert",)
    prefix = "distilbert."
    ignored = r"position_ids$|^vocab_projector\.weight$"

    def objective(self, settings: Mapping[str, Any]) -> Masked:
        fields = Fields(settings)
        fields.refuse(tie_word_embeddings=True)
        std = fields.get("initializer_range", default=0.02)
        model = Transformer(
            vocab=fields.get("vocab_size"),
            context=fields.get("max_position_embeddings"),
            width=fields.get("dim"),
            depth=fields.get("n_layers"),
            heads=fields.get("n_heads"),
            mlp=fields.get("hidden_dim"),
            activation=fields.one_of("activation", ACTIVATIONS, default="gelu"),
            eps=EPS,
            dropout=fields.get("dropout", default=0.1),
            attention_dropout=fields.get("attention_dropout", default=0.1),
            init=std,
            placement="post",
            embed_norm=True,
            transform=True,
            head_bias=True,
            init_positions=std,
            init_scale_depth=False,
        )
        return Masked(model=model)

    def settings(self, objective: Masked) -> dict[str, Any]:
        c = objective.model
        return {
            "model_type": "distilbert",
            "architectures": ["DistilBertForMaskedLM"],
            "vocab_size": c.vocab,
            "max_position_embeddings": c.context,
            "dim": c.width,
            "n_layers": c.depth,
            "n_heads": c.heads,
            "hidden_dim": c.mlp_size,
            "activation": name_of(c.activation),
            "dropout": c.dropout,
            "attention_dropout": c.attention_dropout,
            "initializer_range": c.init,
        }

    def rules(self, objective: Masked) -> list[Rule]:
        table, layer, ours = "distilbert.embeddings", "distilbert.transformer.layer.{i}", "stack/layers"
        found = [
            Rule("embed/table", f"{table}.word_embeddings.weight"),
            Rule("input/places/table", f"{table}.position_embeddings.weight"),
            *normal("input/norm", f"{table}.LayerNorm"),
            *dense(f"{ours}/attention/out", f"{layer}.attention.out_lin", inputs=2),
            *normal(f"{ours}/norm0", f"{layer}.sa_layer_norm"),
            *dense(f"{ours}/mlp/up", f"{layer}.ffn.lin1"),
            *dense(f"{ours}/mlp/down", f"{layer}.ffn.lin2"),
            *normal(f"{ours}/norm1", f"{layer}.output_layer_norm"),
            *dense("transform/dense", "vocab_transform"),
            *normal("transform/norm", "vocab_layer_norm"),
            Rule("head_bias", "vocab_projector.bias"),
        ]
        for name in ("query", "key", "value"):
            found += dense(f"{ours}/attention/{name}", f"{layer}.attention.{name[0]}_lin")
        return found


FAMILY = DistilBert()
