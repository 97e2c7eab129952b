"""Current decoders: Llama 2 and 3, Mistral, Qwen 2 and 3, SmolLM: norms before, rotary positions, gated feed-forwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm.convert.family import Fields
from lm.convert.rules import Rule, dense, normal
from lm.errors import UserError, check
from lm.models.positions import Rotary
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "gelu_new": "geglu_tanh", "relu": "reglu"}
# Near relatives that the stack here cannot be: what it lacks.
SHIFTED = "norms that multiply by 1 + weight"
SANDWICH = f"{SHIFTED}, norms behind each sub-layer as well as before"
LACKING = {
    "gemma": SHIFTED,
    "gemma2": SANDWICH,
    "gemma3_text": f"{SANDWICH}, another rotary base in layers with a window",
    "gemma3": f"{SANDWICH}, another rotary base in layers with a window, images",
}


class Llama:
    """One table; what differs between the releases are a few fields."""

    types = (*CLASSES, *LACKING)
    prefix = "model."
    ignored = r"rotary_emb\.inv_freq$|^lm_head\.weight$"

    def objective(self, settings: Mapping[str, Any]) -> Causal:
        fields, kind = Fields(settings), settings["model_type"]
        check(kind not in LACKING, f"config.json: model_type='{kind}' needs what no model here has: {LACKING.get(kind)}")
        fields.refuse(pretraining_tp=1, mlp_bias=False, attention_bias=False)
        heads = fields.get("num_attention_heads")
        head, width = fields.get("head_dim", default=0), fields.get("hidden_size")
        kv, context = fields.get("num_key_value_heads", default=heads), fields.get("max_position_embeddings")
        model = Transformer(
            vocab=fields.get("vocab_size"),
            context=context,
            width=width,
            depth=fields.get("num_hidden_layers"),
            heads=heads,
            kv_heads=kv if kv != heads else 0,
            head=head if head * heads != width else 0,
            mlp=fields.get("intermediate_size"),
            activation=fields.one_of("hidden_act", GATED, default="silu"),
            norm="rms",
            eps=fields.get("rms_norm_eps", default=1e-6),
            positions="rotary",
            rotary=rotary(fields),
            windows=windows(fields, kind),
            bias=False,
            qkv_bias=True if kind == "qwen2" else None,
            qk_norm=kind == "qwen3",
            tied=fields.get("tie_word_embeddings", default=False),
            attention_dropout=fields.get("attention_dropout", default=0.0),
            init_scale_depth=False,
        )
        return Causal(model=model)

    def settings(self, objective: Causal) -> dict[str, Any]:
        c = objective.model
        kind = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else "mistral" if any(c.windows) else "llama"
        return {
            "model_type": kind,
            "architectures": [f"{CLASSES[kind]}ForCausalLM"],
            "vocab_size": c.vocab,
            "max_position_embeddings": c.context,
            "hidden_size": c.width,
            "num_hidden_layers": c.depth,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.kv,
            "head_dim": c.head_size,
            "intermediate_size": c.mlp_size,
            "hidden_act": {v: k for k, v in reversed(GATED.items())}.get(c.activation, c.activation),
            "rms_norm_eps": c.eps,
            "rope_theta": c.rotary.base,
            "rope_scaling": scaling(c.rotary),
            **({"sliding_window": c.windows[0] or None} if kind == "mistral" else {}),
            "tie_word_embeddings": c.tied,
            "attention_dropout": c.attention_dropout,
        }

    def rules(self, objective: Causal) -> list[Rule]:
        c, layer, ours = objective.model, "model.layers.{i}", "stack/layers"
        found = [
            Rule("embed/table", "model.embed_tokens.weight"),
            *normal(f"{ours}/norm0", f"{layer}.input_layernorm", bias=False),
            *normal(f"{ours}/norm1", f"{layer}.post_attention_layernorm", bias=False),
            *dense(f"{ours}/attention/out", f"{layer}.self_attn.o_proj", bias=False, inputs=2),
            *normal("stack/norm", "model.norm", bias=False),
        ]
        for name, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            found += dense(f"{ours}/attention/{name}", f"{layer}.self_attn.{theirs}", bias=bool(c.qkv_bias))
        for name in ("query", "key") if c.qk_norm else ():
            found += normal(f"{ours}/attention/{name}_norm", f"{layer}.self_attn.{name[0]}_norm", bias=False)
        for name in ("up", "gate", "down"):
            found += dense(f"{ours}/mlp/{name}", f"{layer}.mlp.{name}_proj", bias=False)
        return found if c.tied else [*found, Rule("output/table", "lm_head.weight")]


def rotary(fields: Fields) -> Rotary:
    """Read the base and how it is stretched; newer files keep both in rope_parameters."""
    found = dict(fields.get("rope_parameters", "rope_scaling", default={}))
    base = fields.get("rope_theta", default=found.pop("rope_theta", 10_000.0))
    found.pop("rope_theta", None)
    kind = found.pop("rope_type", found.pop("type", "default"))
    found.pop("type", None)
    match kind:
        case "default":
            return Rotary(base=base)
        case "linear":
            return Rotary(base=base, scaling="linear", factor=found["factor"])
        case "llama3":
            low, high = found["low_freq_factor"], found["high_freq_factor"]
            original = found["original_max_position_embeddings"]
            return Rotary(base=base, scaling="llama3", factor=found["factor"], low=low, high=high, original=original)
    raise UserError(f"config.json: rope_scaling of type '{kind}' has no counterpart here")


def scaling(rotary: Rotary) -> dict[str, Any] | None:
    """Write how the base is stretched."""
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
    """Read the window of each layer; Qwen files name one that is off."""
    window = fields.get("sliding_window", default=0)
    if kind.startswith("qwen"):
        fields.refuse(use_sliding_window=False)
        return (0,)
    return (window or 0,)


FAMILY = Llama()
