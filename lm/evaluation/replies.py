"""The texts that a network writes to held-out sources, for an objective of `lm.data.examples` with a `reply`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm.data.corpus.split import position
from lm.data.types import Example
from lm.decode.generate import occurrences, to_sample, write
from lm.decode.prefill import fits
from lm.decode.sampling import Sampling
from lm.decode.score import Pair, Scorer
from lm.decode.search.beam import Beams
from lm.decode.writer import Request, Writer


def replies(objective: Any, params: Any, examples: Sequence[Example]) -> list[tuple[Example, dict[str, Any]]]:
    """Write to the examples that `objective.reply` asks for; give each with a row of plain values, in their order.

    `logprob` is that of what was written, `reference_logprob` that of the first reference, its end included; nats.
    """
    reply, tokenizer = objective.reply, objective.tokenizer
    chosen = first(examples, reply.most)
    writer = Writer(objective, params, tokenizer)
    texts = [objective.texts(example) for example in chosen]
    prompts = [objective.prompt_of(source) for source, _ in texts]
    new = min(reply.tokens, objective.limits[1])
    for prompt in prompts:
        fits(writer.steps, prompt, new)
    way = Sampling(strategy="greedy") if reply.beams == 1 else Beams(count=reply.beams)
    rows: dict[int, dict[str, Any]] = {}
    for i, found in write(writer, Request(new=new, sampling=way), prompts, occurrences(prompts)):
        source, references = texts[i]
        sample = to_sample(tokenizer, source, *found[0], ())
        rows[i] = {"prompt": source, "gold": references, "guess": sample.text.strip(), "logprob": sample.logprob}
    targets = [objective.answer(example) for example in chosen]
    scored = Scorer(objective, params)([Pair(*pair) for pair in zip(prompts, targets)])
    for i, (target, one) in enumerate(zip(targets, scored)):
        size = len(tokenizer.decode(target[:-1]).encode("utf-8", "replace"))  # of what the row had room for
        rows[i] |= {"reference_logprob": float(one.logprobs.sum(dtype=float)), "reference_bytes": size}
    return [(example, rows[i]) for i, example in enumerate(chosen)]


def first(examples: Sequence[Example], most: int) -> list[Example]:
    """Give `most` examples (0: all) that a hash of the source's place picks, the same ones for every run, in their order."""
    if not most or len(examples) <= most:
        return list(examples)
    ranked = sorted(range(len(examples)), key=lambda i: position(str(sorted(examples[i].values.items()))))
    return [examples[i] for i in sorted(ranked[:most])]
