"""Next-token prediction with a memory of earlier segments: Transformer-XL (Dai et al. 2019).

    python -m lm.objectives.recurrent [--config=configs/xl_nano.py]
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.prompts import continued
from lm.data.rows.records import Windows
from lm.errors import check, check_choices, check_range
from lm.models.adaptive import adaptive_cross_entropy
from lm.models.memory import MemoryModel, TransformerXL, empty_memory
from lm.objectives.base import Objective, fit


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """How held-out text is read, where not as in training: the table in the paper's scripts (tgt, mem, clamp)."""

    context: int
    memory: int
    clamp: int = 0
    same_length: bool = True

    def __post_init__(self):
        check_range(self, 1, float("inf"), "context")
        check_range(self, 0, float("inf"), "memory", "clamp")


@dataclass(frozen=True, kw_only=True)
class Recurrent(Objective):
    """Cross-entropy of each token given its segment and the memory; the rows of a batch go on in the next one.

    `borders` "cross": attention, memory and targets run over the ends of documents, the corpus being one text, as in the
    paper. "stop": a document sees itself only, in the memory too, so that rows do not matter to it. Both read the
    borders from the separators; the choice replaces `data.packing`, which makes no difference here.
    `evaluation` are the lengths for held-out text; None: those of the model.
    """

    paper: ClassVar[str] = "Dai et al. 2019 (Transformer-XL)"
    holds: ClassVar[str] = "tokens targets weights segments (B, T); a memory of (B, L, M, D) goes from batch to batch"
    writes: ClassVar[str] = "text"
    nats: ClassVar[str] = "loss"

    model: TransformerXL
    borders: Literal["cross", "stop"] = "cross"
    evaluation: Lengths | None = None
    chunk: int = 0  # tokens a device that go through a cluster of the vocabulary at once; 0: chosen
    template: bool = False  # texts are encoded as the tokenizer's own files say (published models)
    separator: int | None = None  # the tokenizer's end-of-document token, filled in by `resolve`

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "chunk")

    @property
    def records(self) -> Windows:
        return Windows(length=self.model.context + 1, stride=self.model.context, order="reading")

    def resolve(self, tokenizer):
        check(
            self.borders == "cross" or tokenizer.separator is not None,
            "borders='stop' needs a tokenizer with a separator between documents; take borders='cross'",
        )
        return dataclasses.replace(self, model=fit(self.model, tokenizer), separator=tokenizer.separator)

    def measured(self) -> "Recurrent":
        """Read held-out text in `evaluation`'s lengths; the parameters are the same."""
        if self.evaluation is None:
            return self
        model = dataclasses.replace(self.model, **dataclasses.asdict(self.evaluation))
        return dataclasses.replace(self, model=model, evaluation=None)

    def without_memory(self) -> "Recurrent":
        """Read every segment by itself: what the memory is worth is the difference."""
        model = dataclasses.replace(self.model, memory=0)
        return dataclasses.replace(self, model=model, evaluation=None)

    def corrupt(self, rng, record):
        tokens, real = record["tokens"], (record["segments"] > 0)[:-1]
        segments = real.astype(np.int32)
        if self.borders == "stop":
            # A document begins at the separator before it: 1 is the one that goes on from the row before.
            segments = segments * (1 + np.cumsum(tokens[:-1] == self.separator, dtype=np.int32))
        return {"tokens": tokens[:-1], "targets": tokens[1:], "weights": record["weights"][1:], "segments": segments}

    def prompt(self, tokenizer, text):
        return continued(tokenizer, text, self.template)

    def init(self, key, batch):
        return MemoryModel(self.model).init(key, batch["tokens"])["params"]

    def initial_memory(self, rows):
        return empty_memory(self.model, rows)

    def loss(self, params, batch, memory, keys_B):
        model, variables = MemoryModel(self.model), {"params": params}
        h_BTD, memory = model.apply(variables, batch["tokens"], batch["segments"], memory, keys_B=keys_B)
        head = model.apply(variables, method="head")
        sums = adaptive_cross_entropy(h_BTD, head, batch["targets"], batch["weights"], chunk=self.chunk)
        count = batch["weights"].sum()
        return {"loss": (sums["total"], count), "accuracy": (sums["hits"], count)}, memory

    def predict(self, params, batch):
        model, variables = MemoryModel(self.model), {"params": params}
        h_BTD, _ = model.apply(variables, batch["tokens"], batch["segments"])
        head = model.apply(variables, method="head")
        guess = jax.lax.map(lambda h_TD: jnp.argmax(head.logits(h_TD), -1), h_BTD)  # all logits of one row at a time
        return {"guess": guess.astype(jnp.int32)}

    def show(self, tokenizer, example, found=None):
        counted = example["weights"] > 0
        lines = [f"reads   {tokenizer.decode(example['tokens'], special=True)!r}"]
        lines += [f"writes  {tokenizer.decode(example['targets'][counted], special=True)!r}"]
        if found is not None:
            guess = found["guess"]
            right = np.mean(guess[counted] == example["targets"][counted]) if counted.any() else 0.0
            lines += [f"guesses {tokenizer.decode(guess[counted], special=True)!r} ({right:.0%} right, without memory)"]
        return "\n".join(lines)

    def flops(self) -> float:
        """Count 6 operations a parameter that a token passes, the memory's keys and values, distances and scores.

        Of a tail cluster only its tokens pass, how many the text says; it is not counted.
        """
        c = self.model
        inner, keys = c.heads * c.head_size, c.memory + c.context
        projections = c.width * inner * (2 * c.context + 2 * keys)
        positions = c.width * inner * keys * (1 if c.position_dropout else 0)  # without dropout shared by all rows
        scores = 3 * inner * c.context * keys
        vocabulary = c.width * ((c.cutoffs[0] + len(c.cutoffs)) if c.cutoffs else c.vocab)
        tokens = c.context * (2 * c.width * c.mlp_size * c.depth + vocabulary)
        return 6.0 * (c.depth * (projections + positions + scores) + tokens)


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/xl_nano.py")
