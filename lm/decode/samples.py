"""Samples of a run in training: continuations of its config's prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.generate import generate
from lm.decode.prefill import encode_prompts, opened_steps
from lm.decode.strategies import AncestralSampling
from lm.objectives.base import Objective


def check_prompts(objective: Objective, params: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Open the decoding steps and encode the prompts, `params` abstract; raises UserError where either cannot be done."""
    writer = objective.writer(params)[0]
    if writer.writes == "text":
        opened_steps(writer)
        encode_prompts(writer, tokenizer, texts)


def samples(objective: Objective, params: Any, tokenizer: Tokenizer, texts: Sequence[str], seed: int) -> list[tuple[str, str]]:
    """Continue each prompt once at temperature 0.8; return (title, prompt and continuation) pairs."""
    new, strategy = sample_length(tokenizer), AncestralSampling(temperature=0.8)
    written = generate(objective, params, tokenizer, list(texts), max_new_tokens=new, strategy=strategy, seed=seed)
    titles = [f"sample of {sample.prompt!r}" if sample.prompt else "sample" for sample in written]
    return [(title, sample.prompt + sample.text) for title, sample in zip(titles, written)]


def sample_length(tokenizer: Tokenizer) -> int:
    """Return the number of new tokens, about 500 characters: enough to judge a text by, beyond a short context too."""
    return 500 if tokenizer.vocab < 1000 else 160
