"""BERT (its Chinese whole-word models and MacBERT too), RoBERTa and ERNIE: one table, other names around it.

ALBERT and ELECTRA are made of the same parts, in files of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm.convert.family import ACTIVATIONS, Fields, name_of
from lm.convert.rules import Rule, dense, normal
from lm.errors import check
from lm.models.transformer import Transformer
from lm.objectives.contrastive import Contrastive
from lm.objectives.masked import Masked


class Encoder:
    """Post-norm encoders with a head for masked tokens, and for pairs of sentences where the model has one.

    `sentences`: the objectives whose labels such a head has, first the one that is taken for a file's.
    """

    ignored = r"position_ids$|token_type_ids$|\.decoder\.(weight|bias)$|^lm_head\.decoder|seq_relationship|pooler"

    def __init__(self, name: str, architecture: str, offset: int = 0, sentences: tuple[str, ...] = ()):
        self.types, self.prefix = (name,), f"{name}."
        self.architecture, self.offset, self.sentences = architecture, offset, sentences

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
        check(bool(c.offset) == bool(self.offset), f"{self.types[0]} counts positions from {self.offset}: model.offset")
        check(sentence in ("none", *self.sentences), f"{self.types[0]} has no head for sentence='{sentence}'")
        return {
            "model_type": self.types[0],
            "architectures": [self.architecture + ending(objective, sentence)],
            **encoder_settings(c),
            "max_position_embeddings": c.context + c.offset,
            **({"pad_token_id": c.offset - 1} if self.offset else {}),
        }

    def rules(self, objective: Masked | Contrastive) -> list[Rule]:
        root = self.types[0]
        found = [*inputs(root), *layers(root)]
        if isinstance(objective, Contrastive):  # as the paper's own conversion has it: the layer on [CLS] is the pooler
            found += dense("mlp/dense", f"{root}.pooler.dense")
        if root == "roberta":
            head = [*dense("transform/dense", "lm_head.dense"), *normal("transform/norm", "lm_head.layer_norm")]
            return [*found, *head, Rule("head_bias", "lm_head.bias")]
        head = "cls.predictions.transform"
        found += [*dense("transform/dense", f"{head}.dense"), *normal("transform/norm", f"{head}.LayerNorm")]
        found += [Rule("head_bias", "cls.predictions.bias")]
        if sentence_of(objective) != "none":
            found += [*dense("pooler/dense", f"{root}.pooler.dense"), *dense("pair", "cls.seq_relationship")]
        return found


def sentence_of(objective: Any) -> str:
    """Return what an objective asks about pairs of sentences: embeddings of sentences nothing."""
    return "none" if isinstance(objective, Contrastive) else objective.sentence


def ending(objective: Any, sentence: str) -> str:
    """Return how their class for an objective's network and heads ends."""
    if isinstance(objective, Contrastive) and not objective.mlm:
        return "Model"
    return "ForMaskedLM" if sentence == "none" else "ForPreTraining"


def paired(settings: Mapping[str, Any]) -> bool:
    """Tell whether a file has a head for pairs of sentences."""
    return "ForPreTraining" in " ".join(settings.get("architectures") or ())


def encoder(fields: Fields, *, embed: int = 0, activation: str = "gelu") -> Transformer:
    """Read the config.json of BERT and its line; `embed` and `activation` are what absent fields mean."""
    fields.refuse(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    fields.refuse(tie_word_embeddings=True)
    width, std = fields.get("hidden_size"), fields.get("initializer_range", default=0.02)
    embed = fields.get("embedding_size", default=embed)
    return Transformer(
        vocab=fields.get("vocab_size"),
        context=fields.get("max_position_embeddings"),
        width=width,
        embed=embed if embed != width else 0,
        depth=fields.get("num_hidden_layers"),
        heads=fields.get("num_attention_heads"),
        mlp=fields.get("intermediate_size"),
        activation=fields.one_of("hidden_act", ACTIVATIONS, default=activation),
        eps=fields.get("layer_norm_eps", default=1e-12),
        types=fields.get("type_vocab_size", default=2),
        dropout=fields.get("hidden_dropout_prob", default=0.1),
        attention_dropout=fields.get("attention_probs_dropout_prob", default=0.1),
        init=std,
        placement="post",
        embed_norm=True,
        transform=True,
        head_bias=True,
        init_positions=std,
        init_scale_depth=False,
    )


def encoder_settings(c: Transformer) -> dict[str, Any]:
    """Write the config.json of BERT and its line, without the model's name."""
    check(c.types, "these encoders have a table of token types: model.types")
    return {
        "vocab_size": c.vocab,
        "max_position_embeddings": c.context,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.heads,
        "intermediate_size": c.mlp_size,
        "hidden_act": name_of(c.activation),
        "layer_norm_eps": c.eps,
        "type_vocab_size": c.types,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.attention_dropout,
        "initializer_range": c.init,
    }


def inputs(root: str) -> list[Rule]:
    """Rules of the three tables and the norm on their sum."""
    return [
        Rule("embed/table", f"{root}.embeddings.word_embeddings.weight"),
        Rule("input/places/table", f"{root}.embeddings.position_embeddings.weight"),
        Rule("input/types/table", f"{root}.embeddings.token_type_embeddings.weight"),
        *normal("input/norm", f"{root}.embeddings.LayerNorm"),
    ]


def layers(root: str, ours: str = "stack/layers") -> list[Rule]:
    """Rules of BERT's layers."""
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


FAMILIES = (
    Encoder("bert", "Bert", sentences=("nsp", "sop")),
    Encoder("ernie", "Ernie", sentences=("consecutive",)),
    Encoder("roberta", "Roberta", offset=2),
)
