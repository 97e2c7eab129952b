"""What a fine-tuning run leaves behind: its figures against the published scorers, its files, the same again from disk."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from lm.data.labelled.answers import Candidate
from lm.data.types import Example
from lm.evaluation import downstream, predictions
from lm.evaluation.downstream import Found, leave
from lm.evaluation.metrics import qa, tagging
from lm.evaluation.predictions import FORMS
from lm.evaluation.report import errors_page, facets
from lm.evaluation.report.learning_curve import learning_curve
from tests.marks import quick
from tests.processes import command
from tests.test_runs import run

RUNS = {
    "tiny_classify.py": ("accuracy", "ece", {"confusion.png", "reliability.png"}),
    "tiny_classify.py:kind=several": ("f1/micro", "hamming", {"reliability.png"}),
    "tiny_classify.py:kind=number": ("spearman", "mse", set()),
    "tiny_tag.py": ("f1", "accuracy", {"confusion.png"}),
    "tiny_extract.py": ("exact", "f1", {"reliability.png"}),
    "tiny_choice.py": ("accuracy", "chance", {"reliability.png"}),
    "tiny_rank.py": ("spearman", "mae", set()),
    "tiny_text2text.py": ("bleu", "bits_per_byte", set()),
}
FILES = {"predictions.jsonl", "figures.json", "errors.html", "learning.png"}


QUICK = "tiny_tag.py"  # one of them always; a run and its evaluation are half a minute of a busy machine


@pytest.mark.parametrize("spec", quick(RUNS, [QUICK]))
def test_a_run_leaves_its_answers_and_evaluate_repeats_them(spec, tmp_path):
    often = ("--config.every.log=1", "--config.every.evaluate=1", "--config.every.sample=1")
    done = run(f"--workdir={tmp_path}", *often, config=f"tests/configs/{spec}")
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    before, *later = [line["train/programs"] for line in lines if "train/programs" in line]
    assert before == 0 < later[0]  # what evaluation, answers and samples need is built the first time
    assert set(later) == {later[0]}
    *names, pictures = RUNS[spec]
    there = {path.name for path in tmp_path.iterdir()}
    assert FILES | pictures <= there
    assert not ({"confusion.png", "reliability.png"} - pictures) & there
    left = json.loads((tmp_path / "figures.json").read_text())
    output = tmp_path / "found.json"
    done = command("lm.evaluate", f"--workdir={tmp_path}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    again = json.loads(output.read_text())["validation"]
    for name in [key for key in left if not key.endswith(("_low", "_high"))]:
        assert again[f"examples/{name}"] == left[name], name  # exactly, errors too
    assert set(names) <= set(left)
    summary = json.loads((tmp_path / "summary.json").read_text())
    logged = {key: value for key, value in summary.items() if key.startswith("eval/validation/examples/")}
    for key, value in logged.items():
        expected = left[key.removeprefix("eval/validation/examples/")]
        assert value == expected or (expected is None and not np.isfinite(float(value or np.nan))), key
    for line in (tmp_path / "predictions.jsonl").read_text().splitlines():
        assert {"where", "gold", "guess"} <= json.loads(line).keys()


@pytest.mark.slow
def test_the_files_can_be_written_again(tmp_path):
    done = run(f"--workdir={tmp_path / 'run'}", config="tests/configs/tiny_classify.py")
    assert done.returncode == 0, done.stderr
    done = command("lm.evaluation.again", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'again'}")
    assert done.returncode == 0, done.stderr
    names = FILES | {"confusion.png", "reliability.png"}
    assert names == {path.name for path in (tmp_path / "again").iterdir()}
    for name in ("predictions.jsonl", "figures.json"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.slow
def test_running_text_leaves_none_of_it(tmp_path):
    done = run(f"--workdir={tmp_path}", "--config.steps=2", config="tests/configs/tiny_masked.py")
    assert done.returncode == 0, done.stderr
    assert not FILES & {path.name for path in tmp_path.iterdir()}
    refused = command("lm.evaluation.again", f"--workdir={tmp_path}")
    assert refused.returncode == 2
    assert "running text" in refused.stderr


# -- figures, of answers that we make up ---------------------------------------------------------------------------------


def example(where: str = "a:1", **values) -> Example:
    return Example(values, where)


def classifier(labels=("a", "b", "c"), **more):
    answers = SimpleNamespace(reads=("text",))
    return SimpleNamespace(labels=labels, names=lambda one: [str(one.values["label"])], answers=answers, **more)


def made(name, objective, rows, examples) -> Found:
    form = FORMS[name]
    read = [(form.read(objective, one, parts), one) for parts, one in zip(rows, examples)]
    kept = [({"where": one.where, **found}, one) for found, one in read if found is not None]
    return Found(form, objective, [found for found, _ in kept], [one for _, one in kept])


def some_classes(count=200, seed=0, labels=("a", "b", "c")):
    rng = np.random.default_rng(seed)
    shares_NC = rng.dirichlet(np.ones(len(labels)), count)
    gold = rng.choice([*labels], count)
    rows = [
        [{"where": f"f:{i}", "gold": g, "guess": labels[int(p.argmax())], "probabilities": dict(zip(labels, map(float, p)))}]
        for i, (g, p) in enumerate(zip(gold.tolist(), shares_NC))
    ]
    return rows, [example(f"f:{i}", text=f"text {i}", label=g) for i, g in enumerate(gold.tolist())]


def test_classes_are_measured_as_scikit_learn_does():
    from sklearn import metrics

    found = made("classes", classifier(), *some_classes())
    truth, guess = ([one[side] for one in found.predictions] for side in ("gold", "guess"))
    figures = found.figures()
    expected = {
        "accuracy": metrics.accuracy_score(truth, guess),
        "f1/macro": metrics.f1_score(truth, guess, average="macro"),
        "f1/b": metrics.f1_score(truth, guess, average=None)[1],
        "matthews": metrics.matthews_corrcoef(truth, guess),
        "balanced_accuracy": metrics.balanced_accuracy_score(truth, guess),
    }
    for name, value in expected.items():
        assert figures[name].value == pytest.approx(value, abs=1e-12), name
        assert figures[name].error > 0
    shares = np.array([[*one["probabilities"].values()] for one in found.predictions])
    assert figures["nll"].value == pytest.approx(metrics.log_loss(truth, shares, labels=["a", "b", "c"]), abs=1e-9)


def test_a_label_that_training_lacks_counts_nothing():
    rows, examples = some_classes(50)
    examples[3] = example("f:3", text="x", label="unheard of")
    assert len(made("classes", classifier(), rows, examples).predictions) == 49


def test_numbers_written_as_text_are_labels_or_numbers():
    rows = [[{"where": "f:1", "gold": 1, "guess": "1", "probabilities": {"0": 0.2, "1": 0.8}}]]
    assert made("classes", classifier(("0", "1")), rows, [example(text="x", label=1)]).predictions[0]["right"] == 1
    rows = [[{"where": f"f:{i}", "gold": str(i), "guess": float(i * i)}] for i in range(6)]
    figures = made("numbers", classifier(), rows, [example(text="x")] * 6).figures()
    assert figures["spearman"].value == pytest.approx(1)
    assert figures["pearson"].value == pytest.approx(np.corrcoef(np.arange(6), np.arange(6) ** 2)[0, 1])


def test_several_labels_are_measured_as_scikit_learn_does():
    from sklearn import metrics

    rng = np.random.default_rng(1)
    gold, shares, labels = rng.random((80, 3)) < 0.4, rng.random((80, 3)), ("a", "b", "c")
    examples = [example(f"f:{i}", text="x", topics=[n for n, on in zip(labels, row) if on]) for i, row in enumerate(gold)]
    rows = [
        [{"where": "", "gold": [], "guess": [n for n, q in zip(labels, p) if q > 0.5], "probabilities": dict(zip(labels, p))}]
        for p in shares.tolist()
    ]
    objective = SimpleNamespace(labels=labels, names=lambda one: one.values["topics"], answers=SimpleNamespace(reads=("text",)))
    figures = made("labels", objective, rows, examples).figures()
    for how in ("micro", "macro"):
        assert figures[f"f1/{how}"].value == pytest.approx(metrics.f1_score(gold, shares > 0.5, average=how))
    assert figures["subset_accuracy"].value == pytest.approx(metrics.accuracy_score(gold, shares > 0.5))


def tagger(labels):
    def merge(parts):
        return [tag for _, tag in sorted(pair for part in parts for pair in zip(part["words"], part["guess"]))]

    return SimpleNamespace(labels=labels, tags="tags", words="words", merge=merge)


def test_windows_of_a_sentence_are_put_together_and_measured_as_seqeval_does():
    from seqeval.metrics import f1_score, precision_score

    labels = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    rng = np.random.default_rng(2)
    gold, guess = ([rng.choice(labels, 9).tolist() for _ in range(60)] for _ in range(2))
    examples = [example(f"f:{i}", words=list("abcdefghi"), tags=tags) for i, tags in enumerate(gold)]
    rows = [
        [{"where": "", "words": [4, 5, 6, 7, 8], "guess": tags[4:]}, {"where": "", "words": [0, 1, 2, 3], "guess": tags[:4]}]
        for tags in guess
    ]
    found = made("tags", tagger(labels), rows, examples)
    assert [one["guess"] for one in found.predictions] == guess
    figures = found.figures()
    assert figures["f1"].value == pytest.approx(f1_score(gold, guess))
    assert figures["precision"].value == pytest.approx(precision_score(gold, guess))


def test_tags_that_are_no_spans_are_measured_word_by_word():
    from sklearn.metrics import f1_score

    labels = ("O", "COMMA", "STOP")
    rows = [[{"where": "", "words": [0, 1, 2], "guess": ["O", "COMMA", "STOP"]}]]
    found = made("tags", tagger(labels), rows, [example(words=["a", "b", "c"], tags=["O", "O", "STOP"])])
    expected = f1_score(["O", "O", "STOP"], ["O", "COMMA", "STOP"], average="macro", labels=labels)
    assert found.figures()["f1"].value == pytest.approx(expected)
    assert predictions.scheme_of(("O", "B-A", "L-A", "U-A")) == "BILOU"
    assert predictions.scheme_of(("B-A", "E-A", "M-A", "S-A")) == "conlleval"


def reader(null: bool):
    def merge(one, parts):
        (part,) = parts
        context, best = one.values["context"], max(part["spans"])
        text = "" if null and part["none"] > best.score else context[best.start : best.end]
        listed = [{"text": context[s.start : s.end], "score": s.score, "start": s.start} for s in part["spans"]]
        return {"text": text, "odds": part["none"] - best.score, "candidates": listed}

    answers = lambda one: list(zip(one.values["answers"], one.values["starts"]))  # noqa: E731
    reads = SimpleNamespace(reads=("question", "context"))
    return SimpleNamespace(null=null, merge=merge, gold=answers, answers=reads)


def test_answers_by_squads_rules_and_by_cmrcs_for_chinese():
    context = "The Cat sat on the mat."
    one = example(context=context, question="Who?", answers=["Cat"], starts=[4])
    none = example(context=context, question="Why?", answers=[], starts=[])
    rows = [[{"where": "", "none": -9.0, "spans": [Candidate(1.0, 0, 7), Candidate(0.0, 8, 11)]}]]
    rows += [[{"where": "", "none": 5.0, "spans": [Candidate(1.0, 0, 7)]}]]
    found = made("spans", reader(null=True), rows, [one, none])
    assert [p["guess"] for p in found.predictions] == ["The Cat", ""]
    figures = found.figures()
    assert {n: figures[n].value for n in ("exact", "exact/has_answer", "exact/no_answer")} == pytest.approx(
        {"exact": 1, "exact/has_answer": 1, "exact/no_answer": 1}
    )  # SQuAD takes the article away
    weights = np.exp([1.0, 0.0, -9.0])
    assert found.predictions[0]["confidence"] == pytest.approx(weights[0] / weights.sum())

    rows = [[{"where": "", "none": 0.0, "spans": []}]]  # every likely end lies before every likely start
    empty = SimpleNamespace(null=False, merge=lambda *_: {"text": "", "odds": np.inf, "candidates": []}, gold=lambda _: [])
    (nothing,) = made("spans", empty, rows, [none]).predictions
    assert (nothing["confidence"], nothing["probabilities"], nothing["odds"]) == (0.0, {}, None)

    chinese = example(context="黑豹队的防守只丢了分。", question="谁？", answers=["黑豹队"], starts=[0])
    rows = [[{"where": "", "none": 0.0, "spans": [Candidate(1.0, 0, 4)]}]]
    found = made("spans", reader(null=False), rows, [chinese])
    assert found.predictions[0]["rule"] == "CMRC"
    assert found.figures()["f1"].value == pytest.approx(2 * 3 / 7)  # characters, three of four and three


def some_questions() -> Found:
    """Two questions with an answer and two without; the best bound lies between odds of -1 and 2."""
    context, asked = "The Cat sat on the mat.", (("a", ["Cat"], -3.0), ("b", ["mat"], -1.0), ("c", [], 2.0), ("d", [], 4.0))
    examples = [
        example(f"q:{name}", id=name, context=context, question="?", answers=golds, starts=[0] * len(golds))
        for name, golds, _ in asked
    ]
    rows = [[{"where": "", "none": odds, "spans": [Candidate(0.0, *span)]}]
            for (_, _, odds), span in zip(asked, [(4, 7), (19, 22), (8, 11), (0, 7)])]  # fmt: skip
    one = reader(null=True)
    form = FORMS["spans"]
    read = [{"where": e.where, **downstream.id_of(e), **form.read(one, e, parts)} for e, parts in zip(examples, rows)]
    return Found(form, one, read, examples)


def test_the_best_bounds_on_no_answer_are_among_the_figures():
    found = some_questions()
    for one in found.predictions:  # as a reader says them whose own bound is far off
        one["guess"] = ""
    figures = found.figures()
    assert (figures["best_exact"].value, figures["best_f1"].value) == (1, 1)
    assert figures["best_f1_threshold"].value == -1
    assert figures["exact"].value == 0.5
    answered = Found(*found[:2], found.predictions[:2], found.examples[:2])
    assert not [name for name in answered.figures() if name.startswith("best")]  # no question is without an answer
    silent = qa.best_thresholds(["x", "y"], [[], []], np.array([0.5, 3.0]))
    assert (silent["best_f1"].value, silent["best_f1_threshold"].value) == (1, -0.5)
    none = [{**one, "odds": None, "probabilities": {"": 1.0}} for one in found.predictions]  # not one span to choose
    assert Found(*found[:2], none, found.examples).figures()["best_exact"].value == 0.5


def test_squads_script_finds_each_answer_by_its_id(tmp_path):
    found = some_questions()
    leave(found, found.figures(), tmp_path, "part/")
    assert json.loads((tmp_path / "squad-part.json").read_text()) == {"a": "Cat", "b": "mat", "c": "", "d": ""}
    for lacking in ({"id": "a"}, {}):  # the same id twice, none at all
        again = [{k: v for k, v in one.items() if k != "id"} | lacking for one in found.predictions]
        assert downstream.squad(again) == {}
    assert downstream.id_of(example(id="")) == downstream.id_of(example(id=["a"])) == downstream.id_of(example()) == {}
    assert downstream.id_of(example(id=7)) == {"id": 7}


def test_options_of_different_number():
    rows = [[{"where": "", "gold": 1, "guess": 1, "probabilities": [0.4, 0.6]}]]
    rows += [[{"where": "", "gold": 0, "guess": 2, "probabilities": [0.2, 0.3, 0.5]}]]
    figures = made("options", SimpleNamespace(), rows, [example("a:1"), example("a:2")]).figures()
    assert figures["accuracy"].value == 0.5
    assert figures["chance"].value == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert figures["brier"].value == pytest.approx(((0.4**2 * 2) + (0.8**2 + 0.3**2 + 0.5**2)) / 2)


def test_every_form_can_be_drawn():
    assert set(FORMS) == set(errors_page.STYLES) == set(facets.INDEXES)


# -- files -------------------------------------------------------------------------------------------------------------


class Parsed(HTMLParser):
    """Tags, texts, and whatever a page would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.fetched, self.said = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href") and not v.startswith("#")]

    def handle_data(self, data):
        self.said += data


def test_the_page_of_errors_trusts_no_text_and_fetches_nothing(tmp_path):
    rows, examples = some_classes(60)
    nasty = '<script>alert("x")</script>{{body}}<img src=http://x/y>'
    sure = [{"where": nasty, "gold": nasty, "guess": "b", "probabilities": {"a": 0.001, "b": 0.998, nasty: 0.001}}]
    labels = ("a", "b", nasty)
    rows, examples = some_classes(60, labels=labels)
    found = made("classes", classifier(labels), [sure, *rows], [example(nasty, text=nasty, label=nasty), *examples])
    paths = leave(found, found.figures(), tmp_path / "run<b>")
    page = (tmp_path / "run<b>" / "errors.html").read_text(encoding="utf-8")
    parsed = Parsed(page)
    assert parsed.tags.count("script") == 1  # the page's own
    assert "img" not in parsed.tags
    assert not parsed.fetched
    assert nasty in parsed.said
    assert parsed.tags.count("section") == sum(one["right"] < 1 for one in found.predictions)
    assert page.index("99.8% sure") < page.index("% sure", page.index("99.8% sure") + 20)
    shown = [float(part.rpartition(">")[2]) for part in page.split("% sure")[:-1]]
    assert shown == sorted(shown, reverse=True)
    assert "prefers-color-scheme: dark" in page
    for path in paths:
        assert path.stat().st_size > 0


def test_entities_are_marked_by_what_is_wrong_with_them():
    labels = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    words = ["Anna", "Berg", "met", "Bonn", "and", "Rome", "in", "New", "York"]
    gold = ["B-PER", "I-PER", "O", "B-LOC", "O", "B-LOC", "O", "B-LOC", "I-LOC"]
    guess = ["B-PER", "I-PER", "B-LOC", "O", "O", "B-PER", "O", "O", "B-LOC"]
    rows = [[{"where": "", "words": list(range(9)), "guess": guess}]]
    found = made("tags", tagger(labels), rows, [example(words=words, tags=gold)])
    page = errors_page.page("x", found, found.figures())
    for part in (
        'good"><span>Anna Berg</span><small>PER<', 'bad"><span>met</span><small>LOC, made up<',
        'missed"><span>Bonn</span><small>LOC, missed<', 'bad"><span>Rome</span><small>LOC, taken for PER<',
        'bad"><span>New York</span><small>LOC, other bounds<',
    ):  # fmt: skip
        assert part in page
    assert Parsed(page).said.count("York") == 1
    shares = {sort: found.figures()[f"mistakes/{sort}"].value for sort in tagging.SORTS}
    assert shares == {"type": 1 / 4, "bounds": 1 / 4, "both": 0, "missed": 1 / 4, "spurious": 1 / 4}


def test_overlapping_answers_are_marked_once():
    context = "abcdefgh"
    one = example(context=context, question="<b>Which?</b>", answers=["bcde"], starts=[1])
    rows = [[{"where": "", "none": -9.0, "spans": [Candidate(1.0, 3, 7)]}]]
    found = made("spans", reader(null=False), rows, [one])
    page = errors_page.page("x", found, found.figures())
    parts = '<mark class="gold">bc</mark><mark class="gold guess">de</mark><mark class="guess">fg</mark>'
    assert f'<p class="text said" dir="auto">a{parts}h</p>' in page
    assert "&lt;b&gt;Which?&lt;/b&gt;" in page


def test_figures_on_disk_are_json_and_pictures_are_drawn(tmp_path):
    found = made("classes", classifier(), *some_classes())
    leave(found, found.figures(), tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["accuracy_low"] < figures["accuracy"] < figures["accuracy_high"]
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 200
    assert sum(line["right"] for line in lines) / 200 == pytest.approx(figures["accuracy"])
    for name in ("confusion.png", "reliability.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_curve_needs_figures(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "train/loss": 2.0}\n')
    assert not learning_curve(log, tmp_path / "learning.png")
    log.write_text("".join(f'{{"step": {s}, "eval/validation/examples/f1": {s / 10}}}\n' for s in (1, 2, 3)))
    assert learning_curve(log, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").stat().st_size > 1000


def test_a_short_look_waits_for_the_end():
    held_out = SimpleNamespace(count=1, batches=[0, 1], tokens=None)
    assert downstream.logged(held_out, None, None) == {}
