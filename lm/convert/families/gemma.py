"""Gemma 1, 2 and 3 (text): norms that multiply by 1 + weight, tables scaled by sqrt(width), one table for both ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lm.convert.families.llama import GATED, attention, gate, rotary, scaling
from lm.convert.family import Fields
from lm.convert.rules import Rule, dense, normal
from lm.errors import check
from lm.models.positions import Rotary
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Gemma:
    """A release. `activation` is the field of the feed-forward's; `period`: each so many layers one sees all keys, 0: all do.

    Gemma 2 and 3 have a norm behind each sub-layer as well (`sandwich`), Gemma 3 one on queries and keys. `caps` are
    those of attention and logits where config.json does not name them.
    """

    name: str
    architecture: str
    activation: str = "hidden_activation"
    sandwich: bool = True
    qk_norm: bool = False
    period: int = 0
    window: int = 4096
    base: float = 10_000.0
    local: float = 0.0
    caps: tuple[float, float] = (0.0, 0.0)

    prefix = "model."
    ignored = r"rotary_emb\.inv_freq$|^lm_head\.weight$"

    @property
    def types(self) -> tuple[str, ...]:
        return (self.name,)

    def objective(self, settings: Mapping[str, Any]) -> Causal:
        fields, width = Fields(settings), settings.get("hidden_size")
        fields.refuse(attention_bias=False, use_bidirectional_attention=False)
        heads, head = fields.get("num_attention_heads"), fields.get("head_dim", default=256)
        kv = fields.get("num_key_value_heads", default=heads)
        scale = fields.get("query_pre_attn_scalar", default=256) if self.sandwich else head
        depth = fields.get("num_hidden_layers")
        windows = self.windows(settings, depth)
        # null says that there is no cap, where an absent field says the default.
        caps = [settings.get(f"{place}_logit_softcapping", cap) or 0.0 for place, cap in zip(("attn", "final"), self.caps)]
        known = GATED if self.sandwich else {**GATED, "gelu": "geglu_tanh"}  # Gemma 1 says gelu and means the tanh form
        model = Transformer(
            vocab=fields.get("vocab_size"),
            context=fields.get("max_position_embeddings"),
            width=fields.get("hidden_size"),
            depth=depth,
            heads=heads,
            kv_heads=kv if kv != heads else 0,
            head=head if head * heads != width else 0,
            mlp=fields.get("intermediate_size"),
            activation=fields.one_of(self.activation, known, default="gelu_pytorch_tanh"),
            norm="rms_one",
            placement="sandwich" if self.sandwich else "pre",
            eps=fields.get("rms_norm_eps", default=1e-6),
            embed_scale=width**0.5,
            positions="rotary",
            rotary=self.rotary(fields, any(windows)),
            windows=windows,
            bias=False,
            qk_norm=self.qk_norm,
            scale=scale**-0.5 if scale != head else 0.0,
            attention_cap=caps[0],
            logit_cap=caps[1],
            tied=fields.get("tie_word_embeddings", default=True),
            attention_dropout=fields.get("attention_dropout", default=0.0),
            init=fields.get("initializer_range", default=0.02),
            init_scale_depth=False,
        )
        return Causal(model=model)

    def windows(self, settings: Mapping[str, Any], depth: int) -> tuple[int, ...]:
        """Read the window of each layer, as few as repeat."""
        if not self.period:
            return (0,)
        size = settings.get("sliding_window", self.window) or 0
        period = settings.get("sliding_window_pattern") or self.period
        kinds = settings.get("layer_types") or [SLIDING if (i + 1) % period else FULL for i in range(depth)]
        check(len(kinds) == depth, f"config.json: layer_types has {len(kinds)} entries for {depth} layers")
        odd = sorted(set(kinds) - {SLIDING, FULL})
        check(not odd, f"config.json: layer_types has {', '.join(odd)}; known: {SLIDING}, {FULL}")
        found = [size if kind == SLIDING else 0 for kind in kinds]
        fits = (n for n in range(1, depth + 1) if all(one == found[i % n] for i, one in enumerate(found)))
        return tuple(found[: next(fits)])

    def rotary(self, fields: Fields, windowed: bool) -> Rotary:
        """Read the base of layers that see everything, how it is stretched, and the base of layers with a window."""
        if not self.local:
            return rotary(fields)
        both = fields.get("rope_parameters", default={})
        full, near = (both.get(kind) or {} for kind in (FULL, SLIDING))
        base, local = fields.get("rope_theta", default=self.base), fields.get("rope_local_base_freq", default=self.local)
        full = {"rope_theta": base, **fields.get("rope_scaling", default={}), **full}
        near = rotary(Fields({"rope_parameters": {"rope_theta": local, **near}}))
        check(near.scaling == "none", f"config.json: the rotary positions of layers with a window are stretched: {near}")
        return replace(rotary(Fields({"rope_parameters": full})), local=near.base if windowed else 0.0)

    def settings(self, objective: Causal) -> dict[str, Any]:
        c = objective.model
        before = max(1, round(c.attention_scale**-2))
        check(abs(before**-0.5 / c.attention_scale - 1) < 1e-6, f"1 / scale^2 is no whole number for scale={c.attention_scale}")
        sizes = {size for size in c.windows if size}
        check(len(sizes) < 2, f"one size of window in all layers that have one, not {sorted(sizes)}")
        found = {
            "query_pre_attn_scalar": before,
            "attn_logit_softcapping": c.attention_cap or None,
            "final_logit_softcapping": c.logit_cap or None,
            "layer_types": [SLIDING if c.windows[i % len(c.windows)] else FULL for i in range(c.depth)],
            "sliding_window": max(c.windows) or self.window,
        }
        local = {"rope_local_base_freq": c.rotary.local or self.local, "sliding_window_pattern": len(c.windows)}
        return {
            "model_type": self.name,
            "architectures": [self.architecture],
            "vocab_size": c.vocab,
            "max_position_embeddings": c.context,
            "hidden_size": c.width,
            "num_hidden_layers": c.depth,
            "num_attention_heads": c.heads,
            "num_key_value_heads": c.kv,
            "head_dim": c.head_size,
            "intermediate_size": c.mlp_size,
            self.activation: gate(c.activation),
            "rms_norm_eps": c.eps,
            "rope_theta": c.rotary.base,
            "rope_scaling": scaling(c.rotary),
            **(found if self.period else {}),
            **(local if self.local else {}),
            "attention_bias": False,
            "attention_dropout": c.attention_dropout,
            "initializer_range": c.init,
            "tie_word_embeddings": c.tied,
        }

    def rules(self, objective: Causal) -> list[Rule]:
        layer, ours, no = "model.layers.{i}", "stack/layers", {"bias": False}
        feed = "pre_feedforward" if self.sandwich else "post_attention"
        found = [
            Rule("embed/table", "model.embed_tokens.weight"),
            *normal(f"{ours}/norm0", f"{layer}.input_layernorm", **no),
            *normal(f"{ours}/norm1", f"{layer}.{feed}_layernorm", **no),
            *attention(f"{layer}.self_attn", bias=False, norms=self.qk_norm),
            *normal("stack/norm", "model.norm", **no),
        ]
        for name in ("up", "gate", "down"):
            found += dense(f"{ours}/mlp/{name}", f"{layer}.mlp.{name}_proj", **no)
        if self.sandwich:
            found += normal(f"{ours}/norm0_out", f"{layer}.post_attention_layernorm", **no)
            found += normal(f"{ours}/norm1_out", f"{layer}.post_feedforward_layernorm", **no)
        return found if objective.model.tied else [*found, Rule("output/table", "lm_head.weight")]


FAMILIES = (
    Gemma("gemma", "GemmaForCausalLM", activation="hidden_act", sandwich=False),
    Gemma("gemma2", "Gemma2ForCausalLM", period=2, caps=(50.0, 30.0)),
    Gemma("gemma3_text", "Gemma3ForCausalLM", qk_norm=True, period=6, base=1_000_000.0, local=10_000.0),
)
