"""The example of a loop of one's own trains as `lm.main` does."""

import json

import numpy as np
import pytest

import lm
from lm.errors import UserError
from lm.training.state import chain
from tests.examples.own_loop import losses
from tests.processes import command


def test_its_losses_are_those_of_a_run(tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("".join(f"line {i} says that {i} and {i} make {2 * i}\n" for i in range(400)))
    config = f"tests/configs/tiny.py:text={text}"
    fields = {"steps": 4, "every.log": 1, "every.evaluate": 0, "every.sample": 0, "every.save": 0}
    done = command(
        "lm.main", f"--config={config}", f"--workdir={tmp_path / 'run'}", *(f"--config.{k}={v}" for k, v in fields.items())
    )
    assert done.returncode == 0, done.stderr
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    logged = {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    assert dict(losses(lm.config(config, **fields))) == logged


def test_an_optimizer_for_parameters_without_axes_is_refused():
    with pytest.raises(UserError, match=r"with their axes: lm\.training\.state\.abstract_params"):
        chain(lm.config("gpt_nano"), {"kernel": np.ones((2, 2))})
