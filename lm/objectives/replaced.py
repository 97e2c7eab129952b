"""Replaced-token detection: ELECTRA (Clark et al. 2020).

    python -m lm.objectives.replaced [--config=configs/electra_nano.py]

A small generator fills masked tokens by sampling; the discriminator classifies every token as original or replaced.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.corruption.masking import budget
from lm.corruption.sentences import sentences
from lm.data.rows.records import Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_range
from lm.fields import derived
from lm.models.electra import Electra, generator_of
from lm.models.flops import train_flops
from lm.models.heads import Head, cross_entropy
from lm.models.layers import fold
from lm.models.transformer import Transformer
from lm.objectives.base import Batch, Example, Objective, Sums

SHORTEST = 5  # random target length, and the remaining length for which a row takes another example


@dataclass(frozen=True, kw_only=True)
class Replaced(Objective):
    """Masked language modelling for the generator, binary classification of each token for the discriminator.

    Constants of the paper. `model` is the discriminator, the generator its smaller copy. Each document of a window is cut
    into examples [CLS] A [SEP] B [SEP] as in the authors' code; a row packs as many as fit, each in its own segment, in
    place of their padding. Tokens to predict are drawn with replacement: one drawn twice counts twice in the generator's
    loss, and its first sample is the one inserted.
    """

    paper: ClassVar[str] = "Clark et al. 2020, ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators"
    holds: ClassVar[str] = (
        "tokens (masked) original types segments positions (B, T); places targets weights (B, P); seed (B,) of the samples"
        " in evaluation"
    )

    fills: ClassVar[tuple[str, ...]] = ("fill", "gibbs")
    headless: ClassVar[bool] = True  # an export has the discriminator

    model: Transformer
    generator_width: float = 0.25  # fraction of the discriminator's; 1/3 in base, 1 in the released small
    generator_depth: float = 1.0  # fraction of the discriminator's
    rate: float = 0.15  # 0.25 in large
    mask_share: float = 0.85  # of the tokens to predict; the others are kept
    single: float = 0.1  # examples of one segment
    short: float = 0.05  # examples of a random target length
    generator_scale: float = 1.0  # coefficient of the generator's loss
    discriminator_scale: float = 50.0  # coefficient of the discriminator's loss
    cls: int | None = None  # ids, set by `resolve`
    sep: int | None = None
    mask: int | None = None
    pad: int | None = None
    separator: int | None = None
    pieces: Any = derived()

    def __post_init__(self):
        check_range(self, 0, 1, "rate", "mask_share", "single", "short")
        check_range(self, 0, float("inf"), "generator_scale", "discriminator_scale", "generator_width", "generator_depth")
        check(not self.model.mup_base, "two networks of different widths have no muP: objective.model.mup_base=0")
        check(self.model.context >= 8, f"objective.model.context={self.model.context}: give at least 8")
        check(
            round(self.model.width * self.generator_width) > 0,
            f"generator_width={self.generator_width} leaves no width",
        )

    @property
    def special(self) -> tuple[str, ...]:
        return "[PAD]", "[CLS]", "[SEP]", "[MASK]"

    @property
    def records(self) -> Windows:
        return Windows(length=self.model.context - 3, stride=self.model.context - 3)  # three specials an example

    @property
    def scales(self) -> Mapping[str, float]:
        return {"generator": self.generator_scale, "discriminator": self.discriminator_scale}

    @property
    def generator(self) -> Transformer:
        return generator_of(self.model, self.generator_width, self.generator_depth)

    @property
    def predictions(self) -> int:
        """Return the number of predictions in a row, P."""
        return max(1, int((self.rate + 0.005) * self.model.context))

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        length, most = self.model.context, self.predictions
        row = {name: np.zeros(length, np.int32) for name in ("original", "types", "segments", "positions")}
        row["original"][:] = self.pad
        masked, drawings, at = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], 0
        for number, (first, second) in enumerate(self.examples(rng, record), 1):
            # Truncated at the row's end, with space for the special tokens.
            first = first[: max(0, length - at - 2)]
            second = second[: max(0, length - at - 3 - len(first))]
            tail = [second, [self.sep]] if len(second) else []
            ids = np.concatenate([[self.cls], first, [self.sep], *tail])
            span = slice(at, at + len(ids))
            row["original"][span], row["segments"][span], row["positions"][span] = ids, number, np.arange(len(ids))
            row["types"][at + len(first) + 2 : span.stop] = 1
            # The row's P predictions go to its examples in order, to each by its own length.
            drawn = at + self.draw(rng, ids, most - sum(map(len, drawings)))
            drawings.append(drawn)
            # The others stay as they are, none is replaced at random as in BERT: replacements are the generator's part.
            masked.append(drawn[rng.random(len(drawn)) < self.mask_share])
            at = span.stop
            if length - at < SHORTEST:
                break

        # `original` stays whole: samples are inserted into it, and the discriminator's labels compare with it.
        tokens = row["original"].copy()
        tokens[np.concatenate(masked).astype(np.int32)] = self.mask
        # P is fixed, so that all batches have one shape; unused predictions have weight 0.
        places = np.concatenate(drawings).astype(np.int32)
        weights = (np.arange(most) < len(places)).astype(np.float32)
        places = np.pad(places, (0, most - len(places)))
        targets = np.where(weights > 0, row["original"][places], 0).astype(np.int32)
        seed = np.array(rng.integers(2**31), np.int32)
        return {"tokens": tokens, **row, "places": places, "targets": targets, "weights": weights, "seed": seed}

    def examples(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield both segments of each example: whole sentences of one document up to a target length."""
        tokens, begins, ends, documents = sentences(record, self.pieces.ends_sentence, self.separator)
        at = 0
        while at < len(begins):
            long = rng.random() >= self.short
            target = self.model.context if long else int(rng.integers(SHORTEST, self.model.context + 1))
            # The sentence that reaches the target length is still taken, unless the document ends before it.
            full = at + int(np.searchsorted(ends[at:] - begins[at], target)) + 1
            stop = min(full, int(np.searchsorted(documents, documents[at], "right")))
            sizes = ends[at:stop] - begins[at:stop]
            second = np.repeat(self.assign(rng, sizes.tolist(), target), sizes)
            ids = tokens[begins[at] : ends[stop - 1]]
            yield ids[~second], ids[second]
            at = stop

    def assign(self, rng: np.random.Generator, sizes: list[int], target: int) -> list[bool]:
        """Return of each sentence whether it goes into the second segment, as in the authors' code."""
        goal = float("inf") if rng.random() < self.single else (target - 3) // 2
        first = 0
        seconds: list[bool] = []
        for size in sizes:
            # As released, a short sentence goes to the first segment even after one went to the second.
            fits = first == 0 or first + size < goal
            is_first = fits or (not any(seconds) and first < goal and rng.random() < 0.5)
            seconds.append(not is_first)
            first += size * is_first
        return seconds

    def draw(self, rng: np.random.Generator, ids: np.ndarray, most: int) -> np.ndarray:
        """Draw the positions to predict in an example, sorted, with replacement."""
        open = np.flatnonzero((ids != self.cls) & (ids != self.sep) & (ids != self.mask) & (ids != self.pad))
        count = budget(len(ids), self.rate, most) if len(open) else 0
        return np.sort(open[rng.integers(0, len(open), count)]) if count > 0 else open[:0]

    @property
    def network(self) -> Electra:
        return Electra(self.generator, self.model)

    def masked_network(self) -> Electra:
        return self.network

    def init(self, key: jax.Array, batch: Batch) -> Any:
        return self.network.init(key, batch["tokens"], batch["places"])["params"]

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        # The discriminator learns from every token but padding, special ones included, not from the masked 15 % alone.
        return {"generator": batch["weights"].sum(), "discriminator": jnp.sum(batch["segments"] > 0, dtype=jnp.float32)}

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        (h_BPE, head), fake_BT, logits_BT = self.play(params, batch, keys_B)
        generator = cross_entropy(h_BPE, head, batch["targets"], batch["weights"])
        real_BT = (batch["segments"] > 0).astype(jnp.float32)
        # A sample equal to the original counts as original (section 2.2).
        replaced_BT, flagged_BT = fake_BT != batch["original"], logits_BT > 0
        counts = self.weights(batch)
        # Binary cross-entropy by softplus, which neither overflows nor takes the logarithm of 0.
        nll = jnp.sum(real_BT * (jax.nn.softplus(logits_BT) - logits_BT * replaced_BT))
        # Counts, not ratios: precision, recall and F1 of the batch are no means of those of its micro-batches.
        flagged, replaced, both = (jnp.sum(real_BT * x) for x in (flagged_BT, replaced_BT, flagged_BT & replaced_BT))
        return {
            "generator": (generator["total"], counts["generator"]),
            "generator_accuracy": (generator["hits"], counts["generator"]),
            "discriminator": (nll, counts["discriminator"]),
            "accuracy": (jnp.sum(real_BT * (flagged_BT == replaced_BT)), counts["discriminator"]),
            "replaced": (replaced, counts["discriminator"]),
            "precision": (both, flagged),
            "recall": (both, replaced),
            "f1": (2 * both, flagged + replaced),
        }, memory

    def play(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> tuple[tuple[jax.Array, Head], jax.Array, jax.Array]:
        """Run both networks; return the generator's (states, head), the row with its samples and the logits, (B, T)."""
        layout = batch["positions"], batch["segments"], batch["types"]
        network, variables = self.network, {"params": params}
        h_BPE, head = network.apply(variables, batch["tokens"], batch["places"], *layout, keys_B, method="guess")
        # Evaluation still samples, from the row's own seed, so that its figures are deterministic.
        keys = jax.vmap(jax.random.key)(batch["seed"]) if keys_B is None else fold(keys_B, 3)
        # No gradient flows through sampling: the generator learns from its own loss alone (section 2.2).
        sampled_BP = sample(jax.lax.stop_gradient(h_BPE), jax.lax.stop_gradient(head), keys)
        fake_BT = insert_samples(batch, sampled_BP)
        logits_BT, _ = network.apply(variables, fake_BT, *layout, keys_B, method="judge")
        return (h_BPE, head), fake_BT, logits_BT

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        _, fake_BT, logits_BT = self.play(params, batch, None)
        return {"fake": fake_BT, "chance": jax.nn.sigmoid(logits_BT)}

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        real = example["segments"] > 0

        def text(ids: np.ndarray, marks: np.ndarray | None = None, sides: str = "[]") -> str:
            pieces = [tokenizer.decode([i], special=True).strip() for i in ids[real]]
            marks = np.zeros(len(pieces), bool) if marks is None else marks[real]
            shown = [f"{sides[0]}{piece}{sides[1]}" if mark else piece for piece, mark in zip(pieces, marks)]
            spaces = np.where(self.pieces.word_starts(ids[real]), " ", "")
            return "".join(f"{space}{piece}" for space, piece in zip(spaces, shown)).strip()

        lines = [f"original       {text(example['original'])}", f"masked         {text(example['tokens'])}"]
        if found is not None:
            changed = found["fake"] != example["original"]
            lines += [f"generator      {text(found['fake'], changed)}"]
            lines += [f"discriminator  {text(found['fake'], found['chance'] > 0.5, '<>')}"]
        return "\n".join(lines)

    def flops(self) -> float:
        length, small = self.model.context, self.generator
        stacks = sum(train_flops(dataclasses.replace(c, vocab=0), length) for c in (self.model, small))
        head = 8 * self.model.vocab * self.model.embed_size  # forward and backward, and forward again to sample
        return stacks * length + head * self.predictions


def sample(h_BPE: jax.Array, head: Head, keys_B: jax.Array, chunk: int = 2**24) -> jax.Array:
    """Sample a token for each state, (B, P), by the Gumbel-max trick; about `chunk` logits at a time."""
    rows, places, _ = h_BPE.shape
    size = head.table_VD.shape[0]

    def draw(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        h_BE, place = state
        # The key is of the row and the place, so that a sample depends neither on chunks nor on micro-batches.
        uniform_BV = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(fold(keys_B, place))
        # The constants are those of the authors' code.
        noise_BV = -jnp.log(-jnp.log(uniform_BV + 1e-9) + 1e-9)
        return jnp.argmax(head.logits(h_BE) + noise_BV, -1).astype(jnp.int32)

    # In chunks of positions: noise and logits (B, P, V) at once would dominate memory.
    at_once = max(1, min(places, chunk // (rows * size)))
    return jax.lax.map(draw, (h_BPE.swapaxes(0, 1), jnp.arange(places)), batch_size=at_once).T


def insert_samples(batch: Batch, sampled_BP: jax.Array) -> jax.Array:
    """Insert the samples into the original row; of a position drawn more than once, the first."""
    places_BP, length = batch["places"], batch["original"].shape[1]
    repeated_BP = jnp.pad(places_BP[:, 1:] == places_BP[:, :-1], ((0, 0), (1, 0)))
    places_BP = jnp.where((batch["weights"] > 0) & ~repeated_BP, places_BP, length)  # length: out of range, dropped
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(batch["original"], places_BP, sampled_BP)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/electra_nano.py")
