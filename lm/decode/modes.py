"""Jobs of a command on each record of its input: continue or answer it token by token, or fill its masks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.decode.chat import Chat
from lm.decode.generate import ROWS, decode_batches, to_sample
from lm.decode.infilling import Filler, Infilling
from lm.decode.prefill import batch_prompts, bucket
from lm.decode.results import Filled, Sample
from lm.decode.sliding import passes
from lm.decode.strategies import Strategy
from lm.decode.writer import Request, Watch, Writer
from lm.errors import check
from lm.sizes import check_memory


@dataclass(frozen=True)
class LeftToRight:
    """Continue texts, answer sources, or reply to conversations (`chat`), token by token."""

    writer: Writer
    strategy: Strategy
    request: Request
    chat: Chat | None = None
    system: str | None = None

    def encode(self, record: Mapping[str, Any]) -> Prompt:
        """Encode {"prompt": text} or {"messages": [...]}; raises UserError where the context cannot hold the new tokens."""
        messages = record.get("messages")
        if messages is None and self.chat:
            system = [{"role": "system", "content": self.system}] if self.system is not None else []
            messages = [*system, {"role": "user", "content": record["prompt"]}]
        if messages is None:
            (prompt,) = self.writer.encode([record["prompt"]])
        else:
            check(self.chat is not None, "this model has no chat template, which messages need")
            check(self.writer.objective.writes == "text", "messages need a model that continues text")
            prompt = Prompt(self.writer.tokenizer.encode(self.chat.render(messages), special=True))
        self.strategy.fits(self.writer, prompt, self.request)
        return prompt

    def notice(self, prompt: Prompt) -> str:
        """Say that a text goes on beyond the context; "" where it does not."""
        steps = self.writer.steps
        if not (self.strategy.slides and passes(steps, prompt, self.request.new)):
            return ""
        return f"the context holds {steps.limit} tokens: beyond it the text goes on from the last {steps.limit // 2}"

    def samples(
        self, prompts: Sequence[tuple[str, Prompt]], numbers: Sequence[int], watch: Watch | None = None
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (index of the prompt, its samples) as batches finish; `numbers`: see `occurrences`."""
        encoded = [prompt for _, prompt in prompts]
        for i, rows in decode_batches(self.writer, self.strategy, self.request, encoded, numbers, watch):
            yield i, [to_sample(self.writer.tokenizer, prompts[i][0], *row, self.request.stop) for row in rows]


@dataclass(frozen=True)
class Infill:
    """Fill the masks of texts, draw whole texts, or predict whole targets."""

    filler: Filler
    strategy: Infilling

    def encode(self, record: Mapping[str, Any]) -> Prompt:
        return self.strategy.encode(self.filler, record)

    def notice(self, prompt: Prompt) -> str:
        return ""

    def samples(
        self, prompts: Sequence[tuple[str, Prompt]], numbers: Sequence[int]
    ) -> Iterator[tuple[int, list[Sample] | list[Filled]]]:
        """Yield (index of the prompt, its samples); a repeated prompt has the same samples, whatever `numbers`."""
        return enumerate(self.strategy.fill(self.filler, prompts))


def check_rows(writer: Writer, strategy: Strategy, request: Request) -> None:
    """Raise UserError where the rows of one prompt take more memory than there is: their states, and scores of each."""
    rows = strategy.rows(request)
    if rows <= ROWS:
        return
    token = np.zeros(1, np.int32)
    prompts = batch_prompts([Prompt(token, token if writer.steps.source_limit else None)] * 2)

    def prefill(params: Any) -> tuple[jax.Array, Any]:
        prepared = writer.steps.prepare(params, 2)
        states, kept = writer.steps.prefill(prepared, prompts, bucket(request.new))
        return writer.steps.logits(prepared, states[:, -1]), kept

    # Traced for two rows, without computing: a single row has a layout of its own.
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(prefill, writer.params))) // 2
    check_memory(rows * (size + 9 * request.new), f"writing {rows:,} texts at a time", "ask for fewer samples, beams or tokens")
