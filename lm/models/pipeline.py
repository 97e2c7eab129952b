"""Pipeline parallelism (GPipe, Huang et al. 2019): consecutive layers on each device of the mesh's `stage` axis.

Around the layers the axis cuts rows, as the data axis does, so that embeddings and vocabulary are shared out as well. Through
them the rows go in micro-batches: one a tick enters the first stage, and all move on by a permutation. M micro-batches pass S
stages in M + S - 1 ticks, in S - 1 of which a device has none; it then computes on other rows, whose results are dropped. The
backward pass is the derivative of this loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from lm.errors import check
from lm.models.blocks import Tree
from lm.models.shape import Shape
from lm.sharding import pieces

MANUAL = {"data", "stage"}  # of `shard_map`; with data, as gradients are then summed over it once, behind the loop


def piped(scan: Callable[[int], type[nn.Module]], config: Shape, in_axes: Tree, out_axes: int, share: bool) -> type[nn.Module]:
    """Return the module of all layers, in stages; `scan` makes the module of so many layers.

    Raises UserError for layers that cannot be cut, and for axes of the mesh that stages do not go with.
    """
    name, mesh = type(config).__name__, jax.sharding.get_abstract_mesh()
    stages = f"mesh.stage={mesh.shape['stage']}"
    check(not share, f"{stages} cuts the layers into stages, and these share one set of parameters: set mesh.stage=1")
    check(len(in_axes) == 2, f"{stages} cuts the layers of Transformers into stages, not those of {name}: set mesh.stage=1")
    check(mesh.shape["expert"] == 1, f"{stages} does not go with mesh.expert={mesh.shape['expert']}: set one of the two to 1")

    class Piped(scan(config.depth)):  # type: ignore[misc]  # a class made at run time
        def __call__(self, carry: Tree, scanned: Tree, shared: Tree) -> tuple[Tree, Tree]:
            # A plain scan, for which XLA gathers the layers, outside of training: rows that do not divide, states of single
            # layers, a cache.
            whole = self.is_initializing() or self.is_mutable_collection("intermediates")
            whole |= not all(x is None or isinstance(x, jax.Array) for x in scanned)
            if whole or jax.tree.leaves(carry)[0].shape[0] % pieces("batch")[0]:
                return super().__call__(carry, scanned, shared)
            run, params = scan(config.depth // mesh.shape["stage"])(config, parent=None).apply, self.variables["params"]
            return pipeline(run, config.pipeline_batches, params, carry, scanned, shared, in_axes[0], out_axes)

    return Piped


def micro_batches(rows: int, stages: int, chosen: int) -> int:
    """Return the number of micro-batches of `rows` rows, those of one device of each stage together: a multiple of `stages`.

    0: two a stage, or one where the rows do not divide so. Raises UserError where the chosen number does not divide them.
    """
    if not chosen:
        return stages * (2 if rows % (2 * stages) == 0 else 1)
    valid = ", ".join(str(n) for n in range(stages, rows + 1, stages) if rows % n == 0)
    fits = chosen % stages == 0 and rows % chosen == 0
    check(fits, f"pipeline_batches={chosen} does not divide the {rows} rows of {stages} stages evenly among them: set {valid}")
    return chosen


@dataclass(frozen=True)
class Cut:
    """Rows as (data, stage, fsdp, micro-batches of a stage, rows of one), in this order, that of `RULES["batch"]`."""

    data: int
    stages: int
    fsdp: int
    own: int

    def apart(self, x_B: jax.Array) -> jax.Array:
        """Split the axis of rows."""
        x = x_B.reshape(self.data, self.stages, self.fsdp, self.own, -1, *x_B.shape[1:])
        return pinned(x, "data", "stage", "fsdp")

    def together(self, x: jax.Array) -> jax.Array:
        """Undo `apart`."""
        return pinned(x.reshape(-1, *x.shape[5:]), ("data", "stage", "fsdp"))

    def queue(self, x: jax.Array) -> jax.Array:
        """List the micro-batches of one device of the data axis: (M, rows, ...), a part of each on all fsdp devices."""
        x = x[0].swapaxes(1, 2)
        return pinned(x.reshape(x.shape[0] * self.own, -1, *x.shape[4:]), None, "fsdp")

    def unqueue(self, x: jax.Array) -> jax.Array:
        """Undo `queue`."""
        return x.reshape(-1, self.own, self.fsdp, x.shape[1] // self.fsdp, *x.shape[2:]).swapaxes(1, 2)[None]


def pinned(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Constrain the first axes of an array to axes of the mesh; the others stay as they are."""
    rest = [PartitionSpec.UNCONSTRAINED] * (x.ndim - len(axes))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes, *rest))


def row_wise(path: tuple[Any, ...]) -> bool:
    """Return whether an argument of the layers has rows on its first axis: B comes first in its name's axis letters."""
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return bool(names) and names[-1].rpartition("_")[2].startswith("B")


def pipeline(
    run: Callable[..., Any],
    chosen: int,
    params: Tree,
    carry: Tree,
    scanned: Tree,
    shared: Tree,
    layer_axes: Tree,
    out_axes: int,
) -> tuple[Tree, Tree]:
    """Run all layers as `run` runs those of a stage: `carry` (B, ...), what is `scanned` over layers, what they have `shared`.

    `layer_axes`: the axis of layers, 0 or 1, of each array of `scanned` (or of all); those of more than one axis have rows on
    the other, and so have the results, with layers on `out_axes`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    stages = mesh.shape["stage"]
    count = micro_batches(jax.tree.leaves(carry)[0].shape[0] // pieces("batch")[0] * stages, stages, chosen)
    ticks, cut = count + stages - 1, Cut(mesh.shape["data"], stages, mesh.shape["fsdp"], count // stages)

    # Arrays of layers alone, of rows and layers, of rows alone, and of neither; None where an array is of another kind.
    axes = layer_axes if isinstance(layer_axes, tuple) else (layer_axes,) * len(scanned)
    per_layer = [x if x is not None and x.ndim == 1 else None for x in scanned]
    rest = [x if x is not None and x.ndim > 1 else None for x in scanned]
    per_both = [None if x is None else jnp.moveaxis(x, axis, 1) for x, axis in zip(rest, axes, strict=True)]
    paths, tree = jax.tree_util.tree_flatten_with_path(shared)
    per_row = [x if row_wise(path) else None for path, x in paths]
    fixed = [None if row_wise(path) else x for path, x in paths]

    def arguments(per_layer: list, per_both: list, per_row: list, fixed: list) -> tuple[Tree, Tree]:
        moved = [None if x is None else jnp.moveaxis(x, 1, axis) for x, axis in zip(per_both, axes, strict=True)]
        layers = tuple(x if y is None else y for x, y in zip(per_layer, moved, strict=True))
        return layers, jax.tree.unflatten(tree, [x if y is None else y for x, y in zip(fixed, per_row, strict=True)])

    def device(
        stage: jax.Array, params: Tree, carry: Tree, per_layer: Tree, per_both: Tree, per_row: Tree, fixed: Tree
    ) -> Tree:
        first, last = stage[0] == 0, stage[0] == stages - 1
        # Its own part of the micro-batches, which wait here; and the one of every tick, repeated where there is none.
        waiting = jax.tree.map(cut.queue, carry)
        now = jnp.clip(jnp.arange(ticks) - stage[0], 0, count - 1)
        along = jax.tree.map(lambda x: cut.queue(x)[now], (per_both, per_row))

        def tick(state: tuple[Tree, Tree], scanned: tuple[jax.Array, Tree]) -> tuple[tuple[Tree, Tree], Any]:
            (arrived, waiting), (slot, (per_both, per_row)) = state, scanned
            own = jax.tree.map(lambda x: x[slot], waiting)
            inputs = jax.tree.map(lambda x, y: jnp.where(first, x, y), own, arrived)
            outputs, results = run({"params": params}, inputs, *arguments(per_layer, per_both, per_row, fixed))
            # What waits moves towards the first stage, and results follow it from the last: each comes back where it was.
            freed = shift(own, [(n, n - 1) for n in range(1, stages)])
            new = jax.tree.map(lambda x, y: jnp.where(last, x, y), outputs, freed)
            waiting = jax.tree.map(lambda x, y: x.at[slot].set(y), waiting, new)
            return (shift(outputs, [(n, n + 1) for n in range(stages - 1)]), waiting), results

        start = jax.tree.map(lambda x: x[0], waiting), waiting
        (_, waiting), results = jax.lax.scan(tick, start, (jnp.arange(ticks) % cut.own, along))
        carry = jax.tree.map(lambda x: cut.unqueue(jnp.roll(x, 1 - stages, 0)), waiting)
        done = stage[0] + jnp.arange(count)
        return carry, jax.tree.map(lambda x: cut.unqueue(jnp.moveaxis(x[done], 1 + out_axes, 2)), results)

    rows, layers, both = PartitionSpec("data"), PartitionSpec("stage"), PartitionSpec("data", *[None] * 4, "stage")
    own = PartitionSpec("data", "stage")
    mapped = jax.shard_map(
        device,
        in_specs=(layers, layers, own, layers, both, rows, PartitionSpec()),
        out_specs=(own, both),
        axis_names=MANUAL,
        check_vma=False,
    )
    carry, per_both, per_row = jax.tree.map(cut.apart, (carry, per_both, per_row))
    carry, results = mapped(jnp.arange(stages), params, carry, per_layer, per_both, per_row, fixed)
    carry, results = jax.tree.map(cut.together, (carry, results))
    return carry, jax.tree.map(lambda x: jnp.moveaxis(x, 1, out_axes), results)


def shift(tree: Tree, pairs: list[tuple[int, int]]) -> Tree:
    """Send arrays from stage to stage; a stage that is sent nothing gets zeros."""
    return jax.tree.map(lambda x: jax.lax.ppermute(x, "stage", pairs), tree)
