"""Cloze questions made of running text: a sentence with a gap, answered by a recurring span in the sentences around it.

Pre-training for span extraction (Dhingra et al. 2018, "Simple and effective semi-supervised question answering"; recurring
spans: Ram et al. 2021, Splinter, 3.1). Deterministic: the same text makes the same questions.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lm.data.sources import source_from
from lm.data.text.words import SENTENCE_END
from lm.data.types import Example, ExampleSource, Read, documents
from lm.errors import check, check_range

WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
LONGEST = 8  # words (or Chinese characters) of an answer
COMMON = math.log(1 / 0.3)  # nats: no answer starts or ends with a word of more than three documents in ten
RARE = 4.0  # nats: least rarity of an answer, summed over its words
SHARED = 3.0  # nats: least rarity of the other words that question and answering sentence share


@dataclass(frozen=True, kw_only=True)
class Cloze(ExampleSource):
    """Cloze questions of running text, in paragraphs of up to `limit` characters; `gap` replaces the answer in the question.

    `path` is a file as `text=` names it for running text. Values are those of Questions.
    """

    path: str
    limit: int = 720
    gap: str = "what"

    def __post_init__(self):
        check_range(self, 1, float("inf"), "limit")
        check(bool(self.gap.strip()), "gap is empty: name a word that stands for the answer")

    def open(self) -> Read:
        reader = source_from(self.path).open()
        rarity = rarities(documents(reader))
        examples = []
        for k, document in enumerate(documents(reader), 1):
            name = f"{reader.name}, document {k}"
            for j, values in enumerate(document_questions(document, rarity, self.limit, self.gap), 1):
                # Paragraphs overlap, so that a document is held out whole.
                examples.append(Example(values, f"{name}, question {j}", name))
        return Read(f"cloze of {reader.name}", tuple(examples), f"{reader.signature()} cloze {self.limit} {self.gap}")


class Word(NamedTuple):
    text: str  # in lower case
    start: int
    end: int


def split_words(text: str) -> list[Word]:
    return [Word(match[0].lower(), *match.span()) for match in WORD.finditer(text)]


def rarities(texts: Iterable[str]) -> dict[str, float]:
    """Return the inverse document frequency of each word, in nats."""
    counts: Counter[str] = Counter()
    number = 0
    for text in texts:
        counts.update({word.text for word in split_words(text)})
        number += 1
    return {word: math.log(number / count) for word, count in counts.items()}


def document_questions(document: str, rarity: dict[str, float], limit: int, gap: str) -> Iterator[dict[str, Any]]:
    """Make the questions of a document from paragraphs of up to `limit` characters; neighbours overlap by half."""
    sentences = split_sentences(document)
    low = 0
    while low < len(sentences):
        high, size = low, 0
        # One sentence at least, however long: the walk must move on.
        while high < len(sentences) and (size == 0 or size + len(sentences[high]) <= limit):
            size += len(sentences[high])
            high += 1
        yield from paragraph_questions(sentences[low:high], rarity, gap)
        if high == len(sentences):
            break
        low += max(1, (high - low) // 2)


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences, each with the space after it."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    bounds = [0, *ends, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds) if text[a:b].strip()]


def paragraph_questions(sentences: Sequence[str], rarity: dict[str, float], gap: str) -> Iterator[dict[str, Any]]:
    """Turn each sentence into at most one question, whose answer another sentence of the paragraph contains, too.

    Pairs of sentences come in the order of the rarity of their other shared words, the highest first.
    """
    parts = [split_words(sentence) for sentence in sentences]
    vocabularies = [{word.text for word in part} for part in parts]
    offers = []
    for spans in recurring_spans(parts, rarity):
        for k, low, high in spans:
            inner = {word.text for word in parts[k][low:high]}
            for other, start, stop in spans:
                # fsum: a set's order must not change the last digit.
                shared = math.fsum(rarity[word] for word in (vocabularies[k] & vocabularies[other]) - inner)
                if other != k and shared >= SHARED:
                    offers.append((-shared, k, other, (low, high), (start, stop)))
    done: set[int] = set()
    for _, k, other, (low, high), (begin, end) in sorted(offers):
        rest = [sentence for j, sentence in enumerate(sentences) if j != k]
        context = "".join(rest)
        answering, text = parts[other], sentences[other]
        answer = text[answering[begin].start : answering[end - 1].end]
        if k in done or context.lower().count(answer.lower()) != 1:  # an answer must be unique
            continue
        done.add(k)
        # The paragraph lacks the question's own sentence, so those behind it move up.
        start = sum(map(len, rest[: other - (other > k)])) + answering[begin].start
        own, sentence = parts[k], sentences[k]
        question = f"{sentence[: own[low].start]}{gap}{sentence[own[high - 1].end :]}".strip()
        yield {"question": question, "context": context, "answers": [answer], "starts": [start]}


def recurring_spans(parts: Sequence[list[Word]], rarity: dict[str, float]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield the spans (sentence, first word, last + 1) of each run of words in several sentences, longest runs first."""
    counts = Counter(name for part in parts for name in {word.text for word in part})
    # "" stands for a word of one sentence alone, which no run contains.
    names = [[word.text if counts[word.text] > 1 else "" for word in part] for part in parts]
    covered: set[tuple[int, int]] = set()
    for size in range(LONGEST, 0, -1):
        spans: dict[tuple[str, ...], list[tuple[int, int, int]]] = defaultdict(list)
        for k, part in enumerate(names):
            for i in range(len(part) - size + 1):
                first, last = part[i], part[i + size - 1]
                if first and last and min(rarity[first], rarity[last]) >= COMMON and (k, i) not in covered:
                    run = tuple(part[i : i + size])
                    if "" not in run:
                        spans[run].append((k, i, i + size))
        for run, group in spans.items():
            if len({k for k, *_ in group}) > 1 and sum(rarity[word] for word in run) >= RARE:
                covered.update((k, i) for k, low, high in group for i in range(low, high))
                yield group
