"""What a command does with each prompt: go on with it or answer it, fill its masks, predict its target."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.decode.chat import Chat
from lm.decode.generate import ROWS, Sample, to_sample, write
from lm.decode.prefill import batch_prompts, bucket, fits
from lm.decode.writer import Request, Watch, Writer
from lm.errors import check
from lm.sizes import check_memory

Found = Iterator[tuple[int, list[Any]]]  # (place of the prompt, its samples)


@dataclasses.dataclass(frozen=True)
class LeftToRight:
    """Continue texts, answer sources, or reply to conversations (`chat`), token by token."""

    writer: Writer
    ask: Request
    chat: Chat | None = None
    system: str | None = None

    def encode(self, record: Mapping[str, Any]) -> Prompt:
        """Make the prompt of {"prompt": text} or {"messages": [...]}; it must leave room for the new tokens."""
        messages = record.get("messages")
        if messages is None and self.chat:
            said = [{"role": "system", "content": self.system}] if self.system is not None else []
            messages = [*said, {"role": "user", "content": record["prompt"]}]
        if messages is None:
            (prompt,) = self.writer.encode([record["prompt"]])
        else:
            check(self.chat is not None, "this model has no chat template, which messages need")
            check(self.writer.objective.writes == "text", "messages need a model that continues text")
            prompt = Prompt(self.writer.tokenizer.encode(self.chat.render(messages), special=True))
        fits(self.writer.steps, prompt, self.ask.new)
        if draft := getattr(self.ask.sampling, "draft", None):
            fits(draft.steps, prompt, self.ask.new)
        return prompt

    def samples(
        self, prompts: Sequence[tuple[str, Prompt]], numbers: Sequence[int], watch: Watch | None = None
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Give the samples of each prompt as batches get done."""
        for i, rows in write(self.writer, self.ask, [prompt for _, prompt in prompts], numbers, watch):
            yield i, [to_sample(self.writer.tokenizer, prompts[i][0], *row, self.ask.stop) for row in rows]

    def write(
        self, prompts: list[tuple[str, Prompt]], numbers: list[int]
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        for i, samples in self.samples(prompts, numbers):
            yield i, [as_object(sample) for sample in samples]


@dataclasses.dataclass(frozen=True)
class Masks:
    """Fill the masks of texts (`Masked`, ELECTRA's generator)."""

    objective: Any
    params: Any
    tokenizer: Any
    options: dict[str, Any]

    def encode(self, record: Mapping[str, Any]) -> Prompt:
        check("prompt" in record, "a masked model fills texts: give them as prompts, not as messages")
        return Prompt(self.tokenizer.encode(record["prompt"], special=True))

    def samples(self, prompts: Sequence[tuple[str, Prompt]], numbers: Sequence[int], watch: Any = None) -> Found:
        from lm.decode.search.masked import fill

        found = fill(self.objective, self.params, self.tokenizer, [text for text, _ in prompts], **self.options)
        yield from ((i, [one]) for i, one in enumerate(found))

    def write(self, prompts: list[tuple[str, Prompt]], numbers: list[int]) -> Found:
        for i, samples in self.samples(prompts, numbers):
            yield i, [as_object(sample) for sample in samples]


@dataclasses.dataclass(frozen=True)
class Walks:
    """Draw texts behind each prefix from a masked model by Gibbs sampling."""

    objective: Any
    params: Any
    tokenizer: Any
    options: dict[str, Any]

    encode = Masks.encode
    write = Masks.write

    def samples(self, prompts: Sequence[tuple[str, Prompt]], numbers: Sequence[int], watch: Any = None) -> Found:
        from lm.decode.search.masked import gibbs

        for i, (text, _) in enumerate(prompts):
            yield i, gibbs(self.objective, self.params, self.tokenizer, prefix=text, **self.options)


@dataclasses.dataclass(frozen=True)
class Targets:
    """Predict the target of each source all at once (Mask-Predict)."""

    objective: Any
    params: Any
    tokenizer: Any
    options: dict[str, Any]
    count: int = 1

    write = Masks.write

    def encode(self, record: Mapping[str, Any]) -> Prompt:
        check(bool(record.get("prompt")), "an empty prompt: this model writes an answer to a source, give it a text")
        ids = self.tokenizer.encode(record["prompt"], special=True)
        room = self.objective.limits[0] - 2
        check(len(ids) <= room, f"a source of {len(ids)} tokens passes the encoder's room of {room}: shorten it")
        return Prompt(np.zeros(1, np.int32), ids)

    def samples(self, prompts: Sequence[tuple[str, Prompt]], numbers: Sequence[int], watch: Any = None) -> Found:
        from lm.decode.search.mask_predict import mask_predict

        found = mask_predict(self.objective, self.params, [prompt.source for _, prompt in prompts], **self.options)
        for i, ranked in enumerate(found):
            yield (
                i,
                [
                    Sample(
                        prompts[i][0], self.tokenizer.decode(one.ids), np.asarray(one.ids).tolist(), float(one.logprob)
                    )
                    for one in ranked[: self.count]
                ],
            )


def as_object(sample: Any) -> dict[str, Any]:
    """Give what a file holds of a sample."""
    found = {"prompt": sample.prompt, "text": sample.text, "tokens": sample.tokens, "logprob": sample.logprob}
    if masks := getattr(sample, "masks", None):
        found["masks"] = [[dataclasses.asdict(one) for one in candidates] for candidates in masks]
    return found


def check_rows(writer: Writer, ask: Request) -> None:
    """Raise UserError where the rows of one prompt take more memory than there is: their states, and scores of each."""
    from lm.decode.strategies import rows_each

    rows = rows_each(ask)
    if rows <= ROWS:
        return
    token = np.zeros(1, np.int32)
    prompts = batch_prompts([Prompt(token, token if writer.steps.source_limit else None)] * 2)

    def begin(params):
        prepared = writer.steps.prepare(params, 2)
        states, kept = writer.steps.prefill(prepared, prompts, bucket(ask.new))
        return writer.steps.logits(prepared, states[:, -1]), kept

    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(begin, writer.params))) // 2
    check_memory(rows * (size + 9 * ask.new), f"writing {rows:,} texts at a time", "ask for fewer samples, beams or tokens")
