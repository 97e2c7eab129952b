"""DistilBERT: BERT without token types and pooler, with names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm.convert.families.encoders import bert_like
from lm.convert.family import ACTIVATIONS, Family, Fields, name_of, written
from lm.convert.layouts import ANSWER, CHOICE, LAST, SEQUENCE, SPAN, TOKEN, Heads, Layout
from lm.convert.rules import Rule, dense, normal
from lm.models.transformer import Transformer
from lm.objectives.masked import Masked

EPS = 1e-12  # of every norm; their config.json has no field for it
SIZES = {"vocab": "vocab_size", "context": "max_position_embeddings", "width": "dim", "depth": "n_layers", "heads": "n_heads",
         "mlp": "hidden_dim"}  # fmt: skip
RATES = {"dropout": "dropout", "attention_dropout": "attention_dropout"}
POOLED = Layout(
    {"summary": "pre_classifier", **LAST}, inner="summary", activation="relu", rate=("seq_classif_dropout",), usual=0.2
)


class DistilBert(Family):
    """Post-norm layers and BERT's masked-LM head; sinusoids, where a file has them, are read as a table."""

    name = "distilbert"
    prefix = "distilbert."
    heads = Heads("DistilBert", "bert", {
        SEQUENCE: POOLED, TOKEN: Layout(LAST, rate=("dropout",)), ANSWER: Layout(SPAN, rate=("qa_dropout",)), CHOICE: POOLED,
    })  # fmt: skip
    copies = ((r"^vocab_projector\.weight$", "embed/table"),)

    def objective(self, settings: Mapping[str, Any]) -> Masked:
        fields = Fields(settings)
        activation = fields.one_of("activation", ACTIVATIONS, default="gelu")
        return Masked(model=Transformer(**bert_like(fields, SIZES, RATES), activation=activation, eps=EPS))

    def settings(self, objective: Masked) -> dict[str, Any]:
        c = objective.model
        return {
            "model_type": "distilbert",
            "architectures": ["DistilBertForMaskedLM"],
            **written(c, {**SIZES, **RATES, "init": "initializer_range"}),
            "activation": name_of(c.activation),
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


FAMILIES = (DistilBert(),)
