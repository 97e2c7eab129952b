"""A model folder in Hugging Face's layout: config.json and tensors, read one at a time; nothing is unpickled freely."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm.convert.family import checked
from lm.convert.stored import Source, damaged, open_source
from lm.errors import UserError, check
from lm.strict_json import load_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
# The layers that score classes: their rows count the classes, whatever config.json says.
SCORES = r"^(module\.)?(classifier|classifier\.out_proj|classification_head\.out_proj|logits_proj|score)\.weight$"
KINDS = ("bert", "roberta", "albert", "electra", "distilbert")  # prefixes of tensors' names


class Folder:
    """The tensors of a folder by name, safetensors preferred; `config`: its config.json, completed from the files.

    One file is open at a time, so that only one file's index is in memory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        check(self.path.is_dir(), f"{self.path} is not a model folder")
        config = read_settings(self.path)
        self._open: tuple[Path, Source] | None = None
        self.files = self._files()
        self.config = dict(described(config, self.files))
        kind, twice = config.get("model_type"), {"shared.weight", "lm_head.weight"} <= set(self.files)
        if kind in ("t5", "mt5") and twice and not self.same("shared.weight", "lm_head.weight"):
            self.config["tie_word_embeddings"] = False  # transformers 5 writes true in any case
        if scores := next((name for name in self.files if re.search(SCORES, name)), None):
            self.config["num_labels"] = self.shape(scores)[0]
        if "final_logits_bias" in self.files and "final_logits_bias" not in config:
            # A buffer of zeros, trained in Marian only, and written by all.
            self.config["final_logits_bias"] = kind == "marian" or bool(self["final_logits_bias"].any())

    def _files(self) -> dict[str, Path]:
        """Map the names of tensors to files."""
        for file in (SINGLE, INDEX, PICKLE, PICKLE_INDEX):
            if (self.path / file).is_file():
                return self._parts(file) if file in (INDEX, PICKLE_INDEX) else self._names(self.path / file)
        raise UserError(f"{self.path} holds no weights: {SINGLE}, {INDEX} or {PICKLE}")

    def _parts(self, index: str) -> dict[str, Path]:
        """Read an index; files of safetensors must hold exactly the tensors that it lists."""
        named = read_json(self.path / index).get("weight_map")
        whole = isinstance(named, dict) and named and all(isinstance(file, str) for file in named.values())
        check(bool(whole), f"{self.path / index} has no weight_map of names to files")
        for file in sorted(set(named.values())):
            # A name from the index must not lead out of the folder, nor to a file of another kind.
            plain = Path(file).name == file and "\\" not in file and Path(file).suffix in (".bin", ".safetensors")
            check(plain, f"{index} names '{file}', which is not a file of tensors beside it")
            check((self.path / file).is_file(), f"{self.path} lacks '{file}', a part that {index} names")
            have, listed = set(self._names(self.path / file)), {name for name, part in named.items() if part == file}
            odd = sorted(have ^ listed if index == INDEX else listed - have)
            check(not odd, f"{index} and '{file}' do not agree about {', '.join(odd[:8])}")
        return {name: self.path / file for name, file in named.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor as float32; UserError for other than floating-point numbers."""
        return self.rows(name)

    def rows(self, name: str, low: int | None = None, high: int | None = None) -> np.ndarray:
        """Read rows [low, high) of a tensor as float32."""
        with damaged(self.files[name]):
            return self._source(self.files[name]).read(name, low, high)

    def shape(self, name: str) -> tuple[int, ...]:
        with damaged(self.files[name]):
            return self._source(self.files[name]).shape(name)

    def same(self, one: str, other: str, rows: int = 1024) -> bool:
        """Whether two tensors are equal, compared `rows` at a time."""
        shape = self.shape(one)
        if shape != self.shape(other):
            return False
        # A few rows at a time: two whole copies of a tied table may not fit in memory.
        steps = range(0, shape[0] if shape else 1, rows)
        return all(np.array_equal(self.rows(one, i, i + rows), self.rows(other, i, i + rows)) for i in steps)

    def close(self) -> None:
        """Release the open file."""
        self._open = None

    def largest(self) -> int:
        """Return the bytes of the largest file of tensors."""
        return max(file.stat().st_size for file in set(self.files.values()))

    def _names(self, file: Path) -> dict[str, Path]:
        return dict.fromkeys(self._source(file).names(), file)

    def _source(self, file: Path) -> Source:
        if self._open is None or self._open[0] != file:
            self._open = None  # frees its memory before the next is read
            self._open = file, open_source(file)
        return self._open[1]


def described(config: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Complete a config.json of before 2020 without model_type, and one that omits the sentence-pair head."""
    names = [name.removeprefix("module.") for name in names]
    if not config.get("model_type"):
        kind = next((kind for kind in KINDS if any(name.startswith(f"{kind}.") for name in names)), None)
        # Of unprefixed files: RoBERTa has one token type only, ELECTRA no pooler.
        bare = {"embeddings.word_embeddings.weight", "pooler.dense.weight"} <= set(names)
        kind = "bert" if bare and config.get("type_vocab_size") == 2 else kind
        config = {**config, "model_type": kind} if kind else config
    if "cls.seq_relationship.weight" in names and "ForPreTraining" not in str(config.get("architectures")):
        config = {**config, "architectures": ["BertForPreTraining"]}
    return config


def read_settings(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json; UserError for values of another type or out of range."""
    settings = read_json(folder / "config.json")
    checked(settings, str(folder / "config.json"))
    return settings


def read_json(path: Path) -> dict[str, Any]:
    check(path.is_file(), f"{path.parent} has no {path.name}: it is not a model folder of Hugging Face's layout")
    return load_json(path, dict)
