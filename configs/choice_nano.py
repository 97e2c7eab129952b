"""Multiple choice, small enough for two CPU cores: which of four texts belongs to this name?

    python -m lm.objectives.choice
    python -m lm.main --config=configs/choice_nano.py:text=race.jsonl,question=question,start=HF_DIR

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
for a decoder (GPT). Without a start a network of 3 x 128 learns from scratch.
A line of the file: {"context": ..., "question": ..., "options": [...], "label": 0}. Chance is a quarter, and a network
without pre-training stays there (0.27 after 100 steps); counting the words that name and text share gives a half.
"""

from configs import examples, finetuning, small
from lm.config import Config
from lm.objectives.choice import Choose
from lm.objectives.finetune.network import Head, Rows


def config(
    text: str | None = None, data: str | None = None, held_out: str | None = None, start: str | None = None,
    question: str = "", causal: bool = False, steps: int = 1000,
) -> Config:  # fmt: skip
    head = Head(pool="auto" if start else "mean", dropout=0.1)
    objective = Choose(model=small(96, causal), question=question, rows=Rows(causal=causal), head=head)
    return finetuning(objective, examples("next", text, data, held_out, "label"), start, steps)
