"""A BART that learns in three minutes on two CPU cores: 2 + 2 x 128, on Python's documentation.

    python -m lm.objectives.denoise
    python -m lm.main --config=configs/bart_nano.py:text=my_text.txt

Lewis et al. 2020: 30 % of the words in spans that are one mask each, sentences in random order. The network and
the optimizer are not theirs: norms before the layers, rotary positions, Muon. Look at
eval/validation/accuracy: the share of the text's tokens that are right, given those before them; copying the spoiled text
place by place scores 0.034 on the documentation.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.denoise import Denoise


def config(text: str | None = None, data: str | None = None, steps: int = 1500) -> Config:
    model = Transformer(
        context=128, width=128, depth=2, heads=4, activation="gelu", placement="pre", positions="rotary", unroll=0
    )
    return Config(
        objective=Denoise(model=twice(model)),
        data=Data(source=source_from(text, data), tokenizer=BytePair(vocab=2048)),
        optimizer=Optimizer(name="muon", lr=4e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=100),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=500, save=500, sample=500),
    )
