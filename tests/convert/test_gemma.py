"""Gemma beside transformers: every state with padding, greedy tokens, the config.json of each release, meshes."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lm.convert.convert import load, save
from lm.convert.families.gemma import FAMILIES
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError
from lm.models.model import Model, empty_cache
from lm.models.positions import Rotary
from lm.models.transformer import Transformer
from lm.sharding import AXES, make_mesh
from tests.convert.test_families import make

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LENGTHS = (9, 13, 4)  # of the rows; longer than two windows, and within one


@pytest.fixture(scope="module", params=["gemma", "gemma2", "gemma3", "gemma3, stretched"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemma")
    return make(request.param, folder), load(folder), folder


def rows(side: str):
    """Tokens and which of them are real."""
    length = max(LENGTHS)
    tokens = np.random.default_rng(1).integers(3, 60, (len(LENGTHS), length)).astype(np.int32)
    place = np.arange(length)[None]
    sizes = np.array(LENGTHS)[:, None]
    return tokens, (place >= length - sizes if side == "left" else place < sizes).astype(np.int32)


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_state(pair, side):
    theirs, loaded, _ = pair
    tokens, real = rows(side)
    positions = np.maximum(real.cumsum(1) - 1, 0)
    with torch.no_grad():
        found = theirs(
            input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(real),
            position_ids=torch.tensor(positions), output_hidden_states=True,
        )  # fmt: skip
    model, variables = Model(loaded.objective.model), {"params": loaded.params}
    h, states = jax.jit(lambda v: model.apply(v, tokens, positions, real, collect=True))(variables)
    assert len(states) == len(found.hidden_states) == loaded.objective.model.depth + 1
    for ours, other in zip([*states[:-1], h], found.hidden_states):
        np.testing.assert_allclose(ours[real > 0], other.numpy()[real > 0], atol=1e-4)
    logits = model.apply(variables, method="head").logits(h)
    np.testing.assert_allclose(logits[real > 0], found.logits.numpy()[real > 0], atol=1e-4)


def test_greedy_tokens(pair):
    """A cache, layers laid out on their own as decoding has them, rows of several lengths, on past the window."""
    theirs, loaded, _ = pair
    (tokens, real), config, new = rows("left"), loaded.objective.model, 12
    stack = dict(loaded.params["stack"])
    layers = stack.pop("layers")
    stack |= {f"layer{i}": jax.tree.map(lambda x, i=i: x[i], layers) for i in range(config.depth)}
    variables = {"params": {**loaded.params, "stack": stack}}

    @jax.jit
    def step(tokens, positions, real, cache):
        h, cache = Model(config).apply(variables, tokens, positions, real, cache=cache)
        return Model(config).apply(variables, method="head").logits(h[:, -1]).argmax(-1), cache

    cache = empty_cache(config, len(tokens), tokens.shape[1] + new, stacked=False)
    positions = np.maximum(real.cumsum(1) - 1, 0)
    last, cache = step(tokens, positions, real, cache)
    ours = [last]
    for i in range(1, new):
        last, cache = step(last[:, None], positions[:, -1:] + i, None, cache)
        ours.append(last)
    for row, size, found in zip(tokens, LENGTHS, np.stack(ours, 1)):
        ids = torch.tensor(row[None, -size:], dtype=torch.long)
        expected = theirs.generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
        np.testing.assert_array_equal(found, expected[0, size:].numpy())


def test_what_is_written_is_the_same_model_there(pair, tmp_path):
    """Not the weights alone: what their library makes of our config.json gives the logits."""
    theirs, loaded, _ = pair
    save(loaded.objective, loaded.params, Bytes().build(lambda: ()), tmp_path / "again", "")
    again = type(theirs).from_pretrained(tmp_path / "again").eval()
    ids = torch.tensor(rows("left")[0], dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, again(ids).logits)


@pytest.mark.parametrize("axes", [{"fsdp": 2, "tensor": 2, "data": 2}, {"context": 2, "tensor": 2, "data": 2}])
def test_meshes(axes, tmp_path):
    make("gemma3", tmp_path)
    plain, tokens = load(tmp_path), rows("left")[0][:2, :12]
    model = dataclasses.replace(plain.objective.model, vocab=64)
    params = jax.device_get(plain.params)
    params["embed"] = {"table": np.pad(params["embed"]["table"], ((0, 3), (0, 0)))}

    def run(params, model):
        h = Model(model).apply({"params": params}, tokens)[0]
        return Model(model).apply({"params": params}, method="head").logits(h)

    expected = jax.jit(lambda p: run(p, plain.objective.model))(plain.params)
    with jax.set_mesh(make_mesh({axis: axes.get(axis, 1) for axis in AXES})):
        found = jax.jit(lambda p: run(p, model))(params)
    np.testing.assert_allclose(found[..., :61], expected, atol=1e-5)


# What the releases' own config.json say, of the fields that matter here.
PUBLISHED = {
    "gemma": {"hidden_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 1, "intermediate_size": 16384,
              "num_hidden_layers": 18, "hidden_act": "gelu", "hidden_activation": None, "vocab_size": 256000,
              "max_position_embeddings": 8192, "head_dim": 256, "rope_theta": 10000.0},
    "gemma2": {"hidden_size": 3584, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 14336,
               "num_hidden_layers": 42, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
               "vocab_size": 256000, "max_position_embeddings": 8192, "head_dim": 256, "query_pre_attn_scalar": 224,
               "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": {"hidden_size": 2560, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 10240,
                    "num_hidden_layers": 34, "vocab_size": 262208, "max_position_embeddings": 131072, "head_dim": 256,
                    "query_pre_attn_scalar": 256, "sliding_window": 1024, "sliding_window_pattern": 6,
                    "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "attn_logit_softcapping": None,
                    "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "final_logit_softcapping": None},
}  # fmt: skip


def model_of(kind: str, **changes) -> Transformer:
    family = next(family for family in FAMILIES if kind == family.name)
    return family.objective({"model_type": kind, **PUBLISHED[kind], **changes}).model


def test_published_configs():
    first, second, third = map(model_of, PUBLISHED)
    assert (first.activation, first.placement, first.windows, first.attention_scale) == ("geglu_tanh", "pre", (0,), 1 / 16)
    assert second.windows == (4096, 0)
    assert second.attention_scale == 224**-0.5
    assert (second.attention_cap, second.logit_cap, second.head_size) == (50, 30, 256)
    assert third.windows == (1024, 1024, 1024, 1024, 1024, 0)
    assert third.rotary == Rotary(base=1e6, scaling="linear", factor=8.0, local=1e4)
    assert (third.attention_cap, third.logit_cap) == (0, 0)


def test_null_is_no_cap_and_absence_the_default():
    assert model_of("gemma2", attn_logit_softcapping=None).attention_cap == 0
    without = {k: v for k, v in PUBLISHED["gemma2"].items() if "softcapping" not in k}
    assert FAMILIES[1].objective({"model_type": "gemma2", **without}).model.logit_cap == 30


def test_published_configs_come_back():
    for family, kind in zip(FAMILIES, PUBLISHED):
        model = model_of(kind)
        objective = family.objective(PUBLISHED[kind])
        assert family.objective(json.loads(json.dumps(family.settings(objective)))).model == model


def test_what_they_cannot_say_is_named():
    stretched = {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "linear", "factor": 2.0}}
    with pytest.raises(UserError, match="stretched"):
        model_of("gemma3_text", rope_parameters=stretched)
    family, objective = FAMILIES[1], FAMILIES[1].objective(PUBLISHED["gemma2"])
    for change, said in (({"scale": 0.3}, "scale=0.3"), ({"windows": (4, 8)}, "one size"), ({"activation": "gelu"}, "gated")):
        with pytest.raises(UserError, match=said):
            family.settings(dataclasses.replace(objective, model=dataclasses.replace(objective.model, **change)))
    with pytest.raises(UserError, match=r"rotary\.local"):
        Transformer(vocab=9, positions="rotary", rotary=Rotary(local=5.0))
    with pytest.raises(UserError, match="parallel"):
        Transformer(vocab=9, parallel=True, placement="sandwich")
