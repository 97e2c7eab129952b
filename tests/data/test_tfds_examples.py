"""Sets of TensorFlow Datasets as examples: small ones with the published schemas, written here and read back in full."""

import sys

import numpy as np
import pytest

from lm.data.labelled.tfds import TfdsExamples
from lm.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
F = tfds.features
TAGS = F.Sequence(F.ClassLabel(names=["O", "B-PER", "I-PER"]))
PLACES = F.Sequence({"text": F.Text(), "answer_start": np.int32})
LANGUAGES = ("ar", "en", "zh")

FEATURES = {
    "glue_like": {"sentence": F.Text(), "label": F.ClassLabel(names=["negative", "positive"]), "idx": np.int32},
    "squad_like": {"id": np.str_, "title": F.Text(), "context": F.Text(), "question": F.Text(), "answers": PLACES},
    "conll_like": {"tokens": F.Sequence(F.Text()), "pos": TAGS, "ner": TAGS},
    "xnli_like": {
        "premise": F.Translation(languages=LANGUAGES),
        "hypothesis": F.TranslationVariableLanguages(languages=LANGUAGES),
        "label": F.ClassLabel(names=["entailment", "neutral", "contradiction"]),
    },
}  # fmt: skip
RECORDS = {
    "glue_like": [
        {"sentence": "fine 北京", "label": 1, "idx": 0},
        {"sentence": "", "label": 0, "idx": 1},
        {"sentence": "a test's", "label": -1, "idx": 2},
    ],
    "squad_like": [
        {"id": "a", "title": "t", "context": "Ana, of Rome", "question": "Where?",
         "answers": {"text": ["Rome", "of Rome"], "answer_start": [8, 5]}},
        {"id": "b", "title": "t", "context": "Ana, of Rome", "question": "Why?", "answers": {"text": [], "answer_start": []}},
    ],
    "conll_like": [
        {"tokens": ["Anna", "Berg", "ran"], "pos": ["O", "O", "O"], "ner": ["B-PER", "I-PER", "O"]},
        {"tokens": ["3"], "pos": ["O"], "ner": ["O"]},
    ],
    "xnli_like": [
        {"premise": {"ar": "م", "en": "a man", "zh": "人"}, "label": 1,
         "hypothesis": {"ar": "أ", "en": ["sleeps", "is asleep"], "zh": "睡"}},
        {"premise": {"ar": "م", "en": "a cat", "zh": "猫"}, "hypothesis": {"en": "eats", "zh": "吃"}, "label": 2},
    ],
}  # fmt: skip


class Written(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set of FEATURES and RECORDS; its name is that of the class."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(FEATURES[self.name]), disable_shuffling=True)

    def _split_generators(self, _):
        records = RECORDS[self.name]
        return {"train": iter(enumerate(records)), "validation": iter(enumerate(records[:1]))}

    def _generate_examples(self):
        raise NotImplementedError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Write every set as array_record; give the folder that holds them."""
    folder = tmp_path_factory.mktemp("tfds")
    for name in FEATURES:
        one = type(name, (Written,), {"name": name}, skip_registration=True)
        one(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder)


def values(root, name, field, **choices):
    return [one.values for one in TfdsExamples(name=name, field=field, data_dir=root, **choices).open()]


def test_sentences_with_classes(root):
    found = TfdsExamples(name="glue_like", field="sentence", data_dir=root).open()
    names = ["positive", "negative", ""]  # a test's labels are not told
    assert [one.values for one in found] == [{**one, "label": name} for one, name in zip(RECORDS["glue_like"], names)]
    assert found[1].where == "tfds:glue_like train, record 1"
    assert len(values(root, "glue_like", "idx", split="validation")) == 1
    with pytest.raises(UserError, match="no field 'text'; it has idx, label, sentence"):
        values(root, "glue_like", "text")
    with pytest.raises(UserError, match="no text in several languages; leave out language"):
        values(root, "glue_like", "sentence", language="en")
    assert "tensorflow" not in sys.modules


def test_questions_with_their_answers(root):
    found = TfdsExamples(name="squad_like", field="question", data_dir=root).open()
    answers = [{"answers": ["Rome", "of Rome"], "starts": [8, 5]}, {"answers": [], "starts": []}]
    assert [one.values for one in found] == [record | lists for record, lists in zip(RECORDS["squad_like"], answers)]
    assert {one.group for one in found} == {"Ana, of Rome"}


def test_words_with_tags(root):
    assert values(root, "conll_like", "tokens") == RECORDS["conll_like"]


def test_one_language_of_several(root):
    assert values(root, "xnli_like", "premise", language="zh") == [
        {"premise": "人", "hypothesis": "睡", "label": "neutral"},
        {"premise": "猫", "hypothesis": "吃", "label": "contradiction"},
    ]
    english = values(root, "xnli_like", "premise", language="en")
    assert [one["hypothesis"] for one in english] == ["is asleep", "eats"]  # TFDS sorts them
    signed = {TfdsExamples(name="xnli_like", field="label", language=k, data_dir=root).open().signature() for k in ("en", "zh")}
    assert len(signed) == 2
    for language, message in {
        "": "train, record 0: 'hypothesis' is in several languages; set language to one of ar, en, zh",
        "de": "train, record 0: 'hypothesis' has no 'de'; set language to one of ar, en, zh",
        "ar": "train, record 1: 'hypothesis' has no 'ar'; set language to one of en, zh",
    }.items():
        with pytest.raises(UserError, match=message):
            values(root, "xnli_like", "premise", language=language)
