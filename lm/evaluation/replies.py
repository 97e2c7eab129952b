"""Texts generated for held-out sources by an objective of labelled examples that writes its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm.data.corpus.split import position
from lm.data.types import Example
from lm.decode.generate import decode_batches, occurrences, to_sample
from lm.decode.prefill import fits
from lm.decode.score import Pair, Scorer
from lm.decode.strategies import BeamSearch, GreedySearch
from lm.decode.writer import Request, Writer


def replies(objective: Any, params: Any, examples: Sequence[Example]) -> list[tuple[Example, dict[str, Any]]]:
    """Generate answers for the examples that `objective.reply` selects; return each with a row of plain values.

    `logprob` is that of the generated text, `reference_logprob` that of the first reference with its end token; nats.
    """
    reply, tokenizer = objective.reply, objective.tokenizer
    chosen = first(examples, reply.most)
    writer = Writer(objective, params, tokenizer)
    texts = [objective.texts(example) for example in chosen]
    prompts = [objective.prompt_of(source) for source, _ in texts]
    new = min(reply.tokens, objective.limits[1])
    # All of them before the first is answered: one that is too long fails at once.
    for prompt in prompts:
        fits(writer.steps, prompt, new)
    strategy = GreedySearch() if reply.beams == 1 else BeamSearch(num_beams=reply.beams)
    rows: dict[int, dict[str, Any]] = {}
    for i, found in decode_batches(writer, strategy, Request(new=new), prompts, occurrences(prompts)):
        source, references = texts[i]
        sample = to_sample(tokenizer, source, *found[0], ())
        rows[i] = {"prompt": source, "gold": references, "guess": sample.text.strip(), "logprob": sample.logprob}
    targets = [objective.answer(example) for example in chosen]
    scored = Scorer(objective, params)([Pair(*pair) for pair in zip(prompts, targets)])
    for i, (target, one) in enumerate(zip(targets, scored)):
        size = len(tokenizer.decode(target[:-1]).encode("utf-8", "replace"))  # of the tokens that the row had capacity for
        rows[i] |= {"reference_logprob": float(one.logprobs.sum(dtype=float)), "reference_bytes": size}
    return [(example, rows[i]) for i, example in enumerate(chosen)]


def first(examples: Sequence[Example], most: int) -> list[Example]:
    """Select `most` examples (0: all) by a hash of their values, the same ones in every run, in their order."""
    if not most or len(examples) <= most:
        return list(examples)
    ranked = sorted(range(len(examples)), key=lambda i: position(str(sorted(examples[i].values.items()))))
    return [examples[i] for i in sorted(ranked[:most])]
