"""Models larger than one device: parameters read from a checkpoint onto eight simulated devices, figures as on one."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lm.convert.runs import export_run
from lm.errors import UserError
from lm.language_model import load
from tests.test_runs import run, text  # noqa: F401  (a fixture)

MESH = "fsdp=4,tensor=2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text):  # noqa: F811
    workdir = tmp_path_factory.mktemp("spread") / "run"
    done = run(f"--workdir={workdir}", config=f"tests/configs/tiny.py:text={text}")
    assert done.returncode == 0, done.stderr
    return workdir


def test_figures_samples_and_scores_are_those_of_one_device(trained, tmp_path):
    one, spread = load(trained), load(trained, mesh=MESH)
    held = dict.fromkeys(jax.devices(), 0)
    for x in jax.tree.leaves(spread.params):
        for shard in x.addressable_shards:
            held[shard.device] += shard.data.nbytes
    whole = sum(x.nbytes for x in jax.tree.leaves(one.params))
    assert len(held) == 8
    assert max(held.values()) < 0.2 * whole  # an eighth, but for norms and what only one axis divides
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))

    assert (
        spread.generate("the ", strategy="greedy", max_new_tokens=8)[0]["tokens"]
        == (one.generate("the ", strategy="greedy", max_new_tokens=8)[0]["tokens"])
    )
    np.testing.assert_allclose(spread.score("the file")["sum"], one.score("the file")["sum"], rtol=1e-5)
    figures = [each.evaluate("validation")["validation"] for each in (one, spread)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-4, abs=1e-5)


def test_export(trained, tmp_path):
    for name, mesh in (("one", None), ("spread", MESH)):
        export_run(trained, tmp_path / name, mesh=mesh)
    one, spread = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "spread"))
    assert one.keys() == spread.keys()
    for name, x in one.items():
        np.testing.assert_array_equal(spread[name], x)
    # A published folder is read onto the mesh, too.
    model = load(tmp_path / "one", mesh="fsdp=8")
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(model.params))


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ("fsdp=3", "does not fit 8 device"),
        ("fdsp=8", "did you mean 'fsdp'"),
        ("fsdp=a", "write AXIS=SIZE"),
        ("8", "axis of --mesh '8'"),
    ],
)
def test_a_mesh_that_cannot_be(trained, mesh, words):
    with pytest.raises(UserError, match=words):
        load(trained, mesh=mesh)
