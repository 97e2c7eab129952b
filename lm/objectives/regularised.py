"""Regularisation of another objective: R-Drop, adversarial perturbation of embeddings, smoothness (SMART).

python -m lm.objectives.regularised [--config=configs/regularised_nano.py]
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lm.data.corpus.corpus import Corpus
from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_range
from lm.models.layers import fold
from lm.models.pooling import Scores
from lm.objectives.base import Batch, Example, Objective, Sums
from lm.objectives.classify import Classify
from lm.objectives.mixture import Parts

LEAST = 1e-2  # smallest noise that changes embeddings in bfloat16


@dataclass(frozen=True, kw_only=True)
class Regularised(Objective):
    """Train `objective` with additional terms; evaluation, generation and export use that objective and its parameters.

    `rdrop`: weight of the symmetric KL divergence between the label distributions of two dropout passes, whose losses are
    averaged (Liang et al. 2021, as released: half of both directions). `adversarial`: weight of the loss at embeddings
    perturbed by `radius` (2-norm over each text) along the gradient (Miyato et al. 2017) or, with `climbs` > 1, by that many
    steps of `stride`, each projected onto the ball (Madry et al. 2018). `smoothness`: weight of the symmetric KL divergence
    between the distributions at clean and at perturbed embeddings, which start at normal noise of standard deviation `noise`
    and ascend that divergence (as Jiang et al. 2020, who use the infinity norm). Each ascent step costs a forward and a
    backward pass, each term another pair.

    Embeddings are perturbed as looked up, before positions and norms; perturbed passes share the dropout of the plain one.
    """

    paper: ClassVar[str] = "Liang et al. 2021 (R-Drop); Miyato et al. 2017; Madry et al. 2018; Jiang et al. 2020 (SMART)"
    holds: ClassVar[str] = "the arrays of the objective"

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

    def around(self, objective: Objective) -> "Regularised":
        """Wrap another objective with the same terms."""
        return dataclasses.replace(self, objective=objective)

    def resolve(self, tokenizer: Tokenizer) -> "Regularised":
        return self.around(self.objective.resolve(tokenizer))

    def sized(self, vocab: int) -> "Regularised":
        return self.around(self.objective.sized(vocab))

    def study(self, corpus: Corpus) -> "Regularised":
        return self.around(self.objective.study(corpus))

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        return self.objective.corrupt(rng, record)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        return self.objective.init(key, batch)

    def initial_memory(self, rows: int) -> Any:
        return self.objective.initial_memory(rows)

    def peers(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> jax.Array | None:
        return self.objective.peers(params, batch, keys_B)

    def measured(self) -> Objective:
        return self.objective.measured()

    def prompt(self, tokenizer: Tokenizer, text: str) -> Prompt:
        return self.objective.prompt(tokenizer, text)

    def stops(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        return self.objective.stops(tokenizer)

    def writer(self, params: Any) -> tuple[Objective, Any]:
        return self.objective.writer(params)

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        return self.objective.predict(params, batch)

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        return self.objective.show(tokenizer, example, found)

    def flops(self) -> float:
        """Count the passes: two with R-Drop, one an ascent step, and one at the end of each ascent."""
        ascents = bool(self.adversarial) + bool(self.smoothness)
        return self.objective.flops() * (1 + bool(self.rdrop) + ascents * (self.climbs + 1))

    # -- additional terms ------------------------------------------------------------------------------------------------

    @property
    def scales(self) -> Mapping[str, float]:
        scales = dict(self.objective.scales)
        if self.adversarial:
            scales |= {f"adversarial/{k}": self.adversarial * s for k, s in self.objective.scales.items()}
        added = {"rdrop": self.rdrop, "smoothness": self.smoothness}
        return scales | {name: weight for name, weight in added.items() if weight}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        own = self.objective.weights(batch)
        more = {f"adversarial/{k}": w for k, w in own.items()} if self.adversarial else {}
        more |= {name: batch["weights"].sum() for name in ("rdrop", "smoothness") if name in self.scales}
        return {**own, **more}

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        # Held-out figures are the inner objective's, comparable with those of a run without these terms.
        if keys_B is None:
            return self.objective.loss(params, batch, memory, None)
        # All passes read the memory of the batch before; the unperturbed one writes the next.
        (sums, next_memory), logits, shapes = self.run(params, batch, memory, keys_B)
        result, weight = dict(sums), batch["weights"].sum() if "weights" in batch else None

        def terms(sums: Sums) -> jax.Array:
            return sum(scale * sums[k][0] for k, scale in self.objective.scales.items())

        def perturbed(deltas: list[jax.Array]) -> tuple[tuple[Sums, Any], jax.Array | None, list]:
            return self.run(params, batch, memory, keys_B, deltas)

        if self.rdrop:
            # Keys folded with a constant of its own: the second pass draws other dropout masks.
            (again, _), others, _ = self.run(params, batch, memory, fold(keys_B, 3001))
            result |= {k: ((sums[k][0] + again[k][0]) / 2, sums[k][1]) for k in self.objective.scales}
            result["rdrop"] = self.divergence(logits, others, batch), weight
        if self.adversarial:
            # One perturbation for the weighted sum of all terms, as one gradient suffices.
            zeros = [jnp.zeros(shape, dtype) for shape, dtype in shapes]
            deltas = self.climb(lambda deltas: terms(perturbed(deltas)[0][0]), zeros, batch)
            worse = perturbed(deltas)[0][0]
            result |= {f"adversarial/{k}": worse[k] for k in self.objective.scales}
        if self.smoothness:

            def apart(deltas: list[jax.Array], reference: jax.Array) -> jax.Array:
                return self.divergence(reference, perturbed(deltas)[1], batch)

            # Ascent starts at noise, as the divergence has no gradient at 0; its reference is constant, that of the term not.
            fixed = jax.lax.stop_gradient(logits)
            deltas = [self.noise * draw(keys_B, 3002 + i, shape).astype(dtype) for i, (shape, dtype) in enumerate(shapes)]
            deltas = self.climb(lambda deltas: apart(deltas, fixed), deltas, batch)
            result["smoothness"] = apart(deltas, logits), weight
        return result, next_memory

    def run(
        self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None, deltas: list[jax.Array] | None = None
    ) -> tuple[tuple[Sums, Any], jax.Array | None, list[tuple[tuple[int, ...], Any]]]:
        """Run the inner loss with embeddings moved by `deltas`, one a look-up.

        Returns its (sums, memory), its label logits or None, and the (shape, dtype) of each look-up.
        """
        scores, shapes, remaining = [], [], iter(deltas or ())

        # Intercepted, so that any objective can be perturbed without an argument for it in every network.
        def look(next_call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            output = next_call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.name == "embed":
                shapes.append((output.shape, output.dtype))
                return output if deltas is None else output + next(remaining)
            if context.method_name == "__call__" and isinstance(context.module, Scores):
                scores.append(output)
            return output

        with nn.intercept_methods(look):
            result = self.objective.loss(params, batch, memory, keys_B)
        return result, scores[-1] if scores else None, shapes

    def divergence(self, left_BPC: jax.Array, right_BPC: jax.Array, batch: Batch) -> jax.Array:
        """Sum the symmetric KL divergence of logits, half of both directions, over the weighted examples; nats."""
        if self.objective.kind == "one":
            p, q = jax.nn.log_softmax(left_BPC), jax.nn.log_softmax(right_BPC)
            # KL(p, q) + KL(q, p) in one sum: (p - q) (log p - log q).
            apart_BP = ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum(-1)
        else:  # Bernoulli: log p - log q of both outcomes differ by the difference of the logits
            apart_BP = ((jax.nn.sigmoid(left_BPC) - jax.nn.sigmoid(right_BPC)) * (left_BPC - right_BPC)).mean(-1)
        return jnp.sum(apart_BP / 2 * batch["weights"])

    def climb(self, value: Callable, deltas: list[jax.Array], batch: Batch) -> list[jax.Array]:
        """Ascend `value` by projected gradient steps; no gradient flows through them."""
        # A single step covers the whole radius (FGM), several take `stride` (PGD).
        stride = self.radius if self.climbs == 1 else self.stride
        sides = [segments_of(i, delta.shape[:2], batch) for i, delta in enumerate(deltas)]
        for _ in range(self.climbs):
            slopes = jax.grad(value)(deltas)
            moved = [d + stride * unit(g, segments) for d, g, segments in zip(deltas, slopes, sides)]
            deltas = [within(d, self.radius, segments) for d, segments in zip(moved, sides)]
        return jax.lax.stop_gradient(deltas)


def draw(keys_B: jax.Array, site: int, shape: tuple[int, ...]) -> jax.Array:
    """Draw standard normal noise with one key a row."""
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(fold(keys_B, site))


def segments_of(number: int, shape: tuple[int, ...], batch: Batch) -> jax.Array:
    """Return the segments of the tokens in embedding look-up `number`, from 0; an encoder looks its source up first."""
    sides = [batch[name] for name in ("source_segments", "segments") if name in batch and batch[name].shape == shape]
    return sides[number % len(sides)] if sides else jnp.ones(shape, jnp.int32)


def lengths(x_BTE: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Return for each token the 2-norm over the vectors of its text, float32 (B, T, 1): a row may hold several texts."""
    # In float32: a bfloat16 sum over a long text stops growing once a term is below its last bit.
    square_BT = jnp.square(x_BTE.astype(jnp.float32)).sum(-1)
    same_BTT = (segments_BT[:, :, None] == segments_BT[:, None]).astype(jnp.float32)
    return jnp.sqrt(jnp.einsum("bts,bs->bt", same_BTT, square_BT))[..., None]


def unit(x_BTE: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Scale each text's vectors to norm 1; zero vectors stay."""
    size_BT1 = lengths(x_BTE, segments_BT)
    return (x_BTE / jnp.where(size_BT1 > 0, size_BT1, 1)).astype(x_BTE.dtype)


def within(x_BTE: jax.Array, radius: float, segments_BT: jax.Array) -> jax.Array:
    """Project each text's vectors onto the ball of `radius`."""
    size_BT1 = lengths(x_BTE, segments_BT)
    return (x_BTE * jnp.minimum(1.0, radius / jnp.where(size_BT1 > 0, size_BT1, 1))).astype(x_BTE.dtype)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/regularised_nano.py")
