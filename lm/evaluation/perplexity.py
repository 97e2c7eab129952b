"""Perplexity by sliding windows, pseudo-perplexity of masked models, LAMBADA, and per-token scores of a text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.rows.prompts import Prompt
from lm.data.text.files import JsonLines, Text
from lm.data.types import JSON_LINES, documents, format_name
from lm.decode.score import Pair, Scored
from lm.errors import check, check_range
from lm.evaluation.files import read_examples
from lm.evaluation.metrics.calibration import edges, expected_error
from lm.evaluation.metrics.statistics import Figure, Figures, bootstrap_sums, divide, mean, proportion
from lm.evaluation.pseudo_likelihood import masked_logprobs
from lm.evaluation.subject import Subject

BINS = 15  # of confidence, for the calibration error


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Perplexity of running text (a text file, or `field` of JSON lines) by sliding windows; masked models: pseudo-perplexity.

    Windows of `window` tokens (0: the model's context) move by `stride` (0: half a window); each token is scored once, in
    the first window that contains it, given at least window - stride tokens. A file is one document. With `lead` a document
    starts as in training, after the tokenizer's separator, or, for a published model, after the prefix of the tokenizer's
    own template; without a lead its first token is not scored. Pseudo-perplexity (Salazar et al. 2020) masks each token in
    turn, in windows that do not overlap.

    Words are runs without white space and bytes are UTF-8, both of the raw text, which compares models across tokenizers.
    Errors resample windows.
    """

    path: str
    window: int = 0
    stride: int = 0
    lead: bool = True
    field: str = "text"

    def __post_init__(self):
        check_range(self, 0, float("inf"), "window", "stride")

    def texts(self) -> Iterator[str]:
        lines = format_name(self.path).endswith(JSON_LINES)
        return documents((JsonLines(path=self.path, field=self.field) if lines else Text(path=self.path)).open())

    def measure(self, subject: Subject) -> Figures:
        texts = [text for text in self.texts() if text]
        check(bool(texts), f"{self.path} holds no text")
        size = Size.of(texts)
        if not subject.objective.writes:
            return self.pseudo(subject, subject.tokenizer.encode_batch(texts), size)
        kind = type(subject.objective).__name__
        check(subject.objective.writes == "text", f"{kind} answers a source: running text has no probability under it")
        encoded = subject.writer.objective.encode(subject.tokenizer, texts)
        pairs = [pair for ids in encoded for pair in self.windows(subject, ids)]
        check(bool(pairs), f"{self.path}: nothing to score in {size.bytes} bytes of text")
        return figures(subject.score("perplexity", pairs), size, subject.seed)

    def windows(self, subject: Subject, ids: np.ndarray) -> Iterator[Pair]:
        """Yield context and scored tokens of each window of a document."""
        objective, limit = subject.writer.objective, text_limit(subject)
        window = self.window or limit or objective.model.context
        check(limit is None or window <= limit, f"window={window} is more than the model's context of {limit}")
        stride = self.stride or max(1, window // 2)
        check(stride <= window, f"stride={stride} is more than window={window}: it would skip tokens")
        lead = objective.lead(subject.tokenizer) if self.lead else ()
        # `window` inputs predict as many tokens: a window spans one token more.
        ids, done = np.array([*lead, *ids], np.int32), max(1, len(lead))
        check(done <= window, f"window={window} is not longer than the {done} tokens before a text")
        for start in range(0, max(1, len(ids) - 1), stride):
            # Tokens up to `done` were scored in an earlier window: here they are context.
            end = min(start + window + 1, len(ids))
            if end > done:
                yield Pair(objective.given(ids[start:done]), ids[done:end])
                done = end

    def pseudo(self, subject: Subject, encoded: Sequence[np.ndarray], size: Size) -> Figures:
        # Less [CLS] and [SEP], which stand around every window.
        window = self.window or subject.objective.model.context - 2
        rows = [ids[low : low + window] for ids in encoded for low in range(0, len(ids), window)]
        sums = np.array([[-x.sum(dtype=float), len(x)] for x in masked_logprobs(subject, rows)])
        return {f"pseudo_{name}": figure for name, figure in measures(sums, size, subject.seed).items()}


def text_limit(subject: Subject) -> int | None:
    """Return the number of text tokens that fit a row, None: any number; some objectives add special tokens around them."""
    limit = subject.scorer.steps.limit
    return None if limit is None else limit + 1 - len(subject.writer.objective.given(np.zeros(1, np.int32)).tokens)


@dataclass(frozen=True)
class Size:
    """Size of raw text in words, characters and UTF-8 bytes."""

    words: int
    characters: int
    bytes: int

    @staticmethod
    def of(texts: Sequence[str]) -> Size:
        return Size(*(sum(map(f, texts)) for f in (lambda t: len(t.split()), len, lambda t: len(t.encode()))))


def figures(scored: Sequence[Scored], size: Size, seed: int) -> Figures:
    """Measure scored windows: perplexity per unit of raw text, next-token accuracy and calibration."""
    # Summed by window: neighbouring tokens depend on each other, so a resample must not separate them.
    sums = np.array([[-s.logprobs.sum(dtype=float), len(s.logprobs), s.greedy.sum()] for s in scored])
    confidence, right, squares, logprobs = (
        np.concatenate([getattr(s, name) for s in scored]) for name in ("confidence", "greedy", "squares", "logprobs")
    )
    bin_of = np.searchsorted(edges(confidence, BINS, "width"), confidence)
    bins = np.concatenate([np.bincount(bin_of, weights, BINS) for weights in (None, confidence, right)])
    # The squared distance to the one-hot target, sum p^2 - 2 p(target) + 1, without an array over the vocabulary.
    brier = float((squares - 2 * np.exp(logprobs) + 1).mean(dtype=float))
    return {
        **measures(sums, size, seed),
        **bootstrap_sums(sums, {"accuracy": lambda s: divide(s[..., 2], s[..., 1])}, seed),
        "ece": Figure.of(float(expected_error(bins)), math.nan),
        "brier": Figure.of(brier, mean(squares - 2 * np.exp(logprobs) + 1).error),
    }


def measures(sums: np.ndarray, size: Size, seed: int) -> Figures:
    """Compute perplexities from sums (nats, tokens, ...) of each window: nats per token times tokens per unit of raw text."""
    tokens = sums[:, 1].sum()

    def rate(sums: np.ndarray) -> np.ndarray:
        return divide(sums[..., 0], sums[..., 1])

    # Tokens per unit of raw text are a constant of the text: only nats per token are resampled.
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
    """LAMBADA (Paperno et al. 2016): the last word of each passage in {"text"} given all words before it.

    The word starts at the last space, as in OpenAI's variant. `accuracy`: every token of the word is the likeliest.
    `perplexity` is per word. A passage longer than the context is truncated from its start. `field` holds the passage.
    """

    path: str
    field: str = "text"

    def measure(self, subject: Subject) -> Figures:
        examples = read_examples(self.path)
        pairs = [self.pair(subject, example.get(self.field).rstrip(), example.where) for example in examples]
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
    """Encode context and continuation jointly, so that the border between them is tokenized as in running text.

    Trailing spaces of the context move to the continuation (as in lm-evaluation-harness); an overlong context is truncated
    from its start. For an encoder-decoder the context is the source and the continuation the target.
    """
    bare = context.rstrip()
    continuation, context = context[len(bare) :] + continuation, bare
    prompt, tokenizer = subject.prompt(context), subject.tokenizer
    if prompt.source is not None:  # source and target are tokenized apart in training, too
        return Pair(prompt, tokenizer.encode(continuation.strip()))

    def encode(text: str) -> np.ndarray:  # as the prompt was
        return tokenizer.encode(text, special=subject.writer.objective.template)

    target = encode(continuation)
    if whole and context:
        before, both = encode(context), encode(context + continuation)
        if len(both) > len(before):  # a merge across the border moves it
            target = both[len(before) :]
            end = np.flatnonzero(prompt.tokens == before[-1])[-1] + 1  # special tokens may follow the text
            start = end - len(before)
            tokens = np.concatenate([prompt.tokens[:start], both[: len(before)], prompt.tokens[end:]])
            prompt = Prompt(tokens.astype(np.int32))
    limit = subject.scorer.steps.limit
    if limit is not None:
        remaining = limit + 1 - len(target)
        check(remaining > 0, f"a continuation of {len(target)} tokens exceeds the model's context of {limit}")
        prompt = Prompt(prompt.tokens[-remaining:])
    return Pair(prompt, target.astype(np.int32))


def text_scores(subject: Subject, text: str) -> dict[str, Any]:
    """Return the tokens of a text with log-probabilities given the tokens before (a masked model: all others).

    A document starts as in training, after the separator, or with a published tokenizer's template. Without either, the
    first token's log-probability is None, and so is the sum of a text of one token. Raises UserError for a text longer than
    the context.
    """
    objective, tokenizer = subject.objective, subject.tokenizer
    writer = subject.writer.objective if objective.writes == "text" else None
    (ids,) = tokenizer.encode_batch([text]) if writer is None else writer.encode(tokenizer, [text])
    check(len(ids) > 0, f"--text={text!r} has no tokens")
    if writer is not None:
        # One prompt for the whole text, so that every token sees all tokens before it.
        lead = writer.lead(tokenizer)
        row, start = np.array([*lead, *ids], np.int32), max(1, len(lead))
        pairs = [Pair(writer.given(row[:start]), row[start:])] if len(row) > start else []
        logprobs = [None] * (not lead) + [float(p) for score in subject.scorer(pairs) for p in score.logprobs]
    else:
        kind = type(objective).__name__
        check(objective.writes != "answer", f"{kind} answers a source: a text alone has no probability under it")
        logprobs = [float(p) for p in masked_logprobs(subject, [ids])[0]]
    known = [p for p in logprobs if p is not None]
    total = float(sum(known)) if known else None
    return {
        "text": text,
        "ids": ids.tolist(),
        "tokens": tokenizer.pieces(ids),
        "logprobs": logprobs,
        "sum": total,
        # exp(700) is the last that a float holds.
        "perplexity": None if total is None else math.exp(min(-total / len(known), 700)),
    }
