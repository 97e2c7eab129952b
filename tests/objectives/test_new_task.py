"""A new fine-tuning task is one class: it trains, is measured and predicts new files, and nothing else knows of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import Config, Data
from lm.data.corpus.prepare import prepare
from lm.data.labelled.check import encoded, number_of, refuse_empties
from lm.data.labelled.files import Labelled
from lm.data.rows.templates import Laid
from lm.data.tokenizer.tokenizer import Bytes
from lm.data.types import Example
from lm.evaluation.downstream import logged
from lm.evaluation.held_out import held_out_of
from lm.evaluation.new_examples import predict, unlabelled
from lm.objectives.base import Answers, Batch, Objective, Sums, resolve, training_batches
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Head, Rows, Stacks
from lm.sharding import unbox
from tests.objectives.labelled import model
from tests.test_optimizer import one_device

FIELDS = ("first", "second")


@dataclass(frozen=True, kw_only=True)
class Difference(Tuned, Objective):
    """Regression on a pair of texts: the difference of their scores."""

    paper: ClassVar[str] = "none"
    holds: ClassVar[str] = "tokens segments positions (B, T); places (B, P, 2); targets weights (B, P)"

    model: Stacks
    rows: Rows = Rows()
    head: Head = Head(pool="mean")

    @property
    def texts(self) -> int:
        return 2

    def check_example(self, example: Example) -> None:
        refuse_empties([example], *FIELDS)

    def lay(self, example: Example) -> list[Laid]:
        return [self.frame.join([encoded(self.frame, example, name)], self.limit) for name in FIELDS]

    def target(self, example: Example) -> tuple[np.float32, float]:
        return np.float32(number_of(example, "number")), 1.0

    def differences(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> jax.Array:
        scores_BP2 = self.logits(params, batch, keys_B).reshape(batch["places"].shape)
        return scores_BP2[..., 0] - scores_BP2[..., 1]

    def terms(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
        errors_BP = self.differences(params, batch, keys_B) - batch["targets"]
        return {"loss": (jnp.sum(errors_BP**2 * batch["weights"]), batch["weights"].sum())}

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        return {"number": self.differences(params, batch)}

    @property
    def answers(self) -> Answers:
        return Answers("numbers", "comparer", FIELDS)

    def placeholder(self, example: Example) -> dict[str, Any]:
        return {"number": 0}

    def outcome(self, example: Example, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {"gold": number_of(example, "number"), "guess": float(outputs["number"])}

    def lines(self, tokenizer: Any, row: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray] | None) -> list[str]:
        return network.texts_of(tokenizer, row)


def test_a_new_task_trains_is_measured_and_predicts(tmp_path):
    pairs = [{"first": "a" * (1 + k % 5), "second": "b" * (1 + k % 3), "number": k % 5 - k % 3} for k in range(24)]
    source, new = tmp_path / "pairs.jsonl", tmp_path / "new.jsonl"
    source.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    new.write_text("".join(json.dumps({name: pair[name] for name in FIELDS}) + "\n" for pair in pairs))
    config = Config(
        objective=Difference(model=model(vocab=0, context=16, depth=1), rows=Rows(length=16)),
        data=Data(source=Labelled(path=str(source)), tokenizer=Bytes(), validation=0.25),
        batch=4,
    )
    config, corpus = resolve(config, prepare(config.data))
    batches, objective = training_batches(config, corpus), config.objective
    params = unbox(objective.init(jax.random.key(0), batches[0]))

    def loss(params, batch):
        total, weight = objective.loss(params, batch, None, None)[0]["loss"]
        return total / weight

    step, losses = jax.jit(jax.value_and_grad(loss)), []
    for number in range(2):
        value, slopes = step(params, batches[number])
        params = jax.tree.map(lambda p, g: p - 0.01 * g, params, slopes)
        losses.append(float(value))
    assert np.isfinite(losses).all()
    assert float(step(params, batches[0])[0]) < losses[0]

    mesh = one_device()
    with jax.set_mesh(mesh):
        figures = logged(held_out_of(config, corpus, mesh), params, tmp_path)
    assert "eval/validation/examples/pearson" in figures
    assert "mae" in json.loads((tmp_path / "figures.json").read_text())
    measured = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    rows = unlabelled(predict(config, params, corpus.tokenizer, str(new), "run"))
    guesses = {line_of(row): row["guess"] for row in rows}
    assert len(guesses) == len(pairs)
    for row in measured:
        assert {"gold", "guess", "error"} <= row.keys()
        np.testing.assert_allclose(guesses[line_of(row)], row["guess"], atol=1e-5)


def line_of(row: Mapping[str, Any]) -> str:
    return row["where"].rpartition(":")[2]
