"""From an objective and its parameters to steps, prompts and rows of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.recurrent import LSTMSteps, MemorySteps, PageSteps
from lm.decode.steps import Prompts, Seq2SeqSteps, StackSteps, Steps
from lm.errors import UserError, check
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.lstm import LSTM
from lm.models.memory import TransformerXL
from lm.models.transformer import Transformer
from lm.models.two_stream import XLNet

KINDS = {EncoderDecoder: Seq2SeqSteps, TransformerXL: MemorySteps, LSTM: LSTMSteps, XLNet: PageSteps}


def opened_steps(objective: Any) -> Steps:
    """Give the steps of an objective's network; raises UserError for one that does not write from left to right."""
    check(
        objective.writes,
        f"a model of {type(objective).__name__} does not write from left to right",
    )
    if isinstance(objective.model, Transformer):
        return StackSteps(objective.model, prefix=objective.prefix)
    return KINDS[type(objective.model)](objective.model)


def encode_prompts(objective: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Prompt]:
    """Make the prompt of each text as the objective asks for it."""
    return [objective.prompt(tokenizer, text) for text in texts]


def fits(steps: Steps, prompt: Prompt, new: int) -> None:
    """Raise UserError when a prompt leaves no room for the new tokens."""
    check(new >= 1, f"max_new_tokens={new} must be at least 1")
    length, limit = len(prompt.tokens), steps.limit
    if limit is not None and length + new > limit:
        left = limit - length
        way = f"lower max_new_tokens to {left}" if left > 0 else "shorten the prompt"
        raise UserError(f"{length} prompt tokens + {new} new ones pass the model's context of {limit}: {way}")
    if prompt.source is not None and len(prompt.source) > steps.source_limit:
        raise UserError(f"a source of {len(prompt.source)} tokens passes the encoder's context of {steps.source_limit}")


def check_finite(scores: Any, what: str) -> None:
    """Raise UserError where a log-probability on the host is NaN or infinite: no text or figure may come of it."""
    check(
        bool(np.isfinite(scores).all()),
        f"the model gives no finite score for {what}: its weights hold NaN or infinity, or its states overflow",
    )


def bucket(length: int) -> int:
    """Round up to 16, 24, 32, 48, 64, 96, ...: few lengths to compile for, at most half of them padding."""
    size = 16
    while size < length:
        size *= 2
    return 3 * size // 4 if size > 16 and 3 * size // 4 >= length else size


def batch_prompts(prompts: Sequence[Prompt]) -> Prompts:
    """Lay prompts into rows of a bucket's width: tokens at the right end, sources at the left."""
    tokens_BT, segments_BT = pad([prompt.tokens for prompt in prompts], left=True)
    if prompts[0].source is None:
        return Prompts(tokens_BT, segments_BT)
    return Prompts(tokens_BT, segments_BT, *pad([prompt.source for prompt in prompts], left=False))


def pad(sequences: Sequence[np.ndarray], left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Give (tokens, segments), int32 (B, width of the bucket)."""
    longest = max(map(len, sequences))
    width = 1 if longest == 1 else bucket(longest)  # an answer begins with one token
    tokens, segments = np.zeros((2, len(sequences), width), np.int32)
    for i, ids in enumerate(sequences):
        part = slice(width - len(ids), None) if left else slice(len(ids))
        tokens[i, part], segments[i, part] = ids, 1
    return tokens, segments
