"""Tasks on one trunk: a step is one task's own step, drawn by share; every task is measured as if it were alone."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm.config import load
from lm.convert.runs import write_run
from lm.data.corpus.prepare import prepare
from lm.data.labelled.columns import Columns
from lm.data.labelled.files import Labelled
from lm.data.rows.pipeline import BLOCK, by_task
from lm.data.sources import Mixture, components
from lm.data.text.files import Text
from lm.errors import UserError
from lm.evaluation.downstream import asked
from lm.evaluation.held_out import HeldOut, held_out_of
from lm.evaluation.subject import Subject
from lm.evaluation.validation import Validation
from lm.models.transformer import Transformer
from lm.objectives.base import resolve, training_batches
from lm.objectives.causal import Causal
from lm.objectives.classify import Classify
from lm.objectives.mixture import Part
from lm.objectives.multitask import Tasks
from lm.objectives.regularised import Regularised
from lm.objectives.tag import Tag
from lm.sharding import AXES, make_mesh, place, unbox
from lm.start.adopt import adopt
from lm.start.begin import begin
from lm.train import gradients
from lm.training.parameters import matched
from lm.training.state import abstract_state, initialise
from tests.marks import quick
from tests.objectives.labelled import configs, prepared
from tests.processes import command
from tests.test_runs import identical, run

TINY = configs("tiny_tasks.py")
NAMES = ("reviews", "tags", "answers")


@functools.cache
def ready():
    config, corpus, batch = prepared(TINY)
    params = jax.jit(lambda key: unbox(config.objective.init(key, batch)))(jax.random.key(0))
    return config, corpus, params


@functools.cache
def first(number: int):
    """The first batch of a part."""
    config, corpus, _ = ready()
    batches = training_batches(config, corpus)
    return next(batch for batch in map(batches.__getitem__, range(BLOCK)) if batch["part"][0] == number)


def one_device():
    return make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1])


# -- which task, and which of its rows -----------------------------------------------------------------------------------


def counting(count: int) -> SimpleNamespace:
    return SimpleNamespace(count=count, at=lambda number, epoch: epoch * count + number)


def test_a_step_is_of_one_task_by_its_share_and_epochs_are_whole():
    shares, counts, batch = [0.5, 0.3, 0.2], [35, 17, 3], 2
    where = by_task([counting(n) for n in counts], shares, 0, batch)
    rows = [[where(step * batch + row)[:2] for row in range(batch)] for step in range(2 * BLOCK)]
    parts = np.array([{k for k, _ in one} for one in rows])
    assert all(len(one) == 1 for one in parts)
    parts = np.array([one.pop() for one in parts])
    for block in parts.reshape(2, BLOCK):
        np.testing.assert_allclose(np.bincount(block) / BLOCK, shares, atol=0.002)
        repeats = (block[1:] == block[:-1]).mean()  # of independent draws: the sum of the squared shares
        assert repeats == pytest.approx(sum(s * s for s in shares), abs=0.06)
    assert (parts[:BLOCK] != parts[BLOCK:]).any()
    for k, count in enumerate(counts):
        taken = np.array([at for one in rows for part, at in one if part == k])
        for epoch in range(len(taken) // count):
            lap = taken[epoch * count : (epoch + 1) * count]
            assert set(lap.tolist()) == set(range(epoch * count, (epoch + 1) * count))
    again = by_task([counting(n) for n in counts], shares, 0, batch)
    assert [again(i)[:2] for i in (3001, 5, 2000)] == [rows[i // batch][i % batch] for i in (3001, 5, 2000)]
    other = by_task([counting(n) for n in counts], shares, 1, batch)
    assert [other(batch * step)[0] for step in range(50)] != parts[:50].tolist()


def test_shares_are_sizes_to_the_power_of_one_by_the_temperature():
    config, corpus, _ = ready()
    assert [share for share, _ in corpus.train] == [0.5, 0.25, 0.25]
    sizes = np.array([len(side) for _, side in corpus.train])
    for temperature in (1.0, 3.0):
        source = dataclasses.replace(config.data.source, weights=(), temperature=temperature)
        found = prepare(dataclasses.replace(config.data, source=source))
        expected = sizes ** (1 / temperature)
        np.testing.assert_allclose([share for share, _ in found.train], expected / expected.sum())
    hot = dataclasses.replace(config.data.source, weights=(8.0, 1.0, 1.0), temperature=3.0)
    np.testing.assert_allclose([share for share, _ in components(hot)], [0.5, 0.25, 0.25])


def test_every_example_knows_its_source():
    _, corpus, _ = ready()
    for k, (_, side) in enumerate(corpus.train):
        assert {example.part for example in side.examples} == {k}
    names = ("reviews.csv", "sentences.conll", "questions.json")
    for k, name in enumerate(names):
        held_out = corpus.validation.of(k).examples
        assert held_out
        assert all(name in example.where for example in held_out) or name == "questions.json"


# -- one part a step -----------------------------------------------------------------------------------------------------


@functools.cache
def step():
    config, _, params = ready()
    keys_B = jax.random.split(jax.random.key(1), config.batch)
    return jax.jit(lambda batch: gradients(config, params, batch, None, keys_B)[:2]), keys_B


@pytest.mark.parametrize("number", quick(range(3), [1]))
def test_a_step_is_the_drawn_parts_own(number):
    """Loss and gradient are those of the part alone, times its weight; no other head moves."""
    config, _, params = ready()
    batch, (taken, keys_B), part = first(number), step(), config.objective.parts[number]
    for name in batch:
        assert not name.startswith(tuple(f"{n}/" for n in NAMES if n != part.name)) or not batch[name].any()
    grads, sums = jax.device_get(taken(batch))
    alone = dataclasses.replace(config, objective=part.objective)
    expected, own, _ = jax.device_get(
        jax.jit(lambda *args: gradients(alone, *args))(part.params(params), part.of(batch), None, keys_B)
    )
    assert sums["loss"][0] / sums["loss"][1] == pytest.approx(part.weight * own["loss"][0] / own["loss"][1], rel=1e-5)
    for name in params:
        for path, grad in jax.tree_util.tree_leaves_with_path(grads[name]):
            want = functools.reduce(lambda tree, key: tree[key.key], path, expected) if name in ("trunk", part.name) else 0
            np.testing.assert_allclose(grad, part.weight * np.asarray(want), atol=2e-6, err_msg=f"{name} {path}")
    active = {name.partition("/")[0] for name, pair in sums.items() if "/" in name and pair[1] > 0}
    assert active == {part.name}


def test_any_step_at_once():
    """Batches taken out of order, and in two halves: what a resumed run and two processes read."""
    config, corpus, _ = ready()
    batches, late = training_batches(config, corpus), training_batches(config, corpus)[37]
    for k in range(36, 38):
        whole = batches[k]
    halves = [training_batches(config, corpus, rows)[37] for rows in ((0, 4), (4, 8))]
    for name in whole:
        np.testing.assert_array_equal(whole[name], late[name])
        np.testing.assert_array_equal(whole[name], np.concatenate([half[name] for half in halves]))


# -- held-out examples ---------------------------------------------------------------------------------------------------


def test_every_part_is_measured_as_if_alone():
    config, corpus, params = ready()
    mesh = one_device()
    with jax.set_mesh(mesh):
        together = held_out_of(config, corpus, mesh)
        values, answers = together(params), dict(asked(together, params))
        losses = []
        for part, source, (share, _) in zip(config.objective.parts, config.data.source.sources, corpus.train):
            data = dataclasses.replace(config.data, source=source)
            fresh = next(p.objective for p in load(TINY).objective.parts if p.name == part.name)
            alone = dataclasses.replace(config, data=data, objective=fresh)
            alone, own = resolve(alone, prepare(data))
            held_out = HeldOut(alone, own, mesh)
            for name, value in held_out(part.params(params)).items():
                assert values[name.replace("validation/", f"validation/{part.name}/")] == pytest.approx(value, rel=1e-5), name
            ((_, expected),) = asked(held_out, part.params(params))
            found = answers[f"{part.name}/"]
            assert [one["where"] for one in found.predictions] == [one["where"] for one in expected.predictions]
            for name, figure in expected.figures().items():
                assert found.figures()[name].value == pytest.approx(figure.value, rel=1e-4, nan_ok=True), name
            losses.append(share * part.weight * values[f"eval/validation/{part.name}/loss"])
    assert values["eval/validation/loss"] == pytest.approx(sum(losses), rel=1e-6)
    again = Validation().measure(Subject(config, params, corpus.tokenizer))
    for name, value in values.items():
        assert again[name.removeprefix("eval/validation/")].value == pytest.approx(value, rel=1e-6), name
    assert "examples/tags/f1" in again


@pytest.mark.slow
def test_a_run_stops_goes_on_and_leaves_files_of_every_task(tmp_path):
    """Four steps at once, and two and two: the same to the bit."""
    more = ("--config.every.save=2", "--config.micro_batches=2", "--config.schedule.shape=constant")
    for workdir, count in (("straight", 4), ("pieces", 2), ("pieces", 4)):
        done = run(f"--workdir={tmp_path / workdir}", f"--config.steps={count}", *more, config=TINY)
        assert done.returncode == 0, done.stderr
    identical(tmp_path / "straight", tmp_path / "pieces", step=4)
    there = {path.name for path in (tmp_path / "straight").iterdir()}
    for name in NAMES:
        assert {f"predictions-{name}.jsonl", f"figures-{name}.json", f"errors-{name}.html"} <= there
    assert {"confusion-reviews.png", "confusion-tags.png", "learning.png"} <= there
    done = command("lm.evaluation.again", f"--workdir={tmp_path / 'straight'}", f"--output={tmp_path / 'again'}")
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        left, again = ((tmp_path / folder / f"figures-{name}.json").read_text() for folder in ("straight", "again"))
        assert json.loads(left) == json.loads(again)


# -- starts --------------------------------------------------------------------------------------------------------------


def test_paths_that_are_one_array():
    theirs = ["embed/table", "stack/norm/scale", "pooler/dense/kernel", "classifier/kernel"]
    wanted = ["trunk/embed/table", "trunk/stack/norm/scale"]
    wanted += ["a/pooler/dense/kernel", "b/pooler/dense/kernel", "b/classifier/kernel"]
    assert matched(wanted, theirs) == dict(zip(wanted, [*theirs[:3], theirs[2]]))
    assert matched(theirs, wanted) == dict(zip(theirs[:2], wanted[:2]))  # whose pooler and head would it be?
    assert matched(wanted, wanted) == dict(zip(wanted, wanted))


def begun(config, corpus):
    """Give the state that a config begins with at its start, and the lines."""
    mesh, batch = one_device(), training_batches(config, corpus)[0]
    with jax.set_mesh(mesh):
        abstract = abstract_state(config, place(batch, mesh, config.batch), mesh)
        state, lines = begin(config, initialise(config, batch, abstract), abstract)
    return state.params, lines


def test_runs_start_from_each_other(tmp_path):
    """Tasks from a single task's run, a single task from that of Tasks: the network goes over, heads are drawn."""
    plain = load(TINY)
    data = dataclasses.replace(plain.data, source=plain.data.source.sources[0])
    alone = dataclasses.replace(plain, data=data, objective=plain.objective.parts[0].objective)
    alone, own = resolve(alone, prepare(data))
    config, corpus, params = ready()
    drawn = unbox(alone.objective.init(jax.random.key(5), {}))
    write_run(alone, drawn, own.tokenizer, tmp_path / "alone")
    found, lines = begun(dataclasses.replace(config, start=str(tmp_path / "alone")), corpus)
    np.testing.assert_array_equal(found["trunk"]["embed"]["table"], drawn["embed"]["table"])
    np.testing.assert_array_equal(found["reviews"]["pooler"]["dense"]["kernel"], drawn["pooler"]["dense"]["kernel"])
    assert "drawn anew" in " ".join(lines)
    write_run(config, params, corpus.tokenizer, tmp_path / "tasks")
    back, _ = begun(dataclasses.replace(alone, start=str(tmp_path / "tasks"), seed=3), own)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["trunk"]):
        np.testing.assert_array_equal(functools.reduce(lambda tree, key: tree[key.key], path, back), leaf)
    assert (back["classifier"]["kernel"] != params["reviews"]["classifier"]["kernel"]).any()
    adopted, _ = adopt(dataclasses.replace(load(TINY), start=str(tmp_path / "alone")))
    assert {part.objective.model.vocab for part in adopted.objective.parts} == {alone.objective.model.vocab}


def test_a_published_folder_fills_the_trunk_and_every_pooler(tmp_path):
    pytest.importorskip("transformers")
    from lm.convert.convert import flat, load
    from tests.convert.test_task_heads import SEQUENCE, make, started, tokenizer

    make("Bert", SEQUENCE, tmp_path).bert.save_pretrained(tmp_path / "bare")
    model = load(tmp_path / "bare").objective.model
    kinds = {"tags": Tag(model=model, labels=("O", "X")), **dict.fromkeys("ab", Classify(model=model, labels=("x", "y")))}
    objective = Tasks(parts=tuple(Part(name=name, objective=kind) for name, kind in kinds.items())).resolve(tokenizer())
    fresh, found, said = started(tmp_path / "bare", objective)
    new = {name for name in found if np.array_equal(found[name], fresh[name])}
    assert new == {f"{name}/classifier/{leaf}" for name in kinds for leaf in ("kernel", "bias")}
    alone = flat(started(tmp_path / "bare", objective.parts[1].objective)[1])
    for name in ("embed/table", "pooler/dense/kernel"):
        np.testing.assert_array_equal(found[f"trunk/{name}" if "embed" in name else f"b/{name}"], alone[name])
    assert "left out" not in said


# -- mistakes ------------------------------------------------------------------------------------------------------------


def parts(*objectives):
    return tuple(Part(name=f"p{i}", objective=one) for i, one in enumerate(objectives))


def test_mistakes():
    net, other = Transformer(width=16, depth=1, heads=2), Transformer(width=32, depth=1, heads=2)
    with pytest.raises(UserError, match=r"'p1', Causal, reads running text"):
        Tasks(parts=parts(Classify(model=net), Causal(model=net)))
    with pytest.raises(UserError, match=r"'p1' has another network than 'p0' \(width 32, 16\)"):
        Tasks(parts=parts(Classify(model=net), Tag(model=other)))
    with pytest.raises(UserError, match="different names"):
        Tasks(parts=parts(Classify(model=net))[:1])
    for name in ("trunk", "embed", "query"):
        with pytest.raises(UserError, match="not one of the network's"):
            Part(name=name, objective=Tag(model=net))
    assert Tasks(parts=parts(Regularised(objective=Classify(model=net), adversarial=1.0), Tag(model=net))).measured()


def changed(**data):
    config = load(TINY)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def test_sources_that_do_not_fit(tmp_path):
    config = load(TINY)
    reviews, tags, answers = config.data.source.sources
    two = changed(source=Mixture(sources=(reviews, tags)))
    with pytest.raises(UserError, match=r"3 parts and 2 source\(s\)"):
        resolve(two, prepare(two.data))
    held_out = changed(validation=reviews)
    with pytest.raises(UserError, match=r"'tags' has no held-out"):
        resolve(held_out, prepare(held_out.data))
    swapped = changed(source=Mixture(sources=(tags, reviews, answers)))
    with pytest.raises(UserError, match="'label'"):
        resolve(swapped, prepare(swapped.data))
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{i} texts\n" for i in range(50)))
    text = changed(source=Text(path=str(path), documents="line"))
    with pytest.raises(UserError, match="labelled examples, not running text"):
        resolve(text, prepare(text.data))
    both = changed(validation=Mixture(sources=(reviews, tags, answers)))
    found = resolve(both, prepare(both.data))[1]
    assert {example.part for example in found.validation.examples} == {0, 1, 2}
    with pytest.raises(UserError, match="weight a source"):
        Mixture(sources=(Labelled(path="a"), Text(path="b")))
    with pytest.raises(UserError, match="weight a source"):
        Mixture(sources=(Labelled(path="a"), Columns(path="b")), weights=(1.0,))
    with pytest.raises(UserError, match="temperature"):
        Mixture(sources=(Labelled(path="a"), Columns(path="b")), temperature=0.0)
