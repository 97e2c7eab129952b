"""Answers as spans, small enough for two CPU cores: what is this function for? Some questions have no answer.

    python -m lm.objectives.extract
    python -m lm.main --config=configs/extract_nano.py:text=train-v2.0.json,held_out=dev-v2.0.json,start=HF_DIR,length=384

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
for a decoder (GPT). Without a start a network of 3 x 128 learns from scratch.
Look at eval/validation/exact: the share of windows with both ends right; a network without pre-training stays at 0.16.
"""

from configs import examples, finetuning, small
from lm.config import Config
from lm.objectives.extract import Extract
from lm.objectives.finetune.network import Rows


def config(
    text: str | None = None, data: str | None = None, held_out: str | None = None, start: str | None = None,
    length: int = 192, stride: int = 128, causal: bool = False, steps: int = 1000,
) -> Config:  # fmt: skip
    rows = Rows(length=length, causal=causal)
    objective = Extract(model=small(max(192, length), causal), stride=stride, dropout=0.1, rows=rows)
    return finetuning(objective, examples("questions", text, data, held_out, "question"), start, steps)
