"""Operations of a compiled program, of one device and step: matrix products, memory traffic, collectives.

Loops count as often as they run. A collective that the TPU compiler cuts into pieces, to run beside matrix products, counts
once: its pieces share a channel.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lm.planning.hlo import Instruction, Program, Run

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all",
               "collective-broadcast")  # fmt: skip
# No buffer is read or written: names for parts of others, or the second half of an asynchronous pair.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
        "partition-id", "replica-id", "opt-barrier", "iota"}  # fmt: skip
KERNELS = ("tpu_custom_call", "cudnn$f", "mosaic_gpu", "triton_kernel_call")


@dataclass(frozen=True)
class Collective:
    """A collective: executions a step, bytes of the larger side of one, the mesh axes of its groups, and the groups' size."""

    kind: str
    count: int
    bytes: int
    axes: tuple[str, ...]
    group: int
    looped: bool


# -- matrix products ---------------------------------------------------------------------------------------------------


def numbers(text: str, name: str) -> list[int]:
    match = re.search(rf"{name}=\{{([\d,]*)\}}", text)
    return [int(n) for n in match[1].split(",") if n] if match else []


def dot_flops(instruction: Instruction, computation: Mapping[str, Instruction]) -> int:
    """Return 2 x results x contracted length."""
    left = computation[instruction.operands[0]].shapes[0].sizes
    contracted = math.prod(left[axis] for axis in numbers(instruction.attributes, "lhs_contracting_dims"))
    return 2 * math.prod(instruction.shapes[0].sizes) * contracted


def convolution_flops(instruction: Instruction, computation: Mapping[str, Instruction]) -> int:
    """Return 2 x multiplications with a number of the input, not with its padding or the holes of its dilation.

    The TPU compiler writes every matrix product as a convolution, the batch as a window over a dilated input.
    """
    left, right = (computation[name].shapes[0].sizes for name in instruction.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    if not labels:
        return 0
    options = dict(item.split("=") for item in window[1].split()) if window else {}
    output = dict(zip(labels[3], instruction.shapes[0].sizes, strict=True))
    products = output["b"] * output["f"] * dict(zip(labels[2], right, strict=True))["i"]
    source, kernel = dict(zip(labels[1], left, strict=True)), dict(zip(labels[2], right, strict=True))

    def option(name: str, axis: int, default: str) -> str:
        return options[name].split("x")[axis] if name in options else default

    for axis in range(sum(label.isdecimal() for label in labels[3])):
        stride, inner = int(option("stride", axis, "1")), int(option("lhs_dilate", axis, "1"))
        outer, low = int(option("rhs_dilate", axis, "1")), int(option("pad", axis, "0_0").split("_")[0])
        places = np.arange(output[str(axis)])[:, None] * stride + np.arange(kernel[str(axis)])[None] * outer - low
        length = (source[str(axis)] - 1) * inner + 1
        products *= int(((places >= 0) & (places < length) & (places % inner == 0)).sum())
    return 2 * products


def matrix_flops(program: Program, loops: bool = True) -> int:
    """Return the operations of the matrix products of one device; without `loops`, a loop's body counts once."""
    total = 0
    for run in program.runs():
        times = run.times if loops else 1
        for instruction in run.computation.values():
            if instruction.operation == "dot":
                total += times * dot_flops(instruction, run.computation)
            elif instruction.operation == "convolution":
                total += times * convolution_flops(instruction, run.computation)
    return total


def kernel_calls(program: Program) -> int:
    """Return the runs of hand-written kernels, whose operations the program does not state."""
    lines = [
        (run.times, line) for run in program.runs() for line in run.computation.values() if line.operation == "custom-call"
    ]
    return sum(times for times, line in lines if any(name in line.attributes for name in KERNELS))


# -- memory ------------------------------------------------------------------------------------------------------------


def traffic(instruction: Instruction, computation: Mapping[str, Instruction], spaces: bool) -> int:
    """Return the bytes that one unfused instruction reads from and writes to memory."""

    def size(shapes: tuple) -> int:
        return sum(shape.bytes for shape in shapes if not (spaces and shape.space))

    kind, operands = instruction.operation, [computation[name].shapes for name in instruction.operands if name in computation]
    if kind in FREE or kind.endswith("-done") or not operands:
        return 0
    if kind in ("dynamic-slice", "gather", "slice"):
        return 2 * size(instruction.shapes)
    if kind in ("dynamic-update-slice", "scatter"):  # in place: the part, read and written
        return 2 * size(operands[1 if kind == "dynamic-update-slice" else -1])
    if kind == "slice-start":
        return size(instruction.shapes[-2:])
    if kind.endswith("-start"):  # its result repeats the operand
        return size(operands[0]) + size(instruction.shapes[1:2])
    return sum(map(size, operands)) + size(instruction.shapes)


def fusion_traffic(fusion: Instruction, inside: Mapping[str, Instruction], spaces: bool) -> int:
    """Return the bytes that a fused kernel reads of each operand and writes of each result.

    An operand that is only sliced counts by its slices, one that is only updated in place or handed on not at all.
    """
    total = 0
    users: dict[str, list[Instruction]] = {}
    for line in inside.values():
        for name in line.operands:
            users.setdefault(name, []).append(line)
    parameters = [line for line in inside.values() if line.operation == "parameter"]
    root = next(line for line in inside.values() if line.root)
    for parameter in parameters:
        shape = parameter.shapes[0]
        if spaces and shape.space:
            continue
        read = 0
        for user in users.get(parameter.name, []):
            if user.operation in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
                read += sum(one.bytes for one in user.shapes)
            elif user.operation == "dynamic-update-slice" and user.operands[0] == parameter.name:
                continue
            elif user.operation not in ("tuple", "custom-call"):
                read = shape.bytes
                break
        total += min(read, shape.bytes)
    results = [inside[name] for name in root.operands] if root.operation == "tuple" else [root]
    for line, shape in zip(results, fusion.shapes, strict=False):
        if line.operation == "parameter" or (spaces and shape.space):
            continue
        while line.operation in ("bitcast", "convert") and line.operands[0] in inside:
            line = inside[line.operands[0]]
        updated = line.operation == "dynamic-update-slice" and inside.get(line.operands[1])
        total += updated.shapes[0].bytes if updated else shape.bytes
    return total


def memory_bytes(program: Program, loops: bool = True, spaces: bool = True) -> int:
    """Return the bytes read from and written to a device's memory a step.

    Buffers that the compiler keeps on the chip are left out with `spaces`; without `loops`, a loop's body counts once.
    """
    total = 0
    for run in program.runs():
        if run.fused:
            continue
        times = run.times if loops else 1
        for line in run.computation.values():
            if line.operation == "fusion":
                inside = program.computations[line.called()[0]]
                total += times * fusion_traffic(line, inside, spaces)
            else:
                total += times * traffic(line, run.computation, spaces)
    return total


# -- collectives -------------------------------------------------------------------------------------------------------


RANGE = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"  # 0, 1, ... in an array of these sizes, its axes in another order


def integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def transposed(sizes: str, order: str | None) -> np.ndarray:
    """Return the range of the given sizes with its axes in the given order."""
    numbers_of = np.arange(math.prod(integers(sizes))).reshape(integers(sizes))
    return numbers_of.transpose(integers(order)) if order else numbers_of


def groups_of_mesh(mesh: str, sizes: str | None, order: str | None, chosen: str) -> np.ndarray:
    """Return the groups along axes of the partitioner's own mesh; a part of an axis is written 'name':(parts before)size."""
    names, lengths, group = [], [], set()
    parts = {
        name: (int(before or 1), int(size or 0)) for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen)
    }
    for name, length in ((name, int(size)) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh)):
        before, size = parts.get(name, (1, 0))
        size = size or length
        names += [(name, part) for part in range(3)]
        lengths += [before, size, length // (before * size)]
        if name in parts:
            group.add((name, 1))
    devices = (transposed(sizes, order) if sizes else np.arange(math.prod(lengths))).reshape(lengths)
    last = [axis for axis, name in enumerate(names) if name in group]
    axes = [axis for axis in range(len(names)) if axis not in last] + last
    return devices.transpose(axes).reshape(-1, math.prod(lengths[axis] for axis in last))


def groups_of(attributes: str) -> np.ndarray | None:
    """Return the device numbers of a collective, (groups, size); None where all devices are one group.

    XLA writes them in full, {{0,1},{2,3}}, as a transposed range, [2,2]<=[2,2]T(1,0), or by axes of a mesh of its own.
    """
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes)
    full = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes)
    if written := pairs or full:
        rows = re.findall(r"\{([\d, ]+)\}", written[1])
        return np.array([[int(n) for n in row.split(",")] for row in rows])
    if match := re.search(rf"replica_groups=\[([\d,]+)\]<={RANGE}", attributes):
        return transposed(match[2], match[3]).reshape(integers(match[1]))
    if match := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({RANGE}\))? \{{([^}}]*)\}}", attributes):
        return groups_of_mesh(*match.groups())
    return None


def axes_of_groups(groups: np.ndarray | None, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the mesh axes along which the members of a group differ: device numbers count through the mesh in its order."""
    sizes = list(mesh.values())
    if groups is None:
        return tuple(name for name, size in mesh.items() if size > 1)
    if not groups.size or groups.max() >= math.prod(sizes):
        return ("unknown",)
    places = np.stack(np.unravel_index(groups, sizes))
    return tuple(name for name, place in zip(mesh, places, strict=True) if (place != place[:, :1]).any())


def collective_of(line: Instruction, run: Run, mesh: Mapping[str, int]) -> Collective | None:
    """Return the collective of an instruction, None for other instructions and for groups of one device."""
    kind = line.operation.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    operands = [run.computation[name].shapes for name in line.operands if name in run.computation]
    sent, received = sum(s.bytes for shapes in operands for s in shapes), sum(s.bytes for s in line.shapes)
    if line.operation.endswith("-start") and kind != "all-reduce":  # (operands, results) and markers
        received = max((shape.bytes for shape in line.shapes), default=0) if len(operands) == 1 else received - sent
    if kind == "all-reduce" and run.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # the TPU compiler's form of it: a sum whose devices keep a part each
    groups = groups_of(line.attributes)
    size = math.prod(mesh.values()) if groups is None else groups.shape[1] if groups.ndim == 2 else 1
    if size == 1:
        return None
    return Collective(kind, run.times, max(sent, received), axes_of_groups(groups, mesh), size, run.looped)


def collectives(program: Program, mesh: Mapping[str, int]) -> list[Collective]:
    """Return the collectives of a program; `mesh`: sizes of the mesh's axes in order."""
    found, seen = [], set()
    for run in program.runs():
        for line in run.computation.values():
            one = collective_of(line, run, mesh)
            channel = re.search(r"channel_id=(\d+)", line.attributes)
            place = (run.caller, run.times, channel[1] if channel else line.name)
            if one is not None and place not in seen:
                seen.add(place)
                found.append(one)
    return found


def summary(found: list[Collective]) -> dict[str, dict]:
    """Sum up collectives by kind: executions a step, bytes a step and device, the same by mesh axes and inside loops."""
    kinds: dict[str, dict] = {}
    for one in sorted(found, key=lambda one: one.kind):
        entry = kinds.setdefault(one.kind, {"count": 0, "bytes": 0, "axes": {}, "in_loops": {"count": 0, "bytes": 0}})
        along = entry["axes"].setdefault(",".join(one.axes), {"count": 0, "bytes": 0})
        for part in (entry, along, *([entry["in_loops"]] if one.looped else [])):
            part["count"] += one.count
            part["bytes"] += one.count * one.bytes
    return kinds
