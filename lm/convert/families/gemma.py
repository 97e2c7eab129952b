"""Gemma 1, 2 and 3 (text): norms that multiply by 1 + weight, tables scaled by sqrt(width), one table for both ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lm.convert.families.llama import GATED, attention, decoder, decoder_rules, decoder_settings, gate, rotary
from lm.convert.family import Family, Fields
from lm.convert.layouts import TOKEN, Heads
from lm.convert.layouts import decoder as decoder_heads
from lm.convert.rules import Rule, normal
from lm.errors import check
from lm.models.positions import Rotary
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Gemma(Family):
    """A release. `activation`: config.json's field; `period`: one in so many layers has full attention, 0: all have.

    Gemma 2 and 3 have a norm after each sub-layer as well (`sandwich`), Gemma 3 one on queries and keys. `caps`: defaults
    for attention scores and logits.
    """

    name: str
    architecture: str
    heads: Heads
    activation: str = "hidden_activation"
    sandwich: bool = True
    qk_norm: bool = False
    period: int = 0
    window: int = 4096
    base: float = 10_000.0
    local: float = 0.0
    caps: tuple[float, float] = (0.0, 0.0)

    prefix = "model."
    copies = ((r"^lm_head\.weight$", "embed/table"),)
    buffers = r"rotary_emb\.inv_freq$"

    def objective(self, settings: Mapping[str, Any]) -> Causal:
        fields = Fields(settings)
        fields.refuse(attention_bias=False, use_bidirectional_attention=False)
        head = fields.get("head_dim", default=256)
        scale = fields.get("query_pre_attn_scalar", default=256) if self.sandwich else head
        windows = self.windows(settings, fields.get("num_hidden_layers"))
        # null means no cap, an absent field the default.
        caps = [settings.get(f"{place}_logit_softcapping", cap) or 0.0 for place, cap in zip(("attn", "final"), self.caps)]
        known = GATED if self.sandwich else {**GATED, "gelu": "geglu_tanh"}  # Gemma 1 writes gelu for the tanh form
        model = Transformer(
            **decoder(fields, head),
            activation=fields.one_of(self.activation, known, default="gelu_pytorch_tanh"),
            norm="rms_one",
            placement="sandwich" if self.sandwich else "pre",
            embed_scale="sqrt_width",
            rotary=self.rotary(fields, any(windows)),
            windows=windows,
            qk_norm=self.qk_norm,
            scale=scale**-0.5 if scale != head else 0.0,
            attention_cap=caps[0],
            logit_cap=caps[1],
            tied=fields.get("tie_word_embeddings", default=True),
            init=fields.get("initializer_range", default=0.02),
        )
        return Causal(model=model)

    def windows(self, settings: Mapping[str, Any], depth: int) -> tuple[int, ...]:
        """Read the attention windows of the layers: their shortest period."""
        if not self.period:
            return (0,)
        size = settings.get("sliding_window", self.window) or 0
        period = settings.get("sliding_window_pattern") or self.period
        kinds = settings.get("layer_types") or [SLIDING if (i + 1) % period else FULL for i in range(depth)]
        check(len(kinds) == depth, f"config.json: layer_types has {len(kinds)} entries for {depth} layers")
        odd = sorted(set(kinds) - {SLIDING, FULL})
        check(not odd, f"config.json: layer_types has {', '.join(odd)}; known: {SLIDING}, {FULL}")
        sizes = [size if kind == SLIDING else 0 for kind in kinds]
        # The shortest period: our configs state windows so, and a model that is written and read again must be equal.
        periods = (n for n in range(1, depth + 1) if all(one == sizes[i % n] for i, one in enumerate(sizes)))
        return tuple(sizes[: next(periods)])

    def rotary(self, fields: Fields, windowed: bool) -> Rotary:
        """Read base and scaling of the layers with full attention, and the base of those with a window."""
        if not self.local:
            return rotary(fields)
        both = fields.get("rope_parameters", default={})
        full, near = (both.get(kind) or {} for kind in (FULL, SLIDING))
        base, local = fields.get("rope_theta", default=self.base), fields.get("rope_local_base_freq", default=self.local)
        full = {"rope_theta": base, **fields.get("rope_scaling", default={}), **full}
        near = rotary(Fields({"rope_parameters": {"rope_theta": local, **near}}))
        check(near.scaling == "none", f"config.json: the rotary positions of layers with a window are stretched: {near}")
        # Without a window in any layer the second base is read by none: it must not make the models unequal.
        return replace(rotary(Fields({"rope_parameters": full})), local=near.base if windowed else 0.0)

    def settings(self, objective: Causal) -> dict[str, Any]:
        c = objective.model
        # Their field is the inverse square of our scale and a whole number: another scale would be rounded unseen.
        before = max(1, round(c.attention_scale**-2))
        check(abs(before**-0.5 / c.attention_scale - 1) < 1e-6, f"1 / scale^2 is no whole number for scale={c.attention_scale}")
        sizes = {size for size in c.windows if size}
        check(len(sizes) < 2, f"one size of window in all layers that have one, not {sorted(sizes)}")
        own = {
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
            **decoder_settings(c),
            self.activation: gate(c.activation),
            **(own if self.period else {}),
            **(local if self.local else {}),
            "attention_bias": False,
            "initializer_range": c.init,
        }

    def rules(self, objective: Causal) -> list[Rule]:
        # Gemma 1 kept Llama's name of the norm before the feed-forward; in 2 and 3 that name is the norm after the
        # attention.
        feed = "pre_feedforward" if self.sandwich else "post_attention"
        rules = decoder_rules(objective, attention(bias=False, norms=self.qk_norm), feed)
        if self.sandwich:
            for ours, theirs in (("norm0_out", "post_attention"), ("norm1_out", "post_feedforward")):
                rules += normal(f"stack/layers/{ours}", f"model.layers.{{i}}.{theirs}_layernorm", bias=False)
        return rules


FAMILIES = (
    Gemma("gemma", "GemmaForCausalLM", Heads("Gemma", "decoder", decoder_heads("score", None, TOKEN)),
          activation="hidden_act", sandwich=False),
    Gemma("gemma2", "Gemma2ForCausalLM", Heads("Gemma2", "decoder", decoder_heads("score", None, TOKEN)),
          period=2, caps=(50.0, 30.0)),
    Gemma("gemma3_text", "Gemma3ForCausalLM", Heads("Gemma3Text", "decoder", decoder_heads("", None)),
          qk_norm=True, period=6, base=1_000_000.0, local=10_000.0),
)  # fmt: skip
