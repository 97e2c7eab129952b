"""The report of a study: its numbers against scipy, its warnings, and its formats with hostile names."""

import csv
import dataclasses
import io
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from launch import report as launcher
from lm.errors import UserError
from lm.flags import parse_flags
from lm.objectives.masked import Masked
from lm.studies import results
from lm.studies.report import write_report
from lm.studies.report.analyses import POINTS, curve_of, front, grid_of, scale
from lm.studies.report.compare import aggregate, compare, results_of, select
from lm.studies.report.contents import decimals, fixed, gather, probability
from lm.studies.report.document import document
from lm.studies.report.figures import DRAWERS
from lm.studies.report.page import page
from lm.studies.report.tables import comparisons_csv, latex, latex_tables, results_csv, summary, terminal, text_of
from lm.studies.report.warnings import warn
from lm.studies.results import Outcome, Point
from lm.studies.study import LOSS, Arm, Study, Tune
from tests.processes import command
from tests.studies import makers

ACCURACY = "eval/validation/accuracy"
HOSTILE = "=<b>$x_1$ & 50% \\input{a} `#~^` [x](y) é"  # as an arm's name: no '/', ',' or '|'
NOT_FINITE = "the loss or its gradient was not finite for 20 steps in a row, up to step 60"


def rows_of(study: Study, outcomes: list[Outcome], metric: str = LOSS) -> dict[tuple[str, str], object]:
    return {(row.arm, row.baseline): row for row in compare(study, outcomes) if row.metric == metric}


# -- comparisons --------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_scipy():
    study = makers.study(("plain", "wide", "other", "fourth"), seeds=6)
    outcomes = makers.outcomes(study, [0, -0.02, 0.004, 0.05])
    rows = rows_of(study, outcomes)
    values = {arm.name: [o.figures[LOSS] for o in outcomes if o.arm == arm.name] for arm in study.arms}
    p = {}
    for name in ("wide", "other", "fourth"):
        row, test = rows[name, "plain"], stats.ttest_rel(values[name], values["plain"])
        differences = np.subtract(values[name], values["plain"])
        flips = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
        p[name] = test.pvalue
        assert (row.runs.n, row.difference.n, row.seeds) == (6, 6, study.seeds)
        assert (row.runs.mean, row.runs.sd) == pytest.approx((np.mean(values[name]), np.std(values[name], ddof=1)), rel=1e-12)
        assert (row.difference.mean_difference, row.difference.p) == pytest.approx((differences.mean(), test.pvalue), rel=1e-9)
        interval = test.confidence_interval(0.95)
        assert (row.difference.low, row.difference.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert row.difference.p_sign == pytest.approx(flips.pvalue, rel=1e-12)
    order, adjusted = sorted(p, key=p.get), 0.0
    for k, name in enumerate(order):  # Holm: the k-th smallest of m by m - k, never below the one before
        adjusted = max(adjusted, min(1.0, (3 - k) * p[name]))
        assert rows[name, "plain"].p == pytest.approx(adjusted, rel=1e-9)
    assert (rows["wide", "plain"].verdict, rows["fourth", "plain"].verdict) == ("better", "worse")


def test_level_and_direction():
    """A higher accuracy is better; the interval is at the study's level."""
    study = makers.study(("plain", "wide"), metrics=(ACCURACY,), level=0.1)
    outcomes = [
        dataclasses.replace(
            o, figures={ACCURACY: 0.7 + 0.1 * (o.arm == "wide") + 0.004 * ((3 * o.seed + (o.arm == "wide")) % 5)}
        )
        for o in makers.outcomes(study)
    ]
    row = rows_of(study, outcomes, ACCURACY)["wide", "plain"]
    values = [[o.figures[ACCURACY] for o in outcomes if o.arm == name] for name in ("wide", "plain")]
    assert row.verdict == "better"
    assert row.difference.low == pytest.approx(stats.ttest_rel(*values).confidence_interval(0.9).low, rel=1e-9)


def test_words():
    study = makers.study(("plain", "wide"), seeds=3)
    row = rows_of(study, makers.outcomes(study, [0, 0.001], noise=0.02))["wide", "plain"]
    assert row.verdict == "too few seeds"
    assert row.needed > 3
    assert row.words == f"too few seeds: {row.needed} would do"
    many = makers.study(("plain", "wide"), seeds=12, relevant=0.05)
    assert rows_of(many, makers.outcomes(many, [0, 0.001], noise=0.02))["wide", "plain"].words == "no difference found"


def test_a_control_is_a_baseline_of_its_own():
    arms = (makers.arm("plain"), makers.arm("idea", lr=0.02), makers.arm("as large", lr=0.03, control_of="idea"))
    study = Study(arms=arms, seeds=5)
    rows = rows_of(study, makers.outcomes(study, [0, -0.1, -0.1], noise=0.002))
    assert list(rows) == [("plain", ""), ("idea", "plain"), ("as large", "plain"), ("idea", "as large")]
    assert rows["idea", "plain"].verdict == rows["as large", "plain"].verdict == "better"
    assert rows["idea", "as large"].verdict not in ("better", "worse")


def test_unlike_losses_get_no_verdict():
    """Neither a difference nor a place among the comparisons that Holm corrects; other figures are compared."""
    study = makers.study(("plain", "masked", "other"), metrics=(LOSS, "eval/validation/perplexity", ACCURACY))
    figures = {ACCURACY: 0.5, "eval/validation/perplexity": 20.0}
    outcomes = makers.outcomes(study, [0, -1, 0.1], figures=figures)
    alone = [o for o in outcomes if o.arm != "masked"]
    unlike = makers.replaced(outcomes, "masked", quantity="pseudo-likelihood")
    for metric in (LOSS, "eval/validation/perplexity"):
        rows = rows_of(study, unlike, metric)
        assert rows["masked", "plain"].words.startswith("not comparable: ")
        assert "pseudo-likelihood here, negative log-likelihood in plain" in rows["masked", "plain"].note
        assert rows["masked", "plain"].difference is None
        assert not rows["masked", "plain"].verdict
    few = dataclasses.replace(study, arms=(study.arms[0], study.arms[2]))
    assert rows_of(study, unlike)["other", "plain"].p == rows_of(few, alone)["other", "plain"].p
    # The targets of a masked model change with its rate, those of labelled examples do not.
    assert not rows_of(study, unlike, ACCURACY)["masked", "plain"].verdict
    labelled = [dataclasses.replace(o, figures={**o.figures, "eval/validation/examples/accuracy": 0.5}) for o in unlike]
    assert rows_of(study, labelled, ACCURACY)["masked", "plain"].verdict
    assert rows_of(study, outcomes)["masked", "plain"].verdict == "better"
    assert [notice.kind for notice in warn(study, unlike, compare(study, unlike))] == ["quantity"] * 3


def test_losses_of_stages_and_downstream_runs():
    """Each is compared by the quantity of its own config."""
    other = dataclasses.replace(makers.CONFIG, objective=Masked(model=makers.CONFIG.objective.model))
    metrics = ("stage-1/eval/validation/loss", "task/eval/validation/loss", LOSS)
    wide = makers.arm("wide", lr=0.02)
    first = Arm(name="plain", stages=(makers.CONFIG, makers.CONFIG))
    cases = (
        (Arm(name="wide", stages=(other, wide.config)), [False, True, True]),
        (Arm(name="wide", stages=(makers.CONFIG, wide.config), downstream={"task": other}), [True, False, True]),
    )
    for second, expected in cases:
        study = Study(arms=(first, second), downstream={"task": makers.CONFIG}, metrics=metrics)
        outcomes = makers.outcomes(study, figures=dict.fromkeys(metrics, 3.0))
        assert [bool(rows_of(study, outcomes, metric)["wide", "plain"].verdict) for metric in metrics] == expected


def test_tokens_of_two_tokenizers_are_not_compared():
    other = dataclasses.replace(makers.CONFIG, data=dataclasses.replace(makers.CONFIG.data, tokenizer=None))
    study = Study(
        arms=(makers.arm("bytes"), Arm(name="words", stages=(other,))), metrics=(LOSS, "eval/validation/bits_per_byte")
    )
    outcomes = makers.outcomes(study, figures={"eval/validation/bits_per_byte": 1.5})
    assert "bits_per_byte is comparable" in rows_of(study, outcomes)["words", "bytes"].note
    assert rows_of(study, outcomes, "eval/validation/bits_per_byte")["words", "bytes"].verdict


def test_states_of_runs():
    """A run that diverged is the worst; one that failed otherwise, runs or is missing has no pair."""
    study = makers.study(("plain", "wide"), seeds=6)
    outcomes = makers.outcomes(study, [0, -0.1], noise=0.002)
    broken = makers.replaced(outcomes, "wide", (0,), state="failed", reason=NOT_FINITE)
    broken = makers.replaced(broken, "wide", (1,), state="failed", reason="out of memory")
    broken = makers.replaced(broken, "wide", (2,), state="running")
    broken = makers.replaced(broken, "plain", (3,), state="missing")
    assert {seed: math.isnan(x) for seed, x in results_of(broken, "wide", LOSS).items()} == {
        0: True,
        3: False,
        4: False,
        5: False,
    }
    row = rows_of(study, broken)["wide", "plain"]
    assert (row.runs.n, row.runs.diverged, row.seeds) == (3, 1, (0, 4, 5))
    assert (row.difference.n, row.difference.diverged) == (2, 1)
    assert row.verdict == "too few seeds"
    assert rows_of(study, outcomes)["wide", "plain"].verdict == "better"


def test_a_baseline_without_results():
    study = makers.study(("plain", "wide"))
    outcomes = makers.outcomes(study)
    failed = makers.replaced(outcomes, "plain", state="failed", reason="out of memory", figures={})
    with pytest.raises(UserError, match=r"all runs of the baseline 'plain' failed \(out of memory\): .* --baseline"):
        gather(study, failed)
    rows = rows_of(study, makers.replaced(outcomes, "plain", state="running"))
    assert rows["wide", "plain"].words == "plain has no result"
    assert rows["plain", ""].note == "has no result"


def test_figures_and_baselines_are_selected():
    study = makers.study(("plain", "wide"))
    outcomes = makers.outcomes(study)
    chosen = select(study, outcomes, f"train/loss,{LOSS}", "wide")
    assert (chosen.metrics, chosen.baseline) == (("train/loss", LOSS), "wide")
    with pytest.raises(UserError, match="unknown metric 'eval/validation/los': did you mean 'eval/validation/loss'"):
        select(study, outcomes, "eval/validation/los")
    with pytest.raises(UserError, match="unknown arm 'wid': did you mean 'wide'"):
        select(study, outcomes, baseline="wid")


def test_several_tasks():
    tasks = {"cls": makers.CONFIG, "ner": makers.CONFIG}
    names = [f"{name}/eval/validation/examples/accuracy" for name in tasks]
    study = makers.study(("plain", "wide"), downstream=tasks, metrics=(LOSS, names[0]))
    rng = np.random.default_rng(0)
    outcomes = [dataclasses.replace(o, figures=o.figures | dict(zip(names, rng.random(2)))) for o in makers.outcomes(study)]
    found, (plain, wide) = aggregate(study, outcomes)
    assert list(found.values()) == names
    scores = {
        arm: np.array([[o.figures[name] for name in names] for o in outcomes if o.arm == arm]) for arm in ("plain", "wide")
    }
    assert plain.improvement is None
    assert wide.iqm.value == pytest.approx(stats.trim_mean(scores["wide"].ravel(), 0.25), rel=1e-12)
    u = [stats.mannwhitneyu(scores["wide"][:, k], scores["plain"][:, k]).statistic / 25 for k in range(2)]
    assert wide.improvement.value == pytest.approx(np.mean(u), rel=1e-12)
    assert aggregate(makers.study(("plain", "wide")), outcomes) == ({}, [])
    assert "## All tasks" in document(gather(study, outcomes), ())


# -- warnings -----------------------------------------------------------------------------------------------------------


def kinds(study: Study, outcomes: list[Outcome]) -> list[str]:
    return [notice.kind for notice in warn(study, outcomes, compare(study, outcomes))]


CHANGES = {
    "failed": {"state": "failed", "reason": "out of memory"},
    "unequal": {"params": 10_300},
    "edge": {"tuned": {"optimizer.lr": 0.01}},
    "untuned": {"tuned": {}},
    "unmeasured": {"figures": {}},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_of_one_arm_is_one_warning(kind):
    study = makers.study(tune=Tune(values=(0.001, 0.003, 0.01)))
    outcomes = makers.outcomes(study, tuned={"optimizer.lr": 0.003})
    assert kinds(study, outcomes) == []
    seeds = (0,) if kind == "failed" else ()
    (notice,) = warn(study, changed := makers.replaced(outcomes, "wide", seeds, **CHANGES[kind]), compare(study, changed))
    assert notice.kind == kind
    assert "wide" in notice.text
    assert notice.text in document(gather(study, changed), ()).replace("\\", "")
    assert "wide" in summary(gather(study, changed))


def test_budgets_within_two_percent_are_equal():
    study = makers.study()
    outcomes = makers.outcomes(study)
    assert kinds(study, makers.replaced(outcomes, "wide", tokens=1.019e6, flops=6.1e10, seconds=61.0)) == []
    assert kinds(study, makers.replaced(outcomes, "wide", tokens=0.97e6, flops=7e10, seconds=50.0)) == ["unequal"] * 3
    varied = dataclasses.replace(study, scaling="law")
    assert "unequal" not in kinds(varied, makers.replaced(outcomes, "wide", tokens=2e6))


def test_a_schedule_that_has_not_cooled():
    """A warning only beside others that have; the last stage counts."""
    study = makers.study(("plain", "wide"))
    outcomes = makers.outcomes(study)
    hot = [makers.outcome(study, "wide", seed, 3.0, final_rate=0.5) for seed in study.seeds]
    (notice,) = warn(study, mixed := outcomes[::2] + hot, compare(study, mixed))
    assert notice.kind == "uncooled"
    assert notice.text.startswith("wide: ended at 50% of its peak")
    both = [makers.outcome(study, "plain", seed, 3.0, final_rate=0.5) for seed in study.seeds]
    assert kinds(study, both + hot) == []

    def staged(last: float) -> list[Outcome]:
        rates = ((0, 0.01), (0, 0.001), (1, 0.001), (1, last))
        curve = tuple(Point(k, k, k, k, {"train/lr": rate}, stage) for k, (stage, rate) in enumerate(rates))
        return [*outcomes[::2], *makers.replaced(outcomes[1::2], "wide", curve=curve)]

    assert kinds(study, staged(0.0001)) == []
    assert kinds(study, staged(0.0005)) == ["uncooled"]


def test_runs_that_are_not_there():
    study = makers.study(("plain", "wide"), seeds=3)
    outcomes = makers.outcomes(study)
    some = [o for o in makers.replaced(outcomes, "wide", (1,), state="running") if (o.arm, o.seed) != ("wide", 2)]
    (notice,) = warn(study, some, compare(study, some))
    assert notice.text == "wide: seed 1 is running, seed 2 is missing; results of seed 0 are used"
    assert "4 of 6 runs done (a partial report)" in document(gather(study, some), ())
    assert "partial" not in document(gather(study, outcomes), ())


def test_diverged_runs_and_partial_evaluations():
    study = makers.study(("plain", "wide"))
    outcomes = makers.outcomes(study)
    (notice,) = warn(
        study, lost := makers.replaced(outcomes, "wide", (1,), state="failed", reason=NOT_FINITE), compare(study, lost)
    )
    assert notice == dataclasses.replace(notice, kind="diverged", text=f"wide, seed 1 diverged: {NOT_FINITE}")
    assert kinds(study, makers.replaced(outcomes, "wide", (1,), figures={LOSS: math.nan})) == ["diverged"]
    partly = Study(arms=(makers.arm("plain"), makers.arm("wide", lr=0.02, evaluate_batches=4)))
    (notice,) = warn(partly, outcomes, compare(partly, outcomes))
    assert notice.kind == "partial"
    assert notice.text == "wide: evaluated on 4 batches, not on all held-out rows"


# -- analyses -----------------------------------------------------------------------------------------------------------


def test_grids():
    cells = list(itertools.product((64, 32), (0.003, 0.01, 0.001)))
    study = Study(arms=tuple(makers.arm(f"{width} {lr}", width=width, lr=lr) for width, lr in cells))
    grid = grid_of(study)
    assert {grid.down, grid.across} == {"objective.model.width", "optimizer.lr"}
    assert {grid.rows, grid.columns} == {("32", "64"), ("0.001", "0.003", "0.01")}  # in the order of numbers
    assert sorted(grid.arms.values()) == sorted(arm.name for arm in study.arms)
    assert grid_of(dataclasses.replace(study, arms=study.arms[:-1])) is None
    # A third field that one of the two determines.
    deeper = Study(arms=tuple(makers.arm(f"{w} {lr}", width=w, depth=w // 16, lr=lr) for w, lr in cells))
    assert grid_of(deeper) is not None
    odd = Study(arms=tuple(makers.arm(f"{w} {lr}", width=w, depth=k + 1, lr=lr) for k, (w, lr) in enumerate(cells)))
    assert grid_of(odd) is None
    assert document(gather(study, makers.outcomes(study)), ()).count("| 0.01") >= 1


def test_curves_average_seeds():
    def run(seed: int, values: dict[int, float]) -> Outcome:
        points = [Point(step, 10.0 * step, 100.0 * step, seed + step, {"x": value}) for step, value in values.items()]
        return Outcome("a", seed, "", "running", curve=points)

    curve = curve_of([run(0, {1: 1.0, 2: 4.0, 3: 5.0}), run(1, {1: 3.0, 2: math.nan})], "a", "x")
    assert curve.x["tokens"].tolist() == [10, 20, 30]
    assert curve.x["seconds"].tolist() == [1.5, 2.5, 3]
    assert curve.seeds.tolist() == [2, 2, 1]
    np.testing.assert_array_equal(curve.mean, [2, math.nan, 5])
    np.testing.assert_allclose(curve.sd, [math.sqrt(2), math.nan, math.nan])
    assert curve_of([], "a", "x") is None
    long = curve_of([run(0, {step: float(step) for step in range(1, 2001)})], "a", "x")
    assert len(long.mean) == POINTS
    assert (long.x["steps"][0], long.x["steps"][-1]) == (1, 2000)


@pytest.mark.parametrize("higher", [False, True])
def test_fronts(higher):
    rng = np.random.default_rng(0)
    costs, values = rng.integers(0, 8, 30).astype(float), rng.normal(size=30)
    values[3] = math.nan
    sign = -1 if higher else 1
    beaten = [
        any(
            costs[j] <= costs[i] and sign * values[j] <= sign * values[i] and (costs[j], values[j]) != (costs[i], values[i])
            for j in range(30)
        )
        for i in range(30)
    ]
    expected = {i for i in range(30) if not beaten[i] and not math.isnan(values[i])}
    found = front(costs, values, higher)
    assert set(found) == expected
    assert found == sorted(found, key=lambda i: costs[i])


def scaled(kind: str) -> tuple[Study, list[Outcome]]:
    """Return runs whose losses follow parabolas with optima at 1e6 (C / 1e15)^0.5, or a law of Hoffmann's form."""
    arms = tuple(makers.arm(f"{k}", lr=0.001 * (k + 1)) for k in range(15))
    study = Study(arms=arms, seeds=1, scaling=kind)
    outcomes = []
    for k, arm in enumerate(arms):
        flops, size = 1e15 * 4.0 ** (k // 5), 10 ** (0.25 * (k % 5) - 0.5)
        params = 1e6 * (flops / 1e15) ** 0.5 * size
        tokens = flops / 6 / params
        loss = 3 - 0.1 * (k // 5) + 0.3 * math.log10(size) ** 2
        if kind == "law":
            loss = 1.7 + 400 / params**0.34 + 410 / tokens**0.28
        outcomes.append(makers.outcome(study, arm.name, 0, loss, params=params, tokens=tokens, flops=flops))
    return study, outcomes


def test_isoflop_parabolas(tmp_path):
    study, outcomes = scaled("isoflop")
    scaling = scale(study, outcomes)
    assert [one.flops for one in scaling.budgets] == pytest.approx([1e15, 4e15, 1.6e16])
    assert [one.optimum for one in scaling.budgets] == pytest.approx([1e6, 2e6, 4e6], rel=1e-6)
    assert scaling.power[1] == pytest.approx(0.5, rel=1e-6)
    contents = gather(study, outcomes)
    assert "Optimal parameters = " in document(contents, ())
    assert DRAWERS["scaling.png"](contents, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 5_000


def test_a_scaling_law(tmp_path):
    study, outcomes = scaled("law")
    scaling = scale(study, outcomes)
    assert (scaling.law.E, scaling.law.alpha, scaling.law.beta) == pytest.approx((1.7, 0.34, 0.28), rel=0.02)
    contents = dataclasses.replace(gather(dataclasses.replace(study, scaling=""), outcomes), scaling=scaling)
    assert "fitted to 15 runs" in document(contents, ())
    assert DRAWERS["scaling.png"](contents, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 5_000
    few = scale(study, outcomes[:2])
    assert few.law is None
    assert "do not determine" in few.refused
    assert scale(dataclasses.replace(study, scaling=""), outcomes) is None


# -- formats ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile():
    """A study whose names and texts are escape sequences of every format."""
    names = ("plain", HOSTILE, "-minus", "@at")
    study = makers.study(names, name=f"{HOSTILE}/|</script>", question=f"{HOSTILE}\n# heading", seeds=3)
    outcomes = makers.outcomes(study, [0, 0.05, -0.05, 0], figures={'a,"b"': 1.5})
    outcomes = makers.replaced(outcomes, "@at", (1,), state="failed", reason=f"{HOSTILE}|\\end{{table}}")
    return study, makers.replaced(outcomes, "-minus", samples=(("\ud800</script>", "{{ 7 * 7 }}<img src=x>"),))


def test_csv(hostile):
    study, outcomes = hostile
    contents = gather(study, outcomes)
    header, *rows = csv.reader(io.StringIO(results_csv(contents)))
    assert header[:9] == ["arm", "seed", "hash", "state", "steps", "tokens", "flops", "params", "seconds"]
    assert header[9:] == sorted(header[9:])
    assert len(rows) == 12
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["arm"] for row in table[::3]] == [arm.name for arm in study.arms]
    assert [float(row[LOSS]) for row in table] == [o.figures[LOSS] for o in contents.outcomes]
    assert table[0]['a,"b"'] == "1.5"
    header, *rows = csv.reader(io.StringIO(comparisons_csv(contents)))
    assert header[:13] == ["arm", "baseline", "metric", "n", "mean", "sd", "delta", "low", "high", "p", "p_holm", "verdict",
                           "seeds_needed"]  # fmt: skip
    table = [dict(zip(header, row, strict=True)) for row in rows]
    for row, cells in zip(contents.comparisons, table, strict=True):
        assert (cells["arm"], cells["baseline"], cells["verdict"]) == (row.arm, row.baseline, row.verdict)
        if row.difference:
            numbers = (row.difference.mean_difference, row.difference.low, row.difference.p, row.p)
            assert tuple(float(cells[name]) for name in ("delta", "low", "p", "p_holm")) == numbers
    assert "nan" not in comparisons_csv(contents)


def test_markdown(hostile):
    """Every line of a table has the cells of its header, and no text is markup."""
    text = document(gather(*hostile), ("curves.png",))
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "<b>" not in text
    assert "</script>" not in text
    assert "@" not in text
    assert [line for line in text.splitlines() if line.startswith("# ")] == [f"# {text_of(hostile[0].name)}"]
    assert "![learning curves](curves.png)" in text


def test_latex(hostile):
    text = latex_tables(gather(*hostile))
    (tabular,) = re.findall(r"\\toprule\n(.*)\n\\bottomrule", text, re.DOTALL)
    rows = tabular.replace("\\midrule\n", "").split(" \\\\\n")
    assert len(rows) == 5
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {6}
    for row in rows:  # after escapes and our own mathematics no active character remains
        rest = re.sub(r"\\text\w+\{\}|\\[{}$&#_%]|\$\\pm\$|\$\\Delta\$|\$-\$|\{['\[]?\}", "", row).removesuffix(" \\\\")
        assert not re.search(r"[\\${}#_%^~]", rest.replace("&", "")), rest
    assert latex("\\end{tabular}") == r"\textbackslash{}end\{tabular\}"
    assert latex("[a--b-c") == "{[}a-{}-b-c"


def test_numbers_as_text():
    assert (decimals(0.0123, 3.0), decimals(12.0, 300.0), decimals(math.nan, 3.0)) == (3, 0, 3)
    assert (fixed(-0.5, 2, True), fixed(1234.5, 1), fixed(math.nan, 2)) == ("−0.50", "1,234.5", "–")
    assert [probability(p) for p in (0.0004, 0.05, 1.0, math.nan)] == ["< .001", ".050", "1", "–"]


def test_page_of_hostile_names(hostile):
    html = page(gather(*hostile))
    assert "<img src=x>" not in html
    assert "<b>$x" not in html
    assert html.count("</script>") == 2  # the data and the script


# -- files --------------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_results_give_equal_files(tmp_path):
    cells = itertools.product((32, 64), (0.001, 0.01))
    study = Study(arms=tuple(makers.arm(f"{w} {lr}", width=w, lr=lr) for w, lr in cells), seeds=3)
    outcomes = makers.outcomes(study, [0, 0.1, 0.2, 0.3])
    text = write_report(tmp_path, study, outcomes)
    first = files_of(tmp_path)
    assert {name for name in first if not name.endswith(".png")} == {
        "report.md", "report.html", "report.tex", "results.csv", "comparisons.csv"}  # fmt: skip
    pictures = {name: data for name, data in first.items() if name.endswith(".png")}
    assert set(pictures) == {"differences.png", "curves.png", "grid.png", "pareto.png"}
    assert all(data.startswith(b"\x89PNG") and len(data) > 5_000 for data in pictures.values())
    assert all(f"({name})" in first["report.md"].decode() and name in text for name in pictures)
    write_report(tmp_path, study, outcomes[::-1])  # in whatever order they were read
    assert files_of(tmp_path) == first
    # Before the first run there is nothing to draw: no picture of an earlier state stays.
    write_report(tmp_path, study, [])
    assert set(files_of(tmp_path)) == set(first) - set(pictures)
    assert "0 of 12 runs done (a partial report)" in (tmp_path / "report.md").read_text()


def test_the_command(tmp_path, monkeypatch, capsys):
    study = makers.study()
    outcomes = makers.outcomes(study, [0, -0.1, 0.1], noise=0.002)
    monkeypatch.setattr(results, "read_results", lambda folder: (study, outcomes))
    launcher.VALUES(["report", f"--folder={tmp_path}", "--metric=train/loss", "--baseline=wide"])
    launcher.main([])
    shown = capsys.readouterr().out
    assert shown.startswith("By train/loss, compared with wide: worse: plain, other.\n")
    assert re.search(r"^plain .* worse$", shown, re.MULTILINE)
    assert str(tmp_path / "report.html") in shown
    assert terminal(gather(select(study, outcomes, "train/loss", "wide"), outcomes)) in shown


def test_the_folder_is_an_argument_without_a_name():
    values = launcher.VALUES
    for arguments in (("runs/x", "--metric=m"), ("--metric", "m", "runs/x"), ("--folder=runs/x", "--metric=m")):
        parse_flags(values, ["report", *arguments], argument="folder")
        assert (launcher.FOLDER.value, launcher.METRIC.value) == ("runs/x", "m")
    with pytest.raises(UserError, match="'one two' is not a flag"):
        parse_flags(values, ["report", "one", "two"], argument="folder")
    parse_flags(values, ["report", "--folder="], argument="folder")
    with pytest.raises(UserError, match="which study"):
        launcher.main([])


def test_a_folder_without_a_study_is_one_line():
    done = command("launch.report", "nowhere", "--metric=x")
    assert done.returncode == 2
    assert done.stderr == "error: 'nowhere' is no study: it has no study.json\n"
