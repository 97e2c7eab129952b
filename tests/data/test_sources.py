"""Sources: what is read, in which pieces, and what a user is told when it cannot be."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lm.data.files
from lm.data.demo import Documentation
from lm.data.sources import Mixture, source_from
from lm.data.text import files
from lm.data.text.files import JsonLines, Text
from lm.data.text.parquet import Parquet
from lm.data.text.tfds import Tfds
from lm.errors import UserError


def texts(source) -> list[str]:
    """Join the pieces of each document."""
    reader, found, parts = source.open(), [], []
    for i in range(len(reader)):
        text, end = reader[i][:2]
        parts.append(text)
        if end:
            found.append("".join(parts))
            parts = []
    assert not parts, "the last document never ended"
    return found


def test_importing_the_data_room_stays_light():
    modules = ["sources", "tokenizer.tokenizer", "corpus.prepare", "rows.pipeline", "text.tfds", "demo"]
    code = "import sys\n" + "".join(f"import lm.data.{m}\n" for m in modules)
    code += "print([m for m in ('jax', 'grain', 'tensorflow_datasets', 'pyarrow', 'tokenizers') if m in sys.modules])"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "[]\n"


def test_documentation_is_english_without_duplicates():
    found = texts(Documentation())
    assert sum(map(len, found)) > 1_500_000
    assert any("def json.loads(s" in text and "Deserialize ``s``" in text for text in found)
    assert len(set(found)) == len(found)
    assert Documentation().open().signature() == Documentation().open().signature()


def test_documentation_of_packages():
    reader = Documentation(packages=("hypothesis",)).open()
    reader.roots = reader.roots[1:]
    assert any("class hypothesis.core.HypothesisHandle" in text for text in reader.documents)
    with pytest.raises(UserError, match="no_such_package"):
        Documentation(packages=("no_such_package",)).open()


@pytest.mark.parametrize("documents", ["file", "line", "blank"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_text_documents(tmp_path, documents, ending):
    raw = ending.join(["", "one", "two é", "", "", "three 中文", ""])
    (tmp_path / "a.txt").write_bytes(raw.encode())
    want = {
        "file": [raw],
        "line": ["", "one", "two é", "", "", "three 中文"],
        "blank": [f"one{ending}two é", "three 中文"],
    }[documents]
    assert texts(Text(path=str(tmp_path / "a.txt"), documents=documents)) == want


def test_long_documents_come_in_pieces_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 100)
    monkeypatch.setattr(lm.data.files, "BLOCK", 64)  # lines are found across its borders
    raw = "\n".join("line é中 " * (i % 9) for i in range(200)) + "\n\n" + "中" * 700 + "\nend"
    (tmp_path / "a.txt").write_text(raw)
    for documents in ("file", "blank", "line"):
        reader = Text(path=str(tmp_path / "a.txt"), documents=documents).open()
        pieces = [reader[i] for i in range(len(reader))]
        assert max(len(p.text.encode()) for p in pieces) <= 200
        assert "\n".join(texts(Text(path=str(tmp_path / "a.txt"), documents="line"))) == raw
    whole = Text(path=str(tmp_path / "a.txt")).open()
    assert [whole[i].end for i in range(len(whole))] == [False] * (len(whole) - 1) + [True]
    assert all(whole[i].text.endswith("\n") or "中中" in whole[i].text for i in range(len(whole) - 1))
    assert texts(Text(path=str(tmp_path / "a.txt"))) == [raw]


def test_globs_lists_marks_and_empty_files(tmp_path):
    for name, content in {"b.txt": b"B", "a.txt": b"\xef\xbb\xbfA", "c.txt": b"", "d.md": b"D"}.items():
        (tmp_path / name).write_bytes(content)
    assert texts(Text(path=f"{tmp_path}/*.txt,{tmp_path}/d.md")) == ["A", "B", "D"]


def test_signature_follows_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = Text(path=str(path)).open().signature()
    assert first == Text(path=str(path)).open().signature()
    path.write_text("other")
    assert first != Text(path=str(path)).open().signature()


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\\n"}\n\n{"text": "zwei \\u00e9", "n": 1}')
    assert texts(JsonLines(path=str(path))) == ["one\n", "", "zwei é"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "x"', r"a.jsonl:2: no valid JSON"),
        ('{"body": "x", "n": 1}', r"a.jsonl:2: no field 'text'; it has body, n"),
        ('{"text": 3}', r"a.jsonl:2: field 'text' is int"),
        ("[1]", r"a.jsonl:2: an object is needed, not a list"),
        ('{"text": "\\ud83d"}', r"a.jsonl:2: .*surrogate"),
    ],
)
def test_broken_json_lines_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        texts(JsonLines(path=str(path)))


def test_parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", None, "zwei é"] * 5, "n": range(15)}), path, row_group_size=4)
    assert texts(Parquet(path=str(path))) == ["one", "", "zwei é"] * 5
    reader = Parquet(path=str(path)).open()
    assert [reader[i].text for i in (14, 0, 7)] == ["zwei é", "one", ""]
    with pytest.raises(UserError, match="no column 'body'; it has text, n"):
        Parquet(path=str(path), column="body").open()
    with pytest.raises(UserError, match="column 'n' is int64, not string"):
        Parquet(path=str(path), column="n").open()
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"b\.parquet is not a Parquet file"):
        Parquet(path=str(tmp_path / "b.parquet")).open()


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.txt does not exist"):
        Text(path=str(tmp_path / "nothing.txt")).open()
    with pytest.raises(UserError, match="matches no file"):
        Text(path=str(tmp_path / "*.txt")).open()
    with pytest.raises(UserError, match="is a folder"):
        Text(path=str(tmp_path)).open()
    with pytest.raises(UserError, match="valid: file, line, blank"):
        Text(path="x", documents="page")


@pytest.mark.parametrize("before", [10, 250])
def test_bytes_that_are_not_utf8_are_placed(tmp_path, monkeypatch, before):
    monkeypatch.setattr(files, "PIECE", 100)
    monkeypatch.setattr(lm.data.files, "BLOCK", 16)
    (tmp_path / "a.txt").write_bytes(b"a line\n" * (before // 7) + b"caf\xe9\n")
    at = before // 7 * 7 + 3
    with pytest.raises(UserError, match=rf"a\.txt:{before // 7 + 1}: byte {at} \(0xe9\) is not UTF-8.*iconv"):
        texts(Text(path=str(tmp_path / "a.txt")))


@pytest.fixture(scope="module")
def local_text(tmp_path_factory):
    """Build a small array_record data set; return the folder that holds it."""
    import tensorflow_datasets as tfds

    class LocalText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "id": np.int64})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, _):
            return {"train": self._generate_examples(20), "validation": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"text": f"text {i} é", "id": i}

    root = tmp_path_factory.mktemp("tfds")
    LocalText(data_dir=root, file_format="array_record").download_and_prepare()
    return root


def test_tfds_without_tensorflow(local_text):
    want = [f"text {i} é" for i in range(20)]
    assert texts(Tfds(name="local_text", data_dir=str(local_text))) == want
    prepared = str(local_text / "local_text" / "1.0.0")
    assert texts(Tfds(name="local_text", data_dir=prepared, split="validation")) == want[:3]
    assert texts(Tfds(name="local_text", data_dir=prepared, split="train[:25%]")) == want[:5]
    assert "tensorflow" not in sys.modules


def test_tfds_is_cut_by_records(local_text):
    reader = Tfds(name="local_text", data_dir=local_text).open()
    parts = reader.cut(-(-reader.size // 3))
    assert len(parts) == 3
    assert sum(size for size, _ in parts) <= reader.size
    assert [one[i].text for _, one in parts for i in range(len(one))] == [reader[i].text for i in range(len(reader))]
    assert [len(one) for _, one in reader.cut(1 << 60)] == [len(reader)]


def test_tfds_mistakes(local_text):
    prepared = str(local_text / "local_text" / "1.0.0")
    with pytest.raises(UserError, match="no field 'body'; it has id, text"):
        Tfds(name="local_text", data_dir=prepared, field="body").open()
    with pytest.raises(UserError, match="no split 'test'; it has train, validation"):
        Tfds(name="local_text", data_dir=prepared, split="test").open()
    with pytest.raises(UserError, match="'id' is"):
        texts(Tfds(name="local_text", data_dir=prepared, field="id"))
    with pytest.raises(UserError, match="no such data set"):
        Tfds(name="no_such_set", data_dir=str(local_text)).open()


def test_a_set_that_cannot_be_had_is_one_line_and_soon(tmp_path, monkeypatch):
    # A port that nobody listens on, in place of the archive.
    monkeypatch.setattr("lm.data.text.tfds.reachable.__defaults__", ("http://127.0.0.1:9/", 1.0))
    begin = time.monotonic()
    with pytest.raises(UserError, match="tiny_shakespeare is not on this machine"):
        Tfds(name="tiny_shakespeare", data_dir=str(tmp_path)).open()
    assert time.monotonic() - begin < 10


def test_a_host_that_never_answers_is_given_up(monkeypatch):
    import socket

    from lm.data.text.tfds import reachable

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        assert not reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", 0.5)
        assert time.monotonic() - begin < 2


def test_source_from():
    assert source_from() == Documentation()
    assert source_from(text="a/*.txt") == Text(path="a/*.txt")
    assert source_from(text="a.jsonl") == JsonLines(path="a.jsonl")
    assert source_from(text="a.parquet") == Parquet(path="a.parquet")
    assert source_from(data="tfds:lm1b") == Tfds(name="lm1b")
    for wrong in ({"text": "a", "data": "tfds:b"}, {"data": "lm1b"}, {"data": "tfds:"}):
        with pytest.raises(UserError):
            source_from(**wrong)


def test_mixture_is_checked():
    one = Documentation()
    for sources, weights in [((one,), (1.0, 2.0)), ((), ()), ((one, one), (1.0, 0.0))]:
        with pytest.raises(UserError):
            Mixture(sources=sources, weights=weights)


def test_sources_are_plain_json():
    import dataclasses

    source = Mixture(sources=(Text(path="a"), Tfds(name="b")), weights=(1.0, 2.0))
    assert json.loads(json.dumps(dataclasses.asdict(source)))["weights"] == [1.0, 2.0]


def test_a_damaged_page_of_parquet_is_named(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": [f"row {i} " * 9 for i in range(999)]}), tmp_path / "a.parquet", compression="zstd")
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    raw[10:900] = b"\xff" * 890
    (tmp_path / "a.parquet").write_bytes(raw)
    with pytest.raises(UserError, match=r"a\.parquet: row group 0 is damaged"):
        Parquet(path=str(tmp_path / "a.parquet")).open()[0]
