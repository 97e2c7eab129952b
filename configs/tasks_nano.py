"""Two tasks on one network, in minutes on two CPU cores: the package of a paragraph, and the mark behind each word.

    python -m lm.objectives.multitask
    python -m lm.main --config=configs/tasks_nano.py:text=reviews.csv,tags=train.conll,temperature=5,start=HF_DIR

A step is a batch of one task (Liu et al. 2019, MT-DNN); tasks are drawn as often as they have examples, to the power
1 / temperature (Arivazhagan et al. 2019). Look at eval/validation/examples/topic/accuracy beside configs/classify_nano.py
and eval/validation/examples/marks/f1 beside configs/tag_nano.py. `start=RUN` or `start=HF_DIR` brings the network and its
tokenizer; a run of this config is a start for any single task on the same network.
"""

from configs import finetuning, small
from lm.config import Config, Data
from lm.data.labelled.sources import examples_from
from lm.data.sources import Mixture
from lm.data.tokenizer.tokenizer import WordPiece
from lm.objectives.classify import Classify
from lm.objectives.finetune.network import Head
from lm.objectives.mixture import Part
from lm.objectives.multitask import Tasks
from lm.objectives.tag import Tag


def config(
    text: str | None = None, tags: str | None = None, start: str | None = None, temperature: float = 1.0, steps: int = 1200
) -> Config:
    # The first token of a network from scratch would have to learn to look at the others.
    topic = Classify(model=small(), head=Head(pool="auto" if start else "mean", dropout=0.1))
    marks = Tag(model=small(), dropout=0.1)
    source = Mixture(sources=(examples_from(text), examples_from(tags, "marks")), temperature=temperature)
    return finetuning(
        Tasks(parts=(Part(name="topic", objective=topic), Part(name="marks", objective=marks))),
        Data(source=source, tokenizer=WordPiece(vocab=4096), validation=0.1),
        start,
        steps,
        every=400,
    )
