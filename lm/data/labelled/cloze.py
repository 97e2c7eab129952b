"""Questions made out of running text: a sentence with a gap, whose words stand once more in the sentences around it.

So a network can learn to answer before it sees a question that somebody asked (Dhingra et al. 2018, "Simple and effective
semi-supervised question answering"; the recurring spans are those of Ram et al. 2021, Splinter, 3.1). Nothing here is random:
the same text gives the same questions.
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
COMMON = math.log(1 / 0.3)  # nats: no answer begins or ends with a word that more than three documents of ten have
RARE = 4.0  # nats that the words of an answer come to, at least
SHARED = 3.0  # nats of other words that question and answering sentence have both


class Word(NamedTuple):
    text: str  # in lower case
    start: int
    end: int


def read_cloze(path: str, limit: int, gap: str) -> Read:
    """Make the questions of the documents of text files."""
    reader = source_from(path).open()
    rarity = rarities(documents(reader))
    numbered = ((f"{reader.name}, document {k}", document) for k, document in enumerate(documents(reader), 1))
    found = [
        Example(values, f"{name}, question {k}", name)  # stretches overlap, so that a document is held out whole
        for name, document in numbered
        for k, values in enumerate(asked(document, rarity, limit, gap), 1)
    ]
    return Read(f"cloze of {reader.name}", tuple(found), f"{reader.signature()} cloze {limit} {gap}")


def words(text: str) -> list[Word]:
    return [Word(match[0].lower(), *match.span()) for match in WORD.finditer(text)]


def rarities(texts: Iterable[str]) -> dict[str, float]:
    """Give each word minus the logarithm of the share of documents that have it."""
    counts: Counter[str] = Counter()
    number = 0
    for text in texts:
        counts.update({word.text for word in words(text)})
        number += 1
    return {word: math.log(number / count) for word, count in counts.items()}


def asked(document: str, rarity: dict[str, float], limit: int, gap: str) -> Iterator[dict[str, Any]]:
    """Make the questions of a document, out of stretches of up to `limit` characters; neighbours overlap by half."""
    sentences = cut(document)
    low = 0
    while low < len(sentences):
        high, size = low, 0
        while high < len(sentences) and (size == 0 or size + len(sentences[high]) <= limit):
            size += len(sentences[high])
            high += 1
        yield from stretch(sentences[low:high], rarity, gap)
        if high == len(sentences):
            break
        low += max(1, (high - low) // 2)


def cut(text: str) -> list[str]:
    """Part a text into its sentences, each with the space after it."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    bounds = [0, *ends, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(bounds) if text[a:b].strip()]


def stretch(sentences: Sequence[str], rarity: dict[str, float], gap: str) -> Iterator[dict[str, Any]]:
    """Ask each sentence once at most, for what another one has, too: the pair that shares most beside it comes first."""
    parts = [words(sentence) for sentence in sentences]
    kinds = [{word.text for word in part} for part in parts]
    offers = []
    for places in recurring(parts, rarity):
        for k, *span in places:
            inner = {word.text for word in parts[k][span[0] : span[1]]}
            for other, *theirs in places:
                shared = math.fsum(rarity[word] for word in (kinds[k] & kinds[other]) - inner)  # whatever the order
                if other != k and shared >= SHARED:
                    offers.append((-shared, k, other, tuple(span), tuple(theirs)))
    done: set[int] = set()
    for _, k, other, (low, high), (begin, end) in sorted(offers):
        rest = [sentence for j, sentence in enumerate(sentences) if j != k]
        context = "".join(rest)
        there, text = parts[other], sentences[other]
        answer = text[there[begin].start : there[end - 1].end]
        if k in done or context.lower().count(answer.lower()) != 1:  # one of two would be wrong without a reason
            continue
        done.add(k)
        start = sum(map(len, rest[: other - (other > k)])) + there[begin].start
        own, sentence = parts[k], sentences[k]
        question = f"{sentence[: own[low].start]}{gap}{sentence[own[high - 1].end :]}".strip()
        yield {"question": question, "context": context, "answers": [answer], "starts": [start]}


def recurring(parts: Sequence[list[Word]], rarity: dict[str, float]) -> Iterator[list[tuple[int, int, int]]]:
    """Give runs of words that stand in several sentences, as (sentence, first, last + 1): the longest ones, each once."""
    seen = Counter(word for part in parts for word in {one.text for one in part})
    names = [[word.text if seen[word.text] > 1 else "" for word in part] for part in parts]  # no run has one of a sentence
    covered: set[tuple[int, int]] = set()
    for size in range(LONGEST, 0, -1):
        places: dict[tuple[str, ...], list[tuple[int, int, int]]] = defaultdict(list)
        for k, part in enumerate(names):
            for i in range(len(part) - size + 1):
                first, last = part[i], part[i + size - 1]
                if first and last and min(rarity[first], rarity[last]) >= COMMON and (k, i) not in covered:
                    run = tuple(part[i : i + size])
                    if "" not in run:
                        places[run].append((k, i, i + size))
        for run, found in places.items():
            if len({k for k, *_ in found}) > 1 and sum(rarity[word] for word in run) >= RARE:
                covered.update((k, i) for k, low, high in found for i in range(low, high))
                yield found


@dataclass(frozen=True, kw_only=True)
class Cloze(ExampleSource):
    """Questions made out of running text (`lm.data.labelled.cloze`): sentences with a gap, whose words stand once more near by.

    `path`: what `text=` takes for running text. Paragraphs of up to `limit` characters are asked about; `gap` stands for
    what is asked. Values as those of Questions. To learn answering from, before questions that people wrote.
    """

    path: str
    limit: int = 720
    gap: str = "what"

    def __post_init__(self):
        check_range(self, 1, float("inf"), "limit")
        check(bool(self.gap.strip()), "gap is empty: name a word that stands for what is asked")

    def open(self) -> Read:
        return read_cloze(self.path, self.limit, self.gap)
