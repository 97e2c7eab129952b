"""Whole records of a TensorFlow Datasets set as labelled examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.labelled.files import with_answers
from lm.data.types import Example, ExampleSource, Read
from lm.errors import check


@dataclass(frozen=True, kw_only=True)
class TfdsExamples(ExampleSource):
    """Whole records of a TensorFlow Datasets set (`lm.data.text.tfds.Tfds`), class numbers as their names.

    `field` must be in the set. SQuAD's answers become "answers" and "starts". `language` selects among the languages of a
    text that a set has in several (XNLI).
    """

    name: str
    split: str = "train"
    field: str = "text"
    language: str = ""
    data_dir: str | None = None

    def open(self) -> Read:
        import tensorflow_datasets as tfds

        from lm.data.text.tfds import TfdsReader

        reader = TfdsReader(self.name, self.split, self.field, self.data_dir)
        features = reader.features
        translations = tfds.features.Translation, tfds.features.TranslationVariableLanguages
        several = [name for name in sorted(features) if isinstance(features[name], translations)]
        check(bool(several) or not self.language, f"{reader.name}: no text in several languages; leave out language")
        examples = []
        for i in range(len(reader)):
            where, record = f"{reader.name} {self.split}, record {i}", reader.records[i]
            values = {key: _plain(record[key], features[key]) for key in sorted(record)}  # TFDS has them in no order
            values |= {name: _translation(values[name], self.language, f"{where}: {name!r}") for name in several}
            examples.append(Example(with_answers(values, where), where, str(values.get("context", ""))))
        return Read(reader.name, tuple(examples), f"{reader.signature()} {self.language}".rstrip())


def _translation(texts: Mapping[str, Any], language: str, where: str) -> str:
    """Select a language from a dict by language, or from two lists where records differ in their languages."""
    if "translation" in texts:
        texts = dict(zip(texts["language"][::-1], texts["translation"][::-1]))  # reversed: of several the first stays
    state = f"has no {language!r}" if language else "is in several languages"
    check(language in texts, f"{where} {state}; set language to one of {', '.join(sorted(texts))}")
    return texts[language]


def _plain(value: Any, feature: Any) -> Any:
    """Convert a TFDS value to texts, numbers and lists; class numbers to names."""
    if isinstance(value, dict):
        inner = getattr(feature, "feature", feature)
        return {key: _plain(item, inner[key]) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(item, getattr(feature, "feature", feature)) for item in value]
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    names = getattr(feature, "names", None)
    if names is None or not isinstance(value, int):
        return value
    return names[value] if value >= 0 else ""
