"""From texts to texts: prompts are encoded, decoded in batches of similar length, and cut at the stop strings."""

import bisect
import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.grammar.constrained import Grammar
from lm.decode.prefill import check_finite
from lm.decode.processors import Rules
from lm.decode.results import Sample
from lm.decode.strategies import AncestralSampling, Strategy
from lm.decode.writer import FREE, Request, Row, Watch, Writer
from lm.errors import check
from lm.objectives.base import Objective
from lm.sharding import NO_MESH

ROWS = 64  # of a batch
PLAIN = AncestralSampling()  # the model's own distribution


def generate(
    objective: Objective, params: Any, tokenizer: Tokenizer, prompts: Sequence[str], *, max_new_tokens: int,
    strategy: Strategy = PLAIN, rules: Rules = FREE, num_samples: int = 1, seed: int = 0, stop: Sequence[str] = (),
    grammar: Grammar | None = None, watch: Watch | None = None,
) -> list[Sample]:  # fmt: skip
    """Continue each prompt `num_samples` times; the samples of a prompt are neighbours in the result.

    A sample depends on the seed, its prompt and its number, not on the other prompts (but for float rounding). A
    continuation ends at a stop token of the objective, before the first of the `stop` strings in its text, or after
    `max_new_tokens`. An empty prompt starts a document. New text follows the `grammar`. Beyond the context greedy search and
    sampling go on from its last half (`lm.decode.sliding`); for the others that is a UserError.
    """
    check(num_samples >= 1, f"num_samples={num_samples} must be at least 1")
    writer = Writer(objective, params, tokenizer)
    request = Request(
        new=max_new_tokens,
        rules=rules,
        samples=num_samples,
        seed=seed,
        stop=tuple(filter(None, stop)),
        grammar=grammar,
    )
    encoded = writer.encode(prompts)
    for prompt in encoded:
        # All before the first is written: one that is too long must not cost the work on the others.
        strategy.fits(writer, prompt, request)
    samples: dict[int, list[Sample]] = {}
    for i, rows in decode_batches(writer, strategy, request, encoded, occurrences(encoded), watch):
        samples[i] = [to_sample(tokenizer, prompts[i], *row, request.stop) for row in rows]
    return [sample for i in range(len(prompts)) for sample in samples[i]]


def decode_batches(
    writer: Writer, strategy: Strategy, request: Request, encoded: Sequence[Prompt], numbers: Sequence[int],
    watch: Watch | None = None,
) -> Iterator[tuple[int, list[Row]]]:  # fmt: skip
    """Yield (index of the prompt, its rows) as they finish, in batches of similar length.

    `numbers`: how often each prompt came before (`occurrences`). All batches have the same number of rows, so that few
    programs are compiled: one a width.
    """
    size = max(1, ROWS // strategy.rows(request))
    order = sorted(range(len(encoded)), key=lambda i: length(encoded[i]))
    for low in range(0, len(order), size):
        part = order[low : low + size]
        # The last batch repeats its first prompt, whose rows are then dropped by zip.
        full = part + part[:1] * (size - len(part) if len(order) > size else 0)
        batch = [encoded[i] for i in full]
        keys_B = row_keys(request.seed, batch, [numbers[i] for i in full], request.samples)
        with jax.sharding.use_abstract_mesh(NO_MESH):
            rows = strategy.write(writer, request, batch, keys_B, watch)
        yield from zip(part, rows)


def length(prompt: Prompt) -> int:
    """Count the tokens of a prompt and its source."""
    return len(prompt.tokens) + (0 if prompt.source is None else len(prompt.source))


def occurrences(encoded: Sequence[Prompt], seen: Counter | None = None) -> list[int]:
    """Count for each prompt the equal ones before it; `seen` carries the counts through several calls."""
    seen = Counter() if seen is None else seen
    numbers = []
    for prompt in encoded:
        key = hashlib.blake2b(fingerprint(prompt), digest_size=16).digest()  # counts of a file stay small in memory
        numbers.append(seen[key])
        seen[key] += 1
    return numbers


def fingerprint(prompt: Prompt) -> bytes:
    """Serialise a prompt's ids: equal prompts have equal keys on every machine."""
    parts = [part for part in prompt if part is not None]
    return b"|".join(part.astype(np.int32).tobytes() for part in parts)


def row_keys(seed: int, encoded: Sequence[Prompt], numbers: Sequence[int], samples: int) -> jax.Array:
    """Fold the prompt's tokens, how often it came before and the sample's number into the seed: one key a row."""
    pairs = [
        (zlib.crc32(fingerprint(prompt)), number * samples + i)
        for prompt, number in zip(encoded, numbers, strict=True)
        for i in range(samples)
    ]
    prompt_B, sample_B = np.array(pairs, np.uint32).reshape(-1, 2).T
    fold = jax.vmap(lambda p, s: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), p), s))
    return fold(jnp.asarray(prompt_B), jnp.asarray(sample_B))


def to_sample(tokenizer: Tokenizer, prompt: str, ids: np.ndarray, logprobs: np.ndarray, stop: Sequence[str]) -> Sample:
    """Decode new ids; cut the text before the first stop string, and the ids after the token that completes it.

    Raises UserError where a log-probability is not finite: the text would mean nothing.
    """
    check_finite(logprobs, f"what follows {shortened(prompt)!r}")
    text = tokenizer.decode(ids)
    ends = [at for at in (text.find(s) for s in stop) if at >= 0]
    if ends:
        text = text[: min(ends)]
        # Bisection over prefixes of the ids: decoding each one would take time quadratic in the length.
        count = 1 + bisect.bisect_left(
            range(1, len(ids)), True, key=lambda n: any(s in tokenizer.decode(ids[:n]) for s in stop)
        )
        ids, logprobs = ids[:count], logprobs[:count]
    logprobs = np.asarray(logprobs, np.float64)
    each = logprobs.tolist() if logprobs.ndim else []
    return Sample(prompt, text, np.asarray(ids).tolist(), float(logprobs.sum()), each)


def shortened(text: str, most: int = 60) -> str:
    """Truncate a text for a message."""
    return text if len(text) <= most else text[: most - 3] + "..."
