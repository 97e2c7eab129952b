"""The config of the one Transformer stack: norms, positions, feed-forward and attention are choices from tables.

`lm.models.stack` holds the layers, `lm.models.model` the embeddings before and the vocabulary after them; published
models are `lm.models.presets`.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lm.errors import UserError, check, check_choices, check_range, unknown
from lm.models.adapters import Adapter
from lm.models.backends import CHOICES
from lm.models.experts import Experts
from lm.models.lora import Lora
from lm.models.mlp import ACTIVATIONS
from lm.models.norms import NORMS
from lm.models.positions import POSITIONS, Rotary
from lm.models.shape import Shape

DENSE = ("query", "key", "value", "out", "up", "gate", "down")  # names of a layer's matrices
# The fields whose choices are entries of a table.
TABLES = {"attention": CHOICES, "positions": POSITIONS, "norm": NORMS, "activation": ACTIVATIONS}


@dataclass(frozen=True, kw_only=True)
class Transformer(Shape):
    """Sizes and choices of one stack; a size of 0 stands for the usual value derived from the others.

    `embed`: width of the embedding tables where it differs from the model's (ALBERT, ELECTRA: projected). `offset`: row
    of the position table for position 0 (2 in RoBERTa and BART). `transform`: a dense layer, the activation and a norm
    before the vocabulary (BERT's masked-LM head). `share`: one set of parameters for all layers (ALBERT).

    `windows` is repeated over the layers: (4096, 0) alternates a sliding window with full attention. `mup_base` > 0: the
    width at which the learning rate was tuned, for maximal-update parametrisation (muP; Yang et al. 2022, table 8).
    `init_scale_depth` divides the init of residual outputs by sqrt(2 depth) (Radford et al. 2019); `init_fan_in` draws
    each matrix with 1/sqrt(inputs), queries with the attention's scale in them, embeddings with `init` (T5, where it is
    1); `init_truncate` truncates the normal distribution at two standard deviations (BERT). `unroll` (0: all) trades
    compile time for speed, `remat` computation for memory; neither changes parameters or results. `quantize` multiplies the
    dense layers of training in 8 bits (`lm.models.quantized`); decoding multiplies in `dtype`.
    """

    vocab: int = 0  # 0: the tokenizer's size
    pad_vocab: int = 1  # the table's rows are a multiple of this; the extra logits are masked
    context: int = 1024  # longest row, and the size of a learned position table
    width: int = 768
    embed: int = 0  # 0: width
    depth: int = 12
    heads: int = 12
    kv_heads: int = 0  # of grouped-query attention (GQA; 1: multi-query), 0: as many as heads
    head: int = 0  # 0: width / heads
    mlp: int = 0  # 0: 4 x width
    activation: str = "gelu_tanh"  # of lm.models.mlp.ACTIVATIONS
    norm: str = "layer"  # of lm.models.norms.NORMS
    placement: Literal["pre", "post", "sandwich"] = "pre"  # sandwich: before each sub-layer and on its output
    eps: float = 1e-5
    parallel: bool = False  # attention and feed-forward side by side from one norm
    types: int = 0  # rows of a token-type table, 0: none
    embed_norm: bool = False  # a norm behind the sum of embeddings (BERT)
    embed_scale: float | Literal["sqrt_width"] = 1.0  # factor on token embeddings (sqrt(width) in the Transformer)
    positions: str = "learned"  # of lm.models.positions.POSITIONS
    offset: int = 0
    rotary: Rotary = Rotary()
    windows: tuple[int, ...] = (0,)
    bias: bool = True  # biases in dense layers and norms
    qkv_bias: bool | None = None  # None: as bias
    qk_norm: bool = False  # norm of queries and keys, per head
    attention: str = "auto"  # of lm.models.backends.CHOICES
    scale: float = 0.0  # on attention scores; 0: 1/sqrt(head)
    share: bool = False
    tied: bool = True
    transform: bool = False
    head_bias: bool = False  # a bias per token on the logits (BERT)
    logit_scale: float | Literal["rsqrt_width"] = 1.0  # factor on the logits (1 / sqrt(width) in T5)
    logit_cap: float = 0.0  # c: logits are c tanh(logits / c), 0: not capped (Gemma 2)
    attention_cap: float = 0.0  # the same of attention scores
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0  # inside the feed-forward, after its activation
    last_dropout: bool = False  # after the stack's last norm too (T5)
    init: float = 0.02
    init_positions: float = 0.01  # standard deviation of the position table
    init_scale_depth: bool = True
    init_fan_in: bool = False
    init_truncate: bool = False
    mup_base: int = 0
    lora: Lora = Lora()
    adapter: Adapter = Adapter()
    experts: Experts = Experts()  # a mixture of experts in place of each feed-forward
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: int = 1
    remat: Literal["none", "dots", "full"] = "none"
    keep: tuple[str, ...] = ()  # dense layers, of lm.models.transformer.DENSE, whose outputs remat="full" keeps
    offload: bool = False  # what `remat` keeps waits in the host's memory for the backward pass
    quantize: Literal["none", "int8", "float8"] = "none"  # products of dense layers in 8 bits while training
    pipeline_batches: int = 0  # micro-batches through the stages of the mesh; 0: two a stage

    def __post_init__(self):
        check_choices(self)
        for name, table in TABLES.items():
            if getattr(self, name) not in table:
                raise unknown(name, getattr(self, name), list(table))
        # Sizes and rates on their own.
        check_range(self, 1, float("inf"), "pad_vocab", "context", "width", "depth", "heads")
        check_range(self, 0, float("inf"), "vocab", "kv_heads", "head", "mlp", "unroll", "mup_base", "embed", "types", "offset")
        check_range(self, 0, 1, "dropout", "attention_dropout", "mlp_dropout")
        check_range(self, 0, float("inf"), "eps", "init", "init_positions", "logit_cap", "attention_cap", "scale")
        for name, word in (("embed_scale", "sqrt_width"), ("logit_scale", "rsqrt_width")):
            if getattr(self, name) != word:
                check_range(self, -float("inf"), float("inf"), name)
        check(min(self.windows, default=-1) >= 0, f"windows={self.windows} must be at least 0: 0 is full attention")

        # Combinations: sizes that must divide, and choices that exclude each other.
        self.check_heads()
        if self.heads % self.kv:
            raise UserError(f"heads={self.heads} does not divide among kv_heads={self.kv}")
        if valid := POSITIONS[self.positions].check:
            valid(self)
        if self.parallel and self.placement != "pre":
            raise UserError("parallel blocks have their norm before: placement='pre'")
        if self.rotary.local and not any(self.windows):
            raise UserError(f"rotary.local={self.rotary.local} is the base of layers with a window: set windows")
        for name in self.keep:
            if name not in DENSE:
                raise unknown("keep", name, list(DENSE))
        check(not self.keep or self.remat == "full", f"keep={self.keep} names what remat='full' does not recompute")
        check(not self.offload or self.keep or self.remat == "dots", "offload moves what remat='dots' or keep=(...) keeps")
        check(not self.experts.count or self.quantize == "none", "experts have no products in 8 bits: quantize='none'")
        if self.experts.count and (self.mlp_dropout or self.parallel):
            raise UserError("experts have no dropout inside and no parallel form: mlp_dropout=0, parallel=False")
        if self.share and any(self.windows):
            raise UserError("layers that share their parameters have no windows of their own: share=False or windows=(0,)")

    @property
    def kv(self) -> int:
        return self.kv_heads or self.heads

    @property
    def mup(self) -> float:
        """Width over the tuned width; 1 without muP."""
        return self.width / self.mup_base if self.mup_base else 1.0

    @property
    def embed_factor(self) -> float:
        return self.width**0.5 if self.embed_scale == "sqrt_width" else float(self.embed_scale)

    @property
    def logit_factor(self) -> float:
        return self.width**-0.5 if self.logit_scale == "rsqrt_width" else float(self.logit_scale)

    @property
    def std(self) -> float:
        """Standard deviation at init of the matrices into a layer."""
        return self.init / math.sqrt(self.mup)

    @property
    def out_std(self) -> float:
        """Standard deviation at init of the matrices onto the residual stream."""
        return self.std / math.sqrt(2 * self.depth) if self.init_scale_depth else self.std

    @property
    def head_std(self) -> float:
        """Standard deviation at init of an untied vocabulary table."""
        return self.width**-0.5 if self.init_fan_in else self.init

    @property
    def attention_scale(self) -> float:
        """`scale`, else 1/sqrt(H); under muP proportional to 1/H and equal to 1/sqrt(H) at the tuned width."""
        if self.scale:
            return self.scale
        if not self.mup_base or self.head:
            return self.head_size**-0.5
        return (self.mup_base / self.heads) ** 0.5 / self.head_size

    def linear(self, inputs: int, *, out: bool = False, query: bool = False) -> dict[str, Any]:
        """Return the init of a matrix of so many inputs, as arguments of `Linear`; `out`: onto the residual stream."""
        std = self.out_std if out else self.std
        if self.init_fan_in:
            # T5's scores have no factor 1/sqrt(H): the queries' initialisation carries it.
            std = inputs**-0.5 * (self.head_size**-0.5 if query else 1.0)
        return {"std": std, "truncate": self.init_truncate}
