"""Compile the real train step ahead of time: memory, operations, collectives; no device of that kind is needed.

    python -m lm.compile --config=configs/gpt_small.py [--topology=v5e:4x4] [--config.mesh.fsdp=16] [--output=F.json]
    python -m lm.compile --config=configs/gpt_small.py --topology=v5e:4x4 --nocompile

`--topology` takes libtpu's names (v4:2x2x2, v5e:4x4, v5p:2x2x1, v6e:4x4 ...) and needs `pip install libtpu`; without it
the step is compiled for the devices here.
"""

import dataclasses
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from absl import flags

from lm.config import Config, load, override
from lm.errors import UserError, check
from lm.flags import define_output, output, run

CONFIG = flags.DEFINE_string("config", None, "config file and its arguments: FILE.py[:key=value,...]")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice to compile for, such as v5e:4x4")
VOCAB = flags.DEFINE_integer("vocab", 32768, "vocabulary where the config leaves it to the tokenizer")
COMPILE = flags.DEFINE_bool("compile", True, "--nocompile counts parameters, operations and time only, in seconds")
OUTPUT = define_output("write the figures to this file as JSON; bytes are of one device")

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def devices(topology: str | None) -> list:
    """Return the devices to compile for: those of a TPU slice that need not exist, or the local ones."""
    import jax

    if topology is None:
        return jax.devices()
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # libtpu raises many kinds: a wrong name, no libtpu at all
        raise UserError(
            f"--topology={topology}: {str(error).splitlines()[0][:200]}; names look like v5e:4x4, and libtpu must be "
            "installed (pip install libtpu)"
        ) from error


def stand_in(config: Config) -> tuple[Config, Any]:
    """Resolve the config against random bytes in place of its corpus: the compiler needs shapes alone.

    Labelled examples are prepared as for training, as their labels and lengths determine the shapes.
    """
    import numpy as np

    from lm.data.corpus.corpus import Corpus
    from lm.data.corpus.prepare import prepare
    from lm.data.corpus.store import Tokens
    from lm.data.tokenizer.tokenizer import Bytes
    from lm.data.types import labelled
    from lm.objectives.base import resolve

    if labelled(config.data.source):
        return resolve(config, prepare(config.data, report=print))
    tokenizer = Bytes().build(lambda: ())
    rng = np.random.default_rng(0)
    # Fields of 40 tokens; an objective of whole documents names their number.
    fields = getattr(config.objective.records, "fields", 0) or 100
    text = rng.integers(32, 127, (4000, 41))
    text[:, -1] = tokenizer.separator
    documents = [text[i : i + fields].reshape(-1)[:-1] for i in range(0, len(text) - fields + 1, fields)]
    tokens = Tokens.of(documents, tokenizer.separator, tokenizer.vocab)
    corpus = Corpus(tokenizer, ((1.0, tokens),), tokens, "made up", len(tokens), "", Path())
    return resolve(dataclasses.replace(config, objective=config.objective.sized(VOCAB.value)), corpus)


def measure(config: Config, topology: str | None, compiling: bool = True) -> dict[str, Any]:
    """Compile the step of a config for a slice; return its memory (bytes of one device), operations and collectives.

    Without `compiling`, memory and collectives are absent.
    `step_seconds_at_peak` is a lower bound, of matrix products alone at the device's peak; absent for unknown devices.
    """
    import jax

    from lm.console import waiting
    from lm.models import flops
    from lm.objectives.base import training_batches
    from lm.sharding import batch_layout, make_mesh
    from lm.train import compile_step
    from lm.training.state import abstract_state

    # Abstract arrays with shardings of the topology: no device of it has to exist.
    config, corpus = stand_in(config)
    mesh = make_mesh(dataclasses.asdict(config.mesh), devices(topology))
    kind = mesh.devices.flat[0].device_kind
    example = training_batches(config, corpus, (0, 1))[0]
    layout = batch_layout(mesh, example)
    batch = {
        name: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype, sharding=layout[name]) for name, x in example.items()
    }
    with jax.set_mesh(mesh):
        abstract = abstract_state(config, batch, mesh)
    work = config.batch * config.objective.flops()
    found: dict[str, Any] = {
        "devices": mesh.devices.size,
        "device_kind": kind,
        "mesh": {name: size for name, size in mesh.shape.items() if size > 1},
        "params": flops.parameter_count(abstract.params),
        "model_flops": work,
        "steps": config.steps,
    }
    if peak := flops.peak(mesh.devices.flat[0]):
        found["step_seconds_at_peak"] = work / (peak * mesh.devices.size)
    if not compiling:
        return found
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        try:
            with waiting(f"compiling the step for {mesh.devices.size} x {kind}"):
                compiled = compile_step(config, abstract, batch)
        except jax.errors.JaxRuntimeError as error:
            # A step that does not fit fails in the compiler, with the sizes in its first line.
            check("hbm" not in str(error).lower(), f"it does not fit: {str(error).splitlines()[0][:300]}")
            raise
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    # Counted in the optimised program, after the partitioner: `-start` halves of asynchronous ones count once.
    collectives = Counter(re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", compiled.as_text()))
    return found | {
        "arguments_bytes": memory.argument_size_in_bytes,
        "temporaries_bytes": memory.temp_size_in_bytes,
        "collectives": {name: {"count": count} for name, count in sorted(collectives.items())},
        "compile_seconds": round(seconds, 1),
    }


def report(found: dict[str, Any]) -> str:
    """Format what `measure` found as a table."""
    from lm.console import table

    gib = 2**30
    rows = [
        ("devices", f"{found['devices']} x {found['device_kind']}"),
        ("mesh", " x ".join(f"{n} {a}" for a, n in found["mesh"].items()) or "1"),
        ("parameters", f"{found['params']:,}"),
        ("operations a step", f"{found['model_flops']:.3e} FLOP (formula of lm.models.flops)"),
    ]
    if "collectives" in found:
        kinds = ", ".join(f"{one['count']} {name}" for name, one in found["collectives"].items())
        rows[3:3] = [(f"{name} a device", f"{found[f'{name}_bytes'] / gib:.3f} GiB") for name in ("arguments", "temporaries")]
        rows.append(("collectives", kinds or "none"))
    if seconds := found.get("step_seconds_at_peak"):
        hours = seconds * found["steps"] / 3600
        rows.append(("time at the device's peak", f"{seconds:.3g} s a step, {hours:,.3g} h for {found['steps']:,} steps"))
    return table(rows, ("quantity", "value"))


def main(overrides: list[tuple[str, str]]) -> None:
    check(CONFIG.value is not None, "which config? --config=configs/gpt_small.py")
    config = load(CONFIG.value)
    config = override(config, overrides)
    file = output("lm.compile")  # checked before minutes of compilation
    # libtpu off a TPU: no query to the metadata server, no lock against other processes.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if config.start:
        from lm.start.adopt import adopt

        config, _ = adopt(config, [name for name, _ in overrides])
    found = measure(config, TOPOLOGY.value, COMPILE.value)
    print(report(found))
    if file:
        file.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    run(main, Config)
