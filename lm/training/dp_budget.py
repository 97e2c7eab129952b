"""Differential privacy: what a run is asked for, and what its steps promise. The gradient is in `lm.training.dp_gradients`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm.errors import check, check_range


@dataclass(frozen=True, kw_only=True)
class Private:
    """DP-SGD (Abadi et al. 2016, algorithm 1): no row of the training data shows much in the parameters.

    `clip` bounds the 2-norm of the gradient of each row's own loss (0: off). Their sum gets normal noise of deviation
    `noise` x `clip` and is divided by the batch. A row must be one example (of long texts one window, of running text what
    a row holds): that is what is protected, and an author of many rows is less so. One gradient a row of a micro-batch is
    in memory at a time.

    `delta`: how likely the promise may fail (0: rows^-1.1). Epsilon in summary.json is that of the Renyi accountant
    (Mironov et al. 2019) for batches in which each row is drawn by itself. Batches here are of a fixed size, out of
    shuffled epochs, for which it is the usual approximation and no proof. What is learnt from the text outside of
    gradients is not covered: a tokenizer, the list of labels, logged losses, the choice of a checkpoint or a setting. The
    noise follows from the run's seed: who publishes the parameters keeps that to himself.
    """

    clip: float = 0.0
    noise: float = 0.0
    delta: float = 0.0

    def __post_init__(self):
        check_range(self, 0, float("inf"), "clip", "noise")
        check_range(self, 0, 1, "delta")
        check(self.clip > 0 or not self.noise, f"private.noise={self.noise} is in units of private.clip: set that, too")


def promise(config: Any, corpus: Any, batches: Any, steps: int) -> dict[str, float]:
    """Give {"epsilon", "delta"} of so many steps; nothing without noise, or where `dp-accounting` is not installed."""
    private = config.optimizer.private
    if not private.noise:
        return {}
    counts, shares = [stream.count for stream in batches.streams], [share for share, _ in corpus.train]
    rate = max(share / sum(shares) * config.batch / count for share, count in zip(shares, counts))
    delta = private.delta or sum(counts) ** -1.1
    found = epsilon(private.noise, min(1.0, rate), steps, delta)
    return {} if found is None else {"epsilon": found, "delta": delta}


def epsilon(noise: float, rate: float, steps: int, delta: float) -> float | None:
    """Account for Gaussian steps that each see a row with chance `rate`; None without `dp-accounting`."""
    try:
        from dp_accounting import dp_event
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        return None
    step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    return float(RdpAccountant().compose(step, steps).get_epsilon(delta))


def said(config: Any, corpus: Any, batches: Any) -> Sequence[str]:
    """Word what is promised at the end of the run; nothing where privacy is off."""
    private = config.optimizer.private
    if not private.clip:
        return ()
    if not private.noise:
        return ("rows' gradients are clipped, without noise: that is no differential privacy; set optimizer.private.noise",)
    found = promise(config, corpus, batches, config.steps)
    if not found:
        return ("epsilon is left out of summary.json: pip install dp-accounting",)
    return (f"differential privacy of a row: epsilon {found['epsilon']:.3g} at delta {found['delta']:.1e} after all steps",)
