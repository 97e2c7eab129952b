"""Megatron-BERT: BERT with the norms before the sublayers and after the last one, and none on the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm.convert.families.encoders import encoder, encoder_settings, ending, inputs, layers, paired, sentence_of
from lm.convert.family import Family, Fields
from lm.convert.layouts import Heads
from lm.convert.layouts import encoder as encoder_heads
from lm.convert.rules import Rule, dense, normal
from lm.errors import check
from lm.objectives.masked import Masked


class MegatronBert(Family):
    """Shoeybi et al. 2019, section 5.3; of the laptop encoders, `bert_nano` has this shape."""

    name = "megatron-bert"
    prefix = "bert."
    heads = Heads("MegatronBert", "bert", encoder_heads("bert.pooler.dense"))
    copies = ((r"predictions\.decoder\.weight$", "embed/table"), (r"predictions\.decoder\.bias$", "head_bias"))
    ignored = r"seq_relationship|pooler"

    def objective(self, settings: Mapping[str, Any]) -> Masked:
        fields = Fields(settings)
        fields.refuse(embedding_size=settings.get("hidden_size"))
        model = replace(encoder(fields), placement="pre", embed_norm=False)
        return Masked(model=model, sentence="nsp" if paired(settings) else "none")

    def settings(self, objective: Masked) -> dict[str, Any]:
        sentence = sentence_of(objective)
        check(sentence in ("none", "nsp", "sop"), f"Megatron-BERT has no head for sentence='{sentence}'")
        check(not objective.model.offset, "Megatron-BERT counts positions from 0: model.offset")
        return {
            "model_type": self.name,
            "architectures": [f"MegatronBert{ending(objective, sentence)}"],
            **encoder_settings(objective.model),
            "max_position_embeddings": objective.model.context,
        }

    def rules(self, objective: Masked) -> list[Rule]:
        head, layer = "cls.predictions.transform", "bert.encoder.layer.{i}"
        # Of BERT's tables all but the norms, which stand elsewhere.
        shared = [rule for rule in (*inputs("bert"), *layers("bert")) if "LayerNorm" not in rule.theirs]
        found = [
            *shared,
            *normal("stack/layers/norm0", f"{layer}.attention.ln"),
            *normal("stack/layers/norm1", f"{layer}.ln"),
            *normal("stack/norm", "bert.encoder.ln"),
            *dense("transform/dense", f"{head}.dense"),
            *normal("transform/norm", f"{head}.LayerNorm"),
            Rule("head_bias", "cls.predictions.bias"),
        ]
        if sentence_of(objective) != "none":
            found += [*dense("pooler/dense", "bert.pooler.dense"), *dense("pair", "cls.seq_relationship")]
        return found


FAMILIES = (MegatronBert(),)
