"""A classifier that learns in minutes on two CPU cores: which package of Python is a paragraph of documentation from?

    python -m lm.objectives.classify
    python -m lm.main --config=configs/classify_nano.py:text=pairs.tsv,fields=premise,hypothesis,start=HF_DIR
    python -m lm.main --config=configs/classify_nano.py:data=tfds:glue/sst2,held_out=tfds:glue/sst2:validation,fields=sentence

With `start=RUN` or `start=HF_DIR` the network and its tokenizer are that folder's, and only the head is new; `causal=yes`
for a decoder (GPT). Without a start a network of 3 x 128 learns from the examples alone. `kind=number`
learns scores, `language` is that of XNLI. Look at eval/validation/accuracy: 22 packages, the largest a sixth of them.
"""

from typing import Literal

from configs import examples, finetuning, small
from lm.config import Config
from lm.objectives.classify import Classify
from lm.objectives.finetune.network import Head, Rows


def config(
    text: str | None = None, data: str | None = None, held_out: str | None = None, start: str | None = None,
    fields: tuple[str, ...] = ("text",), label: str = "label", kind: Literal["one", "several", "number"] = "one",
    language: str = "", causal: bool = False, steps: int = 600,
) -> Config:  # fmt: skip
    # The first token of a network from scratch would have to learn to look at the others.
    head = Head(pool="auto" if start else "mean", dropout=0.1)
    rows = Rows(causal=causal)
    objective = Classify(model=small(128, causal), fields=fields, label=label, kind=kind, rows=rows, head=head)
    return finetuning(objective, examples("topic", text, data, held_out, fields[0], language), start, steps)
