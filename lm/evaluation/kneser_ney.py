"""Interpolated modified Kneser-Ney n-grams (Chen & Goodman 1999, 4.1.6), the baseline of neural language models.

    python -m lm.evaluation.kneser_ney [--config=configs/gpt_nano.py] [--order=5 ...] [--config.a.b=value ...]

An n-gram's key is (id of its context, its last token); its id is the rank of that key among the distinct ones. This is exact
at any order and vocabulary, unlike packing n tokens into one number or hashing them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.corpus.store import Tokens
from lm.sizes import check_memory

HIGHEST = 100  # order: n-grams of more than ten tokens are rarely seen twice, and each level takes as long as the first


@dataclass(frozen=True)
class Stream:
    """Tokens, int64 [n], and the number of preceding tokens in the same document, int64 [n].

    History 0 marks tokens that are no targets. A separator ends one document and starts the next: as a target it belongs to
    the first, as a context to the second.
    """

    tokens: np.ndarray
    history: np.ndarray

    @staticmethod
    def of(tokens: Tokens, packing: str = "documents") -> Stream:
        """Make the stream of a split, with the causal objective's targets and no context from other documents."""
        position = np.arange(len(tokens), dtype=np.int64)
        starts = tokens.starts if packing == "documents" and tokens.documents else np.zeros(1, np.int64)
        # The document of the token before: a separator, which opens the next one, is still a target of the first.
        start = starts[np.searchsorted(starts, position - 1, "right") - 1]
        history = np.maximum(position - start, 0)
        if tokens.separator is None:
            history[starts[starts < len(tokens)]] = 0  # without a separator nothing predicts a first token
        return Stream(tokens.tokens.astype(np.int64), history)

    @staticmethod
    def join(streams: Iterable[Stream]) -> Stream:
        """Concatenate streams; contexts do not cross their borders."""
        streams = list(streams)
        return Stream(np.concatenate([s.tokens for s in streams]), np.concatenate([s.history for s in streams]))

    def targets(self, predecessors: int = 0) -> np.ndarray:
        """Return the positions of targets with at least that many predecessors in their document."""
        return np.flatnonzero(self.history >= max(1, predecessors))


@dataclass(frozen=True)
class Level:
    """The n-grams of one order: p(w | context) = own[n-gram, 0 if unknown] + rest[context] * p(w | shorter context)."""

    keys: np.ndarray  # int64, ascending: id of the context * vocab + last token
    own: np.ndarray  # float64, one an n-gram
    rest: np.ndarray  # float64, one an n-gram of the order below: its back-off weight

    @staticmethod
    def of(keys: np.ndarray, counts: np.ndarray, contexts: int, vocab: int) -> Level:
        """Discount (adjusted) counts and normalise within each context; unseen contexts back off entirely."""
        context = keys // vocab
        discount = discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(context, counts, contexts)
        backoff = np.bincount(context, discount, contexts)
        own = (counts - discount) / np.maximum(total, 1)[context]
        return Level(keys, own, np.where(total > 0, backoff / np.maximum(total, 1), 1.0))


def discounts(counts: np.ndarray) -> np.ndarray:
    """Compute the discounts of counts 0, 1, 2 and 3 or more (Chen & Goodman 1999, equation 26).

    Falls back to 1/2, 1 and 3/2 (Heafield 2013) where counts of counts do not fit the formula, as for characters, which all
    occur often.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    fallback = np.array([0, 0.5, 1, 1.5])
    if 0 in (n1, n2, n3):
        return fallback
    share = n1 / (n1 + 2 * n2)
    fitted = np.array([0, 1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3])
    return fitted if np.all((fitted[1:] > 0) & (fitted[1:] <= [1, 2, 3])) else fallback


@dataclass(frozen=True)
class KneserNey:
    """A fitted model; `levels[k]` holds the n-grams of k + 1 tokens. The lowest backs off to 1 / vocab."""

    levels: tuple[Level, ...]
    vocab: int

    @staticmethod
    def fit(stream: Stream, order: int, vocab: int) -> KneserNey:
        """Count a stream, in the time and memory of sorting it `order` times."""
        tokens, levels, contexts = stream.tokens, [], 1
        gram = tokens  # id of the n-gram that ends at each position; of order 1, the token itself
        keys = np.arange(vocab)
        counts = np.bincount(tokens[stream.targets()], minlength=vocab)
        for k in range(1, order + 1):
            if k == order:
                levels.append(Level.of(keys, counts, contexts, vocab))
                break
            at = stream.targets(k)
            upper, number, upper_counts = np.unique(gram[at - 1] * vocab + tokens[at], return_inverse=True, return_counts=True)
            suffix = np.empty(len(upper), np.int64)
            suffix[number] = gram[at]
            # An n-gram below the highest order counts once for each distinct predecessor, and once for each document
            # that it starts: every start is a context of its own.
            first = stream.targets()[stream.history[stream.targets()] == k - 1]
            adjusted = np.bincount(suffix, minlength=len(keys)) + np.bincount(gram[first], minlength=len(keys))
            levels.append(Level.of(keys, adjusted, contexts, vocab))
            contexts, keys, counts = len(keys), upper, upper_counts
            gram = np.full(len(tokens), -1)
            gram[at] = number
        return KneserNey(tuple(levels), vocab)

    def probabilities(self, stream: Stream) -> np.ndarray:
        """Return the probability of each target given its document so far, float64, in order."""
        tokens = stream.tokens
        probabilities = np.full(len(tokens), 1 / self.vocab)
        context = np.zeros(len(tokens), np.int64)  # id of the context at each position, -1 if unseen in training
        # From the lowest order up: each scales the probability given the shorter context and adds its own. Where a
        # context is unseen in training, the higher orders leave it as it is.
        for k, level in enumerate(self.levels):
            at = stream.targets(k)
            at = at[context[at] >= 0]
            key = context[at] * self.vocab + tokens[at]
            rank = np.searchsorted(level.keys, key)
            # Any valid rank: whether the key is there is compared next.
            rank[rank == len(level.keys)] = 0
            known = level.keys[rank] == key if len(level.keys) else np.zeros(len(at), bool)
            probabilities[at] *= level.rest[context[at]]
            probabilities[at[known]] += level.own[rank[known]]
            # The n-gram that ends at a position is the context of the next one.
            gram = tokens.copy() if k == 0 else np.full(len(tokens), -1)
            gram[at[known]] = rank[known]
            context = np.concatenate([[-1], gram[:-1]])
        return probabilities[stream.targets()]


def fit(corpus: Corpus, order: int, packing: str = "documents") -> KneserNey:
    """Count the training split; streams of a mixture count in full, whatever their sampling weights."""
    stream = Stream.join(Stream.of(tokens, packing) for _, tokens in corpus.train)
    return KneserNey.fit(stream, order, corpus.tokenizer.vocab)


def evaluate(model: KneserNey, tokens: Tokens, packing: str = "documents") -> dict[str, float]:
    """Return loss (nats per token), perplexity and bits per byte, comparable with `lm.evaluation.held_out.HeldOut`."""
    from lm.training import metrics

    logs = np.log(model.probabilities(Stream.of(tokens, packing)))
    loss = {"kneser_ney/loss": -float(logs.mean())} if len(logs) else {}
    return metrics.language(loss, "loss", "kneser_ney", (len(tokens) - 1) / max(tokens.raw_bytes, 1))


def check_order(corpus: Corpus, order: int) -> None:
    """Raise UserError where counting n-grams of this order exceeds the memory."""
    tokens = sum(len(tokens) for _, tokens in corpus.train)
    # A level has a key, a probability and a back-off weight for each n-gram, at most one per token; orders longer than the
    # corpus have none. Sorting adds its buffers once.
    size = 24 * tokens * min(order, tokens) + 64 * tokens
    check_memory(size, f"--order={order} of {tokens:,} tokens", "lower it")


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, count, print a table with a row per order."""
    from absl import flags

    from lm.config import load, override
    from lm.console import table
    from lm.data.corpus.prepare import prepare
    from lm.errors import check

    flag = flags.FLAGS
    data = override(load(flag.config), overrides).data
    corpus = prepare(data, report=print)
    check(corpus.holds_out, "nothing is held out: the config has validation=0")
    check_order(corpus, max(flag.order))
    rows = []
    for order in flag.order:
        began = time.monotonic()
        model = fit(corpus, order, data.packing)
        measured = evaluate(model, corpus.validation, data.packing)
        figures = [measured.get(f"kneser_ney/{name}", float("nan")) for name in ("loss", "perplexity", "bits_per_byte")]
        rows.append((order, sum(len(level.keys) for level in model.levels), *figures, time.monotonic() - began))
    print(table(rows, ("order", "n-grams", "loss", "perplexity", "bits_per_byte", "seconds")))


def define_flags() -> None:
    from absl import flags

    flags.DEFINE_string("config", "configs/gpt_nano.py", "config file whose data is counted, with its arguments: FILE.py[:ARG]")
    flags.DEFINE_multi_integer(
        "order", [5], f"tokens of the longest n-gram, 1 to {HIGHEST}, several allowed", lower_bound=1, upper_bound=HIGHEST
    )


if __name__ == "__main__":
    from lm.config import Config
    from lm.flags import run

    define_flags()
    run(main, Config)
