"""Tokenise a corpus once and open it from the cache afterwards.

A prepared corpus lives in $LM_CACHE (~/.cache/lm) under a key made of everything it depends on. It is written beside
its final name (`lm.data.corpus.shards`), so that nothing half-written looks whole.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.data.corpus.corpus import Corpus, Data
from lm.data.corpus.digests import DamagedCorpus, fingerprint, read_sealed, remember, remembered, verify
from lm.data.corpus.store import FORMAT, Tokens
from lm.data.sources import Concatenation, components
from lm.data.text.words import Words
from lm.data.tokenizer.tokenizer import BytePair, Pretrained, Tokenizer, WordPiece
from lm.data.types import Reader, labelled
from lm.errors import UserError, check


def prepare(
    data: Data,
    cache: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = None,
    whole: bool = False,
) -> Corpus:
    """Prepare a corpus, or open it from the cache; `report` receives lines of progress.

    A damaged cache, or one whose text changed, is set aside and prepared anew: the same text gives the same tokens, bit by
    bit. Streams of up to `store.VERIFIED` bytes are compared with their checksums, with `whole` those of any size.
    """
    corpus = prepare_portion(data, (0, 1), cache, report, whole)
    assert corpus is not None
    return corpus


def prepare_portion(
    data: Data,
    portion: tuple[int, int],
    cache: str | os.PathLike | None = None,
    report: Callable[[str], None] | None = None,
    whole: bool = False,
) -> Corpus | None:
    """Prepare every n-th shard from number i on, `portion` (i, n); return the corpus once all its shards are prepared."""
    report = report or (lambda line: None)
    if any(labelled(source) for _, source in components(data.source)):
        from lm.data.corpus.gather import gather

        return gather(data, _cache_root(cache), report).halved(data.half)
    readers = [(share, _opened(source, data.words)) for share, source in components(data.source)]
    held = data.validation
    validation = held if isinstance(held, int | float) else _opened(held, data.words)
    root = _cache_root(cache)
    key = _key(data, [reader for _, reader in readers], validation)
    final = root / f"{readers[0][1].name.replace('/', '_').replace(':', '_')[:40]}-{key}"

    def stored() -> tuple[Corpus | None, str]:
        return _stored(final, readers, validation, report, whole)

    corpus, problem = stored()
    if corpus is None:
        from lm.data.corpus.shards import Preparation

        try:
            if not Preparation(data.tokenizer, readers, validation, final, report).run(portion, stored):
                return None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
                line = f"{problem}, and " if problem else ""
                raise UserError(f"{line}{root}: {error.strerror}; set LM_CACHE to a folder with room") from None
            raise
    return (corpus or _open(final, [share for share, _ in readers], whole)).halved(data.half)


def _stored(
    final: Path, readers: list[tuple[float, Reader]], validation: float | Reader, report: Callable[[str], None], whole: bool
) -> tuple[Corpus | None, str]:
    """Open a prepared corpus; return None and the reason where it cannot be used, None and "" without one."""
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
        # Copied, or changed with size and time kept. The digest of the text does not cover its marks.
        from lm.data.corpus.shards import text_digest

        report(f"the files of {corpus.name} were touched since they were prepared: comparing their text")
        if everything.marked or text_digest(final, readers, validation, report) != corpus.sha256:
            return None, f"{final} is of another text, though size and time are the same"
        remember(final, state)
    return corpus, ""


def _opened(source: Any, words: Words | None) -> Reader:
    reader = source.open()
    return words.over(reader) if words else reader


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
    name = str(cache or os.environ.get("LM_CACHE") or "~/.cache/lm")
    check("://" not in name, f"{name}: the cache is a folder; mount the bucket as one, and set LM_CACHE to it")
    root = Path(name).expanduser() / "corpora"
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

        # A trained vocabulary depends on its trainer, and on how much each source contributes.
        tokenizer["version"] = tokenizers.__version__
        tokenizer["weights"] = [share for share, _ in components(data.source)]
    rule = validation if isinstance(validation, int | float) else validation.signature()
    facts = [FORMAT, [reader.signature() for reader in readers], tokenizer, rule]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
