"""The README's example of an objective: what it says it does, and a run of it from the command line."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lm.config import load
from lm.data.corpus.store import Tokens
from lm.data.rows.pipeline import Batches, Evaluation
from lm.main import preview
from lm.models.transformer import Transformer
from lm.sharding import unbox
from tests.examples.shuffled import Shuffled
from tests.processes import command

SIZE, SEPARATOR = 100_000, 99_999
OBJECTIVE = Shuffled(model=Transformer(vocab=SIZE, context=64, width=16, depth=1, heads=2), distance=3)


def stream(documents: int = 300) -> Tokens:
    """Documents whose tokens are all different, so that a token names where it was."""
    sizes = np.random.default_rng(0).integers(1, 90, documents)
    return Tokens.of(np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1]), SEPARATOR, SIZE)


def test_tokens_move_a_little_and_stay_in_their_document():
    batch = Batches(((1.0, stream()),), OBJECTIVE.records, OBJECTIVE.corrupt, 200)[0]
    moved = []
    for tokens, targets, segments, weights in zip(*(batch[n] for n in ("tokens", "targets", "segments", "weights"))):
        for number in set(segments.tolist()):
            now, before = tokens[segments == number].tolist(), targets[segments == number].tolist()
            assert sorted(now) == sorted(before)
            moved += [abs(i - before.index(token)) for i, token in enumerate(now)]
        np.testing.assert_array_equal(weights, tokens != targets)
    assert max(moved) == OBJECTIVE.distance
    assert 0.5 < batch["weights"].mean() < 0.9


def test_padding_is_not_asked_for():
    last = list(Evaluation(stream(), OBJECTIVE.records, OBJECTIVE.corrupt, 1))[-1]
    assert (last["segments"] == 0).any()
    assert not last["weights"][last["segments"] == 0].any()


def test_an_only_order_is_left_alone():
    """Documents of one token: the separator and the token may change places, and nothing else."""
    record = {
        "tokens": np.array([9, 1] * 4, np.int32),
        "positions": np.array([0, 1] * 4, np.int32),
        "segments": np.repeat([1, 2, 3, 4], 2),
        "weights": np.ones(8, np.float32),
    }
    small = Shuffled(model=Transformer(context=8))
    for seed in range(20):
        row = small.corrupt(np.random.default_rng(seed), record)
        np.testing.assert_array_equal(np.sort(row["tokens"].reshape(4, 2)), [[1, 9]] * 4)
        assert row["weights"].dtype == np.float32


def test_rows_are_independent_of_each_other():
    small = Shuffled(model=Transformer(vocab=50, context=8, width=16, depth=1, heads=2))
    rng = np.random.default_rng(0)
    batch = {n: rng.integers(1, 50, (2, 8)).astype(np.int32) for n in ("tokens", "targets")}
    batch |= {"segments": np.ones((2, 8), np.int32), "positions": np.tile(np.arange(8), (2, 1))}
    batch |= {"weights": np.ones((2, 8), np.float32)}
    params = unbox(small.init(jax.random.key(0), batch))
    loss = jax.jit(lambda b: small.loss(params, b, None, None)[0]["loss"])
    whole, weight = loss(batch)
    parts = [loss({name: x[i : i + 1] for name, x in batch.items()}) for i in range(2)]
    assert float(whole) == pytest.approx(sum(float(p[0]) for p in parts), rel=1e-5)
    assert float(weight) == sum(float(p[1]) for p in parts) == 16


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the log\n" * 300)
    return path


class Seldom(Shuffled):
    def corrupt(self, rng, record):
        row = super().corrupt(rng, record)
        return row if rng.random() < 0.05 else {**row, "tokens": record["tokens"]}


def test_a_preview_shows_a_corrupted_row(text):
    config = load(f"tests/examples/shuffled_config.py:text={text},context=32,width=32,vocab=280,batch=64")
    config = dataclasses.replace(config, objective=Seldom(**vars(config.objective)))
    rows = [block.partition("\n")[2] for block in preview(config, 1).partition("batch holds")[0].split("row ")[1:]]
    halves = [(row[: len(row.rstrip()) // 2], row[len(row.rstrip()) // 2 + 1 :].rstrip()) for row in rows]
    assert [before == after for before, after in halves] == [True, False]


def test_learns_from_the_command_line(text, tmp_path):
    """Copying what stands there would be right nowhere: only places where something else stood count."""
    spec = f"tests/examples/shuffled_config.py:text={text},context=32,width=32,vocab=280,steps=600,batch=16"
    faster = ("--config.schedule.warmup=10", "--config.optimizer.lr=1e-2", "--config.every.sample=0")
    assert "cat sat on the mat" in preview(load(spec))
    done = command("lm.main", f"--config={spec}", *faster, f"--workdir={tmp_path}", as_users=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["eval/validation/accuracy"] > 0.6
