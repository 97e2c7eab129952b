"""Transformer-XL against the paper's formulas written out in numpy, against transformers, and its memory's rules."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.models.flops import parameter_count
from lm.models.memory import Memory, MemoryModel, TransformerXL, allowed, empty_memory
from lm.models.presets import (
    TRANSFORMER_XL_BASE,
    TRANSFORMER_XL_ENWIK8,
    TRANSFORMER_XL_ENWIK8_LARGE,
    TRANSFORMER_XL_LARGE,
)
from lm.models.relative import shift
from lm.sharding import unbox

LENGTH, MEMORY = 6, 5


def tiny(**changes) -> TransformerXL:
    """Odd sizes, so that no two axes can be mistaken for one another."""
    sizes = {
        "vocab": 23,
        "context": LENGTH,
        "memory": MEMORY,
        "width": 12,
        "depth": 2,
        "heads": 3,
        "head": 5,
        "mlp": 20,
    }
    return TransformerXL(**{**sizes, "cutoffs": (7, 15), "divide": 2, **changes})


def draw(config: TransformerXL, seed: int = 0) -> dict:
    """Every parameter random, norms around 1 and biases too: nothing hides behind a zero."""
    shapes = unbox(jax.eval_shape(MemoryModel(config).init, jax.random.key(0), np.zeros((1, LENGTH), np.int32)))
    rng = np.random.default_rng(seed)

    def one(path, leaf):
        return ((path[-1].key == "scale") + 0.3 * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(one, shapes["params"])


@functools.cache
def compiled(config: TransformerXL):
    return jax.jit(lambda params, *inputs: MemoryModel(config).apply({"params": params}, *inputs))


def filled(config: TransformerXL, rows: int, seed: int = 1, size: int | None = None, seen=None) -> Memory:
    """A memory of random states."""
    size = config.memory if size is None else size
    hidden = np.random.default_rng(seed).normal(size=(rows, config.depth, size, config.width))
    seen = np.ones((rows, size), bool) if seen is None else np.broadcast_to(seen, (rows, size))
    return Memory(hidden_BLMD=jnp.asarray(hidden, jnp.float32), seen_BM=jnp.asarray(seen))


# -- the formulas of section 3 of the paper in float64, one row, pair by pair -------------------------------------------


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def sinusoid(distance: int, width: int) -> np.ndarray:
    angle = distance / 10_000 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)])


def attention(config, p, biases, x, memory, seen):
    keys = np.concatenate([memory, x])
    q = np.tensordot(x, p["query"]["kernel"], 1)
    k, v = (np.tensordot(keys, p[name]["kernel"], 1) for name in ("key", "value"))
    u, w = biases or (p["content_bias"], p["position_bias"])
    mixed = np.zeros(q.shape)
    for t in range(len(x)):
        for n in range(config.heads):
            scores = np.full(len(keys), -np.inf)
            for s in np.flatnonzero(seen[t]):
                distance = t + len(memory) - s
                if config.clamp:
                    distance = min(distance, config.clamp)
                r = np.tensordot(sinusoid(distance, config.width), p["position"]["kernel"], 1)[n]
                scores[s] = ((q[t, n] + u[n]) @ k[s, n] + (q[t, n] + w[n]) @ r) / math.sqrt(config.head_size)
            weights = np.exp(scores - scores.max())
            mixed[t, n] = weights / weights.sum() @ v[:, n]
    return np.tensordot(mixed, p["out"]["kernel"], 2)


def feed(p, x):
    inner = np.maximum(x @ p["up"]["kernel"] + p["up"]["bias"], 0)
    return inner @ p["down"]["kernel"] + p["down"]["bias"]


def embedding(config, p, token: int) -> np.ndarray:
    ends = (*config.cutoffs, config.vocab)
    i = next(i for i, end in enumerate(ends) if token < end)
    return p[f"input{i}"] @ p[f"table{i}"][token - (0, *ends)[i]] * math.sqrt(config.width)


def reference(config, params, tokens, seen, memory):
    """Tokens (T,), who sees whom (T, M + T), memory (L, M, D) -> (hidden (T, D), next memory (L, M, D))."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    biases = (params["content_bias"], params["position_bias"]) if config.shared_biases else None
    x, kept = np.stack([embedding(config, params["embed"], token) for token in tokens]), []
    for i in range(config.depth):
        p = jax.tree.map(lambda leaf: leaf[i], params["layers"])  # noqa: B023
        kept.append(x)
        old = np.asarray(memory[i], np.float64)
        if config.placement == "post":
            x = norm(p["norm0"], x + attention(config, p["attention"], biases, x, old, seen))
            x = norm(p["norm1"], x + feed(p, x))
        else:
            before = norm(p["norm0"], old) if len(old) else old
            x = x + attention(config, p["attention"], biases, norm(p["norm0"], x), before, seen)
            x = x + feed(p, norm(p["norm1"], x))
    size = memory.shape[1]
    return x, np.concatenate([memory, np.stack(kept)], 1)[:, memory.shape[1] + len(tokens) - size :]


def band(length: int, memory: int, same_length: bool) -> np.ndarray:
    """The mask as the released code builds it."""
    keys = memory + length
    hidden = np.triu(np.ones((length, keys)), 1 + memory)
    if same_length:
        hidden = hidden + np.tril(np.ones((length, keys)), -(length - (keys - memory)))
    return hidden == 0


FORMS = {
    "post": {},
    "pre": {"placement": "pre"},
    "shared": {"shared_biases": True},
    "clamped": {"clamp": 4},
    "same length": {"same_length": True},
    "scanned apart": {"unroll": 0, "remat": "full"},
}


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_is_the_papers(changes):
    config = tiny(**changes)
    params, memory = draw(config), filled(config, 2)
    tokens = np.random.default_rng(2).integers(config.vocab, size=(2, LENGTH)).astype(np.int32)
    found, after = compiled(config)(params, tokens, None, memory)
    seen = band(LENGTH, MEMORY, config.same_length)
    for row in range(2):
        hidden, kept = reference(config, params, tokens[row], seen, memory.hidden_BLMD[row])
        np.testing.assert_allclose(found[row], hidden, atol=2e-4)
        np.testing.assert_allclose(after.hidden_BLMD[row], kept, atol=2e-4)


def test_shift_is_the_appendix():
    """Causal form of the appendix; its upper right is masked."""
    found = shift(jnp.arange(12).reshape(3, 4), 4)
    np.testing.assert_array_equal(found, [[2, 3, 0, 4], [5, 6, 7, 0], [8, 9, 10, 11]])


def test_published_sizes():
    def count(config):
        init = MemoryModel(config).init
        return parameter_count(unbox(jax.eval_shape(init, jax.random.key(0), np.zeros((1, 4), np.int32))))

    assert count(TRANSFORMER_XL_LARGE) == 285_205_322
    # Closed form: tables, biases and clusters; L x (attention, u and v, feed-forward, two norms).
    for config in (TRANSFORMER_XL_BASE, TRANSFORMER_XL_ENWIK8, TRANSFORMER_XL_ENWIK8_LARGE):
        config = dataclasses.replace(config, vocab=config.vocab or 204)
        d, inner, f = config.width, config.heads * config.head_size, config.mlp_size
        layer = 5 * d * inner + 2 * d * f + f + d + 4 * d
        biases = 2 * inner * (1 if config.shared_biases else config.depth)
        clusters = len(config.cutoffs) * (d + 1)
        assert count(config) == config.vocab * (d + 1) + clusters + config.depth * layer + biases


def test_biases_can_be_one_for_all_layers():
    shapes = jax.tree.map(np.shape, draw(tiny(shared_biases=True)))
    assert shapes["content_bias"] == shapes["position_bias"] == (3, 5)
    assert "content_bias" not in shapes["layers"]["attention"]


# -- what sees what ----------------------------------------------------------------------------------------------------


def influence(config: TransformerXL, params, memory, segments=None) -> np.ndarray:
    """|d hidden[t] / d embedding[s]|, (T, S): every token occurs once, so its row of the table stands for its place."""
    tokens = jnp.arange(LENGTH)[None]
    direction = jnp.asarray(np.random.default_rng(3).normal(size=config.width), jnp.float32)

    def outputs(table):
        changed = {**params, "embed": {**params["embed"], "table0": table}}
        h, _ = MemoryModel(config).apply({"params": changed}, tokens, segments, memory)
        return (h[0] * direction).sum(-1)

    found = jax.jit(jax.jacrev(outputs))(jnp.asarray(params["embed"]["table0"]))
    return np.asarray(jnp.abs(found).sum(-1))[:, :LENGTH]


@pytest.mark.parametrize("form", ["plain", "same length", "documents"])
def test_no_token_sees_later_ones(form):
    config = tiny(same_length=form == "same length")
    segments = np.array([[1, 1, 2, 2, 3, 0]], np.int32) if form == "documents" else None
    found = influence(config, draw(config), filled(config, 1), segments)
    expected = np.tril(np.ones((LENGTH, LENGTH), bool))
    if form == "same length":
        # A layer reaches MEMORY - 1 back; two layers twice that, more than the row here.
        expected &= ~np.tril(expected, -2 * (MEMORY - 1) - 1)
    if form == "documents":
        expected &= segments[0] == segments[0][:, None]
        expected[-1] = found[-1] > 0  # padding sees nobody, and means nothing
    assert (found[~expected] == 0).all()
    assert (found[expected] > 0).all()


def test_memory_has_no_gradient_and_yet_matters():
    config = tiny()
    params, memory, tokens = draw(config), filled(config, 1), np.arange(LENGTH)[None]

    @jax.jit
    def total(hidden):
        h, after = MemoryModel(config).apply({"params": params}, tokens, None, memory.replace(hidden_BLMD=hidden))
        return jnp.sum(h**2) + jnp.sum(after.hidden_BLMD**3)

    value, gradient = jax.value_and_grad(total)(memory.hidden_BLMD)
    assert not np.any(gradient)
    assert total(memory.hidden_BLMD + 0.1) != value

    def parameters(params):
        _, after = MemoryModel(config).apply({"params": params}, tokens, None, memory)
        return jnp.sum(after.hidden_BLMD**3)

    assert not any(np.any(g) for g in jax.tree.leaves(jax.jit(jax.grad(parameters))(params)))


def changed_by_memory(config, segments=None, seen=None) -> np.ndarray:
    """Which hidden states change with each slot of the memory, (T, M); a slot that is not seen changes no bit."""
    params, tokens, memory = draw(config), np.arange(LENGTH)[None], filled(config, 1, seen=seen)
    run = compiled(config)
    before, _ = run(params, tokens, segments, memory)
    columns = []
    for slot in range(config.memory):
        other = memory.replace(hidden_BLMD=memory.hidden_BLMD.at[:, :, slot].add(1.0))
        columns.append((np.asarray(run(params, tokens, segments, other)[0]) != np.asarray(before)).any(-1)[0])
    return np.stack(columns, 1)


def test_the_first_document_alone_sees_the_memory():
    found = changed_by_memory(tiny(), np.array([[1, 1, 2, 2, 2, 0]], np.int32))[:-1]  # padding means nothing
    np.testing.assert_array_equal(found, np.arange(LENGTH - 1)[:, None] < [2] * MEMORY)


def test_slots_of_other_documents_are_not_seen():
    seen = np.array([False, True, False, True, True])
    np.testing.assert_array_equal(changed_by_memory(tiny(), seen=seen), np.tile(seen, (LENGTH, 1)))


def test_same_length_gives_every_query_as_many_keys():
    for memory in (3, 8):
        seen = np.asarray(allowed(jnp.ones((1, memory + LENGTH), jnp.int32), LENGTH, True))[0]
        np.testing.assert_array_equal(seen, band(LENGTH, memory, True))
        assert (seen.sum(1) == memory).all()
    found = changed_by_memory(tiny(same_length=True, depth=1))
    np.testing.assert_array_equal(found, band(LENGTH, MEMORY, True)[:, :MEMORY])


def test_without_memory_same_length_hides_nothing():
    seen = allowed(jnp.ones((1, LENGTH), jnp.int32), LENGTH, True)[0]
    np.testing.assert_array_equal(seen, np.tril(np.ones((LENGTH, LENGTH))))


# -- segments put together ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pieces", "placement"), [((6, 6), "post"), ((1, 4, 7), "post"), ((6, 6), "pre")])
def test_segments_with_a_memory_of_everything_are_one_row(pieces, placement):
    config = tiny(memory=12, placement=placement)
    params = draw(config)
    tokens = np.random.default_rng(4).integers(config.vocab, size=(2, sum(pieces))).astype(np.int32)
    whole, none = compiled(config)(params, tokens)
    assert none is None
    memory, at, found = empty_memory(config, 2), 0, []
    for size in pieces:
        h, memory = compiled(config)(params, tokens[:, at : at + size], None, memory)
        at, found = at + size, [*found, h]
    np.testing.assert_allclose(np.concatenate(found, 1), whole, atol=1e-4)


def test_a_short_memory_loses_what_is_far():
    """One layer, memory M: the second segment is the row of which only M tokens before it are left."""
    config = tiny(depth=1, memory=4)
    params = draw(config)
    tokens = np.random.default_rng(5).integers(config.vocab, size=(1, 12)).astype(np.int32)
    _, memory = compiled(config)(params, tokens[:, :6], None, empty_memory(config, 1))
    found, _ = compiled(config)(params, tokens[:, 6:], None, memory)
    whole, _ = compiled(config)(params, tokens[:, 2:])
    np.testing.assert_allclose(found, whole[:, 4:], atol=1e-4)


def test_a_longer_memory_may_be_given():
    config = tiny()
    long = dataclasses.replace(config, memory=11, clamp=7, same_length=True)
    params = draw(config)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, draw(long))
    h, after = compiled(long)(params, np.arange(3)[None], None, filled(long, 1))
    assert h.shape == (1, 3, 12)
    assert after.hidden_BLMD.shape == (1, 2, 11, 12)


def test_documents_over_rows_are_documents_alone():
    """Three documents in rows of six tokens: with borders each is what it is by itself, wherever rows end."""
    config = tiny(memory=16)
    params = draw(config)
    sizes, rng = (4, 9, 5), np.random.default_rng(6)
    texts = [rng.integers(config.vocab, size=n).astype(np.int32) for n in sizes]
    stream = np.concatenate(texts)
    begins = np.isin(np.arange(18), np.cumsum((0, *sizes[:-1])))
    memory, found = empty_memory(config, 1), []
    for at in range(0, 18, LENGTH):
        segments = 1 + np.cumsum(begins[at : at + LENGTH], dtype=np.int32)[None]
        h, memory = compiled(config)(params, stream[None, at : at + LENGTH], segments, memory)
        found.append(h[0])
    alone = [compiled(config)(params, text[None])[0][0] for text in texts]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(alone), atol=1e-4)


def test_dropout_of_a_row_is_its_own():
    config = tiny(dropout=0.3, attention_dropout=0.3, position_dropout=0.3)
    params, memory, tokens = draw(config), filled(config, 4), np.arange(24).reshape(4, 6) % 23
    keys = jax.random.split(jax.random.key(0), 4)
    run = jax.jit(lambda *a: MemoryModel(config).apply({"params": params}, a[0], None, a[1], keys_B=a[2])[0])
    whole = run(tokens, memory, keys)
    halves = [run(*jax.tree.map(lambda x: x[half], (tokens, memory, keys))) for half in (slice(0, 2), slice(2, 4))]  # noqa: B023
    np.testing.assert_allclose(np.concatenate(halves), whole, atol=1e-5)
    assert np.abs(whole - compiled(config)(params, tokens, None, memory)[0]).max() > 0.1


def test_a_row_of_padding_stays_finite():
    config = tiny()
    h, after = compiled(config)(draw(config), np.zeros((1, 6), np.int32), np.zeros((1, 6), np.int32), filled(config, 1))
    assert np.isfinite(h).all()
    assert not after.seen_BM.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 9, "heads": 3}, "even"),
        ({"cutoffs": (5, 5)}, "rise"),
        ({"cutoffs": (7, 40)}, "below the vocabulary"),
        ({"tied_projections": (True,)}, "one for each of the 3 clusters"),
        ({"divide": 9}, "leaves nothing"),
        ({"order": "any"}, "rising, falling"),
        ({"head": 0, "heads": 5}, "does not divide"),
    ],
)
def test_mistakes_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**changes)


# -- transformers, in the versions that have it (before 4.36) ----------------------------------------------------------


def imported(found: dict, config: TransformerXL) -> dict:
    """The keys of Hugging Face's model (nn.Linear kernels are (out, in); q, k, v in one)."""
    d, n, h = config.width, config.heads, config.head_size

    def one(i):
        at = f"transformer.layers.{i}"
        qkv = np.split(found[f"{at}.dec_attn.qkv_net.weight"], 3)
        heads = dict(zip(("query", "key", "value"), qkv)) | {"position": found[f"{at}.dec_attn.r_net.weight"]}
        attend = {name: {"kernel": kernel.T.reshape(d, n, h)} for name, kernel in heads.items()}
        attend["out"] = {"kernel": found[f"{at}.dec_attn.o_net.weight"].T.reshape(n, h, d)}
        attend["content_bias"], attend["position_bias"] = (found[f"{at}.dec_attn.r_{x}_bias"] for x in "wr")
        names = ("dec_attn.layer_norm", "pos_ff.layer_norm")
        norms = {
            f"norm{k}": {"scale": found[f"{at}.{name}.weight"], "bias": found[f"{at}.{name}.bias"]}
            for k, name in enumerate(names)
        }
        dense = {
            ours: {"kernel": found[f"{at}.pos_ff.CoreNet.{k}.weight"].T, "bias": found[f"{at}.pos_ff.CoreNet.{k}.bias"]}
            for ours, k in (("up", 0), ("down", 3))
        }
        return {"attention": attend, **norms, **dense}

    layers = jax.tree.map(lambda *parts: np.stack(parts), *[one(i) for i in range(config.depth)])
    clusters = range(len(config.cutoffs) + 1)
    kept = clusters if config.divide > 1 else range(1)
    embed = {f"table{i}": found[f"transformer.word_emb.emb_layers.{i}.weight"] for i in kept}
    embed |= {f"input{i}": found[f"transformer.word_emb.emb_projs.{i}"] for i in kept if config.divide > 1}
    if config.divide > 1:
        embed["output0"] = found["crit.out_projs.0"]
    embed |= {f"bias{i}": found[f"crit.out_layers.{i}.bias"] for i in kept}
    embed |= {"cluster_table": found["crit.cluster_weight"], "cluster_bias": found["crit.cluster_bias"]}
    return {"embed": embed, "layers": layers}


@pytest.mark.parametrize("divide", [1, 2])
@pytest.mark.parametrize("form", ["training", "evaluation"])
def test_is_transformers(divide, form):
    """Log-probabilities and memory over two segments; Hugging Face begins with zeros that are attended to."""
    transformers = pytest.importorskip("transformers")
    if "TransfoXLLMHeadModel" not in dir(transformers):
        pytest.skip("this transformers has no Transformer-XL; the formulas above stand for it")
    torch = pytest.importorskip("torch")
    changes = {"clamp": 7, "same_length": True} if form == "evaluation" else {}
    config = tiny(divide=divide, head=0, memory=8, **changes)
    theirs = transformers.TransfoXLConfig(
        vocab_size=23, cutoffs=[7, 15], d_model=12, d_embed=12, n_head=3, d_head=4, d_inner=20, div_val=divide, n_layer=2,
        mem_len=8, clamp_len=config.clamp or -1, same_length=config.same_length, adaptive=True,
    )  # fmt: skip
    model = transformers.TransfoXLLMHeadModel(theirs).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    params = imported({k: v.detach().numpy() for k, v in model.state_dict().items()}, config)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, draw(config))
    tokens = np.random.default_rng(7).integers(23, size=(2, 12))
    memory, mems = empty_memory(config, 2), None
    memory = memory.replace(seen_BM=jnp.ones_like(memory.seen_BM))
    head = MemoryModel(config).apply({"params": params}, method="head")
    for part in (tokens[:, :6], tokens[:, 6:]):
        with torch.no_grad():
            out = model(torch.tensor(part), mems=mems)
        h, memory = compiled(config)(params, part.astype(np.int32), None, memory)
        np.testing.assert_allclose(head.logits(h), out.prediction_scores.numpy(), atol=1e-4)
        mems = out.mems
        stacked = np.stack([m.numpy() for m in mems]).transpose(2, 0, 1, 3)
        np.testing.assert_allclose(memory.hidden_BLMD, stacked, atol=1e-4)
