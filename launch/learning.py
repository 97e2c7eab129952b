"""Train every laptop config and set its held-out figures beside a trivial baseline's: the table of launch/README.md.

    python -m launch.learning [--only=masked,span] [--workdir=runs/learning] [--readme]
    python -m launch.learning --curves=100 [--only=masked,span] [--picture=launch/learning.png]

About three minutes a config on two CPU cores; a config that was trained to its end already is not trained again. With
--curves every config is trained for that many steps only, in WORKDIR/first-STEPS, and the learning curves of all are drawn on
one axis: the held-out loss divided by that of the untrained network on the same batches.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from launch.pages import markdown, write_between
from lm.config import read_config
from lm.errors import check, unknown
from lm.evaluation.report.learning_curve import points
from lm.evaluation.report.loss_curve import MUTED, OTHERS, TRAIN, plain
from lm.evaluation.report.pictures import canvas
from lm.flags import run
from lm.outputs import replace_file
from lm.strict_json import dump_json, load_json
from lm.training.writers import parse_metrics

ONLY = flags.DEFINE_list("only", [], "names of the rows, joined by commas (default: all)")
WORKDIR = flags.DEFINE_string("workdir", "runs/learning", "folder of the runs")
README = flags.DEFINE_bool("readme", False, "write the table into launch/README.md, between its two marks")
CURVES = flags.DEFINE_integer("curves", 0, "train so many steps of each config and draw all curves; no table", lower_bound=0)
PICTURE = flags.DEFINE_string("picture", "launch/learning.png", "file that --curves draws")
CHINESE = flags.DEFINE_string("chinese", None, "text for the Chinese row, as its config takes it; without it, no such row")

HEADER = ("objective", "config", "held-out", "here", "baseline", "", "training")
PAGE = Path(__file__).with_name("README.md")
LOSS = "eval/validation/loss"


@dataclass(frozen=True)
class Held:
    """A finished run, opened again: what a baseline is computed from."""

    config: Any
    corpus: Any
    workdir: Path

    @staticmethod
    def open(workdir: Path) -> "Held":
        from lm.data.corpus.prepare import prepare
        from lm.objectives.base import resolve

        config = read_config(workdir)
        return Held(*resolve(config, prepare(config.data)), workdir)

    def batches(self):
        """The batches that the run was measured on."""
        from lm.data.rows.pipeline import Evaluation

        c = self.config
        rows, objective = c.batch // c.micro_batches, c.objective.measured()
        found = Evaluation(
            self.corpus.validation, objective.records, objective.corrupt, rows, packing=c.data.packing, seed=c.seed
        )
        return (found[i] for i in range(min(len(found), c.evaluate_batches or len(found))))

    def measured(self, objective: Any = None, trained: bool = True) -> dict[str, float]:
        """Figures of the trained parameters (or of fresh ones) under another form of the objective."""
        import jax

        from lm.evaluation.held_out import HeldOut
        from lm.saved import load_params
        from lm.sharding import AXES, make_mesh, unbox

        config = replace(self.config, objective=objective or self.config.objective)
        batch = next(iter(self.batches()))
        params = load_params(self.config, self.workdir, "latest") if trained else None
        if params is None:
            params = jax.jit(lambda key: unbox(config.objective.init(key, batch)))(jax.random.key(config.seed))
        mesh = make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1])
        with jax.set_mesh(mesh):
            return HeldOut(config, self.corpus, mesh)(params)


def unigram(held: Held, part: str = "", text: bool = False) -> tuple[float, float]:
    """Cross-entropy (nats) of the training tokens' frequencies on what the objective asks for, and the best accuracy
    that one token for every answer can have.

    `text` leaves sentinels and other special tokens out.
    """
    special, vocab = held.corpus.tokenizer.piece_table().special, held.corpus.tokenizer.vocab
    counts = np.ones(vocab)  # one more of each: a token that training lacks has a probability too
    for _, tokens in held.corpus.train:
        counts += np.bincount(tokens.tokens, minlength=vocab)[:vocab]
    nats, asked = -np.log(counts / counts.sum()), np.zeros(vocab)
    for batch in held.batches():
        targets, weights = batch[f"{part}targets"].ravel(), batch[f"{part}weights"].ravel()
        asked += np.bincount(targets, weights * ~special[targets] if text else weights, minlength=vocab)
    return float(asked @ nats / asked.sum()), float(asked.max() / asked.sum())


def copying(held: Held) -> float:
    """Accuracy of giving back the source, place by place within each document or pair."""
    hits, weight = 0.0, 0.0
    for batch in held.batches():
        places = [batch[f"{side}{name}"] for side in ("source_", "") for name in ("segments", "positions")]
        shape = [max(int(places[i].max()), int(places[i + 2].max())) + 1 for i in (0, 1)]
        rows = np.arange(len(batch["source"]))[:, None]
        source = np.full((len(rows), *shape), -1)
        source[rows, places[0], places[1]] = batch["source"]
        right = source[rows, places[2], places[3]] == batch["targets"]
        hits += float((right * batch["weights"]).sum())
        weight += float(batch["weights"].sum())
    return hits / weight


def kneser_ney(held: Held) -> float:
    """Bits per byte of an interpolated Kneser-Ney model of order 5."""
    from lm.evaluation.kneser_ney import evaluate, fit

    packing = held.config.data.packing
    return evaluate(fit(held.corpus, 5, packing), held.corpus.validation, packing)["kneser_ney/bits_per_byte"]


Figure = Callable[[Held], float]


def metric(name: str) -> Figure:
    """The last value of a held-out metric of the run."""
    return lambda held: load_json(held.workdir / "summary.json", dict)[f"eval/validation/{name}"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    config: str
    what: str
    figure: Figure
    against: str
    baseline: Figure
    lower: bool = True  # is better


def masked_rows(name: str, config: str, part: str = "") -> tuple[Row, ...]:
    return (
        Row(name, config, "nats a masked token", metric(f"{part}mlm"), "unigram", lambda h: unigram(h, part)[0]),
        Row(name, config, "accuracy", metric(f"{part}accuracy"), "commonest token", lambda h: unigram(h, part)[1], False),
    )


def accuracy(name: str, config: str, against: str, baseline: Figure) -> Row:
    return Row(name, config, "accuracy, tokens asked for", metric("accuracy"), against, baseline, lower=False)


def rows() -> list[Row]:
    """Every line of the table."""
    found = [
        Row("causal", "gpt_nano", "bits per byte", metric("bits_per_byte"), "Kneser-Ney, 5-gram", kneser_ney),
        Row("baselines", "lstm_nano", "bits per byte", metric("bits_per_byte"), "Kneser-Ney, 5-gram", kneser_ney),
        *masked_rows("masked", "bert_nano"),
        Row("replaced", "electra_nano", "F1 of replaced", metric("f1"), "all original", lambda h: 0.0, False),
        Row("permuted", "xlnet_nano", "nats a target", metric("loss"), "unigram", lambda h: unigram(h)[0]),
        Row("recurrent", "xl_nano", "nats a token", metric("loss"), "the same, memory left out", without_memory),
        accuracy("span", "t5_nano", "copying the source", copying),
        Row("span", "t5_nano", "accuracy, text alone", metric("text_accuracy"), "commonest token", text_baseline, False),
        accuracy("denoise", "bart_nano", "copying the source", copying),
        Row("prefix", "prefix_nano", "accuracy, text alone", metric("text_accuracy"), "commonest token", text_baseline, False),
        accuracy("seq2seq", "translate_nano", "copying the source", copying),
        accuracy("conditional", "mask_predict_nano", "commonest token", lambda h: unigram(h)[1]),
        Row("contrastive", "simcse_nano", "uniformity", metric("uniformity"), "untrained", untrained("uniformity")),
        Row("contrastive", "simcse_nano", "contrast, nats", metric("contrast"), "untrained", untrained("contrast")),
        Row("mixture", "mixture_nano", "bits per byte", metric("bits_per_byte"), "Kneser-Ney, 5-gram", kneser_ney),
        *masked_rows("mixture", "mixture_nano", "masked/"),
    ]
    if CHINESE.value:
        found += masked_rows("masked, Chinese words", f"bert_wwm_chinese_nano.py:text={CHINESE.value}")
    return found


def text_baseline(held: Held) -> float:
    return unigram(held, text=True)[1]


def without_memory(held: Held) -> float:
    return held.measured(held.config.objective.without_memory())["eval/validation/loss"]


def untrained(name: str) -> Figure:
    return lambda held: held.measured(trained=False)[f"eval/validation/{name}"]


def train(row: Row, changes: Mapping[str, int] | None = None, below: str = "") -> Path:
    """Train a row's config, with `changes` of its fields, unless that is done; return the run's folder."""
    spec = row.config if ".py" in row.config else f"{row.config}.py"
    workdir = Path(WORKDIR.value) / below / Path(spec.partition(":")[0]).stem
    if not (workdir / "summary.json").exists():
        command = [sys.executable, "-m", "lm.main", f"--config=configs/{spec}", f"--workdir={workdir}"]
        command += [f"--config.{name}={value}" for name, value in (changes or {}).items()]
        check(subprocess.run(command, check=False).returncode == 0, f"{row.config} did not train; see above")
    return workdir


def beginnings(chosen: Sequence[Row], steps: int) -> dict[str, np.ndarray]:
    """Train the first steps of every config among the rows; return its held-out losses by its name, (points, 2).

    A point is (step, loss / loss of the untrained network); the first is (0, 1).
    """
    # Five points a curve; ten held-out batches resolve them, and no checkpoint but the last is read.
    few = {"steps": steps, "every.evaluate": max(steps // 5, 1), "evaluate_batches": 10}
    few |= {"every.save": 0, "every.sample": 0, "keep.best": 0}
    curves = {}
    for row in {row.config: row for row in chosen}.values():
        held = Held.open(train(row, few, f"first-{steps}"))
        file = held.workdir / "untrained.json"  # measured once
        if not file.exists():
            replace_file(file, dump_json(held.measured(trained=False)) + "\n")
        start = load_json(file, dict)[LOSS]
        curve = points(parse_metrics(held.workdir / "metrics.jsonl"), LOSS)
        curves[f"{row.name}, {held.workdir.name}"] = np.concatenate([[[0, 1]], curve / [1, start]])
        print(f"{held.workdir.name}: loss {start:.3f} untrained, {curve[-1, 1]:.3f} after {steps} steps", flush=True)
    return curves


def draw(curves: Mapping[str, np.ndarray], steps: int, png: Path) -> None:
    """Draw the curves on one axis, each labelled at its end, and from there down in the order of their ends."""
    with canvas(png, 10, 6.5) as figure:
        axes = figure.subplots()
        colors = (TRAIN, *OTHERS)
        styles = [(color, line) for line in ("-", (0, (5, 2))) for color in colors]
        ends = []
        for (name, curve), (color, line) in zip(curves.items(), styles * len(curves)):
            axes.plot(*curve.T, color=color, linestyle=line, linewidth=1.8)
            ends.append((curve[-1, 1], f"{'—' if line == '-' else '- -'} {name}", color))
        high = max(1.0, max(float(curve[:, 1].max()) for curve in curves.values()))
        axes.set_xlim(0, steps)
        axes.set_ylim(0, 1.03 * high)
        # Labels a line apart: pushed up from below where they would overlap, then down from the top.
        ends, gap = sorted(ends), 0.043 * high
        levels = [value for value, _, _ in ends]
        for i in range(1, len(levels)):
            levels[i] = max(levels[i], levels[i - 1] + gap)
        levels[-1] = min(levels[-1], high)
        for i in reversed(range(len(levels) - 1)):
            levels[i] = min(levels[i], levels[i + 1] - gap)
        for (value, name, color), level in zip(ends, levels):
            axes.annotate(
                f" {name} {value:.2f}", (1, level), xycoords=axes.get_yaxis_transform(), color=color, va="center", fontsize=10
            )
        axes.set_title(f"The first {steps:,} steps of {len(curves)} laptop configs", loc="left", fontsize=14)
        axes.set_xlabel("steps", color=MUTED)
        axes.set_ylabel("held-out loss / held-out loss of the untrained network", color=MUTED)
        plain(axes)


def main(overrides: list[tuple[str, str]]) -> None:
    """Train, measure, print."""
    check(not overrides, "launch.learning takes no --config.* flags: the configs are what it shows")
    chosen = rows()
    for name in ONLY.value:
        if name not in {row.name for row in chosen}:
            raise unknown("row", name, sorted({row.name for row in chosen}))
    chosen = [row for row in chosen if not ONLY.value or row.name in ONLY.value]
    if CURVES.value:
        draw(beginnings(chosen, CURVES.value), CURVES.value, Path(PICTURE.value))
        print(PICTURE.value)
        return
    table = []
    for row in chosen:
        held = Held.open(train(row))
        found, baseline = row.figure(held), row.baseline(held)
        about = load_json(held.workdir / "summary.json", dict)
        better = found < baseline if row.lower else found > baseline
        cells = [row.name, f"`{row.config.partition(':')[0].removesuffix('.py')}`", row.what, f"{found:.3f}", row.against]
        cells += [f"{baseline:.3f}" + ("" if better else ", not beaten"), f"{about['seconds']:.0f} s"]
        table.append(cells)
        print(markdown(HEADER, [cells])[-1], flush=True)
    print("\n".join(["", *markdown(HEADER, table)]))
    if README.value:
        write_between(PAGE, "launch.learning", markdown(HEADER, table))


if __name__ == "__main__":
    run(main)
