"""Replaced-token detection: ELECTRA (Clark et al. 2020).

    python -m lm.objectives.replaced [--config=configs/electra_nano.py]

A small generator fills masked tokens by sampling; the discriminator says of every token whether it is the original.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.corruption.masking import budget
from lm.corruption.sentences import sentences
from lm.data.rows.records import Windows
from lm.errors import check, check_range
from lm.fields import derived
from lm.models.electra import Electra, generator_of
from lm.models.flops import train_flops
from lm.models.heads import Head, cross_entropy
from lm.models.layers import fold
from lm.models.transformer import Transformer
from lm.objectives.base import Objective, fit

SHORTEST = 5  # of the random target lengths, and the least room in which a row takes one more example


@dataclass(frozen=True, kw_only=True)
class Replaced(Objective):
    """Masked language modelling for the generator, a binary question a token for the discriminator; constants of the paper.

    `model` is the discriminator, the generator its shrunken copy. Each document of a window is cut into examples
    [CLS] A [SEP] B [SEP] as in the authors' code; a row holds as many of them as fit, each in a segment of its own, where
    theirs pads. Tokens to predict are drawn with replacement: one drawn twice counts twice in the generator's loss, and
    the sample of its first draw is the one that is written.
    """

    paper: ClassVar[str] = (
        "Clark et al. 2020, ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators"
    )
    holds: ClassVar[str] = (
        "tokens (masked) original types segments positions (B, T); places targets weights (B, P); seed (B,) of the samples"
        " in evaluation"
    )

    fills: ClassVar[tuple[str, ...]] = ("fill", "gibbs")
    headless: ClassVar[bool] = True  # an export has the discriminator

    model: Transformer
    generator_width: float = 0.25  # share of the discriminator's; 1/3 in base, 1 in the released small
    generator_depth: float = 1.0
    rate: float = 0.15  # 0.25 in large
    mask_share: float = 0.85  # of the tokens to predict; the others stay as they are
    single: float = 0.1  # examples of one segment
    short: float = 0.05  # examples of a random target length
    generator_scale: float = 1.0
    discriminator_scale: float = 50.0
    cls: int | None = None  # these are filled in by `resolve`
    sep: int | None = None
    mask: int | None = None
    pad: int | None = None
    separator: int | None = None
    pieces: Any = derived()

    def __post_init__(self):
        check_range(self, 0, 1, "rate", "mask_share", "single", "short")
        check_range(
            self, 0, float("inf"), "generator_scale", "discriminator_scale", "generator_width", "generator_depth"
        )
        check(not self.model.mup_base, "two networks of different widths have no muP: objective.model.mup_base=0")
        check(self.model.context >= 8, f"objective.model.context={self.model.context}: give at least 8")
        check(
            round(self.model.width * self.generator_width) > 0,
            f"generator_width={self.generator_width} leaves no width",
        )

    @property
    def special(self):
        return "[PAD]", "[CLS]", "[SEP]", "[MASK]"

    @property
    def records(self):
        return Windows(length=self.model.context - 3, stride=self.model.context - 3)  # three specials an example

    @property
    def scales(self):
        return {"generator": self.generator_scale, "discriminator": self.discriminator_scale}

    @property
    def generator(self) -> Transformer:
        return generator_of(self.model, self.generator_width, self.generator_depth)

    @property
    def predictions(self) -> int:
        """Places P of a row."""
        return max(1, int((self.rate + 0.005) * self.model.context))

    def resolve(self, tokenizer):
        ids = {name[1:-1].lower(): tokenizer.special_id(name) for name in self.special}
        model, pieces = fit(self.model, tokenizer), tokenizer.piece_table()
        return dataclasses.replace(self, model=model, pieces=pieces, separator=tokenizer.separator, **ids)

    def corrupt(self, rng, record):
        length, most = self.model.context, self.predictions
        row = {name: np.zeros(length, np.int32) for name in ("original", "types", "segments", "positions")}
        row["original"][:] = self.pad
        masked, places, at = [], [], 0
        for number, (first, second) in enumerate(self.examples(rng, record), 1):
            first = first[: max(0, length - at - 2)]
            second = second[: max(0, length - at - 3 - len(first))]
            tail = [second, [self.sep]] if len(second) else []
            ids = np.concatenate([[self.cls], first, [self.sep], *tail])
            here = slice(at, at + len(ids))
            row["original"][here], row["segments"][here], row["positions"][here] = ids, number, np.arange(len(ids))
            row["types"][at + len(first) + 2 : here.stop] = 1
            drawn = at + self.draw(rng, ids, most - sum(map(len, places)))
            places.append(drawn)
            masked.append(drawn[rng.random(len(drawn)) < self.mask_share])
            at = here.stop
            if length - at < SHORTEST:
                break
        tokens = row["original"].copy()
        places, masked = (
            np.concatenate([np.zeros(0, np.int32), *found]).astype(np.int32) for found in (places, masked)
        )
        tokens[masked] = self.mask
        weights = (np.arange(most) < len(places)).astype(np.float32)
        places = np.pad(places, (0, most - len(places)))
        targets = np.where(weights > 0, row["original"][places], 0).astype(np.int32)
        seed = np.int32(rng.integers(2**31))
        return {"tokens": tokens, **row, "places": places, "targets": targets, "weights": weights, "seed": seed}

    def examples(self, rng, record) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give the two segments of each example: whole sentences of one document up to a target length."""
        tokens, begins, ends, documents = sentences(record, self.pieces.ends_sentence, self.separator)
        at = 0
        while at < len(begins):
            long = rng.random() >= self.short
            target = self.model.context if long else int(rng.integers(SHORTEST, self.model.context + 1))
            full = at + int(np.searchsorted(ends[at:] - begins[at], target)) + 1
            stop = min(full, int(np.searchsorted(documents, documents[at], "right")))
            sizes = ends[at:stop] - begins[at:stop]
            second = np.repeat(self.assign(rng, sizes.tolist(), target), sizes)
            ids = tokens[begins[at] : ends[stop - 1]]
            yield ids[~second], ids[second]
            at = stop

    def assign(self, rng, sizes: list[int], target: int) -> list[bool]:
        """Tell of each sentence whether it goes to the second segment, as the authors' code does."""
        goal = float("inf") if rng.random() < self.single else (target - 3) // 2
        first, seconds = 0, []
        for size in sizes:
            fits = first == 0 or first + size < goal
            mine = fits or (not any(seconds) and first < goal and rng.random() < 0.5)
            seconds.append(not mine)
            first += size * mine
        return seconds

    def draw(self, rng, ids: np.ndarray, most: int) -> np.ndarray:
        """Draw the tokens of an example to predict, in order, with replacement."""
        open = np.flatnonzero((ids != self.cls) & (ids != self.sep) & (ids != self.mask) & (ids != self.pad))
        count = budget(len(ids), self.rate, most) if len(open) else 0
        return np.sort(open[rng.integers(0, len(open), count)]) if count > 0 else open[:0]

    @property
    def network(self) -> Electra:
        return Electra(self.generator, self.model)

    def masked_network(self):
        return Electra(self.generator, self.model)

    def init(self, key, batch):
        return self.network.init(key, batch["tokens"], batch["places"])["params"]

    def weights(self, batch):
        return {"generator": batch["weights"].sum(), "discriminator": jnp.sum(batch["segments"] > 0, dtype=jnp.float32)}

    def loss(self, params, batch, memory, keys_B):
        (h_BPE, head), fake_BT, logits_BT = self.play(params, batch, keys_B)
        found = cross_entropy(h_BPE, head, batch["targets"], batch["weights"])
        real_BT = (batch["segments"] > 0).astype(jnp.float32)
        replaced_BT, said_BT = fake_BT != batch["original"], logits_BT > 0
        counts = self.weights(batch)
        nll = jnp.sum(real_BT * (jax.nn.softplus(logits_BT) - logits_BT * replaced_BT))
        said, truly, both = (jnp.sum(real_BT * x) for x in (said_BT, replaced_BT, said_BT & replaced_BT))
        return {
            "generator": (found["total"], counts["generator"]),
            "generator_accuracy": (found["hits"], counts["generator"]),
            "discriminator": (nll, counts["discriminator"]),
            "accuracy": (jnp.sum(real_BT * (said_BT == replaced_BT)), counts["discriminator"]),
            "replaced": (truly, counts["discriminator"]),
            "precision": (both, said),
            "recall": (both, truly),
            "f1": (2 * both, said + truly),
        }, memory

    def play(self, params, batch, keys_B):
        """Run both networks: the generator's (states, head), the row with its samples (B, T), the judgements (B, T)."""
        place = batch["positions"], batch["segments"], batch["types"]
        apply = self.network.apply
        guess = apply({"params": params}, batch["tokens"], batch["places"], *place, keys_B, method="guess")
        # Without keys the samples still must be drawn: from the row's own seed, so that they never change.
        keys = jax.vmap(jax.random.key)(batch["seed"]) if keys_B is None else fold(keys_B, 3)
        sampled_BP = sample(*jax.lax.stop_gradient(guess), keys)
        fake_BT = write(batch, sampled_BP)
        logits_BT, _ = apply({"params": params}, fake_BT, *place, keys_B, method="judge")
        return guess, fake_BT, logits_BT

    def predict(self, params, batch):
        _, fake_BT, logits_BT = self.play(params, batch, None)
        return {"fake": fake_BT, "chance": jax.nn.sigmoid(logits_BT)}

    def show(self, tokenizer, example, found=None):
        real = example["segments"] > 0

        def text(ids, marks=None, sides="[]"):
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

    def flops(self):
        length, small = self.model.context, self.generator
        stacks = sum(train_flops(dataclasses.replace(c, vocab=0), length) for c in (self.model, small))
        head = 8 * self.model.vocab * self.model.embed_size  # forward and backward, and forward again to sample
        return stacks * length + head * self.predictions


def sample(h_BPE: jax.Array, head: Head, keys_B: jax.Array, chunk: int = 2**24) -> jax.Array:
    """Draw a token for each state, (B, P), by adding Gumbel noise to the logits; about `chunk` logits at a time."""
    rows, places, _ = h_BPE.shape
    size = head.table_VD.shape[0]

    def one(state):
        h_BE, place = state
        uniform_BV = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(fold(keys_B, place))
        noise_BV = -jnp.log(-jnp.log(uniform_BV + 1e-9) + 1e-9)
        return jnp.argmax(head.logits(h_BE) + noise_BV, -1).astype(jnp.int32)

    at_once = max(1, min(places, chunk // (rows * size)))
    return jax.lax.map(one, (h_BPE.swapaxes(0, 1), jnp.arange(places)), batch_size=at_once).T


def write(batch, sampled_BP: jax.Array) -> jax.Array:
    """Put the samples in the original row: where a place was drawn more than once, its first one."""
    places_BP, length = batch["places"], batch["original"].shape[1]
    again_BP = jnp.pad(places_BP[:, 1:] == places_BP[:, :-1], ((0, 0), (1, 0)))
    places_BP = jnp.where((batch["weights"] > 0) & ~again_BP, places_BP, length)
    return jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(batch["original"], places_BP, sampled_BP)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/electra_nano.py")
