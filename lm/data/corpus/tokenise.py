"""Tokenise readers into the files of one folder, batch by batch, with a journal to resume from after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.corpus import digests
from lm.data.corpus.digests import DamagedCorpus
from lm.data.corpus.split import Part, Split, choose_split, split_parts
from lm.data.corpus.store import Writer
from lm.data.sources import Concatenation
from lm.data.text import words
from lm.data.tokenizer.tokenizer import BytePair, Characters, Tokenizer, Vocabulary, WordPiece
from lm.data.types import Reader
from lm.errors import UserError

BATCH_CHARACTERS = 4 << 20  # tokenised at once, then journalled: bounds memory and the loss of a kill
BATCH_PARTS = 4096
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")  # the second only where it is needed


class Tokenisation:
    """The preparation of one corpus in `folder`; every step can be repeated after a kill."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        readers: list[tuple[float, Reader]],
        validation: float | Reader,
        folder: Path,
        report: Callable[[str], None],
    ):
        self.vocabulary, self.readers, self.folder = vocabulary, readers, folder
        self.separate = None if isinstance(validation, int | float) else validation
        self.share = validation if isinstance(validation, int | float) else 0.0
        self.report, self.reported = report, 0.0
        opened = [reader for _, reader in readers] + ([self.separate] if self.separate else [])
        everything = Concatenation(tuple(opened))
        self.marked, self.inputs = everything.marked, everything.inputs()

    def run(self) -> None:
        try:
            done = digests.read_sealed(self.folder / "journal.json")
            digests.verify(self.folder, done["files"])
            # Resuming on a changed text would join two texts in one stream.
            if done["text"] != digests.fingerprint(self.inputs):
                raise DamagedCorpus("the text changed since")
            self.splits = [Split(**split) for split in done["splits"]]
        except (DamagedCorpus, KeyError, TypeError):
            done = self._begin()
        self.tokenizer = Tokenizer.load(self.folder / "tokenizer.json")
        try:
            self._write_all(done)
        except EOFError:  # the machine went down before the files reached the disk: start again
            self._write_all(self._begin())

    def _begin(self) -> dict:
        """Choose the splits and make the tokenizer."""
        text = digests.fingerprint(self.inputs)
        self.splits = [choose_split(reader, self.share) for _, reader in self.readers]
        tokenizer = self.vocabulary.build(self._training_text)
        for name in TOKENIZER:
            # A killed run may have left the second file, which not every tokenizer writes anew.
            (self.folder / name).unlink(missing_ok=True)
        tokenizer.save(self.folder / "tokenizer.json")
        files = {name: digests.checksum(self.folder / name) for name in TOKENIZER if (self.folder / name).exists()}
        done = {"stream": 0, "pieces": 0, "sizes": {}, "splits": [dataclasses.asdict(split) for split in self.splits]}
        done |= {"files": files, "text": text}
        self._record(done)
        return done

    def _streams(self) -> list[tuple[str, Reader, Split, bool]]:
        """List (name of the training stream, reader, split, whether the whole reader is held out)."""
        streams = [(f"train-{k}", reader, self.splits[k], False) for k, (_, reader) in enumerate(self.readers)]
        if self.separate:
            streams.append(("validation", self.separate, Split(), True))
        return streams

    def _training_text(self) -> Iterator[str]:
        """Yield the text to train a vocabulary on: the training side; for Characters, all text.

        Each source of a mixture has its share of the vocabulary's `train_bytes`.
        """
        self.report("making the vocabulary")
        for name, reader, split, held_out in self._streams():
            if isinstance(self.vocabulary, Characters):
                yield from (part.text for part in split_parts(reader, split))
            elif not held_out and isinstance(self.vocabulary, BytePair | WordPiece):
                share = self.readers[int(name.removeprefix("train-"))][0]
                limit = share * self.vocabulary.train_bytes
                for part in split_parts(reader, split):
                    if not part.held_out and limit > 0:
                        limit -= len(part.text.encode())
                        yield part.text
                    if limit <= 0:
                        break

    def _write_all(self, done: dict) -> None:
        self.files, self.text = done["files"], done["text"]
        names = [f"train-{k}" for k in range(len(self.readers))] + ["validation"]
        vocab, separator = self.tokenizer.vocab, self.tokenizer.separator
        self.writers = {
            name: Writer(self.folder / name, vocab, separator, done["sizes"].get(name, ()), marked=self.marked)
            for name in names
        }
        self.hashes = {name: hashlib.sha256() for name in (*names, "all")}
        self.bytes = dict.fromkeys(names, 0)
        # Pieces already written are read and hashed again but not tokenised: the state of a digest cannot be stored.
        for k, (name, reader, split, held_out) in enumerate(self._streams()):
            skip = len(reader) if k < done["stream"] else done["pieces"] if k == done["stream"] else 0
            for batch in _batches(split_parts(reader, split), skip):
                targets = [name if not (part.held_out or held_out) else "validation" for part in batch]
                self._account(batch, targets)
                if batch[0].piece >= skip:
                    self._tokenise(batch, targets)
                    done |= {"stream": k, "pieces": batch[-1].piece + 1}
                    # Flushed first: the files are at least as long as the journal says; `_reopen` cuts the rest.
                    done["sizes"] = {n: writer.flush() for n, writer in self.writers.items()}
                    self._record(done)
                self._progress(reader, batch[-1].piece)
        self._finish()

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
        if self.separate and not self.bytes["validation"]:
            raise UserError(f"{self.separate.name} has no text in it: give a file with text, or validation=0.05")
        digest = self.tokenizer.sha256()
        sources = {f"train-{k}": reader.signature() for k, (_, reader) in enumerate(self.readers)}
        for name, writer in self.writers.items():
            writer.close(
                raw_bytes=self.bytes[name], sha256=self.hashes[name].hexdigest(), tokenizer=digest,
                source=sources.get(name, ""),
            )  # fmt: skip
        about = {
            "name": "+".join(reader.name for _, reader in self.readers),
            "bytes": sum(self.bytes.values()),
            "sha256": self.hashes["all"].hexdigest(),
            "files": self.files | {f"{name}.json": digests.checksum(self.folder / f"{name}.json") for name in self.writers},
        }
        digests.write_sealed(self.folder / "corpus.json", about)
        # A text that changed while it was read is compared once more at the next opening.
        if self.text == digests.fingerprint(self.inputs):
            digests.remember(self.folder, self.text)

    def _record(self, done: dict) -> None:
        digests.write_sealed(self.folder / "journal.json", done)

    def _progress(self, reader: Reader, piece: int) -> None:
        if time.monotonic() - self.reported > 2:
            self.reported = time.monotonic()
            self.report(f"{reader.name}: {100 * (piece + 1) / len(reader):.0f} % tokenised")


def _update(digest: Any, raw: bytes, part: Part) -> None:
    """Hash a part of a document with its borders: the same text in other fields is another corpus."""
    digest.update(raw)
    if part.borders:
        digest.update(repr(part.borders).encode())


def content(readers: Sequence[Reader], report: Callable[[str], None]) -> str:
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
