"""The one training loop: build, restore, step, look, save."""

import contextlib
import dataclasses
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm import flops, metrics
from lm.checkpoint import Checkpoints
from lm.config import Config, check, to_json
from lm.data.pipeline import Batches, prefetch
from lm.data.prepare import Corpus, prepare
from lm.errors import UserError
from lm.evaluate import HeldOut
from lm.plots import loss_curve
from lm.preemption import Stop
from lm.schedules import factor
from lm.sharding import local_rows, make_mesh, place
from lm.state import TrainState, abstract_params, abstract_state, chain, initialise
from lm.writers import Writers


def train_step(config: Config, optimizer: optax.GradientTransformation, state: TrainState, batch: Any):
    """Take one update: (state, batch) -> (state, sums), pure, the same for every objective.

    Gradients are those of sum_k scales[k] * sums[k] / weights[k] over the whole batch, however it is cut into
    micro-batches. A step whose loss or gradient is not finite leaves the parameters as they were and is counted.
    """
    row_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), 1), state.step)
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(row_key, jnp.arange(config.batch))
    grads, sums, memory = gradients(config, state.params, batch, state.memory, keys_B)
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
    """Return (gradients, sums, memory) of the batch, taken in `micro_batches` parts one after another."""
    objective, parts = config.objective, config.micro_batches
    weights = {k: jnp.where(w == 0, 1, w) for k, w in objective.weights(batch).items()}

    def loss(params, batch, memory, keys_B):
        sums, memory = objective.loss(params, batch, memory, keys_B)
        total = sum(scale * sums[k][0] / weights[k] for k, scale in objective.scales.items())
        return total, (sums, memory)

    def one(batch, memory, keys_B):
        grads, (sums, memory) = jax.grad(loss, has_aux=True)(params, batch, memory, keys_B)
        return (grads, sums), memory

    def split(x):  # row i goes to part i % parts: every device keeps the rows that it holds
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    def merge(x):
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])

    def step(total, part):
        found, memory = one(*part)
        return jax.tree.map(jnp.add, total, found), memory

    if parts == 1:
        (grads, sums), memory = one(batch, memory, keys_B)
        return grads, sums, memory
    xs = jax.tree.map(split, (batch, memory, keys_B))
    shapes, _ = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], xs))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (grads, sums), memory = jax.lax.scan(step, zeros, xs)
    return grads, sums, jax.tree.map(merge, memory)


def compile_step(config: Config, abstract: TrainState, batch: Any) -> jax.stages.Compiled:
    """Compile the train step for abstract arrays that carry their shardings; the state's memory is reused."""
    optimizer = chain(config, abstract_params(config.objective, batch))
    layout = jax.tree.map(lambda x: x.sharding, abstract)
    step = jax.jit(
        lambda state, batch: train_step(config, optimizer, state, batch), donate_argnums=0, out_shardings=(layout, None)
    )
    return step.lower(abstract, batch).compile()


def train(config: Config, workdir: Path) -> None:
    """Train `config.objective` to `config.steps`, going on from the workdir's newest checkpoint.

    Raises UserError for whatever the user can mend. A signal that asks the run to end makes it save first.
    """
    began = time.monotonic()
    lead = jax.process_index() == 0
    mesh = make_mesh(dataclasses.asdict(config.mesh))
    rows = local_rows(mesh, config.batch)
    local_rows(mesh, config.batch // config.micro_batches)
    corpus = prepare(config.data, report=lambda line: lead and print(line, flush=True))
    config = dataclasses.replace(config, objective=config.objective.resolve(corpus.tokenizer))
    objective = config.objective
    batches = Batches(
        corpus,
        objective.window,
        objective.stride,
        objective.corrupt,
        config.batch,
        seed=config.seed,
        packing=config.data.packing,
        shard=rows,
    )
    with jax.set_mesh(mesh):
        batch = abstract_batch(place(batches[0], mesh, config.batch))
        abstract = abstract_state(config, batch, mesh)
        checkpoints = Checkpoints(workdir, config.keep)
        state, start, before = restore(config, workdir, checkpoints, corpus, abstract, batch)
        if start == config.steps:
            if lead:
                print(f"{workdir} has all its {start} steps; raise --config.steps or choose another --workdir")
            return
        held_out = HeldOut(config, corpus, mesh) if len(corpus.validation) > 1 else None
        if lead:  # after restore: a config that does not fit the run must not replace its own
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / "config.json").write_text(to_json(config), encoding="utf-8")
            corpus.tokenizer.save(workdir / "tokenizer.json")
        tokens_per_step = config.batch * objective.stride
        with Stop() as stop, Writers(workdir, config.steps, start, tokens_per_step, lead, config.wandb) as writers:
            announce(config, corpus, abstract, mesh, start, writers.say)
            step_function = compile_step(config, abstract, batch)
            writers.say(f"compiled; first step {time.monotonic() - began:.1f} s after the start")
            meter = Meter(config, writers)
            step, previous = start, None
            for step, batch in enumerate(prefetch(batches, start, config.steps), start + 1):
                state, sums = step_function(state, place(batch, mesh, config.batch))
                if previous:  # fetched only now: the device already works on the next step
                    meter.add(*previous)
                previous = step, sums
                ending = step == config.steps or stop.reached(step)
                if not (ending or any(due(n, step) for n in (config.every.evaluate, config.every.save, config.every.sample))):
                    continue
                meter.add(*previous)
                previous = None
                with meter.pause():
                    loss = improved = None
                    if held_out and (step == config.steps or due(config.every.evaluate, step)):
                        found = held_out(state.best_params())
                        writers.write(step, found)
                        loss = found["eval/validation/loss"]
                        improved = config.keep.best and loss < meter.best
                        meter.best = min(meter.best, loss)
                    if improved or ending or due(config.every.save, step):
                        notes = {"seconds": before + time.monotonic() - began, "best": meter.best, **identity(corpus)}
                        checkpoints.save(step, state, notes, loss)
                if ending:
                    break
            checkpoints.close()
            seconds = before + time.monotonic() - began
            if step < config.steps:
                writers.say(f"stopped at step {step} and saved; the same command goes on from here")
            writers.close(summary(config, corpus, abstract, step, seconds))
    if lead:
        loss_curve(workdir / "metrics.jsonl", workdir / "loss.png")
    if stop.signal == signal.SIGINT:
        sys.exit(130)


def due(every: int, step: int) -> bool:
    """Tell whether something done every so many steps is due after this one."""
    return every > 0 and step % every == 0


def abstract_batch(batch: Any) -> Any:
    """Keep shapes, dtypes and shardings."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)


def identity(corpus: Corpus) -> dict[str, str]:
    """What must be the same for a run to go on."""
    return {"corpus": corpus.sha256, "tokenizer": corpus.tokenizer.sha256()}


def restore(config: Config, workdir: Path, checkpoints: Checkpoints, corpus: Corpus, abstract: TrainState, batch: Any):
    """Give (state, step, seconds spent so far): from the workdir, else weights from `config.start`, else random.

    Raises UserError when the workdir's run had other data or another model.
    """
    step = checkpoints.latest()
    if step is not None:
        notes = checkpoints.notes(step)
        for name, value in identity(corpus).items():
            check(
                notes[name] == value,
                f"the {name} is not the one that {workdir} was trained with; bring it back or use another --workdir",
            )
        check(step <= config.steps, f"{workdir} is at step {step} already, past steps={config.steps}")
        return checkpoints.restore(step, abstract), step, notes["seconds"]
    state = initialise(config, batch, abstract)
    if config.start:
        check((Path(config.start) / "config.json").is_file(), f"start='{config.start}' is not a run: it has no config.json")
        other = Checkpoints(Path(config.start), config.keep)
        newest = other.latest()
        check(newest is not None, f"start='{config.start}' has no finished checkpoint")
        params = other.restore(newest, abstract.params, part="params")
        average = None if state.average is None else jax.tree.map(jnp.copy, params)
        state = state.replace(params=params, average=average)
    return state, 0, 0.0


def announce(config: Config, corpus: Corpus, abstract: TrainState, mesh: jax.sharding.Mesh, start: int, say: Any) -> None:
    """Say what is about to run, and on a CPU how long it will take when that is long."""
    devices = mesh.devices.size
    shape = "x".join(f"{n} {a}" for a, n in mesh.shape.items() if n > 1) or "1"
    count = flops.parameter_count(abstract.params)
    tokens = sum(len(stream) for _, stream in corpus.train)
    say(
        f"{type(config.objective).__name__.lower()}: {count / 1e6:,.1f} M parameters, {tokens:,} training tokens "
        f"({corpus.name}), {config.steps:,} steps x {config.batch} x {config.objective.stride} tokens, "
        f"{devices} {jax.devices()[0].device_kind} device(s), mesh {shape}"
    )
    if start:
        say(f"going on from step {start}")
    if jax.default_backend() != "cpu":
        return
    left = (config.steps - start) * config.batch * config.objective.stride
    hours = left * flops.train_flops(config.objective.model, config.objective.stride) / flops.matmul_rate() / 0.5 / 3600
    if hours > 2:
        span = f"{hours / 24:,.0f} days" if hours > 72 else f"{hours:.0f} hours"
        say(
            f"this CPU will need about {span} for it; configs/gpt_nano.py learns in minutes, "
            "and the same command runs on a GPU or TPU"
        )


def summary(config: Config, corpus: Corpus, abstract: TrainState, steps: int, seconds: float) -> dict[str, Any]:
    """Gather what summary.json holds beside the last metrics."""
    tokens = steps * config.batch * config.objective.stride
    return {
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "params": flops.parameter_count(abstract.params),
        "corpus": {"name": corpus.name, "bytes": corpus.bytes, "sha256": corpus.sha256},
    }


class Meter:
    """Adds the sums of steps up and writes their means with the rates at every log step."""

    def __init__(self, config: Config, writers: Writers):
        self.config, self.writers, self.best = config, writers, math.inf
        self.total: metrics.Host = {}
        self.steps, self.tokens = 0, config.batch * config.objective.stride
        peak = flops.peak()
        work = flops.train_flops(config.objective.model, config.objective.stride)
        self.share = work / (peak * jax.device_count()) if peak else None
        self.mark = time.monotonic()

    def add(self, step: int, sums: Any) -> None:
        """Count one finished step; raises UserError after `skip_limit` non-finite ones in a row."""
        self.total = metrics.add(self.total, sums)
        self.steps += 1
        skipped = int(jax.device_get(sums["skipped"][0]))
        if skipped >= self.config.skip_limit:
            raise UserError(
                f"the loss or its gradient was not finite for {skipped} steps in a row, up to step {step}; lower "
                "optimizer.lr, lengthen schedule.warmup or set optimizer.clip. The last checkpoint is as it was"
            )
        if step % self.config.every.log == 0 or step == self.config.steps:
            self.write(step)

    def write(self, step: int) -> None:
        """Write the means since the last time."""
        seconds = max(time.monotonic() - self.mark, 1e-9)
        rate = self.steps * self.tokens / seconds
        values = metrics.means(self.total, "train") | {"train/tokens_per_second": rate}
        if self.share:
            values["train/mfu"] = rate * self.share
        self.writers.write(step, values)
        self.total, self.steps, self.mark = {}, 0, time.monotonic()

    @contextlib.contextmanager
    def pause(self):
        """Leave out of the rates what happens inside."""
        began = time.monotonic()
        yield
        self.mark += time.monotonic() - began
