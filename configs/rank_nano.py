"""Sentence vectors whose cosines say how alike texts are, small enough for two CPU cores.

    python -m lm.objectives.rank
    python -m lm.main --config=configs/rank_nano.py:text=sts-train.tsv,start=RUN

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
for a decoder (GPT). Without a start a network of 3 x 128 learns from scratch.
A file has the columns sentence1, sentence2 and score. Without one: are two sentences from one docstring? A network without
pre-training learns these 1,330 pairs by heart (squared error 0.005, held out 0.26, where always saying 0.5 has 0.25).
"""

from configs import examples, finetuning, small
from lm.config import Config
from lm.objectives.finetune.network import Rows
from lm.objectives.rank import Rank


def config(
    text: str | None = None, data: str | None = None, held_out: str | None = None, start: str | None = None,
    fields: tuple[str, str] = ("sentence1", "sentence2"), label: str = "score", causal: bool = False, steps: int = 400,
) -> Config:  # fmt: skip
    objective = Rank(model=small(96, causal), fields=fields, label=label, rows=Rows(length=96, causal=causal))
    return finetuning(objective, examples("alike", text, data, held_out, fields[0]), start, steps)
