"""The pre-trained network of a fine-tuning objective: the rows it reads, its states, the head on them.

Parameters keep their names of pre-training; those of the vocabulary head are left out.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.corruption.permutation import NEVER
from lm.data.corpus.corpus import Corpus
from lm.data.rows.packing import lay
from lm.data.rows.templates import SPECIAL, Frame, Laid, Style, style_of
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import ExampleSet
from lm.errors import UserError, check, check_choices, check_range
from lm.models import flops
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import gather
from lm.models.model import Model
from lm.models.pooling import Inner, Scores
from lm.models.transformer import Transformer
from lm.models.two_stream import TwoStream, XLNet
from lm.objectives.base import Batch, Example
from lm.objectives.rows import row_flops
from lm.sharding import Named

Stacks = Transformer | EncoderDecoder  # rows of these may hold several texts
Trunk = Stacks | XLNet
VOCABULARY = ("transform", "head_bias", "output", "query")  # parameters that serve the vocabulary alone


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Layout of texts in rows.

    `length`: maximum tokens of an example (0: the model's context); longer ones are truncated or read in windows, by the
    objective. `row`: tokens of a row of several examples that do not attend to each other (0: `length`, or two or four
    times that where rows would have much padding). `pack=False`: one example a row, which XLNet needs. `causal`: the
    network reads from left to right (GPT). `style`: the special tokens (`lm.data.rows.templates`), "auto": those of the
    network and its vocabulary.

    `mix`: heads read a learned sum of the states after the embeddings and after every layer instead of the last ones,
    scale x sum of softmax(weights)_l h_l (Peters et al. 2018, eq. 1; Tenney et al. 2019), initially their mean. The last
    states have the stack's final norm; those of an encoder-decoder are the decoder's.
    """

    length: int = 0
    row: int = 0
    pack: bool = True
    causal: bool = False
    style: Literal["auto", Style] = "auto"
    mix: bool = False

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 0, float("inf"), "length", "row")


@dataclass(frozen=True, kw_only=True)
class Head:
    """Layers between the state of a sequence and its scores.

    `inner`: "pooler" (BERT), "summary" (XLNet), "dense" (RoBERTa, ELECTRA, BART), "none"; "auto": that of the network's
    family. `pool`: the state of the "first" or "last" token, or the "mean" over all. `activation`: of "summary" and
    "dense" (ELECTRA: gelu). `dropout`: before each linear layer. `bias`: of the last layer; GPT's has none.
    """

    inner: Literal["auto", Inner] = "auto"
    pool: Literal["auto", "first", "last", "mean"] = "auto"
    activation: Literal["tanh", "gelu", "relu"] = "tanh"
    dropout: float = 0.0
    bias: bool | None = None  # None: unless the network is causal

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 0, 1, "dropout")


# -- on the host -------------------------------------------------------------------------------------------------------


def limit(model: Trunk, rows: Rows) -> int:
    """Return the maximum tokens of an example."""
    context = model.encoder.context if isinstance(model, EncoderDecoder) else model.context
    length = rows.length or context
    check(length <= context, f"rows.length={length} is more than the model's context={context}")
    return length


def check_rows(model: Trunk, rows: Rows) -> None:
    """Raise UserError for rows that the network cannot read."""
    longest = limit(model, rows)
    check(not rows.row or rows.row >= longest, f"rows.row={rows.row} is shorter than an example, {longest}")
    if isinstance(model, XLNet):
        check(not rows.pack and rows.row in (0, longest), "XLNet sees all of a row: rows.pack=False")
        check(not rows.mix, "XLNet's layers are not mixed: rows.mix=False, or another network")
    check(rows.pack or rows.row in (0, longest), f"rows.row={rows.row} with one example a row: leave it at 0")
    check(not rows.causal or isinstance(model, Transformer), "rows.causal is for a single stack: a GPT")


def is_pair(model: Trunk) -> bool:
    """Return whether the network is an encoder-decoder."""
    return isinstance(model, EncoderDecoder)


def family(model: Trunk, rows: Rows) -> str:
    """Return the kind of network by which `lm.data.rows.templates.style_of` selects special tokens."""
    if isinstance(model, XLNet):
        return "xlnet"
    return "pair" if isinstance(model, EncoderDecoder) else "decoder" if rows.causal else "encoder"


def special(model: Trunk, rows: Rows) -> tuple[str, ...]:
    """List the special tokens that the tokenizer must have."""
    style = rows.style
    if style == "auto":
        style = "xlnet" if isinstance(model, XLNet) else "decoder" if rows.causal else "bert"
        if isinstance(model, EncoderDecoder):
            return ("[PAD]", "[SEP]")
    return SPECIAL[style]


def frame(model: Trunk, rows: Rows, tokenizer: Tokenizer) -> Frame:
    """Return the template of special tokens around texts."""
    style = style_of(tokenizer.core, family(model, rows)) if rows.style == "auto" else rows.style
    return Frame(tokenizer, style)


def lay_row(sequences: Sequence[Laid], model: Trunk, frame: Frame, length: int) -> tuple[Example, np.ndarray]:
    """Pack sequences into a row of arrays [length]; return it and where each starts, int64 [n + 1], the end last."""
    tokens = [sequence.tokens for sequence in sequences]
    starts = np.cumsum([0, *map(len, tokens)])
    if starts[-1] > length:
        raise ValueError(f"{starts[-1]} tokens for a row of {length}")
    packed, segments, positions = lay(tokens, length)
    row = {"tokens": packed, "segments": segments, "positions": positions}
    if isinstance(model, EncoderDecoder):  # as in BART, the decoder reads the source too, shifted right by one token
        shifted = lay([np.concatenate([[frame.start], ids[:-1]]) for ids in tokens], length)[0].astype(np.int32)
        source = {"source": packed, "source_segments": segments, "source_positions": positions}
        return row | {"tokens": shifted} | source, starts
    if isinstance(model, XLNet) or model.types:
        row["types"] = lay([sequence.types for sequence in sequences], length)[0]
    return row, starts


EMPTY = "no example in this row"


def texts_of(tokenizer: Tokenizer, row: Example) -> list[str]:
    """Decode each sequence of a row, on one line."""
    side, tokens = ("source_segments", "source") if "source" in row else ("segments", "tokens")
    parts = [row[tokens][row[side] == k] for k in range(1, int(row[side].max(initial=0)) + 1)]
    return [" ".join(tokenizer.decode(part, special=True).split()) for part in parts]


def examples_of(corpus: Corpus) -> list[Any]:
    """Return all training examples; raises UserError for a corpus of running text."""
    for _, side in corpus.train:
        check(
            isinstance(side, ExampleSet),
            "this objective learns from labelled examples, not running text: data.source is one of Labelled, Columns, "
            "Entities, Questions, TfdsExamples",
        )
    return [example for _, side in corpus.train for example in side.examples]


# -- on the device -----------------------------------------------------------------------------------------------------


def bare(model: Trunk) -> Any:
    """Return the network without output layers on the vocabulary."""
    if isinstance(model, EncoderDecoder):
        return dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, tied=True, head_bias=False))
    if isinstance(model, Transformer):
        # `transform` permits a tied table of another width than the stack (ALBERT); its parameters are dropped.
        return dataclasses.replace(model, tied=True, head_bias=False, transform=True)
    return model


def draw(model: Trunk, key: jax.Array, rows: Rows = Rows()) -> dict[str, Any]:
    """Draw the network's parameters, without those that serve the vocabulary alone, and the weights of `Rows.mix`."""
    # Drawn by the pre-training module and pruned: names and shapes are those of its checkpoints.
    tokens = jnp.zeros((1, 8), jnp.int32)
    if isinstance(model, EncoderDecoder):
        params = Seq2Seq(bare(model)).init(key, tokens, tokens)["params"]
    else:
        module = TwoStream(model) if isinstance(model, XLNet) else Model(bare(model))
        params = module.init(key, tokens)["params"]
    kept = {name: tree for name, tree in params.items() if name not in VOCABULARY}
    if rows.mix:
        kept["mix"] = {"weights": Named(jnp.zeros(stack_of(model).depth + 1), (None,)), "scale": Named(jnp.ones(()), ())}
    return kept


def states(model: Trunk, params: Any, batch: Batch, keys_B: jax.Array | None, causal: bool) -> jax.Array:
    """Return the states of all tokens (B, T, D): the (decoder's) last layer's, or the mix of layers (`Rows.mix`)."""
    tokens, positions, segments = batch["tokens"], batch["positions"], batch["segments"]
    if isinstance(model, XLNet):
        # Equal ranks are no permutation: every real token sees every other, and padding, ranked last, is seen by none.
        unused = {"query": jnp.zeros(model.width), "head_bias": jnp.zeros(model.rows)}
        ranks = jnp.where(segments > 0, 0, NEVER)
        more = {"types_BT": batch["types"], "rank_BT": ranks, "keys_B": keys_B}
        return TwoStream(model).apply({"params": {**params, **unused}}, tokens, **more)[0]
    variables, mix = {"params": params}, params.get("mix")
    if isinstance(model, EncoderDecoder):
        places = {"positions_BT": positions, "segments_BT": segments, "keys_B": keys_B}
        places |= {f"source_{name}_BS": batch[f"source_{name}"] for name in ("positions", "segments")}
        result = Seq2Seq(bare(model)).apply(variables, batch["source"], tokens, **places, collect=mix is not None)
        return result if mix is None else mixed(mix, *result)
    types_BT, collect = batch.get("types"), mix is not None
    result = Model(bare(model)).apply(
        variables, tokens, positions, segments, types_BT=types_BT, keys_B=keys_B, causal=causal, collect=collect
    )
    return result[0] if mix is None else mixed(mix, *result)


def mixed(mix: Any, last_BTD: jax.Array, states_LBTD: jax.Array) -> jax.Array:
    """Return the weighted sum of the states after the embeddings and every layer, the last behind the final norm (B, T, D)."""
    shares_L = (mix["scale"] * jax.nn.softmax(mix["weights"])).astype(last_BTD.dtype)
    # The collected states lack the final norm, so the last of them gives way to the normalised one.
    return jnp.einsum("l,lbtd->btd", shares_L[:-1], states_LBTD[:-1]) + shares_L[-1] * last_BTD


def stack_of(model: Trunk) -> Any:
    """Return the stack whose states a head reads; it sets the initialisation of the head."""
    return model.decoder if isinstance(model, EncoderDecoder) else model


def pool_of(head: Head, model: Trunk, rows: Rows, frame: Frame) -> str:
    """Return the pooling of a sequence: "first", "last" or "mean"."""
    if head.pool != "auto":
        return head.pool
    return "last" if rows.causal or isinstance(model, EncoderDecoder) else frame.pooled


def scores_of(head: Head, model: Trunk, rows: Rows, style: Style, outputs: int) -> Scores:
    """Return the module from pooled states to scores."""
    if head.inner == "auto":
        usual: dict[Style, Inner] = {"bert": "pooler", "roberta": "dense", "t5": "dense", "xlnet": "summary", "decoder": "none"}
        inner: Inner = "dense" if isinstance(model, EncoderDecoder) else "none" if head.pool == "mean" else usual[style]
    else:
        inner = head.inner
    return Scores(
        model.width,
        outputs,
        inner=inner,
        activation=head.activation,
        rate=head.dropout,
        bias=not rows.causal if head.bias is None else head.bias,
        **stack_of(model).linear(model.width),
    )


def pooled(h_BTD: jax.Array, batch: Batch, pool: str) -> jax.Array:
    """Return the state of each sequence (B, P, D): at its position, or the mean over the segment of that position."""
    places_BP = batch["places"]
    if pool != "mean":
        return gather(h_BTD, places_BP)
    # A product with the membership of tokens in texts: one pass for all texts of a packed row.
    segments = batch["segments"]
    own_BP = jnp.take_along_axis(segments, places_BP, 1)
    member_BPT = ((own_BP[..., None] == segments[:, None]) & (segments > 0)[:, None]).astype(h_BTD.dtype)
    total_BPD = jnp.einsum("bpt,btd->bpd", member_BPT, h_BTD)
    return total_BPD / jnp.maximum(member_BPT.sum(-1, keepdims=True), 1)


def filled(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Count the real tokens, and all positions of rows that are not empty: the share is the packing's efficiency."""
    real_BT = batch["segments"] > 0
    return real_BT.sum(dtype=jnp.float32), (real_BT.any(1).sum() * real_BT.shape[1]).astype(jnp.float32)


def step_flops(model: Trunk, length: int) -> float:
    """Count the operations of a training step on one row, without the head."""
    if isinstance(model, EncoderDecoder):
        return row_flops(model.sized(0), length, length)
    if isinstance(model, Transformer):
        return length * flops.train_flops(dataclasses.replace(model, vocab=0), length)
    inner = model.heads * model.head_size
    projections, scores = 4 * model.width * inner, inner * 4 * length
    return 6.0 * length * model.depth * (projections + scores + 2 * model.width * model.mlp_size)


def unknown_label(where: str, label: str, known: Sequence[str]) -> UserError:
    """Return the error for a held-out label that no training example has."""
    listed = ", ".join(known[:12]) + (" ..." if len(known) > 12 else "")
    return UserError(
        f"{where}: label {label!r} is not among those of the training examples ({listed}); mend it, add an example to the "
        "training side, list all in objective.labels, or set objective.unknown=skip to leave such examples out"
    )
