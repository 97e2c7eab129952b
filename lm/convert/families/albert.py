"""ALBERT: BERT with one layer's parameters for all, narrow tables, and the order of sentences instead of the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm.convert.families.encoders import encoder, encoder_settings, ending, inputs, paired, sentence_of
from lm.convert.family import Family, Fields
from lm.convert.layouts import Heads
from lm.convert.layouts import encoder as encoder_heads
from lm.convert.rules import Rule, dense, normal
from lm.errors import check
from lm.objectives.masked import Masked


class Albert(Family):
    """One layer shared by the whole depth; the tables are always projected onto the width, equal or not."""

    name = "albert"
    prefix = "albert."
    heads = Heads("Albert", "bert", encoder_heads("albert.pooler", ("classifier_dropout_prob",)))
    copies = ((r"^predictions\.decoder\.weight$", "embed/table"), (r"^predictions\.decoder\.bias$", "head_bias"))
    ignored = r"^sop_classifier\.|pooler"

    def objective(self, settings: Mapping[str, Any]) -> Masked:
        fields = Fields(settings)
        fields.refuse(num_hidden_groups=1, inner_group_num=1)
        model = replace(encoder(fields, embed=128, activation="gelu_new"), share=True)
        check(model.embed, f"config.json: embedding_size={model.width} is hidden_size, and no projection between is here")
        return Masked(model=model, sentence="sop" if paired(settings) else "none")

    def settings(self, objective: Masked) -> dict[str, Any]:
        c = objective.model
        sentence = sentence_of(objective)
        check(sentence in ("none", "sop"), f"ALBERT has no head for sentence='{sentence}'")
        # Their class has the projection even where both widths are equal; our network has none then.
        check(c.embed_size != c.width, "ALBERT projects its tables: model.embed other than model.width")
        return {
            "model_type": "albert",
            "architectures": [f"Albert{ending(objective, sentence)}"],
            **encoder_settings(c),
            "embedding_size": c.embed_size,
            "num_hidden_groups": 1,
            "inner_group_num": 1,
        }

    def rules(self, objective: Masked) -> list[Rule]:
        # One group of one layer, which the whole depth shares.
        layer, ours = "albert.encoder.albert_layer_groups.0.albert_layers.0", "stack/layers"
        found = [
            *inputs("albert"),
            *dense("project", "albert.encoder.embedding_hidden_mapping_in"),
            *dense(f"{ours}/attention/out", f"{layer}.attention.dense", inputs=2),
            *normal(f"{ours}/norm0", f"{layer}.attention.LayerNorm"),
            *dense(f"{ours}/mlp/up", f"{layer}.ffn"),
            *dense(f"{ours}/mlp/down", f"{layer}.ffn_output"),
            *normal(f"{ours}/norm1", f"{layer}.full_layer_layer_norm"),
            *dense("transform/dense", "predictions.dense"),
            *normal("transform/norm", "predictions.LayerNorm"),
            Rule("head_bias", "predictions.bias"),
        ]
        for name in ("query", "key", "value"):
            found += dense(f"{ours}/attention/{name}", f"{layer}.attention.{name}")
        if sentence_of(objective) != "none":
            found += [*dense("pooler/dense", "albert.pooler"), *dense("pair", "sop_classifier.classifier")]
        return found


FAMILIES = (Albert(),)
