"""The training state: its shapes, its shardings on a mesh, and its initialisation."""

import functools
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from lm.errors import check
from lm.models import lora
from lm.sharding import Named, is_named, shardings, unbox
from lm.sizes import check_memory, readable
from lm.training import optimizer as optimizers
from lm.training.parameters import flat
from lm.training.settings import Run


class TrainState(struct.PyTreeNode):
    """Everything that a step changes. It holds no random key: keys are functions of (seed, step, row)."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    memory: Any  # an objective's state between batches; None for most
    average: Any  # moving average of the parameters, or None
    skipped: jax.Array  # non-finite steps in a row

    def best_params(self) -> Any:
        """Return the parameters for evaluation and generation: the average if the run keeps one."""
        return self.params if self.average is None else self.average


def abstract_params(objective: Any, batch: Mapping[str, Any]) -> Any:
    """Return the shapes and logical axes of the parameters without computing them."""
    return _abstract_params(objective, tuple((name, x.shape, x.dtype) for name, x in batch.items()))


@functools.lru_cache(maxsize=4)  # a start asks three times, and tracing a model takes tenths of a second
def _abstract_params(objective: Any, arrays: tuple[tuple[str, tuple[int, ...], Any], ...]) -> Any:
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in arrays}
    return jax.eval_shape(objective.init, jax.eval_shape(lambda: jax.random.key(0)), batch)


def chain(config: Run, params: Any) -> optax.GradientTransformation:
    """Build the optimizer of a config for (abstract, named) parameters; raises UserError for LoRA targets without a match."""
    # The rules choose by axes: without them Muon would orthogonalise nothing and decay would miss every matrix.
    named = any(is_named(x) for x in jax.tree.leaves(params, is_leaf=is_named))
    check(named, "an optimizer needs the parameters with their axes: lm.training.state.abstract_params(objective, batch)")
    model, paths = config.objective.model, list(flat(unbox(params)))
    missed = lora.unmet(model, paths)
    check(not missed, f"lora.targets: {', '.join(map(repr, missed))} is no matrix of a stack; they end in query, key, value, "
          "out, up, gate and down, behind attention/, cross/ or mlp/")  # fmt: skip
    return optimizers.grouped(config.optimizer, params, config.objective.model.mup)


def create(config: Run, optimizer: optax.GradientTransformation, params: Any) -> TrainState:
    """Wrap parameters (boxed or not) into the state of step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        memory=config.objective.initial_memory(config.batch),
        average=jax.tree.map(jnp.copy, params) if config.optimizer.average else None,
        skipped=jnp.zeros((), jnp.int32),
    )


def abstract_state(config: Run, batch: Mapping[str, Any], mesh: jax.sharding.Mesh) -> TrainState:
    """Return the shapes, dtypes and shardings of the whole state.

    Optimizer slots of a parameter's shape are sharded like it; all other arrays are replicated.
    """
    boxed = abstract_params(config.objective, batch)
    params = unbox(boxed)
    if config.optimizer.private.clip:
        private().check_rows(config, params, batch)
    optimizer = chain(config, boxed)
    state = jax.eval_shape(lambda p: create(config, optimizer, p), params)
    slots = name_slots(state.opt_state, boxed)
    # The average mirrors the parameters; memory has one entry per row, so it is sharded as the batch.
    average = None if state.average is None else boxed
    memory = jax.tree.map(lambda x: Named(x, ("batch", *[None] * (x.ndim - 1))), state.memory)
    layout = shardings(state.replace(params=boxed, opt_state=slots, average=average, memory=memory), mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)


def name_slots(opt_state: optax.OptState, params: Any) -> optax.OptState:
    """Name the axes of optimizer slots: a slot whose path ends with a parameter's, and of its shape, has its axes."""
    # Matched by path and shape: every optax rule nests its slots differently, but keeps the parameters' tree inside.
    leaves = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_named)[0]
    named = dict(leaves)

    def one(path, slot):
        like = next((named[path[i:]] for i in range(len(path)) if path[i:] in named), None)
        return Named(slot, like.axes) if like is not None and like.value.shape == slot.shape else slot

    return jax.tree_util.tree_map_with_path(one, opt_state)


def initialise(config: Run, batch: Mapping[str, Any], abstract: TrainState) -> TrainState:
    """Draw the state of step 0, sharded; the values do not depend on the mesh."""
    optimizer = chain(config, abstract_params(config.objective, batch))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)

    def draw(seed):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        params = unbox(config.objective.init(jax.random.fold_in(jax.random.key(seed), 0), zeros))
        return create(config, optimizer, params)

    # One program with sharded outputs: nothing is drawn on one device and moved to the others.
    return jax.jit(draw, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(config.seed)


def check_state(abstract: TrainState) -> None:
    """Raise UserError where a device's shards of the state are more than its memory."""
    leaves = jax.tree.leaves(abstract)
    parts = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)
    remedy = "make the model smaller or shard it: mesh.fsdp, mesh.tensor"
    check_device_memory(parts, "the state (parameters, optimizer)", remedy)


def check_device_memory(count: float, what: str, remedy: str) -> None:
    """Raise UserError where `count` bytes per device exceed its memory; a CPU's devices share the machine's."""
    # A CPU reports no limit of its own.
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        check_memory(count * jax.local_device_count(), what, remedy)
    else:
        check(count <= limit, f"{what} needs {readable(count)} a device, which has {readable(limit)}; {remedy}")


def private() -> ModuleType:
    """Return the module of DP-SGD, loaded where a config asks for it."""
    from lm.training import dp_gradients

    return dp_gradients
