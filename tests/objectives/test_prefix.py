"""Prefix-LM and UL2: what is drawn, how it fills rows of either network, and who sees whom."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from lm.corruption.layouts import Line, Sides, capacity, restored
from lm.corruption.spans import Denoiser
from lm.errors import UserError
from lm.models.attend import Mask
from lm.models.model import Model
from lm.objectives.prefix import Prefix, ul2
from tests.models.reference import draw, tiny
from tests.objectives.test_span import END, FIRST, PAD, SEPARATOR, TOKENIZER, both, record

SPLIT = Denoiser(kind="split")


def prefix(context: int = 24, **changes) -> Prefix:
    model = tiny(vocab=0, context=context, norm="rms", positions="rotary", width=12, heads=3, head=4)
    return Prefix(**{"model": model, **changes}).resolve(TOKENIZER)


def rows(objective: Prefix, *sizes: int, count: int = 1, packing: str = "documents", seed: int = 0):
    rng = np.random.default_rng(seed)
    made = [objective.corrupt(rng, record(*sizes, length=objective.records.length, packing=packing)) for _ in range(count)]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


# -- what is drawn -----------------------------------------------------------------------------------------------------


def test_splits_are_uniform():
    """Each place from 1 to length - 1 as often: chi-square below its 1 - 1e-4 quantile, over 10^6 tokens."""
    objective = prefix(64)
    found = rows(objective, 65, count=15_700, packing="windows")
    assert found["tokens"].size > 10**6
    number = np.bincount(found["prefix"].sum(1), minlength=65)[1:]
    expected = number.sum() / 64
    assert number.sum() == 15_700
    assert ((number - expected) ** 2 / expected).sum() < chi2.ppf(1 - 1e-4, 63)
    np.testing.assert_array_equal(found["weights"].sum(1), 65 - found["prefix"].sum(1))


def test_the_published_mixture():
    """Table 1 of the paper, all seven alike; the shares of the three kinds can be said."""
    table = {(d.kind, d.mean if d.kind == "spans" else None, d.rate, d.mode) for d in ul2()}
    assert table == {
        ("spans", 3, 0.15, "[NLU]"), ("spans", 8, 0.15, "[NLU]"), ("spans", 3, 0.5, "[NLG]"), ("spans", 8, 0.5, "[NLG]"),
        ("spans", 64, 0.15, "[NLG]"), ("spans", 64, 0.5, "[NLG]"), ("end", None, 0.25, "[S2S]"),
    }  # fmt: skip
    assert [d.weight for d in ul2()] == pytest.approx([1 / 7] * 7)
    assert sum(d.weight for d in ul2(0.4, 0.4, 0.2) if d.mode == "[NLG]") == pytest.approx(0.4)


def test_modes_come_by_weight():
    """Within five standard errors."""
    objective = prefix(64, denoisers=ul2(0.4, 0.4, 0.2))
    found = rows(objective, 100, count=5000, packing="windows")["tokens"][:, 0]
    for mode, share in zip(objective.modes, (0.4, 0.4, 0.2)):
        assert abs((found == mode).mean() - share) < 5 * math.sqrt(share * (1 - share) / 5000)
    objective = prefix(64, denoisers=(Denoiser(weight=0.0, mode="[NLU]"), Denoiser(mode="[NLG]")))
    assert (rows(objective, 100, count=50, packing="windows")["tokens"][:, 0] == objective.modes[1]).all()


@pytest.mark.parametrize("model", [both(512, 512), both(512, 512).decoder])
def test_every_denoiser_fills_the_row(model):
    """A decoder alone: to within two tokens. With an encoder: the inputs whole, the targets never too long."""
    objective = Prefix(model=model, denoisers=ul2())
    for denoiser, raw in zip(objective.denoisers, objective.raw):
        cost = objective.layout.cost(denoiser, raw, False)
        if isinstance(objective.layout, Line):
            assert 510 <= cost[0] <= 512
        else:
            assert cost[0] == 512 or cost[1] == 512
            assert max(cost) <= 512
    assert objective.records.stride == round(np.mean(objective.raw))
    assert objective.raw[-1] - objective.denoisers[-1].noise(objective.raw[-1])[0] == round(objective.raw[-1] * 0.75)


@pytest.mark.parametrize("model", [both(40, 40), both(64, 64).decoder])
@pytest.mark.parametrize("packing", ["documents", "windows"])
def test_nothing_is_lost(model, packing):
    """Inputs and targets together are a stretch of the text, by every denoiser."""
    for denoiser in (*ul2(), SPLIT, Denoiser(kind="iid", rate=0.3)):
        objective = Prefix(model=model, denoisers=(denoiser,)).resolve(TOKENIZER)
        found = rows(objective, 15, 7, 90, packing=packing)
        row = {name: x[0] for name, x in found.items()}
        for number in range(1, row["segments"].max() + 1):
            mine = row["segments"] == number
            one_line = "prefix" in row
            inputs = row["tokens"][mine & row["prefix"]] if one_line else row["source"][row["source_segments"] == number]
            text = restored(inputs, row["targets"][mine & (row["weights"] > 0)], objective.sentinels)
            text = np.array([t for t in text if SEPARATOR < t <= FIRST - 200])
            np.testing.assert_array_equal(text, text[0] + np.arange(len(text)))
            assert len(text) >= 2


# -- rows by hand ------------------------------------------------------------------------------------------------------


def test_a_line_by_hand():
    """Two documents, split; the first ends in the row, the second is cut off by it."""
    objective = prefix(8)
    assert objective.special == ()
    assert objective.end == SEPARATOR
    row = {name: x[0] for name, x in rows(objective, 3, 9).items()}  # the separator, 3 4 5, the separator, 6 7 8 9
    first, second = (int(row["prefix"][row["segments"] == n].sum()) for n in (1, 2))
    assert row["tokens"].tolist() == [SEPARATOR, 3, 4, 5, 6, 7, 8, 0]
    assert row["targets"].tolist() == [3, 4, 5, SEPARATOR, 7, 8, 9, 0]
    assert row["segments"].tolist() == [1, 1, 1, 1, 2, 2, 2, 0]
    assert row["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 0]
    assert row["prefix"].tolist() == [
        *[True] * first,
        *[False] * (4 - first),
        *[True] * second,
        *[False] * (4 - second),
    ]
    weights = [*[0] * (first - 1), *[1] * (5 - first), *[0] * (second - 1), *[1] * (4 - second), 0]
    assert row["weights"].tolist() == weights


def test_a_denoised_line():
    """Mode, text with sentinels and end; then the targets, each asked for by the token before it."""
    objective = prefix(24, denoisers=(Denoiser(mode="[NLU]", rate=0.5),))
    row = {name: x[0] for name, x in rows(objective, 40, packing="windows").items()}
    inputs, border = row["tokens"][row["prefix"]], row["prefix"].sum()
    assert inputs[0] == objective.modes[0]
    assert inputs[-1] == END
    assert row["targets"][border - 1] == FIRST
    np.testing.assert_array_equal(row["tokens"][1:], row["targets"][:-1])
    assert row["weights"].tolist() == [*[0] * (border - 1), *[1] * (25 - border)]
    assert row["targets"][-1] == END


def test_two_sides_of_a_split():
    objective = Prefix(model=both(24, 24)).resolve(TOKENIZER)
    row = {name: x[0] for name, x in rows(objective, 40, packing="windows").items()}
    source, target = row["source"][row["source_segments"] > 0], row["targets"][row["segments"] > 0]
    assert [*source[:-1], *target[:-1]] == [SEPARATOR, *range(3, 3 + 23)]
    assert source[-1] == target[-1] == END
    assert row["tokens"][0] == PAD
    assert objective.records.length == capacity(Sides(24, 24), SPLIT) == 24


@pytest.mark.parametrize("objective", [prefix(24), prefix(24, denoisers=ul2()), Prefix(model=both(24, 24), denoisers=ul2())])
def test_strange_records(objective):
    objective, rng = objective.resolve(TOKENIZER), np.random.default_rng(0)
    empty = {name: np.zeros(objective.records.length, np.int32) for name in ("tokens", "segments", "positions")}
    assert all((x == 0).all() for x in objective.corrupt(rng, empty).values())
    empty["segments"][0] = 1
    assert objective.corrupt(rng, empty)["weights"].sum() == 0
    empty["segments"][:2] = 1
    assert objective.corrupt(rng, empty)["weights"].sum() > 0


def test_mistakes_and_resolve():
    with pytest.raises(UserError, match="above 0"):
        Prefix(model=tiny(), denoisers=(Denoiser(weight=0.0),))
    with pytest.raises(UserError, match="no room"):
        Prefix(model=tiny(context=3), denoisers=ul2())
    with pytest.raises(UserError, match="did you mean 'split'"):
        Denoiser(kind="splits")
    objective = prefix(128, denoisers=ul2())
    assert objective.resolve(TOKENIZER) == objective
    assert objective.special[2:5] == ("[NLU]", "[NLG]", "[S2S]")
    needed = max(d.sentinels(raw) for d, raw in zip(objective.denoisers, objective.raw))
    assert objective.sentinels == tuple(FIRST - np.arange(needed))


# -- who sees whom -----------------------------------------------------------------------------------------------------


def test_prefix_sees_itself_and_targets_look_back():
    """By gradient: inputs of a document see each other and no target, a target all before it; other documents: 0."""
    objective = prefix(24, denoisers=(Denoiser(rate=0.3),))
    row = rows(objective, 6, 30)
    params, c = draw(objective.model), objective.model
    assert row["segments"].max() == 2

    @jax.jit
    @jax.jacobian
    def states(x):
        segments = row["segments"]
        mask = Mask(segments_BT=segments, segments_BS=segments, prefix_BS=row["prefix"], causal=True)
        h = Model(c).apply({"params": params}, x, method=lambda m, x: m.stack(x, row["positions"], mask)[0])
        return h[0].sum(-1)

    seen = np.abs(states(jnp.asarray(params["embed"]["table"][row["tokens"]]))).sum((1, -1)) > 0
    segments, inputs, at = row["segments"][0], row["prefix"][0], np.arange(24)
    allowed = (segments[:, None] == segments) & ((at[:, None] >= at) | inputs)
    np.testing.assert_array_equal(seen[segments > 0], allowed[segments > 0])
    assert (allowed & (at[:, None] < at)).any()


@pytest.mark.parametrize("denoisers", [(SPLIT,), (Denoiser(rate=0.3),)])
def test_packed_is_unpacked(denoisers):
    objective = prefix(32, denoisers=denoisers)
    packed = rows(objective, 6, 9, 40)
    numbers = range(1, packed["segments"].max() + 1)
    assert len(numbers) == 3
    apart = {name: np.zeros((3, 32), x.dtype) for name, x in packed.items()}
    for number in numbers:
        mine = packed["segments"][0] == number
        for name, x in packed.items():
            apart[name][number - 1, : mine.sum()] = 1 if name == "segments" else x[0, mine]
    params = draw(objective.model)
    run = jax.jit(jax.value_and_grad(lambda p, b: objective.loss(p, b, None, None)[0]["loss"][0]))
    (one, gradient), (other, expected) = run(params, packed), run(params, apart)
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradient, expected)


def test_operations_of_a_row():
    """An encoder-decoder's depend on both lengths; a decoder's are those of its tokens."""
    long, short = (Prefix(model=both(n, 24)).resolve(TOKENIZER).flops() for n in (48, 24))
    assert short < long < 3 * short
    objective = prefix(24)
    double = dataclasses.replace(objective, model=dataclasses.replace(objective.model, depth=4))
    assert objective.flops() < double.flops() < 2 * objective.flops()
