"""Meshes, micro-batches, remat policies and attention kernels of a config, ranked for a slice by the roofline.

Thousands of candidates are bounded by arithmetic: operations and kept activations of the traced step, one trace for each remat
policy and kernel, shared evenly among the devices, and the traffic of each mesh axis. Those whose bound does not fit are
dropped, and the best few are compiled, whose figures are then those of the compiler.
"""

import dataclasses
import itertools
import math
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lm.config import Config
from lm.data.corpus.corpus import Corpus
from lm.errors import UserError, check
from lm.fields import override
from lm.models import flops
from lm.models.transformer import TABLES
from lm.objectives.base import training_batches
from lm.planning.hardware import Chip, chip_of
from lm.planning.roofline import Bound, rate
from lm.planning.step import Step, device_memory, measure, step_of
from lm.planning.traced import Traced, figures

SEARCHED = ("data", "fsdp", "tensor", "context")
ALONE = ("stage", "expert")  # axes of one device each in a search: their gain depends on more than the rates of a chip
CHOICES = ("remat", "attention")  # fields of a network that change speed and memory, not results


@dataclass(frozen=True)
class Candidate:
    """One way to run a config: its fields as overrides, its bound by arithmetic, a device's bytes at least."""

    mesh: Mapping[str, int]
    micro_batches: int
    choices: Mapping[str, str]
    bound: Bound
    bytes: int

    @property
    def overrides(self) -> list[tuple[str, str]]:
        sizes = [(f"mesh.{axis}", str(self.mesh.get(axis, 1))) for axis in (*SEARCHED, *ALONE)]
        return [*sizes, ("micro_batches", str(self.micro_batches)), *self.choices.items()]

    def row(self) -> dict[str, Any]:
        """Return the candidate as a row of the list in JSON."""
        sizes = {axis: size for axis, size in self.mesh.items() if size > 1}
        return {
            "mesh": sizes, "micro_batches": self.micro_batches,
            **{name: next((v for path, v in self.choices.items() if path.endswith(name)), None) for name in CHOICES},
            "compiled": False, "bytes_at_least": self.bytes, "step_seconds_estimate": self.bound.seconds,
            "limit": self.bound.limit, "overrides": [f"--config.{path}={value}" for path, value in self.overrides],
        }  # fmt: skip


def paths(value: object, name: str, prefix: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (path, choices) of every field `name` in a tree of dataclasses: those of its type, or of its table."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        path = f"{prefix}.{field.name}"
        if field.name == name and typing.get_origin(hints[field.name]) is typing.Literal:
            yield path, typing.get_args(hints[field.name])
        elif field.name == name and name in TABLES:
            yield path, tuple(typing.cast(Collection[str], TABLES[name]))
        else:
            yield from paths(getattr(value, field.name), name, path)


def variants(config: Config) -> list[dict[str, str]]:
    """Return the settings of remat and attention to try: one value at a time for all parts of a network."""
    alternatives = []
    for name in CHOICES:
        found = list(paths(config.objective.model, name, "objective.model"))
        values = found[0][1] if found else ()
        alternatives.append([{path: value for path, _ in found} for value in values] or [{}])
    return [{k: v for part in parts for k, v in part.items()} for parts in itertools.product(*alternatives)]


def meshes(devices: int) -> Iterator[dict[str, int]]:
    """Yield all sizes of the searched axes whose product is the number of devices."""

    def divisors(number: int) -> list[int]:
        return [d for d in range(1, number + 1) if number % d == 0]

    for data in divisors(devices):
        for fsdp in divisors(devices // data):
            for tensor in divisors(devices // data // fsdp):
                yield {"data": data, "fsdp": fsdp, "tensor": tensor, "context": devices // data // fsdp // tensor}


def bound_of(
    step: Step, traced: Traced, parts: int, chip: Chip, peak: float, state: int, recomputed: bool
) -> tuple[Bound, int]:
    """Return the bound of a step in `parts` micro-batches, and the bytes of a device at least.

    Per micro-batch, weights in bfloat16 are gathered for each pass and their gradients summed in float32; each layer sums
    its activations four times over the tensor axis (six with recomputation) and gathers keys and values over the context axis.
    `state`: bytes of a device's own parameters, in float32.
    """
    size, mesh = dict(step.mesh.shape), step.mesh
    devices, rows = mesh.devices.size, size["data"] * size["fsdp"]
    passes = 3 if recomputed else 2
    gathered = state * size["fsdp"] / 2  # the weights that it computes with, in bfloat16
    activations = traced.stream / (rows * size["context"])
    memory = 2 * step.arguments_bytes + parts * passes * gathered + 2 * traced.kept / devices

    def seconds(axis: str, sent: float) -> float:
        group = size[axis]
        return sent * (group - 1) / group / rate(mesh, (axis,), chip) if group > 1 else 0.0

    network = seconds("fsdp", parts * (passes * gathered + 2 * gathered)) + seconds("data", parts * 2 * state)
    network += seconds("tensor", (6 if recomputed else 4) * 2 * activations) + seconds("context", 6 * activations)
    # Half: the compiler fuses casts, and keeps less than the traced program asks for.
    least = step.arguments_bytes + int(0.5 * traced.kept / devices / parts)
    return Bound(traced.flops / devices / peak, memory / chip.bandwidth, network), least


def candidates(config: Config, corpus: Corpus, devices: list, gib: float | None) -> list[Candidate]:
    """Return the candidates whose bound fits, the fastest first; ties go to the least work of all resources together."""
    chip, peak = chip_of(devices[0].device_kind), flops.peak(devices[0])
    if chip is None or peak is None:
        raise UserError(f"--search ranks by the rates of a device, and those of {devices[0].device_kind} are not known")
    example = training_batches(config, corpus, (0, 1))[0]
    steps = list(laid_out(config, corpus, devices, example))
    check(steps, f"no mesh over {len(devices)} devices divides batch={config.batch} and the sizes of the model")
    found: list[Candidate] = []
    for choices in variants(config):
        fields = [("micro_batches", "1"), *choices.items()]
        try:
            traced = trace(dataclasses.replace(steps[0], config=override(steps[0].config, fields)))
        except (UserError, NotImplementedError, ValueError):  # a kernel that this network or device does not have
            continue
        recomputed = "full" in choices.values()
        for step in steps:
            size, memory = step.mesh.shape, device_memory(step, gib)
            state = shard_bytes(step.state.params)
            for parts in divisible(config.batch // (size["data"] * size["fsdp"])):
                bound, least = bound_of(step, traced, parts, chip, peak, state, recomputed)
                if memory is None or least <= memory:
                    found.append(Candidate({axis: size[axis] for axis in SEARCHED}, parts, choices, bound, least))
    return sorted(found, key=lambda one: (one.bound.seconds, one.bound.products + one.bound.memory + one.bound.network))


def divisible(rows: int) -> list[int]:
    """Return the numbers of micro-batches that cut a device's rows evenly."""
    return [parts for parts in range(1, rows + 1) if rows % parts == 0]


def laid_out(config: Config, corpus: Corpus, devices: list, example: dict[str, np.ndarray]) -> Iterator[Step]:
    """Yield the config on every mesh that it and the slice allow."""
    for sizes in meshes(len(devices)):
        fields = [(f"mesh.{axis}", str(size)) for axis, size in (*sizes.items(), *((axis, 1) for axis in ALONE))]
        try:
            yield step_of(override(config, [*fields, ("micro_batches", "1")]), corpus, devices, example)
        except UserError:  # sizes that do not divide, an axis that the torus does not have
            continue


def trace(step: Step) -> Traced:
    return figures(step.trace().jaxpr.jaxpr, step.mesh.devices.size)


def shard_bytes(tree: object) -> int:
    """Return the bytes of one device's shards of a tree of abstract arrays."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def search(config: Config, corpus: Corpus, devices: list, most: int, gib: float | None = None) -> dict[str, Any]:
    """Compile the best `most` candidates that fit; return the figures of the best and, as "search", the list.

    Candidates that the compiler refuses, or resolves by copies of whole arrays, are passed over, at most twice `most`.
    """
    ranked = candidates(config, corpus, devices, gib)
    check(ranked, "no candidate fits: a larger slice, or a smaller batch or model")
    rows, tried = [], 0
    compiled: list[tuple[float, dict, dict]] = []
    for candidate in ranked:
        row = candidate.row()
        if len(compiled) < most and tried < 3 * most:
            tried += 1
            print(f"compiling {tried}: {named(row)}", flush=True)
            figures_of = attempt(config, candidate, corpus, devices, gib)
            keys = ("fits", "peak_bytes", "step_seconds_estimate", "mfu_estimate", "warnings", "error")
            row |= {"compiled": True} | {key: figures_of[key] for key in keys if key in figures_of}
            row["limit"] = figures_of.get("roofline", {}).get("limit")
            if figures_of.get("fits") and not figures_of["warnings"]:
                compiled.append((figures_of["step_seconds_estimate"], row, figures_of))
        rows.append(row)
    check(compiled, f"none of the best {tried} candidates fits: raise --candidates, or take a larger slice")
    compiled.sort(key=lambda one: one[0])
    best = [row for _, row, _ in compiled]
    return compiled[0][2] | {"search": best + [row for row in rows if row not in best]}


def attempt(config: Config, candidate: Candidate, corpus: Corpus, devices: list, gib: float | None) -> dict[str, Any]:
    """Return the figures of a compiled candidate, or the error of one that the compiler rejects."""
    try:
        return measure(step_of(override(config, candidate.overrides), corpus, devices), gib)
    except UserError as error:
        return {"fits": False, "warnings": [], "error": str(error)}


def named(row: Mapping[str, Any]) -> str:
    """Return a row's settings in words: fsdp 16 x tensor 4, 2 micro-batches, remat full."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in row["mesh"].items()) or "one device"
    chosen = [f"{name} {row[name]}" for name in CHOICES if row[name]]
    return ", ".join([mesh, f"{row['micro_batches']} micro-batch" + "es" * (row["micro_batches"] > 1), *chosen])
