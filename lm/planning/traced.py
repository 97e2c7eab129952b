"""The traced train step, before the compiler and for all devices together: operations and bytes kept for the backward pass."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var


@dataclass(frozen=True)
class Traced:
    """Figures of a step of all devices: FLOPs of matrix products, of those in hand-written kernels, and bytes of scans.

    `kept`: the largest stack of arrays that one scan writes, for its backward pass to read; `stream`: bytes of that
    scan's largest carried array times its steps, one array of activations a layer.
    """

    flops: float = 0.0
    kernel_flops: float = 0.0
    kept: int = 0
    stream: int = 0

    def __add__(self, other: "Traced") -> "Traced":
        largest = max(self, other, key=lambda one: one.kept)
        flops, kernels = self.flops + other.flops, self.kernel_flops + other.kernel_flops
        return Traced(flops, kernels, largest.kept, largest.stream)

    def times(self, number: float) -> "Traced":
        return dataclasses.replace(self, flops=self.flops * number, kernel_flops=self.kernel_flops * number)


def figures(jaxpr: Jaxpr, devices: int) -> Traced:
    """Count a jaxpr: bodies of scans times their length, the larger branch of a condition, kernels as all of their blocks.

    Loops without a known length count once. A kernel that skips blocks (a causal mask) is counted too high.
    """
    total = Traced()
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = [figures(one, devices) for value in parameters.values() for one in jaxprs(value)]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left, result = array_of(equation.invars[0]).shape, array_of(equation.outvars[0]).shape
            total += Traced(2.0 * math.prod(result) * math.prod(left[axis] for axis in contracted))
        elif name == "scan":
            total += sum(inner, Traced()).times(parameters["length"]) + scanned(equation.outvars, parameters)
        elif name == "cond":
            total += max(inner, key=lambda one: one.flops, default=Traced())
        elif name == "shard_map":  # its body is the program of one device, or of those along the axes that it leaves to XLA
            sizes = parameters["mesh"].shape
            total += sum(inner, Traced()).times(math.prod(sizes[axis] for axis in manual_axes(parameters)))
        elif name == "pallas_call":
            body = sum(inner, Traced())
            blocks = math.prod(size for size in parameters["grid_mapping"].grid if isinstance(size, int))
            total += Traced(body.flops * blocks, body.flops * blocks)
        else:
            total += sum(inner, Traced())
    return total


def scanned(results: list, parameters: Mapping) -> Traced:
    """Return the bytes of a scan's stacked results and of its largest carried array, once a step of it."""
    carried = [size(one) for one in results[: parameters["num_carry"]]]
    stacked = sum(size(one) for one in results[parameters["num_carry"] :])
    return Traced(kept=stacked, stream=max(carried, default=0) * parameters["length"])


def ticks(jaxpr: Jaxpr) -> int:
    """Return the passes of a pipeline's loop, M + S - 1 (`lm.models.pipeline`), the fewest of several; 0 without stages."""
    lengths = []
    for equation in jaxpr.eqns:
        inner = [one for value in equation.params.values() for one in jaxprs(value)]
        if equation.primitive.name == "shard_map" and "stage" in manual_axes(equation.params):
            loops = [loop.params for one in inner for loop in one.eqns if loop.primitive.name == "scan"]
            lengths += [loop["length"] for loop in loops if any(e.primitive.name == "ppermute" for e in loop["jaxpr"].eqns)]
        else:
            lengths += [length for one in inner if (length := ticks(one))]
    return min(lengths, default=0)


def manual_axes(parameters: Mapping) -> frozenset[str]:
    """Return the mesh axes that a `shard_map` adds to those around it; the parameter's name depends on jax's version."""
    return parameters.get("newly_manual_axes", parameters.get("manual_axes"))


def array_of(variable: Var | Literal) -> jax.ShapeDtypeStruct:
    """Return a variable's shape and type; only arrays reach a train step's equations that are asked for it."""
    return cast(jax.ShapeDtypeStruct, variable.aval)


def size(variable: Var) -> int:
    """Return the bytes of a variable's array; random keys count nothing."""
    array = array_of(variable)
    return math.prod(array.shape) * getattr(array.dtype, "itemsize", 0)


def jaxprs(value: object) -> Iterator[Jaxpr]:
    """Yield the programs in a parameter of an equation."""
    for item in value if isinstance(value, tuple | list) else (value,):
        if isinstance(item, ClosedJaxpr):
            yield item.jaxpr
        elif isinstance(item, Jaxpr):
            yield item
