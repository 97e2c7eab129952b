"""A tagger that learns in minutes on two CPU cores: which mark follows each word of Python's documentation?

    python -m lm.objectives.tag
    python -m lm.main --config=configs/tag_nano.py:text=train.conll,held_out=dev.conll,crf=yes,start=HF_DIR
    python -m lm.main --config=configs/tag_nano.py:data=tfds:conll2003,words=tokens,tags=ner,start=HF_DIR

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
where it reads from left to right (GPT). Without it a network of 3 x 128 learns from nothing but the examples.
Look at eval/validation/inside: the accuracy where there is something to tag. Files are columns of words and tags, as
CoNLL's (.conll); for the People's Daily write source=lm.data.labelled.columns.Entities(path=...) into a config of your own.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.labelled.sources import examples_from, held_out_from
from lm.data.tokenizer.tokenizer import WordPiece
from lm.models.transformer import Transformer
from lm.objectives.finetune.network import Rows
from lm.objectives.tag import Tag


def config(
    text: str | None = None,
    data: str | None = None,
    held_out: str | None = None,
    words: str = "words",
    tags: str = "tags",
    start: str | None = None,
    crf: bool = False,
    causal: bool = False,
    steps: int = 600,
) -> Config:
    model = Transformer(
        context=128, width=128, depth=3, heads=4, types=0 if causal else 2, activation="gelu", init_positions=0.02,
        dropout=0.1, attention_dropout=0.1, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Tag(
            model=model,
            words=words,
            tags=tags,
            crf=crf,
            dropout=0.1,
            rows=Rows(causal=causal),
        ),
        data=Data(
            source=examples_from(text, "marks", data, words),
            validation=held_out_from(held_out, "marks", words),
            tokenizer=WordPiece(vocab=4096),
        ),
        optimizer=Optimizer(lr=5e-5 if start else 1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=200, save=200, sample=200),
    )
