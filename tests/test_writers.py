"""The log of a run: never a step twice, readable after a kill, TensorBoard files that an independent parse accepts."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import types
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.training.settings import Wandb
from lm.training.tensorboard import EventFile, crc32c, event, record, scalar_value, text_value
from lm.training.writers import MetricsLog, Writers, parse_metrics


def lines(workdir: Path) -> list[dict]:
    """Parse strictly: every line whole, and no NaN, which is not JSON."""

    def refuse(word: str):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_one_line_a_step_on_disk_at_once(tmp_path):
    with Writers(tmp_path, steps=20, tokens_per_step=64) as writers:
        writers.write(10, {"train/loss": 3.5})
        assert lines(tmp_path) == [{"step": 10, "train/loss": 3.5, "train/tokens": 640.0}]
        writers.write(10, {"eval/validation/loss": 3.25})
        writers.write(20, {"train/loss": 3.0})
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    assert lines(tmp_path)[0]["eval/validation/loss"] == 3.25


def test_same_step_may_shrink(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"loss": 3.123456789012345})
    log.write(1, {"loss": 3.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 3.0}]
    log.write(2, {"loss": 2.0})
    assert lines(tmp_path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}]


def test_steps_never_go_back(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(2, {"loss": 1.0})
    with pytest.raises(ValueError, match="step 1 logged after step 2"):
        log.write(1, {"loss": 1.0})


@pytest.mark.parametrize("torn", ["", '{"step": 40, "loss"', '{"step": 30, "lo', "\0\0\0\0", "[1]\n7\n"])
def test_resume_drops_later_steps_and_torn_lines(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 4.0}\n{"step": 20, "loss": 3.0}\n{"step": 30, "loss": 9.0}\n' + torn)
    log = MetricsLog(path, start=20)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    assert log.last == {"loss": 3.0}
    log.write(20, {"eval": 1.0})
    log.write(30, {"loss": 2.5})
    assert lines(tmp_path)[1:] == [{"step": 20, "loss": 3.0, "eval": 1.0}, {"step": 30, "loss": 2.5}]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]  # no temporary file left


def test_whole_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "loss": 4.0}')
    MetricsLog(path, start=10).write(20, {"loss": 3.0})
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]


def test_start_from_zero_clears_an_unsaved_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 4.0}\n')
    MetricsLog(tmp_path / "metrics.jsonl", start=0)
    assert lines(tmp_path) == []


def test_not_finite_is_null(tmp_path):
    with Writers(tmp_path, steps=1) as writers:
        writers.write(1, {"train/loss": math.nan, "a": math.inf, "b": -math.inf, "c": 1.0})
        writers.close({"steps": 1})
    expected = {"train/loss": None, "a": None, "b": None, "c": 1.0}
    assert lines(tmp_path) == [{"step": 1, **expected}]
    assert json.loads((tmp_path / "summary.json").read_text()) == {"steps": 1, **expected}


def test_foreign_nan_is_read_as_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": NaN}\n')
    MetricsLog(path, start=1)
    assert lines(tmp_path) == [{"step": 1, "loss": None}]


def test_summary_holds_last_values_across_resume(tmp_path):
    with Writers(tmp_path, steps=20) as writers:
        writers.write(10, {"train/loss": 4.0, "eval/validation/loss": 5.0})
    assert not (tmp_path / "summary.json").exists()
    with Writers(tmp_path, steps=20, start=10) as writers:
        writers.write(20, {"train/loss": 3.0})
        writers.close({"steps": 20, "corpus": {"name": "x"}})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"steps": 20, "corpus": {"name": "x"}, "train/loss": 3.0, "eval/validation/loss": 5.0}


def test_samples(tmp_path, capsys):
    for _ in range(2):  # the second time as a resumed run would: the step is sampled again, not twice
        with Writers(tmp_path, steps=10) as writers:
            writers.text(5, "first", "Grüße\n\x1b[31m")
            writers.text(5, "second", "b")
    assert (tmp_path / "samples" / "5.txt").read_text(encoding="utf-8") == (
        "--- first ---\nGrüße\n\x1b[31m\n\n--- second ---\nb\n\n"
    )
    assert "\x1b" not in capsys.readouterr().out


def test_other_processes_are_silent(tmp_path, capsys):
    workdir = tmp_path / "run"
    with Writers(workdir, steps=10, lead=False, wandb=Wandb()) as writers:
        writers.write(1, {"train/loss": 1.0})
        writers.text(1, "sample", "text")
        writers.say("hello")
        writers.close({"steps": 10})
    assert not workdir.exists()
    assert capsys.readouterr().out == ""


def test_kill_leaves_a_log_that_parses_and_resumes(tmp_path):
    program = (
        "import sys; from pathlib import Path; from lm.training.writers import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]))\n"
        "for step in range(1, 10**7):\n"
        "    log.write(step, {'train/loss': 1 / step})\n"
        "    log.write(step, {'eval/loss': 2 / step, 'words': step})\n"
        "    print(step, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, tmp_path / "metrics.jsonl"], stdout=subprocess.PIPE)
    for _ in range(500):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    found = lines(tmp_path)
    assert len(found) >= 500
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    assert all(len(line) == 4 for line in found[:-1])
    MetricsLog(tmp_path / "metrics.jsonl", start=300)
    assert len(lines(tmp_path)) == 300


def test_parse_of_missing_log(tmp_path):
    assert parse_metrics(tmp_path / "none.jsonl") == []


# TensorBoard ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # RFC 3720, B.4, and the check value of the CRC catalogue
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_vectors(data, crc):
    assert crc32c(data) == crc


def test_golden_bytes():
    summary = b"\x2a\x0c" + b"\x0a\x0a" + scalar_value("los", 1.5)
    assert scalar_value("los", 1.5) == b"\x0a\x03los\x15\x00\x00\xc0\x3f"
    assert event(1.0, 300, summary).hex() == "09000000000000f03f" + "10ac02" + "2a0c0a0a0a036c6f73150000c03f"
    # TFRecord of the file's first event, as TensorFlow writes it: {wall_time: 0, file_version: "brain.Event:2"}
    version = bytes.fromhex("090000000000000000") + b"\x1a\x0dbrain.Event:2"
    framed = record(version)
    assert framed[:12].hex() == "1800000000000000a37f4b22"
    assert framed[12:-4] == version
    assert len(framed) == 24 + 16


def read_fields(data: bytes) -> dict[int, list]:
    """Parse protobuf fields without a schema: number -> values (ints, bytes)."""
    fields: dict[int, list] = {}
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        size = {1: 8, 5: 4}.get(key & 7)
        if key & 7 == 0:
            value = varint()
        else:
            size = varint() if size is None else size
            value, at = data[at : at + size], at + size
        fields.setdefault(key >> 3, []).append(value)
    return fields


def read_events(folder: Path) -> list[dict[int, list]]:
    """Parse every event of a folder; the frames' lengths must add up."""
    events = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            events.append(read_fields(data[12 : 12 + size]))
            assert record(data[12 : 12 + size]) == data[: 16 + size]
            data = data[16 + size :]
    return events


def test_event_file_reads_back(tmp_path):
    file = EventFile(tmp_path, start=7)
    file.write(300, {"train/loss": 1.5, "huge": 1e300, "bad": math.nan})
    file.text(300, "sample", "a\n<b>é")
    file.close()
    version, start, scalars, text = read_events(tmp_path)
    assert version[3] == [b"brain.Event:2"]
    assert (start[2], start[7]) == ([8], [b"\x08\x01"])
    assert scalars[2] == [300]
    values = [read_fields(value) for value in read_fields(scalars[5][0])[1]]
    numbers = {value[1][0].decode(): struct.unpack("<f", value[2][0])[0] for value in values}
    assert numbers["train/loss"] == 1.5
    assert numbers["huge"] == math.inf
    assert math.isnan(numbers["bad"])
    value = read_fields(read_fields(text[5][0])[1][0])
    assert read_fields(value[8][0])[8] == ["    a\n    <b>é".encode()]
    assert read_fields(read_fields(value[9][0])[1][0])[1] == [b"text"]
    assert text_value("sample", "x") != text_value("sample", "y")


def test_writers_fill_tensorboard(tmp_path):
    with Writers(tmp_path, steps=2) as writers:
        writers.write(1, {"train/loss": 1.0})
        writers.text(1, "sample", "words")
    assert [event[2] for event in read_events(tmp_path / "tensorboard")] == [[0], [1], [1], [1]]


def test_a_run_of_a_study_has_hyperparameters(tmp_path):
    """Read back by protobuf's own Value: TensorBoard's HParams page lists arm, seed and the fields that differ."""
    from google.protobuf.struct_pb2 import Value

    label = {"study": "positions", "arm": "rotary", "seed": 3, "stage": "train", "fields": {"optimizer.lr": "0.001"}}
    (tmp_path / "arm.json").write_text(json.dumps(label))
    with Writers(tmp_path, steps=2):
        pass
    *_, last = read_events(tmp_path / "tensorboard")
    value = read_fields(read_fields(last[5][0])[1][0])
    assert value[1] == [b"_hparams_/session_start_info"]
    plugin = read_fields(read_fields(value[9][0])[1][0])
    assert plugin[1] == [b"hparams"]
    session = read_fields(read_fields(plugin[2][0])[3][0])
    assert session[4] == [b"positions/rotary"]
    entries = [read_fields(entry) for entry in session[1]]
    found = {entry[1][0].decode(): Value.FromString(entry[2][0]) for entry in entries}
    assert found["arm"].string_value == "rotary"
    assert found["seed"].number_value == 3
    assert found["optimizer.lr"].string_value == "0.001"


# W&B, with a module that stands in for it ----------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
    """Record what reaches W&B."""
    module = types.ModuleType("wandb")
    module.inits, module.logged, module.finished, module.summary = [], [], [], {}
    run = types.SimpleNamespace(
        log=module.logged.append,
        define_metric=lambda name, step_metric: module.inits[-1].update(axis=step_metric),
        summary=module.summary,
        finish=lambda exit_code: module.finished.append(exit_code),
    )
    module.init = lambda **options: module.inits.append(options) or run
    module.Html = lambda text: text
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb(tmp_path, wandb):
    (tmp_path / "config.json").write_text('{"seed": 3}')
    with Writers(tmp_path, steps=2, wandb=Wandb()) as writers:
        writers.write(1, {"train/loss": 1.0})
        writers.text(1, "sample", "<b>")
        writers.close({"steps": 2})
    assert wandb.logged == [{"step": 1, "train/loss": 1.0}, {"step": 1, "sample": "<pre>&lt;b&gt;</pre>"}]
    assert (wandb.summary, wandb.finished) == ({"steps": 2}, [0])
    assert wandb.inits[0]["config"] == {"seed": 3}
    assert wandb.inits[0]["axis"] == "step"
    assert [wandb.inits[0][name] for name in ("project", "group", "tags", "entity")] == ["lm", None, None, None]
    Writers(tmp_path, steps=2, start=1, wandb=Wandb()).close()
    assert wandb.inits[0]["id"] == wandb.inits[1]["id"]
    place = Wandb(project="ablations", group="swiglu", tags=("nano", "first"), entity="group")
    Writers(tmp_path, steps=2, start=1, wandb=place).close()
    assert wandb.inits[2].items() >= {"project": "ablations", "group": "swiglu", "entity": "group"}.items()
    assert wandb.inits[2]["tags"] == ["nano", "first"]


def test_wandb_learns_of_a_failure(tmp_path, wandb):
    def fail():
        with Writers(tmp_path, steps=2, wandb=Wandb()):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert wandb.finished == [1]


def test_wandb_only_when_asked(tmp_path, wandb):
    Writers(tmp_path, steps=2).close()
    assert wandb.inits == []


def test_wandb_missing_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 4.0}\n')
    with pytest.raises(UserError, match="pip install wandb"):
        Writers(tmp_path, steps=2, wandb=Wandb())
    assert len(lines(tmp_path)) == 1
