"""Permutation language modelling: XLNet (Yang et al. 2019).

python -m lm.objectives.permuted [--config=configs/xlnet_nano.py]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.corruption.permutation import NEVER, choose, elsewhere, join, orders, pair, ranks, trim
from lm.data.rows.prompts import Prompt, continued
from lm.data.rows.records import Windows
from lm.data.text.words import SENTENCE, WORD
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_range
from lm.fields import derived
from lm.models.heads import Head, cross_entropy
from lm.models.two_stream import TwoStream, XLNet
from lm.objectives.base import Batch, Example, Objective, Sums

FIRST, SECOND, LAST = 0, 1, 2  # token types of the reused context and A, of B, of <cls>


@dataclass(frozen=True, kw_only=True)
class Permuted(Objective):
    """Predict `predictions` tokens of a row, each from its predecessors in a random factorisation order (2.2).

    A row is `reuse` tokens that continue the row before (and are in the memory of the row after), then A <sep> B <sep>
    <cls>; an order covers `block` positions. `alpha` / `beta` is the context of a span in span lengths, 1 to `longest`
    tokens. `mirrored`: every second row of a batch reads the text from right to left. The pair's label is in the batch,
    but, as in the release, not in the loss.
    """

    paper: ClassVar[str] = "Yang et al. 2019 (XLNet)"
    holds: ClassVar[str] = "tokens types rank reach (B, T); places targets weights (B, P); backward pair (B,); memory"

    writes: ClassVar[str] = "text"

    model: XLNet
    reuse: int = 0  # 0: half of the context
    block: int = 0  # 0: reuse
    predictions: int = 0  # 0: a sixth of the context
    alpha: int = 6
    beta: int = 1
    longest: int = 5
    mirrored: bool = True
    template: bool = False  # a text starts with its first token (published models), not with the separator
    separator: int | None = None  # of documents; these three ids are set by `resolve`
    sep: int = 0
    cls: int = 0
    pieces: Any = derived()

    def __post_init__(self):
        check_range(self, 0, float("inf"), "reuse", "block", "predictions")
        check_range(self, 1, float("inf"), "alpha", "beta", "longest")
        context, (_, rest) = self.model.context, self.halves
        check(rest >= 5, f"reuse={self.reuse} leaves {rest} of context={context}: A <sep> B <sep> <cls> need 5")
        uneven = [half for half in self.halves if half % self.order_size]
        check(not uneven, f"block={self.order_size} must divide both halves of a row, {self.halves}")
        check(self.count <= self.halves[0], f"predictions={self.count} is more than the half of a row has")

    @property
    def halves(self) -> tuple[int, int]:
        first = self.reuse or self.model.context // 2
        return first, self.model.context - first

    @property
    def order_size(self) -> int:
        """Return the number of positions in one factorisation order."""
        return self.block or self.halves[0]

    @property
    def count(self) -> int:
        """Return the number of predictions in a row, P."""
        return self.predictions or self.model.context // 6

    @property
    def slack(self) -> int:
        """Return the number of tokens read beyond a row, so that its last sentence can be whole."""
        return self.halves[1] // 4

    @property
    def records(self) -> Windows:
        length = self.model.context - 3 + self.slack
        return Windows(length=length, stride=self.halves[0], others=1, order="reading", mirrored=self.mirrored)

    @property
    def special(self) -> tuple[str, ...]:
        return "<sep>", "<cls>"

    # -- on the host -----------------------------------------------------------------------------------------------------

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        reuse, length = self.halves[0], self.model.context
        tokens, starts, types, real_T, label = self.compose(rng, record)
        free = (tokens != self.sep) & (tokens != self.cls)
        target, parts = np.zeros(length, bool), []
        turn = -1 if record["backward"] else 1  # spans start at the first piece of a word in either direction
        # Each half has an order of its own, as in the release: the first one becomes memory, so it must not see the second.
        # The odd prediction is the first half's (43 and 42 of 85 in the release).
        for low, high, goal in ((0, reuse, self.count - self.count // 2), (reuse, length, self.count // 2)):
            half = slice(low, high)
            allowed = (free & real_T)[half]
            chosen = choose(rng, starts[half][::turn], allowed[::turn], goal, self.alpha, self.beta, self.longest)
            target[half] = chosen[::turn]
            parts.append(ranks(orders(rng, high - low, self.order_size), target[half], (real_T & ~free)[half]))
        rank, reach = join(*parts)
        rank[~real_T] = NEVER  # padding is attended to by no position
        positions = np.flatnonzero(target)
        places, targets = np.zeros((2, self.count), np.int32)
        places[: len(positions)], targets[: len(positions)] = positions, tokens[positions]
        return {
            "tokens": tokens,
            "types": types,
            "rank": rank,
            "reach": reach,
            "places": places,
            "targets": targets,
            "weights": (np.arange(self.count) < len(positions)).astype(np.float32),
            "backward": np.array(record["backward"], np.int32),
            "pair": np.array(label, np.int32),
        }

    def compose(
        self, rng: np.random.Generator, record: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
        """Lay a row out: tokens, word starts, types, a mask of text as opposed to padding, each (T,), and the pair's label."""
        reuse, limit = self.halves[0], self.halves[1] - 3
        real = int(np.count_nonzero(record["segments"]))
        source, borders = self.read(record)
        # The reused context belongs to the row before: A and B are cut from the text behind it.
        cut, end, label = pair(rng, borders[reuse : max(reuse, real)], limit)
        second, low, high = source, reuse + cut, reuse + end
        if not label:  # B is from another window
            second, other = self.read(record["others"][0])
            low, high = elsewhere(other, self.slack, max(1, limit - cut))
        size_a, size_b = trim(cut, high - low, limit)
        sep, cls, rest = [[self.sep], [1]], [[self.cls], [1]], limit - size_a - size_b
        padding = np.zeros((2, rest), np.int32)
        parts: list[Any] = [source[:, : reuse + size_a], sep, second[:, low : low + size_b], sep, cls, padding]
        tokens, starts = np.concatenate(parts, 1, dtype=np.int32)
        sizes = reuse + size_a + 1, size_b + 1, 1, rest
        # Padding is behind <cls>, and in the reused context of a window at the end of the stream.
        real_T = np.repeat([True, False, True, False], (min(real, reuse), max(0, reuse - real), sum(sizes[:3]) - reuse, rest))
        return tokens, starts > 0, np.repeat(np.array([FIRST, SECOND, LAST, FIRST], np.int32), sizes), real_T, label

    def read(self, record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and word starts of a window, (2, length), and sentence starts in reading direction, (length,).

        In a mirrored row a sentence starts with its last token.
        """
        turn = -1 if record["backward"] else 1
        tokens, begins = record["tokens"][::turn], np.zeros(len(record["tokens"]) + 1, bool)
        # Found in the order of the text, mirrored or not: a piece shows that it starts a word, not that it ends one.
        if record["marked"]:
            marks = record["marks"][::turn]
            starts, begins[:-1] = marks & WORD, marks & SENTENCE
        else:
            starts = self.pieces.word_starts(tokens)
            begins[1:] = self.pieces.ends_sentence[tokens] | (tokens == (-1 if self.separator is None else self.separator))
        return np.stack([tokens, starts])[:, ::turn], begins[::turn][:-1]

    # -- on the device ---------------------------------------------------------------------------------------------------

    def prompt(self, tokenizer: Tokenizer, text: str) -> Prompt:
        """Encode the text alone; <sep> and <cls> may be written in it."""
        return Prompt(tokenizer.encode(text, special=True)) if text else continued(tokenizer, text)

    def lead(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return () if self.template else super().lead(tokenizer)

    def encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        return tokenizer.encode_batch(list(texts), special=self.template)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        return TwoStream(self.model).init(key, batch["tokens"])["params"]

    def initial_memory(self, rows: int) -> Any:
        c = self.model
        return jnp.zeros((rows, c.depth, c.memory, c.width), c.dtype) if c.memory else None

    def states(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[jax.Array, Head, Any]:
        """Return query-stream states (B, P, D), the vocabulary head, and the memory of the next batch."""
        variables = {"params": params}
        _, g_BPD, memory = TwoStream(self.model).apply(
            variables,
            batch["tokens"],
            types_BT=batch["types"],
            rank_BT=batch["rank"],
            reach_BT=batch["reach"],
            places_BP=batch["places"],
            backward_B=batch["backward"] if self.mirrored else None,
            memory_BLMD=memory,
            reuse=self.halves[0],
            keys_B=keys_B,
        )
        return g_BPD, TwoStream(self.model).apply(variables, method="head"), memory

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        g_BPD, head, memory = self.states(params, batch, memory, keys_B)
        sums = cross_entropy(g_BPD, head, batch["targets"], batch["weights"])
        count = batch["weights"].sum()
        return {"loss": (sums["total"], count), "accuracy": (sums["hits"], count)}, memory

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        g_BPD, head, _ = self.states(params, batch, None, None)
        return {"guess": head.logits(g_BPD).argmax(-1).astype(jnp.int32)}

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        counted, real = example["weights"] > 0, example["rank"] != NEVER
        places, targets = example["places"][counted], example["targets"][counted]
        turn = -1 if example["backward"] else 1
        pieces = np.array(tokenizer.pieces(example["tokens"]), object)
        gaps = pieces.copy()
        gaps[places] = "[?]"
        order = np.argsort(example["rank"][places])
        lines = [f"text    {''.join(pieces[real][::turn])!r}", f"reads   {''.join(gaps[real][::turn])!r}"]
        lines[1] += " from right to left" if turn < 0 else ""
        lines.append("asks    " + " ".join(f"{places[i]}:{pieces[places[i]]!r}" for i in order))
        if found is not None:
            guess = found["guess"][counted]
            names = tokenizer.pieces(guess)
            right = np.mean(guess == targets) if len(targets) else 0.0
            lines.append("guesses " + " ".join(f"{places[i]}:{names[i]!r}" for i in order) + f" ({right:.0%} right)")
        return "\n".join(lines)

    def flops(self) -> float:
        """Count 6 operations a product in both streams, with the memory's keys and values.

        The projection of relative positions is shared by the rows of a batch and not counted.
        """
        c = self.model
        inner, queries, keys = c.heads * c.head_size, c.context + self.count, c.memory + c.context
        projections = c.width * inner * (2 * queries + 2 * keys)
        # Contents and values over the keys; positions over all M + 2 T distances, of which the shift then picks.
        scores = inner * queries * (2 * keys + keys + c.context)
        feed = 2 * c.width * c.mlp_size * queries
        return 6.0 * (c.depth * (projections + scores + feed) + self.count * c.vocab * c.width)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/xlnet_nano.py")
