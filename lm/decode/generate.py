"""Text in, text out: prompts are encoded, continued or answered in batches, and cut at the stop strings."""

import bisect
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.prompts import Prompt
from lm.data.tokenizers import Tokenizer
from lm.decode.loop import begin, go_on
from lm.decode.open import batch_prompts, bucket, check_finite, encode_prompts, fits, opened_steps
from lm.decode.processors import Rules
from lm.decode.sampling import Sampling
from lm.decode.steps import Steps
from lm.errors import check

ROWS = 64  # decoded at a time
PATIENCE = 0.25  # seconds between two looks at what was written, at the text for stop strings, at the keyboard
DRAW, FREE = Sampling(), Rules()  # defaults: the model's own distribution, nothing forbidden
NO_MESH = jax.sharding.AbstractMesh((), ())  # a batch of prompts need not divide among the devices of training

Row = tuple[np.ndarray, np.ndarray]  # new ids, and their log-probabilities under the model itself, or the sum alone
Watch = Callable[[list[Row]], None]  # told of all rows so far, each time there is more


@dataclass(frozen=True)
class Sample:
    """A continuation. `tokens`: the new ids, a stop token that ended them included; `logprob`: their summed natural
    log-probability under the model itself (no temperature, no truncation); `text`: without stop token or string."""

    prompt: str
    text: str
    tokens: list[int]
    logprob: float
    logprobs: list[float] = field(repr=False, default_factory=list)  # of each token; searches know the sum alone


class Writer:
    """A network that writes: its objective, steps, the ids that end a text, and parameters laid out for decoding."""

    def __init__(self, objective: Any, params: Any, tokenizer: Tokenizer):
        self.objective, self.params = objective.writer(params)
        self.tokenizer = tokenizer
        self.steps: Steps = opened_steps(self.objective)
        self.stops: tuple[int, ...] = tuple(self.objective.stops(tokenizer))
        self._laid: tuple[bool, Any] | None = None
        self.accepted: float | None = None  # share of a draft's tokens that the last speculative batch kept

    def prepared(self, rows: int) -> Any:
        """Lay the parameters out for that many rows; a single one has a layout of its own."""
        if self._laid is None or self._laid[0] != (rows == 1):
            self._laid = None  # the old layout goes before the new one comes
            self._laid = rows == 1, self.steps.prepare(self.params, rows)
        return self._laid[1]

    def encode(self, texts: Sequence[str]) -> list[Prompt]:
        return encode_prompts(self.objective, self.tokenizer, texts)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, whatever the prompts: how many tokens, how they are chosen, what they must follow."""

    new: int
    sampling: Any = DRAW  # or another way to write: see lm.decode.ways
    rules: Rules = FREE
    samples: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: Any = None  # lm.decode.constrained.Grammar


def generate(
    objective: Any,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Any = DRAW,
    rules: Rules = FREE,
    num_samples: int = 1,
    seed: int = 0,
    stop: Sequence[str] = (),
    grammar: Any = None,
    watch: Watch | None = None,
) -> list[Sample]:
    """Continue each prompt `num_samples` times; the samples of a prompt are neighbours in the result.

    A sample depends on the seed, its prompt and its number, not on the other prompts (but for float rounding). A
    continuation ends at a stop token of the objective, before the first of the `stop` strings in its text, or after
    `max_new_tokens`. An empty prompt begins a document. `grammar`: what new text must follow. Raises UserError where
    prompt and new tokens pass the context.
    """
    check(num_samples >= 1, f"num_samples={num_samples} must be at least 1")
    writer = Writer(objective, params, tokenizer)
    ask = Request(
        new=max_new_tokens,
        sampling=sampling,
        rules=rules,
        samples=num_samples,
        seed=seed,
        stop=tuple(filter(None, stop)),
        grammar=grammar,
    )
    encoded = writer.encode(prompts)
    for prompt in encoded:
        fits(writer.steps, prompt, max_new_tokens)
    found: dict[int, list[Sample]] = {}
    for i, rows in write(writer, ask, encoded, occurrences(encoded), watch):
        found[i] = [to_sample(tokenizer, prompts[i], *row, ask.stop) for row in rows]
    return [sample for i in range(len(prompts)) for sample in found[i]]


def write(
    writer: Writer, ask: Request, encoded: Sequence[Prompt], numbers: Sequence[int], watch: Watch | None = None
) -> Iterator[tuple[int, list[Row]]]:
    """Give (index of the prompt, its rows) as they get done, in batches of like length.

    `numbers`: how often each prompt came before (`occurrences`). All batches have the same number of rows, so that few
    programs are compiled: one a width.
    """
    from lm.decode.ways import rows_each, write_batch

    size = max(1, ROWS // rows_each(ask))
    order = sorted(range(len(encoded)), key=lambda i: length(encoded[i]))
    for low in range(0, len(order), size):
        part = order[low : low + size]
        filled = part + part[:1] * (size - len(part) if len(order) > size else 0)
        batch = [encoded[i] for i in filled]
        keys_B = row_keys(ask.seed, batch, [numbers[i] for i in filled], ask.samples)
        with jax.sharding.use_abstract_mesh(NO_MESH):
            rows = write_batch(writer, ask, batch, keys_B, watch)
        yield from zip(part, rows)


def length(prompt: Prompt) -> int:
    """Count the tokens that a network reads of a prompt."""
    return len(prompt.tokens) + (0 if prompt.source is None else len(prompt.source))


def occurrences(encoded: Sequence[Prompt], seen: Counter | None = None) -> list[int]:
    """Count for each prompt how often the same one came before it; `seen` counts on through several calls."""
    seen = Counter() if seen is None else seen
    numbers = []
    for prompt in encoded:
        name = fingerprint(prompt)
        numbers.append(seen[name])
        seen[name] += 1
    return numbers


def fingerprint(prompt: Prompt) -> bytes:
    parts = [part for part in prompt if part is not None]
    return b"|".join(part.astype(np.int32).tobytes() for part in parts)


def row_keys(seed: int, encoded: Sequence[Prompt], numbers: Sequence[int], samples: int) -> jax.Array:
    """Make one key a row from the seed, the prompt's tokens, how often it came before, and the sample's number."""
    pairs = [
        (zlib.crc32(fingerprint(prompt)), number * samples + i)
        for prompt, number in zip(encoded, numbers, strict=True)
        for i in range(samples)
    ]
    prompt_B, sample_B = np.array(pairs, np.uint32).reshape(-1, 2).T
    fold = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p), s))
    return fold(jnp.asarray(prompt_B), jnp.asarray(sample_B))


def continue_tokens(
    steps: Steps,
    prepared: Any,
    prompts: Sequence[Prompt],
    keys_B: jax.Array,
    *,
    sampling: Sampling,
    new: int,
    rules: Rules = FREE,
    stops: tuple[int, ...] = (),
    grammar: Any = None,
    finished: Callable[[np.ndarray], bool] | None = None,
    watch: Watch | None = None,
) -> list[Row]:
    """Continue prompts by up to `new` tokens; give each row's (new ids, their log-probabilities).

    `finished`: tells of new ids on the host whether their text holds a stop string. It is asked between stretches of
    the loop, so a row may run some tokens on: whoever asked cuts them off. Stretches take about `PATIENCE` seconds.
    """
    rules = replace(rules, stops=stops)
    how = {"steps": steps, "sampling": sampling, "rules": rules, "stops": stops}
    repeats = len(keys_B) // len(prompts)
    rows = batch_prompts(prompts)
    progress = begin(prepared, rows, keys_B, new, grammar, room=bucket(new), repeats=repeats, **how)
    count, stretch = 1, 1 if watch or finished else 16
    while True:
        if watch:
            watch(fetch(progress))
        done_B = np.asarray(progress.done_B)
        if finished and count < new and not done_B.all():
            ids_BT, length_B = jax.device_get((progress.new(), progress.length_B))
            done_B = np.array([d or finished(ids[:n]) for ids, n, d in zip(ids_BT, length_B, done_B)])
            progress = progress.replace(done_B=jnp.asarray(done_B))
        if count >= new or done_B.all():
            return fetch(progress)
        count, began = min(count + stretch, new), time.monotonic()
        progress = go_on(prepared, progress, keys_B, count, new, grammar, **how)
        jax.block_until_ready(progress.done_B)
        seconds = time.monotonic() - began
        stretch = 2 * stretch if seconds < PATIENCE / 2 else max(1, stretch // 2) if seconds > 2 * PATIENCE else stretch


def fetch(progress: Any) -> list[Row]:
    """Bring what was written to the host."""
    ids_BT, logprobs_BT, length_B = jax.device_get((progress.new(), progress.logprobs_BT, progress.length_B))
    return [(ids[:n], logprobs[:n]) for ids, logprobs, n in zip(ids_BT, logprobs_BT, length_B)]


def to_sample(tokenizer: Tokenizer, prompt: str, ids: np.ndarray, logprobs: np.ndarray, stop: Sequence[str]) -> Sample:
    """Decode new ids; cut the text before the first stop string, and the ids after the token that completes it.

    Raises UserError where the log-probabilities are no numbers: such a model has written nothing.
    """
    check_finite(logprobs, f"what follows {shortened(prompt)!r}")
    text = tokenizer.decode(ids)
    ends = [at for at in (text.find(s) for s in stop) if at >= 0]
    if ends:
        text = text[: min(ends)]
        count = 1 + bisect.bisect_left(
            range(1, len(ids)), True, key=lambda n: any(s in tokenizer.decode(ids[:n]) for s in stop)
        )
        ids, logprobs = ids[:count], logprobs[:count]
    logprobs = np.asarray(logprobs, np.float64)
    each = logprobs.tolist() if logprobs.ndim else []
    return Sample(prompt, text, np.asarray(ids).tolist(), float(logprobs.sum()), each)


def shortened(text: str, most: int = 60) -> str:
    """Cut a text for a message."""
    return text if len(text) <= most else text[: most - 3] + "..."
