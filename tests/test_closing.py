"""The last lines of a run name commands that its objective has, and no others."""

from pathlib import Path

import pytest

from lm.closing import closing
from lm.config import load
from tests.objectives.test_contract import prepared

NEXT = {
    "tiny_masked": ("fill", "measure", "look inside", "train on", "export as bert"),
    "tiny_classify": ("answer", "measure", "train on", "export as megatron-bert"),
    "tiny_lstm": ("write", "measure", "train on"),
}


@pytest.mark.parametrize("name", NEXT)
def test_commands_are_those_of_the_objective(name):
    config = prepared(Path(f"tests/configs/{name}.py"))[0]
    first, heading, *rest = closing(config, Path("runs/a b"), {"steps": 1200, "seconds": 61.0}, (800, 3.21))
    assert first == "1,200 steps in 1:01  best validation/loss 3.21 at step 800  folder runs/a b"
    assert heading == "next:"
    assert tuple(line.partition("python")[0].strip() for line in rest) == NEXT[name]
    assert all("--workdir='runs/a b'" in line for line in rest)


def test_without_held_out_text_no_best_is_named():
    config = load("gpt_nano")
    assert "best" not in closing(config, Path("r"), {"steps": 1, "seconds": 1.0}, None)[0]
