"""SimCSE: sentences from text and pairs from data, the loss as torch has it, negatives of the whole batch in any parts."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import Config
from lm.data.corpus.store import Tokens
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.contrastive import Contrastive, retrieve, uniformity
from lm.sharding import unbox
from lm.train import gradients
from tests.marks import quick

PAD, CLS, SEP, MASK, EDGE, STOP, LOW, VOCAB = 0, 1, 2, 3, 4, 5, 6, 90
ENDS = np.arange(VOCAB) == STOP


def tokenizer():
    ids = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    table = SimpleNamespace(ends_sentence=ENDS)
    return SimpleNamespace(vocab=VOCAB, separator=EDGE, special_id=ids.__getitem__, piece_table=lambda: table)


def objective(dropout=0.0, **changes) -> Contrastive:
    model = Transformer(
        context=16, width=12, depth=2, heads=3, mlp=20, placement="post", embed_norm=True, transform=True, head_bias=True,
        dropout=dropout,
    )  # fmt: skip
    return Contrastive(**{"model": model, "length": 12, **changes}).resolve(tokenizer())


def stream(*sizes, seed=0, stops=0.1) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens.of([np.where(rng.random(n) < stops, STOP, rng.integers(LOW, VOCAB, n)) for n in sizes], EDGE, VOCAB)


def stack(examples) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def sentences_of(found, tokens, count, seed=1):
    rng, opened = np.random.default_rng(seed), found.records.open(tokens)
    return stack([found.corrupt(rng, opened.record(rng, opened.at(i, 0))) for i in range(count)])


def groups(found, count, seed=2):
    """Rows of random pairs or triples of 1 to 14 tokens."""
    rng = np.random.default_rng(seed)
    records = [[rng.integers(LOW, VOCAB, n) for n in rng.integers(1, 15, found.fields)] for _ in range(count)]
    return stack([found.corrupt(rng, {"documents": [record]}) for record in records])


# -- the host half -----------------------------------------------------------------------------------------------------


def record(*ids, length=24, first=0):
    tokens = np.zeros(length, np.int32)
    tokens[: len(ids)] = ids
    segments = (np.arange(length) < len(ids)).astype(np.int32)
    return {"tokens": tokens, "segments": segments, "positions": np.arange(length) + first, "marked": False}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (record(EDGE, 10, 11, 12, STOP, 13, 14, 15, 16), [10, 11, 12, STOP]),  # the window begins a document
        (record(10, 11, 12, 13, STOP, 14, 15, 16, 17, STOP, 18, first=7), [14, 15, 16, 17, STOP]),  # it begins within
        (record(EDGE, 10, STOP, 14, 15, 16, 17, STOP), [14, 15, 16, 17, STOP]),  # the first one is too short
        (record(EDGE, 10, STOP, 11, STOP), [10, STOP]),  # all are
        (record(10, 11, 12, first=9), [10, 11, 12]),  # none begins
        (record(10, 11, EDGE, 12, 13, 14, 15, 16, first=9), [12, 13, 14, 15, 16]),  # a document begins a sentence
        (record(EDGE, *range(20, 40)), list(range(20, 30))),  # cut to 12 with its specials
        (record(EDGE), []),
        (record(), []),
    ],
)
def test_a_window_gives_its_first_sentence(given, expected):
    row = objective().corrupt(np.random.default_rng(0), given)
    size = len(expected) + 2 * bool(expected)
    np.testing.assert_array_equal(row["sentences"][0, :size], [CLS, *expected, SEP] if expected else [])
    assert (row["sentences"][0, size:] == PAD).all()
    np.testing.assert_array_equal(row["segments"][0], np.arange(12) < size)


def test_sentences_of_a_million_tokens():
    """One sentence a window, whole but for the limit, none across documents."""
    found = objective(length=16)
    tokens = stream(*[1000] * 1000)
    batch = sentences_of(found, tokens, found.records.open(tokens).count)
    assert len(batch["seed"]) * found.records.tokens > 990_000
    sizes = batch["segments"].sum((1, 2)) - 2
    assert not (batch["sentences"] == EDGE).any()
    whole = sizes[(batch["sentences"][:, 0] == STOP).any(1) & (sizes < 14)]
    assert (sizes < 4).mean() < 0.01
    # A sentence of n tokens has probability 0.9 ** (n - 1) * 0.1; those of at least 4 are taken.
    counts = np.bincount(whole, minlength=14)[4:14]
    expected = 0.9 ** np.arange(10)
    share = counts / counts.sum()
    error = (share * (1 - share) / counts.sum()) ** 0.5
    # Short ones are a little more frequent: a window may end before a long one does.
    assert (np.abs(share - expected / expected.sum()) < 5 * error + 0.004).all()


def test_masks_are_berts():
    """round(0.15 n) distinct places of each sentence, 80 % hidden, 10 % another token, 10 % as they were."""
    found = objective(mlm=0.1, length=16)
    tokens = stream(*[1000] * 1000)
    batch = sentences_of(found, tokens, found.records.open(tokens).count)
    sizes = batch["segments"].sum((1, 2))
    count = np.array([max(1, round(0.15 * n)) for n in range(17)])[sizes]
    np.testing.assert_array_equal(batch["weights"].sum((1, 2)), np.minimum(count, found.predictions))
    real = batch["weights"][:, 0] > 0
    places, targets = batch["places"][:, 0], batch["targets"][:, 0]
    original, fed = batch["sentences"][:, 0], batch["masked"][:, 0]
    np.testing.assert_array_equal(np.take_along_axis(original, places, 1)[real], targets[real])
    assert not np.isin(targets[real], [PAD, CLS, SEP]).any()
    given, total = np.take_along_axis(fed, places, 1)[real], real.sum()
    for share, hits in ((0.8, given == MASK), (0.1 + 0.1 / VOCAB, given == targets[real])):
        low = 0.1 / VOCAB  # a random token may be [MASK] or the same one
        assert abs(hits.mean() - share) < 5 * (share * (1 - share) / total) ** 0.5 + low
    changed = (original != fed).sum()
    assert changed == (given != targets[real]).sum()


def test_pairs_and_hostile_documents():
    found = objective(fields=3)
    row = found.corrupt(np.random.default_rng(0), {"documents": [[np.array([7]), np.arange(20, 40), np.array([], int)]]})
    np.testing.assert_array_equal(row["sentences"][0], [CLS, 7, SEP, *[PAD] * 9])
    np.testing.assert_array_equal(row["sentences"][1], [CLS, *range(20, 30), SEP])
    assert not row["segments"][2].any()  # an empty field is absent
    masked = objective(fields=2, mlm=0.1).corrupt(np.random.default_rng(0), {"documents": [[np.array([7]), np.array([])]]})
    assert masked["weights"].sum() == 1
    assert sentences_of(objective(), stream(*[0] * 30), 1)["segments"].sum() == 0
    with pytest.raises(UserError, match="length"):
        objective(length=17)
    with pytest.raises(UserError, match="pooling"):
        objective(pooling="max")


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [2, 3])
def test_loss_is_torchs(fields):
    """Cosines over 0.05, the own contradiction's logit raised, cross-entropy: value and gradient."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(6, fields, 5)).astype(np.float32)
    z = torch.tensor(raw, requires_grad=True)
    cosine = torch.nn.CosineSimilarity(dim=-1)
    logits = cosine(z[:, None, 0], z[None, :, 1]) / 0.05
    if fields == 3:
        logits = torch.cat([logits, cosine(z[:, None, 0], z[None, :, 2]) / 0.05 + 0.7 * torch.eye(6)], 1)
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(6))
    loss.backward()

    @jax.jit
    def ours(x):
        return retrieve(x / jnp.linalg.norm(x, axis=-1, keepdims=True), 0.05, 0.7)[0].mean()

    value, grad = jax.value_and_grad(ours)(raw)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(grad, z.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_alignment_and_uniformity():
    """By the definition of Wang & Isola 2020, pair by pair."""
    z = np.random.default_rng(0).normal(size=(5, 4))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    pairs = [np.exp(-2 * np.sum((z[i] - z[j]) ** 2)) for i in range(4) for j in range(i)]
    np.testing.assert_allclose(uniformity(jnp.asarray(z), jnp.array([1.0, 1, 1, 1, 0])), np.log(np.mean(pairs)), rtol=1e-5)
    assert np.isfinite(uniformity(jnp.asarray(z), jnp.array([1.0, 0, 0, 0, 0])))


@functools.cache
def encoder():
    found = objective(fields=2)
    return unbox(jax.jit(found.init)(jax.random.key(0), groups(found, 3)))


@functools.cache
def alone(ids: tuple[int, ...]):
    """States of one sentence without padding, and those between the layers."""
    apply = Model(objective().model).apply
    return jax.jit(lambda p: apply({"params": p}, jnp.array([ids]), causal=False, collect=True))(encoder())


@pytest.mark.parametrize("pooling", ["cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last"])
def test_poolings(pooling):
    """Each from the network's states as the authors define it, the dense layer only where it belongs."""
    found = objective(pooling=pooling, fields=2, mlp_only_train=False)
    batch = groups(found, 3)
    params = encoder()
    ours = jax.jit(lambda p: found.embed(p, batch, None))(params)
    for r in range(3):
        for k in range(2):
            h, states = alone(tuple(batch["sentences"][r, k][batch["segments"][r, k] > 0].tolist()))
            z = {
                "cls": jnp.tanh(h[0, 0] @ params["mlp"]["dense"]["kernel"] + params["mlp"]["dense"]["bias"])
                if pooling == "cls"
                else None,
                "cls_before_pooler": h[0, 0],
                "avg": h[0].mean(0),
                "avg_top2": (h[0] + states[-2, 0]).mean(0) / 2,
                "avg_first_last": (h[0] + states[1, 0]).mean(0) / 2,
            }[pooling]
            np.testing.assert_allclose(ours[r, k], z / jnp.linalg.norm(z), atol=2e-5)
    if pooling == "cls":
        bare = jax.jit(lambda p: dataclasses.replace(found, mlp_only_train=True).embed(p, batch, None))(params)
        assert jnp.abs(bare - ours).max() > 0.01


# -- parts, padding, order ---------------------------------------------------------------------------------------------


@functools.cache
def case(name):
    """Objective, parameters with noise, eight rows; of the triples one lacks its contradiction and one is empty."""
    if name == "alone":
        found = objective(dropout=0.1, mlm=0.1)
        batch = sentences_of(found, stream(*[200] * 4), 8)
    else:
        found = objective(fields=3, pooling="avg", hard_weight=0.5)
        batch = groups(found, 8)
        batch["segments"][2, 2] = 0
        batch["segments"][5] = 0
    params = unbox(jax.jit(found.init)(jax.random.key(0), batch))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    return found, params, {k: jnp.asarray(v) for k, v in batch.items()}


@functools.cache
def step(name, parts):
    return jax.jit(functools.partial(gradients, Config(objective=case(name)[0], batch=8, micro_batches=parts)))


def close(left, right):
    (grads, sums), (expected, expected_sums) = left, right
    scale = optax.tree.norm(expected)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert jnp.abs(a - b).max() < 2e-6 * scale
    for name in sums:
        np.testing.assert_allclose(sums[name], expected_sums[name], rtol=2e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", quick(["alone", "triples"], ["triples"]))
def test_parts_and_order_change_nothing(name):
    """Negatives come from the whole batch however it is cut: gradients of 1 part = 4 parts = rows turned round."""
    _, params, batch = case(name)
    keys = jax.random.split(jax.random.key(2), 8)
    whole = step(name, 1)(params, batch, None, keys)[:2]
    assert float(optax.tree.norm(whole[0])) > 0
    close(step(name, 4)(params, batch, None, keys)[:2], whole)
    close(step(name, 1)(params, {k: v[::-1] for k, v in batch.items()}, None, keys[::-1])[:2], whole)


def test_absent_rows_are_no_anchors_and_no_negatives():
    """Rows of zeros, as evaluation adds them: the sums of the rest are as without them."""
    found, params, batch = case("triples")
    judge = jax.jit(lambda b: found.loss(params, b, None, None)[0])
    kept = np.array([0, 1, 2, 3, 4, 6])
    few = judge({k: v[kept] for k, v in batch.items()})
    padded = judge({k: jnp.concatenate([v[kept], jnp.zeros((2, *v.shape[1:]), v.dtype)]) for k, v in batch.items()})
    for name in few:
        np.testing.assert_allclose(padded[name], few[name], rtol=1e-5)
    assert few["contrast"][1] == 6
    nothing = judge({k: jnp.zeros_like(v) for k, v in batch.items()})
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(nothing))
    assert nothing["contrast"][0] == nothing["contrast"][1] == 0


def test_evaluation_is_steady_and_in_two_views():
    """Without keys: the same numbers each time and in any order, and two views of a sentence differ all the same."""
    found, params, batch = case("alone")
    judge = jax.jit(lambda b: found.loss(params, b, None, None)[0])
    sums, turned = judge(batch), judge({k: v[::-1] for k, v in batch.items()})
    for name in sums:
        np.testing.assert_allclose(turned[name], sums[name], rtol=1e-5)
    assert sums["alignment"][0] > 1e-3
    predicted = jax.jit(found.predict)(params, batch)
    assert predicted["nearest"].shape == (8, 12)
    assert not (predicted["nearest"] == batch["sentences"][:, 0]).all(1).any()


def test_shows_sentences():
    found = objective(fields=2, mlm=0.1, rate=0.6)
    found = dataclasses.replace(found, model=dataclasses.replace(found.model, vocab=0))
    text = Bytes().build(None).with_special(found.special)
    found = found.resolve(text)
    example = found.corrupt(np.random.default_rng(0), {"documents": [[text.encode("A fish."), text.encode("Swims.")]]})
    shown = found.show(text, example, {"nearest": example["sentences"][1], "cosine": np.float32(0.5)})
    assert shown.splitlines()[0].split(maxsplit=1) == ["sentence", "A fish."]
    assert "[MASK]" in shown
    assert shown.endswith("Swims. (cosine 0.50)")
