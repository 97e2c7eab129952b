"""Compressed files of text: the same corpus as the plain file, and one line for a damaged archive."""

import gzip
import json
from pathlib import Path

import pyarrow
import pytest

from lm.data.corpus import tokenise
from lm.data.corpus.corpus import Data
from lm.data.corpus.prepare import prepare
from lm.data.files import Files
from lm.data.packed import Unpacked
from lm.data.sources import pairs_from, source_from
from lm.data.text.files import Text
from lm.data.text.tables import Table
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError

ROWS = [{"text": f"text {i} é\n" * (1 + i % 7), "source": f"a {i}", "target": f"b, {i}"} for i in range(60)]
PLAIN = {
    "a.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "a.csv": "source,target\n" + "".join(f'"{row["source"]}\n","{row["target"]}"\n' for row in ROWS),
    "a.txt": "\ufeff" + "".join(f"line {i} é\n{chr(10) * (i % 3)}" for i in range(90)),
    "long.txt": "one document " * 300_000,  # several pieces, without a line end
}
SOURCES = {
    "a.jsonl": source_from,
    "a.csv": pairs_from,
    "a.txt": lambda path: Text(path=path, documents="blank"),
    "long.txt": source_from,
}


def pack(path: Path, text: str, members: int = 2) -> Path:
    """Write a file of several members, as `cat a.gz b.gz` makes one."""
    raw = text.encode()
    size = -(-len(raw) // members)
    parts = [raw[at : at + size] for at in range(0, len(raw), size)]
    if path.suffix == ".gz":
        path.write_bytes(b"".join(map(gzip.compress, parts)))
    else:
        codec = pyarrow.Codec("zstd")
        path.write_bytes(b"".join(codec.compress(part, asbytes=True) for part in parts))
    return path


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize("name", PLAIN)
def test_a_compressed_file_is_the_corpus_of_the_plain_one(tmp_path, name, ending, monkeypatch):
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    (tmp_path / name).write_text(PLAIN[name], newline="")
    packed = pack(tmp_path / f"{name}{ending}", PLAIN[name])
    one, two = (prepare(Data(source=SOURCES[name](str(path)), tokenizer=Bytes())) for path in (tmp_path / name, packed))
    assert one.folder != two.folder
    assert one.sha256 == two.sha256
    for stream in ("train-0", "validation"):
        for kind in ("bin", "starts"):
            assert (one.folder / f"{stream}.{kind}").read_bytes() == (two.folder / f"{stream}.{kind}").read_bytes()


def test_labelled_records_and_column_names(tmp_path):
    path = pack(tmp_path / "a.tsv.zst", "text\tlabel\nfine\tgood\n", 1)
    assert [record.values for record in Files(str(path)).records()] == [{"text": "fine", "label": "good"}]
    with pytest.raises(UserError, match=r"a\.tsv\.zst:1: no column 'none'"):
        len(Table(path=str(path), fields=("none",)).open())


def test_ranges_in_any_order(tmp_path):
    raw = bytes(range(256)) * 20_000
    (tmp_path / "a.gz").write_bytes(gzip.compress(raw))
    text = Unpacked(str(tmp_path / "a.gz"))
    for low, high in ((0, 3), (4_000_000, 4_000_999), (4_000_100, 4_000_200), (5, 9), (5_119_000, 5_120_000)):
        assert text[low:high] == raw[low:high]
        assert text.find(b"\x07", low, high) == raw.find(b"\x07", low, high)
    assert (len(text), text[300]) == (len(raw), raw[300])


def damage(raw: bytes, kind: str) -> bytes:
    changed = bytearray(raw)
    changed[len(raw) // 2] ^= 0xFF
    return {"cut": raw[: len(raw) * 2 // 3], "empty": b"", "flipped": bytes(changed), "plain": b"plain text\n"}[kind]


@pytest.mark.parametrize("kind", ["cut", "empty", "flipped", "plain"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.csv.zst"])
def test_a_damaged_archive_is_named(tmp_path, name, kind):
    plain = name.rpartition(".")[0]
    path = pack(tmp_path / name, PLAIN[plain], 1)
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(UserError, match=rf"{name} is no (gzip|zstd) file, or damaged \(.+\); fetch it again"):
        prepare(Data(source=SOURCES[plain](str(path)), tokenizer=Bytes()), cache=tmp_path / "cache")


def test_an_error_in_a_line_has_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenise, "BATCH_PARTS", 7)
    path = pack(tmp_path / "a.jsonl.gz", PLAIN["a.jsonl"] + "{broken\n")
    with pytest.raises(UserError, match=rf"a\.jsonl\.gz:{len(ROWS) + 1}: "):
        prepare(Data(source=source_from(str(path)), tokenizer=Bytes()), cache=tmp_path / "cache")
