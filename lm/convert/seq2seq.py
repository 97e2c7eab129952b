"""T5 and T5.1.1 (mT5 too), BART."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm.convert.family import ACTIVATIONS, Fields, name_of
from lm.convert.rules import Rule, dense, normal
from lm.errors import check
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.objectives.denoise import Denoise
from lm.objectives.span import Span

T5_FEEDS = {"relu": "relu", "gated-gelu": "geglu_tanh", "gated-silu": "swiglu"}
# Theirs: sub-layers of a block by number; the decoder has attention to the source between the two.
SIDES = {"encoder": {"mlp": 1}, "decoder": {"cross": 1, "mlp": 2}}


class T5:
    """Norms before, no biases, a table of distances in the first block of each stack."""

    types = ("t5", "mt5")
    prefix = ""
    ignored = r"^(en|de)coder\.embed_tokens\.weight$|^lm_head\.weight$"

    def objective(self, settings: Mapping[str, Any]) -> Span:
        fields = Fields(settings)
        fields.refuse(relative_attention_num_buckets=32, relative_attention_max_distance=128)
        width, tied = fields.get("d_model"), fields.get("tie_word_embeddings", default=True)
        feed = fields.one_of("feed_forward_proj", T5_FEEDS, default="relu")
        rate = fields.get("dropout_rate", default=0.1)
        scaled = tied and settings.get("scale_decoder_outputs", True)
        model = Transformer(
            vocab=fields.get("vocab_size"), context=512, width=width, mlp=fields.get("d_ff"), head=fields.get("d_kv"),
            heads=fields.get("num_heads"), depth=fields.get("num_layers"), activation=feed, norm="rms",
            eps=fields.get("layer_norm_epsilon", default=1e-6), positions="bucket", bias=False, scale=1.0, tied=tied,
            logit_scale=width**-0.5 if scaled else 1.0, last_dropout=True, init=1.0, init_fan_in=True,
            init_scale_depth=False, dropout=rate, attention_dropout=rate, mlp_dropout=rate,
        )  # fmt: skip
        depth = fields.get("num_decoder_layers", default=model.depth)
        return Span(model=EncoderDecoder(encoder=model, decoder=replace(model, depth=depth)))

    def settings(self, objective: Span) -> dict[str, Any]:
        c = objective.model.decoder
        feed = {ours: theirs for theirs, ours in T5_FEEDS.items()}.get(c.activation)
        check(feed is not None, f"T5 has no activation '{c.activation}'")
        return {
            "model_type": "t5",
            "architectures": ["T5ForConditionalGeneration"],
            "vocab_size": c.vocab,
            "d_model": c.width,
            "d_ff": c.mlp_size,
            "d_kv": c.head_size,
            "num_heads": c.heads,
            "num_layers": objective.model.encoder.depth,
            "num_decoder_layers": c.depth,
            "feed_forward_proj": feed,
            "layer_norm_epsilon": c.eps,
            "relative_attention_num_buckets": 32,
            "relative_attention_max_distance": 128,
            "dropout_rate": c.dropout,
            "tie_word_embeddings": c.tied,
            "scale_decoder_outputs": c.logit_scale != 1,
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
            "eos_token_id": 1,
        }

    def rules(self, objective: Span) -> list[Rule]:
        found = [Rule("embed/table", "shared.weight")]
        for side, sub in SIDES.items():
            layer, ours, no = f"{side}.block.{{i}}.layer", f"{side}/layers", {"bias": False}
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
            gated = objective.model.decoder.activation != "relu"
            found += dense(f"{ours}/mlp/down", f"{feed}.wo", **no)
            found += dense(f"{ours}/mlp/{'gate' if gated else 'up'}", f"{feed}.{'wi_0' if gated else 'wi'}", **no)
            found += dense(f"{ours}/mlp/up", f"{feed}.wi_1", **no) if gated else []
        return found if objective.model.decoder.tied else [*found, Rule("output/table", "lm_head.weight")]


class Bart:
    """Norms after, learned positions from row 2, a norm on the embeddings of both stacks."""

    types = ("bart",)
    prefix = "model."
    ignored = r"embed_tokens\.weight$|^lm_head\.weight$|^final_logits_bias$"

    def objective(self, settings: Mapping[str, Any]) -> Denoise:
        fields = Fields(settings)
        fields.refuse(scale_embedding=False, normalize_before=False, add_final_layer_norm=False, tie_word_embeddings=True)
        fields.refuse(normalize_embedding=True, add_bias_logits=False)

        def stack(side):
            return Transformer(
                vocab=fields.get("vocab_size"),
                context=fields.get("max_position_embeddings"),
                offset=2,
                width=fields.get("d_model"),
                depth=fields.get(f"{side}_layers"),
                heads=fields.get(f"{side}_attention_heads"),
                mlp=fields.get(f"{side}_ffn_dim"),
                activation=fields.one_of("activation_function", ACTIVATIONS, default="gelu"),
                placement="post",
                embed_norm=True,
                dropout=fields.get("dropout", default=0.1),
                attention_dropout=fields.get("attention_dropout", default=0.0),
                mlp_dropout=fields.get("activation_dropout", default=0.0),
                init=fields.get("init_std", default=0.02),
                init_positions=fields.get("init_std", default=0.02),
                init_scale_depth=False,
            )

        return Denoise(model=EncoderDecoder(encoder=stack("encoder"), decoder=stack("decoder")))

    def settings(self, objective: Denoise) -> dict[str, Any]:
        c, found = objective.model.decoder, {}
        for side in ("encoder", "decoder"):
            one = getattr(objective.model, side)
            found |= {f"{side}_layers": one.depth, f"{side}_attention_heads": one.heads, f"{side}_ffn_dim": one.mlp_size}
        return {
            "model_type": "bart",
            "architectures": ["BartForConditionalGeneration"],
            "vocab_size": c.vocab,
            "max_position_embeddings": c.context,
            "d_model": c.width,
            **found,
            "activation_function": name_of(c.activation),
            "dropout": c.dropout,
            "attention_dropout": c.attention_dropout,
            "activation_dropout": c.mlp_dropout,
            "init_std": c.init,
            "scale_embedding": False,
            "tie_word_embeddings": True,
            "decoder_start_token_id": 2 if objective.end is None else objective.end,
        }

    def rules(self, objective: Denoise) -> list[Rule]:
        found = [Rule("embed/table", "model.shared.weight")]
        for side in SIDES:
            root, ours, layer = f"model.{side}", f"{side}/layers", f"model.{side}.layers.{{i}}"
            found.append(Rule(f"{side}_input/places/table", f"{root}.embed_positions.weight"))
            found += normal(f"{side}_input/norm", f"{root}.layernorm_embedding")
            kinds = [("attention", "self_attn", "norm0")] + [("cross", "encoder_attn", "cross_norm")] * (side == "decoder")
            for name, theirs, norm in kinds:
                for part in ("query", "key", "value"):
                    found += dense(f"{ours}/{name}/{part}", f"{layer}.{theirs}.{part[0]}_proj")
                found += dense(f"{ours}/{name}/out", f"{layer}.{theirs}.out_proj", inputs=2)
                found += normal(f"{ours}/{norm}", f"{layer}.{theirs}_layer_norm")
            found += dense(f"{ours}/mlp/up", f"{layer}.fc1") + dense(f"{ours}/mlp/down", f"{layer}.fc2")
            found += normal(f"{ours}/norm1", f"{layer}.final_layer_norm")
        return found


FAMILIES = (T5(), Bart())
