"""What an objective is: two halves of one idea, on the host and on the device.

| key of a batch | shape | meaning |
|---|---|---|
| tokens | (B, T) int32 | what the network reads; in an encoder-decoder, what its decoder reads |
| targets | (B, T) or (B, P) int32 | what it is asked for, everywhere or at P places |
| weights | as targets, float32 | how much each target counts; 0 for padding |
| places | (B, P) int32 | where in the row the targets lie |
| segments | (B, T) int32 | number of the document within the row, from 1; 0 for padding |
| positions | (B, T) int32 | place within the document |
| types | (B, T) int32 | token type: first or second sentence |
| prefix | (B, T) bool | tokens that all of their segment see, though the network is causal |
| pair, pair_weights | (B,) int32, float32 | label of a pair of sentences |
| starts, ends, numbers | (B, P) int32 | first and last token of an answer, and the segment it is in |
| begins | (B, P) bool | places where a chain of tags begins |
| offered | (B, P, options) bool | options that are there |
| source, source_segments, source_positions | (B, S) int32 | what an encoder reads |
| peers, rows | (B, ...), (B / parts,) | from the loop: `Objective.peers` of the whole batch, and which of its rows these are |
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from lm.data.rows.examples import Examples
from lm.data.rows.pipeline import Batches
from lm.data.rows.prompts import Prompt
from lm.data.rows.records import Documents, Windows
from lm.errors import UserError, check
from lm.models import flops
from lm.models.encoder_decoder import EncoderDecoder

Example = dict[str, np.ndarray]
Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # name -> (weighted sum, sum of weights)


@dataclasses.dataclass(frozen=True)
class Answers:
    """How an objective of labelled examples answers: what `lm.predict` reads, and how the answers are measured.

    `form`: the entry of `lm.evaluation.predictions.FORMS` by which predictions are read and measured. `kind`: the noun for
    messages. `reads`: the values that an example must have.
    """

    form: str
    kind: str
    reads: tuple[str, ...]


class Objective:
    """A frozen dataclass that inherits this is an objective; the loop knows nothing else of it.

    The loop minimises the sum over k of scales[k] * sums[k] / weights[k], where `weights(batch)` are the denominators of
    the whole batch, known before the forward pass, and `loss` gives the sums of the rows it is shown: rows may come in
    any number of parts. Sums without a "loss" get that total under the name.
    """

    paper: ClassVar[str]
    holds: ClassVar[str]  # what a batch holds, for people
    # Life after training. A subclass declares what it can do; nobody asks for its class or probes for its attributes.
    writes: ClassVar[str] = ""  # left to right: goes on with a "text", or writes the "answer" to a source
    fills: ClassVar[tuple[str, ...]] = ()  # strategies of lm.generate that fill masked positions
    embeds: ClassVar[bool] = False  # has an `embed` of its own for whole texts
    task: ClassVar[str] = ""  # fine-tuning head that lm.convert writes, in transformers' words ("TokenClassification")
    headless: ClassVar[bool] = False  # no head on the vocabulary: an export has none either
    labels: ClassVar[tuple[str, ...]] = ()  # classes that are scored, and of which kind; parameters depend on both
    kind: ClassVar[str | None] = None
    class_weights: ClassVar[tuple[float, ...]] = ()
    head: ClassVar[Any] = None  # between a sequence's state and its scores (`finetune.network.Head`)
    rows: ClassVar[Any] = None  # how labelled examples become rows (`finetune.network.Rows`)
    frame: ClassVar[Any] = None  # special tokens around texts (`lm.data.rows.templates.Frame`), once a tokenizer is known
    parts: ClassVar[tuple[Any, ...]] = ()  # of a mixture: its objectives with their names
    # Special ids. None: the tokenizer's, or there is none.
    start: ClassVar[int | None] = None
    begin: ClassVar[int | None] = None
    end: ClassVar[int | None] = None
    pad: ClassVar[int | None] = None

    prefix: ClassVar[bool] = False  # the tokens of a prompt all see each other
    template: ClassVar[bool] = False  # texts are encoded as the tokenizer's own files say; a field where folders have it
    apart: ClassVar[bool] = False  # its `parts` have examples of their own, and are measured each by itself
    nats: ClassVar[str | None] = (
        None  # the sum that is nats per token of running text, for perplexity and bits per byte
    )

    model: Any
    records: Windows | Documents | Examples  # what `corrupt` is given

    @property
    def scales(self) -> Mapping[str, float]:
        """Name the terms of the loss with what each counts; one, "loss", unless a file says otherwise."""
        return {"loss": 1.0}

    @property
    def special(self) -> tuple[str, ...]:
        """Special tokens that the tokenizer must have; those that it lacks are added behind its vocabulary."""
        return ()

    def resolve(self, tokenizer: Any) -> "Objective":
        """Fill in what the tokenizer knows (sizes, ids, tables); raise UserError when the two do not fit.

        Resolving twice changes nothing: a run's config.json holds the resolved objective.
        """
        raise NotImplementedError

    def sized(self, vocab: int) -> "Objective":
        """Give a model that leaves its vocabulary to the tokenizer that many token ids."""
        return dataclasses.replace(self, model=sized(self.model, self.model.vocab or vocab))

    def study(self, corpus: Any) -> "Objective":
        """Learn what `corrupt` needs of the whole corpus (a table of similar words); called after `resolve`."""
        return self

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        """Make one row from one record; numpy, on the host, pure; the record is read only."""
        raise NotImplementedError

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Draw the parameters, as a tree of `Named` arrays."""
        raise NotImplementedError

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Sum the weights of each term of the loss over the batch: of one, "loss", those of the batch."""
        return {"loss": batch["weights"].sum()}

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        """Sum each term and metric over the rows; `keys_B`, one key a row, is None when nothing may be random."""
        raise NotImplementedError

    def initial_memory(self, rows: int) -> Any:
        """Make what is carried from batch to batch, every leaf with a leading axis of rows; None: nothing."""
        return None

    def peers(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> jax.Array | None:
        """Compute what rows must know of all others of the batch, (B, ...); None: rows are independent.

        Where the batch comes in parts, `loss` finds it for all rows in batch["peers"], without a gradient.
        """
        return None

    def measured(self) -> "Objective":
        """Give the objective that held-out text is measured with: the same parameters, perhaps longer rows or memory."""
        return self

    def prompt(self, tokenizer: Any, text: str) -> Prompt:
        """Make what the network reads before it writes, of a text to go on with or to answer."""
        raise NotImplementedError

    def published(self) -> "Objective":
        """Give the objective of a published model, which reads texts as its makers do: by its tokenizer's template."""
        own = any(field.name == "template" for field in dataclasses.fields(self))
        return dataclasses.replace(self, template=True) if own else self

    def lead(self, tokenizer: Any) -> tuple[int, ...]:
        """List the ids that stand before a document's first token, as in training: of a published model its template's."""
        if self.template:
            return tokenizer.around[0]
        return () if tokenizer.separator is None else (tokenizer.separator,)

    def encode(self, tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode documents whose tokens are scored, without the `lead`: int32 [T] each.

        The tokens of a published model's text are all that its tokenizer makes of it: special tokens written in it and
        those that its template puts behind it are among them.
        """
        if not self.template:
            return tokenizer.encode_batch(list(texts))
        found = tokenizer.encode_batch(list(texts), special=True, template=True)
        return [ids[len(tokenizer.around[0]) :] for ids in found]

    def given(self, ids: np.ndarray) -> Prompt:
        """Make what the network reads of the beginning of a text, encoded, before it says what follows."""
        return Prompt(ids)

    def stops(self, tokenizer: Any) -> tuple[int, ...]:
        """List the ids that end what the network writes."""
        return () if tokenizer.separator is None else (tokenizer.separator,)

    def writer(self, params: Any) -> tuple["Objective", Any]:
        """Give the objective that writes, and its parameters: of a mixture the first part that can."""
        return self, params

    @property
    def inner(self) -> "Objective":
        """Return the objective that is measured, written and exported: of a wrapper the wrapped one."""
        return self

    @property
    def answers(self) -> Answers | None:
        """Describe the answers to labelled examples; None for an objective of running text."""
        return None

    def placeholder(self, example: Any) -> dict[str, Any]:
        """Return values that stand for the label of an example nobody labelled; only the loss would look at them."""
        return {}

    def unbounded(self, tokenizer: Any, examples: Sequence[Any]) -> "Objective":
        """Return the objective without bounds that it took from its own training examples, to answer others."""
        return self

    def masked_network(self) -> Any:
        """Return the network (`Model` or `Electra`) that scores masked tokens; raises UserError where there is none."""
        raise UserError(f"{type(self).__name__} fills no masks: take a run of Masked or Replaced, or a folder of BERT's like")

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array] | None:
        """Guess what the batch asks for, for people to look at: arrays with a leading axis of rows."""
        return None

    def show(self, tokenizer: Any, example: Example, found: Example | None = None) -> str:
        """Write one row as text that a person reads: before and after `corrupt`, and what `predict` found."""
        raise NotImplementedError

    def flops(self) -> float:
        """Count the operations of a training step on one row."""
        return self.records.tokens * flops.train_flops(self.model, self.model.context)


def fit(model: Any, tokenizer: Any) -> Any:
    """Give a model without a vocabulary the tokenizer's; raise UserError when the model's own is too small."""
    check(
        not model.vocab or model.vocab >= tokenizer.vocab,
        f"objective.model.vocab={model.vocab} is smaller than the tokenizer's {tokenizer.vocab}; leave it at 0",
    )
    return sized(model, model.vocab or tokenizer.vocab)


def sized(model: Any, vocab: int) -> Any:
    """Give a model that many token ids."""
    if isinstance(model, EncoderDecoder):
        parts = {name: dataclasses.replace(getattr(model, name), vocab=vocab) for name in ("encoder", "decoder")}
        return dataclasses.replace(model, **parts)
    return dataclasses.replace(model, vocab=vocab)


def resolve(config: Any, corpus: Any) -> tuple[Any, Any]:
    """Give a corpus's tokenizer the special tokens of a config's objective, and the objective what the tokenizer knows."""
    tokenizer = corpus.tokenizer.with_special(config.objective.special)
    corpus = dataclasses.replace(corpus, tokenizer=tokenizer)
    special = ("separator", "start", "begin", "end", "mask", "cls", "sep", "pad")
    for name in [field.name for field in dataclasses.fields(config.objective) if field.name in special]:
        value = getattr(config.objective, name)
        wrong = isinstance(value, int) and not 0 <= value < tokenizer.vocab
        check(not wrong, f"objective.{name}={value} is no id of the tokenizer, which has {tokenizer.vocab}; leave it out")
    objective = config.objective.resolve(tokenizer).study(corpus)
    return dataclasses.replace(config, objective=objective), corpus


def training_batches(config: Any, corpus: Any, rows: tuple[int, int] | None = None) -> Batches:
    """The batches of a run, as a pure function of the step; `rows`: the part that this process feeds."""
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
