"""Whole records of a TensorFlow Datasets set as labelled examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.data.labelled.files import located
from lm.data.types import Example, ExampleSource, Read
from lm.errors import check


def read_tfds(source: TfdsExamples) -> Read:
    """Read records of a TensorFlow Datasets split."""
    import tensorflow_datasets as tfds

    from lm.data.text.tfds import TfdsReader

    reader = TfdsReader(source.name, source.split, source.field, source.data_dir)
    features = reader.records.dataset_info.features
    kinds = tfds.features.Translation, tfds.features.TranslationVariableLanguages
    several = [name for name in sorted(features) if isinstance(features[name], kinds)]
    check(bool(several) or not source.language, f"{reader.name}: no text in several languages; leave out language")
    examples = []
    for i in range(len(reader)):
        where = f"{reader.name} {source.split}, record {i}"
        record = reader.records[i]
        values = {key: _plain(record[key], features[key]) for key in sorted(record)}  # TFDS has them in no order
        values |= {name: _spoken(values[name], source.language, f"{where}: {name!r}") for name in several}
        examples.append(Example(located(values, where), where, str(values.get("context", ""))))
    return Read(reader.name, tuple(examples), f"{reader.signature()} {source.language}".rstrip())


def _spoken(texts: Mapping[str, Any], language: str, where: str) -> str:
    """Pick one language of what TFDS holds by language, or (where records have them or not) as two lists."""
    if "translation" in texts:
        texts = dict(zip(texts["language"][::-1], texts["translation"][::-1]))  # of several the first
    says = f"has no {language!r}" if language else "is in several languages"
    check(language in texts, f"{where} {says}; set language to one of {', '.join(sorted(texts))}")
    return texts[language]


def _plain(value: Any, feature: Any) -> Any:
    """Turn what TFDS gives into texts, numbers and lists; numbers of classes into names."""
    if isinstance(value, dict):
        inner = getattr(feature, "feature", feature)
        return {key: _plain(one, inner[key]) for key, one in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(one, getattr(feature, "feature", feature)) for one in value]
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    names = getattr(feature, "names", None)
    if names is None or not isinstance(value, int):
        return value
    return names[value] if value >= 0 else ""


@dataclass(frozen=True, kw_only=True)
class TfdsExamples(ExampleSource):
    """Whole records of a TensorFlow Datasets set (`lm.data.text.tfds.Tfds`), class numbers as their names.

    `field` is one that must be there. SQuAD's answers become "answers" and "starts". Of texts that a set has in several
    languages (XNLI) that in `language` is read.
    """

    name: str
    split: str = "train"
    field: str = "text"
    language: str = ""
    data_dir: str | None = None

    def open(self) -> Read:
        return read_tfds(self)
