"""How well a model foresees text: perplexity by sliding windows, LAMBADA's last words, pseudo-perplexity of masked models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.rows.prompts import Prompt
from lm.data.text.files import JsonLines, Text
from lm.data.types import documents
from lm.decode.score import Pair, Scored
from lm.errors import check, check_range
from lm.evaluation.files import items
from lm.evaluation.metrics.calibration import edges, expected_error
from lm.evaluation.metrics.statistics import Figure, Figures, bootstrap_sums, divide, mean, proportion
from lm.evaluation.pseudo_likelihood import masked_logprobs
from lm.evaluation.subject import Subject

BINS = 15  # of confidence, for the calibration error


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Every token of some text, given at most `window` - 1 tokens before it and at least window - stride of them.

    Windows of `window` tokens (0: the model's context) move by `stride` (0: half a window); each token is scored once, in
    the first window that reaches it. A file is a document, of JSON lines each object's `field`. With `lead` a document
    begins as in training, after the tokenizer's separator if there is one, or, of a published model, after what the
    tokenizer's own template begins with; where nothing precedes it, its first token is not scored. Masked models give
    pseudo-perplexity (Salazar et al. 2020): each token is hidden in turn, in windows that do not overlap.

    Words are runs without white space, bytes are UTF-8, both of the raw text, so that models with other tokenizers
    compare by them. The errors resample windows.
    """

    path: str
    window: int = 0
    stride: int = 0
    lead: bool = True
    field: str = "text"

    def __post_init__(self):
        check_range(self, 0, float("inf"), "window", "stride")

    def texts(self) -> Iterator[str]:
        found = self.path.lower().endswith((".jsonl", ".ndjson", ".json"))
        return documents((JsonLines(path=self.path, field=self.field) if found else Text(path=self.path)).open())

    def measure(self, subject: Subject) -> Figures:
        texts = [text for text in self.texts() if text]
        check(bool(texts), f"{self.path} holds no text")
        size = Size.of(texts)
        if not subject.objective.writes:
            return self.pseudo(subject, subject.tokenizer.encode_batch(texts), size)
        kind = type(subject.objective).__name__
        check(subject.objective.writes == "text", f"{kind} answers a source: it gives running text no probability")
        encoded = subject.writer.objective.encode(subject.tokenizer, texts)
        pairs = [pair for ids in encoded for pair in self.windows(subject, ids)]
        check(bool(pairs), f"{self.path}: nothing to score in {size.bytes} bytes of text")
        return figures(subject.score("perplexity", pairs), size, subject.seed)

    def windows(self, subject: Subject, ids: np.ndarray) -> Iterator[Pair]:
        """Cut a document into what is given and what is scored."""
        objective, limit = subject.writer.objective, room(subject)
        window = self.window or limit or objective.model.context
        check(limit is None or window <= limit, f"window={window} is more than the model's context of {limit}")
        stride = self.stride or max(1, window // 2)
        check(stride <= window, f"stride={stride} is more than window={window}: tokens would be left out")
        lead = objective.lead(subject.tokenizer) if self.lead else ()
        # `window` inputs give as many predictions: one token more is seen.
        ids, done = np.array([*lead, *ids], np.int32), max(1, len(lead))
        check(done <= window, f"window={window} has no token beside the {done} that a text begins with")
        for start in range(0, max(1, len(ids) - 1), stride):
            end = min(start + window + 1, len(ids))
            if end > done:
                yield Pair(objective.given(ids[start:done]), ids[done:end])
                done = end

    def pseudo(self, subject: Subject, encoded: Sequence[np.ndarray], size: Size) -> Figures:
        window = self.window or subject.objective.model.context - 2
        rows = [ids[low : low + window] for ids in encoded for low in range(0, len(ids), window)]
        found = masked_logprobs(subject, rows)
        sums = np.array([[-x.sum(dtype=float), len(x)] for x in found])
        return {f"pseudo_{name}": figure for name, figure in measures(sums, size, subject.seed).items()}


def room(subject: Subject) -> int | None:
    """Count the tokens of text that a row may have, None: any number; some objectives put others around them."""
    limit = subject.scorer.steps.limit
    return None if limit is None else limit + 1 - len(subject.writer.objective.given(np.zeros(1, np.int32)).tokens)


@dataclass(frozen=True)
class Size:
    """How much raw text there is."""

    words: int
    characters: int
    bytes: int

    @staticmethod
    def of(texts: Sequence[str]) -> Size:
        return Size(*(sum(map(f, texts)) for f in (lambda t: len(t.split()), len, lambda t: len(t.encode()))))


def figures(scored: Sequence[Scored], size: Size, seed: int) -> Figures:
    """Turn scores, a window each, into figures of running text, calibration of the next token's distribution included."""
    sums = np.array([[-s.logprobs.sum(dtype=float), len(s.logprobs), s.greedy.sum()] for s in scored])
    confidence, right, squares, logprobs = (
        np.concatenate([getattr(s, name) for s in scored]) for name in ("confidence", "greedy", "squares", "logprobs")
    )
    place = np.searchsorted(edges(confidence, BINS, "width"), confidence)
    bins = np.concatenate([np.bincount(place, weights, BINS) for weights in (None, confidence, right)])
    brier = float((squares - 2 * np.exp(logprobs) + 1).mean(dtype=float))
    return {
        **measures(sums, size, seed),
        **bootstrap_sums(sums, {"accuracy": lambda s: divide(s[..., 2], s[..., 1])}, seed),
        "ece": Figure(float(expected_error(bins)), math.nan, math.nan, math.nan),
        "brier": Figure.of(brier, mean(squares - 2 * np.exp(logprobs) + 1).error),
    }


def measures(sums: np.ndarray, size: Size, seed: int) -> Figures:
    """Figures of sums (nats, tokens, ...) of each window: a rate is nats per token times tokens a unit of raw text."""
    tokens = sums[:, 1].sum()

    def rate(sums):
        return divide(sums[..., 0], sums[..., 1])

    formulas = {
        "nats_per_token": rate,
        "perplexity": lambda s: np.exp(rate(s)),
        "word_perplexity": lambda s: np.exp(np.minimum(rate(s) * tokens / max(size.words, 1), 700)),
        "bits_per_byte": lambda s: rate(s) * tokens / max(size.bytes, 1) / math.log(2),
        "bits_per_character": lambda s: rate(s) * tokens / max(size.characters, 1) / math.log(2),
    }
    return bootstrap_sums(sums[:, :2], formulas, seed)


@dataclass(frozen=True, kw_only=True)
class LastWord:
    """LAMBADA (Paperno et al. 2016): the last word of each passage given all of it before, in JSON lines with `field`.

    The word is what follows the last space, with that space (as OpenAI's variant): `accuracy` asks for every one of its
    tokens as the likeliest, `perplexity` is of whole words. A passage longer than the context loses its beginning.
    """

    path: str
    field: str = "text"

    def measure(self, subject: Subject) -> Figures:
        pairs = [self.pair(subject, item.text(self.field).rstrip(), item.where) for item in items(self.path)]
        scored = subject.score("last words", pairs)
        sums = np.array([s.logprobs.sum(dtype=float) for s in scored])
        rows = np.stack([-sums, np.ones_like(sums)], 1)
        return {
            "accuracy": proportion(sum(bool(s.greedy.all()) for s in scored), len(scored)),
            **bootstrap_sums(rows, {"perplexity": lambda s: np.exp(divide(s[..., 0], s[..., 1]))}, subject.seed),
        }

    def pair(self, subject: Subject, text: str, where: str) -> Pair:
        before, space, word = text.rpartition(" ")
        check(bool(before.strip()) and bool(word), f"{where}: a passage needs at least two words, not {text!r}")
        return given(subject, before, space + word)


def given(subject: Subject, context: str, continuation: str, whole: bool = True) -> Pair:
    """Make a pair of texts: both are encoded together, so that the border between them falls as it would in a text.

    Spaces that end the context go to the continuation (spec of the evaluation harness); a context longer than the model
    takes loses its beginning. For an encoder-decoder the context is the source, and the continuation the answer.
    """
    bare = context.rstrip()
    continuation, context = context[len(bare) :] + continuation, bare
    prompt, tokenizer = subject.prompt(context), subject.tokenizer
    if prompt.source is not None:
        return Pair(prompt, tokenizer.encode(continuation.strip()))

    def encode(text: str) -> np.ndarray:  # as the prompt was
        return tokenizer.encode(text, special=subject.writer.objective.template)

    target = encode(continuation)
    if whole and context:
        before, both = encode(context), encode(context + continuation)
        if len(both) > len(before):  # a word that merges over the border moves it
            target = both[len(before) :]
            place = np.flatnonzero(prompt.tokens == before[-1])[-1] + 1  # of the text's end, behind which others may stand
            start = place - len(before)
            tokens = np.concatenate([prompt.tokens[:start], both[: len(before)], prompt.tokens[place:]])
            prompt = Prompt(tokens.astype(np.int32))
    limit = subject.scorer.steps.limit
    if limit is not None:
        left = limit + 1 - len(target)
        check(left > 0, f"a continuation of {len(target)} tokens passes the model's context of {limit}")
        prompt = Prompt(prompt.tokens[-left:])
    return Pair(prompt, target.astype(np.int32))


def text_scores(subject: Subject, text: str) -> dict[str, Any]:
    """Give a text's tokens, each with its log-probability given those before it, or, by a masked model, all others.

    A document begins as in training, after the separator, or as a published tokenizer's template begins it: then its
    first token has a probability too. Where nothing precedes it, it has None, and so has the sum of a text that is no
    more than it. Raises UserError when the text is longer than the context.
    """
    objective, tokenizer = subject.objective, subject.tokenizer
    writer = subject.writer.objective if objective.writes == "text" else None
    (ids,) = tokenizer.encode_batch([text]) if writer is None else writer.encode(tokenizer, [text])
    check(len(ids) > 0, f"--text={text!r} has no tokens")
    if writer is not None:
        lead = writer.lead(tokenizer)
        row, start = np.array([*lead, *ids], np.int32), max(1, len(lead))
        pairs = [Pair(writer.given(row[:start]), row[start:])] if len(row) > start else []
        found = [p for one in subject.scorer(pairs) for p in one.logprobs]
        logprobs = [None] * (not lead) + [float(p) for p in found]
    else:
        kind = type(objective).__name__
        check(objective.writes != "answer", f"{kind} answers a source: it gives a text alone no probability")
        logprobs = [float(p) for p in masked_logprobs(subject, [ids])[0]]
    known = [p for p in logprobs if p is not None]
    total = float(sum(known)) if known else None
    return {
        "text": text,
        "ids": ids.tolist(),
        "tokens": tokenizer.pieces(ids),
        "logprobs": logprobs,
        "sum": total,
        "perplexity": None if total is None else math.exp(min(-total / len(known), 700)),
    }
