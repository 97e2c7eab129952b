"""A training loop of one's own, from the building blocks of `lm.train`: the same losses, bit for bit."""

import jax

import lm
from lm.data.corpus.prepare import prepare
from lm.data.rows.pipeline import prefetch
from lm.objectives.base import resolve, training_batches
from lm.sharding import unbox
from lm.train import numbers_of, train_step
from lm.training.state import abstract_params, chain, create


def losses(config):
    """Yield (step, loss) of each step; at every point of it you may look at, or change, whatever you like."""
    config, corpus = resolve(config, prepare(config.data))  # text to ids; the vocabulary and special ids that follow
    batches = training_batches(config, corpus)  # batches[i] is a pure function of (seed, i)
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    params = unbox(jax.jit(config.objective.init)(key, batches[0]))
    optimizer = chain(config, abstract_params(config.objective, batches[0]))
    state = create(config, optimizer, params)
    numbers = numbers_of(config)  # seed, rate and schedule as arguments: other values compile nothing anew
    step = jax.jit(lambda *arguments: train_step(config, optimizer, *arguments), donate_argnums=0)
    for i, batch in enumerate(prefetch(batches, 0, config.steps), 1):
        state, sums = step(state, batch, numbers)  # sums and their weights, of the whole batch
        total, weight = sums["loss"]
        yield i, float(total / weight)


if __name__ == "__main__":
    for number, loss in losses(lm.config("gpt_nano", steps=200)):
        if number % 20 == 0:
            print(f"step {number}  loss {loss:.3f}")
