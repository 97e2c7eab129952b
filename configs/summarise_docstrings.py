"""What does it do, in a line? The first line of a docstring from the paragraphs below it, in installed packages.

    python -m launch.finetune --tasks=docstrings
    python -m lm.main --config=configs/summarise_docstrings.py:text=TRAIN,held_out=HELD_OUT,start=RUN

An encoder-decoder of 2 + 2 layers of 128, from nothing or from a BART of minutes (`start_nano`, kind=denoise). Modules are
held out whole.
"""

from configs.start_nano import PAIR, tuned, tuning
from lm.config import Config, Data, Every, Schedule
from lm.data.labelled.sources import Labelled
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.presets import twice
from lm.objectives.text2text import Reply, Text2text


def config(
    text: str = "runs/finetune/data/docstrings/train.jsonl",
    held_out: str = "runs/finetune/data/docstrings/held_out.jsonl",
    start: str | None = None,
    steps: int = 500,
) -> Config:
    return Config(
        objective=Text2text(
            model=twice(tuned(PAIR.encoder)), lengths=(128, 40), smoothing=0.1, reply=Reply(tokens=40, beams=4)
        ),
        data=Data(source=Labelled(path=text), validation=Labelled(path=held_out), tokenizer=BytePair(vocab=8192)),
        optimizer=tuning(start, 4e-3, 2e-3),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=8,
        start=start,
        every=Every(log=50, evaluate=250, save=250, sample=250),
    )
