"""Adversarial vectors where several texts are looked up: parts of a mixture, sources and targets."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.sources import Mixture
from lm.errors import UserError
from lm.objectives.mixture import Part
from lm.objectives.multitask import Tasks
from lm.objectives.regularised import Regularised
from lm.sharding import unbox
from tests.objectives.labelled import configs, prepared


def harder(objective) -> Regularised:
    return Regularised(objective=objective, adversarial=1.0, radius=0.5)


@functools.cache
def tasks():
    """Reviews and tags, both made harder, their first batches and parameters."""
    config, _, _ = prepared(configs("tiny_tasks.py"))
    parts, data = config.objective.parts[:2], config.data
    parts = tuple(Part(name=part.name, objective=harder(part.objective)) for part in parts)
    data = dataclasses.replace(data, source=Mixture(sources=data.source.sources[:2], weights=(1.0, 1.0)))
    return prepared(configs("tiny_tasks.py"), objective=Tasks(parts=parts), data=data)


@pytest.mark.slow
def test_a_mixture_is_made_harder_part_by_part():
    """Around the mixture the ball would be that of a row; around each part its loss is what the part has alone."""
    config, _, batch = tasks()
    plain = config.objective.parts
    for kind in (Tasks(parts=tuple(Part(name=p.name, objective=p.objective.objective) for p in plain)), config.objective):
        with pytest.raises(UserError, match="parts of Tasks have rows of their own: put Regularised around the objective of"):
            harder(kind)
    number = int(batch["part"].max())
    part, keys_B = plain[number], jax.random.split(jax.random.key(1), config.batch)
    params = unbox(config.objective.init(jax.random.key(0), batch))
    assert part.of(batch)["segments"].max() > 1
    together = jax.jit(lambda p: config.objective.loss(p, batch, None, keys_B)[0])(params)
    alone = jax.jit(lambda p: part.objective.loss(p, part.of(batch), None, keys_B)[0])(part.params(params))
    for name in ("loss", "adversarial/loss"):
        np.testing.assert_allclose(together[f"{part.name}/{name}"], alone[name], rtol=1e-5)
    assert alone["adversarial/loss"][0] > alone["loss"][0]


@pytest.mark.slow
def test_sources_and_targets_have_texts_of_their_own():
    """On sides of one length, too: every text of either is moved by the radius."""
    config, _, batch = prepared(f"{configs('tiny_text2text.py')}:dropout=0")
    width = max(batch["tokens"].shape[1], batch["source"].shape[1])
    batch = {k: np.pad(x, [(0, 0), (0, width - x.shape[1])]) for k, x in batch.items()}
    assert (batch["segments"] != batch["source_segments"]).any()
    objective, found = harder(config.objective), []
    params = unbox(config.objective.init(jax.random.key(0), batch))
    keys_B = jax.random.split(jax.random.key(1), config.batch)
    zeros = [jnp.zeros((*batch["tokens"].shape, config.objective.model.decoder.width))] * 2

    def loss(deltas):
        return objective.run(params, batch, None, keys_B, deltas)[0][0]["loss"][0]

    found = jax.jit(lambda: objective.climb(loss, zeros, batch))()
    for delta, name in zip(found, ("source_segments", "segments"), strict=True):
        for row, numbers in zip(np.asarray(delta), batch[name]):
            for number in range(1, numbers.max() + 1):
                assert np.linalg.norm(row[numbers == number]) == pytest.approx(0.5, rel=1e-4), name
