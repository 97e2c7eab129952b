"""Prepare a corpus in shards, by any number of processes on machines that share the cache.

The text alone decides on the shards: consecutive files of about SHARD bytes, cut between documents. A shard is a pure function
of its text, the tokenizer and the split, which the first process makes for all (the plan). It is written aside, with a journal,
and renamed when it is whole. The last process writes the index, which joins the shards in their order (`joined`). A corpus of
one shard is that shard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lm.data.corpus import digests
from lm.data.corpus.digests import DamagedCorpus
from lm.data.corpus.joined import join_streams, joined_digest
from lm.data.corpus.locks import exclusive, publish, set_aside
from lm.data.corpus.split import Split, choose_split, split_parts
from lm.data.corpus.store import Tokens
from lm.data.corpus.tokenise import Stream, Tokenisation, content
from lm.data.tokenizer.tokenizer import BytePair, Characters, Tokenizer, Vocabulary, WordPiece
from lm.data.types import Reader, portions
from lm.errors import check

SHARD = 1 << 28  # bytes of files; part of the corpus's digest: raise store.FORMAT with it
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")  # the second only where it is needed
Shard = list[Stream]


def shards_of(streams: Sequence[Stream]) -> list[Shard]:
    """Divide streams into shards of up to SHARD bytes of files; a file that cannot be cut makes a larger one."""
    shards: list[Shard] = []
    room = 0
    for stream in streams:
        # The end of a single document is held out by its characters, which are counted from its beginning.
        most = SHARD if stream.split.cut is None else sys.maxsize
        for size, reader in portions(stream.reader, most):
            if not shards or size > room:
                shards.append([])
                room = SHARD
            shards[-1].append(stream._replace(reader=reader))
            room -= size
    return shards


def streams_of(readers: Sequence[tuple[float, Reader]], validation: float | Reader, splits: Sequence[Split]) -> list[Stream]:
    """List the streams of training readers and of a validation reader."""
    streams = [Stream(f"train-{k}", reader, split) for k, ((_, reader), split) in enumerate(zip(readers, splits, strict=True))]
    return streams + ([] if isinstance(validation, int | float) else [Stream("validation", validation, Split(), True)])


def text_digest(
    folder: Path, readers: Sequence[tuple[float, Reader]], validation: float | Reader, report: Callable[[str], None]
) -> str:
    """Return the digest that a prepared corpus would have of the text that its readers hold now."""
    about = digests.read_sealed(folder / "corpus.json")
    splits = [Split(**split) for split in about.get("splits", [{}] * len(readers))]
    streams = streams_of(readers, validation, splits)
    shards = shards_of(streams) if about.get("shards", 1) > 1 else [streams]
    return joined_digest([content((stream.reader for stream in shard), report) for shard in shards])


class Preparation:
    """The preparation of the corpus `final`; every step can be repeated after a kill."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        readers: list[tuple[float, Reader]],
        validation: float | Reader,
        final: Path,
        report: Callable[[str], None],
    ):
        self.vocabulary, self.readers, self.validation = vocabulary, readers, validation
        self.final, self.report = final, report
        self.work = final.with_name(f"{final.name}.shards")

    def run(self, portion: tuple[int, int], stored: Callable[[], tuple[object, str]]) -> bool:
        """Prepare every n-th shard from number i on, `portion` (i, n), and the index once all are there.

        `stored` opens the finished corpus, or returns None and the reason. Returns whether there is one.
        """
        number, count = portion
        if not self.work.is_dir() and (done := self._begin(number, stored)) is not None:
            return done
        try:
            plan = self._read_plan(self.work)
        except DamagedCorpus as error:
            return self._again(str(error), portion, stored)
        shards = shards_of(streams_of(self.readers, self.validation, plan))
        own = range(number, len(shards), count)
        # Shards that another process is at are left for the end, when most of them are there.
        for wait in (False, True):
            for k in own:
                with self._others_may_finish():
                    self._prepare(k, shards[k], len(shards), wait)
        with self._others_may_finish():
            missing = [k for k in range(len(shards)) if not (self.work / shard_name(k)).is_dir()]
            if missing and not self.final.is_dir():
                self.report(f"{len(shards) - len(missing)} of {len(shards)} shards are prepared")
                return False
            wrong = [k for k in range(len(shards)) if not self._is_whole(k, shards[k])]
            if wrong and not self.final.is_dir():
                self.report(f"shard {wrong[0] + 1} of {len(shards)} is damaged, or of another text: it is prepared anew")
                shutil.rmtree(self.work / shard_name(wrong[0]))
                return self.run(portion, stored)
            with exclusive(self.final, self.report):
                corpus, problem = stored()
                if corpus is None:
                    self._set_aside(problem)
                    self._finish(self.work, shards, plan)
                    publish(self.work, self.final)
        return True

    @contextlib.contextmanager
    def _others_may_finish(self) -> Iterator[None]:
        """Ignore that the shards are gone when another process has published the corpus meanwhile."""
        try:
            yield
        except FileNotFoundError:
            if not self.final.is_dir():
                raise

    def _begin(self, number: int, stored: Callable[[], tuple[object, str]]) -> bool | None:
        """Make the plan; return None, or, of a corpus of one shard, whether it is prepared, which is up to `number` 0."""
        with exclusive(self.final, self.report) as folder:
            corpus, problem = stored()  # another process may have made it
            if corpus is not None:
                return True
            self._set_aside(problem)
            if self.work.is_dir():
                return None
            folder.mkdir(exist_ok=True)
            plan = self._plan(folder)
            shards = shards_of(streams_of(self.readers, self.validation, plan))
            if len(shards) > 1:
                publish(folder, self.work)
                return None
            if number:
                self.report("the corpus is a single shard, which is up to portion 1")
                return False
            self._tokenise(folder, shards[0])
            self._finish(folder, shards, plan)
            publish(folder, self.final)
        return True

    def _set_aside(self, problem: str) -> None:
        if problem:
            self.report(f"{problem}: set aside as {set_aside(self.final).name}, and prepared anew")

    def _again(self, problem: str, portion: tuple[int, int], stored: Callable[[], tuple[object, str]]) -> bool:
        self.report(f"{problem}: set aside as {set_aside(self.work).name}, and prepared anew")
        return self.run(portion, stored)

    # -- the plan: splits and tokenizer ------------------------------------------------------------------------------------

    def _inputs(self) -> list[str]:
        opened = [reader for _, reader in self.readers]
        opened += [] if isinstance(self.validation, int | float) else [self.validation]
        return [path for reader in opened for path in reader.inputs()]

    def _plan(self, folder: Path) -> list[Split]:
        """Choose the splits and make the tokenizer, or read those of a run that was killed."""
        text = digests.fingerprint(self._inputs())
        try:
            return self._read_plan(folder, text)
        except DamagedCorpus:
            (folder / "journal.json").unlink(missing_ok=True)
        share = self.validation if isinstance(self.validation, int | float) else 0.0
        splits = [choose_split(reader, share) for _, reader in self.readers]
        tokenizer = self.vocabulary.build(lambda: self._training_text(splits))
        for name in TOKENIZER:
            # A killed run may have left the second file, which not every tokenizer writes anew.
            (folder / name).unlink(missing_ok=True)
        tokenizer.save(folder / "tokenizer.json")
        files = {name: digests.checksum(folder / name) for name in TOKENIZER if (folder / name).exists()}
        plan = {"splits": [dataclasses.asdict(split) for split in splits], "files": files, "text": text}
        digests.write_sealed(folder / "plan.json", plan)
        return splits

    def _read_plan(self, folder: Path, text: str = "") -> list[Split]:
        """Read the splits and check the tokenizer; raises DamagedCorpus, with `text` for another text, too."""
        plan = digests.read_sealed(folder / "plan.json")
        digests.verify(folder, plan["files"])
        if text and plan["text"] != text:
            raise DamagedCorpus("the text changed since")
        return [Split(**split) for split in plan["splits"]]

    def _training_text(self, splits: Sequence[Split]) -> Iterator[str]:
        """Yield the text to train a vocabulary on: the training side; for Characters, all text.

        Each source of a mixture has its share of the vocabulary's `train_bytes`.
        """
        self.report("making the vocabulary")
        for k, (_, reader, split, held_out) in enumerate(streams_of(self.readers, self.validation, splits)):
            if isinstance(self.vocabulary, Characters):
                yield from (part.text for part in split_parts(reader, split))
            elif not held_out and isinstance(self.vocabulary, BytePair | WordPiece):
                limit = self.readers[k][0] * self.vocabulary.train_bytes
                for part in split_parts(reader, split):
                    if not part.held_out and limit > 0:
                        limit -= len(part.text.encode())
                        yield part.text
                    if limit <= 0:
                        break

    # -- shards and index --------------------------------------------------------------------------------------------------

    def _tokenise(self, folder: Path, shard: Shard) -> None:
        tokenisation = Tokenisation(Tokenizer.load(self._planned(folder)), shard, folder, self.report)
        about = {"sha256": tokenisation.run(), "bytes": sum(tokenisation.bytes.values()), "names": tokenisation.names}
        files = {f"{name}.json": digests.checksum(folder / f"{name}.json") for name in tokenisation.names}
        digests.write_sealed(folder / "shard.json", about | {"files": files})

    def _planned(self, folder: Path) -> Path:
        return (folder if (folder / "plan.json").exists() else self.work) / "tokenizer.json"

    def _prepare(self, k: int, shard: Shard, count: int, wait: bool) -> None:
        """Prepare shard k unless it is there; without `wait` also unless another process is at it."""
        own = self.work / shard_name(k)
        if own.is_dir():
            return
        with contextlib.suppress(BlockingIOError), exclusive(own, self.report, wait) as folder:
            if not own.is_dir():
                self.report(f"shard {k + 1} of {count}")
                folder.mkdir(exist_ok=True)
                self._tokenise(folder, shard)
                publish(folder, own)

    def _is_whole(self, k: int, shard: Shard) -> bool:
        """Return whether shard k has its files, of the text that is there now."""
        folder = self.work / shard_name(k)
        try:
            about = digests.read_sealed(folder / "shard.json")
            digests.verify(folder, about["files"])
            streams = [Tokens.open(folder / name) for name in about["names"]]
        except DamagedCorpus:
            return False
        state = digests.fingerprint([path for stream in shard for path in stream.reader.inputs()])
        if state not in digests.remembered(folder):
            marked = any(stream.marks is not None for stream in streams)
            if marked or content((stream.reader for stream in shard), self.report) != about["sha256"]:
                return False
            digests.remember(folder, state)
        return True

    def _finish(self, folder: Path, shards: Sequence[Shard], plan: Sequence[Split]) -> None:
        """Write the index and the description of a corpus whose shards are all there."""
        text = digests.fingerprint(self._inputs())
        names = [*(f"train-{k}" for k in range(len(self.readers))), "validation"]
        homes = [folder] if len(shards) == 1 else [folder / shard_name(k) for k in range(len(shards))]
        parts = [digests.read_sealed(home / "shard.json") for home in homes]
        sources = [*(reader.signature() for _, reader in self.readers), ""]
        for name, source in zip(names, sources, strict=True):
            if len(shards) > 1:
                join_streams(folder, name, [home for home, part in zip(homes, parts) if name in part["names"]], source)
        held = self.validation
        if not isinstance(held, int | float):
            empty = not Tokens.open(folder / "validation").raw_bytes
            check(not empty, f"{held.name} has no text in it: give a file with text, or validation=0.05")
        files = {name: digests.checksum(folder / name) for name in TOKENIZER if (folder / name).exists()}
        about = {
            "name": "+".join(reader.name for _, reader in self.readers),
            "bytes": sum(part["bytes"] for part in parts),
            "sha256": joined_digest([part["sha256"] for part in parts]),
            "splits": [dataclasses.asdict(split) for split in plan],
            "shards": len(shards),
            "files": files | {f"{name}.json": digests.checksum(folder / f"{name}.json") for name in names},
        }
        digests.write_sealed(folder / "corpus.json", about)
        for path in (*folder.glob("*.lock"), *folder.glob("*.partial*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if len(shards) > 1 and text == digests.fingerprint(self._inputs()):
            digests.remember(folder, text)


def shard_name(k: int) -> str:
    """Return the folder of shard k within the corpus's."""
    return f"{k:05}"
