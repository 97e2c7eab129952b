"""Text in, text out: prompts are encoded, continued in batches and cut at the stop strings."""

import bisect
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.tokenizers import Tokenizer
from lm.decode.loop import begin, go_on
from lm.decode.sampling import Sampling
from lm.decode.steps import StackSteps, Steps
from lm.errors import UserError, check
from lm.models.transformer import Transformer

ROWS = 64  # decoded at a time
CHUNK = 16  # new tokens between two looks at the text, where stop strings are given


@dataclass(frozen=True)
class Sample:
    """A continuation. `tokens`: the new ids, a stop token that ended them included; `logprob`: their summed natural
    log-probability under the model itself (no temperature, no truncation); `text`: without stop token or string."""

    prompt: str
    text: str
    tokens: list[int]
    logprob: float


def generate(
    config: Transformer,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    strategy: str = "sample",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_samples: int = 1,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> list[Sample]:
    """Continue each prompt `num_samples` times; the samples of a prompt are neighbours in the result.

    A sample depends on the seed, its prompt and its number, not on the other prompts (but for float rounding). A
    continuation ends at the tokenizer's separator, before the first of the `stop` strings in its text, or after
    `max_new_tokens`. An empty prompt begins a document. Raises UserError where prompt and new tokens pass the context.
    """
    sampling = Sampling(strategy=strategy, temperature=temperature, top_k=top_k, top_p=top_p)
    check(num_samples >= 1, f"num_samples={num_samples} must be at least 1")
    encoded = [encode(tokenizer, prompt) for prompt in prompts]
    for ids in encoded:
        fits(config, len(ids), max_new_tokens)
    stops = () if tokenizer.separator is None else (tokenizer.separator,)
    stop = tuple(filter(None, stop))

    def finished(ids):
        text = tokenizer.decode(ids)
        return any(s in text for s in stop)

    keys = row_keys(seed, encoded, num_samples)
    samples = []
    size = max(1, ROWS // num_samples)
    with jax.sharding.use_abstract_mesh(NO_MESH):
        steps = StackSteps(config)
        prepared = steps.prepare(params, min(len(prompts), size) * num_samples)
        for low in range(0, len(prompts), size):
            part = slice(low, low + size)
            rows = continue_tokens(
                steps,
                prepared,
                encoded[part],
                keys[low * num_samples : (low + size) * num_samples],
                sampling=sampling,
                new=max_new_tokens,
                stops=stops,
                finished=finished if stop else None,
            )
            texts = [prompt for prompt in prompts[part] for _ in range(num_samples)]
            samples += [to_sample(tokenizer, prompt, *row, stop) for prompt, row in zip(texts, rows, strict=True)]
    return samples


NO_MESH = jax.sharding.AbstractMesh((), ())  # a batch of prompts need not divide among the devices of training


def encode(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Encode a prompt as training saw the beginning of a document: after the separator.

    Without a separator (characters) a text just begins; the empty one then begins after a line's end, or after token 0
    where the alphabet has none.
    """
    ids = tokenizer.encode(prompt)
    check(not prompt or len(ids) > 0, f"prompt {prompt!r} has no tokens in this run's tokenizer; give one with text in it")
    if tokenizer.separator is not None:
        return np.concatenate([[tokenizer.separator], ids]).astype(np.int32)
    if len(ids):
        return ids
    line_end = tokenizer.token_id("\n")
    return np.array([0 if line_end is None else line_end], np.int32)


def fits(config: Transformer, length: int, new: int) -> None:
    """Raise UserError when a prompt of `length` tokens (its separator included) leaves no room for the new ones."""
    check(new >= 1, f"max_new_tokens={new} must be at least 1")
    if length + new > config.context:
        left = config.context - length
        way = f"lower max_new_tokens to {left}" if left > 0 else "shorten the prompt"
        raise UserError(f"{length} prompt tokens + {new} new ones pass the model's context of {config.context}: {way}")


def row_keys(seed: int, encoded: Sequence[np.ndarray], num_samples: int) -> jax.Array:
    """Make one key a row from the seed, the prompt's tokens, how often they came before, and the sample's number."""
    seen: Counter[bytes] = Counter()
    numbers = []
    for ids in encoded:
        name = ids.tobytes()
        numbers += [(zlib.crc32(name), seen[name] + i) for i in range(num_samples)]
        seen[name] += num_samples
    prompt_B, sample_B = np.array(numbers, np.uint32).reshape(-1, 2).T
    fold = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p), s))
    return fold(jnp.asarray(prompt_B), jnp.asarray(sample_B))


def bucket(length: int) -> int:
    """Round up to 16, 24, 32, 48, 64, 96, ...: few lengths to compile for, at most half of them padding."""
    size = 16
    while size < length:
        size *= 2
    return 3 * size // 4 if size > 16 and 3 * size // 4 >= length else size


def continue_tokens(
    steps: Steps,
    prepared: Any,
    encoded: Sequence[np.ndarray],
    keys_B: jax.Array,
    *,
    sampling: Sampling,
    new: int,
    stops: tuple[int, ...] = (),
    finished: Any = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Continue token sequences by up to `new` tokens; give each row's (new ids, their log-probabilities).

    `finished`: tells of new ids on the host whether their text holds a stop string. It is asked between stretches of
    the loop, so a row may run some tokens on: whoever asked cuts them off.
    """
    width = bucket(max(len(ids) for ids in encoded))
    tokens_BT, segments_BT = np.zeros((2, len(encoded), width), np.int32)
    for i, ids in enumerate(encoded):
        tokens_BT[i, width - len(ids) :], segments_BT[i, width - len(ids) :] = ids, 1
    how = {"steps": steps, "sampling": sampling, "stops": stops}
    repeats = len(keys_B) // len(encoded)
    progress = begin(prepared, tokens_BT, segments_BT, keys_B, room=bucket(new), repeats=repeats, **how)
    count = 1
    while count < new:
        until = min(count + CHUNK, new) if finished else new
        progress = go_on(prepared, progress, keys_B, until, **how)
        count = until
        if finished and count < new:
            tokens, length, done = jax.device_get((progress.tokens_BT, progress.length_B, progress.done_B))
            done = np.array([d or finished(row[:n]) for row, n, d in zip(tokens, length, done)])
            if done.all():
                break
            progress = progress.replace(done_B=jnp.asarray(done))
    tokens, logprobs, length = jax.device_get((progress.tokens_BT, progress.logprobs_BT, progress.length_B))
    return [(row[:n], logprob[:n]) for row, logprob, n in zip(tokens, logprobs, length)]


def to_sample(tokenizer: Tokenizer, prompt: str, ids: np.ndarray, logprobs: np.ndarray, stop: Sequence[str]) -> Sample:
    """Decode new ids; cut the text before the first stop string, and the ids after the token that completes it."""
    text = tokenizer.decode(ids)
    ends = [at for at in (text.find(s) for s in stop) if at >= 0]
    if ends:
        text = text[: min(ends)]
        count = 1 + bisect.bisect_left(
            range(1, len(ids)), True, key=lambda n: any(s in tokenizer.decode(ids[:n]) for s in stop)
        )
        ids, logprobs = ids[:count], logprobs[:count]
    return Sample(prompt, text, ids.tolist(), float(logprobs.sum(dtype=np.float64)))
