"""BERT (its Chinese whole-word models and MacBERT too), RoBERTa and ERNIE: one table, other names around it.

ALBERT and ELECTRA are made of the same parts, in files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm.convert.family import ACTIVATIONS, Family, Fields, name_of, written
from lm.convert.layouts import BEFORE, PARTS, SEQUENCE, Heads, Layout
from lm.convert.layouts import encoder as encoder_heads
from lm.convert.rules import Rule, dense, normal
from lm.corruption.pairs import Sentence
from lm.errors import check
from lm.models.transformer import Transformer
from lm.objectives.contrastive import Contrastive
from lm.objectives.masked import Masked

# Our fields -> those of config.json.
SIZES = {"vocab": "vocab_size", "context": "max_position_embeddings", "width": "hidden_size", "depth": "num_hidden_layers",
         "heads": "num_attention_heads", "mlp": "intermediate_size"}  # fmt: skip
RATES = {"dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"}


@dataclass(frozen=True)
class Encoder(Family):
    """Post-norm encoders with a masked-LM head, and a sentence-pair head where the model has one.

    `sentences`: the objectives with labels for such a head, the first being that of a file. `offset`: positions start at
    the row behind the padding's id (RoBERTa).
    """

    name: str
    heads: Heads
    offset: int = 0
    sentences: tuple[Sentence, ...] = ()

    copies = (
        (r"(predictions|lm_head)\.decoder\.weight$", "embed/table"),
        (r"(predictions|lm_head)\.decoder\.bias$", "head_bias"),
    )
    ignored = r"seq_relationship|pooler"

    @property
    def prefix(self) -> str:
        return f"{self.name}."

    def objective(self, settings: Mapping[str, Any]) -> Masked:
        fields = Fields(settings)
        fields.refuse(use_task_id=False, embedding_size=settings.get("hidden_size"))
        model = encoder(fields)
        if self.offset:  # positions are counted from behind the padding's id
            offset = 1 + fields.get("pad_token_id", default=self.offset - 1)
            check(0 < offset < model.context, f"config.json: pad_token_id={offset - 1} leaves no positions")
            model = replace(model, context=model.context - offset, offset=offset)
        return Masked(model=model, sentence=self.sentences[0] if self.sentences and paired(settings) else "none")

    def settings(self, objective: Masked | Contrastive) -> dict[str, Any]:
        c, sentence = objective.model, sentence_of(objective)
        check(bool(c.offset) == bool(self.offset), f"{self.name} counts positions from {self.offset}: model.offset")
        check(sentence in ("none", *self.sentences), f"{self.name} has no head for sentence='{sentence}'")
        return {
            "model_type": self.name,
            "architectures": [self.heads.name + ending(objective, sentence)],
            **encoder_settings(c),
            "max_position_embeddings": c.context + c.offset,
            **({"pad_token_id": c.offset - 1} if self.offset else {}),
        }

    def rules(self, objective: Masked | Contrastive) -> list[Rule]:
        root = self.name
        found = [*inputs(root), *layers(root)]
        if isinstance(objective, Contrastive):  # as the paper's own conversion has it: the layer on [CLS] is the pooler
            found += dense("mlp/dense", f"{root}.pooler.dense")
        # RoBERTa dropped the sentence-pair task (Liu et al. 2019), and with it the head.
        if root == "roberta":
            found += [*dense("transform/dense", "lm_head.dense"), *normal("transform/norm", "lm_head.layer_norm")]
            return [*found, Rule("head_bias", "lm_head.bias")]
        head = "cls.predictions.transform"
        found += [*dense("transform/dense", f"{head}.dense"), *normal("transform/norm", f"{head}.LayerNorm")]
        found += [Rule("head_bias", "cls.predictions.bias")]
        if sentence_of(objective) != "none":
            found += [*dense("pooler/dense", f"{root}.pooler.dense"), *dense("pair", "cls.seq_relationship")]
        return found

    def fitted(self, objective: Any, leaves: dict[str, Any], pad: int | None) -> tuple[Any, dict[str, Any]]:
        """Start RoBERTa's position table behind the padding's id, where transformers counts from; zeros before it."""
        old, new, name = objective.model.offset, (pad or 0) + 1, "input/places/table"
        if not self.offset or pad is None or old == new:
            return objective, leaves
        table = np.asarray(leaves[name])[old:]
        table = np.concatenate([np.zeros((new, *table.shape[1:]), table.dtype), table])
        return replace(objective, model=replace(objective.model, offset=new)), {**leaves, name: table}


def sentence_of(objective: Any) -> str:
    """Return the sentence-pair task of an objective; SimCSE has none."""
    return "none" if isinstance(objective, Contrastive) else objective.sentence


def ending(objective: Any, sentence: str) -> str:
    """Return the end of the class's name in transformers for an objective's network and heads."""
    if isinstance(objective, Contrastive) and not objective.mlm:
        return "Model"
    return "ForMaskedLM" if sentence == "none" else "ForPreTraining"


def paired(settings: Mapping[str, Any]) -> bool:
    """Whether a file has a sentence-pair head."""
    return "ForPreTraining" in " ".join(settings.get("architectures") or ())


def encoder(fields: Fields, *, embed: int = 0, activation: str = "gelu") -> Transformer:
    """Read the config.json of BERT and its successors; `embed` and `activation` are the defaults of absent fields."""
    fields.refuse(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    width, embed = fields.get("hidden_size"), fields.get("embedding_size", default=embed)
    return Transformer(
        **bert_like(fields, SIZES, RATES),
        embed=embed if embed != width else 0,
        activation=fields.one_of("hidden_act", ACTIVATIONS, default=activation),
        eps=fields.get("layer_norm_eps", default=1e-12),
        types=fields.get("type_vocab_size", default=2),
    )


def bert_like(fields: Fields, sizes: Mapping[str, str], rates: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of BERT's architecture, with the sizes and dropout rates of a config.json under these names."""
    fields.refuse(tie_word_embeddings=True)
    # As in BERT's code: one deviation for matrices and tables, whatever the depth.
    std = fields.get("initializer_range", default=0.02)
    plain = {"init": std, "init_positions": std, "init_scale_depth": False, "placement": "post"}
    rated = {ours: fields.get(theirs, default=0.1) for ours, theirs in rates.items()}
    return {**fields.sizes(sizes), **rated, **plain, "embed_norm": True, "transform": True, "head_bias": True}


def encoder_settings(c: Transformer) -> dict[str, Any]:
    """Return config.json of BERT and its successors, without the model's name."""
    check(c.types, "these encoders have a table of token types: model.types")
    return {
        **written(c, {**SIZES, **RATES, "eps": "layer_norm_eps", "types": "type_vocab_size", "init": "initializer_range"}),
        "hidden_act": name_of(c.activation),
    }


def inputs(root: str) -> list[Rule]:
    """Rules of the three embedding tables and the norm on their sum."""
    return [
        Rule("embed/table", f"{root}.embeddings.word_embeddings.weight"),
        Rule("input/places/table", f"{root}.embeddings.position_embeddings.weight"),
        Rule("input/types/table", f"{root}.embeddings.token_type_embeddings.weight"),
        *normal("input/norm", f"{root}.embeddings.LayerNorm"),
    ]


def layers(root: str, ours: str = "stack/layers") -> list[Rule]:
    layer = f"{root}.encoder.layer.{{i}}"
    return [
        *(rule for name in ("query", "key", "value")
          for rule in dense(f"{ours}/attention/{name}", f"{layer}.attention.self.{name}")),
        *dense(f"{ours}/attention/out", f"{layer}.attention.output.dense", inputs=2),
        *normal(f"{ours}/norm0", f"{layer}.attention.output.LayerNorm"),
        *dense(f"{ours}/mlp/up", f"{layer}.intermediate.dense"),
        *dense(f"{ours}/mlp/down", f"{layer}.output.dense"),
        *normal(f"{ours}/norm1", f"{layer}.output.LayerNorm"),
    ]  # fmt: skip


ROBERTA = {**encoder_heads("roberta.pooler.dense"), SEQUENCE: Layout(PARTS, inner="dense", rate=BEFORE)}
FAMILIES = (
    Encoder("bert", Heads("Bert", "bert", encoder_heads("bert.pooler.dense")), sentences=("nsp", "sop")),
    Encoder("ernie", Heads("Ernie", "bert", encoder_heads("ernie.pooler.dense")), sentences=("consecutive",)),
    Encoder("roberta", Heads("Roberta", "roberta", ROBERTA), offset=2),
)
