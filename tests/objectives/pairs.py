"""What the tests of encoder-decoder objectives share: a tokenizer of 29 ids, small networks, rows cut apart."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.sharding import unbox
from tests.models.reference import tiny

BEGIN, END, MASK, SEPARATOR, STOP = 25, 26, 27, 28, 9


class Pieces:
    """Even ids go on with the word before them; id 9 is the full stop."""

    special = np.arange(29) >= BEGIN
    ends_sentence = np.arange(29) == STOP

    def word_starts(self, tokens):
        return (tokens % 2 == 1) | self.special[tokens]


TOKENIZER = SimpleNamespace(
    vocab=29,
    separator=SEPARATOR,
    piece_table=Pieces,
    special_id={"[CLS]": BEGIN, "[SEP]": END, "[MASK]": MASK}.__getitem__,
)


def twice(**changes) -> EncoderDecoder:
    shape = tiny(**{"context": 24, "placement": "post", "activation": "gelu", "embed_norm": True, "offset": 2, **changes})
    return EncoderDecoder(encoder=shape, decoder=shape)


def draw(config: EncoderDecoder, seed: int = 0, spread: float = 0.3):
    """Every parameter random, norms around 1."""
    start = np.zeros((1, 4), np.int32)
    shapes = unbox(jax.eval_shape(Seq2Seq(config).init, jax.random.key(0), start, start))["params"]
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        scale = path[-1].key == "scale"
        return jnp.asarray((scale + spread * rng.normal(size=leaf.shape)).astype(np.float32))

    return jax.tree_util.tree_map_with_path(one, shapes)


def split(packed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give every document of the one row a row of its own."""
    numbers = range(1, packed["segments"].max() + 1)
    apart = {name: np.zeros((len(numbers), *value.shape[1:]), value.dtype) for name, value in packed.items()}
    for name, value in packed.items():
        side = packed["source_segments" if name.startswith("source") or name == "lengths" else "segments"][0]
        for row, number in enumerate(numbers):
            here = value[0, side == number]
            apart[name][row, : len(here)] = 1 if name.endswith("segments") else here
    return apart


def from_bart(saved: dict[str, np.ndarray], heads: int):
    """Name the weights of Hugging Face's BART or Marian as ours, layers stacked."""

    def stack(side: str, template: str):
        return np.stack([saved[f"model.{side}.layers.{i}.{template}"] for i in range(2)])

    def attention(side, name):
        found = {}
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj")):
            kernel, bias = stack(side, f"{name}.{theirs}.weight").swapaxes(1, 2), stack(side, f"{name}.{theirs}.bias")
            width, out = kernel.shape[-1], ours == "out"
            shape = (2, heads, width // heads, width) if out else (2, width, heads, width // heads)
            found[ours] = {"kernel": kernel.reshape(shape), "bias": bias if out else bias.reshape(2, heads, -1)}
        return found

    def norm(side, name):
        return {"scale": stack(side, f"{name}.weight"), "bias": stack(side, f"{name}.bias")}

    def layers(side):
        found = {"attention": attention(side, "self_attn"), "norm0": norm(side, "self_attn_layer_norm")}
        if side == "decoder":
            found |= {"cross": attention(side, "encoder_attn"), "cross_norm": norm(side, "encoder_attn_layer_norm")}
        mlp = {
            ours: {"kernel": stack(side, f"{name}.weight").swapaxes(1, 2), "bias": stack(side, f"{name}.bias")}
            for ours, name in (("up", "fc1"), ("down", "fc2"))
        }
        return {"layers": {**found, "mlp": mlp, "norm1": norm(side, "final_layer_norm")}}

    def inputs(side):
        name = f"model.{side}.layernorm_embedding"
        if f"{name}.weight" not in saved:  # Marian: sinusoids and no norm
            return {}
        norm = {"scale": saved[f"{name}.weight"], "bias": saved[f"{name}.bias"]}
        return {f"{side}_input": {"places": {"table": saved[f"model.{side}.embed_positions.weight"]}, "norm": norm}}

    sides = {side: layers(side) for side in ("encoder", "decoder")}
    return {"embed": {"table": saved["model.shared.weight"]}, **inputs("encoder"), **inputs("decoder"), **sides}
