"""Prepare: the stream's layout, the split, the cache, and what a kill leaves behind."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import Data
from lm.data.corpus import tokenise
from lm.data.corpus.prepare import prepare
from lm.data.corpus.split import Split, choose_split, position, split_parts
from lm.data.corpus.store import Tokens
from lm.data.sources import Mixture
from lm.data.text.files import JsonLines, Text
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters
from lm.data.types import Piece
from lm.errors import UserError
from lm.prepare import summary
from tests import processes

ROOT = Path(__file__).parents[2]
SHAKESPEARE = ROOT.parent / "shared" / "data" / "tiny_shakespeare.txt"


class Listed:
    """A reader of given documents, each a list of pieces."""

    name = "listed"

    def __init__(self, documents):
        self.pieces = [Piece(t, k == len(d) - 1) for d in documents for k, t in enumerate(d)]

    def __len__(self):
        return len(self.pieces)

    def __getitem__(self, i):
        return self.pieces[i]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_lines(path: Path, documents) -> JsonLines:
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    return JsonLines(path=str(path))


def documents_of(tokens: Tokens, tokenizer) -> list[str]:
    ends = [*tokens.starts[1:], len(tokens) - (tokens.separator is not None)]
    return [tokenizer.decode(tokens.tokens[a:b]) for a, b in zip(tokens.starts, ends, strict=True)]


@pytest.mark.parametrize("tokenizer", [Bytes(), BytePair(vocab=300), Characters()])
def test_every_document_is_stored_once(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenise, "BATCH_PARTS", 7)
    documents = [f"document {i} é\n" * (1 + i % 5) for i in range(100)] + ["", "document 3 é\n" * 4]
    corpus = prepare(Data(source=write_lines(tmp_path / "a.jsonl", documents), tokenizer=tokenizer, validation=0.3))
    train, held_out = corpus.train[0][1], corpus.validation
    found = documents_of(train, corpus.tokenizer) + documents_of(held_out, corpus.tokenizer)
    assert sorted(found) == sorted(d for d in documents if d)
    assert 15 < held_out.documents < 45
    assert train.raw_bytes + held_out.raw_bytes == corpus.bytes == sum(len(d.encode()) for d in documents)
    assert corpus.sha256 == hashlib.sha256("".join(documents).encode()).hexdigest()
    assert train.tokens.dtype == np.uint16
    twins = [d in documents_of(held_out, corpus.tokenizer) for d in (documents[3], documents[-1])]
    assert twins[0] == twins[1]
    assert not set(documents_of(train, corpus.tokenizer)) & set(documents_of(held_out, corpus.tokenizer))
    separator = corpus.tokenizer.separator
    if separator is not None:
        assert train.tokens[0] == train.tokens[-1] == separator
        assert (train.tokens[train.starts] == separator).all()
        assert (train.tokens == separator).sum() == train.documents + 1


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="tiny_shakespeare.txt is not here")
def test_tiny_shakespeare_is_split_as_the_field_does():
    corpus = prepare(Data(source=Text(path=str(SHAKESPEARE)), tokenizer=Characters(), validation=0.1))
    assert (len(corpus.train[0][1]), len(corpus.validation), corpus.tokenizer.vocab) == (1003854, 111540, 65)
    raw = SHAKESPEARE.read_bytes()
    assert (corpus.bytes, corpus.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert corpus.tokenizer.decode(corpus.validation.tokens) == raw.decode()[1003854:]
    assert corpus.train[0][1].starts.tolist() == [0]


@given(
    st.lists(st.text(alphabet="aé", max_size=7), min_size=1, max_size=9),
    st.sampled_from([0.0, 0.1, 0.5, 0.9]),
)
@settings(max_examples=300, deadline=None)
def test_no_text_is_lost_or_changes_order(documents, share):
    whole, pieces = documents, [[d[i : i + 3] for i in range(0, max(1, len(d)), 3)] for d in documents]
    reader = Listed(pieces)
    try:
        split = choose_split(reader, share)
    except UserError:  # nothing, too little, or all alike
        assert len({d[0] for d in pieces if d[0]}) <= 1
        return
    found = {False: [], True: []}
    for part in split_parts(reader, split):
        if part.first:
            found[part.held_out].append([])
        found[part.held_out][-1].append(part.text)
        if part.last:
            found[part.held_out][-1] = "".join(found[part.held_out][-1])
    if split.cut is not None:
        assert ["".join(found[False] + found[True])] == [d for d in whole if d]
        assert len(found[False]) == len(found[True]) == 1
        return
    assert all(isinstance(d, str) for side in found.values() for d in side)
    assert sorted(found[False] + found[True]) == sorted(d for d in whole if d)
    assert not set(found[False]) & set(found[True])
    assert bool(found[True]) == (share > 0)
    assert found[False]


def test_the_split_looks_only_at_the_beginning_of_a_document():
    long = "x" * (1 << 17)
    assert position(long + "a") == position(long + "b") != position("a" + long)
    assert 0 <= position("") < 1


def test_a_large_corpus_keeps_the_share_asked_for():
    reader = Listed([[f"document {i}"] for i in range(4000)])
    assert choose_split(reader, 0.05) == Split(below=0.05)
    assert 120 < sum(part.held_out for part in split_parts(reader, Split(below=0.05))) < 280


def test_the_second_time_comes_from_the_cache(tmp_path, monkeypatch):
    source = write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(30)])
    first = prepare(Data(source=source, tokenizer=Bytes()))
    with monkeypatch.context() as patch:
        patch.setattr("lm.data.corpus.tokenise.Tokenisation.run", lambda self: pytest.fail("tokenised again"))
        again = prepare(Data(source=source, tokenizer=Bytes()))
    assert again.folder == first.folder
    np.testing.assert_array_equal(again.train[0][1].tokens, first.train[0][1].tokens)
    others = [
        Data(source=source, tokenizer=BytePair(vocab=300)),
        Data(source=source, tokenizer=Bytes(), validation=0.5),
        Data(source=write_lines(tmp_path / "b.jsonl", ["x", "y"]), tokenizer=Bytes()),
    ]
    assert len({prepare(data).folder for data in others} | {first.folder}) == 4


def test_mixture_and_a_validation_source(tmp_path):
    one = write_lines(tmp_path / "a.jsonl", [f"first {i}" for i in range(9)])
    two = write_lines(tmp_path / "b.jsonl", [f"second {i}" for i in range(5)])
    mixture = Mixture(sources=(one, two), weights=(3.0, 1.0))
    apart = write_lines(tmp_path / "c.jsonl", ["held out", "too"])
    corpus = prepare(Data(source=mixture, tokenizer=Bytes(), validation=apart))
    assert [share for share, _ in corpus.train] == [0.75, 0.25]
    assert [tokens.documents for _, tokens in corpus.train] == [9, 5]
    assert documents_of(corpus.validation, corpus.tokenizer) == ["held out", "too"]
    shared = prepare(Data(source=mixture, tokenizer=Bytes(), validation=0.2))
    assert sum(t.documents for _, t in shared.train) + shared.validation.documents == 14
    assert all(name in summary(shared) for name in ("train 75%", "train 25%", "validation"))


# A process that dies within batch number `kill_at` of those it tokenises, which the rest of the script sets; 0: never.
KILLING = """
    import os, signal, sys
    from lm.data.corpus import tokenise
    from lm.data.corpus.corpus import Data
    from lm.data.text.files import JsonLines
    from lm.data.tokenizer.tokenizer import BytePair, Tokenizer

    encode, calls = Tokenizer.encode_batch, 0

    def encode_batch(self, texts):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(self, texts)

    Tokenizer.encode_batch = encode_batch
"""
KILLED = f"""{KILLING}
    from lm.data.corpus.prepare import prepare

    kill_at, path = int(sys.argv[1]), sys.argv[2]
    tokenise.BATCH_CHARACTERS = 2000
    corpus = prepare(Data(source=JsonLines(path=path), tokenizer=BytePair(vocab=300), validation=0.2))
    print(calls, corpus.sha256, corpus.train[0][1].header["sha256"])
"""


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, cache):
    documents = [f"document {i} " * (1 + i % 40) for i in range(150)]
    source = write_lines(tmp_path / "a.jsonl", documents)
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))

    def run(kill_at: int, folder: str):
        env = os.environ | {"LM_CACHE": str(tmp_path / folder), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(script), str(kill_at), source.path]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    straight = run(0, "straight").stdout.split()
    total = int(straight[0])
    assert total > 8
    for kill_at in (3, 2):
        assert run(kill_at, "killed").returncode == -signal.SIGKILL
        (partial,) = (tmp_path / "killed" / "corpora").glob("*.partial")
        # What a kill may leave after the last journal entry.
        with open(partial / "train-0.bin", "ab") as file:
            file.write(b"\xff" * 11)
        assert not list((tmp_path / "killed" / "corpora").glob("*/corpus.json"))
    resumed = run(0, "killed").stdout.split()
    assert int(resumed[0]) == total - 3
    assert resumed[1:] == straight[1:]
    for name in ("train-0.bin", "train-0.starts", "validation.bin", "tokenizer.json"):
        one, two = (next((tmp_path / f / "corpora").glob(f"*/{name}")) for f in ("straight", "killed"))
        assert one.read_bytes() == two.read_bytes(), name


def test_a_journal_ahead_of_its_files_starts_again(tmp_path, monkeypatch):
    """After a power cut the journal may be on disk and the tokens not."""
    monkeypatch.setattr(tokenise, "BATCH_PARTS", 5)
    data = Data(source=write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(30)]), tokenizer=Bytes())
    with monkeypatch.context() as patch:
        patch.setattr(tokenise.Tokenisation, "_finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(data)
    (partial,) = (tmp_path / "cache" / "corpora").glob("*.partial")
    (partial / "train-0.bin").write_bytes(b"")
    corpus = prepare(data)
    assert corpus.train[0][1].documents + corpus.validation.documents == 30


def test_two_processes_at_once(tmp_path):
    source = write_lines(tmp_path / "a.jsonl", [f"document {i} " * 50 for i in range(400)])
    code = (
        "import sys\nfrom lm.data.corpus.corpus import Data\nfrom lm.data.corpus.prepare import prepare\n"
        "from lm.data.text.files import JsonLines\nfrom lm.data.tokenizer.tokenizer import BytePair\n"
        "c = prepare(Data(source=JsonLines(path=sys.argv[1]), tokenizer=BytePair(vocab=500)))\n"
        "print(len(c.train[0][1]), c.train[0][1].documents, c.train[0][1].header['sha256'])"
    )
    command = [sys.executable, "-c", code, source.path]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    out = [p.communicate()[0] for p in both]
    assert out[0]
    assert out == [out[0]] * 3
    assert [p.returncode for p in both] == [0] * 3


@pytest.mark.parametrize(
    "name", ["train-0.bin", "train-0.starts", "train-0.json", "validation.bin", "tokenizer.json", "corpus.json"]
)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_cache_is_set_aside_and_made_anew(tmp_path, name, damage):
    data = Data(source=write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(30)]), tokenizer=Bytes())
    first, lines = prepare(data), []
    path = first.folder / name
    whole = {file.name: file.read_bytes() for file in first.folder.iterdir() if file.name != "seen.json"}
    raw = bytearray(whole[name])
    raw[len(raw) // 2] ^= 1
    path.unlink()  # what is mapped stays as it was
    if damage != "gone":
        path.write_bytes(bytes(raw) if damage == "flipped" else bytes(raw[: len(raw) // 2]))
    again = prepare(data, report=lines.append)
    assert "set aside as" in lines[0]
    assert "damaged" in lines[0] or "cut short" in lines[0]
    assert {file: (again.folder / file).read_bytes() for file in whole} == whole
    (aside,) = again.folder.parent.glob("*.aside-1")
    assert (aside / name).exists() == (damage != "gone")


def test_a_text_changed_behind_its_time_is_prepared_anew(tmp_path):
    """As `touch -r` leaves it; a copy that kept its time is compared once, and served."""
    documents = [f"text {i}" for i in range(30)]
    source = write_lines(tmp_path / "a.jsonl", documents)
    data, times, lines = Data(source=source, tokenizer=Bytes()), os.stat(source.path), []
    first = prepare(data, report=lines.append)

    def touched(content):
        os.replace(write_lines(tmp_path / "b.jsonl", content).path, source.path)
        os.utime(source.path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return prepare(data, report=lines.append)

    assert touched(documents).sha256 == first.sha256
    assert "comparing their text" in lines[-1]
    assert touched([d.replace("text", "TEXT") for d in documents]).sha256 != first.sha256
    assert "another text" in lines[-1] or "another text" in lines[-2]
    before = len(lines)
    prepare(data, report=lines.append)
    assert len(lines) == before


@pytest.mark.parametrize("journal", ["", "[1]", "{}", '{"stream": "x"}'])
def test_a_strange_journal_or_folder_is_no_obstacle(tmp_path, journal, monkeypatch):
    data = Data(source=write_lines(tmp_path / "a.jsonl", ["a", "b", "c"]), tokenizer=Bytes())
    with monkeypatch.context() as patch:
        patch.setattr(tokenise.Tokenisation, "_finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(data)
    (partial,) = (tmp_path / "cache" / "corpora").glob("*.partial")
    (partial / "journal.json").write_text(journal)
    partial.with_suffix("").mkdir()  # a final folder without its corpus.json
    corpus = prepare(data)
    shutil.rmtree(corpus.folder)
    partial.write_text("a file where a folder should be")
    assert prepare(data).sha256 == corpus.sha256


def test_verify_reads_streams_of_any_size(tmp_path, monkeypatch):
    data = Data(source=write_lines(tmp_path / "a.jsonl", [f"text {i}" for i in range(30)]), tokenizer=Bytes())
    folder = prepare(data).folder
    monkeypatch.setattr("lm.data.corpus.store.VERIFIED", 0)
    raw = bytearray((folder / "train-0.bin").read_bytes())
    raw[9] ^= 1
    (folder / "train-0.bin").unlink()
    (folder / "train-0.bin").write_bytes(raw)
    lines = []
    prepare(data, report=lines.append)
    assert not lines
    prepare(data, report=lines.append, whole=True)
    assert "checksum does not fit" in lines[0]


@pytest.mark.parametrize(
    ("documents", "validation", "message"),
    [
        ([], 0.05, "has no text"),
        (["", ""], 0.05, "has no text"),
        (["x"], 0.05, "too few to hold out"),
        (["same", "same", "same"], 0.05, "all 3 documents begin alike"),
    ],
)
def test_corpora_that_cannot_be_split(tmp_path, cache, documents, validation, message):
    with pytest.raises(UserError, match=message):
        prepare(Data(source=write_lines(tmp_path / "a.jsonl", documents), tokenizer=Bytes(), validation=validation))
    assert not list(cache.glob("corpora/*/corpus.json"))


def test_wrong_choices():
    with pytest.raises(UserError, match="validation=1"):
        Data(validation=1.0)
    with pytest.raises(UserError, match="'documents' or 'windows'"):
        Data(packing="best")


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set LM_CACHE"):
        prepare(Data(source=write_lines(tmp_path / "a.jsonl", ["a", "b"])), cache=tmp_path / "file")


def command(*flags: str):
    return processes.command("lm.prepare", *flags)


def test_command_line(tmp_path):
    (tmp_path / "a.txt").write_text("some text to prepare\n" * 50)
    done = command(f"--text={tmp_path}/a.txt", "--tokenizer=bytes", f"--cache={tmp_path}/c", "--validation=0.1")
    assert done.returncode == 0, done.stderr
    assert "bytes/token" in done.stdout
    assert str(tmp_path / "c") in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text={0}/none.txt"], "none.txt does not exist"),
        (["--text={0}/bad.txt"], "byte 3 (0xff) is not UTF-8"),
        (["--text={0}/good.txt", "--tokenizer=words"], "tokenizer=words: use bytes"),
        (["--data=lm1b"], "write data=tfds:NAME"),
    ],
)
def test_command_line_mistakes_are_one_line(tmp_path, flags, message):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    (tmp_path / "good.txt").write_bytes(b"abc def")
    done = command(*(flag.format(tmp_path) for flag in flags))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
