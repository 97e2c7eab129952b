"""Learning-rate factors at points worked out by hand."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Schedule
from lm.training.schedules import Numbers, factor


def at(schedule: Schedule, steps: int, *points: int) -> list[float]:
    return [float(x) for x in factors(schedule, steps, jnp.asarray(points, jnp.int32))]


def factors(schedule: Schedule, steps: int, points) -> np.ndarray:
    numbers = Numbers.of(0, 1.0, schedule, steps)
    return np.asarray(factor(schedule.shape, numbers, points)) + np.zeros(len(points))


def test_warm_up_edges():
    """(t + 1) / (warmup + 1): never 0 at the first step, the peak at step == warmup."""
    found = at(Schedule(warmup=4), 100, 0, 1, 3, 4, 5, 99)
    np.testing.assert_allclose(found, [0.2, 0.4, 0.8, 1, 1, 1], rtol=1e-6)
    assert at(Schedule(), 100, 0, 99) == [1, 1]


def test_linear():
    schedule = Schedule(shape="linear", warmup=10, final=0.1)
    found = at(schedule, 110, 0, 9, 10, 60, 110)
    np.testing.assert_allclose(found, [1 / 11, 10 / 11, 1, 0.55, 0.1], rtol=1e-5)


def test_cosine():
    schedule = Schedule(shape="cosine", warmup=20, final=0.1)
    found = at(schedule, 100, 19, 20, 40, 60, 80, 100)
    quarter = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))
    np.testing.assert_allclose(found, [20 / 21, 1, quarter, 0.55, 1.1 - quarter, 0.1], rtol=1e-5)
    assert at(Schedule(shape="cosine"), 100, 100)[0] == pytest.approx(0, abs=1e-6)


def test_rsqrt():
    """sqrt(warmup / step): half at four times the warm-up."""
    found = at(Schedule(shape="rsqrt", warmup=100), 10_000, 99, 100, 400, 2500)
    np.testing.assert_allclose(found, [100 / 101, 1, 0.5, 0.2], rtol=1e-5)
    assert at(Schedule(shape="rsqrt"), 100, 0, 1, 4) == pytest.approx([1, 1, 0.5])
    flat = at(Schedule(shape="flat_rsqrt", warmup=10_000), 10**6, 0, 5000, 10_000, 40_000)
    assert flat == pytest.approx([1, 1, 1, 0.5])


def test_wsd():
    """Warm-up, the peak, and a line down over the last fifth."""
    schedule = Schedule(shape="wsd", warmup=10, final=0.5, decay=0.2)
    found = at(schedule, 100, 0, 10, 50, 80, 90, 100)
    np.testing.assert_allclose(found, [1 / 11, 1, 1, 1, 0.75, 0.5], rtol=1e-5)
    assert at(Schedule(shape="wsd", decay=1.0), 10, 0, 5) == pytest.approx([1, 0.5])


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "rsqrt", "wsd"])
@pytest.mark.parametrize("warmup", [0, 7, 200])
def test_always_a_share(shape, warmup):
    """In [0, 1] for every step, past the end too, also when the warm-up is longer than the run."""
    values = factors(Schedule(shape=shape, warmup=warmup, final=0.1), 100, jnp.arange(130))
    assert (values > 0).all()
    assert (values <= 1).all()
    if warmup < 100:
        assert values.max() == 1


@pytest.mark.parametrize("shape", ["linear", "cosine", "wsd"])
def test_the_last_update_is_not_wasted(shape):
    """`final` is met at `steps`, one past the last update: with final=0 the last batch still counts."""
    schedule = Schedule(shape=shape, warmup=2)
    last, end = at(schedule, 100, 99, 100)
    assert 0 < last < 0.06
    assert end == pytest.approx(0, abs=1e-7)


def test_unknown_shape():
    with pytest.raises(Exception, match="cosin"):
        Schedule(shape="cosin")
