"""Plans as `lm.compile` prints and writes them, on simulated devices; with libtpu, slow, for a slice."""

import importlib.util
import json
import os

import jax
import pytest

from lm.errors import UserError
from lm.planning import hardware, roofline, search, step
from lm.planning.operations import Collective
from lm.planning.topologies import LIBTPU
from lm.sharding import AXES, make_mesh
from tests.configs import tiny
from tests.processes import command

TINY = "tests/configs/tiny.py"
KEYS = {
    "devices", "mesh", "params", "arguments_bytes", "temporaries_bytes", "peak_bytes", "hbm_bytes", "fits", "model_flops",
    "compiled_flops", "bytes_accessed", "collectives", "step_seconds_estimate", "mfu_estimate", "warnings", "compile_seconds",
}  # fmt: skip
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    file = tmp_path_factory.mktemp("plan") / "f.json"
    axes = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.objective.model.dropout=0")
    done = command("lm.compile", f"--config={TINY}", "--topology=cpu:4", "--memory=0.0001", *axes, f"--output={file}")
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def test_the_file_has_every_key(written):
    found, text = written
    assert set(found) >= KEYS
    assert (found["devices"], found["mesh"], found["warnings"]) == (4, {"fsdp": 2, "tensor": 2}, [])
    assert not found["fits"]
    assert found["hbm_bytes"] == int(0.0001 * 2**30) < found["peak_bytes"]
    assert "GiB more than its" in text


def test_compiled_operations_are_those_of_the_formula(written):
    """No causal saving at 32 tokens, no recomputation: the formula within 5 %, as the traced program."""
    found = written[0]
    assert found["compiled_flops"] == pytest.approx(found["model_flops"], rel=0.05)
    assert found["traced_flops"] == pytest.approx(found["compiled_flops"], rel=0.05)


def test_collectives_name_axes_and_loops(written):
    kinds = written[0]["collectives"]
    assert {*kinds["all-gather"]} == {"count", "bytes", "axes", "in_loops"}
    assert "fsdp" in kinds["all-gather"]["axes"]
    assert "tensor" in kinds["all-reduce"]["axes"]
    assert kinds["all-gather"]["in_loops"]["count"] >= 2 * 2  # parameters of two layers, forward and backward
    for one in kinds.values():
        assert sum(part["count"] for part in one["axes"].values()) == one["count"] >= one["in_loops"]["count"]


@pytest.mark.slow
def test_stages_have_a_bubble(tmp_path):
    """Four micro-batches in five ticks: a fifth, which is compiled as well, more than the formula's work on the layers."""
    axes = ("--config.mesh.data=2", "--config.mesh.stage=2", "--config.objective.model.dropout=0", "--config.batch=16")
    done = command("lm.compile", f"--config={TINY}", "--topology=cpu:4", *axes, f"--output={tmp_path}/f.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["pipeline"] == {"stages": 2, "micro_batches": 4, "bubble": 0.2}
    assert "4 micro-batches through 2 stages, 20% of its ticks" in done.stdout
    assert found["traced_flops"] == pytest.approx(found["compiled_flops"], rel=0.05)
    assert {*found["collectives"]["collective-permute"]["axes"]} == {"stage"}


def test_warnings_of_the_partitioner_are_collected(capfd):
    """Lines that C++ code writes to descriptor 2; others go on to stderr."""
    found = []
    with step.compiler_warnings(found):
        os.write(2, b"W0000 spmd.cc:1] [SPMD] Involuntary full rematerialization. The compiler cannot go from A to B\nother\n")
    assert len(found) == 1
    assert "cannot go from A to B" in found[0]
    assert capfd.readouterr().err == "other\n"


class Chip:
    platform, device_kind, slice_index, process_index, core_on_chip = "tpu", "TPU v5 lite", 0, 0, 0

    def __init__(self, number: int, slice_index: int = 0):
        self.id, self.slice_index = number, slice_index
        self.coords = (number % 2, number // 2 % 2, 0)


def test_rates_follow_the_torus_and_the_slices():
    """v5e: 50 GB/s a link and direction; two links a dimension, and the data centre's network between slices."""
    chips = [Chip(number, number // 4) for number in range(8)]
    sizes = {**dict.fromkeys(AXES, 1), "data": 2, "fsdp": 2, "tensor": 2}
    mesh, chip = make_mesh(sizes, chips), hardware.chip_of("TPU v5 lite")
    assert roofline.rate(mesh, ("fsdp",), chip) == roofline.rate(mesh, ("tensor",), chip) == 1e11
    assert roofline.rate(mesh, ("fsdp", "tensor"), chip) == 2e11
    assert roofline.rate(mesh, ("data",), chip) == 3.125e9
    # An all-reduce over 2 sends half of its bytes twice; a gather over 4 three quarters of the result.
    found = [
        Collective("all-reduce", 3, 10**9, ("fsdp",), 2, True),
        Collective("all-gather", 1, 10**9, ("fsdp", "tensor"), 4, False),
    ]
    assert roofline.network_seconds(found, mesh, chip) == pytest.approx(3 * 1e9 / 1e11 + 0.75e9 / 2e11)


def test_a_step_is_bound_by_its_slowest_resource():
    bound = roofline.Bound(products=1.0, memory=3.0, network=2.0)
    assert (bound.seconds, bound.limit) == (3.0, "memory")


def test_meshes_and_choices_of_a_search():
    assert len(list(search.meshes(8))) == 20  # ways to share out three factors of 2 among four axes
    assert {sizes["data"] * sizes["fsdp"] * sizes["tensor"] * sizes["context"] for sizes in search.meshes(6)} == {6}
    found = search.variants(tiny.config())
    assert {one["objective.model.remat"] for one in found} == {"none", "dots", "full"}
    assert search.divisible(12) == [1, 2, 3, 4, 6, 12]


def test_a_search_needs_known_rates():
    config, corpus = step.stand_in(tiny.config(), 512)
    with pytest.raises(UserError, match="those of cpu are not known"):
        search.candidates(config, corpus, jax.devices(), None)


@pytest.fixture
def rates(monkeypatch):
    """A CPU's devices with the memory and rates of a v5e chip."""
    chip = hardware.CHIPS["TPU v5e"]
    monkeypatch.setattr(search, "chip_of", lambda kind: chip)
    monkeypatch.setattr(step, "chip_of", lambda kind: chip)
    monkeypatch.setattr(search.flops, "peak", lambda device: 197e12)


@pytest.mark.usefixtures("rates")
def test_a_search_ranks_and_compiles_the_best(capsys):
    config, corpus = step.stand_in(tiny.config(dropout=0.0), 512)
    found = search.search(config, corpus, jax.devices()[:2], most=1)
    first, *others = found["search"]
    assert first["compiled"]
    assert first["fits"]
    assert first["mesh"] == found["mesh"]
    assert not [row for row in others if row["compiled"]]
    assert [row["step_seconds_estimate"] for row in others] == sorted(row["step_seconds_estimate"] for row in others)
    assert {row["remat"] for row in found["search"]} == {"none", "dots", "full"}
    assert all(row["micro_batches"] * row["mesh"].get("fsdp", 1) * row["mesh"].get("data", 1) <= 8 for row in found["search"])
    json.dumps(found)


@pytest.mark.usefixtures("rates")
def test_a_search_drops_what_cannot_fit(monkeypatch):
    monkeypatch.setattr(search, "variants", lambda config: [{"objective.model.remat": "full"}])
    config, corpus = step.stand_in(tiny.config(dropout=0.0), 512)
    every = search.candidates(config, corpus, jax.devices()[:2], None)
    smallest, largest = min(one.bytes for one in every), max(one.bytes for one in every)
    room = (smallest + largest) / 2 / 2**30
    assert 0 < len(search.candidates(config, corpus, jax.devices()[:2], room)) < len(every)
    with pytest.raises(UserError, match="no candidate fits"):
        search.search(config, corpus, jax.devices()[:2], 1, smallest / 2 / 2**30)


@pytest.mark.slow
@needs_libtpu
def test_a_slice_says_what_fits(tmp_path):
    """Compiled by libtpu: the roofline has all its parts, and a model of 64 GiB is refused with its size."""
    file, axes = tmp_path / "f.json", ("--config.mesh.data=1", "--config.mesh.fsdp=4")
    done = command("lm.compile", f"--config={TINY}", "--topology=v5e:2x2", *axes, f"--output={file}", variables=LIBTPU)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["fits"]
    assert 0 < found["mfu_estimate"] <= 1
    assert found["step_seconds_estimate"] == max(found["roofline"][name] for name in ("products", "memory", "network"))
    assert {axis for one in found["collectives"].values() for axis in one["axes"]} == {"fsdp"}
    wide = ("--config.objective.model.width=16384", "--config.objective.model.depth=2", "--config.batch=4")
    done = command(
        "lm.compile", f"--config={TINY}", "--topology=v5e:1x1", *wide, f"--output={file}", "--overwrite", variables=LIBTPU
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert not found["fits"]
    assert found["peak_bytes"] > found["hbm_bytes"] == int(15.75 * 2**30)
    assert " more than its 15.750 GiB" in done.stdout
