"""Folders as they are found: every form of the same weights gives the same numbers, and what is wrong is named, not run."""

import json
import os
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest

from lm.convert.convert import flat, load
from lm.convert.folder import Folder
from lm.convert.lazy import fill
from lm.convert.rules import Rule, blocks, read
from lm.errors import UserError
from lm.runs import is_published
from lm.sharding import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT with both heads, config.json and names to tensors."""
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(transformers.BertConfig(**SMALL, max_position_embeddings=20))
    path = tmp_path_factory.mktemp("bert")
    model.save_pretrained(path)
    tensors = {name: x.detach().clone() for name, x in safetensors_torch.load_file(path / "model.safetensors").items()}
    return json.loads((path / "config.json").read_text()), tensors


@pytest.fixture
def folder(bert, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(bert[0]))
    return tmp_path


def index(folder, name, parts):
    (folder / name).write_text(json.dumps({"weight_map": {k: file for file, part in parts.items() for k in part}}))


def halves(tensors, form):
    names = sorted(tensors)  # a layer's parts end up in both
    return {form.format(i + 1): {name: tensors[name] for name in names[i::2]} for i in range(2)}


def safe(folder, tensors):
    safetensors_torch.save_file(tensors, folder / "model.safetensors")


def safe_parts(folder, tensors):
    parts = halves(tensors, "model-{:05}-of-00002.safetensors")
    for file, part in parts.items():
        safetensors_torch.save_file(part, folder / file)
    index(folder, "model.safetensors.index.json", parts)


def zipped(folder, tensors):
    torch.save(tensors, folder / "pytorch_model.bin")


def old(folder, tensors):
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def old_parts(folder, tensors):
    parts = halves(tensors, "pytorch_model-{:05}-of-00002.bin")
    for file, part in parts.items():
        torch.save(part, folder / file, _use_new_zipfile_serialization=False)
    index(folder, "pytorch_model.bin.index.json", parts)


def leaves(folder):
    return {name: np.asarray(x) for name, x in flat(load(folder).params).items()}


@pytest.fixture(scope="module")
def expected(bert, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    (path / "config.json").write_text(json.dumps(bert[0]))
    safe(path, bert[1])
    return leaves(path)


@pytest.mark.parametrize("write", [safe, safe_parts, zipped, old, old_parts])
def test_every_form_of_the_same_weights(write, folder, bert, expected):
    write(folder, bert[1])
    read_folder = Folder(folder)
    assert set(read_folder) == set(bert[1])
    for name, tensor in bert[1].items():
        assert read_folder.shape(name) == tuple(tensor.shape)
        np.testing.assert_array_equal(read_folder[name], tensor.numpy())
    for name, x in leaves(folder).items():
        np.testing.assert_array_equal(x, expected[name], err_msg=name)


@pytest.mark.parametrize("write", [safe, zipped])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_numbers_become_float32(write, dtype, folder, bert):
    write(folder, {name: x.to(dtype) for name, x in bert[1].items()})
    found = Folder(folder)
    for name, x in bert[1].items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], x.to(dtype).float().numpy(), err_msg=name)
        np.testing.assert_array_equal(found.rows(name, 1, 3), found[name][1:3])
    assert all(x.dtype == np.float32 for x in leaves(folder).values())


@pytest.mark.parametrize("write", [safe, zipped])
def test_whole_numbers_are_no_weights(write, folder, bert):
    """Quantised files have scales beside them, which a table does not know."""
    name = "bert.pooler.dense.weight"
    write(folder, {**bert[1], name: bert[1][name].to(torch.int8)})
    with pytest.raises(UserError, match="not floating point"):
        Folder(folder)[name]


def test_safetensors_are_preferred_whole_and_in_parts(folder, bert):
    for write in (safe_parts, zipped):
        write(folder, bert[1])
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "gone.bin"}}')
    assert {file.suffix for file in Folder(folder).files.values()} == {".safetensors"}
    safe(folder, bert[1])
    assert {file.name for file in Folder(folder).files.values()} == {"model.safetensors"}


class Evil:
    """Makes a file when it is unpickled freely."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("write", [zipped, old])
@pytest.mark.parametrize("wrap", [lambda evil, t: evil, lambda evil, t: {**t, "x": evil}], ids=["bare", "among tensors"])
def test_a_pickle_with_anything_else_is_refused_and_not_run(write, wrap, folder, bert, tmp_path_factory):
    path = tmp_path_factory.mktemp("mark") / "ran"
    write(folder, wrap(Evil(path), bert[1]))
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        Folder(folder)
    assert not path.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert path.exists()  # so the trap was one


@pytest.mark.parametrize("found", [{"a": 1.5}, {"a": torch.ones(2), "b": [1]}, [torch.ones(2)], {"state_dict": {"a": "b"}}])
def test_a_pickle_of_plain_things_is_refused(found, folder):
    zipped(folder, found)
    with pytest.raises(UserError, match="more than tensors"):
        Folder(folder)


@pytest.mark.parametrize(
    "file", ["../evil.safetensors", "/etc/evil.safetensors", "..", "a/b.safetensors", "..\\evil.safetensors", "x.py"]
)
def test_an_index_names_files_beside_it(file, folder, bert):
    safe(folder, bert[1])
    (folder.parent / "evil.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    index(folder, "model.safetensors.index.json", {file: bert[1]})
    with pytest.raises(UserError, match="not a file of tensors beside it"):
        Folder(folder)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]", "{", '{"weight_map": {}}'])
def test_an_index_that_is_none(text, folder):
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        Folder(folder)


def test_parts_that_are_missing_or_not_as_the_index_says(folder, bert):
    safe_parts(folder, bert[1])
    part = folder / "model-00002-of-00002.safetensors"
    kept = part.read_bytes()
    part.unlink()
    with pytest.raises(UserError, match="lacks 'model-00002"):
        Folder(folder)
    safetensors_torch.save_file({"other": torch.ones(2)}, part)
    with pytest.raises(UserError, match="do not agree"):
        Folder(folder)
    part.write_bytes(kept)
    old_parts(folder, bert[1])
    (folder / "model.safetensors.index.json").unlink()
    torch.save({"other": torch.ones(2)}, folder / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(UserError, match=r"index\.json and 'pytorch_model-00002.*do not agree"):
        load(folder)


@pytest.mark.parametrize("write", [safe, zipped, old])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_files_that_are_cut_off(write, share, folder, bert):
    write(folder, bert[1])
    file = next(f for f in folder.iterdir() if f.suffix in (".bin", ".safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=file.name):
        load(folder)


def header(**tensors):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def named_twice():
    one = header(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})[8:]
    text = one[:-1] + b"," + one[1:]
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<Q", 1 << 62) + b"{}",
        header(a={"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}) + bytes(16),
        header(a={"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}) + bytes(16),
        header(a={"dtype": "F32", "shape": [4]}) + bytes(16),
        header(a={"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}) + bytes(16),
        header(a={"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}) + bytes(16),
        header(a={"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}) + bytes(16),
        header(**{name: {"dtype": "F32", "shape": [2], "data_offsets": [4 * i, 4 * i + 8]} for i, name in enumerate("ab")})
        + bytes(16),
        b"\x02\0\0\0\0\0\0\0{}" + bytes(8),
        named_twice() + bytes(16),
        struct.pack("<Q", 4) + b"[1] ",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    ],
)
def test_headers_that_lie(raw, folder):
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        Folder(folder)


def test_configs_that_are_none(folder, bert):
    safe(folder, bert[1])
    for text, said in (("{", "no valid JSON"), ("[]", "an object is needed"), ("\xff", "not UTF-8")):
        (folder / "config.json").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match=said):
            Folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        Folder(folder)
    with pytest.raises(UserError, match="not a model folder"):
        Folder(folder / "gone")


def test_a_folder_without_weights(folder):
    with pytest.raises(UserError, match="holds no weights"):
        Folder(folder)


def test_what_is_published(folder, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / "config.json").write_text('{"type": "lm.config.Config", "objective": {}}')
    assert is_published(folder)
    assert not is_published(run)
    assert not is_published(run / "gone")


def test_configs_of_old_files(folder, bert, expected):
    """No model_type and no architectures: the tensors tell. Google's own names MaskedLM beside the weights for pairs."""
    said = {"model_type", "architectures"}
    for found in ({}, {"model_type": "bert", "architectures": ["BertForMaskedLM"]}):
        (folder / "config.json").write_text(json.dumps({**{k: v for k, v in bert[0].items() if k not in said}, **found}))
        safe(folder, bert[1])
        ours = leaves(folder)
        assert "pair/kernel" in ours
        for name, x in ours.items():
            np.testing.assert_array_equal(x, expected[name], err_msg=name)


def test_a_bare_backbone_that_does_not_say_what_it_is(folder, bert, expected):
    """BERT is known by two types of tokens and a pooler; what may be RoBERTa too is asked about."""
    config = {key: value for key, value in bert[0].items() if key not in ("model_type", "architectures")}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = {name.removeprefix("bert."): x for name, x in bert[1].items() if name.startswith("bert.")}
    safe(folder, backbone)
    np.testing.assert_array_equal(leaves(folder)["embed/table"], expected["embed/table"])
    safe(folder, {name: x for name, x in backbone.items() if not name.startswith("pooler")})
    with pytest.raises(UserError, match="model_type"):
        load(folder)


def renamed(tensors, change):
    return {change(name): x for name, x in tensors.items()}


def ancient(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize("change", [ancient, lambda name: f"module.{name}", lambda name: f"module.{ancient(name)}"])
def test_old_names_and_wrapped_models(change, folder, bert, expected):
    safe(folder, renamed(bert[1], change))
    for name, x in leaves(folder).items():
        np.testing.assert_array_equal(x, expected[name], err_msg=name)


def test_a_bare_backbone_has_its_heads_drawn_and_said(folder, bert, expected):
    config = {**bert[0], "architectures": ["BertModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    backbone = {name.removeprefix("bert."): x for name, x in bert[1].items() if name.startswith("bert.")}
    safe(folder, backbone)
    loaded = load(folder)
    assert set(loaded.drawn) == {"head_bias", *(f"transform/{x}" for x in
                                                ("dense/kernel", "dense/bias", "norm/scale", "norm/bias"))}  # fmt: skip
    for name, x in flat(loaded.params).items():
        if name not in loaded.drawn:
            np.testing.assert_array_equal(x, expected[name], err_msg=name)


def test_copies_of_tied_weights(folder, bert, expected):
    """Old files have the output table beside the embeddings: once more the same, or a model that is not tied."""
    table, copy = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    both = {**bert[1], copy: bert[1][table].clone(), "cls.predictions.decoder.bias": bert[1]["cls.predictions.bias"].clone()}
    safe(folder, both)
    np.testing.assert_array_equal(leaves(folder)["embed/table"], expected["embed/table"])
    safe(folder, {**both, copy: both[copy] + 1})
    with pytest.raises(UserError, match=r"word_embeddings.*decoder\.weight.*differ"):
        load(folder)
    safe(folder, {**both, "cls.predictions.decoder.bias": both["cls.predictions.bias"] + 1})
    with pytest.raises(UserError, match="differ"):
        load(folder)
    safe(folder, {name: x for name, x in both.items() if name != table})  # the copy alone is as good
    np.testing.assert_array_equal(leaves(folder)["embed/table"], expected["embed/table"])


def test_one_tensor_under_two_spellings(folder, bert, expected):
    name = "bert.embeddings.LayerNorm.weight"
    safe(folder, {**bert[1], ancient(name): bert[1][name].clone()})
    np.testing.assert_array_equal(leaves(folder)["input/norm/scale"], expected["input/norm/scale"])
    safe(folder, {**bert[1], ancient(name): bert[1][name] + 1})
    with pytest.raises(UserError, match="should be the same"):
        load(folder)


def test_tables_shorter_than_the_config_says(folder, bert):
    """Rows of 0 are for a padded vocabulary only."""
    name = "bert.embeddings.position_embeddings.weight"
    safe(folder, {**bert[1], name: bert[1][name][:7].clone()})
    with pytest.raises(UserError, match="position_embeddings"):
        load(folder)


class Tensors(dict):
    """Tensors in memory, as a folder has them."""

    def shape(self, name):
        return self[name].shape

    def rows(self, name, low, high):
        return self[name][low:high]


@pytest.mark.parametrize("sizes", [None, {"fsdp": 4, "tensor": 2}, {"tensor": 8}, {"data": 8}])
@pytest.mark.parametrize("case", ["layers", "vocabulary", "long vocabulary", "plain", "scalar"])
def test_pieces_make_the_whole(case, sizes):
    """Leaves that come in blocks are what `read` gives, on one device and on meshes."""
    rng = np.random.default_rng(0)
    P = jax.sharding.PartitionSpec
    layered = Tensors({f"w.{i}": rng.normal(size=(8, 16)).astype(np.float32) for i in range(5)})
    table = Tensors(w=rng.normal(size=(24, 8)).astype(np.float32), b=np.float32(3))
    rule, tensors, shape, spec = {
        "layers": (Rule("k", "w.{i}", "linear"), layered, (5, 16, 1, 8), P(None, "fsdp", None, "tensor")),
        "vocabulary": (Rule("embed/table", "w"), table, (24, 8), P("tensor", "fsdp")),
        "long vocabulary": (Rule("embed/table", "w"), table, (32, 8), P("tensor", "fsdp")),
        "plain": (Rule("k", "w", "linear"), table, (8, 24), P("fsdp", None) if sizes != {"tensor": 8} else P(None, "tensor")),
        "scalar": (Rule("k", "b"), table, (), P()),
    }[case]
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    if sizes:
        mesh = make_mesh({axis: sizes.get(axis, 1) for axis in ("data", "fsdp", "tensor", "context", "expert")})
        place = jax.sharding.NamedSharding(mesh, spec)
    found = fill(blocks(rule, tensors, shape, most=200), shape, place)
    assert found.sharding == place
    np.testing.assert_array_equal(found, read(rule, tensors, shape))
    if case in ("layers", "vocabulary"):
        assert len(list(blocks(rule, tensors, shape, most=200))) > 3


@pytest.mark.parametrize("ours", ["embed/table", "input/places/table"])
@pytest.mark.parametrize("theirs", [(24, 8), (16, 4), (16, 16), (12, 8)])
def test_tables_of_another_size_are_named(ours, theirs):
    """In pieces as in one; a vocabulary alone may have fewer rows, for it may be padded."""
    asked = list(blocks(Rule(ours, "w"), Tensors(w=np.ones((16, 8), np.float32)), (16, 8), most=64))
    assert len(asked) == 8
    if ours == "embed/table" and theirs == (12, 8):
        return
    with pytest.raises(UserError, match="numbers where"):
        list(blocks(Rule(ours, "w"), Tensors(w=np.ones(theirs, np.float32)), (16, 8), most=64))


MEASURE = """
import json, resource, sys, jax, numpy as np
from lm.convert import convert
from lm.convert.folder import Folder
from lm.sharding import AXES, make_mesh
path, sizes = sys.argv[1], json.loads(sys.argv[2])
mesh = make_mesh({axis: sizes.get(axis, 1) for axis in AXES}) if sizes else None
def rss(key):  # bytes; Hwm is the highest so far
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(f"Vm{key}:")) * 1024
convert.load(sys.argv[3], mesh)  # what is imported and compiled is not the file's
open("/proc/self/clear_refs", "w").write("5")
before = rss("RSS")
loaded = convert.load(path, mesh)
held = sum(s.data.nbytes for x in jax.tree.leaves(loaded.params) for s in x.addressable_shards)
print(json.dumps({"peak": rss("HWM") - before - held, "held": held, "largest": Folder(path).largest()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the high-water mark is Linux's")
@pytest.mark.parametrize("sizes", [{}, {"fsdp": 4, "tensor": 2}])
@pytest.mark.parametrize("form", ["safetensors", "safetensors bf16", "safetensors whole", "bin", "old bin"])
def test_memory_of_the_host_while_reading(form, sizes, tmp_path):
    """At most 1.3 times the largest file above the parameters themselves, which on a CPU lie in the same memory."""
    shape = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
    config = transformers.LlamaConfig(**shape, num_key_value_heads=4, vocab_size=16000)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16 if "bf16" in form else torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="110MB" if form != "safetensors whole" else "5GB")
    warm, config.num_hidden_layers = tmp_path / "warm", 1
    transformers.LlamaForCausalLM(config).save_pretrained(warm, max_shard_size="60MB")
    if "bin" in form:
        pickled(tmp_path, zipped_form=form == "bin")
        pickled(warm, zipped_form=form == "bin")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(sizes), str(warm)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "65536"},
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(form, sizes, {k: f"{v / 1e6:.0f} MB" for k, v in found.items()}, f"{found['peak'] / found['largest']:.2f}")
    assert found["peak"] <= 1.3 * found["largest"]


def pickled(folder, zipped_form):
    """Write a folder's parts as PyTorch files."""
    named = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for file in set(named.values()):
        part = safetensors_torch.load_file(folder / file)
        name = file.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        torch.save(part, folder / name, _use_new_zipfile_serialization=zipped_form)
        named |= dict.fromkeys(part, name)
        (folder / file).unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": named}))
