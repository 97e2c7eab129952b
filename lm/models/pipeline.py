"""Pipeline parallelism (GPipe, Huang et al. 2019): consecutive layers on each device of the mesh's `stage` axis.

Outside the layers the axis cuts rows, as the data axis does, so that embeddings and vocabulary are shared out as well. Inside,
the rows of a device are cut into micro-batches, which enter the first stage one a tick and move on by a permutation; M
micro-batches through S stages take M + S - 1 ticks, of which a device idles S - 1. A tick that has no micro-batch computes on
other finite rows, and its results are dropped. The backward pass is the derivative of the loop.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from lm.errors import UserError, check
from lm.sharding import constrain

ROWS = "data", "stage"  # the manual axes: gradients are summed over data once, behind the loop


def piped(layers: type[nn.Module], stage: type[nn.Module], config: Any, in_axes: Any, out_axes: int, share: bool) -> type:
    """Return `layers`, a scan over all layers, as stages, each of which is `stage`, the scan over its part of them.

    Raises UserError for layers that cannot be cut: one set of parameters for all, a loop with other arguments (LSTM).
    """
    name, mesh = type(config).__name__, jax.sharding.get_abstract_mesh()
    stages = f"mesh.stage={mesh.shape['stage']}"
    check(not share, f"{stages} cuts the layers into stages, and these share one set of parameters: set mesh.stage=1")
    check(len(in_axes) == 2, f"{stages} cuts the layers of Transformers into stages, not those of {name}: set mesh.stage=1")
    for axis in ("context", "expert"):
        check(mesh.shape[axis] == 1, f"{stages} does not go with mesh.{axis}={mesh.shape[axis]}: set one of the two to 1")

    class Piped(layers):  # type: ignore[misc, valid-type]
        def __call__(self, carry: Any, scanned: Any, shared: Any) -> tuple[Any, Any]:
            if self.is_initializing():
                return super().__call__(carry, scanned, shared)
            if self.is_mutable_collection("intermediates"):
                raise UserError(f"{stages} keeps no states of single layers: set mesh.stage=1")
            run = stage(config, parent=None).apply
            return pipeline(run, config.pipeline_batches, self.variables["params"], carry, scanned, shared, in_axes[0], out_axes)

    return Piped


def micro_batches(rows: int, mesh: Any, chosen: int) -> int:
    """Return the number of micro-batches: the chosen one, or two a stage where a device's rows divide by two.

    Raises UserError where `rows` of all devices do not divide among the devices that cut rows, times the micro-batches.
    """
    stages, replicas = mesh.shape["stage"], mesh.shape["data"] * mesh.shape["fsdp"]
    own, odd = divmod(rows, stages * replicas)
    cut = f"mesh.stage={stages} x data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}"
    check(not odd, f"{rows} rows do not divide among the {stages * replicas} devices of {cut}, which hold them between the layers")
    count = chosen or stages * (2 if own % 2 == 0 else 1)
    remedy = f"a multiple of {stages} that divides {own * stages}, or 0"
    check(
        count % stages == 0 and own * stages % count == 0,
        f"pipeline_batches={count} does not cut the {own * stages} rows of {stages} stages evenly: set {remedy}",
    )
    return count


def row_wise(path: tuple[Any, ...]) -> bool:
    """Return whether an argument of the layers has rows on its first axis: B comes first in its name's axis letters."""
    names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
    return bool(names) and names[-1].rpartition("_")[2].startswith("B")


def pipeline(
    run: Any, chosen: int, params: Any, carry: Any, scanned: Any, shared: Any, layer_axes: Any, out_axes: int
) -> tuple[Any, Any]:
    """Run all layers: `carry` (B, ...) through the stages, the row-wise arrays of `scanned` and `shared` with their rows.

    `layer_axes`: the axis L of each array in `scanned`, 0 or 1; the other of the two are rows, if it has them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    stages, groups = mesh.shape["stage"], mesh.shape["fsdp"]
    count = micro_batches(jax.tree.leaves(carry)[0].shape[0], mesh, chosen)
    own, ticks = count // stages, count + stages - 1
    right, left = [(i, i + 1) for i in range(stages - 1)], [(i + 1, i) for i in range(stages - 1)]

    # Sorted by what happens to them: layers alone, layers and rows, rows alone, neither.
    layer_axes = layer_axes if isinstance(layer_axes, tuple) else (layer_axes,) * len(scanned)
    per_layer = [x if jnp.ndim(x) == 1 else None for x in scanned]
    paths, tree = jax.tree_util.tree_flatten_with_path(shared)
    with_rows = [x if row_wise(path) else None for path, x in paths]
    whole = [None if row_wise(path) else x for path, x in paths]
    both = [None if x is None or jnp.ndim(x) == 1 else jnp.moveaxis(x, axis, 1) for x, axis in zip(scanned, layer_axes, strict=True)]

    def cut(x: jax.Array, lead: int) -> jax.Array:
        # Every device of the fsdp axis has a part of each micro-batch.
        x = x.reshape(lead, groups, own, -1, *x.shape[1:]).swapaxes(1, 2)
        x = x.reshape(lead * own, -1, *x.shape[4:])
        return x

    def joined(x: jax.Array, lead: int) -> jax.Array:
        x = x.reshape(lead, own, groups, -1, *x.shape[2:]).swapaxes(1, 2)
        return x.reshape(-1, *x.shape[4:])

    def stage(number: jax.Array, params: Any, carry: Any, per_layer: Any, both: Any, with_rows: Any, whole: Any) -> Any:
        at = number[0]
        stream = jax.tree.map(lambda x: cut(x, 1), carry)
        # The micro-batch of every tick; before and behind its own, a stage repeats one of them.
        now = jnp.clip(jnp.arange(ticks) - at, 0, count - 1)
        along = jax.tree.map(lambda x: cut(x, stages)[now], (both, with_rows))

        def tick(state: Any, scanned: Any) -> Any:
            arriving, stream = state
            slot, (both, with_rows) = scanned
            waiting = jax.tree.map(lambda x: x[slot], stream)
            inputs = jax.tree.map(lambda a, b: jnp.where(at == 0, a, b), waiting, arriving)
            layers = [
                x if y is None else jnp.moveaxis(y, 1, axis) for x, y, axis in zip(per_layer, both, layer_axes, strict=True)
            ]
            shared = jax.tree.unflatten(tree, [x if y is None else y for x, y in zip(whole, with_rows, strict=True)])
            outputs, results = run({"params": params}, inputs, tuple(layers), shared)
            # What waits moves towards the first stage, and the last one's results take the slots that this leaves.
            moved = jax.tree.map(lambda x: jax.lax.ppermute(x, "stage", left), waiting)
            stream = jax.tree.map(
                lambda x, a, b: x.at[slot].set(jnp.where(at == stages - 1, a, b)), stream, outputs, moved
            )
            arriving = jax.tree.map(lambda x: jax.lax.ppermute(x, "stage", right), outputs)
            return (arriving, stream), results

        first = jax.tree.map(lambda x: x[0], stream), stream
        (_, stream), results = jax.lax.scan(tick, first, (jnp.arange(ticks) % own, along))
        carry = jax.tree.map(lambda x: joined(jnp.roll(x, -(stages - 1), 0), 1), stream)
        done = at + jnp.arange(count)

        def gathered(x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(x[done], 1 + out_axes, 2)
            return jnp.moveaxis(joined(x, stages), 1, out_axes)

        return carry, jax.tree.map(gathered, results)

    rows, layers_and_rows = PartitionSpec(ROWS), [PartitionSpec("stage", "data"), PartitionSpec("data", "stage")][out_axes]
    mapped = jax.shard_map(
        stage,
        in_specs=(
            PartitionSpec("stage"), PartitionSpec("stage"), rows, PartitionSpec("stage"), PartitionSpec("data", "stage"),
            PartitionSpec("data"), PartitionSpec(),
        ),
        out_specs=(rows, layers_and_rows),
        axis_names=set(ROWS),
        check_vma=False,
    )  # fmt: skip
    carry, results = mapped(jnp.arange(stages), params, carry, per_layer, both, with_rows, whole)
    back = functools.partial(constrain_back, out_axes=out_axes)
    return carry, jax.tree.map(back, results)


def constrain_back(x: jax.Array, out_axes: int) -> jax.Array:
    """Lay results by layer out as rows again."""
    axes = [None, "batch"] if out_axes == 0 else ["batch", None]
    return constrain(x, *axes, *[None] * (x.ndim - 2))
