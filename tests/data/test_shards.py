"""Shards: the same corpus whoever prepares them, in any order, killed or damaged."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lm.config import load, override
from lm.data.corpus import shards, tokenise
from lm.data.corpus.corpus import Data
from lm.data.corpus.joined import Extent, Joined
from lm.data.corpus.prepare import prepare, prepare_portion
from lm.data.sources import Mixture
from lm.data.text.files import JsonLines, Text
from lm.data.text.parquet import Parquet
from lm.data.text.tables import Table
from lm.data.text.words import Given
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters
from lm.errors import UserError
from lm.objectives.base import resolve, training_batches
from tests.data.test_prepare import KILLING
from tests.processes import command
from tests.studies.test_slurm import needs_slurm
from tests.studies.virtual_cluster import virtual_cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture
def texts(tmp_path) -> Path:
    """Nine files of each format."""
    for number in range(9):
        texts = [f"file {number} has text {i} of a list\n" * (1 + i % 4) for i in range(12)]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        (tmp_path / f"{number}.txt").write_text("\n".join(texts))
        (tmp_path / f"{number}.csv").write_text("source,target\n" + "".join(f"a {i},b {number}\n" for i in range(60)))
    lines = "".join((tmp_path / f"{number}.jsonl").read_text() for number in range(9))
    (tmp_path / "all.jsonl").write_text(f"\ufeff{lines}" + json.dumps({"text": "the last line " * 99}), encoding="utf-8")
    rows = pyarrow.table({"text": [f"row {i} of a table" for i in range(300)]})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet", row_group_size=30)
    return tmp_path


def kinds(folder: Path) -> dict[str, Data]:
    lines = JsonLines(path=f"{folder}/[0-9].jsonl")
    mixture = Mixture(sources=(lines, Text(path=f"{folder}/*.txt", documents="blank")), weights=(3.0, 1.0))
    return {
        "bytes": Data(source=lines, tokenizer=Bytes(), validation=0.2),
        "trained": Data(source=lines, tokenizer=BytePair(vocab=300), validation=0.1),
        "no separator": Data(source=lines, tokenizer=Characters(), validation=0.1),
        "mixture": Data(source=mixture, tokenizer=BytePair(vocab=300), validation=0.1),
        "validation": Data(source=lines, tokenizer=Bytes(), validation=Text(path=f"{folder}/*.txt")),
        "marks": Data(source=lines, tokenizer=Bytes(), validation=0.2, words=Given()),
        "table": Data(source=Table(path=f"{folder}/*.csv", fields=("source", "target")), tokenizer=Bytes(), validation=0.2),
        "one file": Data(source=JsonLines(path=f"{folder}/all.jsonl"), tokenizer=Bytes(), validation=0.2),
        "lines": Data(source=Text(path=f"{folder}/all.jsonl", documents="line"), tokenizer=Bytes(), validation=0.2),
        "parquet": Data(source=Parquet(path=f"{folder}/a.parquet"), tokenizer=Bytes(), validation=0.2),
    }


def assert_same(one, two):
    assert (one.bytes, one.name, one.tokenizer.sha256()) == (two.bytes, two.name, two.tokenizer.sha256())
    pairs = [(a, b) for (_, a), (_, b) in zip(one.train, two.train, strict=True)] + [(one.validation, two.validation)]
    for a, b in pairs:
        assert (len(a), a.documents, a.raw_bytes, a.tokens.dtype) == (len(b), b.documents, b.raw_bytes, b.tokens.dtype)
        np.testing.assert_array_equal(a.tokens[:], b.tokens[:])
        np.testing.assert_array_equal(a.starts, b.starts)
        assert (a.marks is None) == (b.marks is None)
        if a.marks is not None:
            np.testing.assert_array_equal(a.marks[:], b.marks[:])
        for half in (False, True):
            np.testing.assert_array_equal(a.half(half).tokens[:], b.half(half).tokens[:])


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but the times that are remembered."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "seen.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", kinds(Path()))
def test_any_number_of_workers_makes_the_corpus_of_one(texts, kind, monkeypatch):
    data = kinds(texts)[kind]
    whole = prepare(data, texts / "whole")
    monkeypatch.setattr(shards, "SHARD", 2500)
    alone = prepare(data, texts / "alone")
    count = json.loads((alone.folder / "corpus.json").read_text())["shards"]
    assert count >= 3
    assert_same(whole, alone)
    for workers, order in ((3, (0, 1, 2)), (5, (3, 0, 4, 2, 1)), (20, range(19, -1, -1))):
        found = [prepare_portion(data, (i, workers), texts / str(workers)) for i in order]
        ready = [corpus for corpus in found if corpus is not None]
        assert (found[0] is None, ready[0].sha256) == (True, alone.sha256)
        assert files_of(ready[0].folder) == files_of(alone.folder)
        assert not [path for path in ready[0].folder.parent.iterdir() if path.suffix in (".partial", ".shards")]


def test_lines_of_a_range_have_their_numbers(texts, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 2500)
    path = texts / "all.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[100] = '{"text": 5}'
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"all\.jsonl:101: field 'text' is int"):
        prepare(kinds(texts)["one file"], texts / "c")


def test_a_run_finds_the_same_batches(texts, monkeypatch):
    def batches():
        config = override(load(f"tests/configs/tiny.py:text={texts}/[0-9].jsonl"), [("batch", "4")])
        config, corpus = resolve(config, prepare(config.data))
        return corpus, [training_batches(config, corpus, (0, 4))[step] for step in (0, 1, 7, 400)]

    monkeypatch.setenv("LM_CACHE", str(texts / "whole"))
    whole, expected = batches()
    monkeypatch.setenv("LM_CACHE", str(texts / "shards"))
    monkeypatch.setattr(shards, "SHARD", 2500)
    joined, found = batches()
    assert isinstance(joined.train[0][1].tokens, Joined)
    assert not isinstance(whole.train[0][1].tokens, Joined)
    for one, two in zip(expected, found):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_shards_are_skipped_and_only_those_read_are_opened(texts, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 1500)
    data, lines = kinds(texts)["bytes"], []
    assert prepare_portion(data, (1, 3), texts / "c", lines.append) is None
    assert "shard 2 of 9" in lines
    first = len(lines)
    with monkeypatch.context() as patch:
        patch.setattr(tokenise.Tokenisation, "run", lambda self: pytest.fail("tokenised again"))
        assert prepare_portion(data, (1, 3), texts / "c", lines.append) is None
    assert lines[first:] == ["3 of 9 shards are prepared"]
    tokens = prepare(data, texts / "c").train[0][1].tokens
    assert not tokens.maps
    tokens[len(tokens) - 9 : len(tokens) - 1]
    assert list(tokens.maps) == [8]


def test_a_damaged_or_changed_shard_is_prepared_anew(texts, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 1500)
    data, lines = kinds(texts)["bytes"], []
    expected = files_of(prepare(data, texts / "straight").folder)
    assert prepare_portion(data, (0, 2), texts / "c") is None
    (work,) = (texts / "c" / "corpora").glob("*.shards")
    (work / "00002" / "train-0.bin").write_bytes(b"x")
    again = prepare(data, texts / "c", lines.append)
    assert files_of(again.folder) == expected
    assert "shard 3 of 9 is damaged, or of another text: it is prepared anew" in lines
    for name in ("00004/train-0.bin", "train-0.starts", "validation.json", "00001/validation.bin"):
        (again.folder / name).unlink()
        assert files_of(prepare(data, texts / "c", lines.append).folder) == expected
        assert "set aside as" in next(line for line in reversed(lines) if "damaged" in line)


def test_a_copied_text_is_compared_shard_by_shard(texts, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 1500)
    data, lines = kinds(texts)["bytes"], []
    first, path, times = prepare(data, texts / "c"), texts / "3.jsonl", os.stat(texts / "3.jsonl")
    raw = path.read_bytes()
    for content, same in ((raw, True), (raw.replace(b"file 3", b"FILE 3"), False)):
        path.unlink()
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert (prepare(data, texts / "c", lines.append).sha256 == first.sha256) == same
        assert any("comparing their text" in line for line in lines)


WORKER = f"""{KILLING}
    from lm.data.corpus import shards
    from lm.data.corpus.prepare import prepare_portion

    path, cache, number, count, kill_at = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    shards.SHARD, tokenise.BATCH_PARTS = 1500, 3
    data = Data(source=JsonLines(path=path), tokenizer=BytePair(vocab=300), validation=0.1)
    corpus = prepare_portion(data, (number, count), cache)
    print(calls, corpus and corpus.sha256)
"""


def test_workers_killed_at_any_moment_go_on(texts, monkeypatch):
    monkeypatch.setattr(shards, "SHARD", 1500)
    script = texts / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    straight = prepare(kinds(texts)["trained"], texts / "straight")

    def start(number: int, count: int, kill_at: int) -> subprocess.Popen:
        line = [sys.executable, str(script), f"{texts}/[0-9].jsonl", str(texts / "c"), *map(str, (number, count, kill_at))]
        return subprocess.Popen(line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)

    killed = [start(0, 2, 6), start(1, 2, 3)]  # within their second shard and their first, at once
    assert [process.wait() for process in killed] == [-signal.SIGKILL] * 2
    (work,) = (texts / "c" / "corpora").glob("*.shards")
    assert [path.name for path in sorted(work.glob("0*[0-9]"))] == ["00000"]
    assert {path.name for path in work.glob("*.partial")} == {"00001.partial", "00002.partial"}
    together = [start(0, 1, 0) for _ in range(2)]  # each takes the shards that the other has not
    out = [process.communicate()[0].split() for process in together]
    assert [words[1] for words in out] == [straight.sha256] * 2
    assert sum(int(words[0]) for words in out) == 9 * 4 - 4 - 1 - 2  # batches that were not written before
    folder = texts / "c" / "corpora" / straight.folder.name
    assert files_of(folder) == files_of(straight.folder)


@pytest.mark.slow
def test_two_workers_killed_again_and_again(texts, monkeypatch):
    """At random moments: while the plan is made, within shards, between them, while they are joined."""
    script = texts / "worker.py"
    slowly = textwrap.dedent(WORKER).replace("calls += 1", "calls += 1\n    time.sleep(0.05)")
    script.write_text(slowly.replace("signal, sys\n", "signal, sys, time\n", 1))
    line = [sys.executable, str(script), f"{texts}/[0-9].jsonl", str(texts / "c")]
    environment, rng, kills = os.environ | {"PYTHONPATH": str(ROOT)}, np.random.default_rng(0), 0
    for _ in range(25):
        pair = [subprocess.Popen([*line, "0", "1", "0"], cwd=ROOT, env=environment) for _ in range(2)]
        for process, seconds in zip(pair, rng.uniform(0.5, 1.6, 2).tolist()):
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        if list(texts.glob("c/corpora/*/corpus.json")):
            break
    assert kills > 4
    monkeypatch.setattr(shards, "SHARD", 1500)
    data, lines = kinds(texts)["trained"], []
    assert files_of(prepare(data, texts / "c", lines.append).folder) == files_of(prepare(data, texts / "straight").folder)
    assert not any("aside" in line or "anew" in line for line in lines)


def test_joined_arrays_are_read_as_one(tmp_path):
    rng, parts = np.random.default_rng(0), []
    for k, size in enumerate((5, 0, 7, 1, 11)):
        parts.append(rng.integers(0, 60_000, size).astype("<u2"))
        parts[-1].tofile(tmp_path / str(k))
    extents = [Extent(tmp_path / str(k), min(1, k, len(part)), len(part)) for k, part in enumerate(parts)]
    flat = np.concatenate([part[min(1, k) :] for k, part in enumerate(parts)])
    joined = Joined(extents, np.dtype("<u2"))
    assert (len(joined), joined.nbytes, joined[-1]) == (len(flat), flat.nbytes, flat[-1])
    for low in range(len(flat) + 1):
        for high in range(low, len(flat) + 3):
            np.testing.assert_array_equal(joined[low:high], flat[low:high])
            stretch = joined.stretch(low, min(high, len(flat)))
            np.testing.assert_array_equal(stretch[:], flat[low:high])
    at = rng.integers(-len(flat), len(flat), (3, 4))
    np.testing.assert_array_equal(joined[at], flat[at])
    np.testing.assert_array_equal(joined[::3], flat[::3])
    np.testing.assert_array_equal(joined.astype(np.int64), flat.astype(np.int64))
    with pytest.raises(IndexError):
        joined[len(flat)]


def test_command(texts):
    config, cache = f"--config=tests/configs/tiny.py:text={texts}/[0-9].jsonl", {"LM_CACHE": str(texts / "cache")}
    other = command("lm.prepare", config, "--shard=2/2", variables=cache)
    assert (other.returncode, "up to portion 1" in other.stderr) == (0, True), other.stderr
    assert "other shards are missing" in other.stdout
    done = command("lm.prepare", config, "--shard=1/2", variables=cache)
    assert (done.returncode, "bytes/token" in done.stdout) == (0, True), done.stderr
    folder = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("files"))
    run = command("lm.main", config, "--dry_run", "--rows=1", variables=cache)
    assert run.returncode == 0, run.stderr
    assert [path.name for path in (texts / "cache" / "corpora").iterdir() if path.is_dir()] == [Path(folder).name]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shard=3/2"], "--shard=3/2: write 3/8 for the third of eight portions"),
        (["--shard=0/2"], "--shard=0/2: write 3/8"),
        (["--shard=a"], "--shard=a: write 3/8"),
        (["--config=tests/configs/tiny.py", "--vocab=9"], "--vocab: with --config they are its own"),
        (["--config=tests/configs/tiny_classify.py"], "labelled examples stay text"),
        (["--config.data.half=first"], "need a config"),
        (["--text=gs://bucket/a.txt"], "gs://bucket/a.txt: addresses are not read: mount the bucket as a folder"),
        (["--cache=gs://bucket/lm"], "gs://bucket/lm: the cache is a folder"),
    ],
)
def test_mistakes_are_one_line(flags, message):
    done = command("lm.prepare", *flags)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_several_processes_of_this_machine(texts):
    cache, lines = {"LM_CACHE": str(texts / "cache")}, f"--text={texts}/[0-9].jsonl"
    jobs = min(2, len(os.sched_getaffinity(0)))
    done = command("launch.prepare", lines, "--tokenizer=bytes", f"--jobs={jobs}", variables=cache)
    assert (done.returncode, "bytes/token" in done.stdout) == (0, True), done.stderr
    wrong = command("launch.prepare", "--text=none.txt", "--tokenizer=bytes", f"--jobs={jobs}", variables=cache)
    assert (wrong.returncode, wrong.stderr.count("none.txt does not exist")) == (2, 1)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="needs launch/requirements-beam.txt")
def test_a_pipeline_of_beam(texts):
    """In processes of its own: Beam imports modules anew in its workers, and so does this test's size of a shard."""
    (texts / "sitecustomize.py").write_text("from lm.data.corpus import shards\nshards.SHARD = 1500\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(texts)])}

    def start(module: str, *flags: str) -> subprocess.CompletedProcess:
        line = [sys.executable, "-m", module, f"--text={texts}/[0-9].jsonl", "--vocab=300", *flags]
        return subprocess.run(line, env=environment, cwd=texts, capture_output=True, text=True)

    assert start("lm.prepare", "--cache=alone").returncode == 0
    (expected,) = texts.glob("alone/corpora/*/")
    for mode in ("in_memory", "multi_processing"):
        flags = [f"--cache={mode}", "--portions=5", f"--beam=--direct_running_mode={mode}", "--beam=--direct_num_workers=2"]
        done = start("launch.beam", *flags)
        assert (done.returncode, "bytes/token" in done.stdout) == (0, True), done.stderr
        assert files_of(texts / mode / "corpora" / expected.name) == files_of(expected)
        assert (expected / "00008").is_dir()
    (texts / "5.jsonl").write_text("{broken\n")
    done = start("launch.beam", "--cache=broken", "--beam=--direct_running_mode=in_memory")
    assert (done.returncode, "5.jsonl:1: " in done.stderr.splitlines()[-1]) == (2, True), done.stderr


@pytest.mark.slow
@needs_slurm
def test_jobs_of_a_cluster(texts, monkeypatch):
    """An array of two jobs, one of them requeued as at its time limit, makes the corpus of one process."""
    (texts / "small.py").write_text(
        "import time\nfrom lm.data.corpus import shards, tokenise\nshards.SHARD, tokenise.BATCH_PARTS = 1500, 3\n"
        "run = tokenise.Tokenisation.run\n"
        "tokenise.Tokenisation.run = lambda self: time.sleep(0.7) or run(self)\n"
    )
    with tempfile.TemporaryDirectory(prefix="slurm-") as place, virtual_cluster(Path(place), 2) as cluster:
        path = os.pathsep.join([str(texts), cluster.variables["PYTHONPATH"]])
        variables = {**cluster.variables, "PYTHONPATH": path, "LM_CACHE": str(texts / "cache")}
        flags = [
            f"--text={texts}/[0-9].jsonl",
            "--tokenizer=bytes",
            "--validation=0.2",
            "--modules=small",
            f"--logs={texts}/logs",
        ]
        done = command("launch.prepare", *flags, "--backend=slurm", "--jobs=2", variables=variables, folder=texts)
        assert (done.returncode, "queued 2 portions as job" in done.stdout) == (0, True), done.stderr
        job = done.stdout.split("as job ")[1].split(";")[0]
        cluster.until(lambda: list((texts / "cache").glob("corpora/*.shards/0000[0-9]")))
        cluster.call("scancel", "--signal=USR2", f"{job}_1")
        cluster.until(lambda: cluster.restart_requeued() or not cluster.jobs())
        logs = "\n".join(path.read_text() for path in (texts / "logs").rglob("*_log.out"))
    assert "Caught signal SIGUSR2" in logs or "preempt" in logs, logs
    (folder,) = (path for path in (texts / "cache" / "corpora").iterdir() if path.is_dir())
    monkeypatch.setattr(shards, "SHARD", 1500)
    expected = prepare(kinds(texts)["bytes"], texts / "alone").folder
    assert (folder.name, files_of(folder)) == (expected.name, files_of(expected))
