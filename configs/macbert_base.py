"""Chinese MacBERT and BERT-wwm, base and large (Cui et al. 2020, 2021): 102 M and 324 M parameters.

    python -m lm.main --config=configs/macbert_base.py:text='corpus/*.txt',tokenizer=path/to/bert-base-chinese
    python -m lm.main --config=configs/macbert_base.py:text='corpus/*.txt',system=wwm,size=large

MacBERT: words in n-grams of 1 to 4 give way to similar words, no [MASK], sentence order. Its optimizer and steps are not
published: these are those of RoBERTa-wwm-ext, 1 M steps of 384 x 512 tokens, from BERT's Chinese weights (`start`).
`system=wwm`: whole words masked, next sentences, ten static maskings. Words are jieba's, theirs LTP's.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.text.words import Jieba
from lm.data.tokenizer.tokenizer import Pretrained, WordPiece
from lm.models.presets import BERT_CHINESE, BERT_CHINESE_LARGE
from lm.objectives.masked import Masked

SYSTEMS = {
    "macbert": {"ngrams": (0.4, 0.3, 0.2, 0.1), "similar": True, "sentence": "sop"},
    "wwm": {"sentence": "nsp", "copies": 10},
}


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    system: Literal["macbert", "wwm"] = "macbert",
    size: Literal["base", "large"] = "base",
    start: str | None = None,
    micro_batches: int = 4,
) -> Config:
    model = BERT_CHINESE_LARGE if size == "large" else BERT_CHINESE
    model = replace(model, vocab=0, dropout=0.1, attention_dropout=0.1, dtype="bfloat16")
    vocabulary = Pretrained(tokenizer) if tokenizer else WordPiece(vocab=21128)
    return Config(
        objective=Masked(model=model, unit="word", **SYSTEMS[system]),
        data=Data(source=source_from(text, data), tokenizer=vocabulary, validation=0.01, words=Jieba()),
        optimizer=Optimizer(lr=1e-4, eps=1e-6, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=10_000),
        steps=1_000_000,
        batch=384,
        micro_batches=micro_batches,
        start=start,
        every=Every(log=100, evaluate=10_000, save=10_000, sample=10_000),
    )
