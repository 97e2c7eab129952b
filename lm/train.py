"""The one training loop: build, restore, step, look, save."""

import contextlib
import dataclasses
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.config import Config, read_config, to_json
from lm.data.corpus.corpus import Corpus
from lm.data.corpus.prepare import prepare
from lm.data.rows.pipeline import prefetch
from lm.errors import check
from lm.evaluation.held_out import HeldOut, held_out_of
from lm.evaluation.registry import named
from lm.evaluation.report.learning_curve import curves
from lm.evaluation.subject import Task
from lm.looks import due, look, rehearse
from lm.objectives.base import resolve, training_batches
from lm.outputs import replace_file
from lm.preemption import Stop
from lm.progress import Meter, announce, changes, summary
from lm.results import conclude, done
from lm.runs import digest_of, owned
from lm.sharding import local_rows, make_mesh, place
from lm.start.begin import begin
from lm.training import dp_budget, dp_gradients, parameters
from lm.training.checkpoint import Checkpoints
from lm.training.schedules import factor
from lm.training.state import (
    TrainState,
    abstract_params,
    abstract_state,
    chain,
    check_device_memory,
    check_state,
    initialise,
)
from lm.training.stopping import Watch
from lm.training.writers import Writers


def train_step(config: Config, optimizer: optax.GradientTransformation, state: TrainState, batch: Any):
    """Take one update: (state, batch) -> (state, sums), pure, the same for every objective.

    Gradients are those of sum_k scales[k] * sums[k] / weights[k] over the whole batch, however it is cut into
    micro-batches. A step whose loss or gradient is not finite leaves the parameters as they were and is counted.
    """
    row_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), state.step)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(row_key, jnp.arange(config.batch))
    grads, sums, memory = gradients(config, state.params, batch, state.memory, keys_B)
    if config.optimizer.private.noise:
        grads = dp_gradients.noised(config, grads, state.step)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums["loss"][0])
    lr = config.optimizer.lr * factor(config.schedule, config.steps, state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + lr * u, state.params, updates)
    average = state.average
    if average is not None:
        # The decay rises to its value: early parameters would otherwise weigh for 1 / (1 - decay) steps.
        keep = jnp.minimum(config.optimizer.average, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)
    new = TrainState(state.step, params, opt_state, memory, average, jnp.zeros_like(state.skipped))
    old = state.replace(skipped=state.skipped + 1)
    state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    one = finite.astype(jnp.float32)
    # One skipped step would otherwise make the mean over a log interval not a number.
    sums = jax.tree.map(lambda x: jnp.where(finite, x, 0), {**sums, "grad_norm": (norm, one)})
    shown = {"lr": (lr, jnp.ones(())), "skipped": (state.skipped.astype(jnp.float32), jnp.ones(()))}
    return state.replace(step=state.step + 1), {**sums, **shown}


def gradients(config: Config, params: Any, batch: Any, memory: Any, keys_B: jax.Array):
    """Return (gradients, sums, memory) of the batch, taken in `micro_batches` parts one after another.

    Where rows must know of each other (`Objective.peers`), that is computed first for the rows of all parts. With
    `optimizer.private` they are those of each row's own loss, shortened, over the batch; the noise is added later.
    """
    objective, parts, clip = config.objective, config.micro_batches, config.optimizer.private.clip
    moving, still = parameters.split(config.optimizer.groups, params)
    weights = denominators(objective, batch)

    def loss(moving, batch, memory, keys_B, weights=weights):
        sums, memory = objective.loss(parameters.nested({**moving, **still}), batch, memory, keys_B)
        total = sum(scale * sums[k][0] / weights[k] for k, scale in objective.scales.items())
        return total, (sums, memory)

    def alone(moving, row, key):
        row = jax.tree.map(lambda x: x[None], row)
        return loss(moving, row, None, key[None], denominators(objective, row))

    def one(batch, memory, keys_B):
        if clip:
            return dp_gradients.clipped(alone, moving, batch, keys_B, clip, config.batch), None
        (total, (sums, memory)), grads = jax.value_and_grad(loss, has_aux=True)(moving, batch, memory, keys_B)
        return (grads, sums, total), memory

    def split(x):  # row i goes to part i % parts: every device keeps the rows that it holds
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def merge(x):
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    if parts == 1:
        (grads, sums, total), memory = one(batch, memory, keys_B)
    else:
        xs = jax.tree.map(split, ({**batch, "rows": jnp.arange(config.batch)}, memory, keys_B))
        _, peers = jax.lax.scan(lambda _, part: (None, objective.peers(params, part[0], part[2])), None, xs)
        shared = {} if peers is None else {"peers": jax.tree.map(merge, peers)}

        def step(sum_of_parts, part):
            found, memory = one({**part[0], **shared}, *part[1:])
            return jax.tree.map(jnp.add, sum_of_parts, found), memory

        first = jax.tree.map(lambda x: x[0], xs)
        shapes, _ = jax.eval_shape(one, {**first[0], **shared}, *first[1:])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, sums, total), memory = jax.lax.scan(step, zeros, xs)
        memory = jax.tree.map(merge, memory)
    grads = parameters.nested({**jax.tree.map(jnp.zeros_like, still), **grads})
    return grads, sums if "loss" in sums else {"loss": (total, jnp.ones(())), **sums}, memory


def denominators(objective: Any, batch: Any) -> dict[str, jax.Array]:
    """Give what divides each term of the loss; 1 where nothing counts."""
    return {k: jnp.where(w == 0, 1, w) for k, w in objective.weights(batch).items()}


def compile_step(config: Config, abstract: TrainState, batch: Any) -> jax.stages.Compiled:
    """Compile the train step for abstract arrays that carry their shardings; the state's memory is reused."""
    optimizer = chain(config, abstract_params(config.objective, batch))
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    step = jax.jit(
        lambda state, batch: train_step(config, optimizer, state, batch), donate_argnums=0, out_shardings=(layout, None)
    )
    compiled = step.lower(abstract, batch).compile()
    if memory := compiled.memory_analysis():
        check_device_memory(
            memory.argument_size_in_bytes + memory.temp_size_in_bytes,
            "a step",
            "lower batch, raise micro_batches, set objective.model.remat, or shard over a larger mesh",
        )
    return compiled


@dataclass(frozen=True)
class Run:
    """What stays the same while the state changes."""

    config: Config
    workdir: Path
    corpus: Corpus
    mesh: jax.sharding.Mesh
    checkpoints: Checkpoints
    held_out: HeldOut | None
    tasks: dict[str, Task]
    batch: Any  # its shapes
    lead: bool
    began: float  # time.monotonic() less the seconds of earlier sittings

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def notes(self, watch: Watch, looked: bool) -> dict[str, Any]:
        """Return what a checkpoint holds beside the state; `looked`: whether the evaluation of its step is behind it."""
        known = {"objective": digest_of(self.config.objective), "looked": looked, "seconds": self.seconds()}
        return known | watch.notes() | self.corpus.identity()


def train(config: Config, workdir: Path) -> None:
    """Train `config.objective` to `config.steps` or to the end of patience, going on from the workdir's newest checkpoint.

    Raises UserError for whatever the user can mend. A signal that asks the run to end makes it save first.
    """
    with Stop() as stop, owned(workdir):
        sitting(config, workdir, stop)
    if stop.signal == signal.SIGINT:
        sys.exit(130)


def sitting(config: Config, workdir: Path, stop: Stop) -> None:
    """Train in a folder that this process owns, until the end or a signal."""
    began, lead = time.monotonic(), jax.process_index() == 0
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    rows = local_rows(mesh, config.batch)
    local_rows(mesh, config.batch // config.micro_batches)
    tasks = named(config.evaluate)
    corpus = prepare(config.data, report=lambda line: lead and print(line, flush=True))
    config, corpus = resolve(config, corpus)
    check(
        not config.stop.patience or corpus.holds_out,
        f"stop.patience={config.stop.patience} looks at held-out data: set data.validation (a share or a source) or data.fold",
    )
    batches = training_batches(config, corpus, rows)
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        batch = abstract_batch(place(batches[0], mesh, config.batch))
        abstract = abstract_state(config, batch, mesh)
        check_state(abstract)
        rehearse(config, tasks, corpus.tokenizer, abstract.params)
        checkpoints = Checkpoints(workdir, config.keep, stop=config.stop)
        stack.callback(checkpoints.close)  # after an error, too: a save that has begun comes to its end
        state, start, notes = restore(config, workdir, checkpoints, corpus, abstract, batch)
        watch = Watch(config.stop, notes)
        looked = notes.get("looked", True)
        if line := looked and done(config, workdir, start, watch):
            if lead:
                print(line)
            return
        held_out = held_out_of(config, corpus, mesh) if corpus.holds_out else None
        check_figure(config, held_out)
        run = Run(config, workdir, corpus, mesh, checkpoints, held_out, tasks, batch, lead, began - notes["seconds"])
        if lead:  # after restore: a config that does not fit the run must not replace the run's own
            for change in changes(read_config(workdir), config) if start else ():
                print(f"changed since the last sitting: {change}")
            replace_file(workdir / "config.json", to_json(config))
            corpus.tokenizer.save(workdir / "tokenizer.json")
        tokens = config.batch * config.objective.records.tokens
        with Writers(workdir, config.steps, start, tokens, lead, config.wandb) as writers:
            announce(run, abstract, start, writers.say)
            for line in dp_budget.said(config, corpus, batches):
                writers.say(line)
            meter, step_function = Meter(config, writers, watch), None
            if not looked:  # the last sitting was ended between a save and its evaluation
                look(run, start, state, meter, writers, ending=False, saved=True)
            if start < config.steps and not watch.over:
                step_function = compile_step(config, abstract, batch)
                writers.say(f"compiled; first step {time.monotonic() - began:.1f} s after the start")
                meter = Meter(config, writers, watch)
            step = loop(run, state, start, step_function, batches, meter, writers, stop)
            found = conclude(run, abstract, step, watch, writers.say)
            checkpoints.wait()
            if step < config.steps and not watch.over:
                writers.say(f"stopped at step {step} and saved; the same command goes on from here")
            writers.close(summary(run, abstract, step) | dp_budget.promise(config, corpus, batches, step) | found)
    if lead:
        curves(workdir)


def check_figure(config: Config, held_out: HeldOut | None) -> None:
    """Raise UserError where patience would wait for a figure of answers that looks of this run do not give."""
    metric = config.stop.metric
    if config.stop.patience and held_out and metric.startswith("examples/"):
        whole = held_out.count >= len(held_out.batches)
        check(whole, f"stop.metric={metric} is of the whole held-out split: set evaluate_batches=0, or take loss or accuracy")
        check(jax.process_count() == 1, f"stop.metric={metric} is measured in one process: take loss or accuracy")


def loop(run: Run, state, start, step_function, batches, meter: Meter, writers: Writers, stop: Stop) -> int:
    """Step until the end, a signal or the end of patience; return the last step taken."""
    config, every = run.config, run.config.every
    step, previous, watch = start, None, meter.watch
    for step, batch in enumerate(prefetch(batches, start, start if watch.over else config.steps), start + 1):
        profile(run, step - start)
        state, sums = step_function(state, place(batch, run.mesh, config.batch))
        if previous:  # fetched only now: the device already works on the next step
            meter.add(*previous)
        previous = step, sums
        ending = step == config.steps or stop.reached(step)
        if ending or any(due(n, step) for n in (every.evaluate, every.save, every.sample)):
            meter.add(*previous)
            previous = None
            with meter.pause():
                look(run, step, state, meter, writers, ending)
        if ending or watch.over:
            break
    return step


def profile(run: Run, count: int) -> None:
    """Trace `config.profile` steps after the first ten of a sitting, for TensorBoard or Perfetto."""
    if run.config.profile and count == 11:
        jax.profiler.start_trace(run.workdir / "profile")
    elif run.config.profile and count == 11 + run.config.profile:
        jax.profiler.stop_trace()


def abstract_batch(batch: Any) -> Any:
    """Keep shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)


def restore(config: Config, workdir: Path, checkpoints: Checkpoints, corpus: Corpus, abstract: TrainState, batch: Any):
    """Give (state, step, notes of the save): from the workdir, else weights from `config.start`, else random.

    A damaged checkpoint is set aside for the one before. Raises UserError when the workdir's run had other data or another
    model, or when no checkpoint of it is whole.
    """
    lead = jax.process_index() == 0

    def attempt(step: int):
        notes = checkpoints.notes(step)
        corpus.check_identity(notes, workdir, "use another --workdir")
        check(step <= config.steps, f"{workdir} is at step {step} already, past steps={config.steps}")
        return checkpoints.restore(step, abstract), notes

    if steps := checkpoints.steps():
        step, (state, notes) = checkpoints.first_whole(steps[::-1], attempt, lambda line: lead and print(line, flush=True))
        return state, step, notes
    state = initialise(config, batch, abstract)
    if config.start:
        state, lines = begin(config, state, abstract)
        if lead:
            print("\n".join(lines), flush=True)
    return state, 0, {"seconds": 0.0}
