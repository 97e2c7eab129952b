"""Transformer-XL beside the last transformers that has it, in an interpreter of its own; the tables, without it.

That interpreter is named by LM_TRANSFOXL_PYTHON; without it the comparisons are skipped, the round trips are not.
"""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.convert.convert import flat, load, nested, save
from lm.convert.families.transfoxl import FAMILIES
from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Bytes
from lm.decode.generate import row_keys
from lm.decode.prefill import opened_steps
from lm.decode.sampling import Sampling
from lm.decode.score import Pair, Scorer
from lm.decode.writer import continue_tokens
from lm.errors import UserError
from lm.models.memory import MemoryModel, TransformerXL, empty_memory
from lm.models.presets import TRANSFORMER_XL_LARGE
from lm.objectives.recurrent import Recurrent
from lm.sharding import unbox

numpy_files = pytest.importorskip("safetensors.numpy")

REFERENCE = os.environ.get("LM_TRANSFOXL_PYTHON", "")
SHAPE = {"vocab": 31, "context": 6, "memory": 8, "width": 12, "depth": 3, "heads": 3, "mlp": 20, "cutoffs": (9, 20)}
FORMS = {
    "one table": {},
    "one table, projected": {"embed": 14, "head": 5},
    "one table, projected, untied": {"embed": 14, "tied_projections": (False, False, True)},
    "tables by width": {"divide": 2, "head": 5, "clamp": 7, "same_length": True},
    "tables by width, untied": {"divide": 2, "tied_projections": (False, False, False), "eps": 1e-3},
    "no clusters": {"cutoffs": ()},
    "one pair of biases": {"shared_biases": True, "divide": 2},
    "norms before": {"placement": "pre"},
}


def objective_of(name: str, **changes) -> Recurrent:
    return Recurrent(model=TransformerXL(**{**SHAPE, "begin": "zeros", **FORMS[name], **changes}))


def draw(objective: Recurrent, seed: int = 0):
    """Every parameter random, norms around 1."""
    shapes = unbox(jax.eval_shape(objective.init, jax.random.key(0), {"tokens": np.zeros((1, 6), np.int32)}))
    rng = np.random.default_rng(seed)

    def one(name, shape):
        return (name.endswith("scale") + 0.3 * rng.normal(size=shape)).astype(np.float32)

    return nested({name: one(name, x.shape) for name, x in flat(shapes).items()})


def written(name: str, folder: Path, **changes):
    objective = objective_of(name, **changes)
    params = draw(objective)
    assert not save(objective, params, Bytes().build(lambda: ()), folder, "")
    return objective, params


@pytest.mark.parametrize("name", FORMS)
def test_there_and_back(name, tmp_path):
    objective, params = written(name, tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert not loaded.drawn
    assert loaded.objective == objective
    ours, again = flat(params), flat(loaded.params)
    assert ours.keys() == again.keys()
    for key in ours:
        np.testing.assert_array_equal(ours[key], again[key], err_msg=key)


def test_padded_tables_are_cut(tmp_path):
    """Rows that fill a table up to a multiple are no tokens."""
    _, params = written("tables by width", tmp_path / "out", pad_vocab=8)
    assert params["embed"]["table0"].shape == (16, 12)
    tensors = numpy_files.load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["transformer.word_emb.emb_layers.0.weight"].shape == (9, 12)
    np.testing.assert_array_equal(load(tmp_path / "out").params["embed"]["table0"], params["embed"]["table0"][:9])


def test_copies_of_what_is_tied(tmp_path):
    """Files of their library may hold them all again; other numbers under those names are another model."""
    written("tables by width", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = numpy_files.load_file(file)
    for i in range(3):
        tensors[f"crit.out_layers.{i}.weight"] = tensors[f"transformer.word_emb.emb_layers.{i}.weight"]
    for i in (1, 2):
        tensors[f"crit.out_projs.{i}"] = tensors[f"transformer.word_emb.emb_projs.{i}"]
    tensors["transformer.pos_emb.inv_freq"] = np.ones(6, np.float32)
    numpy_files.save_file(tensors, file)
    before = flat(load(tmp_path / "out").params)
    tensors["crit.out_projs.2"] = tensors["crit.out_projs.2"] + 1
    numpy_files.save_file(tensors, file)
    with pytest.raises(UserError, match=r"out_projs\.2"):
        load(tmp_path / "out")
    assert "embed/output0" in before


def test_a_bare_network_has_its_softmax_drawn(tmp_path):
    written("tables by width", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = numpy_files.load_file(file)
    numpy_files.save_file({k.removeprefix("transformer."): v for k, v in tensors.items() if not k.startswith("crit.")}, file)
    drawn = ("bias0", "bias1", "bias2", "cluster_bias", "cluster_table", "output0")
    assert load(tmp_path / "out").drawn == tuple(f"embed/{name}" for name in drawn)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"attn_type": 1}, "attn_type"), ({"sample_softmax": 5}, "sample_softmax"), ({"tie_weight": False}, "tie_weight"),
     ({"ext_len": 4}, "ext_len"), ({"n_layer": 4}, "lacks tensors"), ({"cutoffs": [9]}, "tied_projections")],
)  # fmt: skip
def test_what_cannot_be_read_is_named(change, said, tmp_path):
    written("tables by width", tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=said):
        load(tmp_path / "out")


def test_the_other_order_is_refused(tmp_path):
    with pytest.raises(UserError, match="rising"):
        written("one table", tmp_path / "out", order="falling")


def test_the_published_config():
    """transfo-xl-wt103's config.json, the fields that matter."""
    found = FAMILIES[0].objective({
        "model_type": "transfo-xl", "adaptive": True, "attn_type": 0, "clamp_len": 1000, "cutoffs": [20000, 40000, 200000],
        "d_embed": 1024, "d_head": 64, "d_inner": 4096, "d_model": 1024, "div_val": 4, "dropatt": 0.0, "dropout": 0.1,
        "ext_len": 0, "layer_norm_epsilon": 1e-05, "mem_len": 1600, "n_head": 16, "n_layer": 18, "n_token": 267735,
        "pre_lnorm": False, "proj_share_all_but_first": True, "same_length": True, "sample_softmax": -1, "tgt_len": 128,
        "tie_projs": [False, True, True, True], "tie_weight": True, "untie_r": True, "vocab_size": 267735,
    }).model  # fmt: skip

    drop = {"dropout": 0.1, "position_dropout": 0.1, "attention_dropout": 0.0}
    read = {"context": 128, "memory": 1600, "clamp": 1000, "same_length": True, "begin": "zeros"}
    assert found == dataclasses.replace(TRANSFORMER_XL_LARGE, mlp=4096, **read, **drop)


SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from transformers import TransfoXLConfig, TransfoXLLMHeadModel

def run(folder, tokens, settings):
    if settings:
        model = TransfoXLLMHeadModel(TransfoXLConfig(**settings))
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape))
        model.save_pretrained(folder)
    model, info = TransfoXLLMHeadModel.from_pretrained(folder, output_loading_info=True)
    model.eval()
    assert not info["unexpected_keys"] and not info["mismatched_keys"], info
    # Copies of what is tied, and a buffer that is computed.
    assert all("crit.out" in name or "inv_freq" in name for name in info["missing_keys"]), info
    found, mems, half = {}, None, tokens.shape[1] // 2
    for k, part in enumerate((tokens[:, :half], tokens[:, half:])):
        loss = model(part, mems=mems, labels=part.clone()).losses
        out = model(part, mems=mems, output_hidden_states=True)
        mems = out.mems
        found[f"loss{k}"] = loss.double().sum().numpy()  # their losses come in the order of clusters
        found[f"logits{k}"] = out.prediction_scores.numpy()
        found[f"states{k}"] = np.stack([h.numpy() for h in out.hidden_states])
    np.savez(folder + "/reference.npz", **found, **{"w:" + n: p.numpy() for n, p in model.state_dict().items()})

torch.manual_seed(0)
with torch.no_grad():
    for folder, settings in json.loads(sys.argv[1]):
        run(folder, torch.tensor(json.loads(sys.argv[2])), settings)
"""


def reference(jobs: dict[Path, dict | None]) -> list[dict[str, np.ndarray]]:
    """What theirs says of the tokens in two segments, of models in folders; with settings, such a model is put there."""
    if not REFERENCE:
        pytest.skip("LM_TRANSFOXL_PYTHON names no interpreter with transformers 4.35")
    todo = [(str(folder), settings) for folder, settings in jobs.items()]
    args = [REFERENCE, "-c", SCRIPT, json.dumps(todo), json.dumps(TOKENS.tolist())]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    return [dict(np.load(folder / "reference.npz")) for folder in jobs]


TOKENS = np.random.default_rng(3).integers(0, 31, (2, 12)).astype(np.int32)


def compared(loaded, expected: dict[str, np.ndarray]) -> None:
    """Every state, the log-probabilities and the loss of two segments, the first before a memory of zeros."""
    model, variables = loaded.objective.model, {"params": loaded.params}
    start, half = empty_memory(model, len(TOKENS)), TOKENS.shape[1] // 2

    @jax.jit
    def run(part, memory):
        batch = {"tokens": part[:, :-1], "segments": jnp.ones_like(part[:, :-1]), "targets": part[:, 1:]}
        batch["weights"] = jnp.ones(batch["targets"].shape, jnp.float32)
        sums, _ = loaded.objective.loss(loaded.params, batch, memory, None)
        h, memory = MemoryModel(model).apply(variables, part, None, memory)
        logits = MemoryModel(model).apply(variables, method="head").logits(h)
        return sums["loss"][0], h, logits if model.cutoffs else jax.nn.log_softmax(logits), memory

    memory = start
    for k, part in enumerate((TOKENS[:, :half], TOKENS[:, half:])):
        loss, h, logits, memory = run(part, memory)
        np.testing.assert_allclose(loss, expected[f"loss{k}"], rtol=1e-5)
        np.testing.assert_allclose(logits, expected[f"logits{k}"], atol=1e-4)
        inputs = memory.hidden_BLMD[:, :, -half:].swapaxes(0, 1)
        for ours, theirs in zip([*inputs, h], expected[f"states{k}"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A model of theirs in each form: folder and what it says."""
    folders = {name: tmp_path_factory.mktemp("theirs") for name in FORMS}
    ours = ("model_type", "architectures", "begin")
    wanted = {name: {k: v for k, v in FAMILIES[0].settings(objective_of(name)).items() if k not in ours} for name in FORMS}
    found = reference({folders[name]: wanted[name] for name in FORMS})
    return {name: (folders[name], one) for name, one in zip(FORMS, found, strict=True)}


@pytest.mark.parametrize("name", FORMS)
def test_theirs_is_read(name, theirs):
    folder, expected = theirs[name]
    loaded = load(folder)
    assert not loaded.drawn
    compared(loaded, expected)


def test_theirs_comes_back(theirs, tmp_path):
    """Bit for bit, and so does what they say of it; ours is read there as it is here."""
    folders = {name: tmp_path / str(i) for i, name in enumerate(FORMS)}
    for name, (folder, _) in theirs.items():
        loaded = load(folder)
        save(loaded.objective, loaded.params, Bytes().build(lambda: ()), folders[name], "")
    written("tables by width", tmp_path / "ours")
    *again, ours = reference(dict.fromkeys([*folders.values(), tmp_path / "ours"]))
    for (_, expected), found in zip(theirs.values(), again, strict=True):
        assert expected.keys() == found.keys()
        for key in expected:
            np.testing.assert_array_equal(expected[key], found[key], err_msg=key)
    compared(load(tmp_path / "ours"), ours)


READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from transformers import TransfoXLLMHeadModel

model = TransfoXLLMHeadModel.from_pretrained(sys.argv[1]).eval()
model.generation_config.eos_token_id = None
found = []
with torch.no_grad():
    for ids in json.loads(sys.argv[2]):
        row = torch.tensor([ids])
        scores = model(row).prediction_scores[0]
        texts = model.generate(row, do_sample=False, max_new_tokens=6, pad_token_id=0)[0, len(ids):]
        found.append((scores[torch.arange(len(ids) - 1), row[0, 1:]].tolist(), texts.tolist()))
print(json.dumps(found))
"""


@pytest.mark.parametrize("name", ["one table", "tables by width", "norms before"])
def test_texts_of_any_length_in_one_batch_are_theirs(name, theirs):
    """Scores and greedy text, each alone before its memory of zeros; ours padded to buckets and beside each other."""
    folder, loaded = theirs[name][0], load(theirs[name][0])
    draw = np.random.default_rng(4)
    texts = [draw.integers(0, 31, n).astype(np.int32) for n in (2, 3, 9, 15, 16, 17, 18, 24, 25, 40)]
    args = [REFERENCE, "-c", READ, str(folder), json.dumps([ids.tolist() for ids in texts])]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    wanted = json.loads(done.stdout.splitlines()[-1])
    scored = Scorer(loaded.objective, loaded.params)([Pair(Prompt(ids[:1]), ids[1:]) for ids in texts])
    prompts, steps = [Prompt(ids) for ids in texts], opened_steps(loaded.objective)
    prepared, keys = steps.prepare(loaded.params, len(texts)), row_keys(0, prompts, [0] * len(texts), 1)
    written = continue_tokens(steps, prepared, prompts, keys, sampling=Sampling(strategy="greedy"), new=6)
    for one, (ids, _), (logprobs, text) in zip(scored, written, wanted, strict=True):
        np.testing.assert_allclose(one.logprobs, logprobs, atol=1e-4)
        assert ids.tolist() == text
