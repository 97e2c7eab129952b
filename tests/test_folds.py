"""The launcher of folds: every example answered once, figures set side by side, folds that are there used again."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launch import finetune, folds
from lm.config import load, override, to_json
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.objectives.base import resolve
from tests.processes import command, xla_flags

CONFIG = "tests/configs/tiny_classify.py"
FLAGS = folds.VALUES


@pytest.fixture(autouse=True)
def parsed(tmp_path):
    """Flags of the launcher, each test's own."""
    FLAGS(["test"], known_only=True)
    values = {name: FLAGS[name].value for name in ("config", "folds", "workdir")}
    FLAGS.config, FLAGS.folds, FLAGS.workdir = CONFIG, 2, str(tmp_path / "folds")
    yield
    for name, value in values.items():
        FLAGS[name].value = value


def rows(tmp_path: Path) -> Path:
    """Thirteen examples; one has a label that no other has."""
    path = tmp_path / "rows.csv"
    lines = [f"text number {i},{'rare' if i == 7 else 'ab'[i % 2]}" for i in range(13)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


def overrides(tmp_path: Path) -> list[tuple[str, str]]:
    return [("data.source.path", str(rows(tmp_path))), ("steps", "1"), ("every.evaluate", "1")]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def consistent(folder: Path) -> None:
    """What is written is what the folds' own files say, counted anew."""
    found, told = lines(folder / "predictions.jsonl"), json.loads((folder / "folds.json").read_text())
    assert [one["where"].rpartition(":")[2] for one in found] == [str(i) for i in range(2, 15)]  # each once, in order
    accuracies = []
    for k in (1, 2):
        own = lines(folder / str(k) / "predictions.jsonl")
        assert own == [{n: v for n, v in one.items() if n != "fold"} for one in found if one["fold"] == f"{k}/2"]
        accuracies.append(np.mean([one["gold"] == one["guess"] for one in own]))
    figure = told["figures"]["accuracy"]
    assert figure["folds"] == pytest.approx(accuracies)
    assert (figure["mean"], figure["std"]) == pytest.approx((np.mean(accuracies), np.std(accuracies, ddof=1)))
    assert figure["together"] == pytest.approx(np.mean([one["gold"] == one["guess"] for one in found]))
    assert json.loads((folder / "figures.json").read_text())["accuracy"] == figure["together"]
    truth = [one["probabilities"][one["gold"]] for one in found]  # the rare label has a probability, too
    assert told["figures"]["nll"]["together"] == pytest.approx(-np.mean(np.log(truth)))
    for name in ("errors.html", "confusion.png", "reliability.png"):
        assert (folder / name).stat().st_size > 0


def fake(tmp_path: Path, started: list[list[str]]):
    """Stand in for `python -m lm.main`: a run's files, with answers drawn by chance."""
    chance = np.random.default_rng(0)

    def answer(command, check):
        started.append(command)
        workdir = Path(command[4].partition("=")[2])
        pairs = [part.removeprefix("--config.").partition("=")[::2] for part in command[5:]]
        config, corpus = resolve(*(lambda c: (c, prepare(c.data)))(override(load(CONFIG), pairs)))
        workdir.mkdir()
        (workdir / "config.json").write_text(to_json(config))
        found = []
        for one in corpus.validation.examples:
            shares = dict(zip(config.objective.labels, map(float, chance.dirichlet(np.ones(3)))))
            guess, gold = max(shares, key=shares.get), one.values["label"]
            right = {"right": float(guess == gold), "confidence": max(shares.values())}
            said = {"gold": gold, "guess": guess, **right, "probabilities": shares}
            found.append({"where": one.where, "id": "a\u2028b", **said})  # what str.splitlines cuts at
        accuracy = float(np.mean([one["right"] for one in found]))
        (workdir / "predictions.jsonl").write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found))
        figures = {"accuracy": accuracy, "accuracy_error": 0.1, "accuracy_low": 0.0, "nll": 1.0, "nll_error": 0.1}
        (workdir / "figures.json").write_text(json.dumps(figures))
        (workdir / "summary.json").write_text(json.dumps({"steps": 1, "eval/validation/loss": 1.5}))
        return type("Done", (), {"returncode": 0})

    return answer


def test_folds_side_by_side_and_together(tmp_path, monkeypatch, capsys):
    started: list[list[str]] = []
    monkeypatch.setattr(finetune.subprocess, "run", fake(tmp_path, started))
    folds.main(overrides(tmp_path))
    folder = tmp_path / "folds"
    consistent(folder)
    assert [command[-2:] for command in started] == [
        ["--config.objective.labels=a,b,rare", f"--config.data.fold={k}/2"] for k in (1, 2)
    ]
    told = json.loads((folder / "folds.json").read_text())
    assert set(told["figures"]) == {"loss", "accuracy", "nll"}  # no errors, no ends of intervals
    assert told["figures"]["loss"] == {"folds": [1.5, 1.5], "mean": 1.5, "std": 0.0, "together": None}
    table = capsys.readouterr().out
    assert "± std" in table
    assert "accuracy" in table

    folds.main(overrides(tmp_path))  # the same again: nothing is trained
    assert len(started) == 2
    (folder / "2" / "summary.json").write_text('{"steps": 0}')  # interrupted: goes on
    with pytest.raises(FileExistsError):  # of the stand-in
        folds.main(overrides(tmp_path))
    assert [Path(command[4]).name for command in started[2:]] == ["2"]


def test_other_settings_are_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.subprocess, "run", fake(tmp_path, []))
    folds.main(overrides(tmp_path))
    with pytest.raises(UserError, match="another overrides"):
        folds.main([*overrides(tmp_path), ("optimizer.lr", "1e-4")])
    FLAGS.folds = 3
    with pytest.raises(UserError, match="another folds"):
        folds.main(overrides(tmp_path))
    with pytest.raises(UserError, match=r"data\.fold"):
        folds.main([("data.fold", "1/2")])
    FLAGS.config, FLAGS.workdir = "tests/configs/tiny.py", str(tmp_path / "other")
    with pytest.raises(UserError, match="running text"):
        folds.main([])
    assert not (tmp_path / "other").exists()


def test_a_note_that_was_cut_is_told(tmp_path):
    (tmp_path / "folds.json").write_text('{"config": "x", ')
    with pytest.raises(UserError, match=r"folds\.json: no valid JSON"):
        folds.begin(tmp_path, {"config": "x"})


def test_labels_that_need_no_telling_or_cannot_be_told(tmp_path):
    config = load(CONFIG)
    told = replace(config, objective=replace(config.objective, labels=("bad", "good", "so-so")))
    assert folds.labels_of(told, [], 2) == []
    assert folds.labels_of(load(f"{CONFIG}:kind=number"), [], 2) == []
    ((name, value),) = folds.labels_of(load("tests/configs/tiny_tag.py"), [], 2)
    assert (name, value.split(",")[0]) == ("objective.labels", "O")
    path = tmp_path / "odd.csv"
    path.write_text('text,label\nx,"a, b"\ny,c\nz,d\n')
    with pytest.raises(UserError, match=r"set objective\.labels in the config"):
        folds.labels_of(override(config, [("data.source.path", str(path))]), [], 2)


def test_every_text_to_write_is_answered():
    assert folds.whole_answers(load("tests/configs/tiny_text2text.py")) == [("objective.reply.most", "0")]
    assert folds.whole_answers(load(CONFIG)) == []


@pytest.mark.parametrize("module", ["launch.folds", "launch.finetune"])
def test_help_lists_the_flags(module):
    done = command(module, "--help")
    assert "\n  --workdir=TEXT " in done.stdout


def test_a_prediction_of_other_data_is_told():
    data = prepare(load(CONFIG).data).validation.examples
    some = [{"where": one.where} for one in data]
    assert [place for place, _ in folds.matched(some[1::2], data, range(len(data)))] == [1, 3]  # some count nothing
    with pytest.raises(UserError, match="the data changed"):
        folds.matched([{"where": "elsewhere:1"}], data, range(len(data)))


@pytest.mark.slow
def test_two_folds_trained(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))
    folds.main([*overrides(tmp_path), ("stop.patience", "1")])
    consistent(tmp_path / "folds")
    trained = capfd.readouterr().out
    assert Counter(line.partition(":")[0] for line in trained.splitlines())["classify"] == 2
    folds.main([*overrides(tmp_path), ("stop.patience", "1")])
    assert "classify:" not in capfd.readouterr().out
