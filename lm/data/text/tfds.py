"""TensorFlow Datasets read through array_record files: without TensorFlow, and without an endless wait for a network."""

from __future__ import annotations

import copy
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm.data.types import Piece, Reader, TextSource
from lm.errors import UserError

HOST = "https://storage.googleapis.com/tfds-data/"  # TFDS's own files
PATIENCE = 5.0  # seconds to wait for an answer


@dataclass(frozen=True, kw_only=True)
class Tfds(TextSource):
    """A TensorFlow Datasets set in array_record form, read without TensorFlow.

    `data_dir` may be the usual root of data sets, or the folder of one prepared set (with dataset_info.json in it).
    """

    name: str  # of the data set, with its config and version if there are several
    split: str = "train"  # as TFDS writes it, such as train[:10%]
    field: str = "text"
    data_dir: str | None = None

    def open(self) -> Reader:
        return TfdsReader(self.name, self.split, self.field, self.data_dir)


class TfdsReader:
    """The records of one split."""

    def __init__(self, name: str, split: str, field: str, data_dir: str | None):
        self.name, self.field = f"tfds:{name}", field
        builder = _builder(name, data_dir)
        self.records = _records(builder, name, split)
        self.folder = os.path.abspath(builder.data_dir)
        self.features = builder.info.features
        self.span = range(len(self.records))
        fields = sorted(self.features)
        if field not in fields:
            raise UserError(f"{self.name}: no field {field!r}; it has {', '.join(fields)}")
        info = builder.info.splits[split]
        # Parts of a split, such as train[:10%], have no size of their own.
        self.size = getattr(info, "num_bytes", 0) or sum(map(os.path.getsize, self.inputs()))
        self._signature = f"{self.name} {builder.info.full_name} {split} {field} {info.num_examples}"
        self._signature += f" {getattr(info, 'num_bytes', '')} {self.folder}"

    def cut(self, size: int) -> list[tuple[int, Reader]]:
        """Cut into equal numbers of records."""
        count = max(1, -(-self.size // size))
        step = max(1, -(-len(self) // count))
        cut: list[tuple[int, Reader]] = []
        for at in range(0, len(self), step):
            reader = copy.copy(self)
            reader.span = self.span[at : at + step]
            cut.append((self.size // count, reader))
        return cut

    def __len__(self) -> int:
        return len(self.span)

    def __getitem__(self, i: int) -> Piece:
        i = self.span[i]
        value = self.records[i][self.field]
        if not isinstance(value, bytes | str):
            raise UserError(f"{self.name}: field {self.field!r} is {type(value).__name__}, not text")
        try:
            return Piece(value.decode() if isinstance(value, bytes) else value)
        except UnicodeDecodeError as error:
            raise UserError(f"{self.name}: record {i}, byte {error.start} of {self.field!r} is not UTF-8") from None

    def signature(self) -> str:
        return self._signature

    def inputs(self) -> list[str]:
        return sorted(entry.path for entry in os.scandir(self.folder) if entry.is_file())


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    if data_dir and os.path.exists(os.path.join(data_dir, "dataset_info.json")):
        return tfds.builder_from_directory(data_dir)
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        where = f" under {data_dir}" if data_dir else ""
        raise UserError(
            f"tfds:{name}: no such data set{where} that reads without TensorFlow; see "
            f"https://www.tensorflow.org/datasets/catalog, or give the folder with its dataset_info.json as data_dir"
        ) from None
    except ImportError as error:
        raise UserError(f"tfds:{name}: its builder needs the package {error.name!r}: pip install it") from None


def _records(builder: Any, name: str, split: str) -> Sequence[Any]:
    if not builder.info.splits:
        _download(builder, name)
    try:
        return builder.as_data_source(split=split)
    except NotImplementedError:
        raise UserError(
            f"tfds:{name}: stored at {builder.data_dir} as {builder.info.file_format.value}, which cannot be read by "
            f"index; prepare it with file_format='array_record'"
        ) from None
    except (KeyError, ValueError):
        raise UserError(f"tfds:{name}: no split {split!r}; it has {', '.join(builder.info.splits)}") from None


def _download(builder: Any, name: str) -> None:
    if not reachable():
        raise UserError(
            f"tfds:{name} is not on this machine ({builder.data_dir}) and {HOST} does not answer: prepare it where "
            f"there is a network and copy the folder, or use --text=FILE"
        )
    try:
        builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # a third party's builder may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"tfds:{name} could not be prepared in {builder.data_dir}: {reason}") from error


def reachable(url: str = HOST, seconds: float = PATIENCE) -> bool:
    """Return whether `url` answers within `seconds`; in a thread, because resolving a host name has no time limit."""
    answers: list[bool] = []

    def request() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code != 407 and error.code < 500)
        except OSError:
            answers.append(False)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers and answers[0])
