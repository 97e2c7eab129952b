"""The training loop: build, restore, step, look, save.

Read `train_step` and `gradients` first: the pure step, the same for every objective. `sitting` builds everything around it and
`loop` runs it; `lm.looks` holds all that happens between two steps, `lm.progress` the log.
"""

import contextlib
import dataclasses
import signal
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from lm.config import Config, read_config, to_json
from lm.data.corpus.prepare import prepare
from lm.data.rows.pipeline import Batches, prefetch
from lm.errors import check
from lm.evaluation.held_out import held_out_of
from lm.looks import attempted, check_figure, done, due, look, open_tasks, rehearse
from lm.models.auxiliary import averaged, collected
from lm.objectives.base import Batch, Objective, Sums, resolve, training_batches
from lm.outputs import replace_file
from lm.platform import begin
from lm.preemption import Stop
from lm.progress import Meter, Run, Spent, announce, changes, profile
from lm.restore import adopted, restore
from lm.runs import owned
from lm.sharding import local_rows, make_mesh, place
from lm.strict_json import load_json
from lm.training import dp_budget, parameters
from lm.training.checkpoint import Checkpoints
from lm.training.schedules import Numbers, factor
from lm.training.state import TrainState, abstract_params, abstract_state, chain, check_device_memory, check_state, private
from lm.training.stopping import Watch
from lm.training.writers import Writers


def train_step(
    config: Config, optimizer: optax.GradientTransformation, state: TrainState, batch: Batch, numbers: Numbers | None = None
) -> tuple[TrainState, Sums]:
    """Update the state once: (state, batch, numbers) -> (state, sums), pure, the same for every objective.

    `numbers` stand in for those of the config, which are constants of the program where they are left out.

    Gradients are those of sum_k scales[k] * sums[k] / weights[k] over the whole batch, however it is cut into micro-batches. A
    step whose loss or gradient is not finite leaves parameters and optimizer unchanged and is counted in `state.skipped`.
    """
    # One key per row, of (seed, step, row): neither the mesh nor micro-batches nor a resume change what a row draws.
    numbers = numbers or numbers_of(config)
    row_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(numbers.seed), 1), state.step)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(row_key, jnp.arange(config.batch))
    grads, sums, memory = gradients(config, state.params, batch, state.memory, keys_B)
    if config.optimizer.private.noise:
        grads = private().noised(config, grads, numbers.seed, state.step)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm) & jnp.isfinite(sums["loss"][0])

    # The rate multiplies outside the chain, as a function of the step alone: the same for every rule (`lm.training.optimizer`).
    lr = numbers.lr * factor(config.schedule.shape, numbers, state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + lr * u, state.params, updates)
    average = state.average
    if average is not None:
        # The decay rises to its value: early parameters would otherwise weigh for 1 / (1 - decay) steps.
        keep = jnp.minimum(config.optimizer.average, (1 + state.step) / (10 + state.step))
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)

    # Select, not branch: the update is computed anyway, and both outcomes have one layout.
    new = TrainState(state.step, params, opt_state, memory, average, jnp.zeros_like(state.skipped))
    old = state.replace(skipped=state.skipped + 1)
    state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    # One skipped step would otherwise make the mean over a log interval not a number.
    sums = jax.tree.map(lambda x: jnp.where(finite, x, 0), {**sums, "grad_norm": (norm, finite.astype(jnp.float32))})
    always = {"lr": (lr, jnp.ones(())), "skipped": (state.skipped.astype(jnp.float32), jnp.ones(()))}
    return state.replace(step=state.step + 1), {**sums, **always}


def gradients(config: Config, params: Any, batch: Batch, memory: Any, keys_B: jax.Array) -> tuple[dict[str, Any], Sums, Any]:
    """Return (gradients, sums, memory) of the batch, computed in `micro_batches` parts one after another.

    Where rows are compared with each other (`Objective.peers`), their states are computed first for the rows of all parts. With
    `optimizer.private`, gradients are clipped per row (`lm.training.dp_gradients`); the noise is added by `train_step`.
    """
    objective, parts, clip = config.objective, config.micro_batches, config.optimizer.private.clip
    # Frozen parameters stay outside of differentiation: no gradient of theirs is computed or stored.
    trained, frozen = parameters.split(config.optimizer.groups, params)
    # Of the whole batch, before it is cut: a part divides by the same numbers, so that parts simply add up.
    weights = denominators(objective, batch)

    def loss(trained, batch, memory, keys_B, weights=weights):
        with collected() as extras:
            sums, memory = objective.loss(parameters.nested({**trained, **frozen}), batch, memory, keys_B)
        total = sum(scale * sums[k][0] / weights[k] for k, scale in objective.scales.items())
        # Of a network's own losses the mean over the parts counts: they are no sums over tokens.
        total += sum(coefficient * value for _, coefficient, value in extras) / parts
        return total, ({**sums, **averaged(extras)}, memory)

    def row_loss(trained, row, key):
        row = jax.tree.map(lambda x: x[None], row)
        return loss(trained, row, None, key[None], denominators(objective, row))

    def part_gradients(batch, memory, keys_B):
        if clip:
            return private().clipped(row_loss, trained, batch, keys_B, clip, config.batch), None
        (total, (sums, memory)), grads = jax.value_and_grad(loss, has_aux=True)(trained, batch, memory, keys_B)
        return (grads, sums, total), memory

    def split(x):  # row i goes to part i % parts: every device keeps the rows that it holds
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def merge(x):
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    if parts == 1:
        (grads, sums, total), memory = part_gradients(batch, memory, keys_B)
    else:
        # "rows": the row numbers of a part within the batch, by which a row finds itself among its peers.
        xs = jax.tree.map(split, ({**batch, "rows": jnp.arange(config.batch)}, memory, keys_B))
        _, peers = jax.lax.scan(lambda _, part: (None, objective.peers(params, part[0], part[2])), None, xs)
        shared = {} if peers is None else {"peers": jax.tree.map(merge, peers)}

        def add_part(totals, part):
            of_part, memory = part_gradients({**part[0], **shared}, *part[1:])
            return jax.tree.map(jnp.add, totals, of_part), memory

        # A scan, not a loop: one program, and the activations of a single part in memory at a time.
        first = jax.tree.map(lambda x: x[0], xs)
        shapes, _ = jax.eval_shape(part_gradients, {**first[0], **shared}, *first[1:])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (grads, sums, total), memory = jax.lax.scan(add_part, zeros, xs)
        memory = jax.tree.map(merge, memory)
    # Zeros for frozen parameters: the optimizer's tree has the shape of the parameters.
    grads = parameters.nested({**jax.tree.map(jnp.zeros_like, frozen), **grads})
    return grads, sums if "loss" in sums else {"loss": (total, jnp.ones(())), **sums}, memory


def denominators(objective: Objective, batch: Batch) -> dict[str, jax.Array]:
    """Return the denominator of each term of the loss; 1 where its weights sum to 0."""
    return {k: jnp.where(w == 0, 1, w) for k, w in objective.weights(batch).items()}


def numbers_of(config: Config) -> Numbers:
    """Return the arguments of a compiled step that hold for a whole run."""
    return Numbers.of(config.seed, config.optimizer.lr, config.schedule, config.steps)


def traced_step(config: Config, abstract: TrainState, batch: Mapping[str, Any]) -> jax.stages.Traced:
    """Trace (state, batch, numbers) -> (state, sums) for abstract arrays with shardings, the state's buffers donated."""
    # Donation: old and new state share their buffers, half the memory of the state. Sums are small, wherever they lie.
    optimizer = chain(config, abstract_params(config.objective, batch))
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    step = jax.jit(lambda *arguments: train_step(config, optimizer, *arguments), donate_argnums=0, out_shardings=(layout, None))
    return step.trace(abstract, batch, numbers_of(config))


def compile_step(config: Config, abstract: TrainState, batch: Mapping[str, Any]) -> jax.stages.Compiled:
    """Compile the traced step; raises UserError where it needs more memory than a device has."""
    compiled = traced_step(config, abstract, batch).lower().compile()
    if memory := compiled.memory_analysis():
        check_device_memory(
            memory.argument_size_in_bytes + memory.temp_size_in_bytes,
            "a step",
            "lower batch, raise micro_batches, set objective.model.remat, or shard over a larger mesh",
        )
    return compiled


def train(config: Config, workdir: Path) -> bool:
    """Train `config.objective` to `config.steps` or to the end of patience, from the workdir's newest checkpoint if it has one.

    SIGTERM or Ctrl-C saves after the current step and ends; returns whether the run is complete. Raises UserError for every
    mistake that the user can correct.
    """
    with Stop() as stop, owned(workdir):
        complete = sitting(config, workdir, stop)
    if stop.signal == signal.SIGINT:
        sys.exit(130)
    return complete


def sitting(config: Config, workdir: Path, stop: Stop) -> bool:
    """Train in a folder that this process owns, until the end or a signal; return whether the run is complete."""
    # The cheap checks before the corpus is prepared, which may take hours: mesh against batch, names of tasks.
    began, lead = time.monotonic(), jax.process_index() == 0
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    rows = local_rows(mesh, config.batch)
    local_rows(mesh, config.batch // config.micro_batches)
    tasks = open_tasks(config)
    corpus = prepare(config.data, report=lambda line: print(line, flush=True) if lead else None)
    config, corpus = resolve(config, corpus)
    check(
        not config.stop.patience or corpus.holds_out,
        f"stop.patience={config.stop.patience} looks at held-out data: set data.validation (a share or a source) or data.fold",
    )
    batches = training_batches(config, corpus, rows)
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        # Shapes alone: a state too large or a task whose file is wrong ends the run before an array is drawn.
        batch = abstract_batch(place(batches[0], mesh, config.batch))
        abstract = abstract_state(config, batch, mesh)
        check_state(abstract)
        rehearse(config, tasks, corpus.tokenizer, abstract.params, mesh)

        checkpoints = Checkpoints(workdir, config.keep, stop=config.stop)
        stack.callback(checkpoints.close)  # after an error, too: a save that has begun comes to its end
        state, start, notes = restore(config, workdir, checkpoints, corpus, abstract, batch)
        watch = Watch(config.stop, notes)
        looked = notes.get("looked", True)
        if line := looked and done(config, workdir, start, watch):
            if lead:
                print(line)
            return True

        held_out = held_out_of(config, corpus, mesh) if corpus.holds_out else None
        check_figure(config, held_out)
        first, spent = began - notes["seconds"], Spent(began)
        run = Run(config, workdir, corpus, mesh, checkpoints, held_out, tasks, batch, lead, first, spent)
        if lead:  # after restore: a config that does not fit the run must not replace the run's own
            for change in changes(read_config(workdir), config) if start else ():
                print(f"changed since the last sitting: {change}")
            replace_file(workdir / "config.json", to_json(config))
            corpus.tokenizer.save(workdir / "tokenizer.json")

        tokens = config.batch * config.objective.records.tokens
        with Writers(workdir, config.steps, start, tokens, lead, config.wandb_run if config.wandb else None) as writers:
            announce(run, abstract, start, writers.say)
            for line in dp_budget.notices(config, corpus, batches):
                writers.say(line)
            meter, step_function = Meter(config, writers, watch), None
            if not looked:  # the last sitting ended between a save and its evaluation
                with spent.within("looks"):
                    look(run, start, state, meter, writers, ending=False, saved=True)
            if start < config.steps and not watch.over:
                with spent.within("compile"):
                    step_function = compile_step(config, abstract, batch)
                writers.say(f"compiled; first step {time.monotonic() - began:.1f} s after the start")
                meter = Meter(config, writers, watch)  # anew: its first interval must not hold the compilation
            step = loop(run, state, start, step_function, batches, meter, writers, stop)

            with spent.within("saves"):  # at once: a scheduler may kill soon after its signal
                checkpoints.wait()
            from lm.closing import close, ended  # not before the last step

            # Summary and pictures last: a run without summary.json is taken for one that was killed, and concludes again.
            figures = ended(run, abstract, step, watch, writers) | dp_budget.guarantee(config, corpus, batches, step)
            writers.close(figures)
    if lead:
        with attempted("the curves and the last lines", lambda line: print(line, flush=True)):
            close(config, workdir, figures, watch)
    return step == config.steps or watch.over


def loop(
    run: Run,
    state: TrainState,
    start: int,
    step_function: jax.stages.Compiled | None,
    batches: Batches,
    meter: Meter,
    writers: Writers,
    stop: Stop,
) -> int:
    """Step until the end, a signal or the end of patience; return the number of the last step."""
    config, every = run.config, run.config.every
    step, previous, watch = start, None, meter.watch
    numbers = jax.device_put(numbers_of(config), NamedSharding(run.mesh, PartitionSpec()))
    for step, batch in enumerate(run.spent.each(prefetch(batches, start, start if watch.over else config.steps)), start + 1):
        profile(run, step - start)
        with run.spent.within("step"):
            state, sums = step_function(state, place(batch, run.mesh, config.batch), numbers)
            if previous:  # fetched only now: the device already works on the next step
                meter.add(*previous)
        previous = step, sums
        # Called every step: with several processes this is where they agree on the step to end at.
        ending = step == config.steps or stop.reached(step)
        if ending or any(due(n, step) for n in (every.evaluate, every.save, every.sample)):
            # The step's own metrics before its evaluation: the console leaves the time between the two out of the ETA.
            with run.spent.within("step"):
                meter.add(*previous)
            previous = None
            with meter.pause(), run.spent.within("looks"):
                look(run, step, state, meter, writers, ending)
        if ending or watch.over:
            break
    return step


def abstract_batch(batch: Batch) -> Mapping[str, jax.ShapeDtypeStruct]:
    """Return the shapes, dtypes and shardings of a batch."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)


class Called(types.ModuleType):
    """This module, callable: `lm.train(config, workdir="runs/mine")`."""

    def __call__(self, config: Config, workdir: str | Path) -> dict[str, Any]:
        """Train or resume as `lm.main` does; return the run's summary ({} before its end)."""
        begin()
        train(adopted(config), Path(workdir))
        path = Path(workdir) / "summary.json"
        return load_json(path, dict) if path.exists() else {}


sys.modules[__name__].__class__ = Called
