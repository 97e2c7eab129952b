"""T5, T5.1.1 and mT5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lm.convert.family import Family, Fields, Network, written
from lm.convert.layouts import Heads, pair
from lm.convert.rules import Rule, dense, normal
from lm.errors import check
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.objectives.span import Span

T5_FEEDS = {"relu": "relu", "gated-gelu": "geglu_tanh", "gated-silu": "swiglu"}
SIZES = {"vocab": "vocab_size", "width": "d_model", "mlp": "d_ff", "head": "d_kv", "heads": "num_heads"}
# Numbers of the sub-layers of a block; the decoder has cross-attention between the two.
SIDES = {"encoder": {"mlp": 1}, "decoder": {"cross": 1, "mlp": 2}}


@dataclass(frozen=True)
class T5(Family):
    """Pre-norm, no biases, relative attention buckets in the first block of each stack.

    `feed`: the activation of a config.json that names none. `scaled`: tied tables mean scaled logits.
    """

    name: str
    heads: Heads
    feed: str
    scaled: bool

    prefix = ""
    copies = ((r"^((en|de)coder\.embed_tokens|lm_head)\.weight$", "embed/table"),)
    buffers = ""

    def objective(self, settings: Mapping[str, Any]) -> Span:
        fields = Fields(settings)
        fields.refuse(relative_attention_num_buckets=32, relative_attention_max_distance=128)
        tied = fields.get("tie_word_embeddings", default=True)
        feed = fields.one_of("feed_forward_proj", T5_FEEDS, default=self.feed)
        rate = fields.get("dropout_rate", default=0.1)
        scaled = self.scaled and tied and settings.get("scale_decoder_outputs", True)
        # No length bounds the buckets, so the context is a choice. Scores are not divided by the root of the head's
        # size: T5 has that in its initialisation. Before a tied table it scales the states by 1 / sqrt(width).
        model = Transformer(
            **fields.sizes(SIZES), context=512, depth=fields.get("num_layers"), activation=feed, norm="rms",
            eps=fields.get("layer_norm_epsilon", default=1e-6), positions="bucket", bias=False, scale=1.0, tied=tied,
            logit_scale="rsqrt_width" if scaled else 1.0, last_dropout=True, init=1.0, init_fan_in=True,
            init_scale_depth=False, dropout=rate, attention_dropout=rate, mlp_dropout=rate,
        )  # fmt: skip
        depth = fields.get("num_decoder_layers", default=model.depth)
        return Span(model=EncoderDecoder(encoder=model, decoder=replace(model, depth=depth)))

    def settings(self, objective: Span) -> dict[str, Any]:
        c = objective.model.decoder
        feed = {ours: theirs for theirs, ours in T5_FEEDS.items()}.get(c.activation)
        check(feed is not None, f"T5 has no activation '{c.activation}'")
        # Without a tokenizer the id of the released vocabularies.
        end = 1 if objective.end is None else objective.end
        if isinstance(objective, Span | Network):  # as T5 itself: targets begin with padding
            ids = dict.fromkeys(("decoder_start_token_id", "pad_token_id"), objective.pad or 0)
        else:
            start = objective.start
            ids = {"decoder_start_token_id": end if start is None else start}
        return {
            "model_type": self.name,
            "architectures": [f"{self.heads.name}ForConditionalGeneration"],
            **written(c, SIZES),
            "num_layers": objective.model.encoder.depth,
            "num_decoder_layers": c.depth,
            "feed_forward_proj": feed,
            "layer_norm_epsilon": c.eps,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "dropout_rate": c.dropout,
            "tie_word_embeddings": c.tied,
            "scale_decoder_outputs": c.logit_factor != 1,
            **ids,
            "eos_token_id": end,
        }

    def rules(self, objective: Span) -> list[Rule]:
        found = [Rule("embed/table", "shared.weight")]
        for side, sub in SIDES.items():
            layer, ours = f"{side}.block.{{i}}.layer", f"{side}/layers"
            no: dict[str, Any] = {"bias": False}
            # Stored in the first block, shared by all layers of a side (Raffel et al. 2020, section 2.1).
            found.append(Rule(f"{side}/buckets", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"))
            found += normal(f"{ours}/norm0", f"{layer}.0.layer_norm", **no)
            found += normal(f"{ours}/norm1", f"{layer}.{sub['mlp']}.layer_norm", **no)
            found += normal(f"{side}/norm", f"{side}.final_layer_norm", **no)
            kinds = [("attention", 0, "SelfAttention")] + [("cross", 1, "EncDecAttention")] * ("cross" in sub)
            for name, number, theirs in kinds:
                for short, part in (("q", "query"), ("k", "key"), ("v", "value")):
                    found += dense(f"{ours}/{name}/{part}", f"{layer}.{number}.{theirs}.{short}", **no)
                found += dense(f"{ours}/{name}/out", f"{layer}.{number}.{theirs}.o", inputs=2, **no)
            if "cross" in sub:
                found += normal(f"{ours}/cross_norm", f"{layer}.1.layer_norm", **no)
            feed = f"{layer}.{sub['mlp']}.DenseReluDense"
            # In a gated feed-forward wi_0 is the part with the activation; a plain one has a single wi.
            gated = objective.model.decoder.activation != "relu"
            found += dense(f"{ours}/mlp/down", f"{feed}.wo", **no)
            found += dense(f"{ours}/mlp/{'gate' if gated else 'up'}", f"{feed}.{'wi_0' if gated else 'wi'}", **no)
            found += dense(f"{ours}/mlp/up", f"{feed}.wi_1", **no) if gated else []
        return found if objective.model.decoder.tied else [*found, Rule("output/table", "lm_head.weight")]


FAMILIES = (
    T5("t5", Heads("T5", "t5", pair("transformer.")), feed="relu", scaled=True),
    T5("mt5", Heads("MT5", "t5", pair("transformer.")), feed="gated-gelu", scaled=False),
)
