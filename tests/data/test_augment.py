"""Augmented training examples: how much is changed, what never is, files and their mistakes, a run with them."""

import json
from collections import Counter
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest

from lm.config import Data, from_json, load, to_json
from lm.data.corpus.augment import CodeSwitch, Edits, Paraphrases, SpanCutoff, augmented, chosen
from lm.data.corpus.prepare import prepare
from lm.data.corpus.rewording import EditableText, EditableWords
from lm.data.labelled.columns import Columns
from lm.data.labelled.files import Labelled
from lm.data.sources import Mixture
from lm.data.text.files import Text
from lm.data.tokenizer.tokenizer import Bytes
from lm.data.types import Example
from lm.errors import UserError

CONFIGS = Path(__file__).parent.parent / "configs"


def write(path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def texts(count: int, words: int = 20) -> list[Example]:
    """Texts whose words are all different."""
    return [Example({"text": " ".join(f"w{i}x{k}" for k in range(words)), "label": "a"}, f"f:{i}") for i in range(count)]


def copies(examples: list[Example], *kinds) -> list[tuple[dict, dict]]:
    """Pair each copy with its example."""
    (side,) = augmented([examples], kinds)
    pairs, last = [], {}
    for one in side:
        if "copy" in one.where:
            pairs.append((last, one.values))
        else:
            last = one.values
    return pairs


def groups(tmp_path, examples: list[Example]) -> str:
    """A file that gives every other word of the texts two synonyms."""
    words = [word for one in examples for word in one.values["text"].split()[::2]]
    return write(tmp_path / "synonyms.txt", "\n".join(f"{word}\t{word}s, {word}t" for word in words))


def kind_of(old: list[str], new: list[str]) -> str:
    if sorted(old) == sorted(new):
        return "swap"
    return {0: "replace", 1: "insert", -1: "remove"}[np.sign(len(new) - len(old))]


def test_each_edit_changes_its_share_of_the_words(tmp_path):
    """20 words at a rate of 0.2: four are replaced, inserted or left out; four swaps move at most eight."""
    examples = texts(100)
    pairs = copies(examples, Edits(copies=4, rate=0.2, synonyms=groups(tmp_path, examples)))
    assert len(pairs) == 400
    found = Counter()
    for before, after in pairs:
        assert after["label"] == "a"
        old, new = before["text"].split(" "), after["text"].split(" ")
        kind = kind_of(old, new)
        found[kind] += 1
        fresh = [word for word in new if word not in old]
        assert all(word[:-1] in old[::2] and word[-1] in "st" for word in fresh)
        if kind == "replace":
            assert [i for i in range(20) if old[i] != new[i]] == [i for i, word in enumerate(new) if word in fresh]
        if kind in ("insert", "remove"):
            blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
            assert sum(block.size for block in blocks) == min(len(old), len(new))  # the others keep their order
        assert len(fresh) == (4 if kind in ("replace", "insert") else 0)
        assert len(new) == 20 + {"insert": 4, "remove": -4}.get(kind, 0)
        assert kind != "swap" or 2 <= sum(a != b for a, b in zip(old, new)) <= 8
    assert found == {"replace": 100, "insert": 100, "swap": 100, "remove": 100}  # each example had each


def test_words_and_spaces():
    text = EditableText({"text": "“Don't” 看电影, मिली हिन्दी 3.5 e-mail…"}, "text")
    assert text.words == ["Don't", "看", "电", "影", "मिली", "हिन्दी", "3.5", "e-mail"]
    assert text.written() == {"text": "“Don't” 看电影, मिली हिन्दी 3.5 e-mail…"}
    for i, left in ((0, "b c, d."), (1, "a c, d."), (2, "a b, d."), (3, "a b c, .")):
        line = EditableText({"text": "a b c, d."}, "text")
        line.remove(i)
        assert line.written()["text"] == left
    line = EditableText({"text": "a b."}, "text")
    line.insert(2, "y")
    line.insert(0, "x")
    assert line.written()["text"] == "x a b y."
    line = EditableText({"text": "北京。"}, "text")
    line.insert(1, "x")
    assert line.written()["text"] == "北x京。"


def test_spans_are_masked_whole_and_start_anywhere():
    starts = Counter()
    for before, after in copies(texts(600, 10), SpanCutoff(rate=0.3)):
        old, new = before["text"].split(), after["text"].split()
        places = [i for i in range(10) if new[i] == "_"]
        assert places == list(range(places[0], places[0] + 3))
        assert all(new[i] == old[i] for i in range(10) if i not in places)
        starts[places[0]] += 1
    assert sorted(starts) == list(range(8))
    assert max(abs(count - 75) for count in starts.values()) < 4.5 * np.sqrt(600 * 7 / 64)
    (pair,) = copies([Example({"text": "我们看电影"}, "")], SpanCutoff(rate=0.2, mask=""))
    assert len(pair[1]["text"]) == 4


def test_switches_between_languages(tmp_path):
    examples = texts(400)
    words = [word for one in examples for word in one.values["text"].split()[:10]]
    paths = (
        write(tmp_path / "de.txt", "\n".join(f"{word} {word}d{k}" for word in words for k in "12")),
        write(tmp_path / "fr.tsv", "\n".join(f"{word}\t{word}f de" for word in words)),
    )
    pairs = copies(examples, CodeSwitch(paths=paths, rate=0.4, sentences=0.75))
    assert abs(len(pairs) - 300) < 4.5 * np.sqrt(400 * 0.75 * 0.25)
    found = Counter()
    for before, after in pairs:
        rest = after["text"].replace("f de", "F").split()
        for i, (old, new) in enumerate(zip(before["text"].split(), rest, strict=True)):
            assert old == new or (i < 10 and new.startswith(old))
            found[new.removeprefix(old)] += 1
    changed, total = sum(found[name] for name in ("d1", "d2", "F")), 10 * len(pairs)
    assert abs(changed - 0.4 * total) < 4.5 * np.sqrt(total * 0.24)
    assert abs(found["F"] - changed / 2) < 4.5 * np.sqrt(changed / 4)
    assert abs(found["d1"] - found["d2"]) < 4.5 * np.sqrt(changed / 2)
    (pair,) = copies([Example({"text": "The HOT-DOG, The"}, "")], CodeSwitch(
        paths=(write(tmp_path / "c.txt", "the der\nhot-dog wurst\n"),), rate=1.0))  # fmt: skip
    assert pair[1]["text"] == "Der WURST, Der"


def test_wordings_are_looked_up_from_file_to_file(tmp_path):
    to = [{"index": 0, "prompt": "say: A fine film.", "text": " Ein Film. "}, {"prompt": "say: A fine film.", "text": "Film!"}]
    back = [("Ein Film.", "A film."), ("Ein Film.", "A fine film."), ("Film!", "Film!"), ("Film!", "A film."), ("x", "y")]
    paths = (
        write(tmp_path / "de.jsonl", "\n".join(map(json.dumps, to))),
        write(tmp_path / "en.jsonl", "\n".join(json.dumps({"prompt": a, "text": b}) for a, b in back)),
    )
    examples = [Example({"text": "A fine film.", "label": 1}, "f:1"), Example({"text": "x", "label": 0}, "f:2")]
    found = copies(examples, Paraphrases(paths=paths, prefixes=("say: ", ""), copies=5))
    assert [after for _, after in found] == [{"text": "A film.", "label": 1}, {"text": "Film!", "label": 1}]
    assert len(copies(examples, Paraphrases(paths=paths, prefixes=("say: ", "")))) == 1
    with pytest.raises(UserError, match='Paraphrases made no copy of any example: no "prompt"'):
        copies(examples, Paraphrases(paths=paths))


def tagged(count: int) -> list[Example]:
    """Each tag tells its word: Ow has O, Bw has B-w, Iw has I-w."""
    found = []
    for i in range(count):
        names = [kind for k in range(6) for kind in ("O", "B", "I", "O")[: 2 + (i + k) % 3]]
        words = [f"{kind}{i}{k}" for k, kind in enumerate(names)]
        values = {"words": words, "tags": [tag(word) for word in words], "pos": [f"p{word}" for word in words]}
        found.append(Example({**values, "spaced": True}, f"f:{i}"))
    return found


def tag(word: str) -> str:
    return "O" if word[0] == "O" else f"{word[0]}-{word[1:]}"


def test_tags_stay_with_their_words(tmp_path):
    examples = tagged(60)
    words = [word for one in examples for word in one.values["words"]]
    path = write(tmp_path / "s.txt", "\n".join(f"{word},{word} two,{word}+" for word in words).lower())
    shorter, dictionary = 0, write(tmp_path / "d.txt", "\n".join(f"{word}\t{word}+" for word in words).lower())
    kinds = (Edits(copies=3, rate=0.2, synonyms=path), SpanCutoff(rate=0.2), CodeSwitch(paths=(dictionary,)))
    pairs = copies(examples, *kinds)
    assert 270 < len(pairs) <= 60 * 5  # two copies may be the same
    for before, after in pairs:
        assert len(after["words"]) == len(after["tags"]) == len(after["pos"])
        for word, own, pos in zip(after["words"], after["tags"], after["pos"]):
            plain = word.removesuffix("+")
            assert word == "_" or (own == tag(plain) and pos == f"p{plain}")
        kept = set(after["pos"])
        assert all(pos in kept for pos, own in zip(before["pos"], before["tags"]) if own != "O")
        assert [pos for pos in before["pos"] if pos in kept] == after["pos"]
        shorter += len(after["words"]) < len(before["words"])
    assert 60 <= shorter <= 120  # one or two of three edits left words out


def test_an_o_between_entities_stays():
    line = EditableWords({"words": list("abcdef"), "tags": ["I-X", "O", "I-X", "O", "O", "B-X"]}, "words")
    assert line.removable() == [3, 4]
    assert not line.fits(0, "two words")
    assert not EditableWords({"words": ["北"], "tags": ["O"], "spaced": False}, "words").fits(0, "北京")


QUESTION = {"id": "1", "question": "Where was Ana born ?", "context": "Ana was born in Rome.", "answers": ["Rome"],
            "starts": [16]}  # fmt: skip


def test_only_the_question_is_edited():
    pairs = copies([Example(QUESTION, "f:1")], Edits(copies=4), SpanCutoff(copies=4))
    assert len(pairs) > 2
    for _, after in pairs:
        assert after["question"] != QUESTION["question"]
        assert after | {"question": ""} == QUESTION | {"question": ""}
    with pytest.raises(UserError, match="would move them; augment 'question'"):
        copies([Example(QUESTION, "f:1")], Edits(fields=("context",)))


def test_labels_of_any_name_stay():
    values = {"sentence1": "a b", "sentence2": "c d", "topics": "film, plot", "stars": "4 5"}
    assert chosen(Example(values, ""), ()) == ["sentence1", "sentence2"]
    with pytest.raises(UserError, match="Name them in fields; it has title, body"):
        chosen(Example({"title": "a", "body": "b"}, ""), ())


def test_a_corpus_is_augmented_on_the_training_side_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "cache"))
    rows = [json.dumps({"text": f"one two three four {i}", "label": "x"}) for i in range(40)]
    sources = [Labelled(path=write(tmp_path / f"{k}.jsonl", "\n".join(order))) for k, order in enumerate((rows, rows[::-1]))]
    plain = Data(source=sources[0], tokenizer=Bytes(), validation=0.25)
    edits = replace(plain, augment=(Edits(copies=2), SpanCutoff()))
    corpora = [prepare(data) for data in (plain, edits, edits, replace(edits, source=sources[1]))]
    both = [(corpus.train[0][1].examples, corpus.validation.examples) for corpus in corpora]
    sides = [[{json.dumps(example.values) for example in side} for side in pair] for pair in both]
    assert sides[0][1] == sides[1][1] == sides[3][1]
    assert sides[0][0] < sides[1][0]
    assert [len(corpus.train[0][1]) for corpus in corpora[:2]] == [30, 120]
    assert sides[1] == sides[3]  # an example's copies do not depend on its place
    assert corpora[0].tokenizer.sha256() == corpora[1].tokenizer.sha256()
    assert corpora[1].sha256 == corpora[2].sha256
    others = [prepare(replace(plain, augment=(kind,))).sha256 for kind in (Edits(), Edits(seed=1), Edits(rate=0.5))]
    assert len({corpora[0].sha256, corpora[1].sha256, *others}) == 5


NAMED = [Example({"text": "a b", "label": "x", "list": ["a"]}, "f:7")]
MISTAKES = {
    "no file": (lambda p: copies(NAMED, Edits(synonyms=f"{p}/none.txt")), "none.txt does not exist"),
    "no group": (lambda p: copies(NAMED, Edits(synonyms=write(p / "s.txt", "a,b\n\nc\n"))), "s.txt:3: 'c' is no group"),
    "no pair": (lambda p: copies(NAMED, CodeSwitch(paths=(write(p / "d.txt", "a b\na b c\n"),))), "d.txt:2: 'a b c' is not"),
    "half a pair": (lambda p: copies(NAMED, CodeSwitch(paths=(write(p / "d.txt", "a\t\n"),))), "d.txt:1:"),
    "no prompt": (lambda p: copies(NAMED, Paraphrases(paths=(write(p / "a.jsonl", '{"text": "a"}'),))), ":1: no 'prompt'"),
    "no field": (lambda p: copies(NAMED, Edits(fields=("txt",))), "no training example has 'txt'; f:7 has text, label, list"),
    "a label": (lambda p: copies(NAMED, Edits(fields=("label",))), "f:7: 'label' is no text"),
    "a list": (lambda p: copies(NAMED, Edits(fields=("list",))), "f:7: 'list' is a list"),
    "one field": (lambda p: Edits(fields="text"), r"a tuple of names, ('text',)"),
    "one path": (lambda p: CodeSwitch(paths="a.txt"), "a tuple of files"),
    "prefixes": (lambda p: Paraphrases(paths=("a", "b"), prefixes=("x",)), "one for each of 2 paths"),
    "rate": (lambda p: Edits(rate=1.5), "rate=1.5"),
    "share": (lambda p: CodeSwitch(paths=("a",), sentences=0), "sentences=0"),
    "copies": (lambda p: SpanCutoff(copies=0), "copies=0 must be at least 1"),
    "special": (lambda p: SpanCutoff(mask="[MASK]"), "read as letters"),
    "nothing": (lambda p: copies([Example({"text": "word"}, "")], Edits()), "Edits made no copy of any example: no text has"),
    "unmasked tags": (lambda p: copies(tagged(1), SpanCutoff(mask="")), "f:0: words with tags keep their number"),
    "no tuple": (lambda p: Data(source=Labelled(path="a.csv"), augment=Edits()), "give a tuple of values"),
    "running text": (lambda p: Data(source=Text(path="a.txt"), augment=(Edits(),)), "augment is for labelled examples"),
    "a mixture": (lambda p: Data(source=Mixture(sources=(Labelled(path="a.csv"), Text(path="a.txt")), weights=(1, 1)),
                                 augment=(Edits(),)), "augment is for labelled examples"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name, tmp_path):
    make, message = MISTAKES[name]
    with pytest.raises(UserError) as error:
        make(tmp_path)
    assert message in str(error.value)


def test_a_run_with_copies():
    """A config round-trips as JSON; a step has copies in it and a gradient; the corpus is another one to a resumed run."""
    import jax

    from lm.objectives.base import resolve, training_batches
    from lm.sharding import unbox

    plain = load(f"{CONFIGS / 'tiny_classify.py'}:dropout=0")
    config = replace(plain, data=replace(plain.data, augment=(Edits(copies=2), SpanCutoff(rate=0.2, mask=""))))
    assert from_json(to_json(config)) == config
    config, corpus = resolve(config, prepare(config.data))
    batch = training_batches(config, corpus)[0]
    seen = {bytes(row[row < 256].astype(np.uint8)) for row in batch["tokens"]}
    mixed = [one for one in corpus.train[0][1].examples if "copy" in one.where]
    assert any(one.values["text"].encode() in row for one in mixed for row in seen)
    params, keys_B = unbox(config.objective.init(jax.random.key(0), batch)), jax.random.split(jax.random.key(1), 8)
    loss, gradient = jax.value_and_grad(lambda p: config.objective.loss(p, batch, None, keys_B)[0]["loss"][0])(params)
    assert np.isfinite(loss)
    assert 0 < sum(float(np.square(g).sum()) for g in jax.tree.leaves(gradient)) < np.inf
    before, after = prepare(plain.data).identity(), corpus.identity()
    assert before["corpus"] != after["corpus"]
    assert before["tokenizer"] == prepare(config.data).identity()["tokenizer"]


def test_a_mixture_keeps_its_sources_apart():
    sides = augmented([[one._replace(part=0) for one in texts(5)], [one._replace(part=1) for one in tagged(5)]], [SpanCutoff()])
    assert [[one.part for one in side] for side in sides] == [[0] * 10, [1] * 10]
    sides = augmented([texts(5), tagged(5)], [SpanCutoff(fields=("text",))])
    assert [len(side) for side in sides] == [10, 5]


def test_an_old_config_has_no_copies():
    old = json.loads(to_json(Data(source=Columns(path="a.conll"))))
    del old["augment"]
    assert from_json(json.dumps(old)).augment == ()
