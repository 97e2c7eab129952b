"""The tables of a report as text: Markdown, LaTeX (booktabs), CSV, and the terminal's."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence

from lm.console import duration, printable, table
from lm.studies.report.analyses import Scaling
from lm.studies.report.compare import Comparison
from lm.studies.report.contents import Contents, amount, decimals, fixed, probability
from lm.studies.report.warnings import QUANTITIES, UNEQUAL
from lm.studies.study import higher_is_better

Table = tuple[list[str], list[list[str]]]  # header, rows
RUN = ("arm", "seed", "hash", "state", "steps", "tokens", "flops", "params", "seconds")
COMPARISON = ("arm", "baseline", "metric", "n", "mean", "sd", "delta", "low", "high", "p", "p_holm", "verdict",
              "seeds_needed", "p_sign_flip", "diverged", "note")  # fmt: skip
NAMED = 6  # most arms of one verdict that the first sentence names
VERDICTS = ("better", "worse", "no difference found", "too few seeds", "without a verdict")
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
         ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": "{'}", "`": r"\textasciigrave{}",
         "[": "{[}", "−": "$-$", "±": r"$\pm$", "Δ": r"$\Delta$", "–": r"\textendash{}",
         **{c: "\\" + c for c in "{}$&#_%"}}  # fmt: skip


# -- tables of strings --------------------------------------------------------------------------------------------------


def result_table(contents: Contents, metric: str) -> Table:
    """Format the comparisons by one figure; an arm compared with a control is named "arm vs control"."""
    rows = contents.of(metric)
    mean, sd = contents.floor(metric)
    places = decimals(sd, mean)
    level = f"{100 * (1 - contents.study.level):g} %"
    header = ["arm", "n", "mean ± sd", f"Δ [{level} interval]", "p (Holm)", "p (sign flip)", "verdict"]
    return header, [[label(contents, row), *_cells(row, places)] for row in rows]


def summary(contents: Contents) -> str:
    """Answer the study's question by its first figure, in a sentence."""
    metric = contents.study.metrics[0]
    verdicts: dict[str, list[str]] = {}
    for row in contents.of(metric):
        if row.baseline:
            verdicts.setdefault(row.verdict or "without a verdict", []).append(label(contents, row))
    # A sentence names a few arms; the table below it holds all.
    named = {words: ", ".join(arms) if len(arms) <= NAMED else f"{len(arms)} arms" for words, arms in verdicts.items()}
    listed = "; ".join(f"{words}: {named[words]}" for words in VERDICTS if words in named)
    return f"By {metric}, compared with {contents.study.baseline}: {listed}." if listed else "There is one arm: no comparison."


def label(contents: Contents, row: Comparison) -> str:
    """Name a row by its arm, and by the control where it is compared with one."""
    return row.arm if row.baseline in ("", contents.study.baseline) else f"{row.arm} vs {row.baseline}"


def _cells(row: Comparison, places: int) -> list[str]:
    runs = str(row.runs.n) + (f" + {row.runs.diverged} diverged" if row.runs.diverged else "")
    spread = f" ± {fixed(row.runs.sd, places)}" if math.isfinite(row.runs.sd) else ""
    cells = [runs, fixed(row.runs.mean, places) + spread]
    if row.difference is None:
        words = " ".join(["baseline"] * (not row.baseline) + [row.words]).strip()
        return [*cells, "–", "–", "–", words or "–"]
    d = row.difference
    interval = f" [{fixed(d.low, places, True)}, {fixed(d.high, places, True)}]" if math.isfinite(d.low) else ""
    difference = fixed(d.mean_difference, places, True) + interval
    return [*cells, difference, probability(row.p), probability(d.p_sign), row.words or "–"]


def budget_table(contents: Contents) -> Table:
    """Format mean sizes of all arms, with their difference to the baseline's where it is above 2 %."""
    rows = []
    for spent in contents.budgets:
        cells = []
        for name in QUANTITIES:
            value, ratio = spent.amounts[name], spent.ratios[name]
            text = duration(value) if name == "seconds" and math.isfinite(value) else amount(value)
            cells.append(text + (f" ({ratio - 1:+.1%})".replace("-", "−") if abs(ratio - 1) > UNEQUAL else ""))
        rows.append([spent.arm, *cells, spent.tuned or "not tuned"])
    return ["arm", *("time" if name == "seconds" else words for name, words in QUANTITIES.items()), "tuned"], rows


def field_table(contents: Contents) -> Table:
    """Format the config fields that differ between arms."""
    names = [arm.name for arm in contents.study.arms]
    return ["field", *names], [[path, *(row[name] for name in names)] for path, row in contents.fields.items()]


def task_table(contents: Contents) -> Table:
    """Format interquartile means and probabilities of improvement over several tasks."""

    def cell(figure: object, value: float, low: float, high: float) -> str:
        return f"{value:.3f} [{low:.3f}, {high:.3f}]" if math.isfinite(low) else fixed(value, 3)

    rows = []
    for one in contents.aggregates:
        better = one.improvement
        rows.append([
            one.arm,
            str(one.runs),
            cell(one, one.iqm.value, one.iqm.low, one.iqm.high),
            cell(one, better.value, better.low, better.high) if better else "–",
        ])  # fmt: skip
    return ["arm", "n", "IQM [95 % interval]", "P(better than baseline) [95 % interval]"], rows


def grid_table(contents: Contents, metric: str) -> Table:
    """Format the means of a two-way grid."""
    grid = contents.grid
    assert grid is not None
    places = decimals(contents.floor(metric)[1], contents.floor(metric)[0])
    means = {row.arm: row.runs.mean for row in contents.of(metric)}
    rows = [[down, *(fixed(means[grid.arms[down, across]], places) for across in grid.columns)] for down in grid.rows]
    return [f"{grid.down} ↓ {grid.across} →", *grid.columns], rows


def search_table(contents: Contents) -> Table | None:
    """Format the searches of a tuned field, an arm a row, the chosen value in brackets; None without a search."""
    tune = contents.study.tune
    searches: dict[str, tuple[dict[str, float], str]] = {}
    for outcome in contents.outcomes if tune else ():
        for name, grid in outcome.search.items():
            searches[outcome.arm] = {str(value): figure for value, figure in grid}, str(outcome.tuned.get(name, ""))
    if tune is None or not searches:
        return None
    values = [str(value) for value in tune.values]
    rows = []
    for arm, (found, chosen) in searches.items():
        cells = [fixed(found.get(value, math.nan), 4) for value in values]
        rows.append([arm, *(f"[{cell}]" if value == chosen else cell for value, cell in zip(values, cells, strict=True))])
    return [tune.field, *values], rows


def scaling_lines(scaling: Scaling) -> list[str]:
    """Put a fitted law, or the optima of isoFLOP parabolas, into sentences."""
    if scaling.refused:
        return [f"No scaling law: {scaling.refused}."]
    if scaling.law is not None and scaling.constants is not None:
        law = scaling.law
        intervals = ", ".join(
            f"{name} = {one.value:.4g} [{one.low:.4g}, {one.high:.4g}]" for name, one in scaling.constants.items()
        )
        error = f"; without the largest run the law predicts its loss with an error of {scaling.extrapolation:+.2%}"
        return [
            f"L(N, D) = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.3g} + {law.B:.4g} / D^{law.beta:.3g}, fitted to "
            f"{len(scaling.losses)} runs (Hoffmann et al. 2022, approach 3)"
            + error * math.isfinite(scaling.extrapolation)
            + ".",
            f"95 % intervals of the bootstrap over runs: {intervals}.",
        ]
    lines = [
        f"{amount(one.flops)} FLOPs: the optimum has {amount(one.optimum)} parameters and a loss of {one.loss:.4g}."
        if math.isfinite(one.optimum)
        else f"{amount(one.flops)} FLOPs: {len(one.params)} runs enclose no optimum; add smaller or larger networks."
        for one in scaling.budgets
    ]
    coefficient, exponent = scaling.power
    if math.isfinite(exponent):
        lines.append(f"Optimal parameters = {coefficient:.3g} C^{exponent:.3g} (Hoffmann et al. 2022, approach 2).")
    return lines or ["No scaling law: no finished run has all sizes."]


# -- formats ------------------------------------------------------------------------------------------------------------


def text_of(value: str) -> str:
    """Escape a text for Markdown, on one line."""
    plain = re.sub(r"([\\`*_\[\]#|~!$^])", r"\\\1", " ".join(value.split()))
    # "@name" would call that user of a pull request.
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")


def code_of(value: str) -> str:
    """Quote a text as code in a cell of a Markdown table."""
    plain = " ".join(value.split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", plain)), default=0))
    return f"{fence} {plain} {fence}" if "`" in plain else f"`{plain}`" if plain else ""


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Format a table in Markdown, a line a row; texts are escaped."""
    lines = [[text_of(cell) for cell in row] for row in (header, *rows)]
    return [f"| {' | '.join(cells)} |" for cells in (lines[0], ["---"] * len(header), *lines[1:])]


def latex(value: str) -> str:
    """Escape a text for LaTeX, on one line."""
    # A row's "[" would be an argument of the line end before it, and "--" is another character.
    return "".join(LATEX.get(c, c) for c in " ".join(value.split()) if c.isprintable()).replace("--", "-{}-")


def latex_tables(contents: Contents) -> str:
    """Format the comparisons by each figure as booktabs tables, for an appendix."""
    parts = ["% \\usepackage{booktabs} and, for a text width, \\usepackage{graphicx}"]
    for metric in contents.study.metrics:
        header, rows = result_table(contents, metric)
        better = "higher" if higher_is_better(metric) else "lower"
        lines = [" & ".join(map(latex, cells)) + r" \\" for cells in (header, *rows)]
        parts.append(
            "\\begin{table}\n\\centering\n"
            + f"\\caption{{{latex(contents.study.question or contents.study.name or 'Ablation')} "
            + f"Figure: {latex(metric)} ({better} is better), baseline: {latex(contents.study.baseline)}.}}\n"
            + f"\\begin{{tabular}}{{l{'r' * (len(header) - 2)}l}}\n\\toprule\n{lines[0]}\n\\midrule\n"
            + "\n".join(lines[1:])
            + "\n\\bottomrule\n\\end{tabular}\n\\end{table}"
        )
    return "\n\n".join(parts) + "\n"


def _number(value: float | int | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def results_csv(contents: Contents) -> str:
    """Format a row a run: sizes, and every last figure, empty where it is not finite or missing."""
    names = sorted({name for outcome in contents.outcomes for name in outcome.figures} - set(RUN))
    rows = [
        [one.arm, one.seed, one.hash, one.state, one.steps]
        + [_number(value) for value in (one.tokens, one.flops, one.params, one.seconds)]
        + [_number(one.figures.get(name)) for name in names]
        for one in contents.outcomes
    ]
    return _csv([*RUN, *names], rows)


def comparisons_csv(contents: Contents) -> str:
    """Format a row an arm and figure; p is that of the verdict, p_holm the same after Holm, p_sign_flip a check beside it."""
    rows = []
    for row in contents.comparisons:
        d = row.difference
        n = row.runs.n if not row.baseline else d.n if d else 0
        numbers = (d.mean_difference, d.low, d.high, d.p) if d else (None,) * 4
        rows.append([
            row.arm, row.baseline, row.metric, n, _number(row.runs.mean), _number(row.runs.sd), *map(_number, numbers),
            _number(row.p), row.verdict, row.needed or "", _number(d.p_sign if d else None), row.runs.diverged, row.note,
        ])  # fmt: skip
    return _csv(COMPARISON, rows)


def terminal(contents: Contents) -> str:
    """Format the comparisons and warnings for the terminal."""
    parts = [summary(contents)]
    for metric in contents.study.metrics:
        header, rows = result_table(contents, metric)
        parts.append(f"{metric} ({'higher' if higher_is_better(metric) else 'lower'} is better)\n{table(rows, header)}")
    if contents.notices:
        parts.append("warnings\n" + "\n".join(f"  - {notice.text}" for notice in contents.notices))
    return printable("\n\n".join(parts))
