"""T5's objective: the published lengths and masks, rows from records, what may see what, the published network."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from lm.corruption.layouts import stretch
from lm.corruption.spans import Denoiser, composition, counts, iid_mask, longest, raw_length, span_mask, with_sentinels
from lm.data.corpus.store import Tokens
from lm.data.rows.packing import window
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.heads import Head
from lm.models.presets import t5, t5_1_1, twice
from lm.objectives.rows import target_sums
from lm.objectives.span import Span
from tests.models.reference import tiny
from tests.objectives.pairs import draw, split

PAD, END, SEPARATOR, FIRST = 0, 1, 2, 2000  # sentinels go down from FIRST, as T5's do


def special_id(name: str) -> int:
    known = {"[PAD]": PAD, "[SEP]": END, "[NLU]": 2001, "[NLG]": 2002, "[S2S]": 2003}
    return known[name] if name in known else FIRST - int(name.removeprefix("<extra_id_").removesuffix(">"))


TOKENIZER = SimpleNamespace(vocab=2010, separator=SEPARATOR, special_id=special_id)


def both(inputs: int = 24, targets: int = 24, **changes) -> EncoderDecoder:
    shape = tiny(**{"vocab": 0, "positions": "bucket", "norm": "rms", "bias": False, "width": 12, **changes})
    return EncoderDecoder(
        encoder=dataclasses.replace(shape, context=inputs), decoder=dataclasses.replace(shape, context=targets)
    )


def span(inputs: int = 24, room: int = 24, **changes) -> Span:
    return Span(model=both(inputs, room), **changes).resolve(TOKENIZER)


def record(*sizes: int, length: int, packing: str = "documents", low: int = 3) -> dict[str, np.ndarray]:
    """Documents of these sizes, all tokens different, from the first separator on."""
    ids = np.arange(low, low + sum(sizes))
    texts = np.split(ids, np.cumsum(sizes)[:-1]) if sizes else []
    return window(Tokens.of(texts, SEPARATOR, 2010), 0, length, packing)


# -- lengths and masks -------------------------------------------------------------------------------------------------

COLUMNS = ((0.15, 3), (0.15, 8), (0.5, 3), (0.5, 8), (0.15, 64), (0.5, 64))
LENGTHS = {
    128: ((141, 29), (146, 26), (190, 128), (226, 128), (149, 23), (250, 128)),
    256: ((284, 58), (293, 51), (382, 256), (454, 256), (299, 47), (502, 256)),
    512: ((568, 114), (588, 100), (766, 512), (908, 512), (600, 92), (1006, 512)),
    1024: ((1137, 229), (1178, 200), (1534, 1024), (1818, 1024), (1200, 184), (2014, 1024)),
}


@pytest.mark.parametrize("inputs", LENGTHS)
def test_published_lengths(inputs):
    """The table of the published helper; what a row takes is the same but where the helper forgets the only span."""
    for (rate, mean), expected in zip(COLUMNS, LENGTHS[inputs]):
        assert raw_length(inputs, rate, mean) == expected
        denoiser = Denoiser(rate=rate, mean=mean)
        raw = denoiser.fill(inputs)
        assert raw == expected[0] - ((inputs, rate, mean) == (128, 0.15, 64))
        assert denoiser.sizes(raw).inputs + 1 == inputs
        assert denoiser.sizes(raw).targets + 1 == expected[1] + (raw != expected[0])


@pytest.mark.parametrize(("rate", "mean"), COLUMNS)
def test_rows_are_full_for_every_length(rate, mean):
    """One place of the inputs may stay empty at a rate of one half, where the targets would be longer."""
    for inputs in range(8, 700):
        denoiser = Denoiser(rate=rate, mean=mean)
        left = inputs - denoiser.sizes(denoiser.fill(inputs)).inputs - 1
        assert left == 0 or (rate == 0.5 and left == 1)


def test_rounds_half_to_even():
    assert counts(568, 0.15, 3) == (85, 28)
    assert counts(5, 0.5, 1) == (2, 2)
    assert counts(7, 0.5, 8) == (4, 1)
    assert counts(1, 0.15, 3) == counts(2, 0.15, 3) == (1, 1)
    assert counts(10, 0.9, 1) == (9, 1)  # no more spans than kept tokens


def test_longest():
    assert [longest(10, lambda n, most=most: n <= most) for most in (20, 10, 9, 3, 2, 1, 0)] == [10, 10, 9, 3, 2, 0, 0]


def test_spans_over_a_million_tokens():
    """Rate and mean length are exact in each row; the first token stays, the last goes."""
    rng = np.random.default_rng(0)
    masks = np.stack([span_mask(rng, 568, 0.15, 3) for _ in range(1761)])
    assert masks.size > 10**6
    assert (masks.sum(1) == 85).all()
    assert ((np.diff(masks.astype(int), axis=1) == 1).sum(1) == 28).all()
    assert not masks[:, 0].any()
    assert masks[:, -1].all()


def test_compositions_are_uniform():
    """All ways to cut nine into four, each as often: chi-square below its 1 - 1e-4 quantile."""
    rng = np.random.default_rng(1)
    ways, draws = math.comb(8, 3), 28_000
    found, number = np.unique([composition(rng, 9, 4) for _ in range(draws)], axis=0, return_counts=True)
    assert len(found) == ways
    assert (found.sum(1) == 9).all()
    assert found.min() == 1
    expected = draws / ways
    assert ((number - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-4, ways - 1)
    assert composition(rng, 5, 1).tolist() == [5]
    assert composition(rng, 5, 5).tolist() == [1] * 5


def test_independent_noise_over_a_million_tokens():
    """The rate is within five standard errors; a limit keeps what comes after it."""
    rng, denoiser = np.random.default_rng(2), Denoiser(kind="iid")
    masks = np.stack([denoiser.mask(rng, 511) for _ in range(2000)])
    assert abs(masks.mean() - 0.15) < 5 * math.sqrt(0.15 * 0.85 / masks.size)
    few = iid_mask(rng, 1000, 0.5, 20, 7)
    assert few.sum() <= 20
    assert (np.diff(few.astype(int), prepend=0) == 1).sum() <= 7


def test_rolled_masks():
    """As many noisy tokens, any of them anywhere; a row may have one run more."""
    rng, denoiser = np.random.default_rng(3), Denoiser(roll=True)
    raw = denoiser.fill(128)
    masks = np.stack([denoiser.mask(rng, raw) for _ in range(4000)])
    noise, _ = counts(raw, 0.15, 3)
    assert (masks.sum(1) == noise).all()
    chance = noise / raw
    assert np.abs(masks.mean(0) - chance).max() < 5 * math.sqrt(chance * (1 - chance) / len(masks))
    sizes, letters = denoiser.sizes(raw), np.arange(raw)
    sentinels = np.arange(1000, 1000 + denoiser.sentinels(raw))
    for mask in masks[:500]:
        assert len(with_sentinels(letters, mask, sentinels)) <= sizes.inputs < 128
        assert len(with_sentinels(letters, ~mask, sentinels)) <= sizes.targets


def test_appendix_examples():
    letters, sentinels = np.array([*b"abcdefgh"]), np.array([0, 1, 2])

    def text(mask):
        mask = np.array([*mask]) == "1"
        return ["".join(chr(t) if t > 2 else f"S{t}" for t in with_sentinels(letters, m, sentinels)) for m in (mask, ~mask)]

    assert text("00110001") == ["abS0efgS1", "S0cdS1h"]
    assert text("00110010") == ["abS0efS1h", "S0cdS1gS2"]


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [24, 128, 512])
def test_a_window_fills_both_sides(inputs):
    objective = span(inputs, 512)
    row = objective.corrupt(np.random.default_rng(0), record(inputs * 2, length=objective.raw, packing="windows"))
    assert (row["weights"] == 1).all()
    assert (row["segments"] == 1).all()
    assert (row["source_segments"] == 1).all()
    assert row["source"][-1] == row["targets"][-1] == END
    np.testing.assert_array_equal(row["tokens"], [PAD, *row["targets"][:-1]])
    used = row["source"][row["source"] > FIRST - 100]
    np.testing.assert_array_equal(used, FIRST - np.arange(len(used)))
    np.testing.assert_array_equal(row["targets"][row["targets"] > FIRST - 100], used)
    assert row["targets"][0] == FIRST
    assert {name: x.dtype for name, x in row.items() if x.dtype != np.int32} == {"weights": np.float32}
    if inputs == 512:
        assert (objective.raw, row["targets"].shape) == (568, (114,))


def test_documents_share_a_row():
    """Each has its own sentinels, ends and segment on both sides, and no token of another."""
    objective = span(64, 40, targets=40)
    row = objective.corrupt(np.random.default_rng(0), record(9, 1, 20, 2, 100, length=objective.raw))
    assert (row["source_segments"].max(), row["segments"].max()) == (4, 4)  # the one of a single token is left out
    lows = {1: 3, 2: 13, 3: 33, 4: 35}
    for number, low in lows.items():
        source, target = (
            row[name][row[side] == number] for name, side in (("source", "source_segments"), ("targets", "segments"))
        )
        assert source[-1] == target[-1] == END
        assert target[0] == FIRST
        assert row["tokens"][row["segments"] == number][0] == PAD
        text = np.sort(np.concatenate([x[(x > SEPARATOR) & (x < FIRST - 100)] for x in (source, target)]))
        if number > 1:
            np.testing.assert_array_equal(text, text[0] + np.arange(len(text)))
            assert text[0] == low or number == 4
        np.testing.assert_array_equal(row["positions"][row["segments"] == number], np.arange(len(target)))
    assert (row["source_segments"] > 0).sum() >= 62 or (row["segments"] > 0).sum() >= 38


def test_strange_records():
    objective, rng = span(), np.random.default_rng(0)
    empty = {name: np.zeros(objective.raw, np.int32) for name in ("tokens", "segments", "positions")}
    assert all((x == 0).all() for x in objective.corrupt(rng, empty).values())
    one = {name: x.copy() for name, x in empty.items()}
    one["segments"][0], one["tokens"][0] = 1, 7
    assert objective.corrupt(rng, one)["weights"].sum() == 0
    two = {name: x.copy() for name, x in empty.items()}
    two["segments"][:2], two["tokens"][:2] = 1, (7, 8)
    row = objective.corrupt(rng, two)
    assert row["source"][:3].tolist() == [7, FIRST, END]
    assert row["targets"][:3].tolist() == [FIRST, 8, END]
    np.testing.assert_array_equal(two["tokens"][:2], [7, 8])
    assert stretch(rng, np.arange(30), lambda n: n <= 10).shape == (10,)
    assert stretch(rng, np.arange(30), lambda n: False).shape == (0,)


def test_mistakes():
    with pytest.raises(UserError, match=r"decoder\.context=8 is shorter than the 29 targets"):
        Span(model=both(128, 8))
    with pytest.raises(UserError, match="targets=5 is less than the 29"):
        Span(model=both(128, 40), targets=5)
    with pytest.raises(UserError, match="EncoderDecoder"):
        Span(model=tiny())
    with pytest.raises(UserError, match="no room for a span"):
        Span(model=both(2, 8))
    with pytest.raises(UserError, match="rate"):
        Span(model=both(), rate=0.0)
    with pytest.raises(UserError, match=r"objective\.model\.vocab=7 is smaller"):
        Span(model=twice(tiny(vocab=7))).resolve(TOKENIZER)


def test_resolve():
    objective = span(512, 512)
    assert objective.special[:3] == ("[PAD]", "[SEP]", "<extra_id_0>")
    assert objective.sentinels == tuple(FIRST - np.arange(28))
    assert objective.resolve(TOKENIZER) == objective
    assert objective.records.tokens == 568
    assert Span(model=objective.model, noise="iid").resolve(TOKENIZER).records.tokens == 511


# -- the loss ----------------------------------------------------------------------------------------------------------


def batch(objective: Span, *sizes: int, rows: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = [objective.corrupt(rng, record(*sizes, length=objective.raw, low=3 + i)) for i in range(rows)]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


def test_packed_is_unpacked():
    """Loss and gradient of a row of three documents, and of three rows of one."""
    objective = span(30, 24, targets=24, z_loss=0.01)
    packed = batch(objective, 9, 6, 30)
    assert packed["segments"].max() == 3
    params = draw(objective.model, spread=0.1)
    run = jax.jit(jax.value_and_grad(lambda p, b: objective.loss(p, b, None, None)[0]["loss"][0]))
    (one, gradient), (other, expected) = run(params, packed), run(params, split(packed))
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradient, expected)


def test_what_sees_what():
    """Exactly no gradient from a target to later ones, to other documents' sources, nor from the source to targets."""
    objective = span(30, 24, targets=24)
    rows = batch(objective, 9, 6, 30)
    c = objective.model
    params, network = draw(c, spread=0.1), Seq2Seq(c)
    table = params["embed"]["table"]
    source, tokens = (jnp.asarray(table[rows[name]]) for name in ("source", "tokens"))
    places = {side: (rows[f"{side}positions"], rows[f"{side}segments"]) for side in ("", "source_")}

    def states(source, tokens):
        h = network.apply({"params": params}, source, *places["source_"], method="encode_states")

        def decode(module, x):
            from lm.models.attend import Mask

            segments, others = places[""][1], places["source_"][1]
            mask = Mask(segments_BT=segments, segments_BS=segments, causal=True)
            cross = Mask(segments_BT=segments, segments_BS=others, causal=False)
            return module.decoder(x, places[""][0], mask, None, source_BSD=h, source_mask=cross)[0]

        return network.apply({"params": params}, tokens, method=decode)[0].sum(-1), h[0].sum(-1)

    (to_source, to_tokens), (encoder, nothing) = jax.jit(jax.jacobian(states, (0, 1)))(source, tokens)
    seen = {name: np.abs(x).sum((1, -1)) > 0 for name, x in (("cross", to_source), ("self", to_tokens), ("source", encoder))}
    mine, theirs = rows["segments"][0], rows["source_segments"][0]
    real, words = mine > 0, theirs > 0
    later = np.arange(len(mine))[:, None] >= np.arange(len(mine))
    np.testing.assert_array_equal(seen["self"][real], (later & (mine[:, None] == mine))[real])
    np.testing.assert_array_equal(seen["cross"][real], (mine[:, None] == theirs)[real])
    np.testing.assert_array_equal(seen["source"][words], (theirs[:, None] == theirs)[words])
    assert not np.abs(nothing).any()


def test_smoothing_is_that_of_t5x():
    """-sum q log p + sum q log q with 1 - e on the target and e / (V - 1) on all others; 0 for a perfect network."""
    rng = np.random.default_rng(0)
    h, table = (rng.normal(size=size).astype(np.float32) for size in ((2, 3, 4), (11, 4)))
    rows = {"targets": rng.integers(0, 11, (2, 3)), "weights": rng.random((2, 3)).astype(np.float32)}
    sums = target_sums(jnp.asarray(h), Head(table_VD=jnp.asarray(table), vocab=11), rows, 1e-2, 0.1, from_zero=True)
    logits = (h @ table.T).astype(np.float64)
    log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
    q = np.where(np.arange(11) == rows["targets"][..., None], 0.9, 0.1 / 10)
    expected = (q * (np.log(q) - logits + log_z)).sum(-1) + 1e-2 * log_z[..., 0] ** 2
    assert float(sums["loss"][0]) == pytest.approx((rows["weights"] * expected).sum(), rel=1e-4)
    assert set(sums) == {"loss", "accuracy", "nll", "z"}


def from_t5(saved: dict[str, np.ndarray], heads: int, depth: int = 2):
    """Name the weights of Hugging Face's T5 as ours, layers stacked."""

    def stack(side, name):
        return np.stack([saved[f"{side}.block.{i}.layer.{name}.weight"] for i in range(depth)])

    def kernel(side, name):
        return {"kernel": stack(side, name).swapaxes(1, 2)}

    def attention(side, name):
        found = {
            ours: kernel(side, f"{name}.{theirs}")["kernel"] for ours, theirs in zip(("query", "key", "value", "out"), "qkvo")
        }
        shapes = {
            ours: (depth, heads, -1, x.shape[2]) if ours == "out" else (*x.shape[:2], heads, -1) for ours, x in found.items()
        }
        return {ours: {"kernel": x.reshape(shapes[ours])} for ours, x in found.items()}

    def layers(side):
        found = {"attention": attention(side, "0.SelfAttention"), "norm0": {"scale": stack(side, "0.layer_norm")}}
        last = 1
        if side == "decoder":
            found |= {
                "cross": attention(side, "1.EncDecAttention"),
                "cross_norm": {"scale": stack(side, "1.layer_norm")},
            }
            last = 2
        gated = f"{side}.block.0.layer.{last}.DenseReluDense.wi_0.weight" in saved
        names = {"gate": "wi_0", "up": "wi_1", "down": "wo"} if gated else {"up": "wi", "down": "wo"}
        found["mlp"] = {ours: kernel(side, f"{last}.DenseReluDense.{name}") for ours, name in names.items()}
        found["norm1"] = {"scale": stack(side, f"{last}.layer_norm")}
        buckets = saved[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        return {"layers": found, "buckets": buckets, "norm": {"scale": saved[f"{side}.final_layer_norm.weight"]}}

    found = {"embed": {"table": saved["shared.weight"]}, **{side: layers(side) for side in ("encoder", "decoder")}}
    tied = np.array_equal(saved["lm_head.weight"], saved["shared.weight"])
    return found if tied else {**found, "output": {"table": saved["lm_head.weight"]}}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_published_network(version):
    """Logits and loss of transformers' T5 with random weights; distances beyond 128 share a bucket."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    shape = {"d_model": 12, "d_ff": 20, "d_kv": 5, "num_heads": 3, "num_layers": 2, "vocab_size": 40}
    new = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if version == "1.1" else {}
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**shape, **new, decoder_start_token_id=0)).eval()
    if version == "1.1":  # transformers 5 ties them whatever the config says; the published files have two tables
        theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach().clone())
    for parameter in theirs.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    model = (t5 if version == "1.0" else t5_1_1)(12, 20, 5, 3, 2)
    ours = twice(dataclasses.replace(model.decoder, vocab=40))
    params = from_t5({k: v.numpy().copy() for k, v in theirs.state_dict().items()}, 3)
    rng = np.random.default_rng(0)
    source, targets = (rng.integers(2, 40, size).astype(np.int32) for size in ((2, 150), (2, 140)))
    tokens = np.concatenate([np.zeros((2, 1), np.int32), targets[:, :-1]], 1)
    expected = theirs(input_ids=torch.tensor(source).long(), labels=torch.tensor(targets).long())

    @jax.jit
    def run(params):
        h = Seq2Seq(ours).apply({"params": params}, source, tokens)
        head = Seq2Seq(ours).apply({"params": params}, method="head")
        rows = {"targets": targets, "weights": jnp.ones(targets.shape)}
        return head.logits(h), target_sums(h, head, rows, 0.0, 0.0, 0)["loss"]

    logits, (total, count) = run(params)
    np.testing.assert_allclose(logits, expected.logits.detach().numpy(), atol=1e-4)
    assert float(total / count) == pytest.approx(expected.loss.item(), abs=1e-4)
