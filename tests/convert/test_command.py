"""A published folder as a user meets it: made into a run, sampled, trained on, given back."""

import json

import jax
import numpy as np
import pytest

from lm.convert.compare import compare
from lm.convert.convert import save
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError
from lm.models.memory import TransformerXL
from lm.objectives.recurrent import Recurrent
from lm.sharding import unbox
from tests.convert.test_families import make
from tests.processes import command as start

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 with random weights and the tokenizer of bytes."""
    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    Bytes().build(lambda: ()).save(path / "tokenizer.json")
    return path


def test_a_folder_becomes_a_run_and_a_folder_again(folder, tmp_path):
    made = start("lm.convert", f"--model={folder}", f"--workdir={tmp_path / 'run'}")
    assert made.returncode == 0, made.stderr
    greedy = ("--prompt=The", "--strategy=greedy", "--max_new_tokens=12")
    texts = [
        start("lm.generate", source, *greedy, f"--output={tmp_path / name}")
        for name, source in (("a.jsonl", f"--workdir={tmp_path / 'run'}"), ("b.jsonl", f"--model={folder}"))
    ]
    assert all(done.returncode == 0 for done in texts), [done.stderr for done in texts]
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    ids = json.loads((tmp_path / "a.jsonl").read_text())["tokens"]
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
    prompt = torch.tensor([[*b"The"]])  # as its tokenizer encodes it: nothing before
    expected = theirs.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=256, eos_token_id=256)
    assert ids == expected[0, 3:].tolist()[: len(ids)]
    given = start("lm.convert", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}")
    assert given.returncode == 0, given.stderr
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out")
    for (name, a), b in zip(theirs.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert "lm" in (tmp_path / "out" / "README.md").read_text()


def test_training_starts_from_a_folder(folder, tmp_path):
    """One step at a rate of 0 leaves what was read, network and tokenizer being the folder's; who asks for another shape
    is told what it has.
    """
    model = ["--config.objective.model.pad_vocab=1"]
    rest = (f"--config.start={folder}", "--config.steps=1", "--config.optimizer.lr=0", "--config.optimizer.average=0")
    done = start("lm.main", "--config=tests/configs/tiny.py", *model, *rest, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "started from" in done.stdout
    assert "the network (" in done.stdout
    given = start("lm.convert", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}")
    assert given.returncode == 0, given.stderr
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).state_dict()
    ours = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").state_dict()
    for name, value in theirs.items():
        np.testing.assert_array_equal(value, ours[name], err_msg=name)
    other = "--config.objective.model.width=64"
    wrong = start("lm.main", "--config=tests/configs/tiny.py", other, *rest, f"--workdir={tmp_path / 'wrong'}")
    assert wrong.returncode == 2
    assert "objective.model" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "--model=HF_DIR"),
        (("--model=nowhere", "--workdir=x"), "not a model folder"),
        (("--output=x",), "--workdir=RUN"),
        (("--check",), "--check needs"),
    ],
)
def test_mistakes_end_in_one_line(args, said):
    done = start("lm.convert", *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["gemma2", "gemma3, stretched", "mt5", "mistral"])
def test_check_of_families(name, tmp_path):
    """In one process; a folder needs no tokenizer for it."""
    make(name, tmp_path)
    lines = compare(str(tmp_path)).splitlines()
    rows = [line for line in lines if line.startswith(("embeddings", "layer", "encoder", "decoder", "logits"))]
    assert len(rows) > 2
    assert all(float(line.split()[-2]) < 1e-4 for line in rows), lines


def test_check_without_their_class(tmp_path):
    """Transformer-XL left their library; another version of it has what is compared with."""
    objective = Recurrent(model=TransformerXL(vocab=20, width=8, depth=1, heads=2))
    params = objective.init(jax.random.key(0), {"tokens": np.zeros((1, 4), np.int32)})
    save(objective, unbox(params), Bytes().build(lambda: ()), tmp_path / "out", "")
    with pytest.raises(UserError, match="TransfoXLLMHeadModel"):
        compare(str(tmp_path / "out"))


def test_check_prints_every_layer(folder):
    done = start("lm.convert", "--check", f"--model={folder}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for name in ("embeddings", "layer 1", "layer 2", "logits"):
        line = next(line for line in lines if line.startswith(name))
        assert float(line.split()[-2]) < 1e-4, line
