"""DP-SGD: clip each row's gradient to norm `clip`, sum, add Gaussian noise (Abadi et al. 2016, algorithm 1).

As `optax.contrib.differentially_private_aggregate`, which holds the gradients of all rows of a batch at once, but per
micro-batch. Settings: `lm.training.dp_budget.Private`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.errors import check
from lm.sharding import NO_MESH
from lm.training import parameters
from lm.training.schedules import Scalar
from lm.training.settings import Run


def check_rows(config: Run, params: Any, batch: Mapping[str, Any]) -> None:
    """Raise UserError where a row holds more than one example or its loss depends on other rows."""
    objective, records = config.objective, config.objective.records
    check(not config.data.augment, "optimizer.private protects a row; data.augment makes several of an example: leave it out")
    check(not objective.apart, "optimizer.private: batches of one task among several have no accountant here; train "
          "one task, or set optimizer.private.clip=0")  # fmt: skip
    weights = objective.inner.class_weights
    check(not weights, "optimizer.private: each row's loss is divided by its own weight, so that class_weights and balanced "
          "would change nothing: leave them out")  # fmt: skip
    check(not getattr(records, "pack", False), "optimizer.private protects a row, and rows hold several examples: "
          "objective.rows.pack=False, or objective.pack=False of an objective without rows")  # fmt: skip
    # Shapes alone: a memory or peers would let one row influence the gradient of another.
    memory = jax.eval_shape(lambda: objective.initial_memory(config.batch))
    check(memory is None, "optimizer.private needs rows that stand alone; this objective carries a memory from row to row: "
          "turn it off, or optimizer.private.clip=0")  # fmt: skip
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.batch))
    peers = jax.eval_shape(objective.peers, params, batch, keys_B)
    check(peers is None, "optimizer.private needs rows that stand alone; this objective compares the rows of a batch: "
          "take another one, or optimizer.private.clip=0")  # fmt: skip


def clipped(loss: Callable, params: Any, batch: Any, keys_B: jax.Array, clip: float, rows: int):
    """Return (gradients, sums, total): the rows' gradients clipped to norm `clip`, summed and divided by `rows`.

    `loss(params, row, key)` returns (total, (sums, memory)) of one row, whose arrays have no batch axis. `rows`: the size of
    the whole batch, of which this may be a part.
    """

    def one(row, key):
        (total, (sums, _)), grads = jax.value_and_grad(loss, has_aux=True)(params, row, key)
        return grads, sums, total

    with jax.sharding.use_abstract_mesh(NO_MESH):  # a single row does not divide among devices
        grads, sums, totals = jax.vmap(one)(batch, keys_B)
    # The global norm over all parameters of a row, not one norm per array (algorithm 1).
    leaves, tree = jax.tree.flatten(grads)
    leaves, count = optax.per_example_global_norm_clip(leaves, clip)
    grads = jax.tree.unflatten(tree, [x / rows for x in leaves])
    sums = jax.tree.map(lambda x: x.sum(0), sums)
    clipped = count.astype(jnp.float32), jnp.asarray(len(totals), jnp.float32)
    return grads, {**sums, "clipped": clipped}, totals.sum() / rows


def noised(config: Run, grads: Any, seed: Scalar, step: jax.Array) -> Any:
    """Add noise of deviation `noise` x `clip` / batch to the gradients of trained parameters; the same on every mesh."""
    private, key = config.optimizer.private, jax.random.fold_in(jax.random.key(seed), 2)
    trained, frozen = parameters.split(config.optimizer.groups, grads)
    # Of seed and step alone: noise is added once a batch, whatever its micro-batches, and a resumed run repeats it.
    noisy = noise(trained, private.noise * private.clip / config.batch, jax.random.fold_in(key, step))
    return parameters.nested({**frozen, **noisy})


def noise(grads: Any, deviation: float, key: jax.Array) -> Any:
    """Add normal noise, one key per leaf, split as in optax's aggregate."""
    leaves, tree = jax.tree.flatten(grads)
    _, *keys = jax.random.split(key, len(leaves) + 1)
    return jax.tree.unflatten(tree, [x + deviation * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys)])
