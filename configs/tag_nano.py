"""A tagger that learns in minutes on two CPU cores: which mark follows each word of Python's documentation?

    python -m lm.objectives.tag
    python -m lm.main --config=configs/tag_nano.py:text=train.conll,held_out=dev.conll,crf=yes,start=HF_DIR
    python -m lm.main --config=configs/tag_nano.py:data=tfds:conll2003,words=tokens,tags=ner,start=HF_DIR

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
for a decoder (GPT). Without a start a network of 3 x 128 learns from the examples alone.
Look at eval/validation/inside: the accuracy where there is something to tag. Files are columns of words and tags, as
CoNLL's (.conll); for the People's Daily write source=lm.data.labelled.columns.Entities(path=...) into a config of your own.
"""

from configs import examples, finetuning, small
from lm.config import Config
from lm.objectives.finetune.network import Rows
from lm.objectives.tag import Tag


def config(
    text: str | None = None, data: str | None = None, held_out: str | None = None, words: str = "words", tags: str = "tags",
    start: str | None = None, crf: bool = False, causal: bool = False, steps: int = 600,
) -> Config:  # fmt: skip
    objective = Tag(model=small(128, causal), words=words, tags=tags, crf=crf, dropout=0.1, rows=Rows(causal=causal))
    return finetuning(objective, examples("marks", text, data, held_out, words), start, steps)
