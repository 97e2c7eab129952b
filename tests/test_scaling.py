"""Sizes of `launch.bench --scaling`: one changes at a time, in both stacks, at about as many tokens a step."""

from launch import scaling
from lm.config import load, override


def test_one_size_changes_at_a_time(monkeypatch, tmp_path):
    seen = []

    def timed(config, corpus, repeats):
        seen.append(config)
        figures = dict.fromkeys(("parameters", "tokens_per_second", "program_bytes", "step_flops"), 1e6)
        return {**figures, "step_seconds": 0.1}

    monkeypatch.setattr(scaling, "step", timed)
    sides = [(f"objective.model.{side}.vocab", "2048") for side in ("encoder", "decoder")]
    config = override(load("configs/bart_nano.py"), sides)
    found = list(scaling.points(config, None, 3, 1e9))
    assert [(point["size"], point["value"]) for point in found[:6]] == [
        ("width", 64), ("width", 128), ("width", 256), ("depth", 1), ("depth", 2), ("depth", 4),
    ]  # fmt: skip
    assert all(one.objective.model.encoder == one.objective.model.decoder for one in seen)
    assert {one.batch * one.objective.model.context for one in seen} == {config.batch * 128}
    assert scaling.cells(found[0])[3] == "100.0"
    scaling.draw(found, "steps", 1e9, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
