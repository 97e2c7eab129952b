"""Time of a training step: the compiled step of a run, repeated on one real batch."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from lm.config import Config
from lm.data.corpus.corpus import Corpus
from lm.models import flops
from lm.objectives.base import training_batches
from lm.sharding import make_mesh, place
from lm.train import abstract_batch, compile_step, numbers_of
from lm.training.state import TrainState, abstract_state, initialise


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the median wall time of a call that blocks until done, after one call to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class Stepper(NamedTuple):
    """A compiled training step of a config: `once` takes one step on its batch and waits for it."""

    once: Callable[[], None]
    program: jax.stages.Compiled
    abstract: TrainState
    compile_seconds: float


def stepper(config: Config, batch: Mapping[str, Any]) -> Stepper:
    """Compile the step of a resolved config for a batch and draw its state."""
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    with jax.set_mesh(mesh):
        batch = place(batch, mesh, config.batch)
        abstract = abstract_state(config, abstract_batch(batch), mesh)
        start = time.perf_counter()
        function, numbers = compile_step(config, abstract, abstract_batch(batch)), jax.device_put(numbers_of(config))
        compiled = time.perf_counter() - start
        box = [initialise(config, abstract_batch(batch), abstract)]

    def once() -> None:
        box[0], sums = function(box[0], batch, numbers)
        jax.block_until_ready((box[0], sums))

    return Stepper(once, function, abstract, compiled)


def step(config: Config, corpus: Corpus, repeats: int) -> dict[str, float]:
    """Measure the training step of a resolved config: sizes, FLOPs, bytes of the program, median seconds.

    `tokens_per_second` is the upper bound of a run's `train/tokens_per_second`: no data loading, no logging.
    """
    once, function, abstract, compiled = stepper(config, training_batches(config, corpus)[0])
    median = seconds(once, repeats)
    memory = function.memory_analysis()
    tokens = config.batch * config.objective.records.tokens
    return {
        "parameters": flops.parameter_count(abstract.params),
        "compile_seconds": compiled,
        "step_seconds": median,
        "tokens_per_second": tokens / median,
        "step_tokens": tokens,
        "step_flops": config.batch * config.objective.flops(),
        "state_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract)),
        "program_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes if memory else 0,
    }
