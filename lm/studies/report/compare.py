"""Comparisons of arms: each with the baseline, and the arm that a control stands for with that control; of every figure.

Comparisons of one figure are one family for Holm's correction. Losses of different quantities (a likelihood, a bound, a
pseudo-likelihood) get no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lm.errors import check, unknown
from lm.evaluation.metrics.statistics import Figure
from lm.objectives.quantity import quantity
from lm.studies.resampling import iqm, probability_of_improvement
from lm.studies.results import Outcome
from lm.studies.statistics import Paired, Sample, conclude, paired, sample
from lm.studies.study import Study, higher_is_better

LIKELIHOODS = {"loss", "nll", "perplexity", "bits_per_byte"}  # last parts of names of figures that depend on the quantity
DIVERGED = "not finite"  # in the last line of a run that training ended (`lm.progress.Meter`)
EXAMPLES = "eval/validation/examples/"  # figures of labelled examples


@dataclass(frozen=True)
class Comparison:
    """A figure of an arm, `runs`, and its difference to `baseline`; the baseline's own row has none (baseline="").

    `seeds`: the pairs used. `p` is Holm's. `verdict` is empty, and `note` says why, where nothing can be concluded.
    """

    arm: str
    baseline: str
    metric: str
    runs: Sample
    seeds: tuple[int, ...] = ()
    difference: Paired | None = None
    p: float = math.nan
    verdict: str = ""
    needed: int | None = None
    note: str = ""

    @property
    def words(self) -> str:
        """The verdict with the number of seeds that would do, or the note."""
        if not self.verdict:
            return self.note
        return f"{self.verdict}: {self.needed} would do" if self.needed else self.verdict


@dataclass(frozen=True)
class Aggregate:
    """Scores of an arm on several tasks: interquartile mean, and the probability that a run beats one of the baseline."""

    arm: str
    runs: int
    iqm: Figure
    improvement: Figure | None  # None: the baseline itself


def results_of(outcomes: Sequence[Outcome], arm: str, metric: str) -> dict[int, float]:
    """Return the last value of a figure by seed: NaN for a run that diverged; others that did not end are left out."""
    found = {}
    for outcome in outcomes:
        if outcome.arm == arm:
            if outcome.state == "done" and metric in outcome.figures:
                found[outcome.seed] = float(outcome.figures[metric])
            elif diverged(outcome):
                found[outcome.seed] = math.nan
    return dict(sorted(found.items()))


def diverged(outcome: Outcome) -> bool:
    """Return whether training ended the run because its loss was not finite; other failures say nothing about the arm."""
    return outcome.state == "failed" and DIVERGED in outcome.reason


def select(study: Study, outcomes: Sequence[Outcome], metric: str = "", baseline: str = "") -> Study:
    """Replace figures (names joined by commas) and baseline of a study; raise UserError for unknown ones."""
    if baseline:
        names = [arm.name for arm in study.arms]
        if baseline not in names:
            raise unknown("arm", baseline, names)
        study = replace(study, baseline=baseline)
    if metric:
        measured = sorted({name for outcome in outcomes for name in outcome.figures})
        metrics = tuple(dict.fromkeys(name.strip() for name in metric.split(",") if name.strip()))
        for name in metrics if measured else ():
            if name not in measured:
                raise unknown("metric", name, measured)
        study = replace(study, metrics=metrics)
    return study


def check_baseline(study: Study, outcomes: Sequence[Outcome]) -> None:
    """Raise UserError where all runs of the baseline have failed."""
    own = [outcome for outcome in outcomes if outcome.arm == study.baseline]
    failed = bool(own) and all(outcome.state == "failed" for outcome in own)
    reason = next((outcome.reason for outcome in own if outcome.reason), "no reason is known")
    check(not failed, f"all runs of the baseline '{study.baseline}' failed ({reason}): repeat them, or name another --baseline")


def compare(study: Study, outcomes: Sequence[Outcome]) -> list[Comparison]:
    """Compare every figure of the study, each with the baseline's row first."""
    return [row for metric in study.metrics for row in _compare(study, outcomes, metric)]


def pairs_of(study: Study) -> list[tuple[str, str]]:
    """List (arm, baseline), then (arm, control) for arms that have a control other than the baseline."""
    pairs = [(arm.name, study.baseline) for arm in study.arms if arm.name != study.baseline]
    controls = [(arm.control_of, arm.name) for arm in study.arms if arm.control_of]
    return pairs + [pair for pair in controls if study.baseline not in pair]


def _compare(study: Study, outcomes: Sequence[Outcome], metric: str) -> list[Comparison]:
    values = {arm.name: results_of(outcomes, arm.name, metric) for arm in study.arms}
    runs = {name: sample(list(one.values())) for name, one in values.items()}
    rows = [
        Comparison(study.baseline, "", metric, runs[study.baseline], note="" if values[study.baseline] else "has no result")
    ]
    family: dict[str, Paired] = {}
    for arm, baseline in pairs_of(study):
        note = incomparable(study, outcomes, arm, baseline, metric)
        seeds = tuple(seed for seed in values[arm] if seed in values[baseline])
        row = Comparison(arm, baseline, metric, runs[arm], note=note)
        if not note:
            own, other = ([values[name][seed] for seed in seeds] for name in (arm, baseline))
            difference = paired(own, other, higher_is_better(metric), 1 - study.level)
            family[f"{arm}/{baseline}"] = difference  # names have no '/'
            row = replace(row, seeds=seeds, difference=difference if seeds else None)
            if not seeds:
                lacking = [name for name in (arm, baseline) if not values[name]]
                row = replace(row, note=f"{lacking[0]} has no result" if lacking else f"no seed shared with {baseline}")
        rows.append(row)
    # Arms without results count as comparisons: an early look must not be less strict than the last one.
    wanted = study.relevant if study.relevant and metric == study.metrics[0] else None
    conclusions = conclude(family, 1 - study.level, study.power, wanted)
    return [_concluded(row, conclusions) for row in rows]


def _concluded(row: Comparison, conclusions: Mapping) -> Comparison:
    conclusion = conclusions.get(f"{row.arm}/{row.baseline}")
    if conclusion is None or row.difference is None:
        return row
    return replace(row, p=conclusion.p, verdict=conclusion.verdict, needed=conclusion.seeds)


def incomparable(study: Study, outcomes: Sequence[Outcome], arm: str, baseline: str, metric: str) -> str:
    """Return why two arms cannot be compared by a figure, "" where they can."""
    place, _, last = metric.rpartition("/")
    # Accuracy, too, is of the targets: those of a masked model change with its rate, those of labelled examples do not.
    labelled = any(name.startswith(EXAMPLES) for one in outcomes for name in one.figures)
    if last not in LIKELIHOODS and (labelled or place != "eval/validation"):
        return ""
    own, other = (_quantity(study, outcomes, name, metric) for name in (arm, baseline))
    if own and other and own != other:
        return f"not comparable: {last} is {own} here, {other} in {baseline}"
    by_token = last != "bits_per_byte" and not labelled and metric.partition("/")[0] not in study.downstream
    tokenizers = [study.arm(name).config.data.tokenizer for name in (arm, baseline)]
    if by_token and tokenizers[0] != tokenizers[1]:
        return f"not comparable: tokens of another tokenizer than in {baseline}; eval/validation/bits_per_byte is comparable"
    return ""


def _quantity(study: Study, outcomes: Sequence[Outcome], name: str, metric: str) -> str:
    """Return the quantity that a loss of an arm measures, by its stage or downstream run; "" where it is unknown."""
    arm, place = study.arm(name), metric.partition("/")[0]
    if place in study.downstream:
        return quantity({**study.downstream, **arm.downstream}[place].objective)
    if place.startswith("stage-"):
        number = int(place.removeprefix("stage-"))
        return quantity(arm.stages[number - 1].objective) if number <= len(arm.stages) else ""
    return " and ".join(sorted({one.quantity for one in outcomes if one.arm == name and one.quantity}))


# -- several tasks ------------------------------------------------------------------------------------------------------


def tasks_of(study: Study, outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Return a score, higher is better, of each task: {task: figure}.

    Tasks are the downstream runs and the tasks of `Config.evaluate`; a figure that the study names comes before the
    first of labelled examples.
    """
    tasks: dict[str, str] = {}
    for metric in study.metrics:
        first, _, rest = metric.partition("/")
        name = first if first in study.downstream else rest.partition("/")[0] if first == "eval" else "validation"
        if name != "validation" and higher_is_better(metric):
            tasks.setdefault(name, metric)
    for name in study.downstream:
        figures = dict.fromkeys(figure for outcome in outcomes for figure in outcome.figures)
        scores = [figure for figure in figures if figure.startswith(f"{name}/{EXAMPLES}") and higher_is_better(figure)]
        if scores:
            tasks.setdefault(name, scores[0])
    return tasks


def aggregate(study: Study, outcomes: Sequence[Outcome]) -> tuple[dict[str, str], list[Aggregate]]:
    """Aggregate the scores of two or more tasks (`tasks_of`) over each arm's runs that have all of them."""
    tasks = tasks_of(study, outcomes)
    if len(tasks) < 2:
        return {}, []
    tables = {}
    for arm in study.arms:
        columns = [results_of(outcomes, arm.name, metric) for metric in tasks.values()]
        seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
        if seeds:
            tables[arm.name] = [[column[seed] for column in columns] for seed in seeds]
    base = tables.get(study.baseline)
    return tasks, [
        Aggregate(
            name,
            len(scores),
            iqm(scores),
            probability_of_improvement(scores, base, higher_is_better=True) if base and name != study.baseline else None,
        )
        for name, scores in tables.items()
    ]
