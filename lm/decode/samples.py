"""Samples of a run in training: continuations of its config's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.generate import generate
from lm.decode.prefill import encode_prompts, fits, opened_steps
from lm.decode.strategies import AncestralSampling
from lm.errors import UserError
from lm.objectives.base import Objective


def check_prompts(objective: Objective, params: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Encode the prompts, `params` abstract; raises UserError for one that leaves no context for its continuation."""
    writer = objective.writer(params)[0]
    if writer.writes != "text":
        return
    steps = opened_steps(writer)
    for text, prompt in zip(texts, encode_prompts(writer, tokenizer, texts)):
        try:
            fits(steps, prompt, sample_length(objective))
        except UserError as error:
            raise UserError(f"samples: {text[:40]!r}: {error}") from error


def samples(objective: Objective, params: Any, tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """Continue each prompt once at temperature 0.8; return (title, prompt and continuation) pairs."""
    new, strategy = sample_length(objective), AncestralSampling(temperature=0.8)
    written = generate(objective, params, tokenizer, list(texts), max_new_tokens=new, strategy=strategy, seed=seed)
    titles = [f"sample of {sample.prompt!r}" if sample.prompt else "sample" for sample in written]
    return [(title, sample.prompt + sample.text) for title, sample in zip(titles, written)]


def sample_length(objective: Objective) -> int:
    """Return the number of new tokens: 200, or half the context where that is less."""
    return min(200, objective.model.context // 2)
