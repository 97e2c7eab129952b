"""Next-token prediction with segment-level recurrence: Transformer-XL (Dai et al. 2019).

python -m lm.objectives.recurrent [--config=configs/xl_nano.py]
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.prompts import Prompt, continued
from lm.data.rows.records import Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_choices, check_range
from lm.models.adaptive import adaptive_cross_entropy
from lm.models.memory import MemoryModel, TransformerXL, empty_memory
from lm.objectives.base import Batch, Example, Objective, Sums


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths for held-out text, where they differ from training: tgt_len, mem_len, clamp_len of the paper's scripts."""

    context: int
    memory: int  # tokens attended to before the segment
    clamp: int = 0  # longest distance, 0: none
    same_length: bool = True  # every query has as many keys

    def __post_init__(self):
        check_range(self, 1, float("inf"), "context")
        check_range(self, 0, float("inf"), "memory", "clamp")


@dataclass(frozen=True, kw_only=True)
class Recurrent(Objective):
    """Cross-entropy of each token given its segment and a memory of earlier ones; rows continue in the next batch.

    `borders` "cross": attention, memory and targets cross document borders, the corpus being one text, as in the paper.
    "stop": a document attends to itself alone, in the memory too, so that the split into rows does not matter. Both find
    the borders by the separators; the choice replaces `data.packing`, which has no effect here. `evaluation`: lengths for
    held-out text; None: those of the model.
    """

    paper: ClassVar[str] = "Dai et al. 2019 (Transformer-XL)"
    holds: ClassVar[str] = "tokens targets weights segments (B, T); a memory of (B, L, M, D) goes from batch to batch"
    writes: ClassVar[str] = "text"
    nats: ClassVar[str] = "loss"

    model: TransformerXL
    borders: Literal["cross", "stop"] = "cross"
    evaluation: Lengths | None = None
    chunk: int = 0  # tokens a device whose logits of a vocabulary cluster are computed at once; 0: chosen
    template: bool = False  # texts are encoded by the tokenizer's template (published models)
    separator: int | None = None  # end-of-document id, set by `resolve`

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "chunk")

    @property
    def records(self) -> Windows:
        # In reading order: row b continues row b of the batch before, whose states are in the memory.
        return Windows(length=self.model.context + 1, stride=self.model.context, order="reading")

    def resolve(self, tokenizer: Tokenizer) -> "Recurrent":
        check(
            self.borders == "cross" or tokenizer.separator is not None,
            "borders='stop' needs a tokenizer with a separator between documents; take borders='cross'",
        )
        return super().resolve(tokenizer)

    def measured(self) -> "Recurrent":
        """Return the objective with the lengths of `evaluation`; the parameters are the same."""
        if self.evaluation is None:
            return self
        model = dataclasses.replace(self.model, **dataclasses.asdict(self.evaluation))
        return dataclasses.replace(self, model=model, evaluation=None)

    def without_memory(self) -> "Recurrent":
        """Return the objective without memory, to measure the gain from it."""
        model = dataclasses.replace(self.model, memory=0)
        return dataclasses.replace(self, model=model, evaluation=None)

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        tokens, real = record["tokens"], (record["segments"] > 0)[:-1]
        # One segment across documents: attention, memory and targets are those of one long text.
        segments = real.astype(np.int32)
        if self.borders == "stop":
            # A document starts at the separator before it: number 1 continues from the row before.
            segments = segments * (1 + np.cumsum(tokens[:-1] == self.separator, dtype=np.int32))
        return {"tokens": tokens[:-1], "targets": tokens[1:], "weights": record["weights"][1:], "segments": segments}

    def prompt(self, tokenizer: Tokenizer, text: str) -> Prompt:
        return continued(tokenizer, text, self.template)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        return MemoryModel(self.model).init(key, batch["tokens"])["params"]

    def initial_memory(self, rows: int) -> Any:
        return empty_memory(self.model, rows)

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        model, variables = MemoryModel(self.model), {"params": params}
        h_BTD, memory = model.apply(variables, batch["tokens"], batch["segments"], memory, keys_B=keys_B)
        head = model.apply(variables, method="head")
        sums = adaptive_cross_entropy(h_BTD, head, batch["targets"], batch["weights"], chunk=self.chunk)
        count = batch["weights"].sum()
        return {"loss": (sums["total"], count), "accuracy": (sums["hits"], count)}, memory

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        model, variables = MemoryModel(self.model), {"params": params}
        h_BTD, _ = model.apply(variables, batch["tokens"], batch["segments"])
        head = model.apply(variables, method="head")
        # A row at a time, to bound the logits in memory.
        guess = jax.lax.map(lambda h_TD: jnp.argmax(head.logits(h_TD), -1), h_BTD)
        return {"guess": guess.astype(jnp.int32)}

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        counted = example["weights"] > 0
        lines = [f"reads   {tokenizer.decode(example['tokens'], special=True)!r}"]
        lines += [f"writes  {tokenizer.decode(example['targets'][counted], special=True)!r}"]
        if found is not None:
            guess = found["guess"]
            right = np.mean(guess[counted] == example["targets"][counted]) if counted.any() else 0.0
            lines += [f"guesses {tokenizer.decode(guess[counted], special=True)!r} ({right:.0%} right, without memory)"]
        return "\n".join(lines)

    def flops(self) -> float:
        """Count 6 operations a parameter and token, with the memory's keys and values, relative positions and scores.

        Tail clusters of the vocabulary are not counted: how many tokens reach them depends on the text.
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
