"""A GPT for an evening on a laptop or minutes on an accelerator: 6 x 384, 13.9 M parameters; the model of `launch.bench`.

python -m lm.main --config=configs/gpt_tiny.py:text='books/*.txt'
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal


def config(text: str | None = None, data: str | None = None, steps: int = 10_000) -> Config:
    return Config(
        objective=Causal(model=Transformer(vocab=8192, context=256, width=384, depth=6, heads=6, unroll=0)),
        data=Data(source=source_from(text, data), tokenizer=BytePair(vocab=8192)),
        optimizer=Optimizer(lr=1e-3, betas=(0.9, 0.95), decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=200, final=0.1),
        steps=steps,
        batch=8,
        every=Every(log=50, evaluate=1000, save=500, sample=1000),
        samples=("", "The "),
    )
