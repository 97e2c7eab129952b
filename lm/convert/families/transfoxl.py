"""Transformer-XL (Hugging Face's TransfoXL, up to their version 4.35): relative attention, memory, adaptive vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm.convert.family import Family, Fields, written
from lm.convert.rules import Rule, dense, normal
from lm.errors import check
from lm.models.memory import TransformerXL
from lm.objectives.recurrent import Recurrent

SIZES = {"width": "d_model", "depth": "n_layer", "mlp": "d_inner"}
VECTORS = {"content_bias": "r_w_bias", "position_bias": "r_r_bias"}


class TransfoXL(Family):
    """Table, projection and bias of each cluster of the vocabulary; layers with query, key and value in one matrix.

    The length of a segment is no part of a file, so the context is free. Their memory starts with zeros; "begin" is a
    field of ours in config.json, which transformers ignores.
    """

    name = "transfo-xl"
    prefix = "transformer."
    heads = None
    copies = (
        (r"^crit\.out_layers\.(\d+)\.weight$", r"embed/table\1"),
        (r"^crit\.out_projs\.(\d+)$", r"embed/input\1"),
        (r"^crit\.out_projs\.\d+$", "embed/input0"),
        (r"dec_attn\.r_w_bias$", "content_bias"),
        (r"dec_attn\.r_r_bias$", "position_bias"),
    )
    buffers = r"pos_emb\.inv_freq$"

    def objective(self, settings: Mapping[str, Any]) -> Recurrent:
        fields = Fields(settings)
        fields.refuse(attn_type=0, sample_softmax=-1, ext_len=0, tie_weight=True, tie_word_embeddings=True)
        # Defaults of absent fields are those of their class in transformers.
        width, embed = fields.get("d_model"), fields.get("d_embed")
        cutoffs, dropout = tuple(fields.get("cutoffs", default=())), fields.get("dropout", default=0.1)
        shared = fields.get("proj_share_all_but_first", default=True)
        ties = tuple(fields.get("tie_projs", default=(False, *[shared] * len(cutoffs))))
        heads, head = fields.get("n_head"), fields.get("d_head")
        model = TransformerXL(
            vocab=fields.get("vocab_size", "n_token"),
            context=fields.get("tgt_len", default=128),
            memory=fields.get("mem_len", default=1600),
            **fields.sizes(SIZES),
            heads=heads,
            head=head if head * heads != width else 0,
            embed=embed if embed != width else 0,
            cutoffs=cutoffs,
            divide=fields.get("div_val", default=4),
            tied_projections=ties if ties != (False, *[True] * len(cutoffs)) else (),
            placement="pre" if fields.get("pre_lnorm", default=False) else "post",
            eps=fields.get("layer_norm_epsilon", default=1e-5),
            shared_biases=not fields.get("untie_r", default=True),
            clamp=max(0, fields.get("clamp_len", default=1000)),
            same_length=fields.get("same_length", default=True),
            begin=fields.one_of("begin", {"nothing": "nothing", "zeros": "zeros"}, default="zeros"),
            dropout=dropout,
            attention_dropout=fields.get("dropatt", default=0.0),
            position_dropout=dropout,
            init=fields.get("init_std", default=0.02),
            init_projections=fields.get("proj_init_std", default=0.01),
        )
        return Recurrent(model=model)

    def settings(self, objective: Recurrent) -> dict[str, Any]:
        c = objective.model
        check(c.order == "rising", f"order='{c.order}': their clusters stand in the head in rising order")
        return {
            "model_type": "transfo-xl",
            "architectures": ["TransfoXLLMHeadModel"],
            **written(c, {**SIZES, "vocab": "vocab_size", "context": "tgt_len", "memory": "mem_len", "embed": "d_embed",
                          "heads": "n_head", "head": "d_head"}),
            "cutoffs": list(c.cutoffs),
            "div_val": c.divide,
            "tie_projs": list(c.ties),
            "pre_lnorm": c.placement == "pre",
            "layer_norm_epsilon": c.eps,
            "untie_r": not c.shared_biases,
            "clamp_len": c.clamp or -1,
            "same_length": c.same_length,
            "begin": c.begin,
            "adaptive": True,
            "attn_type": 0,
            "dropout": c.dropout,
            "dropatt": c.attention_dropout,
            "init_std": c.init,
            "proj_init_std": c.init_projections,
        }  # fmt: skip

    def rules(self, objective: Recurrent) -> list[Rule]:
        c, layer, ours = objective.model, "transformer.layers.{i}", "layers"
        found = [
            *dense(f"{ours}/attention/position", f"{layer}.dec_attn.r_net", bias=False),
            *dense(f"{ours}/attention/out", f"{layer}.dec_attn.o_net", bias=False, inputs=2),
            *normal(f"{ours}/norm0", f"{layer}.dec_attn.layer_norm"),
            *dense(f"{ours}/up", f"{layer}.pos_ff.CoreNet.0"),
            *dense(f"{ours}/down", f"{layer}.pos_ff.CoreNet.3"),
            *normal(f"{ours}/norm1", f"{layer}.pos_ff.layer_norm"),
        ]
        for k, name in enumerate(("query", "key", "value")):
            found += dense(f"{ours}/attention/{name}", f"{layer}.dec_attn.qkv_net", bias=False, part=(k, 3))
        for name, theirs in VECTORS.items():
            own = Rule(f"{ours}/attention/{name}", f"{layer}.dec_attn.{theirs}")
            found.append(Rule(name, f"transformer.{theirs}") if c.shared_biases else own)
        for i in range(len(c.cutoffs) + 1):
            # With div_val=1 one table serves all clusters.
            if i == 0 or c.divide > 1:
                found.append(Rule(f"embed/table{i}", f"transformer.word_emb.emb_layers.{i}.weight"))
                found.append(Rule(f"embed/input{i}", f"transformer.word_emb.emb_projs.{i}"))
                found.append(Rule(f"embed/bias{i}", f"crit.out_layers.{i}.bias"))
            found += [Rule(f"embed/output{i}", f"crit.out_projs.{i}")] * (not c.ties[i])
        if c.cutoffs:
            found += [Rule("embed/cluster_table", "crit.cluster_weight"), Rule("embed/cluster_bias", "crit.cluster_bias")]
        return found


FAMILIES = (TransfoXL(),)
