"""Text classification, single-label and multi-label, and regression, of a text or a pair of texts.

python -m lm.objectives.classify [--config=configs/classify_nano.py]
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.labelled.check import encoded, number_of, refuse_doubles, refuse_empties
from lm.data.rows.templates import Keep, Laid
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example
from lm.errors import check, check_choices, check_range
from lm.models.layers import fold
from lm.objectives.base import Answers, Batch, Objective, Sums
from lm.objectives.base import Example as Row
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Head, Rows, Trunk


@dataclass(frozen=True, kw_only=True)
class Classify(Tuned, Objective):
    """Cross-entropy of an example's label, scored from the pooled state of its text or pair of texts.

    `fields`: the one or two texts of an example; the longer is truncated first and keeps its "start", its "end" or half of
    each ("both"; Sun et al. 2019). `label`: the field of the label. `kind`: "one" of the labels, "several" (multi-label: a
    list, or a string split at `between`; binary cross-entropy of each), or a "number" (squared error).
    `smoothing` e: 1 - e on the gold label, e spread over all (Szegedy et al. 2016). `class_weights`: loss weights, one a
    label, in the labels' order; `balanced` sets them to examples / (labels x examples with the label).

    `mixup` a > 0 trains on convex combinations (Zhang et al. 2018; of states, Guo et al. 2019): the state that the head
    scores is combined with that of the next example of its row (the last with the first), share x own + (1 - share) x
    next, and so are their losses; shares are drawn from Beta(a, a). An example alone in its row stays as it is. Training
    metrics count the target with the larger share.

    `labels` are those of the training examples, sorted, unless set. A held-out label that is not among them is an error;
    with `unknown="skip"` its example has weight 0.
    """

    paper: ClassVar[str] = "Radford et al. 2018 (GPT); Devlin et al. 2019 (BERT)"
    holds: ClassVar[str] = "tokens types segments positions (B, T); places weights (B, P); targets (B, P) or (B, P, labels)"
    task: ClassVar[str] = "SequenceClassification"

    model: Trunk
    fields: tuple[str, ...] = ("text",)
    label: str = "label"
    keep: Keep = "start"  # part of a text that is kept where it exceeds a row
    kind: Literal["one", "several", "number"] = "one"
    labels: tuple[str, ...] = ()
    between: str = ","
    unknown: Literal["refuse", "skip"] = "refuse"
    smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    balanced: bool = False
    mixup: float = 0.0
    rows: Rows = Rows()
    head: Head = Head()

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 0, 1, "smoothing")
        check_range(self, 0, float("inf"), "mixup")
        weights = self.class_weights
        check(all(0 <= w < float("inf") for w in weights), f"class_weights={weights} must all be at least 0 and finite")
        network.check_rows(self.model, self.rows)
        refuse_doubles(self.labels)
        check(len(self.fields) in (1, 2), f"fields={self.fields}: one text or two")
        weighted = self.balanced or self.class_weights or self.smoothing
        check(self.kind == "one" or not weighted, f"smoothing and class weights are for kind='one', not '{self.kind}'")
        check(
            not (self.labels and self.class_weights) or len(self.labels) == len(self.class_weights),
            f"{len(self.class_weights)} class_weights for {len(self.labels)} labels: one a label, in the labels' order",
        )

    # -- host ----------------------------------------------------------------------------------------------------------

    def learn(self, training: Sequence[Example], held_out: Sequence[Example]) -> Self:
        """Set the labels and the class weights."""
        check(self.rows.pack or not self.mixup, "mixup mixes the examples of a row: rows.pack=False leaves one; mixup=0")
        counts = Counter(name for example in training for name in self.names(example))
        labels = self.labels or (() if self.kind == "number" else tuple(sorted(counts)))
        check(self.kind == "number" or len(labels) > 1, f"{len(labels)} label(s) in {self.label!r}: nothing to tell apart")
        weights = self.class_weights
        if self.balanced and not weights:
            weights = tuple(round(len(training) / (len(labels) * max(1, counts[name])), 6) for name in labels)
        return dataclasses.replace(self, labels=labels, class_weights=weights)

    def check_example(self, example: Example) -> None:
        self.target(example)
        refuse_empties([example], *self.fields)

    def names(self, example: Example) -> list[str]:
        """Return the gold labels of an example as strings, [] for a number."""
        value = example.get(self.label, (str, int, float, list))
        if self.kind == "number":
            return []
        if self.kind == "one":
            check(not isinstance(value, list), f"{example.where}: a list of labels; set objective.kind=several")
            name = str(value).strip()
            check(bool(name), f"{example.where}: {self.label!r} is empty; mend or remove the example")
            return [name]
        parts = value if isinstance(value, list) else str(value).split(self.between)
        return [str(part).strip() for part in parts if str(part).strip()]

    def target(self, example: Example) -> tuple[np.ndarray | np.generic, float]:
        """Return the target, a number, a label's index or a multi-hot vector, and its weight."""
        if self.kind == "number":
            return np.float32(number_of(example, self.label)), 1.0
        names = self.names(example)
        indices = [self.labels.index(name) if name in self.labels else -1 for name in names]
        if -1 in indices and self.unknown == "refuse":
            raise network.unknown_label(example.where, names[indices.index(-1)], self.labels)
        if self.kind == "one":
            # An unknown label keeps its place with weight 0, under an index that the loss can look up.
            weight = 1.0 if not self.class_weights else self.class_weights[indices[0]]
            return np.int32(max(0, indices[0])), weight * (indices[0] >= 0)
        gold = np.zeros(len(self.labels), np.float32)
        gold[[index for index in indices if index >= 0]] = 1
        return gold, float(-1 not in indices)

    def lay(self, example: Example) -> list[Laid]:
        texts = [encoded(self.frame, example, field) for field in self.fields]
        return [self.frame.join(texts, self.limit, self.keep)]

    # -- device --------------------------------------------------------------------------------------------------------

    @property
    def outputs(self) -> int:
        return 1 if self.kind == "number" else len(self.labels)

    def terms(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
        targets, weights_BP = batch["targets"], batch["weights"]
        if self.mixup and keys_B is not None:
            logits_BPC, loss_BP, targets = self.mixed(params, batch, keys_B)
        else:
            logits_BPC = self.logits(params, batch, keys_B)
            loss_BP = self.costs(logits_BPC, targets)
        total = jnp.sum(loss_BP * weights_BP), weights_BP.sum()
        return {"loss": total, **self.metrics(logits_BPC, targets, weights_BP > 0)}

    def mixed(self, params: Any, batch: Batch, keys_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Score combined states; return (logits, loss of each example, target with the larger share)."""
        z_BPD, targets = self.pooled(params, batch, keys_B), batch["targets"]
        partner_BP, share_BP = partners(batch["weights"] > 0), shares(keys_B, self.mixup, batch["weights"].shape[1])

        # States are combined, as token ids cannot be (Guo et al. 2019); the loss is linear in the target.
        others = take(targets, partner_BP)
        share_BP1 = share_BP[..., None].astype(z_BPD.dtype)
        z_BPD = share_BP1 * z_BPD + (1 - share_BP1) * take(z_BPD, partner_BP)
        logits_BPC = self.scores.apply({"params": params}, z_BPD, keys_B)
        loss_BP = share_BP * self.costs(logits_BPC, targets) + (1 - share_BP) * self.costs(logits_BPC, others)
        larger = share_BP.reshape(*share_BP.shape, *[1] * (targets.ndim - 2)) >= 0.5
        return logits_BPC, loss_BP, jnp.where(larger, targets, others)

    def costs(self, logits_BPC: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the loss of each example (B, P): cross-entropy in nats, or the squared error."""
        if self.kind == "number":
            return (logits_BPC[..., 0] - targets) ** 2
        if self.kind == "several":
            # The mean over labels: the scale of the loss, thus the learning rate, does not depend on their number.
            return (jax.nn.softplus(logits_BPC) - targets * logits_BPC).mean(-1)
        log_BPC = jax.nn.log_softmax(logits_BPC)
        right_BP = jnp.take_along_axis(log_BPC, targets[..., None], -1)[..., 0]
        return -(1 - self.smoothing) * right_BP - self.smoothing * log_BPC.mean(-1)

    def metrics(self, logits_BPC: jax.Array, targets: jax.Array, counted_BP: jax.Array) -> Sums:
        """Sum the absolute error, the accuracy, or F1 and exact match over the examples of nonzero weight."""
        count = counted_BP.sum()
        if self.kind == "number":
            return {"error": (jnp.sum(jnp.abs(logits_BPC[..., 0] - targets) * counted_BP), count)}
        if self.kind == "one":
            return {"accuracy": (jnp.sum((logits_BPC.argmax(-1) == targets) * counted_BP), count)}
        guess_BPC = (logits_BPC > 0) & counted_BP[..., None]
        # Micro-averaged F1: true positives and totals are summed over all examples before the division.
        hits, gold = jnp.sum(guess_BPC * targets), jnp.sum(targets * counted_BP[..., None])
        right = jnp.sum((guess_BPC == targets).all(-1) * counted_BP)
        return {"f1": (2 * hits, guess_BPC.sum() + gold), "exact": (right, count)}

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return the "probabilities" of the labels (B, P, labels), or the "number" (B, P)."""
        logits_BPC = self.logits(params, batch)
        if self.kind == "number":
            return {"number": logits_BPC[..., 0]}
        return {"probabilities": (jax.nn.softmax if self.kind == "one" else jax.nn.sigmoid)(logits_BPC)}

    # -- for people ----------------------------------------------------------------------------------------------------

    @property
    def answers(self) -> Answers:
        form = {"one": "classes", "several": "labels", "number": "numbers"}[self.kind]
        return Answers(form, "classifier", tuple(self.fields))

    def placeholder(self, example: Example) -> dict[str, Any]:
        return {self.label: {"one": "".join(self.labels[:1]), "several": [], "number": 0}[self.kind]}

    def outcome(self, example: Example, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        row = {"gold": example.values.get(self.label), "guess": self.guess(outputs)}
        if self.kind != "number":
            row["probabilities"] = dict(zip(self.labels, map(float, outputs["probabilities"])))
        return row

    def guess(self, outputs: Mapping[str, np.ndarray]) -> Any:
        """Return the predicted label, labels or number of one example."""
        if self.kind == "number":
            return float(outputs["number"])
        if self.kind == "one":
            return self.labels[int(outputs["probabilities"].argmax())]
        return [name for name, p in zip(self.labels, outputs["probabilities"]) if p > 0.5]

    def lines(self, tokenizer: Tokenizer, row: Row, outputs: Row | None) -> list[str]:
        lines = []
        for k, text in enumerate(network.texts_of(tokenizer, row)):
            target = row["targets"][k]
            if self.kind == "number":
                gold = f"{target:g}"
            elif self.kind == "one":
                gold = self.labels[int(target)] if row["weights"][k] else "?"
            else:
                gold = ", ".join(name for name, on in zip(self.labels, target) if on) or "none"
            lines += [f"text   {text}", f"label  {gold}"]
            if outputs is not None:
                guess = self.guess({name: values[k] for name, values in outputs.items()})
                shown = f"{guess:.3f}" if self.kind == "number" else guess if self.kind == "one" else ", ".join(guess) or "none"
                sure = f" ({outputs['probabilities'][k].max():.0%})" if self.kind == "one" else ""
                lines.append(f"guess  {shown}{sure}")
        return lines


# -- mixup -------------------------------------------------------------------------------------------------------------


def partners(real_BP: jax.Array) -> jax.Array:
    """Return the position of the next real example of the row, cyclically, for each; int32 (B, P)."""
    size = real_BP.shape[1]
    # Cyclic distance less one: an example itself is the farthest, and still nearer than an absent one at `size`.
    steps_PP = (jnp.arange(size)[None] - jnp.arange(size)[:, None] - 1) % size
    return jnp.where(real_BP[:, None], steps_PP, size).argmin(-1)


def shares(keys_B: jax.Array, alpha: float, size: int) -> jax.Array:
    """Draw the share of each example's own state from Beta(alpha, alpha), with one key a row: (B, size)."""
    # 2000 is the site of no dropout, so that shares and dropout masks are independent.
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha, (size,)))(fold(keys_B, 2000))


def take(x: jax.Array, positions_BP: jax.Array) -> jax.Array:
    """Gather (B, P, ...) along the second axis."""
    return jnp.take_along_axis(x, positions_BP.reshape(*positions_BP.shape, *[1] * (x.ndim - 2)), 1)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/classify_nano.py")
