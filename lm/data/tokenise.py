"""Turn readers into token files in one folder, batch by batch, with a journal that a killed run goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lm.data.sources import Reader
from lm.data.split import Part, Split, parts, plan
from lm.data.store import Writer
from lm.data.tokenizers import Characters, Tokenizer, Vocabulary
from lm.errors import UserError

BATCH_CHARACTERS = 4 << 20  # tokenised at once, then journalled: bounds memory and what a kill loses
BATCH_PARTS = 4096


class Tokenisation:
    """One corpus in the making, in `folder`; every method can be repeated after a kill."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        readers: list[tuple[float, Reader]],
        validation: float | Reader,
        folder: Path,
        report: Callable[[str], None],
    ):
        self.vocabulary, self.readers, self.folder = vocabulary, readers, folder
        self.share, self.separate = (validation, None) if isinstance(validation, int | float) else (0.0, validation)
        self.report, self.said = report, 0.0

    def run(self) -> None:
        try:
            done = self._journal()
            self.splits = [Split(**split) for split in done["splits"]]
        except (OSError, ValueError, KeyError):
            done = self._begin()
        self.tokenizer = Tokenizer.load(self.folder / "tokenizer.json")
        try:
            self._write_all(done)
        except EOFError:  # the machine went down before the files reached the disk: start again
            self._write_all(self._begin())

    def _begin(self) -> dict:
        """Choose the splits and make the tokenizer."""
        self.splits = [plan(reader, self.share) for _, reader in self.readers]
        tokenizer = self.vocabulary.build(self._training_text)
        tokenizer.save(self.folder / "tokenizer.json")
        done = {"stream": 0, "pieces": 0, "sizes": {}, "splits": [dataclasses.asdict(split) for split in self.splits]}
        self._record(done)
        return done

    def _streams(self) -> list[tuple[str, Reader, Split, bool]]:
        """List (name of the training stream, reader, split, whether all of it is held out)."""
        found = [(f"train-{k}", reader, self.splits[k], False) for k, (_, reader) in enumerate(self.readers)]
        if self.separate:
            found.append(("validation", self.separate, Split(), True))
        return found

    def _training_text(self) -> Iterator[str]:
        """Yield what a vocabulary is made from: the training side; for Characters, everything.

        A mixture gives each source its share of the bytes that BytePair looks at.
        """
        self.report("making the vocabulary")
        for name, reader, split, held_out in self._streams():
            if isinstance(self.vocabulary, Characters):
                yield from (part.text for part in parts(reader, split))
            elif not held_out:
                share = self.readers[int(name.removeprefix("train-"))][0]
                limit = share * self.vocabulary.train_bytes
                for part in parts(reader, split):
                    if not part.held_out and limit > 0:
                        limit -= len(part.text.encode())
                        yield part.text
                    if limit <= 0:
                        break

    def _write_all(self, done: dict) -> None:
        names = [f"train-{k}" for k in range(len(self.readers))] + ["validation"]
        vocab, separator = self.tokenizer.vocab, self.tokenizer.separator
        self.writers = {n: Writer(self.folder / n, vocab, separator, *done["sizes"].get(n, (0, 0))) for n in names}
        self.hashes = {name: hashlib.sha256() for name in (*names, "all")}
        self.bytes = dict.fromkeys(names, 0)
        for k, (name, reader, split, held_out) in enumerate(self._streams()):
            skip = len(reader) if k < done["stream"] else done["pieces"] if k == done["stream"] else 0
            for batch in _batches(parts(reader, split), skip):
                targets = [name if not (part.held_out or held_out) else "validation" for part in batch]
                self._account(batch, targets)
                if batch[0].piece >= skip:
                    self._tokenise(batch, targets)
                    done |= {"stream": k, "pieces": batch[-1].piece + 1}
                    done["sizes"] = {n: writer.flush() for n, writer in self.writers.items()}
                    self._record(done)
                self._say(reader, batch[-1].piece)
        self._finish()

    def _account(self, batch: list[Part], targets: list[str]) -> None:
        for part, target in zip(batch, targets):
            raw = part.text.encode()
            self.hashes[target].update(raw)
            self.hashes["all"].update(raw)
            self.bytes[target] += len(raw)

    def _tokenise(self, batch: list[Part], targets: list[str]) -> None:
        for part, target, ids in zip(batch, targets, self.tokenizer.encode_batch([part.text for part in batch])):
            self.writers[target].add(ids, part.first, part.last)

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
        }
        (self.folder / "corpus.json").write_text(json.dumps(about, indent=1))

    def _journal(self) -> dict:
        return json.loads((self.folder / "journal.json").read_text())

    def _record(self, done: dict) -> None:
        fresh = self.folder / "journal.new"
        fresh.write_text(json.dumps(done))
        fresh.replace(self.folder / "journal.json")

    def _say(self, reader: Reader, piece: int) -> None:
        if time.monotonic() - self.said > 2:
            self.said = time.monotonic()
            self.report(f"{reader.name}: {100 * (piece + 1) / len(reader):.0f} % tokenised")


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
