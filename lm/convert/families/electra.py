"""ELECTRA: the generator of a file is a model for masked tokens, the discriminator one for replaced tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm.convert.families.encoders import encoder, encoder_settings, inputs, layers, sentence_of
from lm.convert.family import Family, Fields, architecture
from lm.convert.layouts import BEFORE, CHOICE, PARTS, SEQUENCE, Heads, Layout, summary
from lm.convert.layouts import encoder as encoder_heads
from lm.convert.rules import Rule, dense, normal
from lm.errors import check
from lm.objectives.masked import Masked
from lm.objectives.replaced import Replaced

GENERATOR = "ElectraForMaskedLM"


class Electra(Family):
    """BERT's layers, projected tables where they are narrower.

    A file holds one network. A discriminator's has no generator, which `Replaced` needs for training: it is drawn anew
    and reported. The discriminator alone is written, as fine-tuning keeps only that.
    """

    name = "electra"
    prefix = "electra."
    heads = Heads("Electra", "bert", {
        **encoder_heads(""), SEQUENCE: Layout(PARTS, inner="dense", activation="gelu", rate=BEFORE),
        CHOICE: summary("gelu", "first", "classifier"),
    })  # fmt: skip
    copies = ((r"^generator_lm_head\.weight$", "embed/table"),)

    def objective(self, settings: Mapping[str, Any]) -> Masked | Replaced:
        fields = Fields(settings)
        model = encoder(fields, embed=128)
        if architecture(settings) != GENERATOR:
            return Replaced(model=model)
        fields.refuse(hidden_act="gelu")  # its head has that whatever the layers have
        return Masked(model=model)

    def settings(self, objective: Masked | Replaced) -> dict[str, Any]:
        c, judge = objective.model, isinstance(objective, Replaced)
        check(judge or sentence_of(objective) == "none", "ELECTRA has no head for pairs of sentences")
        return {
            "model_type": "electra",
            "architectures": ["ElectraForPreTraining" if judge else GENERATOR],
            **encoder_settings(c),
            "embedding_size": c.embed_size,
        }

    def rules(self, objective: Masked | Replaced) -> list[Rule]:
        root, judge = "electra", isinstance(objective, Replaced)
        ours = "discriminator/" if judge else ""
        # The tables stand outside: generator and discriminator share them (section 3.2), and each projects them by its
        # own.
        found = [*inputs(root), *layers(root, f"{ours}stack/layers"), *dense(f"{ours}project", f"{root}.embeddings_project")]
        if judge:
            head = "discriminator_predictions"
            return [*found, *dense(f"{ours}dense", f"{head}.dense"), *dense(f"{ours}judge", f"{head}.dense_prediction")]
        head = "generator_predictions"
        found += [*dense("transform/dense", f"{head}.dense"), *normal("transform/norm", f"{head}.LayerNorm")]
        return [*found, Rule("head_bias", "generator_lm_head.bias")]


FAMILIES = (Electra(),)
