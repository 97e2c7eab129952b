"""Greek to English: the New Testament, SBLGNT and the Berean Standard Bible, a verse each; chapters are held out whole.

    python -m launch.finetune --tasks=verses
    python -m lm.main --config=configs/translate_verses.py:text=TRAIN,held_out=HELD_OUT,start=RUN

An encoder-decoder of 2 + 2 layers of 128, from nothing or from a BART of minutes that read both sides of the training
verses apart (`start_nano`, kind=denoise). Seven thousand verses are few: expect the style of the text more than its sense.
"""

from configs.start_nano import PAIR, tuned, tuning
from lm.config import Config, Data, Every, Schedule
from lm.data.labelled.sources import Labelled
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.presets import twice
from lm.objectives.text2text import Reply, Text2text


def config(
    text: str = "runs/finetune/data/verses/train.jsonl",
    held_out: str = "runs/finetune/data/verses/held_out.jsonl",
    start: str | None = None,
    steps: int = 1000,
) -> Config:
    return Config(
        objective=Text2text(
            model=twice(tuned(PAIR.encoder)), lengths=(128, 96), smoothing=0.1, reply=Reply(tokens=96, beams=4)
        ),
        data=Data(source=Labelled(path=text), validation=Labelled(path=held_out), tokenizer=BytePair(vocab=8192)),
        optimizer=tuning(start, 4e-3, 2e-3),
        schedule=Schedule(shape="linear", warmup=steps // 10),
        steps=steps,
        batch=8,
        start=start,
        every=Every(log=50, evaluate=500, save=500, sample=500),
    )
