"""The contract of an objective: corruption of text on the host (numpy), and a loss on the device (jax).

| key of a batch | shape | meaning |
|---|---|---|
| tokens | (B, T) int32 | inputs of the network; in an encoder-decoder, of its decoder |
| targets | (B, T) or (B, P) int32 | labels at every position, or at P of them |
| weights | as targets, float32 | weight of each target in the loss; 0 for padding |
| places | (B, P) int32 | positions of the targets within the row |
| segments | (B, T) int32 | number of the document within the row, from 1; 0 for padding |
| positions | (B, T) int32 | position within the document |
| types | (B, T) int32 | token type: first or second sentence |
| prefix | (B, T) bool | tokens visible to their whole segment, though the network is causal |
| pair, pair_weights | (B,) int32, float32 | label of a sentence pair |
| starts, ends, numbers | (B, P) int32 | first and last token of an answer, and its segment |
| begins | (B, P) bool | first tag of each chain |
| offered | (B, P, options) bool | valid options |
| source, source_segments, source_positions | (B, S) int32 | inputs of an encoder |
| peers, rows | (B, ...), (B / parts,) | from the loop: `Objective.peers` of the whole batch, and these rows' indices in it |
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

import jax
import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.rows.examples import Examples, Parted
from lm.data.rows.pipeline import Batches
from lm.data.rows.prompts import Prompt
from lm.data.rows.records import Documents, Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example as LabelledExample
from lm.errors import UserError, check
from lm.models import flops

Example = dict[str, np.ndarray]
Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (weighted sum, sum of weights)


@dataclasses.dataclass(frozen=True)
class Answers:
    """Answers of an objective of labelled examples, for `lm.predict` and the figures of labelled runs.

    `form`: entry of `lm.evaluation.predictions.FORMS` that reads and scores predictions. `kind`: noun for messages.
    `reads`: values that an example must have.
    """

    form: str
    kind: str
    reads: tuple[str, ...]


class Scored(NamedTuple):
    """Scores of each target before any softmax, float32 (B, P, C), and the states that the head reads, (B, P, D)."""

    scores_BPC: jax.Array
    states_BPD: jax.Array


class Objective:
    """Base of all objectives, which are frozen dataclasses; the training loop depends on nothing else.

    The loop minimises the sum over k of scales[k] * sums[k] / weights[k]: `weights(batch)` are the denominators of the
    whole batch, known before the forward pass, and `loss` returns the sums of its rows, so that a batch may be split into
    any number of micro-batches. Where `loss` returns no "loss", that total is reported under the name.
    """

    paper: ClassVar[str]
    holds: ClassVar[str]  # keys of a batch with their shapes, for people
    # After training. A subclass declares its abilities, so that no consumer has to test classes or attributes.
    fills: ClassVar[tuple[str, ...]] = ()  # strategies of lm.generate that fill masked positions
    quantity: ClassVar[str] = ""  # name of the held-out loss, such as a bound; "": see `lm.objectives.quantity`
    embeds: ClassVar[bool] = False  # has an `embed` of its own for whole texts of up to `length` tokens
    length: int
    task: ClassVar[str] = ""  # fine-tuning head that lm.convert exports, as transformers names it ("TokenClassification")
    # Not class variables: fields of some subclasses.
    labels: tuple[str, ...] = ()  # classes, and their kind; the parameters depend on both
    kind: str | None = None
    class_weights: tuple[float, ...] = ()
    head: Any = None  # between a sequence's state and its scores (`finetune.network.Head`)
    rows: Any = None  # how labelled examples become rows (`finetune.network.Rows`)
    frame: Any = None  # special tokens around texts (`lm.data.rows.templates.Frame`), once a tokenizer is known
    parts: tuple[Any, ...] = ()  # of a mixture: its objectives with their names
    # Special token ids. None: that of the tokenizer, or absent.
    start: int | None = None
    begin: int | None = None
    end: int | None = None
    pad: int | None = None

    template: bool = False  # texts are encoded by the tokenizer's template; a field where published models have one
    apart: ClassVar[bool] = False  # each of its `parts` has, and is evaluated on, examples of its own

    model: Any
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    @property
    def records(self) -> Windows | Documents | Examples | Parted:
        """Describe the input of `corrupt`."""
        raise NotImplementedError

    @property
    def writes(self) -> str:
        """Generates left to right: continues a "text", or writes the "answer" to a source; "" for neither."""
        return ""

    @property
    def prefix(self) -> bool:
        """Attends to prompts in both directions."""
        return False

    @property
    def headless(self) -> bool:
        """Exported without a vocabulary head."""
        return False

    @property
    def nats(self) -> str | None:
        """Name the metric in nats per token of running text, for perplexity and bits per byte."""
        return None

    @property
    def scales(self) -> Mapping[str, float]:
        """Return the coefficient of each term of the loss; a single "loss" by default."""
        return {"loss": 1.0}

    @property
    def special(self) -> tuple[str, ...]:
        """Return the special tokens to add to the tokenizer where its vocabulary lacks them."""
        return ()

    def resolve(self, tokenizer: Tokenizer) -> Self:
        """Set the vocabulary size, and of the fields `separator`, `pieces` and the ids of `special` those it has.

        The id of "[CLS]" or "<cls>" goes into a field `cls`. Raises UserError where tokenizer and objective do not fit.
        Resolving twice changes nothing: a run's config.json holds the resolved objective.
        """
        # Declared fields only: the table of pieces takes memory and time.
        names = {field.name for field in dataclasses.fields(self)}
        ids = {name[1:-1].lower(): tokenizer.special_id(name) for name in self.special} | {"separator": tokenizer.separator}
        derived: dict[str, Any] = {name: id for name, id in ids.items() if name in names}
        derived |= {"pieces": tokenizer.piece_table()} if "pieces" in names else {}
        return dataclasses.replace(self, model=fit(self.model, tokenizer), **derived)

    def sized(self, vocab: int) -> Self:
        """Set the model's vocabulary size where it is 0."""
        return dataclasses.replace(self, model=self.model.sized(self.model.vocab or vocab))

    def study(self, corpus: Corpus) -> Self:
        """Collect corpus statistics for `corrupt` (a table of similar words); called after `resolve`."""
        return self

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        """Make one row from one record: numpy, on the host, pure; must not modify the record."""
        raise NotImplementedError

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Initialise the parameters, a tree of `Named` arrays."""
        raise NotImplementedError

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Return the denominator of each term of the loss."""
        return {"loss": batch["weights"].sum()}

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        """Return (sum, weight) of each term and metric over the rows, and the memory of the next batch.

        `keys_B`, one key a row, is None in evaluation, which must be deterministic.
        """
        raise NotImplementedError

    def initial_memory(self, rows: int) -> Any:
        """Return the state carried from batch to batch, every leaf with a leading axis of rows, or None."""
        return None

    def peers(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Any:
        """Compute features (B, ...) that every row needs of the whole batch; None where rows are independent.

        In micro-batches `loss` reads those of all rows from batch["peers"], without a gradient.
        """
        return None

    def measured(self) -> "Objective":
        """Return the objective for held-out text: the same parameters, perhaps longer rows or memory."""
        return self

    def prompt(self, tokenizer: Tokenizer, text: str) -> Prompt:
        """Encode the prompt for a text to continue or to answer."""
        raise NotImplementedError

    def published(self) -> Self:
        """Return the objective that encodes texts by the tokenizer's template, as published models expect."""
        own = any(field.name == "template" for field in dataclasses.fields(self))
        return dataclasses.replace(self, template=True) if own else self

    def lead(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the ids before a document's first token, as in training: the separator, or those of the template."""
        if self.template:
            return tokenizer.around[0]
        return () if tokenizer.separator is None else (tokenizer.separator,)

    def encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode documents to score, without the `lead`: int32 [T] each.

        With a template, special tokens in the text and those that the template appends are included.
        """
        if not self.template:
            return tokenizer.encode_batch(list(texts))
        # The template's leading ids go: `lead` returns them, and a scorer puts them in front itself.
        encoded = tokenizer.encode_batch(list(texts), special=True, template=True)
        return [ids[len(tokenizer.around[0]) :] for ids in encoded]

    def given(self, ids: np.ndarray) -> Prompt:
        """Make the prompt of an encoded text to continue or to score."""
        return Prompt(ids)

    def stops(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Return the ids that end generation."""
        return () if tokenizer.separator is None else (tokenizer.separator,)

    def writer(self, params: Any) -> tuple["Objective", Any]:
        """Return the generating objective and its parameters: of a mixture the first part that generates."""
        return self, params

    @property
    def inner(self) -> "Objective":
        """Return the objective to evaluate, generate with and export: of a wrapper the wrapped one."""
        return self

    @property
    def answers(self) -> Answers | None:
        """Describe the answers to labelled examples; None for running text."""
        return None

    def placeholder(self, example: LabelledExample) -> dict[str, Any]:
        """Return dummy labels for an unlabelled example; only the loss reads them."""
        return {}

    def unbounded(self, tokenizer: Tokenizer, examples: Sequence[LabelledExample]) -> Self:
        """Return the objective without limits inferred from its training examples, to answer others."""
        return self

    def scored(self, params: Any, batch: Batch) -> Scored | None:
        """Score the targets of labelled examples, for lm.explain; None where there are none."""
        return None

    def score_names(self, example: LabelledExample) -> tuple[str, ...]:
        """Name the scores of a target of an example: its labels; () where they have no names."""
        return self.labels or ("score",)

    def decide(self, example: LabelledExample, part: int, scores_PC: np.ndarray, outputs: Example) -> list[tuple[int, ...]]:
        """Return for each target of a part the indices of the scores that predict; `outputs`: of `predict`, this row's."""
        return [(int(best),) for best in scores_PC.argmax(-1)]

    def masked_network(self) -> Any:
        """Return the masked language model (`Model` or `Electra`); raises UserError where there is none."""
        raise UserError(f"{type(self).__name__} fills no masks: take a run of Masked or Replaced, or a folder of BERT's like")

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array] | None:
        """Predict the targets, for display: arrays with a leading axis of rows."""
        return None

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        """Format one row for display: before and after `corrupt`, and the output of `predict`."""
        raise NotImplementedError

    def flops(self) -> float:
        """Count the FLOPs of a training step on one row."""
        return self.records.tokens * flops.train_flops(self.model, self.model.context)


def fit(model: Any, tokenizer: Tokenizer) -> Any:
    """Set the model's vocabulary size from the tokenizer where it is 0; raises UserError where it is too small."""
    check(
        not model.vocab or model.vocab >= tokenizer.vocab,
        f"objective.model.vocab={model.vocab} is smaller than the tokenizer's {tokenizer.vocab}; leave it at 0",
    )
    return model.sized(model.vocab or tokenizer.vocab)


def resolve(config: Any, corpus: Corpus) -> tuple[Any, Corpus]:
    """Add the objective's special tokens to the corpus's tokenizer; resolve the objective and let it study the corpus."""
    # Special tokens first: the vocabulary size that `resolve` writes into the model counts them.
    tokenizer = corpus.tokenizer.with_special(config.objective.special)
    corpus = dataclasses.replace(corpus, tokenizer=tokenizer)
    # An id from the command line is checked before `resolve`, which would overwrite or trust it.
    special = ("separator", "start", "begin", "end", "mask", "cls", "sep", "pad")
    for name in [field.name for field in dataclasses.fields(config.objective) if field.name in special]:
        value = getattr(config.objective, name)
        wrong = isinstance(value, int) and not 0 <= value < tokenizer.vocab
        check(not wrong, f"objective.{name}={value} is no id of the tokenizer, which has {tokenizer.vocab}; leave it out")
    # `study` comes after `resolve`, whose ids it needs to read the corpus.
    objective = config.objective.resolve(tokenizer).study(corpus)
    return dataclasses.replace(config, objective=objective), corpus


def training_batches(config: Any, corpus: Corpus, rows: tuple[int, int] | None = None) -> Batches:
    """Return the batches of a run, a pure function of the step; `rows`: range of this process's rows."""
    objective = config.objective
    return Batches(
        corpus,
        objective.records,
        objective.corrupt,
        config.batch,
        seed=config.seed,
        packing=config.data.packing,
        shard=rows,
    )
