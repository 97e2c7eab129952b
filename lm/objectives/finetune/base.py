"""Base of the fine-tuning objectives: labelled examples packed into rows, a pre-trained network, a head."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.rows.examples import Examples, row_length
from lm.data.rows.templates import Frame, Laid
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example
from lm.fields import derived
from lm.models.layers import Linear, dropout, fold
from lm.models.pooling import Scores
from lm.objectives.base import Batch, Scored, Sums, fit
from lm.objectives.base import Example as Row
from lm.objectives.finetune import network

SAMPLE = 2000  # examples of each source by which the length of a row is chosen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuned:
    """Base of fine-tuning objectives; by default they score one pooled state per text.

    A subclass has the fields `model: Trunk` and `rows: Rows` and, to score texts, `head: Head`. It implements `learn`,
    `check_example`, `lay`, `target`, `outputs`, `terms`, `predict`, `outcome`, `lines`, `answers` and `placeholder`. One
    that reads long texts in windows overrides `lay`, `sizes`, `corrupt`, `init_head` and `outcomes` instead.
    """

    if TYPE_CHECKING:  # fields of the subclasses
        model: network.Trunk
        rows: network.Rows
        head: network.Head | None = None
        dropout: float = 0.0
    frame: Frame | None = derived()

    # -- from a config to a run ----------------------------------------------------------------------------------------

    @property
    def special(self) -> tuple[str, ...]:
        return network.special(self.model, self.rows)

    def resolve(self, tokenizer: Tokenizer) -> Self:
        frame = network.frame(self.model, self.rows, tokenizer)
        return dataclasses.replace(self, model=fit(self.model, tokenizer), frame=frame)

    def study(self, corpus: Corpus) -> Self:
        """Fill in labels and the length of a row from the training examples; refuse examples that cannot be used."""
        training, held_out = network.examples_of(corpus), corpus.validation.examples
        known = self.learn(training, held_out)
        # Every example is checked now: a mistake in the file would otherwise end a run hours later.
        for example in [*training, *held_out]:
            known.check_example(example)
        if known.rows.row:  # from the config, or from config.json of the run that is resumed
            return known
        return dataclasses.replace(known, rows=dataclasses.replace(known.rows, row=known.choose_row(corpus)))

    def learn(self, training: Sequence[Example], held_out: Sequence[Example]) -> Self:
        """Fill in the fields left open that depend on the examples: labels, number of options, largest score."""
        return self

    def check_example(self, example: Example) -> None:
        """Raise UserError for an example without a text, or with a label that training does not have."""

    def choose_row(self, corpus: Corpus) -> int:
        """Choose the tokens of a row by the first training examples."""
        if not self.rows.pack:
            return self.limit
        examples = [example for _, side in corpus.train for example in side.examples[:SAMPLE]]
        sizes = [tokens for example in examples for tokens, _ in self.sizes(example)]
        return row_length(sizes, self.limit, max(sizes, default=1))

    # -- rows ----------------------------------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """Maximum tokens of a text."""
        return network.limit(self.model, self.rows)

    @property
    def texts(self) -> int:
        """Texts of an example that are pooled and lie in one row."""
        return 1

    @property
    def row(self) -> int:
        """Tokens of a row."""
        return self.rows.row or self.limit * self.texts

    @property
    def records(self) -> Examples:
        return Examples(length=self.row, sizes=self.sizes, pack=self.rows.pack)

    def lay(self, example: Example) -> Sequence[Any]:
        """Lay out the texts of an example, one `Laid` each."""
        raise NotImplementedError

    def sizes(self, example: Example) -> list[tuple[int, int]]:
        """Return (tokens, predictions) of each part of an example that is packed by itself."""
        return [(sum(len(text.tokens) for text in self.lay(example)), 1)]

    def target(self, example: Example) -> tuple[Any, float]:
        """Return the target of an example, with its dtype, and its weight."""
        raise NotImplementedError

    def lay_row(self, texts: Sequence[Laid]) -> tuple[Row, np.ndarray]:
        """Lay out texts in one row; return its arrays and where each text starts, int64 [texts + 1], the end last."""
        return network.lay_row(texts, self.model, self.frame, self.row)

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Row:
        """Lay out the examples of a record: "places" (P,) or (P, texts), "targets" (P, ...) and "weights" (P,)."""
        examples, count = [example for example, _ in record["examples"]], record["room"]
        groups = [self.lay(example) for example in examples]
        row, starts = self.lay_row([text for group in groups for text in group])
        # The mean of a text is looked up by its first token: any position of its segment would do.
        positions = starts[1:] - 1 if self.pool == "last" else starts[:-1]
        places, weights, first = np.zeros((count, self.texts), np.int32), np.zeros(count, np.float32), 0
        values, weights[: len(examples)] = zip(*map(self.target, examples))
        # All rows of a stream have the same number of predictions; unused ones have weight 0.
        targets = np.zeros((count, *np.shape(values[0])), np.asarray(values[0]).dtype)
        targets[: len(examples)] = values
        for k, group in enumerate(groups):
            places[k, : len(group)] = positions[first : first + len(group)]
            first += len(group)
        return row | {"places": places if self.texts > 1 else places[:, 0], "targets": targets, "weights": weights}

    # -- network and head ----------------------------------------------------------------------------------------------

    @property
    def pool(self) -> str:
        """State that stands for a text: "first", "last" or "mean"."""
        return network.pool_of(self.head, self.model, self.rows, self.frame)

    @property
    def outputs(self) -> int:
        """Scores of each text."""
        return 1

    @property
    def scores(self) -> Scores:
        """Module from pooled states to scores."""
        return network.scores_of(self.head, self.model, self.rows, self.frame.style, self.outputs)

    def init(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        return {**network.draw(self.model, key, self.rows), **self.init_head(key)}

    def init_head(self, key: jax.Array) -> dict[str, Any]:
        """Draw the parameters of the head, with keys folded from 1 on: the network draws with the key itself."""
        if self.head is None:
            return {}
        return self.scores.init(jax.random.fold_in(key, 1), jnp.zeros((1, 1, self.model.width)))["params"]

    def states(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> jax.Array:
        """Return the states of all tokens (B, T, D)."""
        return network.states(self.model, params, batch, keys_B, self.rows.causal)

    def pooled(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> jax.Array:
        """Return the pooled state of each text, (B, P x texts, D)."""
        places = batch["places"]
        flat = {**batch, "places": places.reshape(len(places), -1)}
        return network.pooled(self.states(params, batch, keys_B), flat, self.pool)

    def logits(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> jax.Array:
        """Score each text, float32 (B, P x texts, outputs)."""
        return self.scores.apply({"params": params}, self.pooled(params, batch, keys_B), keys_B)

    def scored(self, params: Any, batch: Batch) -> Scored | None:
        z_BPD = self.pooled(params, batch, None)
        return Scored(self.scores.apply({"params": params}, z_BPD, None), z_BPD)

    def token_scorer(self, outputs: int) -> Linear:
        """Return the linear layer of a head on single tokens."""
        return Linear((self.model.width, outputs), ("embed", None), **network.stack_of(self.model).linear(self.model.width))

    def init_token_scorer(self, key: jax.Array, outputs: int) -> Any:
        """Draw the parameters of `token_scorer`."""
        return self.token_scorer(outputs).init(jax.random.fold_in(key, 1), jnp.zeros((1, 1, self.model.width)))["params"]

    def score_tokens(self, params: Any, h_BPD: jax.Array, outputs: int, keys_B: jax.Array | None) -> jax.Array:
        """Score states of tokens behind dropout, float32 (B, P, outputs); `params` are those of the layer."""
        # 1000 is the number of no layer, so that the head shares no dropout key with the network. The scores are few:
        # float32 costs nothing and keeps close ones apart.
        h_BPD = dropout(h_BPD, self.dropout, fold(keys_B, 1000), 1)
        return self.token_scorer(outputs).apply({"params": params}, h_BPD.astype(jnp.float32))

    # -- loss and answers ----------------------------------------------------------------------------------------------

    def terms(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
        """Sum the loss and the metrics over the rows."""
        raise NotImplementedError

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        return {**self.terms(params, batch, keys_B), "filled": network.filled(batch)}, memory

    def outcome(self, example: Example, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return the "gold" label and the "guess" by the example's entries of `predict`, as JSON values."""
        raise NotImplementedError

    def outcomes(self, record: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Return an `outcome` for each part in a record, by its row of `predict`."""
        return [
            {"where": example.where, **self.outcome(example, {name: values[k] for name, values in outputs.items()})}
            for k, (example, _) in enumerate(record["examples"])
        ]

    def lines(self, tokenizer: Tokenizer, row: Row, outputs: Row | None) -> list[str]:
        """Describe the examples of a row, with the predictions where there are any."""
        raise NotImplementedError

    def show(self, tokenizer: Tokenizer, example: Row, outputs: Row | None = None) -> str:
        return "\n".join(self.lines(tokenizer, example, outputs)) or network.EMPTY

    def flops(self) -> float:
        return network.step_flops(self.model, self.row)
