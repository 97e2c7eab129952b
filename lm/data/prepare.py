"""The command `python -m lm.data.prepare`: tokenise a corpus ahead of the runs that will read it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lm.data.corpus.corpus import Corpus, Data
from lm.data.corpus.prepare import prepare
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Characters, Pretrained, Vocabulary, WordPiece
from lm.errors import UserError


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


def main(overrides: list[tuple[str, str]]) -> None:
    """Prepare the corpus of the flags; print its summary."""
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
    from lm.flags import run

    define_flags()
    run(main)
