"""Configs as values: strict overrides, arguments, JSON both ways, and how the command line words a mistake."""

import ast
import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm import config as configs
from lm.config import Config, Every, Optimizer, arguments, from_json, load, override, parse, to_json
from lm.data.rows.records import Documents
from lm.data.types import labelled
from lm.errors import UserError
from lm.fields import chosen
from lm.flags import split_overrides
from lm.listing import sentence
from lm.models.positions import Rotary
from lm.objectives.causal import Causal
from tests.models.reference import tiny
from tests.processes import command

ROOT = Path(__file__).parent.parent
FILES = sorted(p for p in (ROOT / "configs").glob("*.py") if p.stem != "__init__")
BASE = Config(objective=Causal(model=tiny()))


def get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


# -- overrides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("steps", "7", 7),
        ("steps", "1e4", 10_000),
        ("steps", "20_000", 20_000),
        ("seed", "-3", -3),
        ("optimizer.lr", "3e-4", 3e-4),
        ("optimizer.lr", "1", 1.0),
        ("optimizer.name", "lion", "lion"),
        ("optimizer.betas", "0.8,0.95", (0.8, 0.95)),
        ("optimizer.betas", "(0.8, 0.95)", (0.8, 0.95)),
        ("wandb", "true", True),
        ("wandb", "No", False),
        ("wandb", "1", True),
        ("start", "runs/a=b", "runs/a=b"),
        ("start", "none", None),
        ("evaluate", "sst2,mnli", ("sst2", "mnli")),
        ("evaluate", "sst2", ("sst2",)),
        ("evaluate", "()", ()),
        ("evaluate", "", ()),
        ("samples", "'a b', c", ("a b", "c")),
        ("samples", "''", ("",)),
        ("mesh.data", "-1", -1),
        ("objective.z_loss", "1e-4", 1e-4),
        ("objective.model.windows", "8,0", (8, 0)),
        ("objective.model.windows", "[8]", (8,)),
        ("objective.model.qkv_bias", "none", None),
        ("objective.model.qkv_bias", "false", False),
        ("objective.model.rotary.scaling", "yarn", "yarn"),
        ("objective.separator", "none", None),
        ("objective.separator", "3", 3),
    ],
)
def test_override(path, text, value):
    changed = override(BASE, [(path, text)])
    found = get(changed, path)
    assert (found, type(found)) == (value, type(value))
    assert to_json(changed).count("\n") == to_json(BASE).count("\n") or isinstance(value, tuple)
    assert get(BASE, path) == get(Config(objective=Causal(model=tiny())), path)  # the old one is as it was


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("stepz", "7", "unknown config field 'stepz': did you mean 'steps'?"),
        ("optimizer.rate", "7", "unknown config field 'optimizer.rate': did you mean"),
        ("optimizr.lr", "7", "did you mean 'optimizer.lr'?"),
        ("optimizer.learning_rate", "7", "unknown config field 'optimizer.learning_rate': did you mean 'optimizer.lr'?"),
        ("weight_decay", "7", "did you mean 'optimizer.decay'?"),
        ("decay", "7", "did you mean 'optimizer.decay' or 'schedule.decay'?"),
        ("batch_size", "7", "did you mean 'batch'?"),
        ("num_hidden_layers", "7", "did you mean 'objective.model.depth'?"),
        ("model.n_embd", "7", "did you mean 'objective.model.width'?"),
        ("model.heads", "7", "did you mean 'objective.model.heads'?"),
        ("rope", "yes", "did you mean 'objective.model.positions=rotary'?"),
        ("model.rotary.theta", "7", "did you mean 'objective.model.rotary.base'?"),
        ("objective.xyz.a", "7", "unknown config field 'objective.xyz.a': valid: objective.model, objective.z_loss"),
        ("objective.model.widht", "7", "did you mean 'objective.model.width'?"),
        ("optimizer.name", "adam", "unknown value of optimizer.name 'adam': did you mean 'adamw'?"),
        ("steps", "many", "steps: 'many' is not a whole number"),
        ("steps", "1.5", "steps: '1.5' is not a whole number"),
        ("steps", "True", "steps: 'True' is not a whole number"),
        ("steps", "", "steps: '' is not a whole number"),
        ("optimizer.lr", "fast", "optimizer.lr: 'fast' is not a number"),
        ("optimizer.lr", "[1]", "optimizer.lr: '[1]' is not a number"),
        ("optimizer.betas", "0.9", "optimizer.betas: expected 2 values joined by commas, got '0.9'"),
        ("optimizer.betas", "0.9,x", "'x' is not a number"),
        ("wandb", "maybe", "wandb: 'maybe' is not true or false"),
        ("optimizer", "adamw", "optimizer is a group of fields; set one of them: name, lr"),
        ("steps.more", "1", "steps has no fields of its own"),
        ("start.more", "1", "start has no fields of its own"),
        ("objective.model.heads", "5", "width=12 does not divide among heads=5"),
        ("batch", "0", "batch=0 must be at least 1"),
        ("micro_batches", "5", "batch=32 does not divide into micro_batches=5"),
        ("every.log", "0", "every.log=0 must be positive"),
        ("every.save", "-3", "save=-3, sample=0): steps between two of a thing are at least 0"),
        ("mesh.fsdp", "-2", "devices along an axis are at least 1"),
        ("", "1", "unknown config field ''"),
        ("optimizer.", "1", "group of fields"),
    ],
)
def test_override_mistakes(path, text, words):
    with pytest.raises(UserError) as error:
        override(BASE, [(path, text)])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_override_overflow():
    with pytest.raises(UserError):
        override(BASE, [("steps", "1e999")])


def test_overrides_are_checked_together(tmp_path):
    """width 12 / heads 3 -> width 20 / heads 5: neither field alone fits."""
    config = override(BASE, [("objective.model.width", "20"), ("objective.model.heads", "5")])
    assert (config.objective.model.width, config.objective.model.heads) == (20, 5)


@given(st.integers(-(10**12), 10**12))
def test_parse_integers(number):
    assert parse(str(number), int, "x") == number
    assert parse(repr(float(number)), float, "x") == float(number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_parse_floats(number):
    assert parse(repr(number), float, "x") == number


@given(st.text(), st.sampled_from([int, float, bool, tuple[int, ...], tuple[float, float], Literal["a", "b"], int | None]))
def test_parse_never_breaks(text, kind):
    """Whatever is typed: a value or a UserError."""
    try:
        value = parse(text, kind, "x")
    except UserError:
        return
    else:
        assert value is None or isinstance(value, (int, float, bool, tuple, str))


# -- ARG ---------------------------------------------------------------------------------------------------------------


def some_config(
    text: str | None = None, size: Literal["small", "large"] = "small", steps: int = 5, rates: tuple[float, ...] = ()
):
    return text, size, steps, rates


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("", {}),
        ("steps=7", {"steps": 7}),
        ("text=a.txt,size=large", {"text": "a.txt", "size": "large"}),
        ("text=a.txt,b.txt,size=large", {"text": "a.txt,b.txt", "size": "large"}),
        ("text=data/x=1.txt", {"text": "data/x=1.txt"}),
        ("text=none", {"text": None}),
        ("text=tfds:wiki", {"text": "tfds:wiki"}),
        ("rates=0.1,0.2,steps=3", {"rates": (0.1, 0.2), "steps": 3}),
        ("steps=1,steps=2", {"steps": 2}),
    ],
)
def test_arguments(arg, expected):
    assert arguments(some_config, arg) == expected


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("setps=7", "unknown config argument 'setps': did you mean 'steps'? valid: text, size, steps"),
        ("large", "config argument 'large' is not key=value; valid keys: text, size, steps"),
        ("size=huge", "unknown value of size 'huge'"),
        ("steps=x", "steps: 'x' is not a whole number"),
    ],
)
def test_argument_mistakes(arg, words):
    with pytest.raises(UserError) as error:
        arguments(some_config, arg)
    assert words in str(error.value)


def written(folder: Path, text: str) -> str:
    path = folder / "some.py"
    path.write_text(text)
    return str(path)


HEAD = "from lm.config import Config\nfrom lm.objectives.causal import Causal\nfrom lm.models.transformer import Transformer\n"
BODY = "    return Config(objective=Causal(model=Transformer()), steps=steps)\n"


def test_load(tmp_path):
    path = written(tmp_path, HEAD + "def config(steps: int = 3):\n" + BODY)
    assert load(path).steps == 3
    assert load(f"{path}:steps=9").steps == 9


def test_load_with_postponed_annotations(tmp_path):
    path = written(tmp_path, "from __future__ import annotations\n" + HEAD + "def config(steps: int = 3):\n" + BODY)
    assert load(f"{path}:steps=9").steps == 9


def test_load_without_an_argument_it_needs(tmp_path):
    path = written(tmp_path, HEAD + "def config(steps: int):\n" + BODY)
    with pytest.raises(UserError, match="steps"):
        load(path)


def test_load_returns_a_config(tmp_path):
    with pytest.raises(UserError, match="Config"):
        load(written(tmp_path, "def config():\n    return 3\n"))


@pytest.mark.parametrize(
    ("argv", "rest", "found"),
    [
        (["p", "--config=a.py"], ["p", "--config=a.py"], []),
        (["p", "--config.a.b=c=d"], ["p"], [("a.b", "c=d")]),
        (["p", "--config.a", "5", "--x=1"], ["p", "--x=1"], [("a", "5")]),
        (["p", "-config.a=1"], ["p"], [("a", "1")]),
        (["p", "--config.a=", "word"], ["p", "word"], [("a", "")]),
        (["p", "config.a=1"], ["p", "config.a=1"], []),
        (["p", "--config.a=1", "--config.a=2"], ["p"], [("a", "1"), ("a", "2")]),
        (["p", "--config.seed", "-1"], ["p"], [("seed", "-1")]),
    ],
)
def test_split_overrides(argv, rest, found):
    assert split_overrides(argv) == (rest, found)


def test_override_without_a_value():
    with pytest.raises(UserError, match=r"--config\.steps needs a value"):
        split_overrides(["p", "--config.steps"])


# -- JSON --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_configs_are_values(path):
    """Built without data or network, from a function whose arguments all have defaults; JSON and back is the same."""
    config = load(str(path))
    assert isinstance(config, Config)
    text = to_json(config)
    assert from_json(text) == config
    assert to_json(from_json(text)) == text
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert config == load(str(path))
    assert hash(config) == hash(from_json(text))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_configs_begin_with_what_they_are_and_how_to_run_them(path):
    words = ast.get_docstring(ast.parse(path.read_text()))
    assert f"--config=configs/{path.stem}.py" in words
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_configs_take_text_and_data(path, tmp_path):
    """One's own data needs no edit; pairs, dialogues and examples are no running text, which is all that `data=` names."""
    plain = load(str(path))
    examples = {"extract": "json", "tag": "conll", "choice": "jsonl"}.get(path.stem.partition("_")[0], "csv")
    name = f"a.{examples}" if labelled(plain.data.source) else "a.txt"
    (tmp_path / name).write_text("a")
    assert name in to_json(load(f"{path}:text={tmp_path}/{name}"))
    if labelled(plain.data.source) or isinstance(plain.objective.records, Documents):
        return  # those of examples are test_configs_of_examples_take_sets_and_a_side_of_ones_own
    assert "wiki40b" in to_json(load(f"{path}:data=tfds:wiki40b"))


@pytest.mark.parametrize("name", ["classify", "tag", "extract", "choice", "rank", "text2text"])
def test_configs_of_examples_take_sets_and_a_side_of_ones_own(name, tmp_path):
    path = f"configs/{name}_nano.py"
    assert load(path).data.validation == 0.1
    held_out = tmp_path / ("dev.conll" if name == "tag" else "dev.jsonl")
    held_out.write_text("a")
    data = load(f"{path}:data=tfds:xnli/plain:train[:80%],held_out={held_out}").data
    assert (data.source.name, data.source.split) == ("xnli/plain", "train[:80%]")
    assert data.validation.path == str(held_out)
    data = load(f"{path}:held_out=tfds:xnli:validation").data
    assert (data.validation.name, data.validation.split) == ("xnli", "validation")
    fields = {"choice": "label", "extract": "question", "rank": "sentence1", "text2text": "source", "tag": "words"}
    assert data.validation.field == fields.get(name, "text")


def test_round_trip_of_everything():
    config = Config(
        objective=Causal(
            model=tiny(rotary=Rotary(scaling="yarn", factor=2.0), windows=(4, 0), qkv_bias=False),
            separator=3,
            z_loss=1e-4,
        ),
        evaluate=("a", "b"),
        every=Every(log=3),
        start="ü/\u2028",
        wandb=True,
    )
    text = to_json(config)
    assert from_json(text) == config
    assert from_json(text.encode().decode()) == config
    assert "ü" in text
    fields = json.loads(text)
    assert fields["type"] == "lm.config.Config"
    assert fields["objective"]["model"]["rotary"]["scaling"] == "yarn"
    assert list(fields)[1:] == [f.name for f in dataclasses.fields(Config)]


@dataclass(frozen=True)
class Foreign:
    """Not part of lm."""

    command: str = "x"
    parts: dict = field(default_factory=dict)


def optimizer_json(**changes) -> str:
    fields = json.loads(to_json(Optimizer())) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (to_json(Foreign()), "tests.test_config.Foreign', which is not part of lm"),
        ('{"type": "os.system", "command": "true"}', "'os.system', which is not part of lm"),
        ('{"type": "lm.config.Path"}', "'lm.config.Path', which is not a dataclass"),
        ('{"type": "lm.config.load", "spec": "x.py"}', "not a dataclass"),
        ('{"type": "lm.config.os"}', "not a dataclass"),
        ('{"type": "lm.data.nowhere.Thing"}', "which does not exist here"),
        ('{"type": "lm.config.Optimiser"}', "which does not exist here"),
        ('{"type": "lm..config.Every"}', "not part of lm"),
        ('{"type": "lm"}', "not part of lm"),
        ('{"type": "lmx.config.Config"}', "not part of lm"),
        (optimizer_json(learning_rate=1), "unknown field of lm.training.settings.Optimizer 'learning_rate': valid: name, lr"),
        ('{"type": "lm.main.Foo"}', "'lm.main.Foo', which is not part of lm"),
        ('{"type": "lm.evaluate.Foo"}', "not part of lm"),  # importing a command would define its flags
        (to_json(BASE).replace('"steps": 1000', '"steps": 2.5'), "steps=2.5 must be a whole number"),
        (to_json(BASE).replace('"wandb": false', '"wandb": 1'), "wandb=1 must be true or false"),
        (to_json(BASE).replace('"samples": [', '"samples": [5, '), "samples=(5, '') must be tuple[str, ...]"),
        (json.dumps(json.loads(to_json(BASE)) | {"objective": json.loads(to_json(Every()))}), "must be of lm.objectives"),
        (json.dumps(json.loads(to_json(BASE)) | {"objective": 5}), "objective=5 must be of lm.objectives"),
        (json.dumps(json.loads(to_json(BASE)) | {"mesh": 5}), "mesh=5 must be Mesh"),
        (optimizer_json(lr="x"), "lr='x' must be a number"),
        (optimizer_json(betas=[0.9]), "betas=(0.9,) must be tuple[float, float]"),
        ("[" * 100_000, "nested deeper"),
        ('{"type": "lm.training.settings.Every", "log": ' + "9" * 5000 + "}", "too many digits"),
        (optimizer_json(deca=1), "did you mean 'decay'?"),
        ('{"type": "lm.training.settings.Every",\n "log": 3,,}', "at line 2"),
        ("", "no valid JSON"),
        (to_json(BASE)[:-20], "no valid JSON"),
    ],
)
def test_json_mistakes(text, words):
    with pytest.raises(UserError) as error:
        from_json(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"type": 3}',
        '{"type": ["lm.training.settings.Every"]}',
        '{"type": "lm.config.Config", "steps": 5}',
        optimizer_json(name="adam"),
    ],
)
def test_odd_json(text):
    with pytest.raises(UserError):
        from_json(text)


def test_read_config_gives_a_config(tmp_path):
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError):
        configs.read_config(tmp_path)


def test_read_config(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config\.json"):
        configs.read_config(tmp_path)
    (tmp_path / "config.json").write_text(to_json(BASE))
    assert configs.read_config(tmp_path) == BASE


# -- the command line --------------------------------------------------------------------------------------------------

NANO = "configs/gpt_nano.py"
MISTAKES = {
    "unknown field": ([f"--config={NANO}", "--config.optimizer.learning_rate=1"], "'optimizer.learning_rate'"),
    "bad value": ([f"--config={NANO}", "--config.steps=many"], "steps: 'many' is not a whole number"),
    "bad choice": ([f"--config={NANO}", "--config.optimizer.name=adan"], "did you mean 'adamw'?"),
    "no such file": (["--config=configs/gpt_nanno.py"], "config file 'configs/gpt_nanno.py' not found"),
    "a folder": (["--config=configs"], "config file 'configs' not found"),
    "no config function": (["--config=lm/errors.py"], "'lm/errors.py' defines no function config()"),
    "unknown argument": ([f"--config={NANO}:txt=a"], "unknown config argument 'txt': did you mean 'text'?"),
    "unknown flag": ([f"--config={NANO}", "--workdri=x"], "workdri"),
    "flag of others": ([f"--config={NANO}", "--learning_rate=1"], "did you mean --config.optimizer.lr=VALUE?"),
    "stray word": ([f"--config={NANO}", "steps=5"], "'steps=5' is not a flag"),
    "value left out": ([f"--config={NANO}", "--config.steps"], "--config.steps needs a value"),
    "seed": ([f"--config={NANO}", "--seed=x"], "seed"),
    "no config": ([], "--config=gpt_nano"),
    "wandb": ([f"--config={NANO}", "--config.wandb=true", "--workdir=/nowhere/run"], "wandb"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_status_2(name, tmp_path):
    args, words = MISTAKES[name]
    done = command("lm.main", f"--workdir={tmp_path / 'run'}", *args, variables={"LM_CACHE": str(tmp_path / "cache")})
    assert list(tmp_path.iterdir()) == []  # nothing was written
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr


def test_help_explains_each_flag():
    done = command("lm.main", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for flag in ("--config=TEXT", "--workdir=TEXT", "--seed=INT", "--dry_run ", "--modules=A,B"):
        assert f"\n  {flag}" in done.stdout
    assert "is corrupted (default 2)" in done.stdout


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("schedule.final", "3"),
        ("schedule.final", "-1"),
        ("schedule.decay", "-1"),
        ("evaluate_batches", "-2"),
        ("keep.last", "-1"),
        ("seed", "99999999999999"),
        ("objective.chunk", "-4"),
        ("objective.model.eps", "-1"),
        ("objective.model.init", "-1"),
        ("objective.model.rotary.factor", "0"),
        ("objective.model.rotary.share", "1.5"),
    ],
)
def test_numbers_out_of_range(path, text):
    with pytest.raises(UserError):
        override(BASE, [(path, text)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"def config(:\n", "line 1: invalid syntax"),
        (b"import no_such_module\n", "line 1: ModuleNotFoundError: No module named 'no_such_module'"),
        (b"x = 1\nx / 0\n", "line 2: ZeroDivisionError"),
        (b"def config():\n    return {}['a']\n", "line 2: KeyError: 'a'"),
        (b"\xff\xfe\x00", "config file"),
    ],
)
def test_a_broken_config_file_is_named_with_its_line(text, words, tmp_path):
    path = tmp_path / "broken.py"
    path.write_bytes(text)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        load(str(path))
    assert "broken.py" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_config_of_a_run_starts_the_same_again(tmp_path):
    (tmp_path / "config.json").write_text(to_json(BASE))
    assert load(str(tmp_path / "config.json")) == BASE
    with pytest.raises(UserError, match="takes no arguments"):
        load(f"{tmp_path / 'config.json'}:steps=3")


def parts(value):
    """Every dataclass of a config tree, those in tuples too."""
    if dataclasses.is_dataclass(value):
        yield value
        for field in chosen(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, tuple):
        for one in value:
            yield from parts(one)


def test_every_field_of_every_config_has_a_sentence():
    files = [*FILES, *Path("tests/configs").glob("tiny*.py")]
    classes = {type(part): part for path in files for part in parts(load(str(path)))}
    assert len(classes) > 40
    bare = [f"{cls.__name__}.{field.name}" for cls, part in classes.items() for field in chosen(part)
            if not sentence(cls, field.name) and not dataclasses.is_dataclass(getattr(part, field.name))]  # fmt: skip
    assert bare == []


def test_show_config_lists_fields_with_values_types_and_meaning():
    done = command("lm.main", "--config=gpt_nano:steps=7", "--config.batch=3", "--show_config")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in ("--config.steps=7  [int]", "--config.batch=3  [int]", "--config.optimizer.betas=0.9,0.98  [float,float]"):
        assert line in lines
    place = lines.index("--config.objective.model.activation=gelu_tanh  [str]")
    assert "swiglu" in lines[place + 1]
    for word in ("RoPE", "GQA", "rms", "qk_norm", "windows", "muP", "[pre | post | sandwich]"):
        assert word in done.stdout


def test_a_config_is_found_by_its_name(tmp_path, monkeypatch):
    assert load("gpt_nano:steps=9") == load("configs/gpt_nano.py:steps=9")
    monkeypatch.chdir(tmp_path)
    assert load("gpt_nano") == load(str(ROOT / "configs" / "gpt_nano.py"))
    with pytest.raises(UserError, match="'gpt_nanno' not found; did you mean gpt_nano"):
        load("gpt_nanno")


def test_every_config_that_trains_on_a_laptop_takes_steps():
    published = re.compile(r"_(base|small)$")  # their number of steps is their paper's
    for path in sorted(Path("configs").glob("[!_]*.py")):
        if not published.search(path.stem):
            assert re.search(r"\bsteps: int\b", path.read_text(encoding="utf-8")), path
