"""The example objective on the interpreter's documentation: 2 x 128.

python -m lm.main --config=tests/examples/shuffled_config.py:text=my_text.txt --dry_run
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.transformer import Transformer
from tests.examples.shuffled import Shuffled


def config(
    text: str | None = None, context: int = 128, width: int = 128, vocab: int = 2048, steps: int = 800, batch: int = 16
) -> Config:
    return Config(
        objective=Shuffled(model=Transformer(context=context, width=width, depth=2, heads=4, unroll=0)),
        data=Data(source=source_from(text, None), tokenizer=BytePair(vocab=vocab)),
        optimizer=Optimizer(lr=2e-3, betas=(0.9, 0.98), clip=1.0),
        schedule=Schedule(shape="cosine", warmup=100),
        steps=steps,
        batch=batch,
        every=Every(sample=400),
    )
