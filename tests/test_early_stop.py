"""Early stopping: the counters, the checkpoint that stays, and whole runs that end by it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.config import Keep, from_json, load, override, to_json
from lm.errors import UserError
from lm.studies.runs import ended
from lm.training.checkpoint import Checkpoints
from lm.training.state import TrainState
from lm.training.stopping import EarlyStop, Watch
from tests.processes import command
from tests.test_runs import parameters, run

CONFIG = "tests/configs/tiny_classify.py"
LOSSES = [0.9, 0.7, 0.7, 0.71, math.nan, 0.69, 0.6, 0.61, 0.6, 0.65, 0.66]


def by_hand(values: list[float], sign: int, patience: int, least: float) -> tuple[int, int]:
    """(evaluation at which it ends, last one that counted as better), from 1; over the whole list each time."""
    begun = 0
    for n in range(1, len(values) + 1):
        mark = math.inf if not begun else sign * values[begun - 1]
        if sign * values[n - 1] < mark - least:
            begun = n
        if n - begun == patience:
            return n, begun
    return 0, begun


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
@pytest.mark.parametrize("least", [0.0, 0.05])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_counters_also_when_taken_up_from_notes_each_time(mode, sign, least, patience):
    chance = np.random.default_rng(0)
    for values in ([sign * x for x in LOSSES], *(sign * chance.normal(size=(5, 40)).round(1)).tolist()):
        end, since = by_hand(values, sign, patience, least)
        rule = EarlyStop(patience=patience, metric="x", mode=mode, least=least)
        watch, better = Watch(rule, {"seconds": 0.0}), []
        for n, value in enumerate(values[: end or None], 1):
            assert not watch.over
            better.append(watch.see(10 * n, {"loss": 0.0, "x": value}))
            watch = Watch(rule, json.loads(json.dumps(watch.notes())))  # a checkpoint and a new sitting
        seen = [sign * x if x == x else math.inf for x in values[: end or None]]
        assert better == [x < min(seen[:n], default=math.inf) for n, x in enumerate(seen)]
        assert sign * watch.best == min(seen)
        assert (watch.over, watch.since) == (end > 0, 10 * since)
        if end:
            assert f"of step {10 * since} for {patience} evaluation" in watch.reason()


def test_without_patience_nothing_ends():
    watch = Watch(EarlyStop(), {"seconds": 0.0, "best": math.inf})
    for n in range(100):
        watch.see(n, {"loss": 1.0})
    assert not watch.over


def test_notes_of_older_runs_and_of_another_figure():
    old = {"seconds": 1.0, "best": 0.5}  # as runs wrote them before there was patience
    assert Watch(EarlyStop(), old).best == 0.5
    assert not Watch(EarlyStop(), old).see(1, {"loss": 0.6})
    assert Watch(EarlyStop(metric="examples/f1"), old).best == -math.inf
    waited = Watch(EarlyStop(patience=9), {"seconds": 0.0})
    for n in range(4):
        waited.see(n, {"loss": 1.0})
    assert Watch(EarlyStop(patience=3), waited.notes()).over
    assert not Watch(EarlyStop(patience=3, mode="max"), waited.notes()).over


def test_which_way_is_better():
    assert [EarlyStop(metric=m).sign for m in ("loss", "perplexity", "examples/mae", "examples/ece")] == [1] * 4
    assert [EarlyStop(metric=m).sign for m in ("accuracy", "examples/f1", "examples/f1/macro")] == [-1] * 3
    assert EarlyStop(metric="surprise", mode="min").sign == 1


def test_mistakes_are_told(tmp_path):
    config = load(CONFIG)
    for fields, word in (
        ([("stop.patience", "-1")], "patience=-1"),
        ([("stop.mode", "least")], "stop.mode"),
        ([("stop.patience", "2"), ("every.evaluate", "0")], "every.evaluate"),
        ([("stop.patience", "2"), ("keep.best", "0")], "keep.best"),
    ):
        with pytest.raises(UserError, match=word):
            override(config, fields)
    with pytest.raises(UserError, match="did you mean 'examples/f1'"):
        Watch(EarlyStop(metric="examples/f2"), {}).see(1, {"loss": 1.0, "examples/f1": 0.5})
    done = run(f"--workdir={tmp_path / 'r'}", "--config.stop.patience=2", "--config.data.validation=0", config=CONFIG)
    assert done.returncode == 2
    assert "data.validation" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    partial = ("--config.evaluate_batches=1", "--config.batch=1", "--config.stop.metric=examples/f1/macro")
    done = run(f"--workdir={tmp_path / 'r'}", "--config.stop.patience=2", *partial, config="tests/configs/tiny_classify.py")
    assert done.returncode == 2
    assert "evaluate_batches=0" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "r" / "metrics.jsonl").exists()  # before the first step


def test_configs_of_before_are_read():
    old = json.loads(to_json(load(CONFIG)))
    del old["stop"], old["data"]["fold"]
    assert from_json(json.dumps(old)) == load(CONFIG)


def saved(folder: Path, rule: EarlyStop, figures: list[dict | None], first: int = 1) -> Checkpoints:
    """Checkpoints of steps `first`, ... with these figures; two are kept, the newest and the best."""
    found = Checkpoints(folder, Keep(last=1, best=1), stop=rule)
    for step, one in enumerate(figures, first):
        params = {"w": np.full(3, step, np.float32)}
        found.save(step, TrainState(np.int32(step), params, None, None, None, None), {}, one)
    found.close()
    return Checkpoints(folder, Keep(last=1, best=1), read_only=True, stop=rule)


def test_the_best_by_the_chosen_figure_stays_the_first_of_equal_ones(tmp_path):
    figures = [{"loss": 0.1, "f1": 0.2}, {"loss": 0.5, "f1": 0.5}, {"loss": 0.4, "f1": 0.5}]
    figures += [{"loss": 0.6, "f1": math.nan}, {"loss": 0.7, "f1": 0.4}]
    found = saved(tmp_path / "f1", EarlyStop(metric="f1", patience=2), figures)
    assert sorted(found.manager.all_steps()) == [2, 5]
    assert found.results("best")[0] == found.results()[0] == 2
    params = found.restore(2, {"w": jax.ShapeDtypeStruct((3,), np.float32)}, part="params")
    assert params["w"].tolist() == [2, 2, 2]
    found = saved(tmp_path / "loss", EarlyStop(), figures)
    assert sorted(found.manager.all_steps()) == [1, 5]
    assert (found.results("best")[0], found.results()[0]) == (1, 5)


def test_closing_waits_until_half_written_saves_are_removed(tmp_path):
    half = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp" / "state"
    half.mkdir(parents=True)
    for name in range(3000):
        (half / str(name)).touch()
    Checkpoints(tmp_path, Keep()).close()
    assert not half.parent.exists()


def test_checkpoints_without_figures_do_not_pile_up(tmp_path):
    """Saved more often than evaluated, over four sittings: the newest stays, and the best of those with a figure."""
    good, poor, better = ({"loss": loss} for loss in (0.5, 0.9, 0.4))
    for first, figures, kept in (
        (1, [None, None, None], {3}),
        (4, [None, good, None, poor, None, None], {5, 9}),
        (10, [None, None], {5, 11}),
        (12, [better, None, None], {12, 14}),
    ):
        found = saved(tmp_path, EarlyStop(), figures, first)
        assert set(found.manager.all_steps()) == kept
        assert (found.results("best")[0], found.steps()[-1]) == (min(kept), max(kept))


# -- whole runs --------------------------------------------------------------------------------------------------------

NAME = "eval/validation/examples/accuracy"  # of five examples: it cannot get better more than five times
FLAGS = (
    "--config.steps=60", "--config.every.evaluate=2", "--config.every.save=1", "--config.every.sample=0",
    "--config.keep.last=60", "--config.optimizer.lr=0.05", "--config.stop.patience=3",
    "--config.stop.metric=examples/accuracy",
)  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    done = run(f"--workdir={workdir}", *FLAGS, config=CONFIG)
    assert done.returncode == 0, done.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    assert f"stopped early at step {summary['steps']}: {NAME} has not improved" in done.stdout
    return workdir


def read(workdir: Path) -> tuple[dict, dict[int, dict]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return json.loads((workdir / "summary.json").read_text()), {line["step"]: line for line in lines}


def test_a_run_ends_where_its_log_says(stopped):
    summary, log = read(stopped)
    steps = sorted(step for step, line in log.items() if NAME in line)
    end, since = by_hand([log[step][NAME] for step in steps], -1, 3, 0.0)
    assert summary["steps"] == steps[end - 1] == max(log) < 60
    assert summary["best_step"] == steps[since - 1]
    assert summary["stopped"].endswith(f"of step {steps[since - 1]} for 3 evaluations")
    best = log[summary["best_step"]]
    for name in [name for name in best if name.startswith("eval/")]:
        assert summary[name] == pytest.approx(best[name], rel=1e-6), name  # of the best checkpoint, not of the last one
    assert summary["eval/validation/loss"] != pytest.approx(log[summary["steps"]]["eval/validation/loss"], rel=1e-3)
    for name in ("predictions.jsonl", "figures.json", "errors.html", "confusion.png", "loss.png", "learning.png"):
        assert (stopped / name).stat().st_size > 0


def test_evaluate_repeats_the_best_checkpoint_figures_unasked(stopped, tmp_path):
    output = tmp_path / "found.json"
    done = command("lm.evaluate", f"--workdir={stopped}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())["validation"]
    left = json.loads((stopped / "figures.json").read_text())
    for name in [key for key in left if not key.endswith(("_low", "_high"))]:
        assert found[f"examples/{name}"] == left[name], name
    assert found["loss"] == pytest.approx(read(stopped)[0]["eval/validation/loss"], rel=1e-5)


def test_the_same_command_says_that_it_is_done(stopped):
    before = {p.name: p.stat().st_mtime_ns for p in stopped.iterdir()}
    done = run(f"--workdir={stopped}", *FLAGS, config=CONFIG)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert f"stopped early at step {read(stopped)[0]['steps']}: {NAME}" in line
    assert "raise --config.stop.patience" in line
    assert {p.name: p.stat().st_mtime_ns for p in stopped.iterdir()} == before


def test_a_killed_run_counts_on_from_its_notes(stopped, tmp_path):
    """Killed after the first evaluation that was no better: as the straight run, to the bit."""
    summary, _ = read(stopped)
    workdir, kept = tmp_path / "killed", summary["best_step"] + 3
    shutil.copytree(stopped, workdir)
    for name in ("summary.json", "predictions.jsonl", "figures.json"):
        (workdir / name).unlink()
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > kept:
            shutil.rmtree(path)
    done = run(f"--workdir={workdir}", *FLAGS, config=CONFIG)
    assert done.returncode == 0, done.stderr
    assert f"going on from step {kept}" in done.stdout
    again, _ = read(workdir)
    drop = ("seconds", "tokens_per_second", "train/tokens_per_second", "train/matmul_share")
    left, right = ({k: v for k, v in one.items() if k not in drop and k[:5] != "time/"} for one in (again, summary))
    assert left == right
    for name in ("predictions.jsonl", "figures.json"):
        assert (workdir / name).read_bytes() == (stopped / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, parameters(workdir, summary["steps"]), parameters(stopped, summary["steps"]))


def test_a_launcher_takes_it_for_ended(stopped, tmp_path):
    assert ended(stopped)
    for name in ("summary.json", "config.json"):
        shutil.copy(stopped / name, tmp_path / name)
    config = from_json((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(to_json(replace(config, stop=replace(config.stop, patience=5))))
    assert not ended(tmp_path)  # it was to go on, and did not get far
    summary, _ = read(stopped)
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "stopped"}))
    assert not ended(tmp_path)


@pytest.mark.slow
def test_a_run_with_all_its_steps_also_ends_with_its_best(tmp_path):
    flags = ("--config.steps=9", "--config.every.evaluate=2", "--config.optimizer.lr=0.05", "--config.stop.patience=50")
    done = run(f"--workdir={tmp_path}", *flags, "--config.optimizer.average=0.5", config=CONFIG)
    assert done.returncode == 0, done.stderr
    summary, log = read(tmp_path)
    losses = {step: line["eval/validation/loss"] for step, line in log.items() if "eval/validation/loss" in line}
    assert set(losses) == {2, 4, 6, 8, 9}
    assert summary["best_step"] == min(losses, key=losses.get)
    assert summary["eval/validation/loss"] == pytest.approx(min(losses.values()), rel=1e-6)
    assert "stopped" not in summary
    (tmp_path / "summary.json").unlink()  # killed between the last save and the summary
    for told in ("going on from step 9", "has all its 9 steps"):
        done = run(f"--workdir={tmp_path}", *flags, "--config.optimizer.average=0.5", config=CONFIG)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
    assert read(tmp_path)[0]["best_step"] == summary["best_step"]
