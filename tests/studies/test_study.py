"""A study as a value: its arms, its plan, its paired runs, and the mistakes that it names."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lm.config import from_json, load, to_json
from lm.data.corpus.prepare import prepare
from lm.errors import UserError
from lm.objectives.base import resolve, training_batches
from lm.objectives.quantity import LIKELIHOOD, quantity
from lm.sharding import unbox
from lm.studies.arms import axis, changed, grid, named, parse_axes, together
from lm.studies.measures import essence
from lm.studies.plan import SEARCH, Measure, Planner, check_figures, summary
from lm.studies.runs import check_asked
from lm.studies.study import Arm, Budget, Study, Tune, differences, essential, hash_of, higher_is_better, load_study

TINY = "tests/configs/tiny.py"


def tiny(**fields):
    return changed(load(TINY), {name.replace("__", "."): value for name, value in fields.items()})


def measured(config, before):
    """A measure without a measurement: the width is the cost."""
    return Measure("k" * 12, 1000, 256.0, 1e6 * config.objective.model.width, 0.5, 4000, 10**8, 2.0, quantity(config.objective))


def planned(study, folder="study", chosen=None):

    return list(Planner(study, Path(folder), measured).runs(chosen or {}))


# -- arms --------------------------------------------------------------------------------------------------------------


def test_a_grid_is_a_product_and_a_zip_is_not():
    arms = grid(
        tiny(),
        {"optimizer.lr": (1e-3, 3e-3), "objective.model.positions": ("rotary", "learned")},
        together({"steps": (5, 6), "batch": (4, 8)}),
    )
    assert len(arms) == 8
    assert arms[0].name == "lr=0.001 positions=rotary steps=5 batch=4"
    assert {(arm.config.steps, arm.config.batch) for arm in arms} == {(5, 4), (6, 8)}
    assert {arm.config.optimizer.lr for arm in arms} == {1e-3, 3e-3}
    assert [arm.name for arm in named(tiny(), {"a": {}, "b": {"seed": 4}})] == ["a", "b"]


def test_objects_are_values_of_a_grid():
    model = dataclasses.replace(tiny().objective.model, width=16)
    (arm,) = grid(tiny(), {"objective.model": (model,)})
    assert arm.config.objective.model == model
    assert arm.name == "model=Transformer"


def test_axes_of_the_command_line():
    assert parse_axes("a.b=1,2 c=x") == {"a.b": ["1", "2"], "c": ["x"]}
    assert parse_axes("betas=0.9,0.9;0.9,0.95") == {"betas": ["0.9,0.9", "0.9,0.95"]}
    _, other = grid(tiny(), {"optimizer.betas": parse_axes("b=0.9,0.9;0.9,0.95")["b"]})
    assert other.config.optimizer.betas == (0.9, 0.95)
    for text in ("a", "=1", "a=", "a=1 a=2"):
        with pytest.raises(UserError, match="--grid"):
            parse_axes(text)


def test_differences_name_the_fields():
    arms = grid(tiny(), {"objective.model.positions": ("rotary", "learned")})
    table = differences(arms)
    assert table == {"objective.model.positions": {"positions=rotary": "rotary", "positions=learned": "learned"}}


# -- mistakes ----------------------------------------------------------------------------------------------------------


def arms_of(*names):
    return tuple(Arm(name=name, stages=(tiny(batch=4 * k + 4),)) for k, name in enumerate(names))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Study(arms=()), "at least one Arm"),
        (lambda: Study(arms=arms_of("a", "a")), "two arms are named 'a'"),
        (lambda: Study(arms=(Arm(name="a", stages=(tiny(),)), Arm(name="b", stages=(tiny(seed=1),)))), "'a' and 'b' are equal"),
        (lambda: Study(arms=arms_of("rotary", "b"), baseline="rotory"), "did you mean 'rotary'"),
        (lambda: Study(arms=arms_of("a"), seeds=(1, 1)), "different whole numbers"),
        (lambda: Study(arms=arms_of("a"), metrics=()), "metrics is empty"),
        (lambda: Budget(steps=1, tokens=2), "one kind"),
        (lambda: Budget(), "one kind"),
        (lambda: Tune(values=(1e-3,)), "at least two values"),
        (lambda: Study(arms=arms_of("a"), seeds=(0, 7), tune=Tune(values=(1e-3, 1e-2), seed=7)), "one of the study's seeds"),
        (lambda: Arm(name="a/b", stages=(tiny(),)), "a name has no"),
        (lambda: Arm(name="a", stages=(tiny(),), shares=(1.0, 2.0)), "1 stages and 2 shares"),
        (lambda: grid(tiny(), {"optimizer.rate": (1, 2)}), "no field|unknown"),
        (lambda: grid(tiny(), {"seed": (1, 2)}, axis("seed", (3,))), "two axes"),
        (lambda: together({"a": (1, 2), "b": (1,)}), "as many values"),
        (lambda: check_figures(Study(arms=arms_of("a"), metrics=("bbc/eval/validation/accuracy",))), "no arm has a figure"),
        (lambda: check_figures(Study(arms=(Arm(name="a", stages=(tiny(data__validation=0.0),)),))), "holds nothing out"),
        (lambda: planned(Study(arms=arms_of("a"), budget=Budget(flops=5))), "less than one of its steps"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_study_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from lm.config import load\nfrom lm.studies.arms import grid\nfrom lm.studies.study import Study\n\n\n"
        "def study(seeds: int = 2) -> Study:\n"
        f"    return Study(arms=grid(load('{TINY}'), {{'optimizer.lr': (1e-3, 1e-2)}}), seeds=seeds)\n"
    )
    study = load_study(f"{path}:seeds=4")
    assert (study.name, study.seeds, study.baseline) == ("mine", (0, 1, 2, 3), "lr=0.001")
    assert to_json(from_json(to_json(study))) == to_json(study)
    path.write_text("def study():\n    return 3\n")
    with pytest.raises(UserError, match="not a Study"):
        load_study(str(path))
    with pytest.raises(UserError, match="no function study"):
        load_study(TINY)


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_runs_are_named_by_their_whole_config():
    arms = grid(tiny(), {"optimizer.lr": (1e-3, 1e-2)})
    runs = planned(Study(arms=arms, seeds=3))
    assert [(run.arm, run.seed) for run in runs] == [(arm.name, seed) for seed in range(3) for arm in arms]
    assert len({run.hash for run in runs}) == 6
    # The folder of the study is no part of a name; every field of a config is.
    assert [run.hash for run in planned(Study(arms=arms, seeds=3), "elsewhere")] == [run.hash for run in runs]
    assert hash_of(tiny(every__log=2)) != hash_of(tiny())


def test_a_new_field_or_a_moved_class_keeps_the_hash(tmp_path, monkeypatch):
    """A hash is of the values that differ from defaults; a default that changed is an error, not a silent mixture."""
    config = tiny(optimizer__lr=2e-3)
    assert hash_of(config) == hash_of(dataclasses.replace(config, batch=config.batch))
    assert hash_of(config) != hash_of(tiny(optimizer__lr=3e-3))
    text = json.dumps(essential(config))
    assert "0.002" in text
    assert "lm.models" not in text
    assert "skip_limit" not in text
    (tmp_path / "asked.json").write_text(to_json(config).replace('"skip_limit": 20', '"skip_limit": 30'))
    with pytest.raises(UserError, match="another default of skip_limit"):
        check_asked(tmp_path, config)
    (tmp_path / "asked.json").write_text(to_json(config).replace(' "skip_limit": 20,\n', ""))
    check_asked(tmp_path, dataclasses.replace(config, start="elsewhere"))


def test_budgets_give_steps():
    arms = grid(tiny(), {"objective.model.width": (32, 64)})
    for budget, steps in ((Budget(steps=7), (7, 7)), (Budget(tokens=2560), (10, 10)), (Budget(flops=64e7), (20, 10))):
        runs = planned(Study(arms=arms, seeds=1, budget=budget))
        assert tuple(run.config.steps for run in runs) == steps
    plan = summary(Study(arms=arms, seeds=1, budget=Budget(flops=64e7)), runs, set(), 2)
    assert [arm["flops"] for arm in plan["arms"].values()] == [64e7, 64e7]
    assert plan["hours"] == pytest.approx((2 * 2 + 30 * 0.5) / 3600 / 2)


def test_stages_share_the_budget_and_equal_ones_are_trained_once():
    first, second = tiny(), load("tests/configs/tiny_masked.py")
    arms = (
        Arm(name="causal", stages=(first,)),
        Arm(name="both", stages=(first, second), shares=(1, 3)),
        Arm(name="again", stages=(first, first), shares=(1, 3)),
    )
    runs = planned(Study(arms=arms, seeds=1, budget=Budget(steps=100), downstream={"next": tiny(batch=4)}))
    stages = {(run.arm, run.stage): run for run in runs}
    assert {key: run.config.steps for key, run in stages.items()} == {
        ("causal", "train"): 100,
        ("causal", "next"): 12,
        ("both", "stage-1"): 25,  # shared with the arm "again"
        ("both", "train"): 75,
        ("both", "next"): 12,
        ("again", "train"): 75,
        ("again", "next"): 12,
    }
    last = stages["both", "train"]
    assert last.after == (stages["both", "stage-1"].hash,)
    assert last.config.start.endswith(f"runs/{stages['both', 'stage-1'].hash}")


def test_a_search_does_not_leak():
    study = Study(arms=grid(tiny(), {"batch": (4, 8)}), seeds=2, tune=Tune(values=(1e-3, 1e-2), share=0.5))
    searches = planned(study)
    assert {run.stage for run in searches} == {SEARCH}
    assert {(run.seed, run.config.data.half, run.config.steps) for run in searches} == {(1000, "first", 6)}
    runs = [run for run in planned(study, chosen={"batch=4": 1e-2}) if run.stage != SEARCH]
    assert {(run.arm, run.seed, run.config.data.half, run.config.optimizer.lr) for run in runs} == {
        ("batch=4", seed, "second", 1e-2) for seed in (0, 1)
    }


def test_seeds_and_rates_share_a_measure():
    assert essence(tiny(seed=4, optimizer__lr=0.5, steps=9), None) == essence(tiny(), None)
    assert essence(tiny(batch=4), None) != essence(tiny(), None)


# -- pairing -----------------------------------------------------------------------------------------------------------


def test_arms_of_one_seed_are_paired(tmp_path):
    """Equal data, and equal initial values where shapes agree: a difference between arms is not one between draws."""
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"some words {i} of a text" * 9 for i in range(60)))
    arms = {}
    for positions in ("learned", "rotary"):
        config = changed(load(f"{TINY}:text={text}"), {"objective.model.positions": positions, "seed": 3})
        config, corpus = resolve(config, prepare(config.data, tmp_path / "cache"))
        batch = training_batches(config, corpus)[0]
        params = jax.jit(lambda key, c=config, b=batch: unbox(c.objective.init(key, b)))(jax.random.key(3))
        arms[positions] = batch, dict(jax.tree_util.tree_leaves_with_path(params))
    (one, mine), (other, theirs) = arms["learned"], arms["rotary"]
    assert all(np.array_equal(one[name], other[name]) for name in one)
    shared = [name for name in mine if name in theirs]
    assert len(shared) == len(theirs) == len(mine) - 1
    assert all(np.array_equal(mine[name], theirs[name]) for name in shared)


def test_quantities_tell_losses_apart():
    assert quantity(tiny().objective) == LIKELIHOOD
    masked = load("tests/configs/tiny_masked.py").objective
    assert quantity(masked) != quantity(dataclasses.replace(masked, rate=0.4))
    assert quantity(masked) == quantity(dataclasses.replace(masked, model=dataclasses.replace(masked.model, width=64)))
    assert higher_is_better("bbc/eval/validation/accuracy")
    assert not higher_is_better("eval/validation/bits_per_byte")


def test_json_of_a_study_holds_everything():
    study = Study(arms=arms_of("a", "b"), tune=Tune(values=(1e-3, 1e-2)), downstream={"x": tiny()}, budget=Budget(flops=1e9))
    again = from_json(to_json(study))
    assert again == study or to_json(again) == to_json(study)
    assert json.loads(to_json(study))["type"] == "lm.studies.study.Study"


# -- the studies that come with lm -------------------------------------------------------------------------------------

STUDIES = sorted(path.stem for path in Path("configs/studies").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", STUDIES)
def test_studies_have_a_plan(name, tmp_path):
    """Every study can be made, planned, saved and read; its page names it."""
    study = load_study(f"{name}:text=x.txt" if name == "chinese" else name)
    check_figures(study)

    def measure(config, before):
        return Measure("k" * 12, 1000, 1024.0, 8e9, 0.3, 4000, 10**8, 5.0, LIKELIHOOD)

    planner = Planner(study, tmp_path, measure)
    runs = planner.anticipated({})
    assert len(runs) >= len(study.arms) * len(study.seeds)
    assert to_json(from_json(to_json(study))) == to_json(study)
    assert differences(study.arms)
    text = Path("configs/studies/README.md").read_text()
    assert f"`{name}`" in text
    assert study.question in text
    assert f"--study={name}" in Path(f"configs/studies/{name}.py").read_text()


def test_the_study_of_the_page():
    study = load_study("tests/examples/study.py:seeds=2")
    assert [arm.name for arm in study.arms] == ["activation=gelu", "activation=swiglu", "activation=relu2"]
    assert len([line for line in Path("tests/examples/study.py").read_text().splitlines() if line][1:]) <= 10
