"""Another objective, made harder or smoother: R-Drop, adversarial vectors of tokens, smoothness around them.

    python -m lm.objectives.regularised [--config=configs/regularised_nano.py]
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lm.errors import check, check_range
from lm.models.layers import fold
from lm.models.pooling import Scores
from lm.objectives.base import Objective
from lm.objectives.classify import Classify
from lm.objectives.mixture import Parts

LEAST = 1e-2  # noise that bfloat16 can add to the vectors of tokens


@dataclass(frozen=True, kw_only=True)
class Regularised(Objective):
    """Train `objective` with more terms; what is measured, written and exported is that objective, with its parameters.

    `rdrop`: weight of the symmetric KL divergence between the label probabilities of two dropout passes, whose losses are
    averaged (Liang et al. 2021, as released: half of both directions). `adversarial`: weight of the loss at token vectors
    moved by `radius` (2-norm over each text) uphill: one step along the gradient (Miyato et al. 2017) or, with `climbs` > 1,
    so many of `stride`, each put back into the ball (Madry et al. 2018). `smoothness`: weight of the symmetric KL divergence
    between the probabilities there and where such climbs, from normal noise of `noise`, take that divergence (as Jiang et
    al. 2020 do, who measure the ball by its largest entry). Each climb costs a forward and a backward pass, each term
    another pair.

    Vectors move as the table gives them, before places and norms; a pass has the dropout of the plain one.
    """

    paper: ClassVar[str] = "Liang et al. 2021 (R-Drop); Miyato et al. 2017; Madry et al. 2018; Jiang et al. 2020 (SMART)"
    holds: ClassVar[str] = "what a batch of the objective holds"

    objective: Any
    rdrop: float = 0.0
    adversarial: float = 0.0
    smoothness: float = 0.0
    radius: float = 1.0
    stride: float = 0.3
    climbs: int = 1
    noise: float = 1e-5

    def __post_init__(self):
        check_range(self, 0, float("inf"), "rdrop", "adversarial", "smoothness", "radius", "stride", "noise")
        check_range(self, 1, float("inf"), "climbs")
        kind = self.objective.kind if isinstance(self.objective, Classify) else None
        check(
            kind in ("one", "several") or not (self.rdrop or self.smoothness),
            "rdrop and smoothness compare probabilities of labels: the objective is Classify with kind one or several",
        )
        check(
            not isinstance(self.objective, Parts),
            f"parts of {type(self.objective).__name__} have rows of their own: put Regularised around the objective of each",
        )
        dtype = getattr(self.objective.model, "dtype", "float32")
        check(
            not self.smoothness or dtype == "float32" or self.noise >= LEAST,
            f"noise={self.noise} is lost among vectors in {dtype}, and smoothness would climb by rounding: set "
            f"model.dtype=float32, or noise={LEAST} or more",
        )
        mixup = kind is not None and self.objective.mixup
        check(not (self.rdrop and mixup), "rdrop compares two passes of one text, which mixup mixes anew in each: one of them")

    # -- as the objective ----------------------------------------------------------------------------------------------

    model = property(lambda self: self.objective.model)
    records = property(lambda self: self.objective.records)
    special = property(lambda self: self.objective.special)
    writes = property(lambda self: self.objective.writes)
    inner = property(lambda self: self.objective)
    prefix = property(lambda self: self.objective.prefix)
    nats = property(lambda self: self.objective.nats)

    def around(self, objective):
        return dataclasses.replace(self, objective=objective)

    def resolve(self, tokenizer):
        return self.around(self.objective.resolve(tokenizer))

    def sized(self, vocab):
        return self.around(self.objective.sized(vocab))

    def study(self, corpus):
        return self.around(self.objective.study(corpus))

    def corrupt(self, rng, record):
        return self.objective.corrupt(rng, record)

    def init(self, key, batch):
        return self.objective.init(key, batch)

    def initial_memory(self, rows):
        return self.objective.initial_memory(rows)

    def peers(self, params, batch, keys_B):
        return self.objective.peers(params, batch, keys_B)

    def measured(self):
        return self.objective.measured()

    def prompt(self, tokenizer, text):
        return self.objective.prompt(tokenizer, text)

    def stops(self, tokenizer):
        return self.objective.stops(tokenizer)

    def writer(self, params):
        return self.objective.writer(params)

    def predict(self, params, batch):
        return self.objective.predict(params, batch)

    def show(self, tokenizer, example, found=None):
        return self.objective.show(tokenizer, example, found)

    def flops(self):
        """Count the passes: two with R-Drop, one a climb, and one at the end of each ascent."""
        ascents = bool(self.adversarial) + bool(self.smoothness)
        return self.objective.flops() * (1 + bool(self.rdrop) + ascents * (self.climbs + 1))

    # -- what is added -------------------------------------------------------------------------------------------------

    @property
    def scales(self):
        found = dict(self.objective.scales)
        if self.adversarial:
            found |= {f"adversarial/{k}": self.adversarial * s for k, s in self.objective.scales.items()}
        added = {"rdrop": self.rdrop, "smoothness": self.smoothness}
        return found | {name: weight for name, weight in added.items() if weight}

    def weights(self, batch):
        found = self.objective.weights(batch)
        more = {f"adversarial/{k}": w for k, w in found.items()} if self.adversarial else {}
        more |= {name: batch["weights"].sum() for name in ("rdrop", "smoothness") if name in self.scales}
        return {**found, **more}

    def loss(self, params, batch, memory, keys_B):
        if keys_B is None:
            return self.objective.loss(params, batch, memory, None)
        (sums, kept), logits, shapes = self.run(params, batch, memory, keys_B)
        found, weight = dict(sums), batch["weights"].sum() if "weights" in batch else None

        def terms(sums):
            return sum(scale * sums[k][0] for k, scale in self.objective.scales.items())

        def moved(deltas):
            return self.run(params, batch, memory, keys_B, deltas)

        if self.rdrop:
            (again, _), others, _ = self.run(params, batch, memory, fold(keys_B, 3001))
            found |= {k: ((sums[k][0] + again[k][0]) / 2, sums[k][1]) for k in self.objective.scales}
            found["rdrop"] = self.divergence(logits, others, batch), weight
        if self.adversarial:
            zeros = [jnp.zeros(shape, dtype) for shape, dtype in shapes]
            deltas = self.climb(lambda deltas: terms(moved(deltas)[0][0]), zeros, batch)
            worse = moved(deltas)[0][0]
            found |= {f"adversarial/{k}": worse[k] for k in self.objective.scales}
        if self.smoothness:

            def apart(deltas, reference):
                return self.divergence(reference, moved(deltas)[1], batch)

            fixed = jax.lax.stop_gradient(logits)
            deltas = [self.noise * draw(keys_B, 3002 + i, shape).astype(dtype) for i, (shape, dtype) in enumerate(shapes)]
            deltas = self.climb(lambda deltas: apart(deltas, fixed), deltas, batch)
            found["smoothness"] = apart(deltas, logits), weight
        return found, kept

    def run(self, params, batch, memory, keys_B, deltas=None):
        """Give the objective's (sums, memory), its last scores of labels or None, and (shape, dtype) of what is looked up."""
        scores, shapes, given = [], [], iter(deltas or ())

        def look(next_call, args, kwargs, context):
            found = next_call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.name == "embed":
                shapes.append((found.shape, found.dtype))
                return found if deltas is None else found + next(given)
            if context.method_name == "__call__" and isinstance(context.module, Scores):
                scores.append(found)
            return found

        with nn.intercept_methods(look):
            result = self.objective.loss(params, batch, memory, keys_B)
        return result, scores[-1] if scores else None, shapes

    def divergence(self, left_BPC, right_BPC, batch):
        """Sum the symmetric KL divergence, half of both directions, over the examples by their weights; nats."""
        if self.objective.kind == "one":
            p, q = jax.nn.log_softmax(left_BPC), jax.nn.log_softmax(right_BPC)
            apart_BP = ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1)
        else:  # each label yes or no: the differences of the logs of both add up to that of the logits
            apart_BP = ((jax.nn.sigmoid(left_BPC) - jax.nn.sigmoid(right_BPC)) * (left_BPC - right_BPC)).mean(-1)
        return jnp.sum(apart_BP / 2 * batch["weights"])

    def climb(self, value: Callable, deltas: list[jax.Array], batch) -> list[jax.Array]:
        """Move vectors uphill within the ball around the texts' own; no gradient goes through the way."""
        stride = self.radius if self.climbs == 1 else self.stride
        sides = [segments_of(i, delta.shape[:2], batch) for i, delta in enumerate(deltas)]
        for _ in range(self.climbs):
            slopes = jax.grad(value)(deltas)
            moved = [d + stride * unit(g, segments) for d, g, segments in zip(deltas, slopes, sides)]
            deltas = [within(d, self.radius, segments) for d, segments in zip(moved, sides)]
        return jax.lax.stop_gradient(deltas)


def draw(keys_B: jax.Array, site: int, shape: tuple[int, ...]) -> jax.Array:
    """Normal noise with one key a row."""
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(fold(keys_B, site))


def segments_of(number: int, shape: tuple[int, ...], batch) -> jax.Array:
    """Give the numbers of the texts in the rows that are looked up at this call of the table, from 0: a source's first."""
    sides = [batch[name] for name in ("source_segments", "segments") if name in batch and batch[name].shape == shape]
    return sides[number % len(sides)] if sides else jnp.ones(shape, jnp.int32)


def lengths(x_BTE: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Give each token the 2-norm over the vectors of its text, float32 (B, T, 1): a row may hold several."""
    square_BT = jnp.square(x_BTE.astype(jnp.float32)).sum(-1)
    same_BTT = (segments_BT[:, :, None] == segments_BT[:, None]).astype(jnp.float32)
    return jnp.sqrt(jnp.einsum("bts,bs->bt", same_BTT, square_BT))[..., None]


def unit(x_BTE: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Scale each text's vectors to norm 1; those of norm 0 stay."""
    size_BT1 = lengths(x_BTE, segments_BT)
    return (x_BTE / jnp.where(size_BT1 > 0, size_BT1, 1)).astype(x_BTE.dtype)


def within(x_BTE: jax.Array, radius: float, segments_BT: jax.Array) -> jax.Array:
    """Shorten each text's vectors to norm `radius` where they are longer."""
    size_BT1 = lengths(x_BTE, segments_BT)
    return (x_BTE * jnp.minimum(1.0, radius / jnp.where(size_BT1 > 0, size_BT1, 1))).astype(x_BTE.dtype)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/regularised_nano.py")
