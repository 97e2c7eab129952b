"""BERT (its Chinese whole-word models and MacBERT too), RoBERTa and ERNIE: one table, other names around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm.convert.family import ACTIVATIONS, Fields, name_of
from lm.convert.rules import Rule, dense, normal
from lm.models.transformer import Transformer
from lm.objectives.masked import Masked


class Encoder:
    """Post-norm encoders with a head for masked tokens, and for pairs of sentences where the model has one."""

    ignored = r"position_ids$|token_type_ids$|\.decoder\.(weight|bias)$|^lm_head\.decoder|seq_relationship|pooler"

    def __init__(self, name: str, architecture: str, offset: int = 0, pairs: bool = True):
        self.types, self.prefix = (name,), f"{name}."
        self.architecture, self.offset, self.pairs = architecture, offset, pairs

    def objective(self, settings: Mapping[str, Any]) -> Masked:
        fields = Fields(settings)
        fields.refuse(position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
        fields.refuse(tie_word_embeddings=True, use_task_id=False)
        width, embed = fields.get("hidden_size"), fields.get("embedding_size", default=None)
        model = Transformer(
            vocab=fields.get("vocab_size"),
            context=fields.get("max_position_embeddings") - self.offset,
            offset=self.offset,
            width=width,
            embed=embed if embed not in (None, width) else 0,
            depth=fields.get("num_hidden_layers"),
            heads=fields.get("num_attention_heads"),
            mlp=fields.get("intermediate_size"),
            activation=fields.one_of("hidden_act", ACTIVATIONS, default="gelu"),
            eps=fields.get("layer_norm_eps", default=1e-12),
            types=fields.get("type_vocab_size", default=2),
            dropout=fields.get("hidden_dropout_prob", default=0.1),
            attention_dropout=fields.get("attention_probs_dropout_prob", default=0.1),
            init=fields.get("initializer_range", default=0.02),
            placement="post",
            embed_norm=True,
            transform=True,
            head_bias=True,
            init_positions=fields.get("initializer_range", default=0.02),
            init_scale_depth=False,
        )
        heads = " ".join(settings.get("architectures") or ())
        return Masked(model=model, sentence="nsp" if self.pairs and "ForPreTraining" in heads else "none")

    def settings(self, objective: Masked) -> dict[str, Any]:
        c = objective.model
        pairs = self.pairs and objective.sentence != "none"
        return {
            "model_type": self.types[0],
            "architectures": [f"{self.architecture}For{'PreTraining' if pairs else 'MaskedLM'}"],
            "vocab_size": c.vocab,
            "max_position_embeddings": c.context + c.offset,
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

    def rules(self, objective: Masked) -> list[Rule]:
        root = self.types[0]
        inputs, layer, ours = f"{root}.embeddings", f"{root}.encoder.layer.{{i}}", "stack/layers"
        found = [
            Rule("embed/table", f"{inputs}.word_embeddings.weight"),
            Rule("input/places/table", f"{inputs}.position_embeddings.weight"),
            Rule("input/types/table", f"{inputs}.token_type_embeddings.weight"),
            *normal("input/norm", f"{inputs}.LayerNorm"),
            *(rule for name in ("query", "key", "value")
              for rule in dense(f"{ours}/attention/{name}", f"{layer}.attention.self.{name}")),
            *dense(f"{ours}/attention/out", f"{layer}.attention.output.dense", inputs=2),
            *normal(f"{ours}/norm0", f"{layer}.attention.output.LayerNorm"),
            *dense(f"{ours}/mlp/up", f"{layer}.intermediate.dense"),
            *dense(f"{ours}/mlp/down", f"{layer}.output.dense"),
            *normal(f"{ours}/norm1", f"{layer}.output.LayerNorm"),
        ]  # fmt: skip
        if root == "roberta":
            head = [*dense("transform/dense", "lm_head.dense"), *normal("transform/norm", "lm_head.layer_norm")]
            return [*found, *head, Rule("head_bias", "lm_head.bias")]
        head = "cls.predictions.transform"
        found += [*dense("transform/dense", f"{head}.dense"), *normal("transform/norm", f"{head}.LayerNorm")]
        found += [Rule("head_bias", "cls.predictions.bias")]
        if objective.sentence != "none":
            found += [*dense("pooler/dense", f"{root}.pooler.dense"), *dense("pair", "cls.seq_relationship")]
        return found


FAMILIES = (
    Encoder("bert", "Bert"),
    Encoder("ernie", "Ernie"),
    Encoder("roberta", "Roberta", offset=2, pairs=False),
)
