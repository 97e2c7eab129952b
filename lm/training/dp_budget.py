"""Differential privacy: the settings of DP-SGD and the (epsilon, delta) guarantee. Gradients: `lm.training.dp_gradients`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm.data.corpus.corpus import Corpus
from lm.errors import check, check_range


@dataclass(frozen=True, kw_only=True)
class Private:
    """DP-SGD (Abadi et al. 2016, algorithm 1): bounds the influence of any one row on the parameters.

    `clip` bounds the 2-norm of the gradient of each row's own loss (0: off). Their sum gets normal noise of standard deviation
    `noise` x `clip` and is divided by the batch size. The unit of protection is a row: one example, one window of a long text;
    an author of many rows is protected less. One gradient per row of a micro-batch is in memory at a time.

    `delta`: the probability that the guarantee fails (0: rows^-1.1). Epsilon in summary.json is that of the Renyi accountant
    (Mironov et al. 2019) under Poisson sampling. Batches here have a fixed size and come from shuffled epochs, for which it is
    the usual approximation, not a proof. Not covered is all that depends on the text outside of gradients: the tokenizer, the
    list of labels, logged losses, the choice of a checkpoint or a setting. The noise follows from the run's seed: keep it
    secret when you publish the parameters.
    """

    clip: float = 0.0
    noise: float = 0.0
    delta: float = 0.0

    def __post_init__(self):
        check_range(self, 0, float("inf"), "clip", "noise")
        check_range(self, 0, 1, "delta")
        check(self.clip > 0 or not self.noise, f"private.noise={self.noise} is in units of private.clip: set that, too")


def guarantee(config: Any, corpus: Corpus, batches: Any, steps: int) -> dict[str, float]:
    """Return {"epsilon", "delta"} after `steps`; {} without noise, or where `dp-accounting` is not installed."""
    private = config.optimizer.private
    if not private.noise:
        return {}
    counts, shares = [stream.count for stream in batches.streams], [share for share, _ in corpus.train]
    # Of several streams the one whose rows come most often: the guarantee is for the worst row.
    rate = max(share / sum(shares) * config.batch / count for share, count in zip(shares, counts))
    delta = private.delta or sum(counts) ** -1.1
    bound = epsilon(private.noise, min(1.0, rate), steps, delta)
    return {} if bound is None else {"epsilon": bound, "delta": delta}


def epsilon(noise: float, rate: float, steps: int, delta: float) -> float | None:
    """Compose `steps` Gaussian mechanisms of sampling probability `rate`; None without `dp-accounting`."""
    try:
        from dp_accounting import dp_event
        from dp_accounting.rdp import RdpAccountant
    except ImportError:
        return None
    step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    return float(RdpAccountant().compose(step, steps).get_epsilon(delta))


def notices(config: Any, corpus: Corpus, batches: Any) -> Sequence[str]:
    """Format the (epsilon, delta) guarantee of the whole run; () where privacy is off."""
    private = config.optimizer.private
    if not private.clip:
        return ()
    if not private.noise:
        return ("rows' gradients are clipped, without noise: that is no differential privacy; set optimizer.private.noise",)
    bounds = guarantee(config, corpus, batches, config.steps)
    if not bounds:
        return ("epsilon is left out of summary.json: pip install dp-accounting",)
    return (f"differential privacy of a row: epsilon {bounds['epsilon']:.3g} at delta {bounds['delta']:.1e} after all steps",)
