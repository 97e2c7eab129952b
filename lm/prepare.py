"""Tokenise a corpus ahead of the runs that will read it, by one process or by several.

python -m lm.prepare --config=NAME[:key=value,...] [--shard=I/N] [--config.data.a.b=value ...]
python -m lm.prepare --text=PATH [--tokenizer=bpe --vocab=4096 --validation=0.05] [--shard=I/N]
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from absl import flags

from lm.config import Config, load, override
from lm.data.corpus.corpus import Corpus, Data
from lm.data.corpus.prepare import prepare_portion
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, Pretrained, Vocabulary, WordPiece
from lm.data.types import labelled
from lm.errors import UserError, check
from lm.flags import run


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
        raise UserError(f"tokenizer={name}: use bytes, characters, bpe, wordpiece, or the path of a tokenizer.json or folder")
    return Pretrained(name)


def parse_portion(text: str | None) -> tuple[int, int]:
    """Parse "3/8", every eighth shard from the third on, as (2, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard={text}: write 3/8 for the third of eight portions")
    return int(match[1]) - 1, int(match[2])


def data_from(overrides: list[tuple[str, str]]) -> Data:
    """Return the data of the config, or of the flags that stand for one."""
    flag = flags.FLAGS
    if flag.config:
        chosen = [name for name in ("text", "data", "tokenizer", "vocab", "validation") if flag[name].present]
        check(not chosen, f"--{' --'.join(chosen)}: with --config they are its own arguments and fields")
        data = override(load(flag.config), overrides).data
        check(not labelled(data.source), "labelled examples stay text: there is nothing to prepare")
        return data
    check(not overrides, "--config.* flags need a config: --config=NAME")
    return Data(
        source=source_from(flag.text, flag.data),
        tokenizer=vocabulary_from(flag.tokenizer, flag.vocab),
        validation=flag.validation,
    )


def main(overrides: list[tuple[str, str]]) -> None:
    """Prepare the corpus of the flags; print its summary, or whether shards are missing."""
    flag, begin = flags.FLAGS, time.monotonic()
    portion = parse_portion(flag.shard)
    data = data_from(overrides)
    corpus = prepare_portion(data, portion, flag.cache, lambda line: print(line, file=sys.stderr, flush=True), flag.verify)
    print(summary(corpus) if corpus else "this portion is prepared; other shards are missing")
    print(f"seconds      {time.monotonic() - begin:.1f}")


def define_flags() -> None:
    flags.DEFINE_string("config", None, "Prepare the corpus of this config, as lm.main takes it.")
    flags.DEFINE_string("shard", None, "I/N: prepare every N-th shard from the I-th on; the last worker joins them.")
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
    define_flags()
    run(main, Config)
