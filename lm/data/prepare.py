"""Tokenise a corpus once and keep it: `prepare(data)` from code, `python -m lm.data.prepare` by hand.

A prepared corpus lives in $LM_CACHE (~/.cache/lm) under a key made of everything it depends on. It is written beside
its final name with a journal: a killed run goes on where it stopped, and nothing half-written looks whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm.data.augment import Augmentation
from lm.data.digests import DamagedCorpus, fingerprint, read_sealed, remember, remembered, verify
from lm.data.examples import ExampleSet, ExampleSource, labelled
from lm.data.folds import numbers
from lm.data.sources import Concatenation, Documentation, Reader, Source, components, source_from
from lm.data.store import FORMAT, Tokens
from lm.data.tokenise import Tokenisation, content
from lm.data.tokenizers import BytePair, Bytes, Characters, Pretrained, Tokenizer, Vocabulary, WordPiece
from lm.data.words import Segmented, Words
from lm.errors import UserError, check


@dataclass(frozen=True, kw_only=True)
class Data:
    """What to train on.

    `validation` is a source of its own, or the share of documents held out by a hash of their content (of a corpus
    with a single document: the last share of its characters). `packing`: 'documents' keeps attention and positions
    within a document, 'windows' runs over their borders. `words` tells where words begin in text that does not show it.
    Sources of `lm.data.examples` hold labelled examples, for fine-tuning; they stay text until a row is made of them.
    `fold` "2/5" holds out the second of five equal parts of them (`lm.data.folds`), in place of `validation`: that is not
    looked at then, and a source there stays unread. `augment` adds changed copies of the training examples (`lm.data.augment`).
    """

    source: Source | ExampleSource = dataclasses.field(default_factory=Documentation)
    tokenizer: Vocabulary = dataclasses.field(default_factory=BytePair)
    validation: float | Source | ExampleSource = 0.05
    packing: Literal["documents", "windows"] = "documents"
    words: Words | None = None
    augment: tuple[Augmentation, ...] = ()
    fold: str = ""

    def __post_init__(self):
        if isinstance(self.validation, int | float) and not 0 <= self.validation < 1:
            raise UserError(f"validation={self.validation}: give a share from 0 to below 1, or a source")
        if self.packing not in ("documents", "windows"):
            raise UserError(f"packing={self.packing!r}: use 'documents' or 'windows'")
        if not isinstance(self.augment, tuple) or not all(isinstance(one, Augmentation) for one in self.augment):
            raise UserError(f"augment={self.augment!r}: give a tuple of values of lm.data.augment, such as (Edits(),)")
        if self.fold and numbers(self.fold) and not labelled(self.source):
            raise UserError(f"fold={self.fold} is for labelled examples; of running text hold out a share: validation=0.05")
        if self.augment and not labelled(self.source):
            raise UserError("augment is for labelled examples; the source is running text: leave it out")


@dataclass(frozen=True)
class Corpus:
    """Prepared tokens: `train` pairs each stream with its share of rows; `bytes`, `sha256` are of the whole text."""

    tokenizer: Tokenizer
    train: tuple[tuple[float, Tokens], ...]
    validation: Tokens
    name: str
    bytes: int
    sha256: str
    folder: Path

    @property
    def holds_out(self) -> bool:
        """Tell whether there is something to measure: an example, or a token behind another one."""
        return len(self.validation) > (0 if isinstance(self.validation, ExampleSet) else 1)

    def identity(self) -> dict[str, str]:
        """What must be the same for a run to go on, and for its figures to come again."""
        return {"corpus": self.sha256, "tokenizer": self.tokenizer.sha256()}

    def check_identity(self, notes: dict[str, Any], workdir: Path, otherwise: str) -> None:
        """Raise UserError unless these are the data that a save's notes tell of; an imported run was trained on none."""
        for name, value in self.identity().items():
            line = f"the {name} is not the one that {workdir} was trained with; bring it back or {otherwise}"
            check(notes[name] in (value, ""), line)


def prepare(
    data: Data,
    cache: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = None,
    whole: bool = False,
) -> Corpus:
    """Return the prepared corpus, from the cache when it is there; `report` is told how far it is.

    A damaged cache, or one whose text changed, is set aside and prepared anew: the same text gives the same tokens, bit by
    bit. Streams of up to `store.VERIFIED` bytes are compared with their checksums, with `whole` those of any size.
    """
    report = report or (lambda line: None)
    if any(labelled(source) for _, source in components(data.source)):
        from lm.data.labelled import gather

        return gather(data, _cache_root(cache), report)
    readers = [(share, _opened(source, data.words)) for share, source in components(data.source)]
    validation = data.validation
    if not isinstance(validation, int | float):
        validation = _opened(validation, data.words)
    root = _cache_root(cache)
    key = _key(data, [reader for _, reader in readers], validation)
    final = root / f"{readers[0][1].name.replace('/', '_').replace(':', '_')[:40]}-{key}"
    corpus, problem = _stored(final, readers, validation, report, whole)
    if corpus is None:
        try:
            with _exclusive(root, final.name, report) as folder:
                corpus, problem = _stored(final, readers, validation, report, whole)  # made by another process meanwhile
                if corpus is None:
                    if problem:
                        report(f"{problem}: set aside as {set_aside(final).name}, and prepared anew")
                    Tokenisation(data.tokenizer, readers, validation, folder, report).run()
                    _publish(folder, final)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
                line = f"{problem}, and " if problem else ""
                raise UserError(f"{line}{root}: {error.strerror}; set LM_CACHE to a folder with room") from None
            raise
    return corpus or _open(final, [share for share, _ in readers], whole)


def _stored(
    final: Path, readers: list[tuple[float, Reader]], validation: float | Reader, report: Callable[[str], None], whole: bool
) -> tuple[Corpus | None, str]:
    """Open what was prepared; None and why where it cannot be used, None and "" where there is none."""
    if not os.path.lexists(final):
        return None, ""
    try:
        corpus = _open(final, [share for share, _ in readers], whole)
    except DamagedCorpus as error:
        return None, str(error)
    opened = [reader for _, reader in readers] + ([] if isinstance(validation, int | float) else [validation])
    everything = Concatenation(tuple(opened))
    state = fingerprint(everything.inputs())
    if state not in remembered(final):
        # Copied or changed, with size and time kept. What marks say is not in the digest of the text.
        report(f"the files of {corpus.name} were touched since they were prepared: comparing their text")
        if everything.marked or content(opened, report) != corpus.sha256:
            return None, f"{final} is of another text, though size and time are the same"
        remember(final, state)
    return corpus, ""


def set_aside(path: Path) -> Path:
    """Rename what cannot be used, so that nothing is lost; return the new path."""
    number = 1
    while os.path.lexists(other := path.with_name(f"{path.name}.aside-{number}")):
        number += 1
    return path.rename(other)


def _opened(source: Source, words: Words | None) -> Reader:
    reader = source.open()
    return Segmented(reader, words) if words else reader


def _open(folder: Path, shares: list[float], whole: bool) -> Corpus:
    """Open a prepared corpus; raises DamagedCorpus."""
    about = read_sealed(folder / "corpus.json")
    verify(folder, about["files"])
    train = tuple((share, Tokens.open(folder / f"train-{k}", whole)) for k, share in enumerate(shares))
    return Corpus(
        tokenizer=Tokenizer.load(folder / "tokenizer.json"),
        train=train,
        validation=Tokens.open(folder / "validation", whole),
        name=about["name"],
        bytes=about["bytes"],
        sha256=about["sha256"],
        folder=folder,
    )


def _cache_root(cache: str | os.PathLike | None) -> Path:
    root = Path(cache or os.environ.get("LM_CACHE") or "~/.cache/lm").expanduser() / "corpora"
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root} cannot be made ({error.strerror}): set LM_CACHE to a folder of yours") from None
    return root


def _key(data: Data, readers: list[Reader], validation: float | Reader) -> str:
    """Hash everything that the token files depend on."""
    tokenizer: dict = {"type": type(data.tokenizer).__name__, **dataclasses.asdict(data.tokenizer)}
    if isinstance(data.tokenizer, Pretrained):
        tokenizer["sha256"] = Tokenizer.load(data.tokenizer.path).sha256()
    if isinstance(data.tokenizer, BytePair | WordPiece):
        import tokenizers

        tokenizer["version"] = tokenizers.__version__
        tokenizer["weights"] = [share for share, _ in components(data.source)]
    rule = validation if isinstance(validation, int | float) else validation.signature()
    facts = [FORMAT, [reader.signature() for reader in readers], tokenizer, rule]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _exclusive(root: Path, name: str, report) -> Iterator[Path]:
    """Hold the only right to write `name`; yield the folder to write in. The lock goes when its holder dies."""
    folder = root / f"{name}.partial"
    with open(root / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process prepares this corpus: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: a folder of our own, and the first to finish wins
            folder = root / f"{name}.partial-{os.uname().nodename}-{os.getpid()}"
        if os.path.lexists(folder) and not folder.is_dir():
            report(f"{folder} is no folder: set aside as {set_aside(folder).name}")
        folder.mkdir(exist_ok=True)
        yield folder


def _publish(folder: Path, final: Path) -> None:
    (folder / "journal.json").unlink()
    try:
        folder.rename(final)
    except OSError:
        if not (final / "corpus.json").exists():
            raise
        shutil.rmtree(folder)


def summary(corpus: Corpus) -> str:
    """Return a small table: documents, tokens, bytes and bytes per token of each stream."""
    lines = [f"{'':12} {'documents':>12} {'tokens':>14} {'bytes':>14} {'bytes/token':>12}"]
    streams = [(f"train {share:.0%}" if len(corpus.train) > 1 else "train", t) for share, t in corpus.train]
    for name, tokens in [*streams, ("validation", corpus.validation)]:
        rate = tokens.raw_bytes / max(1, len(tokens))
        lines.append(f"{name:12} {tokens.documents:12,} {len(tokens):14,} {tokens.raw_bytes:14,} {rate:12.2f}")
    lines += [f"vocabulary   {corpus.tokenizer.vocab:,}", f"text         {corpus.name}, sha256 {corpus.sha256}"]
    return "\n".join([*lines, f"files        {corpus.folder}"])


def vocabulary_from(name: str, vocab: int) -> Vocabulary:
    """Turn a flag into a vocabulary: bytes, characters, bpe, wordpiece, or the path of a published one."""
    match name:
        case "bytes":
            return Bytes()
        case "characters":
            return Characters()
        case "bpe":
            return BytePair(vocab=vocab)
        case "wordpiece":
            return WordPiece(vocab=vocab)
    if not Path(name).expanduser().exists():
        raise UserError(
            f"tokenizer={name}: use bytes, characters, bpe, wordpiece, or the path of a tokenizer.json or folder"
        )
    return Pretrained(name)


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the flags, prepare the corpus, print what came of it."""
    from absl import flags

    if overrides:
        raise UserError("lm.data.prepare takes no --config.* flags; see --help")

    flag = flags.FLAGS
    data = Data(
        source=source_from(flag.text, flag.data),
        tokenizer=vocabulary_from(flag.tokenizer, flag.vocab),
        validation=flag.validation,
    )
    begin = time.monotonic()
    corpus = prepare(data, flag.cache, lambda line: print(line, file=sys.stderr, flush=True), flag.verify)
    print(summary(corpus))
    print(f"seconds      {time.monotonic() - begin:.1f}")


def define_flags() -> None:
    from absl import flags

    flags.DEFINE_string("text", None, "Text, .jsonl or .parquet: a path, a glob, or several joined by commas.")
    flags.DEFINE_string("data", None, "A published data set: tfds:NAME. Without --text too, Python's documentation.")
    flags.DEFINE_string("tokenizer", "bpe", "bytes, characters, bpe, wordpiece, or the path of a tokenizer.")
    flags.DEFINE_integer("vocab", 4096, "Size of the vocabulary that --tokenizer=bpe or wordpiece learns.")
    flags.DEFINE_float("validation", 0.05, "Share of the documents (of a single document: of its end) held out.")
    flags.DEFINE_bool(
        "verify", False, "Compare a prepared corpus of any size with its checksums (2.5 GB/s); small ones always are."
    )
    flags.DEFINE_string("cache", None, "Folder for prepared corpora. Default: $LM_CACHE or ~/.cache/lm.")


if __name__ == "__main__":
    from lm.command import run

    define_flags()
    run(main)
