"""Two tasks on one network, in minutes on two CPU cores: the package of a paragraph, and the mark behind each word.

    python -m lm.objectives.multitask
    python -m lm.main --config=configs/tasks_nano.py:text=reviews.csv,tags=train.conll,temperature=5,start=HF_DIR

A step is a batch of one task (Liu et al. 2019, MT-DNN); tasks are drawn as often as they have examples, to the power
1 / temperature (Arivazhagan et al. 2019). Look at eval/validation/examples/topic/accuracy beside configs/classify_nano.py
and eval/validation/examples/marks/f1 beside configs/tag_nano.py. `start=RUN` or `start=HF_DIR` brings the network and its
tokenizer; a run of this config is a start for any single task on the same network.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.labelled.sources import examples_from
from lm.data.sources import Mixture
from lm.data.tokenizer.tokenizer import WordPiece
from lm.models.transformer import Transformer
from lm.objectives.classify import Classify
from lm.objectives.finetune.network import Head
from lm.objectives.mixture import Part
from lm.objectives.multitask import Tasks
from lm.objectives.tag import Tag


def config(
    text: str | None = None,
    tags: str | None = None,
    start: str | None = None,
    temperature: float = 1.0,
    steps: int = 1200,
) -> Config:
    model = Transformer(
        context=128, width=128, depth=3, heads=4, types=2, activation="gelu", init_positions=0.02,
        dropout=0.1, attention_dropout=0.1, unroll=0,
    )  # fmt: skip
    # The first token of a network from scratch would have to learn to look at the others.
    topic = Classify(model=model, head=Head(pool="auto" if start else "mean", dropout=0.1))
    return Config(
        objective=Tasks(
            parts=(
                Part(name="topic", objective=topic),
                Part(name="marks", objective=Tag(model=model, dropout=0.1)),
            ),
        ),
        data=Data(
            source=Mixture(sources=(examples_from(text), examples_from(tags, "marks")), temperature=temperature),
            tokenizer=WordPiece(vocab=4096),
            validation=0.1,
        ),
        optimizer=Optimizer(lr=5e-5 if start else 1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=400, save=400, sample=400),
    )
