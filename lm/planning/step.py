"""The train step of a config compiled for devices that need not exist, and its figures."""

import contextlib
import dataclasses
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.config import Config
from lm.console import waiting
from lm.data.corpus.corpus import Corpus
from lm.data.corpus.prepare import prepare
from lm.data.corpus.store import Tokens
from lm.data.tokenizer.tokenizer import Bytes
from lm.data.types import labelled
from lm.errors import check, one_line
from lm.models import flops
from lm.objectives.base import resolve, training_batches
from lm.planning import operations, roofline
from lm.planning.hardware import GIB, chip_of
from lm.planning.hlo import program_of
from lm.planning.traced import Traced, figures, ticks
from lm.sharding import RULES, batch_layout, make_mesh, widened
from lm.sizes import memory
from lm.train import traced_step
from lm.training.state import TrainState, abstract_state

WARNING = "nvoluntary full rematerialization"  # the partitioner copies a whole array to every device to reshard it
SIZES = re.compile(r"memory required for \w[\w ]*\(([\d.]+)([KMGT])\) exceeds")


@dataclass(frozen=True)
class Step:
    """A step with shapes and shardings, and no arrays."""

    config: Config
    mesh: jax.sharding.Mesh
    batch: dict[str, jax.ShapeDtypeStruct]
    state: TrainState

    def trace(self) -> jax.stages.Traced:
        with jax.set_mesh(self.mesh):
            return traced_step(self.config, self.state, self.batch)

    @property
    def arguments_bytes(self) -> int:
        """Bytes of a device's share of state and batch."""
        leaves = jax.tree.leaves((self.state, self.batch))
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def stand_in(config: Config, vocab: int) -> tuple[Config, Corpus]:
    """Resolve the config against random bytes in place of its corpus: the compiler needs shapes alone.

    Labelled examples are prepared as for training, as their labels and lengths determine the shapes.
    """
    if labelled(config.data.source):
        return resolve(config, prepare(config.data, report=print))
    tokenizer = Bytes().build(lambda: ())
    rng = np.random.default_rng(0)
    # Fields of 40 tokens; an objective of whole documents names their number.
    fields = getattr(config.objective.records, "fields", 0) or 100
    letters, ends = rng.integers(32, 127, (4000, 40)), np.full((4000, 1), tokenizer.separator)
    text = np.concatenate([letters, ends], 1)
    documents = [text[i : i + fields].reshape(-1)[:-1] for i in range(0, len(text) - fields + 1, fields)]
    tokens = Tokens.of(documents, tokenizer.separator, tokenizer.vocab)
    corpus = Corpus(tokenizer, ((1.0, tokens),), tokens, "made up", len(tokens), "", Path())
    return resolve(dataclasses.replace(config, objective=config.objective.sized(vocab)), corpus)


def step_of(config: Config, corpus: Corpus, devices: list, example: dict[str, np.ndarray] | None = None) -> Step:
    """Lay out a resolved config on devices; raises UserError where mesh, batch and model do not fit together."""
    mesh = make_mesh(dataclasses.asdict(config.mesh), devices)
    axes, rows = RULES["batch"], config.batch // config.micro_batches
    parts = math.prod(mesh.shape[axis] for axis in axes)
    check(rows % parts == 0, f"{rows} rows of a micro-batch do not divide among the {parts} devices of {', '.join(axes)}")
    example = example or training_batches(config, corpus, (0, 1))[0]
    example = widened(example, mesh.shape["context"])
    layout = batch_layout(mesh, example)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype, sharding=layout[name]) for name, x in example.items()
    }
    with jax.set_mesh(mesh):
        return Step(config, mesh, batch, abstract_state(config, batch, mesh))


@contextlib.contextmanager
def compiler_warnings(found: list[str]) -> Iterator[None]:
    """Collect the partitioner's warnings, which it writes to descriptor 2 itself; other lines go on to stderr."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if WARNING in line:
                    found.append(one_line(line, 300))
                else:
                    print(line, file=sys.stderr)


def sized(step: Step, traced: Traced | None = None) -> dict[str, Any]:
    """Return the figures that need no compiler."""
    device, config = step.mesh.devices.flat[0], step.config
    work = config.batch * config.objective.flops()
    found: dict[str, Any] = {
        "devices": step.mesh.devices.size,
        "device_kind": device.device_kind,
        "mesh": {name: size for name, size in step.mesh.shape.items() if size > 1},
        "params": flops.parameter_count(step.state.params),
        "model_flops": work,
        "steps": config.steps,
        "tokens": config.batch * max((x.shape[1] for x in step.batch.values() if len(x.shape) > 1), default=0),
    }
    if peak := flops.peak(device):
        found["step_seconds_at_peak"] = work / (peak * step.mesh.devices.size)
    return found


def device_memory(step: Step, gib: float | None) -> int | None:
    """Return a device's memory in bytes: `gib` of the user, the table's, or the machine's for devices of this CPU."""
    device = step.mesh.devices.flat[0]
    if gib is not None:
        return int(gib * GIB)
    if device.platform == "cpu":
        return memory() // step.mesh.devices.size
    chip = chip_of(device.device_kind)
    return chip.memory if chip else None


def measure(step: Step, gib: float | None = None) -> dict[str, Any]:
    """Compile a step and read its program; bytes are of one device, FLOPs of all.

    A step that the compiler refuses for its memory has "fits": False and none of the figures of a program. Warnings of the
    partitioner are returned, not raised.
    """
    warnings: list[str] = []
    start, found = time.perf_counter(), sized(step)
    hbm, count = device_memory(step, gib), step.mesh.devices.size
    traced = step.trace()
    whole = figures(traced.jaxpr.jaxpr, count)
    found |= {"arguments_bytes": step.arguments_bytes, "hbm_bytes": hbm, "warnings": warnings}
    if (stages := step.mesh.shape["stage"]) > 1 and (passes := ticks(traced.jaxpr.jaxpr)):
        found["pipeline"] = {"stages": stages, "micro_batches": passes - stages + 1, "bubble": (stages - 1) / passes}
    try:
        show = waiting(f"compiling the step for {count} x {found['device_kind']}")
        with compiler_warnings(warnings), show, jax.set_mesh(step.mesh):
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        check("exceeds available HBM" in str(error) or "RESOURCE_EXHAUSTED" in str(error), refused(error))
        needed = SIZES.search(str(error))
        # The compiler calls the sum of arguments, results and temporaries "temporaries".
        peak = int(float(needed[1]) * 1024 ** ("KMGT".index(needed[2]) + 1)) if needed else None
        temporaries = None if peak is None else max(0, peak - step.arguments_bytes)
        nothing = dict.fromkeys(("compiled_flops", "bytes_accessed", "step_seconds_estimate", "mfu_estimate"))
        seconds = round(time.perf_counter() - start, 1)
        found |= {"temporaries_bytes": temporaries, "peak_bytes": peak, "fits": False, **nothing, "collectives": {}}
        return found | {"compile_seconds": seconds}
    seconds = round(time.perf_counter() - start, 1)
    sizes = compiled.memory_analysis()
    peak = getattr(sizes, "peak_memory_in_bytes", 0) or sizes.argument_size_in_bytes + sizes.temp_size_in_bytes
    return found | {
        "arguments_bytes": sizes.argument_size_in_bytes,
        "temporaries_bytes": sizes.temp_size_in_bytes,
        "peak_bytes": peak,
        "fits": hbm is None or peak <= hbm,
        **program_figures(compiled.as_text(), step, whole),
        "compile_seconds": seconds,
    }


def refused(error: Exception) -> str:
    return f"the step does not compile: {one_line(str(error), 300)}"


def program_figures(text: str, step: Step, whole: Traced) -> dict[str, Any]:
    """Return FLOPs, memory traffic, collectives and the roofline of an optimised program."""
    program, devices = program_of(text), step.mesh.devices.size
    device = step.mesh.devices.flat[0]
    # Hand-written kernels do not state their operations: those of the traced program, where each block counts, stand in.
    kernels = operations.kernel_calls(program)
    products = operations.matrix_flops(program) + (whole.kernel_flops / devices if kernels else 0)
    traffic, found = operations.memory_bytes(program), operations.collectives(program, dict(step.mesh.shape))
    result: dict[str, Any] = {
        "compiled_flops": products * devices,
        "traced_flops": whole.flops,
        "bytes_accessed": traffic,
        "collectives": operations.summary(found),
        "step_seconds_estimate": None,
        "mfu_estimate": None,
    }
    chip, peak = chip_of(device.device_kind), flops.peak(device)
    if not chip or not peak:
        return result
    network = roofline.network_seconds(found, step.mesh, chip)
    bound = roofline.Bound(products / peak, traffic / chip.bandwidth, network)
    work = step.config.batch * step.config.objective.flops()
    return result | {
        "step_seconds_estimate": bound.seconds,
        "mfu_estimate": work / (bound.seconds * peak * devices),
        "roofline": {**dataclasses.asdict(bound), "limit": bound.limit, "assumptions": roofline.ASSUMPTIONS},
    }
