"""Names of hardware, and meshes over it; TPU slices are described by libtpu, whose tests are skipped without it."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.planning import topologies
from lm.sharding import AXES, arrange, make_mesh
from lm.training.settings import Mesh
from tests.processes import command

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
# Meshes that planning has to allow: all of one slice, with axes that take parts of a torus dimension.
MESHES = (
    ("v5e:1x1", {}),
    ("v6e:1x1", {}),
    ("v5e:16x16", {"fsdp": 256}),
    ("v5e:16x16", {"fsdp": 64, "tensor": 4}),
    ("v5e:4x4", {"data": 2, "fsdp": 2, "tensor": 2, "context": 2}),
    ("v5p:4x4x4", {"fsdp": 64}),
    ("v5p:4x4x4", {"fsdp": 16, "tensor": 4}),
    ("v5p:4x4x4", {"fsdp": 32, "tensor": 2}),
    ("v5p:4x4x8", {"data": 2, "fsdp": 64}),
    ("v6e:16x16", {"fsdp": 64, "tensor": 4}),
    ("v6e:4x4", {"fsdp": 8, "tensor": 2}),
    ("v4:4x4x4", {"fsdp": 64}),
    ("v4:4x4x4", {"fsdp": 16, "tensor": 4}),
)


def sizes(axes: dict[str, int]) -> dict[str, int]:
    return dataclasses.asdict(Mesh(**{"data": 1, **axes}))


@pytest.fixture
def libtpu(monkeypatch):
    for name, value in topologies.LIBTPU.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("name", "parts"),
    [("v5e:4x4", (1, "v5e", (4, 4))), ("2xv5e:4x4", (2, "v5e", (4, 4))), ("cpu:8", (1, "cpu", (8,))),
     ("cuda:4x8", (1, "cuda", (4, 8))), ("v5p:4x4x8", (1, "v5p", (4, 4, 8)))],
)  # fmt: skip
def test_names_are_split(name, parts):
    assert topologies.split(name) == parts


@pytest.mark.parametrize("name", ["v5e-256", "v5e", "", "0xv5e:4x4", "v5e:0x4", "v5e:4x4x", "4x4"])
def test_other_names_are_refused(name):
    with pytest.raises(UserError, match="names look like"):
        topologies.split(name)


def test_cuda_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"jax\[cuda12\]"):
        topologies.devices("cuda:1x8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UserError, match=r"--target=FILE\.txtpb"):
        topologies.devices("cuda:1x8")
    with pytest.raises(UserError, match="no such file"):
        topologies.devices("cuda:1x8", str(tmp_path / "h100.txtpb"))
    with pytest.raises(UserError, match="HOSTSxGPUS"):
        topologies.devices("cuda:8")


def test_without_libtpu_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install libtpu"):
        topologies.devices("v5e:4x4")


def test_simulated_devices_keep_other_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3 --other=1")
    topologies.prepare("cpu:8")
    assert topologies.os.environ["XLA_FLAGS"] == "--other=1 --xla_force_host_platform_device_count=8"


class Chip:
    """A chip of one of several slices, as jax describes it."""

    platform, device_kind = "tpu", "TPU v5 lite"

    def __init__(self, number: int, slices: int):
        self.id, self.slice_index, self.process_index = number, number // 4, number // 4
        self.coords, self.core_on_chip = (number % 2, number // 2 % 2, 0), 0


def test_slices_lie_along_the_data_axis():
    chips = [Chip(number, 2) for number in range(8)]
    found = arrange([2, 4, 1, 1, 1], chips)
    slices = np.vectorize(lambda chip: chip.slice_index)(found)
    assert [{*row.flat} for row in slices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"^mesh\.data=1 does not divide among 2 slices"):
        arrange([1, 8, 1, 1, 1], chips)


def test_other_devices_keep_their_order():
    assert make_mesh(sizes({"data": 4, "tensor": 2})).devices.reshape(-1).tolist() == jax.devices()


@needs_libtpu
@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize(("topology", "axes"), MESHES)
def test_meshes_follow_the_torus(topology, axes):
    devices = topologies.devices(topology)
    mesh = make_mesh(sizes(axes), devices)
    assert {axis: mesh.shape[axis] for axis in AXES} == sizes(axes)
    assert len({*mesh.devices.flat}) == len(devices) == np.prod(topologies.split(topology)[2])


@needs_libtpu
@pytest.mark.usefixtures("libtpu")
def test_several_slices_of_libtpu():
    devices = topologies.devices("2xv5e:4x4")
    mesh = make_mesh(sizes({"data": 4, "fsdp": 8}), devices)
    assert [{chip.slice_index for chip in row.flat} for row in mesh.devices] == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match="does not divide among 2 slices"):
        make_mesh(sizes({"fsdp": 32}), devices)


@needs_libtpu
@pytest.mark.usefixtures("libtpu")
@pytest.mark.parametrize("name", ["v5e:3x5", "v9z:2x2", "v5e:4x5x9", "2xv9z:2x2"])
def test_slices_that_do_not_exist_are_one_line(name):
    with pytest.raises(UserError, match=f"^--topology={name}: there is no such slice") as error:
        topologies.devices(name)
    assert "\n" not in str(error.value)


def test_a_mesh_that_does_not_divide_is_one_line():
    done = command("lm.compile", "--config=tests/configs/tiny.py", "--topology=cpu:6", "--config.mesh.fsdp=4")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: mesh {'data': -1, 'stage': 1, 'fsdp': 4")
    assert "6 device(s)" in done.stderr
    assert "Traceback" not in done.stderr
