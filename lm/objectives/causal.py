"""Next-token prediction: GPT (Radford et al. 2018, 2019; Brown et al. 2020).

python -m lm.objectives.causal [--config=configs/gpt_nano.py]
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from lm.data.rows.packing import lay
from lm.data.rows.prompts import Prompt, continued
from lm.data.rows.records import Documents, Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_choices, check_range
from lm.models.heads import cross_entropy
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Batch, Example, Objective, Sums


@dataclass(frozen=True, kw_only=True)
class Causal(Objective):
    """Cross-entropy of each token given the tokens before it in its document.

    `z_loss` is the coefficient of log(Z)^2, which keeps the logits from drifting (Chowdhery et al. 2022, 5; 1e-4 there).
    `chunk`: tokens a device whose logits are computed at once, 0 chooses.

    `dialogue` reads documents whose fields are turns (Zhang et al. 2020, DialoGPT): turn, separator, turn, separator, ...,
    as many whole dialogues a row as fit. "all" counts every token but a dialogue's first, "responses" those of the turns
    after the first, each with the separator that ends it.
    """

    paper: ClassVar[str] = "Radford et al. 2018, 2019; Brown et al. 2020 (GPT); Zhang et al. 2020 (DialoGPT)"
    holds: ClassVar[str] = "tokens targets weights segments positions (B, T)"
    writes: ClassVar[str] = "text"

    model: Transformer
    z_loss: float = 0.0
    chunk: int = 0
    dialogue: Literal["off", "all", "responses"] = "off"
    template: bool = False  # prompts are encoded by the tokenizer's template (published models)
    separator: int | None = None  # end-of-document id, set by `resolve`

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "chunk", "z_loss")

    @property
    def nats(self) -> str | None:
        if self.dialogue == "responses":
            return None
        return "nll" if self.z_loss else "loss"

    @property
    def records(self) -> Windows | Documents:
        if self.dialogue != "off":
            return Documents(fields=0, limit=(self.model.context + 1,))
        # One token more than the network reads, for the last target; the next window starts with it, so none is lost.
        return Windows(length=self.model.context + 1, stride=self.model.context)

    def resolve(self, tokenizer: Tokenizer) -> "Causal":
        check(
            self.dialogue == "off" or tokenizer.separator is not None,
            f"objective.dialogue={self.dialogue} needs a tokenizer with a separator to end turns with: not Characters",
        )
        return super().resolve(tokenizer)

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        if self.dialogue != "off":
            return self.turns(record["documents"])
        tokens, segments = record["tokens"], record["segments"]
        # The separator that ends a document also starts the next one: the only target across a border.
        inside = (segments[:-1] == segments[1:]) | (tokens[1:] == self.separator)
        return {
            "tokens": tokens[:-1],
            "targets": tokens[1:],
            "weights": record["weights"][1:] * inside,
            "segments": segments[:-1],
            "positions": record["positions"][:-1],
        }

    def turns(self, dialogues: list[list[np.ndarray]]) -> Example:
        """Lay dialogues, each a list of turns, out in a row."""
        ending, parts = np.array([self.separator], np.int32), []
        for turns in dialogues:
            tokens = np.concatenate([part for turn in turns for part in (turn, ending)])
            # A target is counted by its own index: the second turn starts behind the first and its separator.
            first = len(turns[0]) + 1 if self.dialogue == "responses" else 0
            parts.append((tokens[:-1], tokens[1:], np.arange(1, len(tokens)) >= first))
        read, targets, counted = zip(*parts) if parts else ((), (), ())
        length = self.model.context
        inputs, segments, positions = lay(read, length)
        return {
            "tokens": inputs,
            "targets": lay(targets, length)[0],
            "weights": lay(counted, length)[0].astype(np.float32),
            "segments": segments,
            "positions": positions,
        }

    def prompt(self, tokenizer: Tokenizer, text: str) -> Prompt:
        """Encode a text to continue, or a dialogue with a turn a line, to write the next turn."""
        if self.dialogue == "off":
            return continued(tokenizer, text, self.template)
        # The last turn is closed, too: it is the next speaker's, not a continuation, that is asked for.
        turns = [np.append(tokenizer.encode(turn), self.separator) for turn in text.split("\n")]
        return Prompt(np.concatenate(turns).astype(np.int32))

    def init(self, key: jax.Array, batch: Batch) -> Any:
        return Model(self.model).init(key, batch["tokens"])["params"]

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        model, variables = Model(self.model), {"params": params}
        h_BTD, _ = model.apply(variables, batch["tokens"], batch["positions"], batch["segments"], keys_B=keys_B)
        head = model.apply(variables, method="head")
        sums = cross_entropy(h_BTD, head, batch["targets"], batch["weights"], z_loss=self.z_loss, chunk=self.chunk)
        count = batch["weights"].sum()
        result = {"loss": (sums["total"], count), "accuracy": (sums["hits"], count)}
        if self.z_loss:
            # Perplexity must not include the z-loss.
            result |= {"nll": (sums["nll"], count), "z": (sums["z"], count)}
        return result, memory

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        counted = example["targets"][example["weights"] > 0]
        lines = [f"reads  {tokenizer.decode(example['tokens'], special=True)!r}"]
        return "\n".join([*lines, f"writes {tokenizer.decode(counted, special=True)!r}"])


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/gpt_nano.py")
