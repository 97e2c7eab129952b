"""The report in Markdown, for an appendix or a pull request."""

from __future__ import annotations

from collections.abc import Collection

from lm.studies.report.contents import Contents, amount, decimals, fixed
from lm.studies.report.tables import (
    budget_table,
    code_of,
    field_table,
    grid_table,
    markdown,
    result_table,
    scaling_lines,
    search_table,
    summary,
    task_table,
    text_of,
)
from lm.studies.study import Study, higher_is_better


def about(contents: Contents) -> str:
    """Describe the study in a sentence: runs, seeds, budget, baseline."""
    study = contents.study
    runs = f"{contents.finished} of {contents.planned} runs done"
    partial = "" if contents.finished == contents.planned else " (a partial report)"
    budget = f"; each arm trains for {amount(study.budget.amount)} {_unit(study.budget.kind)}" if study.budget else ""
    return f"{len(study.arms)} arms, {len(study.seeds)} seeds: {runs}{partial}{budget}; baseline: {study.baseline}."


def _unit(kind: str) -> str:
    return "FLOPs" if kind == "flops" else kind


def method(study: Study) -> str:
    """Describe the statistics, and how arms were tuned."""
    level = f"{100 * (1 - study.level):g} %"
    tuned = (
        f"Each arm was tuned: {study.tune.field} from a grid of {len(study.tune.values)} values by {study.tune.metric}, on one "
        f"half of the held-out data with seed {study.tune.seed}; figures are of the other half."
        if study.tune
        else "Arms were not tuned: an arm may be behind because it needs other hyperparameters."
    )
    relevant = f"a difference of {study.relevant:g}" if study.relevant else "a difference of two standard deviations"
    return (
        "Runs with the same seed share data order and initialisation, so that differences are paired. Δ is the mean paired "
        f"difference to the baseline, with its {level} t interval. A verdict rests on the two-sided paired t test after Holm's "
        f"correction over all comparisons of a figure (family-wise error {study.level:g}); the exact sign-flip test is a check "
        "beside it, and decides where runs diverged: a diverged run is worse than any other. Too few seeds: no difference was "
        f"found, and these seeds would find {relevant} with a probability below {study.power:g}. The noise floor is the "
        f"standard deviation over the baseline's seeds. {tuned}"
    )


def noise(contents: Contents, metric: str) -> str:
    """State the noise floor of a figure."""
    mean, sd = contents.floor(metric)
    better = "Higher" if higher_is_better(metric) else "Lower"
    if sd != sd:
        return f"{better} is better. No noise floor: the baseline needs two finished runs."
    return (
        f"{better} is better. Noise floor: {fixed(sd, decimals(sd, mean))}, the standard deviation over the baseline's seeds."
    )


def document(contents: Contents, pictures: Collection[str]) -> str:
    """Write the report; `pictures`: names of the PNGs that stand beside it."""
    study = contents.study
    lines = [f"# {text_of(study.name or 'Study')}", ""]
    if study.question:
        lines += [text_of(study.question), ""]
    lines += [text_of(summary(contents)), "", text_of(about(contents)), ""]
    for metric in study.metrics:
        header, rows = result_table(contents, metric)
        lines += [f"## {code_of(metric)}", "", *markdown(header, rows), "", noise(contents, metric), ""]
        if contents.grid:
            lines += [*markdown(*grid_table(contents, metric)), ""]
    for name, title in PICTURES.items():
        if name in pictures:
            lines += [f"![{title}]({name})", ""]
    if contents.aggregates:
        tasks = ", ".join(code_of(metric) for metric in contents.tasks.values())
        lines += ["## All tasks", "", *markdown(*task_table(contents)), ""]
        lines += [f"Interquartile mean and probability of improvement (Agarwal et al. 2021) over {tasks}.", ""]
    if contents.scaling:
        lines += ["## Scaling", "", *(f"- {text_of(line)}" for line in scaling_lines(contents.scaling)), ""]
    lines += ["## Warnings", ""]
    lines += [f"- {text_of(notice.text)}" for notice in contents.notices] or ["None."]
    lines += ["", "## Budgets", "", *markdown(*budget_table(contents)), ""]
    if (searches := search_table(contents)) is not None:
        lines += ["## Searches", "", *markdown(*searches), "", "In brackets the value chosen.", ""]
    if contents.fields:
        lines += ["## Differences between arms", "", *markdown(*field_table(contents)), ""]
    return "\n".join([*lines, "## Method", "", text_of(method(study)), ""])


PICTURES = {
    "differences.png": "differences to the baseline",
    "curves.png": "learning curves",
    "grid.png": "grid",
    "pareto.png": "Pareto fronts",
    "scaling.png": "scaling",
}
