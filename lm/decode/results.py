"""Decoded texts: continuations, texts whose masks were filled, and the JSON object of either."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """A continuation. `tokens`: the new ids, a stop token that ended them included; `logprob`: their summed natural
    log-probability under the model itself (no temperature, no truncation); `text`: without stop token or string."""

    prompt: str
    text: str
    tokens: list[int]
    logprob: float
    logprobs: list[float] = field(repr=False, default_factory=list)  # of each token; searches know the sum alone


@dataclass(frozen=True)
class Candidate:
    """A token for a mask, and its probability there under the model."""

    id: int
    token: str
    probability: float


@dataclass(frozen=True)
class Filled:
    """A text whose masks have tokens.

    `tokens`: the new ids, one a mask, from left to right. `logprob`: the sum over them of the natural log-probability
    that each had, under the model itself, when it was chosen: at "once" given none of the others. `masks`: for each
    mask, from left to right, its likeliest candidates at that moment, best first.
    """

    prompt: str
    text: str
    tokens: list[int]
    logprob: float
    masks: list[list[Candidate]] = field(default_factory=list)


def as_object(sample: Sample | Filled) -> dict[str, Any]:
    """Return the JSON object of a sample, with the candidates of its masks if it has any."""
    result = {"prompt": sample.prompt, "text": sample.text, "tokens": sample.tokens, "logprob": sample.logprob}
    masks = sample.masks if isinstance(sample, Filled) else []
    return result | ({"masks": [[asdict(candidate) for candidate in mask] for mask in masks]} if masks else {})
