"""The two-stream network: transformers' figures, exact causality, the shift, counts, memory."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import flops, presets, relative
from lm.models.relative import distances, shift
from lm.models.two_stream import TwoStream, XLNet, directions
from lm.sharding import unbox

TINY = XLNet(vocab=37, context=12, memory=5, width=16, depth=2, heads=2, activation="gelu")
B, T, M, P = 4, 12, 5, 3


def draw(config=TINY, std=0.5, seed=0):
    """Random parameters, large enough that every term of the scores matters."""
    params = unbox(jax.jit(TwoStream(config).init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"])
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return tree.unflatten([(std * rng.standard_normal(x.shape)).astype(np.float32) for x in leaves])


def rows(seed=0):
    """Rows in which ranks are permutation values of targets and functional tokens, and -1 elsewhere."""
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(T) for _ in range(B)])
    places = np.stack([np.sort(rng.choice(T, P, replace=False)) for _ in range(B)])
    target = np.zeros((B, T), bool)
    np.put_along_axis(target, places, True, 1)
    rank = np.where(target | (rng.random((B, T)) < 0.3), order, -1)
    return {
        "tokens_BT": rng.integers(0, 37, (B, T)),
        "types_BT": rng.integers(0, 3, (B, T)),
        "rank_BT": rank,
        "reach_BT": np.where(target, rank, rank + 1),
        "places_BP": places,
        "backward_B": np.array([0, 0, 1, 1]),
        "memory_BLMD": rng.standard_normal((B, 2, M, 16)).astype(np.float32),
    }


@partial(jax.jit, static_argnames=("config", "reuse"))
def forward(params, batch, config=TINY, reuse=0, keys_B=None):
    tokens, rest = batch["tokens_BT"], {k: v for k, v in batch.items() if k != "tokens_BT"}
    variables = {"params": params}
    h, g, memory = TwoStream(config).apply(variables, tokens, **rest, reuse=reuse, keys_B=keys_B)
    head = TwoStream(config).apply(variables, method="head")
    return h, g, memory, head.logits(h if g is None else g)


# -- parity with transformers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    """A small XLNetLMHeadModel with our parameters: `reuse_len` 7, half of the rows backward."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.XLNetConfig(
        vocab_size=37, d_model=16, n_layer=2, n_head=2, d_inner=64, mem_len=M, reuse_len=7, bi_data=True, dropout=0.0
    )
    model = transformers.XLNetLMHeadModel(config).eval()
    params = draw()
    stack = params["stack"]["layers"]
    state = {
        "transformer.word_embedding.weight": params["embed"]["table"],
        "lm_loss.weight": params["embed"]["table"],
        "lm_loss.bias": params["head_bias"],
        "transformer.mask_emb": params["query"][None, None],
    }
    for i in range(2):
        layer, (attention, mlp) = f"transformer.layer.{i}", (stack["attention"], stack["mlp"])
        names = {"q": "query", "k": "key", "v": "value", "r": "position"}
        state |= {f"{layer}.rel_attn.{a}": attention[b]["kernel"][i] for a, b in names.items()}
        state[f"{layer}.rel_attn.o"] = attention["out"]["kernel"][i].transpose(2, 0, 1)
        names = {"r_w_bias": "content_bias", "r_r_bias": "position_bias", "r_s_bias": "segment_bias", "seg_embed": "segments"}
        state |= {f"{layer}.rel_attn.{a}": attention[b][i] for a, b in names.items()}
        for a, b in {"rel_attn.layer_norm": "norm0", "ff.layer_norm": "norm1"}.items():
            state |= {f"{layer}.{a}.weight": stack[b]["scale"][i], f"{layer}.{a}.bias": stack[b]["bias"][i]}
        for a, b in {"ff.layer_1": "up", "ff.layer_2": "down"}.items():
            state |= {f"{layer}.{a}.weight": mlp[b]["kernel"][i].T, f"{layer}.{a}.bias": mlp[b]["bias"][i]}
    missing = model.load_state_dict({k: torch.tensor(np.array(v)) for k, v in state.items()}, strict=True)
    assert not missing.missing_keys
    assert not missing.unexpected_keys

    def run(batch, perm_mask=None, mapping=False):
        def tensor(x, **kind):
            return torch.tensor(np.array(x), **kind)

        kinds = {}
        if "memory_BLMD" in batch:
            kinds["mems"] = [tensor(m) for m in batch["memory_BLMD"].transpose(1, 2, 0, 3)]
        if perm_mask is not None:
            kinds["perm_mask"] = tensor(perm_mask, dtype=torch.float32)
        if mapping:
            kinds["target_mapping"] = tensor(np.eye(T)[batch["places_BP"]], dtype=torch.float32)
        if "types_BT" in batch:
            kinds["token_type_ids"] = tensor(batch["types_BT"])
        with torch.no_grad():
            found = model(tensor(batch["tokens_BT"]), **kinds, use_mems=True, output_hidden_states=True)
        memory = np.stack([m.numpy() for m in found.mems]).transpose(2, 0, 1, 3)
        content = found.hidden_states[-2 if mapping else -1].numpy()
        return content, memory, found.logits.numpy()

    return params, run


def blocked(batch):
    """The reference's permutation mask (B, T, T): 1 where row i must not see j."""
    return ~(batch["reach_BT"][..., None] > batch["rank_BT"][:, None])


@pytest.mark.parametrize("left_out", [(), ("types_BT",), ("memory_BLMD",)], ids=str)
def test_both_streams_are_the_reference_s(reference, left_out):
    params, run = reference
    batch = {k: v for k, v in rows().items() if k not in left_out}
    content, memory, logits = run(batch, blocked(batch), mapping=True)
    if "types_BT" in left_out:  # the reference then leaves the segment term out: it is one number a query otherwise
        params = jax.tree.map(np.copy, params)
        params["stack"]["layers"]["attention"]["segments"][:] = 0
    h, _, later, found = forward(params, batch, reuse=7)
    np.testing.assert_allclose(h, content, atol=1e-4)
    np.testing.assert_allclose(found, logits, atol=1e-4)
    if "memory_BLMD" in batch:
        np.testing.assert_allclose(later, memory, atol=1e-4)


def test_content_stream_without_masks_is_the_reference_s(reference):
    params, run = reference
    batch = {k: v for k, v in rows(1).items() if k in ("tokens_BT", "types_BT", "backward_B", "memory_BLMD")}
    content, memory, logits = run(batch)
    h, g, later, found = forward(params, batch, reuse=7)
    assert g is None
    for ours, theirs in ((h, content), (later, memory), (found, logits)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


# -- what may be seen ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen():
    """Largest derivative of content (B, T, .) and query states (B, P, .) by content (B, T) and memory (B, M) of the row."""
    batch, config = rows(2), dataclasses.replace(TINY, vocab=B * T)
    params, tokens = draw(config, 0.3), np.arange(B * T).reshape(B, T)
    mix = np.random.default_rng(3).standard_normal(16)

    def states(table, memory_BLMD):
        fresh = params | {"embed": {"table": table}}  # each token has a row of its own
        h, g, _, _ = forward(fresh, batch | {"tokens_BT": tokens, "memory_BLMD": memory_BLMD}, config)
        return h @ mix, g @ mix

    jacobian = jax.jit(jax.jacrev(states, (0, 1)))(params["embed"]["table"], batch["memory_BLMD"])

    def by_row(by_token, by_memory):
        by_token = np.abs(by_token).max(-1).reshape(*by_token.shape[:2], B, T)
        by_memory = np.abs(by_memory).max((3, 5))
        pairs = zip(by_token.transpose(0, 2, 1, 3), by_memory.transpose(0, 2, 1, 3))
        return [np.concatenate([memory[b], token[b]], -1) for b, (token, memory) in enumerate(pairs)]

    across = np.abs(jacobian[0][0]).max(-1).reshape(B, T, B, T).max((1, 3))
    assert (across[~np.eye(B, dtype=bool)] == 0).all()
    return batch, *(np.stack(by_row(*pair)) for pair in jacobian)


def test_content_sees_what_the_permutation_allows_and_itself(seen):
    """Derivatives through two layers are exactly 0 where it forbids, and nowhere else; all see the memory."""
    batch, h_BTS, _ = seen
    allowed = ~blocked(batch) | np.eye(T, dtype=bool)
    np.testing.assert_array_equal(h_BTS[..., M:] != 0, allowed)
    assert (h_BTS[..., :M] != 0).all()


def test_a_query_does_not_see_its_own_token(seen):
    batch, _, g_BPS = seen
    allowed = np.take_along_axis(~blocked(batch), batch["places_BP"][..., None], 1)
    np.testing.assert_array_equal(g_BPS[..., M:] != 0, allowed)
    assert (g_BPS[..., :M] != 0).all()
    own = np.take_along_axis(g_BPS[..., M:], batch["places_BP"][..., None], -1)
    assert (own == 0).all()


def test_a_query_that_sees_nothing_learns_nothing():
    """Every token a target and no memory: the first in the permutation is a function of its place alone."""
    rank = np.random.default_rng(0).permutation(T)[None]
    first = np.argmin(rank, 1)[:, None]
    params = draw()

    def state(tokens):
        return forward(params, {"tokens_BT": tokens, "rank_BT": rank, "reach_BT": rank, "places_BP": first})[1]

    np.testing.assert_array_equal(state(np.zeros((1, T), int)), state(np.arange(T)[None]))


def test_no_gradient_into_the_memory_handed_on():
    batch, params = rows(), draw()
    by_params = jax.jit(jax.grad(lambda p: (forward(p, batch)[2] ** 2).sum()))(params)
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(by_params))


# -- places, directions, memory --------------------------------------------------------------------------------------------


def test_shift_is_the_release_s():
    """spec.md, A.5: both forms on the numbers from 0 on; entries past the causal diagonal have no meaning."""
    found = shift(jnp.arange(12.0).reshape(3, 4), 4)
    np.testing.assert_array_equal(found, [[2, 3, 0, 4], [5, 6, 7, 0], [8, 9, 10, 11]])
    found = shift(jnp.arange(21.0).reshape(3, 7), 4)
    np.testing.assert_array_equal(found, [[3, 4, 5, 6], [9, 10, 11, 12], [15, 16, 17, 18]])


def test_distances():
    """Query t and key s of M + T keys meet in column T - t + s, which is distance t + M - s."""
    column = np.arange(M + 2 * T)
    named_by = shift(jnp.broadcast_to(column.astype(np.float32), (T, len(column))), M + T)
    t, s = np.arange(T)[:, None], np.arange(M + T)
    np.testing.assert_array_equal(named_by, T - t + s)
    assert distances(M + T, 1 - T, 6).shape == (M + 2 * T, 6)
    by_hand = np.asarray([[np.sin(d), np.cos(d)] for d in range(M + T, -T, -1)])
    np.testing.assert_allclose(distances(M + T, 1 - T, 6)[:, [0, 3]], by_hand, atol=1e-5)
    far = distances(M + T, 1 - T, 6, clamp=4)
    np.testing.assert_array_equal(far[0], far[M + T - 4])
    np.testing.assert_array_equal(far[-1], far[-1 - (T - 1 - 4)])
    both = directions(M, T, TINY, True)
    np.testing.assert_allclose(both[1, :, 0], -np.sin(np.arange(M + T, -T, -1)), atol=1e-5)
    np.testing.assert_array_equal(both[0, :, 8:], both[1, :, 8:])


def test_a_row_written_backward_is_the_same_row():
    """Tokens, ranks and places reversed, and distances too: the same states, reversed."""
    batch, params = rows(), draw()
    batch = {k: v for k, v in batch.items() if k not in ("memory_BLMD", "backward_B")}
    forth = forward(params, batch | {"backward_B": np.zeros(B, int)})
    back = {k: v[:, ::-1] for k, v in batch.items()}
    back = forward(params, back | {"places_BP": T - 1 - back["places_BP"], "backward_B": np.ones(B, int)})
    np.testing.assert_allclose(back[0], forth[0][:, ::-1], atol=2e-5)
    np.testing.assert_allclose(back[1], forth[1][:, ::-1], atol=2e-5)


def test_memory_is_the_layers_inputs():
    batch, params = rows(), draw()
    later = forward(params, batch, reuse=3)[2]
    np.testing.assert_array_equal(later[:, :, :2], batch["memory_BLMD"][:, :, 3:])
    np.testing.assert_array_equal(later[:, 0, 2:], params["embed"]["table"][batch["tokens_BT"][:, :3]])
    whole = forward(params, batch)[2]
    np.testing.assert_array_equal(whole[:, 0], params["embed"]["table"][batch["tokens_BT"][:, -M:]])


# -- shapes and choices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("BASE", 116_718_336), ("LARGE", 360_268_800)])
def test_published_sizes(name, expected):
    """spec.md, B: the network without the 32,000 biases of its head."""
    config = getattr(presets, f"XLNET_{name}")
    shapes = jax.eval_shape(TwoStream(config).init, jax.random.key(0), np.zeros((1, 8), np.int32))
    assert flops.parameter_count(shapes) - config.vocab == expected


@pytest.mark.slow
def test_what_only_changes_speed():
    """Loops unrolled and layers recomputed: the same loss and gradient, dropout included."""
    batch, params, keys = rows(), draw(), jax.random.split(jax.random.key(1), B)

    def run(config):
        return jax.jit(jax.grad(lambda p: (forward(p, batch, config, 0, keys)[3] ** 2).mean()))(params)

    plain = dataclasses.replace(TINY, dropout=0.2, attention_dropout=0.1)
    expected, found = run(plain), run(dataclasses.replace(plain, unroll=0, remat="full"))
    scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), found, expected)


def test_bfloat16_is_near():
    batch, params = rows(), draw(std=0.1)
    full = forward(params, batch)[3]
    half = forward(params, batch, dataclasses.replace(TINY, dtype="bfloat16"))
    assert half[0].dtype == jnp.bfloat16
    assert half[2].dtype == batch["memory_BLMD"].dtype
    np.testing.assert_allclose(half[3], full, atol=0.05 * np.abs(full).max())


def test_long_rows_go_in_pieces(monkeypatch):
    """Values and gradients of both streams, with dropout of the weights, in pieces of a row as for the whole."""
    config = dataclasses.replace(TINY, attention_dropout=0.2)
    params, batch = draw(config), rows()
    keys_B = jax.random.split(jax.random.key(2), B)

    def results():
        def value(params):
            h, g, memory, _ = forward.__wrapped__(params, batch, config, 0, keys_B)
            return (h**2).sum() + (g**3).sum(), memory

        return jax.jit(jax.value_and_grad(value, has_aux=True))(params)

    whole = results()
    monkeypatch.setattr(relative, "SHORT", 4)
    monkeypatch.setattr(relative, "PIECE", 4)
    for mine, theirs in zip(jax.tree.leaves(results()), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
