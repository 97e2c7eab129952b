"""Denoising objectives: noise over spans of text, inputs and targets; pure numpy.

Span corruption is that of Raffel et al. 2020 (T5; `random_spans_helper` and `random_spans_noise_mask` there), the other
denoisers are those of Tay et al. 2022 (UL2). All rounding is half to even, as in their code.
"""

import bisect
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from lm.errors import check, check_choices


def counts(length: int, rate: float, mean: float) -> tuple[int, int]:
    """Return the number of noise tokens of `length`, and of their spans, both at least one."""
    length = max(length, 2)
    noise = min(max(round(length * rate), 1), length - 1)
    # Each span needs a noise token of its own and a kept one before it.
    return noise, min(max(round(noise / mean), 1), noise, length - noise)


def raw_length(inputs: int, rate: float, mean: float) -> tuple[int, int]:
    """Return T5's (tokens of text, targets) for `inputs` tokens, a sentinel for each span and EOS included.

    The most text without more inputs; at a rate of one half the targets are kept as short as the inputs. The
    count here allows no span at all where the noise is less than half of `mean`; the mask always has one.
    """

    def sizes(raw: int) -> tuple[int, int]:
        noise = round(raw * rate)
        spans = round(noise / mean)
        return raw - noise + spans + 1, noise + spans + 1

    raw = longest(math.ceil((inputs + 2) / (1 - rate)), lambda raw: sizes(raw)[0] <= inputs)
    targets = sizes(raw)[1]
    shorter = rate == 0.5 and targets > inputs
    return raw - shorter, targets - shorter


def longest(limit: int, fits: Callable[[int], bool]) -> int:
    """Return the largest n <= limit that fits, 0 where 2 does not; `fits` must be monotone."""
    if fits(limit):
        return limit
    found = bisect.bisect_left(range(2, limit), True, key=lambda n: not fits(n)) + 1
    return found if found > 1 else 0


def composition(rng: np.random.Generator, items: int, parts: int) -> np.ndarray:
    """Draw the sizes, int [parts], of `items` things cut into non-empty parts; every way to cut is equally likely."""
    cuts = np.sort(rng.permutation(items - 1)[: parts - 1]) + 1
    return np.diff(cuts, prepend=0, append=items)


def span_mask(rng: np.random.Generator, length: int, rate: float, mean: float) -> np.ndarray:
    """Draw the noise, bool [length]: kept and noisy parts take turns, a kept one comes first and a noisy one last."""
    noise, spans = counts(length, rate, mean)
    sizes = np.empty(2 * spans, np.int64)
    sizes[0::2] = composition(rng, max(length, 2) - noise, spans)
    sizes[1::2] = composition(rng, noise, spans)
    return np.repeat(_turns(spans), sizes)[:length]


def iid_mask(rng: np.random.Generator, length: int, rate: float, most: int, runs: int) -> np.ndarray:
    """Draw each token's noise independently; tokens after `most` noisy ones or `runs` runs are kept."""
    mask = rng.random(length) < rate
    return mask & (np.cumsum(mask) <= most) & (np.cumsum(starts(mask)) <= runs)


def starts(mask: np.ndarray) -> np.ndarray:
    """Mark the first token of each run of a mask."""
    first = mask.copy()
    first[1:] &= ~mask[:-1]
    return first


def with_sentinels(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Replace the k-th run of the mask by the k-th sentinel.

    The mask makes T5's inputs, its inverse T5's targets: with a mask that starts with a kept part both number the spans
    alike. A rolled mask may start with noise; T5's targets are then one sentinel behind its inputs.
    """
    first = starts(mask)
    replaced = tokens.copy()
    replaced[first] = sentinels[: np.count_nonzero(first)]
    return replaced[first | ~mask]


@functools.lru_cache(maxsize=256)
def _turns(spans: int) -> np.ndarray:
    return np.tile([False, True], spans)


class Sizes(NamedTuple):
    """Most tokens for a length of text, before EOS: on either side, and on both together."""

    inputs: int
    targets: int
    both: int


class Pair(NamedTuple):
    """Inputs and targets; either may end with EOS."""

    inputs: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A denoiser: a kind of noise, and its weight among others.

    "spans": `rate` of the tokens in spans of `mean` tokens on average, a sentinel each; `roll` turns the mask by a
    random offset. "iid": every token by itself, runs get one sentinel. "end": the last `rate` of the text is one span
    (UL2's S). "split": the text is cut in two at a uniformly random place, without sentinels (prefix-LM). `mode`: a
    token before the input.
    """

    kind: Literal["spans", "iid", "end", "split"] = "spans"  # of noise
    rate: float = 0.15
    mean: float = 3.0
    roll: bool = False
    mode: str = ""
    weight: float = 1.0  # share among denoisers, relative

    def __post_init__(self):
        check_choices(self)
        check(0 < self.rate < 1, f"rate={self.rate} must be between 0 and 1")
        check(1 <= self.mean < float("inf"), f"mean={self.mean} must be at least 1")
        check(0 <= self.weight < float("inf"), f"weight={self.weight} must not be negative")

    @property
    def ragged(self) -> bool:
        """A mask may end with a kept part, which then has a sentinel too."""
        return self.kind == "iid" or (self.kind == "spans" and self.roll)

    def noise(self, raw: int) -> tuple[int, int]:
        """Return the number of noise tokens of `raw`, and of their spans; for "iid" at most (four deviations)."""
        if self.kind == "iid":
            chances = self.rate, self.rate * (1 - self.rate)
            most, runs = (math.ceil(raw * p + 4 * math.sqrt(raw * p * (1 - p))) for p in chances)
            return min(most, raw), min(runs, raw)
        noise, spans = counts(raw, self.rate, self.mean)
        return noise, 1 if self.kind == "end" else spans

    def sizes(self, raw: int) -> Sizes:
        mode = bool(self.mode)
        if self.kind == "split":
            return Sizes(mode + raw - 1, raw - 1, mode + raw)
        # A sentinel a span on either side, one more where the mask may end with a kept part. Independent draws may
        # select nothing: their inputs can be as long as the text.
        (noise, spans), ragged = self.noise(raw), self.ragged
        kept = raw if self.kind == "iid" else raw - noise + spans + ragged
        return Sizes(mode + kept, noise + spans + ragged, mode + raw + 2 * spans + ragged)

    def fill(self, inputs: int) -> int:
        """Return the tokens of text that fill `inputs` tokens of source, EOS included."""
        limit = raw_length(inputs, self.rate, self.mean)[0] if self.kind == "spans" else 2 * inputs
        return longest(limit, lambda raw: self.sizes(raw).inputs + 1 <= inputs)

    def sentinels(self, raw: int) -> int:
        """Return the most sentinels of `raw` tokens."""
        return 0 if self.kind == "split" else self.noise(raw)[1] + self.ragged

    def mask(self, rng: np.random.Generator, raw: int) -> np.ndarray:
        """Draw the noise, bool [raw]."""
        if self.kind == "spans":
            mask = span_mask(rng, raw, self.rate, self.mean)
            return np.roll(mask, rng.integers(raw)) if self.roll else mask
        if self.kind == "iid":
            return iid_mask(rng, raw, self.rate, *self.noise(raw))
        keep = rng.integers(1, raw) if self.kind == "split" else raw - self.noise(raw)[0]
        return np.arange(raw) >= keep

    def pair(self, rng: np.random.Generator, tokens: np.ndarray, sentinels: np.ndarray) -> Pair:
        """Make inputs and targets of at least two tokens, without mode token and EOS."""
        mask = self.mask(rng, len(tokens))
        if self.kind == "split":
            return Pair(tokens[~mask], tokens[mask])
        return Pair(with_sentinels(tokens, mask, sentinels), with_sentinels(tokens, ~mask, sentinels))
