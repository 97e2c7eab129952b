"""What the tests of fine-tuning share: a small network, a tokenizer of known words, one side of a split."""

import dataclasses
from pathlib import Path

from lm.config import load
from lm.data.corpus.prepare import prepare
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.models.transformer import Transformer
from lm.objectives.base import resolve, training_batches

NAMES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def words(more: tuple[str, ...] = ()) -> Tokenizer:
    """WordPiece over a list of words; [PAD] [UNK] [CLS] [SEP] [MASK] are 0 to 4."""
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Core

    vocabulary = {name: i for i, name in enumerate((*NAMES, *WORDS, *more))}
    core = Core(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens([AddedToken(name, special=True) for name in NAMES])
    return Tokenizer(core)


def model(**changes) -> Transformer:
    """Two layers of 16."""
    return Transformer(**{"vocab": 40, "context": 64, "width": 16, "depth": 2, "heads": 2, "types": 2, **changes})


def prepared(name: str, **changes):
    """A tiny config of the tests, resolved, its corpus and first batch; `changes` to the config."""
    config = dataclasses.replace(load(name), **changes)
    config, corpus = resolve(config, prepare(config.data))
    return config, corpus, training_batches(config, corpus)[0]


def configs(name: str) -> str:
    return str(Path("tests/configs") / name)
