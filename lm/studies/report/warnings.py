"""Warnings of a report: reasons why a difference between arms may be one of something else than the idea."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lm.studies.report.compare import Comparison, diverged, results_of
from lm.studies.results import Outcome
from lm.studies.study import Arm, Study

UNEQUAL = 0.02  # relative difference of budgets that is said
COOLED = 0.2  # of the peak learning rate: a schedule that ends above has not cooled
QUANTITIES = {"params": "parameters", "tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}
# Sizes that a scaling study varies, one budget after another.
VARIED = {"": (), "law": tuple(QUANTITIES), "isoflop": tuple(QUANTITIES)}


@dataclass(frozen=True)
class Notice:
    """One warning: `kind` for scripts, `text` for people."""

    kind: str
    text: str


@dataclass(frozen=True)
class Spent:
    """Mean sizes over the finished runs of an arm, and their ratios to the baseline's; NaN without runs."""

    arm: str
    tuned: str  # the tuned values, "" for none
    amounts: dict[str, float]
    ratios: dict[str, float]


def warn(study: Study, outcomes: Sequence[Outcome], comparisons: Sequence[Comparison]) -> list[Notice]:
    """List all warnings, runs first."""
    found: list[Notice] = []
    for arm in study.arms:
        own = [outcome for outcome in outcomes if outcome.arm == arm.name]
        found += _failures(arm.name, own)
        found += _missing(study, arm.name, own)
        found += _edges(study, arm.name, own)
        found += _unmeasured(study, arm.name, own)
    found += _untuned(study, outcomes)
    found += _uncooled(study, outcomes)
    found += _unequal(study, spent(study, outcomes))
    found += _partly_evaluated(study.arms)
    for note in dict.fromkeys((row.metric, row.arm, row.note) for row in comparisons if row.note.startswith("not comparable")):
        found.append(Notice("quantity", f"{note[1]}, {note[0]}: {note[2]}"))
    return found


def spent(study: Study, outcomes: Sequence[Outcome]) -> list[Spent]:
    """Measure the budgets of all arms."""
    rows: dict[str, dict[str, float]] = {}
    tuned: dict[str, str] = {}
    for arm in study.arms:
        done = [outcome for outcome in outcomes if outcome.arm == arm.name and outcome.state == "done"]
        rows[arm.name] = {name: _mean(getattr(outcome, name) for outcome in done) for name in QUANTITIES}
        values = dict.fromkeys(f"{name}={value}" for outcome in done for name, value in outcome.tuned.items())
        tuned[arm.name] = ", ".join(values)
    base = rows[study.baseline]
    return [
        Spent(name, tuned[name], row, {one: row[one] / base[one] if base[one] else math.nan for one in row})
        for name, row in rows.items()
    ]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def _failures(arm: str, own: Sequence[Outcome]) -> list[Notice]:
    return [
        Notice(
            "diverged" if diverged(one) else "failed", f"{arm}, seed {one.seed} {verb}: {one.reason or 'no reason is known'}"
        )
        for one in own
        if one.state == "failed"
        for verb in ("diverged" if diverged(one) else "failed",)
    ]


def _missing(study: Study, arm: str, own: Sequence[Outcome]) -> list[Notice]:
    """Tell of seeds without a result, and of those that remain."""
    states = {outcome.seed: outcome for outcome in own}
    state_of = {seed: states[seed].state if seed in states else "missing" for seed in study.seeds}
    absent = [seed for seed, state in state_of.items() if state in ("running", "missing")]
    if not absent:
        return []
    used = [str(seed) for seed in results_of(own, arm, study.metrics[0])]
    listed = ", ".join(
        f"{_seeds(seeds)} {'is' if len(seeds) == 1 else 'are'} {state}"
        for state in ("running", "missing")
        if (seeds := [str(seed) for seed in absent if state_of[seed] == state])
    )
    reasons = "".join(f" ({reason})" for reason in dict.fromkeys(states[s].reason for s in absent if s in states) if reason)
    return [Notice("missing", f"{arm}: {listed}{reasons}; results of {_seeds(used) if used else 'no seed'} are used")]


def _seeds(seeds: Sequence[str]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}"


def _edges(study: Study, arm: str, own: Sequence[Outcome]) -> list[Notice]:
    """Tell of a tuned value at the edge of its grid, beyond which the best one may lie."""
    if study.tune is None or not all(isinstance(value, int | float) for value in study.tune.values):
        return []
    name, found = study.tune.field, []
    for value in dict.fromkeys(outcome.tuned[name] for outcome in own if name in outcome.tuned):
        for edge, words in ((min, "smallest"), (max, "largest")):
            if math.isclose(float(value), edge(study.tune.values)):
                text = f"{arm}: the best {name} of its grid, {value}, is the {words}: search beyond it"
                found.append(Notice("edge", text))
    return found


def _unmeasured(study: Study, arm: str, own: Sequence[Outcome]) -> list[Notice]:
    done = [outcome for outcome in own if outcome.state == "done"]
    lacking = [metric for metric in study.metrics if done and not any(metric in outcome.figures for outcome in done)]
    not_finite = [
        Notice("diverged", f"{arm}, seed {outcome.seed}: {metric} is not finite")
        for metric in study.metrics
        for outcome in done
        if metric in outcome.figures and not math.isfinite(outcome.figures[metric])
    ]
    return [Notice("unmeasured", f"{arm}: no finished run has {metric}") for metric in lacking] + not_finite


def _untuned(study: Study, outcomes: Sequence[Outcome]) -> list[Notice]:
    """Tell of arms that are not tuned beside others that are."""
    done = {one.arm: bool(one.tuned) for one in outcomes if one.state == "done"}
    untuned = [name for name, tuned in done.items() if not tuned]
    if not untuned or len(untuned) == len(done):
        return []
    return [Notice("untuned", f"{', '.join(untuned)}: not tuned, while other arms are")]


def final_rate(outcome: Outcome) -> float:
    """Return the last learning rate as a share of the peak; NaN where none was logged."""
    last = max((point.stage for point in outcome.curve), default=0)  # each stage has a schedule of its own
    rates = [point.figures["train/lr"] for point in outcome.curve if "train/lr" in point.figures and point.stage == last]
    rates = [rate for rate in rates if math.isfinite(rate)]
    return rates[-1] / max(rates) if rates and max(rates) > 0 else math.nan


def _uncooled(study: Study, outcomes: Sequence[Outcome]) -> list[Notice]:
    """Tell of schedules that end at a high learning rate where others have cooled, which alone lowers a loss."""
    done = [outcome for outcome in outcomes if outcome.state == "done"]
    shares = {arm.name: _mean(final_rate(one) for one in done if one.arm == arm.name) for arm in study.arms}
    hot = {name: share for name, share in shares.items() if share > COOLED}
    if not any(share <= COOLED for share in shares.values()):
        return []
    return [
        Notice(
            "uncooled", f"{name}: ended at {share:.0%} of its peak learning rate, while other arms cooled below {COOLED:.0%}"
        )
        for name, share in hot.items()
    ]


def _unequal(study: Study, rows: Sequence[Spent]) -> list[Notice]:
    found = []
    for name, words in QUANTITIES.items():
        if name in VARIED[study.scaling]:
            continue
        unequal = [
            row.arm + f" {row.ratios[name] - 1:+.1%}".replace("-", "−") for row in rows if abs(row.ratios[name] - 1) > UNEQUAL
        ]
        if unequal:
            found.append(Notice("unequal", f"unequal {words} (baseline {study.baseline}): {', '.join(unequal)}"))
    return found


def _partly_evaluated(arms: Sequence[Arm]) -> list[Notice]:
    partly: dict[int, list[str]] = {}
    for arm in arms:
        if arm.config.evaluate_batches:
            partly.setdefault(arm.config.evaluate_batches, []).append(arm.name)
    every = len(partly) == 1 and sum(map(len, partly.values())) == len(arms)
    return [
        Notice(
            "partial", f"{'all arms' if every else ', '.join(names)}: evaluated on {count} batches, not on all held-out rows"
        )
        for count, names in partly.items()
    ]
