"""A text from a text, small enough for two CPU cores: the first line of a docstring from the paragraphs below it.

    python -m lm.objectives.text2text
    python -m lm.main --config=configs/text2text_nano.py:text=pairs.jsonl,start=HF_DIR
    python -m lm.main --config=configs/text2text_nano.py:text=news.csv,source='{article} TL;DR:',target='{summary}',decoder=yes

`source` and `target` are templates over the columns of a csv or tsv or the keys of JSON lines. `decoder=yes` asks a network
that reads from left to right by a prompt. Without a `start` 2 + 2 layers of 128 (3 of a decoder) learn from nothing but the
pairs. Look at eval/validation/examples/rougeL at the end, and at predictions.jsonl.
"""

from configs.start_nano import DECODER, PAIR, tuned
from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.labelled.sources import examples_from, held_out_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.presets import twice
from lm.objectives.text2text import Text2text, fields


def config(
    text: str | None = None,
    data: str | None = None,
    held_out: str | None = None,
    start: str | None = None,
    source: str = "{source}",
    target: str = "{target}",
    decoder: bool = False,
    steps: int = 600,
) -> Config:
    model = tuned(DECODER) if decoder else twice(tuned(PAIR.encoder))
    return Config(
        objective=Text2text(model=model, source=source, target=target, lengths=(128, 64), smoothing=0.1),
        data=Data(
            source=examples_from(text, "summary", data, fields(source)[0]),
            validation=held_out_from(held_out, "summary", fields(source)[0]),
            tokenizer=BytePair(vocab=4096),
        ),
        optimizer=Optimizer(lr=3e-4 if start else 1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=16,
        start=start,
        every=Every(log=50, evaluate=300, save=300, sample=300),
    )
