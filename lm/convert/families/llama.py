"""Current decoders: Llama 2 and 3, Mistral, Qwen 2 and 3, SmolLM: norms before, rotary positions, gated feed-forwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm.convert.family import Fields
from lm.convert.rules import Rule, dense, normal
from lm.errors import UserError
from lm.models.positions import Rotary
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
GATED = {"silu": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu_tanh", "gelu_new": "geglu_tanh", "relu": "reglu"}


@dataclass(frozen=True)
class Llama:
    """One table; what differs between the releases are a few fields."""

    name: str

    prefix = "model."
    ignored = r"rotary_emb\.inv_freq$|^lm_head\.weight$"

    @property
    def types(self) -> tuple[str, ...]:
        return (self.name,)

    def objective(self, settings: Mapping[str, Any]) -> Causal:
        fields, kind = Fields(settings), self.name
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
        return {
            "model_type": self.name,
            "architectures": [f"{CLASSES[self.name]}ForCausalLM"],
            "vocab_size": c.vocab,
            "max_position_embeddings": c.context,
            "hidden_size": c.width,
            "num_hidden_layers": c.depth,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.kv,
            "head_dim": c.head_size,
            "intermediate_size": c.mlp_size,
            "hidden_act": gate(c.activation),
            "rms_norm_eps": c.eps,
            "rope_theta": c.rotary.base,
            "rope_scaling": scaling(c.rotary),
            **({"sliding_window": c.windows[0] or None} if self.name == "mistral" else {}),
            "tie_word_embeddings": c.tied,
            "attention_dropout": c.attention_dropout,
        }

    def rules(self, objective: Causal) -> list[Rule]:
        c, layer, ours = objective.model, "model.layers.{i}", "stack/layers"
        found = [
            Rule("embed/table", "model.embed_tokens.weight"),
            *normal(f"{ours}/norm0", f"{layer}.input_layernorm", bias=False),
            *normal(f"{ours}/norm1", f"{layer}.post_attention_layernorm", bias=False),
            *attention(f"{layer}.self_attn", bias=bool(c.qkv_bias), norms=c.qk_norm),
            *normal("stack/norm", "model.norm", bias=False),
        ]
        for name in ("up", "gate", "down"):
            found += dense(f"{ours}/mlp/{name}", f"{layer}.mlp.{name}_proj", bias=False)
        return found if c.tied else [*found, Rule("output/table", "lm_head.weight")]


def gate(activation: str) -> str:
    """Give their name of the activation of a gated feed-forward."""
    found = {ours: theirs for theirs, ours in reversed(GATED.items())}.get(activation)
    if found is None:
        raise UserError(f"its feed-forwards are gated; activation='{activation}' is not")
    return found


def attention(layer: str, *, bias: bool, norms: bool) -> list[Rule]:
    """Rules of the attention of a layer; `norms`: on each query and key."""
    ours, found = "stack/layers/attention", dense("stack/layers/attention/out", f"{layer}.o_proj", bias=False, inputs=2)
    for name in ("query", "key", "value"):
        found += dense(f"{ours}/{name}", f"{layer}.{name[0]}_proj", bias=bias)
    for name in ("query", "key") if norms else ():
        found += normal(f"{ours}/{name}_norm", f"{layer}.{name[0]}_norm", bias=False)
    return found


def rotary(fields: Fields) -> Rotary:
    """Read the base and how it is stretched; newer files keep both in rope_parameters."""
    found = dict(fields.get("rope_parameters", "rope_scaling", default={}))
    base = fields.get("rope_theta", default=found.pop("rope_theta", 10_000.0))
    found.pop("rope_theta", None)
    stretched = Fields(found, f"{fields.where}: rope_scaling")
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
    if kind.startswith("qwen"):
        fields.refuse(use_sliding_window=False)
    return (fields.get("sliding_window", default=0),) if kind == "mistral" else (0,)


FAMILIES = tuple(map(Llama, CLASSES))
