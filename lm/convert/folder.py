"""A model folder in Hugging Face's layout: config.json and tensors, read one at a time; nothing is unpickled freely."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError, check

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Folder:
    """Names to tensors of a folder, safetensors first; `config` is its config.json."""

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser()
        check(self.path.is_dir(), f"{self.path} is not a model folder")
        self.config = read_json(self.path / "config.json")
        self._open: dict[Path, Any] = {}
        self.files = self._files()

    def _files(self) -> dict[str, Path]:
        """Map each name to the file that holds it."""
        for index in (INDEX, PICKLE_INDEX):
            if (self.path / index).exists() and not (self.path / index.replace(".index.json", "")).exists():
                named = read_json(self.path / index).get("weight_map", {})
                for file in sorted(set(named.values())):
                    check(Path(file).name == file, f"{index} names '{file}', which is not a file beside it")
                    check((self.path / file).is_file(), f"{self.path} lacks '{file}', a part that {index} names")
                return {name: self.path / file for name, file in named.items()}
        for file in (SINGLE, PICKLE):
            if (self.path / file).exists():
                return dict.fromkeys(self._names(self.path / file), self.path / file)
        raise UserError(f"{self.path} holds no weights: {SINGLE}, {INDEX} or {PICKLE}")

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor; bfloat16 and float16 as they are."""
        source = self._source(self.files[name])
        with damaged(self.files[name]):
            if isinstance(source, dict):
                return numpy_of(source[name])
            return source.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        source = self._source(self.files[name])
        with damaged(self.files[name]):
            return tuple(source[name].shape if isinstance(source, dict) else source.get_slice(name).get_shape())

    def largest(self) -> int:
        """Bytes of the largest file of tensors."""
        return max(file.stat().st_size for file in set(self.files.values()))

    def _names(self, file: Path) -> list[str]:
        return list(self._source(file).keys())

    def _source(self, file: Path) -> Any:
        if file not in self._open:
            with damaged(file):
                self._open[file] = unpickle(file) if file.suffix == ".bin" else mapped(file)
        return self._open[file]


def mapped(file: Path) -> Any:
    from safetensors import safe_open

    return safe_open(file, framework="np")


def unpickle(file: Path) -> dict[str, Any]:
    """Read a PyTorch file by its weights-only reader, which builds tensors and nothing else."""
    try:
        import torch
    except ImportError:
        raise UserError(f"{file} is a PyTorch pickle: pip install torch, or convert it to safetensors first") from None
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the old format cannot be mapped
        found = torch.load(file, map_location="cpu", weights_only=True)
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    wrong = not isinstance(found, dict) or any(not isinstance(x, torch.Tensor) for x in found.values())
    check(not wrong, f"{file} holds more than tensors; it is not read")
    return found


def numpy_of(tensor: Any) -> np.ndarray:
    """Give a torch tensor's numbers; numpy has no bfloat16 of its own."""
    import ml_dtypes
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


@contextlib.contextmanager
def damaged(file: Path) -> Iterator[None]:
    """Turn whatever a reader raises about a file into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # torch, Rust and pickle each have their own
        raise UserError(f"{file} cannot be read: {(str(error).splitlines() or [type(error).__name__])[0][:200]}") from None


def read_json(path: Path) -> dict[str, Any]:
    check(path.is_file(), f"{path.parent} has no {path.name}: it is not a model folder of Hugging Face's layout")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    check(isinstance(found, dict), f"{path} holds no object")
    return found
