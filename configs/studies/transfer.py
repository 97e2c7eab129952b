"""Does pre-training on two languages transfer question answering from one to the other, without labels in the second?

    python -m launch.transfer --xquad=DIR
    python -m launch.sweep --study=transfer --go

Pre-trained on English, on English and Chinese, and on both with parallel text or code switching; fine-tuned on 1, 10 and 100 %
of the English questions of XQuAD (Artetxe et al. 2020), tested on the Chinese ones. One vocabulary in all arms, equal steps.
"""

from pathlib import Path

from configs.start_nano import ENCODER
from configs.studies import small
from lm.config import load
from lm.data.text.files import JsonLines
from lm.data.tokenizer.tokenizer import Pretrained
from lm.studies.arms import changed, named
from lm.studies.study import Budget, Study

SHARES = (1, 10, 100)


def study(data: str = "runs/transfer", seeds: int = 4, steps: int = 500, tuning: int = 150) -> Study:
    files = {name: str(Path(data, f"{name}.jsonl").absolute()) for name in ("both", "english", "parallel", "switched")}
    base = changed(
        small("bert_nano", steps, system="roberta"),
        {"objective.model": ENCODER, "data.tokenizer": Pretrained(path=str(Path(data).absolute()))},
    )
    questions = {}
    for share in SHARES:
        paths = {"text": f"questions-{share}.json", "held_out": "chinese.json"}
        paths = {name: str(Path(data, path).absolute()) for name, path in paths.items()}
        fields = {"every.evaluate": tuning, "every.sample": 0, "keep.last": 1, "keep.best": 0}
        questions[f"questions{share}"] = changed(load("extract_xquad", {**paths, "steps": tuning}), fields)
    return Study(
        question="Does reading two languages carry answering from English to Chinese, and do parallel texts help?",
        arms=named(base, {name: {"data.source": JsonLines(path=path)} for name, path in files.items()}),
        seeds=seeds,
        budget=Budget(steps=steps),
        downstream=questions,
        metrics=tuple(f"questions{share}/eval/validation/examples/f1" for share in reversed(SHARES)),
    )
