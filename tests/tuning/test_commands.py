"""Recipes as a user types them: a run with LoRA on a start, its line about what is trained, the merged export."""

import json
from pathlib import Path

import numpy as np
import pytest

from lm.config import read_config
from lm.convert.convert import load as load_folder
from lm.convert.runs import export_run, opened
from lm.models.lora import Lora
from lm.models.merge import merged
from lm.training import parameters
from tests.processes import command as start

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A classifier with BERT's shape trained for three steps; then another on it, with factors and two dropout passes."""
    folder = tmp_path_factory.mktemp("runs")
    shape = ["placement=post", "embed_norm=true", "activation=gelu", "init_positions=0.02"]
    first = start(
        "lm.main", "--config=tests/configs/tiny_classify.py", f"--workdir={folder / 'first'}",
        *(f"--config.objective.model.{field}" for field in shape),
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    second = start(
        "lm.main", "--config=tests/configs/tiny_regularised.py", f"--workdir={folder / 'second'}",
        f"--config.start={folder / 'first'}",
        "--config.objective.objective.model.lora.rank=2", "--config.objective.objective.model.lora.targets=attention,mlp",
        "--config.objective.smoothness=0",
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    return folder, second.stdout


def test_only_factors_and_head_move(runs):
    folder, said = runs
    line = next(line for line in said.splitlines() if "trains " in line)
    (_, before, _), (_, after, _) = (opened(str(folder / name), None) for name in ("first", "second"))
    before, after = parameters.flat(before), parameters.flat(after)
    moved = {path for path in after if path not in before or not np.array_equal(after[path], before[path])}
    assert moved == {path for path in after if "lora" in path or path.startswith(("classifier", "pooler"))}
    assert f"trains {sum(after[path].size for path in moved):,} of {sum(x.size for x in after.values()):,} parameters" in line
    metrics = [json.loads(row) for row in (folder / "second" / "metrics.jsonl").read_text().splitlines()]
    assert any("train/rdrop" in row and "train/adversarial/loss" in row for row in metrics)
    assert any("eval/validation/accuracy" in row for row in metrics)


def test_the_export_is_merged(runs):
    folder, _ = runs
    config, params, _ = opened(str(folder / "second"), None)
    export_run(folder / "second", folder / "out")
    assert not (Path(folder) / "out.partial").exists()
    found = parameters.flat(load_folder(folder / "out", task=config.objective.task).params)
    plain, expected = merged(config.objective.model, params)
    assert plain.lora == Lora() != config.objective.model.lora
    for path, x in parameters.flat(expected).items():
        if not path.startswith(("stack/norm",)):
            theirs = np.asarray(found[path])
            assert np.array_equal(theirs, np.asarray(x)[: len(theirs)]), path
    assert read_config(folder / "second").objective.rdrop == 1.0


def test_a_target_that_is_not_there_is_one_line(tmp_path):
    done = start(
        "lm.main", "--config=tests/configs/tiny_classify.py", f"--workdir={tmp_path / 'run'}",
        "--config.objective.model.lora.rank=2", "--config.objective.model.lora.targets=quary",
    )  # fmt: skip
    assert done.returncode == 2
    assert "quary" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
