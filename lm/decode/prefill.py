"""Before the loop: the decoding steps of an objective's network, encoded prompts, padded batches of few widths."""

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
from lm.objectives.base import Objective

KINDS = {EncoderDecoder: Seq2SeqSteps, TransformerXL: MemorySteps, LSTM: LSTMSteps, XLNet: PageSteps}


def opened_steps(objective: Objective) -> Steps:
    """Return the steps of an objective's network; raises UserError for one that does not write from left to right."""
    check(bool(objective.writes), f"a model of {type(objective).__name__} does not write from left to right")
    if isinstance(objective.model, Transformer):
        return StackSteps(objective.model, prefix=objective.prefix)
    return KINDS[type(objective.model)](objective.model)


def encode_prompts(objective: Objective, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Prompt]:
    return [objective.prompt(tokenizer, text) for text in texts]


def fits(steps: Steps, prompt: Prompt, new: int) -> None:
    """Raise UserError where the context cannot hold a prompt and the new tokens."""
    check(new >= 1, f"max_new_tokens={new} must be at least 1")
    length, limit = len(prompt.tokens), steps.limit
    if limit is not None and length + new > limit:
        remaining = limit - length
        remedy = f"lower max_new_tokens to {remaining}" if remaining > 0 else "shorten the prompt"
        raise UserError(f"{length} prompt tokens + {new} new ones pass the model's context of {limit}: {remedy}")
    if prompt.source is not None and len(prompt.source) > steps.source_limit:
        raise UserError(f"a source of {len(prompt.source)} tokens passes the encoder's context of {steps.source_limit}")


def check_finite(scores: Any, subject: str) -> None:
    """Raise UserError where a log-probability on the host is NaN or infinite: no text or figure may come from it."""
    check(
        bool(np.isfinite(scores).all()),
        f"the model gives no finite score for {subject}: its weights hold NaN or infinity, or its states overflow",
    )


def bucket(length: int) -> int:
    """Round up to 16, 24, 32, 48, 64, 96, ...: few lengths to compile for, at most half of them padding."""
    size = 16
    while size < length:
        size *= 2
    return 3 * size // 4 if size > 16 and 3 * size // 4 >= length else size


def batch_prompts(prompts: Sequence[Prompt]) -> Prompts:
    """Pad prompts to a bucket's width: tokens on the left, sources on the right."""
    tokens_BT, segments_BT = pad([prompt.tokens for prompt in prompts], left=True)
    source = () if prompts[0].source is None else pad([prompt.source for prompt in prompts], left=False)
    return Prompts(tokens_BT, segments_BT, *source)  # type: ignore[arg-type]  # on the host


def pad(sequences: Sequence[np.ndarray], left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, segments), int32 (B, width of the bucket); segment 0 is padding."""
    longest = max(map(len, sequences))
    width = 1 if longest == 1 else bucket(longest)  # an answer starts with one token
    tokens, segments = np.zeros((2, len(sequences), width), np.int32)
    for i, ids in enumerate(sequences):
        part = slice(width - len(ids), None) if left else slice(len(ids))
        tokens[i, part], segments[i, part] = ids, 1
    return tokens, segments
