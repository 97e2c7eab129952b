"""Texts and questions in two languages for the study of transfer: XQuAD (Artetxe et al. 2020) in English and Chinese.

    python -m launch.transfer --xquad=DIR [--output=runs/transfer]

DIR holds xquad.en.json and xquad.zh.json, whose paragraphs are translations of each other. Of all articles but the last ten:

    english.jsonl   the English paragraphs        both.jsonl       the paragraphs of both languages, apart
    parallel.jsonl  both, and each paragraph beside its translation (Conneau & Lample 2019, translation language modelling)
    switched.jsonl  both, and each paragraph with every other sentence in the other language (code switching)
    questions-1.json, questions-10.json, questions-100.json   percent of the English questions
    tokenizer.json  one WordPiece vocabulary of both.jsonl, for all arms

Of the last ten articles: english.json and chinese.json, the questions that the networks are tested on.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from lm.data.tokenizer.tokenizer import WordPiece
from lm.errors import UserError, check
from lm.flags import run
from lm.outputs import replace_file
from lm.strict_json import dump_json, load_json

VALUES = flags.FlagValues()  # of its own: other commands, imported beside this one, have some of the same names
XQUAD = flags.DEFINE_string("xquad", None, "folder with xquad.en.json and xquad.zh.json", flag_values=VALUES)
OUTPUT = flags.DEFINE_string("output", "runs/transfer", "folder that is written", flag_values=VALUES)

HELD_OUT = 10  # articles
SHARES = (1, 10, 100)  # percent of the questions
VOCAB = 6000
SENTENCES = {"en": r"(?<=[.!?])\s+", "zh": r"(?<=[。!?！？])"}


def main(overrides: list[tuple[str, str]]) -> None:
    """Read both languages, write all files."""
    check(bool(XQUAD.value), "which data? --xquad=DIR names the folder with xquad.en.json and xquad.zh.json")
    sides = {language: articles(Path(XQUAD.value) / f"xquad.{language}.json") for language in SENTENCES}
    folder = Path(OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    train = {language: side[:-HELD_OUT] for language, side in sides.items()}
    pairs = list(zip(*(contexts(side) for side in train.values()), strict=True))
    both = [text for pair in pairs for text in pair]
    files = {
        "english.jsonl": [pair[0] for pair in pairs],
        "both.jsonl": both,
        "parallel.jsonl": [*both, *("\n".join(pair) for pair in pairs)],
        "switched.jsonl": [*both, *(text for pair in pairs for text in switched(*pair))],
    }
    for name, texts in files.items():
        replace_file(folder / name, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    for share in SHARES:
        write_questions(folder / f"questions-{share}.json", sample(train["en"], share / 100))
    for name, language in (("english", "en"), ("chinese", "zh")):
        write_questions(folder / f"{name}.json", sides[language][-HELD_OUT:])
    WordPiece(vocab=VOCAB).build(lambda: both).save(folder / "tokenizer.json")
    print(f"{folder}: {len(pairs)} paragraphs in two languages")


def articles(path: Path) -> list[Any]:
    """Read the articles of a SQuAD file."""
    check(path.is_file(), f"there is no {path}: XQuAD is at github.com/google-deepmind/xquad")
    try:
        return load_json(path, dict)["data"]
    except KeyError:
        raise UserError(f"{path} is no SQuAD file: it has no 'data'") from None


def contexts(side: list[Any]) -> Iterator[str]:
    """Yield the paragraphs of articles."""
    for article in side:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"]


def switched(english: str, chinese: str) -> list[str]:
    """Return two texts that change language at every sentence, one beginning in each; [] where sentences do not match."""
    sides = [
        [part.strip() for part in re.split(SENTENCES[language], text) if part.strip()]
        for language, text in zip(SENTENCES, (english, chinese))
    ]
    if len(sides[0]) != len(sides[1]) or len(sides[0]) < 2:
        return []
    return [" ".join(sides[(i + first) % 2][i] for i in range(len(sides[0]))) for first in (0, 1)]


def sample(side: list[Any], share: float) -> list[Any]:
    """Select a share of the questions at random, at least one; smaller shares are parts of larger ones."""
    count = sum(len(paragraph["qas"]) for article in side for paragraph in article["paragraphs"])
    rank = iter(np.random.default_rng(0).permutation(count))
    most = max(1, round(share * count))
    return [
        {**article, "paragraphs": [{**p, "qas": [q for q in p["qas"] if next(rank) < most]} for p in article["paragraphs"]]}
        for article in side
    ]


def write_questions(path: Path, side: list[Any]) -> None:
    """Write a SQuAD file, without the paragraphs that have no question."""
    kept = [{**article, "paragraphs": [p for p in article["paragraphs"] if p["qas"]]} for article in side]
    replace_file(path, dump_json({"version": "1.1", "data": [article for article in kept if article["paragraphs"]]}) + "\n")


if __name__ == "__main__":
    flags.FLAGS.append_flag_values(VALUES)
    VALUES.mark_as_parsed()
    run(main)
