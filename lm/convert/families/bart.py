"""BART, mBART and MarianMT: one table, with norms before or after the sub-layers and learned or fixed positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm.convert.family import ACTIVATIONS, Family, Fields, name_of, written
from lm.convert.layouts import Heads, pair
from lm.convert.rules import Rule, dense, normal
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.objectives.denoise import Denoise
from lm.objectives.seq2seq import Seq2seq

SIDES = ("encoder", "decoder")
SIZES = {"vocab": "vocab_size", "context": "max_position_embeddings", "width": "d_model"}


@dataclass(frozen=True)
class Bart(Family):
    """A release. `before`: pre-norm with a final norm after each stack, else post-norm.

    `fixed`: sinusoids and no norm on the embeddings, else learned positions from row 2 and a norm. `head_bias`: a bias of
    the logits; the other releases have a buffer for it, read as a parameter only where it is not zeros.
    """

    name: str
    architecture: str
    heads: Heads | None
    kind: type[Denoise] | type[Seq2seq] = Denoise
    before: bool = False
    fixed: bool = False
    head_bias: bool = False

    prefix = "model."
    copies = ((r"embed_tokens\.weight$|^lm_head\.weight$", "embed/table"),)

    @property
    def buffers(self) -> str:
        return r"embed_positions\.weight$" if self.fixed else r"(^|\.)final_logits_bias$"

    def objective(self, settings: Mapping[str, Any]) -> Denoise | Seq2seq:
        fields = Fields(settings)
        fields.refuse(normalize_before=self.before, add_final_layer_norm=self.before, normalize_embedding=not self.fixed)
        fields.refuse(static_position_embeddings=self.fixed, add_bias_logits=False, tie_word_embeddings=True)
        # One table serves both sides here; Marian also has files with a vocabulary per language.
        fields.refuse(share_encoder_decoder_embeddings=True, decoder_vocab_size=settings.get("vocab_size"))
        std = fields.get("init_std", default=0.02)

        def stack(side: str) -> Transformer:
            return Transformer(
                **fields.sizes(SIZES),
                # Learned tables are read from row 2: fairseq counted positions from behind the padding's id, 1.
                offset=0 if self.fixed else 2,
                depth=fields.get(f"{side}_layers"),
                heads=fields.get(f"{side}_attention_heads"),
                mlp=fields.get(f"{side}_ffn_dim"),
                activation=fields.one_of("activation_function", ACTIVATIONS, default="gelu"),
                placement="pre" if self.before else "post",
                positions="sinusoidal" if self.fixed else "learned",
                embed_norm=not self.fixed,
                embed_scale="sqrt_width" if fields.get("scale_embedding", default=False) else 1.0,
                head_bias=fields.get("final_logits_bias", default=self.head_bias),
                dropout=fields.get("dropout", default=0.1),
                attention_dropout=fields.get("attention_dropout", default=0.0),
                mlp_dropout=fields.get("activation_dropout", default=0.0),
                init=std,
                init_positions=std,
                init_scale_depth=False,
            )

        # None is the end token of whatever tokenizer is at hand, so that it stays right under another vocabulary.
        first, end = settings.get("decoder_start_token_id"), fields.get("eos_token_id", default=0 if self.fixed else 2)
        start = first if first != end else None
        return self.kind(model=EncoderDecoder(encoder=stack("encoder"), decoder=stack("decoder")), start=start)

    def settings(self, objective: Denoise | Seq2seq) -> dict[str, Any]:
        c = objective.model.decoder
        # The sides may differ in depth, heads and feed-forward, as those of distilled models do.
        sizes: dict[str, Any] = {}
        for side in SIDES:
            names = {"depth": f"{side}_layers", "heads": f"{side}_attention_heads", "mlp": f"{side}_ffn_dim"}
            sizes |= written(getattr(objective.model, side), names)
        return {
            "model_type": self.name,
            "architectures": [self.architecture],
            **written(c, SIZES),
            **sizes,
            **self.ids(objective),
            "activation_function": name_of(c.activation),
            "dropout": c.dropout,
            "attention_dropout": c.attention_dropout,
            "activation_dropout": c.mlp_dropout,
            "init_std": c.init,
            "scale_embedding": c.embed_factor != 1,
            "tie_word_embeddings": True,
        }

    def ids(self, objective: Denoise | Seq2seq) -> dict[str, Any]:
        """Return the ids of start and end; without a tokenizer those of the release.

        `final_logits_bias` is a field of ours, which transformers ignores.
        """
        bias = objective.model.decoder.head_bias
        found: dict[str, Any] = {"final_logits_bias": bias} if bias != self.head_bias else {}
        start = objective.start
        end = (0 if self.fixed else 2) if objective.end is None else objective.end
        found |= {"decoder_start_token_id": end if start is None else start, "eos_token_id": end}
        begin = objective.begin
        found |= {} if begin is None else {"bos_token_id": begin}
        return found if objective.end is None else {**found, "forced_eos_token_id": end}

    def rules(self, objective: Denoise | Seq2seq) -> list[Rule]:
        found = [Rule("embed/table", "model.shared.weight")]
        for side in SIDES:
            root, ours, layer = f"model.{side}", f"{side}/layers", f"model.{side}.layers.{{i}}"
            if not self.fixed:
                found.append(Rule(f"{side}_input/places/table", f"{root}.embed_positions.weight"))
                found += normal(f"{side}_input/norm", f"{root}.layernorm_embedding")
            found += normal(f"{side}/norm", f"{root}.layer_norm") if self.before else []
            kinds = [("attention", "self_attn", "norm0")] + [("cross", "encoder_attn", "cross_norm")] * (side == "decoder")
            for name, theirs, norm in kinds:
                for part in ("query", "key", "value"):
                    found += dense(f"{ours}/{name}/{part}", f"{layer}.{theirs}.{part[0]}_proj")
                found += dense(f"{ours}/{name}/out", f"{layer}.{theirs}.out_proj", inputs=2)
                found += normal(f"{ours}/{norm}", f"{layer}.{theirs}_layer_norm")
            found += dense(f"{ours}/mlp/up", f"{layer}.fc1") + dense(f"{ours}/mlp/down", f"{layer}.fc2")
            found += normal(f"{ours}/norm1", f"{layer}.final_layer_norm")
        biased = objective.model.decoder.head_bias
        return [*found, Rule("head_bias", "final_logits_bias", lead=1)] if biased else found


FAMILIES = (
    Bart("bart", "BartForConditionalGeneration", Heads("Bart", "roberta", pair())),
    Bart("mbart", "MBartForConditionalGeneration", Heads("MBart", "roberta", pair()), before=True),
    Bart("marian", "MarianMTModel", None, kind=Seq2seq, fixed=True, head_bias=True),
)
