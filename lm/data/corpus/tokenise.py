"""Tokenise readers into the token files of one shard, batch by batch, with a journal to resume from after a kill."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lm.data.corpus import digests
from lm.data.corpus.digests import DamagedCorpus
from lm.data.corpus.split import Part, Split, split_parts
from lm.data.corpus.store import Writer
from lm.data.sources import Concatenation
from lm.data.text import words
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Reader
from lm.errors import UserError

BATCH_CHARACTERS = 4 << 20  # tokenised at once, then journalled: bounds memory and the loss of a kill
BATCH_PARTS = 4096


class Stream(NamedTuple):
    """The text of a reader on its way to the token file `name`, or (its part that is `held_out`) to "validation"."""

    name: str
    reader: Reader
    split: Split
    held_out: bool = False  # all of it


class Tokenisation:
    """The preparation of the text of `streams` in `folder`; every step can be repeated after a kill."""

    def __init__(self, tokenizer: Tokenizer, streams: Sequence[Stream], folder: Path, report: Callable[[str], None]):
        self.tokenizer, self.streams, self.folder = tokenizer, streams, folder
        self.report, self.reported = report, 0.0
        everything = Concatenation(tuple(stream.reader for stream in streams))
        self.marked, self.inputs = everything.marked, everything.inputs()
        self.names = list(dict.fromkeys([*(stream.name for stream in streams), "validation"]))

    def run(self) -> str:
        """Write the token files; return the SHA-256 of the text."""
        text = digests.fingerprint(self.inputs)
        fresh = {"stream": 0, "pieces": 0, "sizes": {}, "text": text}
        try:
            done = digests.read_sealed(self.folder / "journal.json")
            # Resuming on a changed text would join two texts in one stream.
            if done["text"] != text or done.keys() != fresh.keys():
                raise DamagedCorpus("the text changed since")
        except (DamagedCorpus, KeyError, TypeError):
            done = dict(fresh)
        try:
            self._write_all(done)
        except EOFError:  # the machine went down before the files reached the disk: start again
            self._write_all(dict(fresh))
        self._finish()
        # A text that changed while it was read is compared once more at the next opening.
        if text == digests.fingerprint(self.inputs):
            digests.remember(self.folder, text)
        (self.folder / "journal.json").unlink(missing_ok=True)
        return self.hashes["all"].hexdigest()

    def _write_all(self, done: dict) -> None:
        vocab, separator = self.tokenizer.vocab, self.tokenizer.separator
        self.writers = {
            name: Writer(self.folder / name, vocab, separator, done["sizes"].get(name, ()), marked=self.marked)
            for name in self.names
        }
        self.hashes = {name: hashlib.sha256() for name in (*self.names, "all")}
        self.bytes = dict.fromkeys(self.names, 0)
        # Pieces already written are read and hashed again but not tokenised: the state of a digest cannot be stored.
        for k, (name, reader, split, held_out) in enumerate(self.streams):
            skip = len(reader) if k < done["stream"] else done["pieces"] if k == done["stream"] else 0
            for batch in _batches(split_parts(reader, split), skip):
                targets = [name if not (part.held_out or held_out) else "validation" for part in batch]
                self._account(batch, targets)
                if batch[0].piece >= skip:
                    self._tokenise(batch, targets)
                    done |= {"stream": k, "pieces": batch[-1].piece + 1}
                    # Flushed first: the files are at least as long as the journal says; `_reopen` cuts the rest.
                    done["sizes"] = {n: writer.flush() for n, writer in self.writers.items()}
                    digests.write_sealed(self.folder / "journal.json", done)
                self._progress(reader, batch[-1].piece)

    def _account(self, batch: list[Part], targets: list[str]) -> None:
        for part, target in zip(batch, targets):
            raw = part.text.encode()
            _update(self.hashes[target], raw, part)
            _update(self.hashes["all"], raw, part)
            self.bytes[target] += len(raw)

    def _tokenise(self, batch: list[Part], targets: list[str]) -> None:
        """Write parts: the fields of each with separators between, and marks where the corpus has them."""
        fields = [words.split_fields(part.text, part.borders) for part in batch]
        texts = [text for part in fields for text in part]
        if self.marked:
            pairs: list[Any] = self.tokenizer.encode_ends(texts)
        else:
            pairs = [(ids, None) for ids in self.tokenizer.encode_batch(texts)]
        rest = iter(pairs)
        for part, target, texts in zip(batch, targets, fields):
            encoded = list(itertools.islice(rest, len(texts)))
            marks = self._marks(part, texts, [ends for _, ends in encoded]) if self.marked else None
            self.writers[target].add(self._join([ids for ids, _ in encoded]), part.first, part.last, marks)

    def _join(self, fields: list[np.ndarray]) -> np.ndarray:
        if len(fields) == 1:
            return fields[0]
        if self.tokenizer.separator is None:
            raise UserError(
                "the source's documents have several fields, which a tokenizer without a separator cannot keep apart: "
                "use Bytes, BytePair or WordPiece"
            )
        edge = np.array([self.tokenizer.separator], np.int32)
        return np.concatenate([part for ids in fields for part in (edge, ids)][1:])

    @staticmethod
    def _marks(part: Part, texts: list[str], ends: list[np.ndarray]) -> np.ndarray:
        bits, at = part.marks(), 0
        marks: list[Sequence[int] | np.ndarray] = []
        for text, stops in zip(texts, ends):
            # The separator between two fields starts units of every kind; before the first field there is none.
            marks += [[words.ALL], words.token_marks(words.add_sentences(text, bits[at : at + len(text)]), stops)]
            at += len(text)
        return np.concatenate(marks[1:]).astype(np.uint8)

    def _finish(self) -> None:
        digest = self.tokenizer.sha256()
        sources = {stream.name: stream.reader.signature() for stream in self.streams if not stream.held_out}
        for name, writer in self.writers.items():
            writer.close(
                raw_bytes=self.bytes[name], sha256=self.hashes[name].hexdigest(), tokenizer=digest,
                source=sources.get(name, ""),
            )  # fmt: skip

    def _progress(self, reader: Reader, piece: int) -> None:
        if time.monotonic() - self.reported > 2:
            self.reported = time.monotonic()
            self.report(f"{reader.name}: {100 * (piece + 1) / len(reader):.0f} % tokenised")


def _update(digest: Any, raw: bytes, part: Part) -> None:
    """Hash a part of a document with its borders: the same text in other fields is another corpus."""
    digest.update(raw)
    if part.borders:
        digest.update(repr(part.borders).encode())


def content(readers: Iterable[Reader], report: Callable[[str], None]) -> str:
    """Return the SHA-256 of the whole text of these readers, as `Tokenisation` computes it."""
    digest, reported = hashlib.sha256(), time.monotonic()
    for reader in readers:
        for part in split_parts(reader, Split()):
            _update(digest, part.text.encode(), part)
            if time.monotonic() - reported > 2:
                reported = time.monotonic()
                report(f"{reader.name}: {100 * (part.piece + 1) / len(reader):.0f} % compared with what was prepared")
    return digest.hexdigest()


def _batches(stream: Iterator[Part], skip: int) -> Iterator[list[Part]]:
    """Group parts; a batch ends with a whole piece, and none lies on both sides of piece `skip`."""
    batch: list[Part] = []
    characters = 0
    for part in stream:
        new = bool(batch) and part.piece != batch[-1].piece
        full = characters >= BATCH_CHARACTERS or len(batch) >= BATCH_PARTS
        if new and (full or part.piece >= skip > batch[-1].piece):
            yield batch
            batch, characters = [], 0
        batch.append(part)
        characters += len(part.text)
    if batch:
        yield batch
