"""A label of a text, or of two: classification and regression on a pre-trained network.

    python -m lm.objectives.classify [--config=configs/classify_nano.py]
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.labelled.check import encoded, number_of, refuse_doubles, refuse_empties
from lm.data.rows.templates import Keep, Laid
from lm.data.types import Example
from lm.errors import check, check_choices, check_range
from lm.models.layers import fold
from lm.objectives.base import Answers, Objective
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Head, Rows, Trunk


@dataclass(frozen=True, kw_only=True)
class Classify(Tuned, Objective):
    """Score the labels of each example from one state of the network.

    `fields`: the one or two texts of an example, the longer cut first, which keeps its "start", its "end" or half of each
    ("both"; Sun et al. 2019). `label`: its label. `kind` "one" of the labels, "several" of them (a list, or a text cut at
    `between`; each its own yes or no), or a "number" (squared error).
    `smoothing` e takes 1 - e of the right label and spreads e over all (Szegedy et al. 2016). `class_weights`, one a
    label, weigh the examples of each; `balanced` fills them in, examples / (labels x examples with it).

    `mixup` a > 0 trains on mixtures: each state that the head scores becomes share x it + (1 - share) x that of the next
    example of its row, the last one's next is the first; the loss is mixed alike, by its own weight (Zhang et al. 2018;
    Guo et al. 2019, of states). Each example's share is drawn from Beta(a, a). One alone in its row stays as it is.
    Metrics of training then ask for the target with the larger share.

    `labels` are those of the training examples, sorted, unless given. A held-out label that is not among them is an
    error, or with `unknown="skip"` the example counts nothing.
    """

    paper: ClassVar[str] = "Radford et al. 2018 (GPT); Devlin et al. 2019 (BERT)"
    holds: ClassVar[str] = "tokens types segments positions (B, T); places weights (B, P); targets (B, P) or (B, P, labels)"
    task: ClassVar[str] = "SequenceClassification"

    model: Trunk
    fields: tuple[str, ...] = ("text",)
    label: str = "label"
    keep: Keep = "start"
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

    def __post_init__(self):
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

    def study(self, corpus):
        """Find the labels and the length of a row; refuse empty texts, and held-out labels that training does not have."""
        check(self.rows.pack or not self.mixup, "mixup mixes the examples of a row: rows.pack=False leaves one; mixup=0")
        examples = network.examples_of(corpus)
        counts = Counter(name for example in examples for name in self.names(example))
        labels = self.labels or (() if self.kind == "number" else tuple(sorted(counts)))
        check(self.kind == "number" or len(labels) > 1, f"{len(labels)} label(s) in {self.label!r}: nothing to tell apart")
        weights = self.class_weights
        if self.balanced and not weights:
            weights = tuple(round(len(examples) / (len(labels) * max(1, counts[name])), 6) for name in labels)
        found = dataclasses.replace(self, labels=labels, class_weights=weights)
        everything = [*examples, *corpus.validation.examples]
        for example in everything:
            found.target(example)
        refuse_empties(everything, *self.fields)
        return dataclasses.replace(found, rows=network.settled(found, corpus))

    def names(self, example: Example) -> list[str]:
        """Give the labels of an example as texts; none of a number."""
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

    def target(self, example: Example) -> tuple[np.ndarray, float]:
        """Give what is asked for, and how much it counts."""
        if self.kind == "number":
            return np.float32(number_of(example, self.label)), 1.0
        names = self.names(example)
        places = [self.labels.index(name) if name in self.labels else -1 for name in names]
        if -1 in places and self.unknown == "refuse":
            raise network.refuse(example.where, names[places.index(-1)], self.labels)
        if self.kind == "one":
            weight = 1.0 if not self.class_weights else self.class_weights[places[0]]
            return np.int32(max(0, places[0])), weight * (places[0] >= 0)
        chosen = np.zeros(len(self.labels), np.float32)
        chosen[[place for place in places if place >= 0]] = 1
        return chosen, float(-1 not in places)

    def lay(self, example: Example) -> Laid:
        texts = [encoded(self.frame, example, field) for field in self.fields]
        return self.frame.join(texts, network.limit(self.model, self.rows), self.keep)

    def sizes(self, example: Example) -> list[tuple[int, int]]:
        return [(len(self.lay(example).tokens), 1)]

    def corrupt(self, rng, record):
        examples, room = [example for example, _ in record["examples"]], record["room"]
        row, begins = network.lay_row([self.lay(example) for example in examples], self.model, self.frame, self.row)
        last = self.pool == "last"
        shape = (room, len(self.labels)) if self.kind == "several" else (room,)
        row |= {"places": np.zeros(room, np.int32), "weights": np.zeros(room, np.float32)}
        row["targets"] = np.zeros(shape, np.int32 if self.kind == "one" else np.float32)
        for k, example in enumerate(examples):
            row["places"][k] = begins[k + 1] - 1 if last else begins[k]
            row["targets"][k], row["weights"][k] = self.target(example)
        return row

    @property
    def pool(self) -> str:
        return network.pool_of(self.head, self.model, self.rows, self.frame)

    # -- device --------------------------------------------------------------------------------------------------------

    @property
    def scores(self):
        outputs = 1 if self.kind == "number" else len(self.labels)
        return network.scores_of(self.head, self.model, self.rows, self.frame.style, outputs)

    def init(self, key, batch):
        state = jnp.zeros((1, 1, self.model.width))
        head = self.scores.init(jax.random.fold_in(key, 1), state)["params"]
        return {**network.draw(self.model, key, self.rows), **head}

    def logits(self, params, batch, keys_B=None):
        """Score the labels, or estimate the number: (B, P, labels or 1)."""
        return self.scores.apply({"params": params}, self.pooled(params, batch, keys_B), keys_B)

    def pooled(self, params, batch, keys_B):
        """Return what is scored, (B, P, D)."""
        h_BTD = network.states(self.model, params, batch, keys_B, self.rows.causal)
        return network.pooled(h_BTD, batch, self.pool)

    def loss(self, params, batch, memory, keys_B):
        targets, weights_BP = batch["targets"], batch["weights"]
        if self.mixup and keys_B is not None:
            logits_BPC, loss_BP, targets = self.mixed(params, batch, keys_B)
        else:
            logits_BPC = self.logits(params, batch, keys_B)
            loss_BP = self.costs(logits_BPC, targets)
        total = jnp.sum(loss_BP * weights_BP), weights_BP.sum()
        metrics = self.metrics(logits_BPC, targets, weights_BP > 0)
        return {"loss": total, **metrics, "filled": network.filled(batch)}, memory

    def mixed(self, params, batch, keys_B):
        """Score mixtures: (their scores, each one's loss, the target with the larger share)."""
        z_BPD, targets = self.pooled(params, batch, keys_B), batch["targets"]
        partner_BP, share_BP = partners(batch["weights"] > 0), shares(keys_B, self.mixup, batch["weights"].shape[1])
        others = chosen(targets, partner_BP)
        share_BP1 = share_BP[..., None].astype(z_BPD.dtype)
        z_BPD = share_BP1 * z_BPD + (1 - share_BP1) * chosen(z_BPD, partner_BP)
        logits_BPC = self.scores.apply({"params": params}, z_BPD, keys_B)
        loss_BP = share_BP * self.costs(logits_BPC, targets) + (1 - share_BP) * self.costs(logits_BPC, others)
        larger = share_BP.reshape(*share_BP.shape, *[1] * (targets.ndim - 2)) >= 0.5
        return logits_BPC, loss_BP, jnp.where(larger, targets, others)

    def costs(self, logits_BPC, targets):
        """Give each example's loss (B, P), in nats or squares."""
        if self.kind == "number":
            return (logits_BPC[..., 0] - targets) ** 2
        if self.kind == "several":
            return (jax.nn.softplus(logits_BPC) - targets * logits_BPC).mean(-1)
        log_BPC = jax.nn.log_softmax(logits_BPC)
        right_BP = jnp.take_along_axis(log_BPC, targets[..., None], -1)[..., 0]
        return -(1 - self.smoothing) * right_BP - self.smoothing * log_BPC.mean(-1)

    def metrics(self, logits_BPC, targets, counted_BP):
        """Sum what people ask for over the examples that count."""
        count = counted_BP.sum()
        if self.kind == "number":
            return {"error": (jnp.sum(jnp.abs(logits_BPC[..., 0] - targets) * counted_BP), count)}
        if self.kind == "one":
            return {"accuracy": (jnp.sum((logits_BPC.argmax(-1) == targets) * counted_BP), count)}
        guess_BPC = (logits_BPC > 0) & counted_BP[..., None]
        hits, gold = jnp.sum(guess_BPC * targets), jnp.sum(targets * counted_BP[..., None])
        right = jnp.sum((guess_BPC == targets).all(-1) * counted_BP)
        return {"f1": (2 * hits, guess_BPC.sum() + gold), "exact": (right, count)}

    def predict(self, params, batch):
        """Give each label's probability (B, P, labels), or the number (B, P)."""
        logits_BPC = self.logits(params, batch)
        if self.kind == "number":
            return {"number": logits_BPC[..., 0]}
        return {"probabilities": (jax.nn.softmax if self.kind == "one" else jax.nn.sigmoid)(logits_BPC)}

    # -- for people ----------------------------------------------------------------------------------------------------

    @property
    def answers(self):
        form = {"one": "classes", "several": "labels", "number": "numbers"}[self.kind]
        return Answers(form, "classifier", tuple(self.fields))

    def placeholder(self, example):
        return {self.label: {"one": "".join(self.labels[:1]), "several": [], "number": 0}[self.kind]}

    def outcomes(self, record, found) -> list[dict[str, Any]]:
        """Say of each example of a record what `predict` found in its row, as JSON-able values."""
        rows = []
        for k, (example, _) in enumerate(record["examples"]):
            row = {"where": example.where, "gold": example.values.get(self.label), "guess": self.word(found, k)}
            if self.kind != "number":
                row["probabilities"] = dict(zip(self.labels, map(float, found["probabilities"][k])))
            rows.append(row)
        return rows

    def word(self, found, k: int) -> Any:
        if self.kind == "number":
            return float(found["number"][k])
        if self.kind == "one":
            return self.labels[int(found["probabilities"][k].argmax())]
        return [name for name, p in zip(self.labels, found["probabilities"][k]) if p > 0.5]

    def show(self, tokenizer, example, found=None):
        lines = []
        for k, text in enumerate(network.texts_of(tokenizer, example)):
            target = example["targets"][k]
            if self.kind == "number":
                gold = f"{target:g}"
            elif self.kind == "one":
                gold = self.labels[int(target)] if example["weights"][k] else "?"
            else:
                gold = ", ".join(name for name, on in zip(self.labels, target) if on) or "none"
            lines += [f"text   {text}", f"label  {gold}"]
            if found is not None:
                guess = self.word(found, k)
                shown = f"{guess:.3f}" if self.kind == "number" else guess if self.kind == "one" else ", ".join(guess) or "none"
                sure = f" ({found['probabilities'][k].max():.0%})" if self.kind == "one" else ""
                lines.append(f"guess  {shown}{sure}")
        return "\n".join(lines) or network.EMPTY


# -- mixtures ----------------------------------------------------------------------------------------------------------


def partners(real_BP: jax.Array) -> jax.Array:
    """Say which place each place is mixed with: the next real one of its row, around its end; int32 (B, P)."""
    size = real_BP.shape[1]
    steps_PP = (jnp.arange(size)[None] - jnp.arange(size)[:, None] - 1) % size
    return jnp.where(real_BP[:, None], steps_PP, size).argmin(-1)


def shares(keys_B: jax.Array, alpha: float, size: int) -> jax.Array:
    """Draw each place's share of its mixture from Beta(alpha, alpha), with one key a row: (B, size)."""
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha, (size,)))(fold(keys_B, 2000))


def chosen(x: jax.Array, places_BP: jax.Array) -> jax.Array:
    """Take (B, P, ...) at other places."""
    return jnp.take_along_axis(x, places_BP.reshape(*places_BP.shape, *[1] * (x.ndim - 2)), 1)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/classify_nano.py")
