"""The mesh, the table from logical axes to mesh axes, and the placement of arrays by it.

Arrays name their logical axes ("batch", "embed", ...); only this file maps them to mesh axes. `jax.set_mesh` makes the mesh
current (`with mesh:` does not reach the constraints), with axes in Auto mode: the compiler derives all other shardings.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import struct
from flax.core import meta
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.errors import UserError, check, one_line

AXES = ("data", "stage", "fsdp", "tensor", "context", "expert")

# Logical axis -> mesh axes; any other axis is replicated. Outside of stages and experts, their axes are more data axes.
RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "stage", "fsdp", "expert"),
    "length": ("context",),
    "residual": ("context", "tensor"),  # rows between sub-layers, where the tensor axis would idle
    "layers": ("stage",),
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "rows": ("data", "fsdp"),  # of a batch whose expert axis holds experts
}


def make_mesh(sizes: Mapping[str, int], devices: list | None = None) -> Mesh:
    """Build the mesh over all devices. `sizes`: devices along `AXES`, 1 without an entry; one may be -1: all others.

    Several TPU slices lie side by side along the data axis. Raises UserError when the numbers do not multiply to the device
    count, or when the data axis does not divide among the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes.get(a, 1) for a in AXES]
    fixed = math.prod(s for s in shape if s != -1)
    if shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape):
        raise UserError(f"mesh {dict(sizes)}: sizes are positive and at most one is -1")
    if -1 in shape and len(devices) % fixed == 0:
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices):
        raise UserError(f"mesh {dict(sizes)} does not fit {len(devices)} device(s): the sizes must multiply to that number")
    return Mesh(arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(shape: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Lay the devices out in an array of `shape`, the sizes of `AXES`: neighbours along an axis are neighbours on the torus.

    The slow network between slices carries the data axis alone, which communicates once a step.
    """
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    data, *others = shape
    remedy = f"set mesh.data to a multiple of {slices}"
    check(data % slices == 0, f"mesh.data={data} does not divide among {slices} slices, which it has to span: {remedy}")
    try:
        # An axis may take a part of a torus dimension: 64 x 2 on 4x4x8 exists only so.
        if slices == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        within, between = [data // slices, *others], [slices] + [1] * len(others)
        return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)
    except (NotImplementedError, ValueError, AssertionError) as error:
        sizes = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, shape, strict=True) if size > 1)
        raise UserError(
            f"mesh {sizes} cannot be laid out on these {len(devices)} devices: {one_line(str(error), 200)}"
        ) from error


class Named(struct.PyTreeNode, meta.AxisMetadata):
    """A parameter with the logical name of each of its axes; unboxing adds no constraint."""

    value: Any
    axes: tuple[str | None, ...] = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Named":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict) -> "Named":
        axes = list(self.axes)
        axes.insert(index, params[meta.PARTITION_NAME])
        return self.replace(axes=tuple(axes))

    def remove_axis(self, index: int, params: dict) -> "Named":
        return self.replace(axes=self.axes[:index] + self.axes[index + 1 :])


def is_named(x: Any) -> bool:
    return isinstance(x, Named)


def unbox(tree: Any) -> Any:
    """Strip the names: the tree of arrays."""
    return jax.tree.map(lambda x: x.value if is_named(x) else x, tree, is_leaf=is_named)


def axes_of(tree: Any) -> Any:
    """Keep only the names: a tree of tuples of logical axes, `()` for unnamed arrays."""
    return jax.tree.map(lambda x: x.axes if is_named(x) else (), tree, is_leaf=is_named)


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Translate logical axes into a PartitionSpec; within `shard_map`, of the axes that are not its own."""
    return PartitionSpec(*(mesh_axes(a) if a and a in RULES else None for a in axes))


def mesh_axes(axis: str) -> tuple[str, ...]:
    """Return the mesh axes of a logical axis but those of a `shard_map` around."""
    return tuple(a for a in RULES[axis] if a not in jax.sharding.get_abstract_mesh().manual_axes)


def shardings(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Map every leaf of a tree of (Named) abstract arrays to its NamedSharding.

    Raises UserError where an axis does not divide among its devices. Key-value heads that do not are replicated, as
    multi-query attention needs.
    """

    def one(path, leaf):
        if not is_named(leaf):
            return NamedSharding(mesh, PartitionSpec())
        entries = []
        for axis, size in zip(leaf.axes, leaf.value.shape, strict=True):
            entry = RULES.get(axis)
            devices = math.prod(mesh.shape[m] for m in entry) if entry else 1
            # Checked here: jax's own error would name neither the axis nor the remedy.
            if size % devices and axis == "kv_heads":
                entry = None
            elif size % devices:
                advice = "set objective.model.pad_vocab to a multiple of it" if axis == "vocab" else "change one of the two"
                raise UserError(
                    f"mesh: the {axis} axis of {jax.tree_util.keystr(path)} has size {size}, which does not divide among "
                    f"the {devices} devices of {'x'.join(entry)}; {advice}"
                )
            entries.append(entry)
        return NamedSharding(mesh, PartitionSpec(*entries))

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=is_named)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation's sharding by its logical axes; a no-op without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def constrain_residual(x_BTD: jax.Array) -> jax.Array:
    """Constrain the residual stream: its rows are cut over the tensor axis too, where that divides them.

    Norms, dropout and the states kept for the backward pass then take a part of each device (Korthikanti et al. 2022), and the
    sums over the tensor axis are scattered and gathered again instead of reduced whole.
    """
    return constrain(x_BTD, "batch", "length" if x_BTD.shape[1] % pieces("residual")[0] else "residual", None)


def constrain_rows(x_BTD: jax.Array) -> jax.Array:
    """Constrain the states within a sub-layer, whose heads or neurons are cut over the tensor axis: rows are whole there."""
    return constrain(x_BTD, "batch", "length", None)


# Each the other in the backward pass: left to itself the compiler gathers weights there instead of gradients.
into_sublayer, out_of_sublayer = jax.custom_vjp(constrain_rows), jax.custom_vjp(constrain_residual)
into_sublayer.defvjp(lambda x: (constrain_rows(x), None), lambda _, g: (constrain_residual(g),))
out_of_sublayer.defvjp(lambda x: (constrain_residual(x), None), lambda _, g: (constrain_rows(g),))


def token_sum(function: Callable, specs: tuple[PartitionSpec, ...], axes: tuple[str | None, ...]) -> Callable[..., jax.Array]:
    """Return a function that sums the results of all devices that hold tokens, laid out as a parameter of `axes`.

    `function` gets each device's part of arrays that are cut by `specs`, and returns the gradient of a whole table (rows, D),
    or of the device's part of the rows where `specs` cut those. The sum is scattered over `fsdp`: half of the traffic of a sum
    that every device gets whole, which the compiler would cut afterwards.
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows = RULES.get(axes[0] or "")

    def local(*arrays: jax.Array) -> jax.Array:
        d_VD = function(*arrays)
        if rows and not any(rows[0] in (spec or ()) for part in specs for spec in part):
            size = d_VD.shape[0] // mesh.shape[rows[0]]
            d_VD = jax.lax.dynamic_slice_in_dim(d_VD, jax.lax.axis_index(rows[0]) * size, size, 0)
        if mesh.shape["fsdp"] > 1:
            d_VD = jax.lax.psum_scatter(d_VD, "fsdp", scatter_dimension=1, tiled=True)
        return jax.lax.psum(d_VD, ("data", "stage", "expert", "context"))

    return jax.shard_map(local, in_specs=specs, out_specs=spec(axes), check_vma=False)


def rows_cut() -> bool:
    """Return whether the mesh cuts rows: axes of rows and columns cannot be merged then without gathering them."""
    return pieces("residual") != (1,)


def constrain_groups(x: jax.Array) -> jax.Array:
    """Constrain the first axis to all mesh axes that shard tokens: those of batch and length together."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec((*mesh_axes("batch"), *mesh_axes("length"))))


def pieces(*axes: str) -> tuple[int, ...]:
    """Return the number of shards of each logical axis on the current mesh (1 without a mesh)."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(1 if mesh.empty else math.prod(mesh.shape[m] for m in mesh_axes(a)) for a in axes)


def platform() -> str:
    """Return the kind of device that is compiled for: "cpu", "gpu" or "tpu"; without a mesh that of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    kind = None if mesh.empty else getattr(getattr(mesh, "abstract_device", None), "device_kind", None)
    if kind is None:
        return jax.default_backend()
    return next((name for name in ("cpu", "tpu") if kind.lower().startswith(name)), "gpu")


def batch_sharding(mesh: jax.sharding.Mesh, ndim: int) -> NamedSharding:
    """Return the sharding of a batch array: rows over the batch axes, the second axis (length) over context."""
    return NamedSharding(mesh, spec(("batch", "length", None, None)[:ndim]))


def local_rows(mesh: jax.sharding.Mesh, batch: int) -> tuple[int, int]:
    """Return the rows [low, high) of a global batch that this process must feed.

    Raises UserError where the batch does not divide among the devices of the batch axes.
    """
    devices = math.prod(mesh.shape[a] for a in RULES["batch"])
    if batch % devices:
        raise UserError(f"batch={batch} does not divide among the {devices} devices of the axes {', '.join(RULES['batch'])}")
    # The hull of this process's slices: devices of one process are neighbours along the batch axes.
    slices = [s for s in batch_sharding(mesh, 1).addressable_devices_indices_map((batch,)).values() if s]
    return min(s[0].start or 0 for s in slices), max(batch if s[0].stop is None else s[0].stop for s in slices)


def batch_layout(mesh: jax.sharding.Mesh, batch: Mapping[str, Any]) -> dict[str, NamedSharding]:
    """Return the sharding of each array of a batch: rows over the batch axes; arrays as long as tokens or source also over
    context.

    Positions and labels are replicated along context. Raises UserError where context does not divide the row length.
    """
    lengths, columns = row_lengths(batch), mesh.shape["context"]
    for length in lengths:
        if length % columns:
            raise UserError(f"mesh.context={columns} does not divide the row length {length}")
    along = {name: x.ndim > 1 and x.shape[1] in lengths for name, x in batch.items()}
    return {name: batch_sharding(mesh, x.ndim if along[name] else 1) for name, x in batch.items()}


def row_lengths(batch: Mapping[str, Any]) -> set[int]:
    """Return the lengths of a batch's rows: recognised by length, as objectives add arrays along the row of their own."""
    return {x.shape[1] for name, x in batch.items() if name.rpartition("/")[2] in ("tokens", "source")}


def widened(batch: Mapping[str, np.ndarray], columns: int) -> dict[str, np.ndarray]:
    """Pad rows with zeros to a multiple of the context axis: no segment and no weight, in rows that have both."""
    segmented = {x.shape[1] for name, x in batch.items() if name.endswith("segments")}
    lengths = {n for n in row_lengths(batch) & segmented if n % columns}

    def one(x: np.ndarray) -> np.ndarray:
        if x.ndim < 2 or x.shape[1] not in lengths:
            return x
        return np.pad(x, [(0, -x.shape[1] % columns if axis == 1 else 0) for axis in range(x.ndim)])

    return {name: one(x) for name, x in batch.items()} if lengths else dict(batch)


def place(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh, rows: int) -> dict[str, jax.Array]:
    """Assemble global arrays of `rows` rows from this process's rows."""
    columns = mesh.shape["context"]
    batch = widened(batch, columns)
    layout = batch_layout(mesh, batch)

    def one(x, sharding):
        # Where the context axis spans processes, each holds only some columns of its rows.
        lead = x
        if columns > 1 and len(sharding.spec) > 1 and jax.process_count() > 1:
            lead = x[:, local_columns(sharding, (rows, *x.shape[1:]))]
        return jax.make_array_from_process_local_data(sharding, lead, (rows, *x.shape[1:]))

    return {name: one(x, layout[name]) for name, x in batch.items()}


def local_columns(sharding: NamedSharding, shape: tuple[int, ...]) -> slice:
    """Return the columns of axis 1 on this process's devices: all, unless the context axis spans processes."""
    slices = [s for s in sharding.addressable_devices_indices_map(shape).values() if s]
    return slice(min(s[1].start or 0 for s in slices), max(shape[1] if s[1].stop is None else s[1].stop for s in slices))


NO_MESH = jax.sharding.AbstractMesh((), ())  # a batch need not divide among the devices of training
