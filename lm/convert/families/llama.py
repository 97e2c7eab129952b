"""Current decoders: Llama 2 and 3, Mistral, Qwen 2 and 3, SmolLM: pre-norm, rotary positions, gated feed-forwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm.convert.family import Family, Fields, written
from lm.convert.layouts import ANSWER, TOKEN, Heads
from lm.convert.layouts import decoder as decoder_heads
from lm.convert.rules import Rule, dense, normal
from lm.errors import UserError, check
from lm.models.positions import Rotary
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal

GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "gelu_new": "geglu_tanh", "relu": "reglu"}
SIZES = {"vocab": "vocab_size", "context": "max_position_embeddings", "width": "hidden_size", "depth": "num_hidden_layers",
         "heads": "num_attention_heads", "mlp": "intermediate_size"}  # fmt: skip


@dataclass(frozen=True)
class Llama(Family):
    """A release: one table, a few fields apart."""

    name: str
    heads: Heads

    prefix = "model."
    copies = ((r"^lm_head\.weight$", "embed/table"),)
    buffers = r"rotary_emb\.inv_freq$"

    def objective(self, settings: Mapping[str, Any]) -> Causal:
        fields, kind = Fields(settings), self.name
        fields.refuse(pretraining_tp=1, mlp_bias=False, attention_bias=False)
        model = Transformer(
            **decoder(fields, fields.get("head_dim", default=0)),
            activation=fields.one_of("hidden_act", GATED, default="silu"),
            norm="rms",
            rotary=rotary(fields),
            windows=windows(fields, kind),
            qkv_bias=True if kind == "qwen2" else None,
            qk_norm=kind == "qwen3",
            tied=fields.get("tie_word_embeddings", default=False),
        )
        return Causal(model=model)

    def settings(self, objective: Causal) -> dict[str, Any]:
        c = objective.model
        return {
            "model_type": self.name,
            "architectures": [f"{self.heads.name}ForCausalLM"],
            **decoder_settings(c),
            "hidden_act": gate(c.activation),
            **({"sliding_window": c.windows[0] or None} if self.name == "mistral" else {}),
        }

    def rules(self, objective: Causal) -> list[Rule]:
        c = objective.model
        return decoder_rules(objective, attention(bias=bool(c.qkv_bias), norms=c.qk_norm))


def decoder(fields: Fields, head: int) -> dict[str, Any]:
    """Return the fields that all current decoders share; `head`: size of the heads, 0: width / heads."""
    sizes = fields.sizes(SIZES)
    heads, width = sizes["heads"], sizes["width"]
    # Files from before grouped queries lack the field.
    kv = fields.get("num_key_value_heads", default=heads)
    return {
        **sizes,
        "kv_heads": kv if kv != heads else 0,
        "head": head if head * heads != width else 0,
        "eps": fields.get("rms_norm_eps", default=1e-6),
        "positions": "rotary",
        "bias": False,
        "attention_dropout": fields.get("attention_dropout", default=0.0),
        "init_scale_depth": False,
    }


def decoder_settings(c: Transformer) -> dict[str, Any]:
    """Return the entries of config.json that all current decoders have."""
    names = {"kv_heads": "num_key_value_heads", "head": "head_dim", "eps": "rms_norm_eps", "tied": "tie_word_embeddings",
             "attention_dropout": "attention_dropout"}  # fmt: skip
    return {**written(c, {**SIZES, **names}), "rope_theta": c.rotary.base, "rope_scaling": scaling(c.rotary)}


def decoder_rules(objective: Causal, attention: list[Rule], feed: str = "post_attention") -> list[Rule]:
    """Rules of tables, norms, attention as given, and gated feed-forward; `feed`: name of the norm before it."""
    layer, ours = "model.layers.{i}", "stack/layers"
    rules = [
        Rule("embed/table", "model.embed_tokens.weight"),
        *normal(f"{ours}/norm0", f"{layer}.input_layernorm", bias=False),
        *normal(f"{ours}/norm1", f"{layer}.{feed}_layernorm", bias=False),
        *attention,
        *normal("stack/norm", "model.norm", bias=False),
    ]
    for name in ("up", "gate", "down"):
        rules += dense(f"{ours}/mlp/{name}", f"{layer}.mlp.{name}_proj", bias=False)
    return rules if objective.model.tied else [*rules, Rule("output/table", "lm_head.weight")]


def gate(activation: str) -> str:
    """Return transformers' name of the activation in a gated feed-forward."""
    name = {ours: theirs for theirs, ours in reversed(GATED.items())}.get(activation)
    check(name is not None, f"its feed-forwards are gated; activation='{activation}' is not")
    return name


def attention(*, bias: bool, norms: bool) -> list[Rule]:
    """Rules of the attention of a layer; `norms`: on each query and key."""
    ours, layer = "stack/layers/attention", "model.layers.{i}.self_attn"
    rules = dense(f"{ours}/out", f"{layer}.o_proj", bias=False, inputs=2)
    for name in ("query", "key", "value"):
        rules += dense(f"{ours}/{name}", f"{layer}.{name[0]}_proj", bias=bias)
    for name in ("query", "key") if norms else ():
        rules += normal(f"{ours}/{name}_norm", f"{layer}.{name[0]}_norm", bias=False)
    return rules


def rotary(fields: Fields) -> Rotary:
    """Read the rotary base and scaling; newer files keep both in rope_parameters."""
    entries = dict(fields.get("rope_parameters", "rope_scaling", default={}))
    base = fields.get("rope_theta", default=entries.pop("rope_theta", 10_000.0))
    entries.pop("rope_theta", None)
    stretched = Fields(entries, f"{fields.where}: rope_scaling")
    kind = stretched.get("rope_type", "type", default="default")
    match kind:
        case "default":
            return Rotary(base=base)
        case "linear":
            return Rotary(base=base, scaling="linear", factor=stretched.get("factor"))
        case "llama3":
            low, high, factor = (stretched.get(f"{name}factor") for name in ("low_freq_", "high_freq_", ""))
            original = stretched.get("original_max_position_embeddings")
            return Rotary(base=base, scaling="llama3", factor=factor, low=low, high=high, original=original)
    raise UserError(f"config.json: rope_scaling of type '{kind}' has no counterpart here")


def scaling(rotary: Rotary) -> dict[str, Any] | None:
    """Return rope_scaling of config.json, None without scaling."""
    if rotary.scaling == "none":
        return None
    if rotary.scaling == "linear":
        return {"rope_type": "linear", "factor": rotary.factor}
    if rotary.scaling == "llama3":
        return {
            "rope_type": "llama3",
            "factor": rotary.factor,
            "low_freq_factor": rotary.low,
            "high_freq_factor": rotary.high,
            "original_max_position_embeddings": rotary.original,
        }
    raise UserError(f"their config.json has no form here for rotary scaling '{rotary.scaling}'")


def windows(fields: Fields, kind: str) -> tuple[int, ...]:
    """Read the attention windows of the layers; Qwen's files name one that is switched off."""
    if kind.startswith("qwen"):
        fields.refuse(use_sliding_window=False)
    return (fields.get("sliding_window", default=0),) if kind == "mistral" else (0,)


# The networks of files with answers are called "transformer", but Mistral's.
FAMILIES = tuple(
    Llama(kind, Heads(name, "decoder", decoder_heads("score", None if kind == "mistral" else "transformer.", TOKEN, ANSWER)))
    for kind, name in {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}.items()
)
