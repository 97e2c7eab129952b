"""PyTorch's files without PyTorch: what its own weights-only reader gives, and nothing else; claims cost no memory."""

import collections
import io
import pickle
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from lm.convert.pickled import MAGIC, Pickled
from lm.convert.stored import open_source
from lm.errors import UserError

torch = pytest.importorskip("torch")

FORMS = ("zip", "old", "protocol 4")


def tensors():
    base = torch.arange(120, dtype=torch.float32).reshape(10, 12) / 7
    half = base.to(torch.float16)
    found = {
        "float32": base, "float16": half, "bfloat16": base.to(torch.bfloat16), "float64": base.double(),
        "int64": torch.arange(5), "int32": torch.arange(5, dtype=torch.int32), "uint8": torch.arange(9, dtype=torch.uint8),
        "int8": -torch.arange(3, dtype=torch.int8), "bool": torch.tensor([True, False]), "transposed": base.T,
        "offset": base[3:7, 2:9], "steps": base[::3, ::5], "column": base[:, 4], "scalar": torch.tensor(1.5),
        "one of many": base[2, 3], "empty": torch.zeros(0, 4), "expanded": torch.arange(4.0)[None].expand(3, 4),
        "same storage": half[1:], "half, transposed": base.to(torch.bfloat16).T[2:],
        "3d": torch.randn(3, 4, 5).permute(2, 0, 1), "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "name with / and ü": torch.ones(1),
    }  # fmt: skip
    return found


def write(form, found, path):
    how = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}
    torch.save(found, path, **how[form])
    return path


@pytest.mark.parametrize("form", FORMS)
def test_equal_to_its_own_reader(form, tmp_path):
    path = write(form, tensors(), tmp_path / "x.bin")
    expected, found = torch.load(path, weights_only=form != "protocol 4"), Pickled(path)
    assert found.names() == list(expected)
    for name, tensor in expected.items():
        assert found.shape(name) == tuple(tensor.shape), name
        tensor = tensor.detach()
        raw = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
        np.testing.assert_array_equal(found.raw(name), raw.numpy(), err_msg=name, strict=tensor.dtype != torch.bfloat16)
        if tensor.is_floating_point():
            np.testing.assert_array_equal(found.read(name), tensor.float().numpy(), err_msg=name, strict=True)
            if tensor.ndim:
                np.testing.assert_array_equal(found.read(name, 1, 3), tensor[1:3].float().numpy(), err_msg=name)
        else:
            with pytest.raises(UserError, match="not floating point"):
                found.read(name)


@pytest.mark.parametrize("form", FORMS)
def test_state_of_a_module_and_its_wrapper(form, tmp_path):
    """With the versions that a module's state carries, and under the name that trainers give it."""
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    for found in (state, {"state_dict": state}):
        read = Pickled(write(form, found, tmp_path / "x.bin"))
        assert read.names() == list(state)
        np.testing.assert_array_equal(read.read("0.weight"), state["0.weight"].numpy())


def test_no_torch_is_needed(tmp_path):
    path = write("zip", {"a": torch.ones(2, 3)}, tmp_path / "x.bin")
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; from lm.convert.pickled import Pickled\n"
        "print(Pickled(Path(sys.argv[1])).read('a').sum())"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "6.0", done.stderr


def zipped(path, program, records=None, method=zipfile.ZIP_STORED):
    """Write an archive as PyTorch's of a pickle and its storages."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, content in (records or {}).items():
            archive.writestr(f"archive/data/{name}", content)
    return path


def tensor(key="0", size=4, offset=0, shape=(4,), strides=(1,), kind=b"ctorch\nFloatStorage\n", name="a"):
    """Write the pickle of {name: a tensor}."""

    def plain(value):
        return pickle.dumps(value, 2)[2:-1]

    storage = b"(" + plain("storage") + kind + plain(key) + plain("cpu") + plain(size) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + plain(offset) + plain(shape) + plain(strides)
    return b"\x80\x02}(" + plain(name) + call + b"\x89ccollections\nOrderedDict\n)RtRu."


NUMBERS = {"0": np.arange(4, dtype=np.float32).tobytes()}


def test_the_hand_made_one_is_read(tmp_path):
    """So that what the next tests change is what is refused."""
    path = zipped(tmp_path / "x.bin", tensor(), NUMBERS)
    np.testing.assert_array_equal(Pickled(path).read("a"), np.arange(4, dtype=np.float32))


LIES = {
    "behind its storage": tensor(shape=(5,)),
    "offset": tensor(offset=1),
    "negative offset": tensor(offset=-1),
    "negative shape": tensor(shape=(-4,)),
    "negative stride": tensor(strides=(-1,)),
    "stride": tensor(shape=(2, 2), strides=(4, 1)),
    "huge shape": tensor(shape=(1 << 60, 1 << 60), strides=(0, 0)),
    "huge storage": tensor(size=1 << 50, shape=(1 << 50,)),
    "repeated": tensor(shape=(1 << 30,), strides=(0,)),
    "no record": tensor(key="1"),
    "outside": tensor(key="../data.pkl"),
    "float shape": tensor(shape=(4.0,)),
    "dimensions": tensor(shape=(1,) * 40, strides=(1,) * 40),
    "another storage": tensor(kind=b"ctorch\nQuantisedStorage\n"),
    "a class as storage": tensor(kind=b"cos\nsystem\n"),
    "a number as a name": tensor(name=7),
    "lines as a name": tensor(name="a\nb"),
    "a tuple as a name": tensor(name=(((1, 2), 3), 4)),
    "eval": b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
    "a dotted way out": b"\x80\x02ctorch\nserialization.os.FloatStorage\n.",
    "an instance": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "old instance": b"(icollections\nOrderedDict\n.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent text": b"\x80\x02Pstorage\n.",
    "memo that is not there": b"\x80\x02h\x07.",
    "stack that is empty": b"\x80\x020.",
    "no end": b"\x80\x02}",
    "empty": b"\x80\x02}.",
    "two": b"\x80\x02}}.",
    "a list": b"\x80\x02].",
    "nothing": b"\x80\x02N.",
    "a cycle": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
    "marks": b"\x80\x02" + b"(" * 5_000_000 + b".",
    "instructions": b"\x80\x02" + b"N0" * 100_000 + b".",
    "bytes that are claimed": b"\x80\x02X\xff\xff\xff\x7fab.",
    "huge memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "big number": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
    "tuples of tuples": b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b".",
}


@pytest.mark.parametrize("name", LIES)
def test_lies_end_in_a_line(name, tmp_path):
    path, began = zipped(tmp_path / "x.bin", LIES[name], NUMBERS), time.monotonic()
    with pytest.raises(UserError, match=r"x\.bin") as error:
        open_source(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_compressed_records_are_no_way_in(method, tmp_path):
    """A gigabyte of zeros in a megabyte."""
    program = tensor(size=1 << 26, shape=(1 << 26,))
    path = zipped(tmp_path / "x.bin", program, {"0": bytes(1 << 28)}, method)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match="compressed"):
        open_source(path)


def test_archives_that_are_not_its_own(tmp_path):
    for names in (("model.json",), ("a/data.pkl", "b/data.pkl"), ("archive/code/data.pkl",)):
        with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
            for name in names:
                archive.writestr(name, tensor())
        with pytest.raises(UserError, match="without PyTorch's tensors"):
            open_source(tmp_path / "x.bin")
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("a/data.pkl", tensor())
        archive.writestr("a/byteorder", b"big")
    with pytest.raises(UserError, match="big-endian"):
        open_source(tmp_path / "x.bin")


@pytest.mark.parametrize("form", ["zip", "old"])
def test_flips_and_cuts(form, tmp_path):
    """Whatever byte is another: the tensors, or a line."""
    path = write(form, {name: x for name, x in tensors().items() if "3" in name}, tmp_path / "x.bin")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    outcomes = collections.Counter()
    for k in range(300):
        raw = bytearray(whole)
        if k % 3:
            raw[rng.integers(len(raw))] ^= int(rng.integers(1, 256))
        else:
            del raw[rng.integers(len(raw)) :]
        path.write_bytes(raw)
        try:
            source = open_source(path)
            for name in source.names():
                source.raw(name)
            outcomes["read"] += 1
        except UserError as error:
            outcomes["refused" if str(error).isprintable() else "unreadable"] += 1
    assert outcomes["refused"] > 100, outcomes
    assert not outcomes["unreadable"], outcomes


@pytest.mark.parametrize("count", [1 << 40, (1 << 62) - 1])
def test_storages_of_the_old_format_are_as_large_as_they_say(count, tmp_path):
    path = write("old", {"a": torch.ones(3)}, tmp_path / "x.bin")
    raw = path.read_bytes()
    path.write_bytes(raw[:-20] + count.to_bytes(8, "little") + raw[-12:])
    with pytest.raises(UserError, match="cut off"):
        open_source(path)
    stream = io.BytesIO()
    pickle.dump(MAGIC + 1, stream, 2)
    path.write_bytes(stream.getvalue())
    with pytest.raises(UserError, match="no file of tensors"):
        open_source(path)
