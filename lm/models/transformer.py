"""The one Transformer stack: a config picks norms, positions, feed-forward and attention; published models are presets.

`lm.models.stack` holds its layers, `lm.models.model` what is before and after them.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lm.errors import UserError, check, check_choices, check_range
from lm.models.adapters import Adapter
from lm.models.lora import Lora
from lm.models.positions import Rotary

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "swiglu", "geglu", "geglu_tanh", "reglu"]


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """Shape and choices of one stack; 0 stands for the usual value derived from the others.

    `embed` is the width of the tables where it is not the model's (ALBERT, ELECTRA: projected). `offset` is the row of
    the position table that position 0 takes (2 in RoBERTa and BART). `transform` puts a dense layer, the activation and
    a norm before the vocabulary (BERT's head for masked tokens). `share` gives all layers the same parameters (ALBERT).

    `windows` is repeated over the layers: (4096, 0) alternates a sliding window with full attention. `mup_base` > 0 turns
    maximal-update parametrisation on (Yang et al. 2022, table 8): the width at which the learning rate was tuned.
    `init_scale_depth` divides the init of residual outputs by sqrt(2 depth) (Radford et al. 2019); `init_fan_in` draws each
    matrix with 1/sqrt(inputs) and queries with the attention's scale in them, embeddings with `init` (T5, where it is
    1); `init_truncate` cuts the normal distribution off at two deviations (BERT). `unroll` (0: all)
    trades compile time for speed, `remat` computation for memory; neither changes parameters or results.
    """

    vocab: int = 0  # 0: the tokenizer's size
    pad_vocab: int = 1  # the table's rows are a multiple of this; the extra logits are masked
    context: int = 1024  # longest row, and the size of a learned position table
    width: int = 768
    embed: int = 0  # 0: width
    depth: int = 12
    heads: int = 12
    kv_heads: int = 0  # 0: as many as heads
    head: int = 0  # 0: width / heads
    mlp: int = 0  # 0: 4 x width
    activation: Activation = "gelu_tanh"
    norm: Literal["layer", "rms", "rms_one"] = "layer"
    placement: Literal["pre", "post", "sandwich"] = "pre"  # sandwich: before each sub-layer and on what it gives
    eps: float = 1e-5
    parallel: bool = False  # attention and feed-forward side by side from one norm
    types: int = 0  # rows of a token-type table, 0: none
    embed_norm: bool = False
    embed_scale: float = 1.0
    positions: Literal["learned", "sinusoidal", "rotary", "alibi", "bucket", "none"] = "learned"
    offset: int = 0
    rotary: Rotary = Rotary()
    windows: tuple[int, ...] = (0,)
    bias: bool = True
    qkv_bias: bool | None = None  # None: as bias
    qk_norm: bool = False
    scale: float = 0.0  # on attention scores; 0: 1/sqrt(head)
    share: bool = False
    tied: bool = True
    transform: bool = False
    head_bias: bool = False
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    attention_cap: float = 0.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0  # inside the feed-forward, after its activation
    last_dropout: bool = False  # after the stack's last norm too (T5)
    init: float = 0.02
    init_positions: float = 0.01
    init_scale_depth: bool = True
    init_fan_in: bool = False
    init_truncate: bool = False
    mup_base: int = 0
    lora: Lora = Lora()
    adapter: Adapter = Adapter()
    dtype: Literal["float32", "bfloat16"] = "float32"
    unroll: int = 1
    remat: Literal["none", "dots", "full"] = "none"

    def __post_init__(self):
        check_choices(self)
        check_range(self, 1, float("inf"), "pad_vocab", "context", "width", "depth", "heads")
        check_range(
            self, 0, float("inf"), "vocab", "kv_heads", "head", "mlp", "unroll", "mup_base", "embed", "types", "offset"
        )
        check_range(self, 0, 1, "dropout", "attention_dropout", "mlp_dropout")
        check_range(self, 0, float("inf"), "eps", "init", "init_positions", "logit_cap", "attention_cap", "scale")
        check_range(self, -float("inf"), float("inf"), "embed_scale", "logit_scale")
        check(min(self.windows, default=-1) >= 0, f"windows={self.windows} must be at least 0: 0 is full attention")
        if not self.head and self.width % self.heads:
            raise UserError(f"width={self.width} does not divide among heads={self.heads}; set head as well")
        if self.heads % self.kv:
            raise UserError(f"heads={self.heads} does not divide among kv_heads={self.kv}")
        if self.positions == "rotary" and int(self.head_size * self.rotary.share) % 2:
            raise UserError(f"rotary positions need an even head size, not {self.head_size} x {self.rotary.share}")
        if self.positions == "rotary" and self.rotary.scaling == "ntk" and int(self.head_size * self.rotary.share) < 4:
            raise UserError("rotary scaling 'ntk' needs more than one pair of each head to turn")
        if self.positions == "sinusoidal" and self.width % 2:
            raise UserError(f"sinusoidal positions need an even width, not {self.width}")
        if self.parallel and self.placement != "pre":
            raise UserError("parallel blocks have their norm before: placement='pre'")
        if self.rotary.local and not any(self.windows):
            raise UserError(f"rotary.local={self.rotary.local} is the base of layers with a window: set windows")
        if self.share and any(self.windows):
            raise UserError(
                "layers that share their parameters have no windows of their own: share=False or windows=(0,)"
            )

    @property
    def embed_size(self) -> int:
        """Width of the embedding tables."""
        return self.embed or self.width

    @property
    def head_size(self) -> int:
        return self.head or self.width // self.heads

    @property
    def kv(self) -> int:
        return self.kv_heads or self.heads

    @property
    def mlp_size(self) -> int:
        return self.mlp or 4 * self.width

    @property
    def rows(self) -> int:
        """Rows of the embedding table."""
        return -(-self.vocab // self.pad_vocab) * self.pad_vocab

    @property
    def mup(self) -> float:
        """Width over the tuned width; 1 without muP."""
        return self.width / self.mup_base if self.mup_base else 1.0

    @property
    def std(self) -> float:
        """Init of the matrices into a layer."""
        return self.init / math.sqrt(self.mup)

    @property
    def out_std(self) -> float:
        """Init of the matrices onto the residual stream."""
        return self.std / math.sqrt(2 * self.depth) if self.init_scale_depth else self.std

    @property
    def head_std(self) -> float:
        """Init of an untied vocabulary table."""
        return self.width**-0.5 if self.init_fan_in else self.init

    @property
    def attention_scale(self) -> float:
        """1/sqrt(H) unless given; under muP proportional to 1/H and equal to it at the tuned width."""
        if self.scale:
            return self.scale
        if not self.mup_base or self.head:
            return self.head_size**-0.5
        return (self.mup_base / self.heads) ** 0.5 / self.head_size

    def linear(self, inputs: int, *, out: bool = False, query: bool = False) -> dict[str, Any]:
        """Init of a matrix of that many inputs: `out` onto the residual stream, `query` of scores."""
        std = self.out_std if out else self.std
        if self.init_fan_in:
            std = inputs**-0.5 * (self.head_size**-0.5 if query else 1.0)
        return {"std": std, "truncate": self.init_truncate}
