"""Bottleneck adapters: the formula in torch, nearly nothing at first, what is trained, and decoding through them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config
from lm.convert.convert import family_for
from lm.data.tokenizer.tokenizer import Bytes
from lm.decode.generate import generate
from lm.decode.strategies import AncestralSampling
from lm.errors import UserError
from lm.models.adapters import Adapter, Bottleneck
from lm.models.model import Model
from lm.objectives.causal import Causal
from lm.sharding import unbox
from lm.training import parameters
from lm.training.state import abstract_params
from tests.marks import quick
from tests.models.reference import tiny
from tests.test_optimizer import batch
from tests.tuning.test_lora import noisy

MODEL = tiny(heads=2, adapter=Adapter(size=5))


def drawn(model):
    return unbox(Model(model).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])


def states(model, params, keys_B=None):
    return Model(model).apply({"params": params}, batch()["tokens"], keys_B=keys_B)[0]


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_the_formula_is_torchs(activation):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
    layer = Bottleneck(6, Adapter(size=2, activation=activation))
    tree = noisy(unbox(layer.init(jax.random.key(0), x)["params"]))
    z, leaves = torch.tensor(x), {path: torch.tensor(np.asarray(p)) for path, p in parameters.flat(tree).items()}
    function = torch.relu if activation == "relu" else lambda y: torch.nn.functional.gelu(y, approximate="tanh")
    inner = function(z @ leaves["down/kernel"] + leaves["down/bias"])
    expected = z + inner @ leaves["up/kernel"] + leaves["up/bias"]
    np.testing.assert_allclose(layer.apply({"params": tree}, x), expected, atol=1e-5)


@pytest.mark.parametrize("placement", quick(["pre", "post", "sandwich"], ["sandwich"]))
@pytest.mark.parametrize("after", quick(["both", "mlp"], ["both"]))
def test_at_first_nearly_nothing(placement, after):
    model = dataclasses.replace(MODEL, placement=placement, adapter=Adapter(size=5, after=after))
    params, plain = drawn(model), dataclasses.replace(model, adapter=Adapter())
    bare = parameters.nested({path: x for path, x in parameters.flat(params).items() if "adapter" not in path})
    difference = np.abs(states(model, params) - states(plain, bare)).max()
    assert 0 < difference < 1e-3
    owners = {path.split("/")[2] for path in parameters.flat(params) if "adapter" in path}
    assert owners == {"adapter_mlp", *(["adapter_attention"] if after == "both" else [])}


def test_adapters_norms_and_heads_are_trained():
    """Houlsby et al. 2019, section 2.1: 2 m d + d + m an adapter, the norms and the last layer."""
    boxed = unbox(abstract_params(Causal(model=MODEL), batch()))
    moving, still = parameters.split(parameters.Groups(), boxed)
    assert all("adapter" in path or "norm" in path for path in moving)
    assert not [path for path in still if "adapter" in path or "norm" in path]
    sizes = {path: int(np.prod(x.shape)) for path, x in moving.items()}
    m, d = 5, 12
    assert sum(n for path, n in sizes.items() if "adapter" in path) == 2 * 2 * (2 * m * d + d + m)
    assert parameters.is_task_head("classifier/kernel")


@pytest.mark.parametrize("rows", [1, 2])
def test_decoding_goes_through_them(rows):
    """Cached steps against whole forward passes."""
    tokenizer = Bytes().build(lambda: ())
    objective = Causal(model=dataclasses.replace(MODEL, vocab=0)).resolve(tokenizer)
    params = noisy(drawn(objective.model))
    strategy = AncestralSampling(top_k=1)
    found = generate(objective, params, tokenizer, ["ab", "cd"][:rows], max_new_tokens=5, strategy=strategy, seed=0)
    for text, sample in zip(["ab", "cd"], found):
        prompt = [*objective.prompt(tokenizer, text).tokens]
        tokens = jnp.asarray([*prompt, *sample.tokens], jnp.int32)
        h_TD = Model(objective.model).apply({"params": params}, tokens[None])[0][0]
        logits = Model(objective.model).apply({"params": params}, method="head").logits(h_TD)
        assert list(logits[len(prompt) - 1 : -1].argmax(-1)) == list(sample.tokens)


def test_no_published_family_has_them():
    with pytest.raises(UserError, match="adapter"):
        family_for(Config(objective=Causal(model=dataclasses.replace(MODEL, placement="pre"))).objective)


def test_values_are_checked():
    with pytest.raises(UserError, match="after"):
        Adapter(after="attention")
