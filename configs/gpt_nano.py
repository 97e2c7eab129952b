"""A GPT that learns in three minutes on two CPU cores: 4 x 192, byte-level BPE of 2,048, the interpreter's own documentation.

python -m lm.main --config=configs/gpt_nano.py
python -m lm.main --config=configs/gpt_nano.py:text=my_text.txt
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal


def config(text: str | None = None, data: str | None = None, steps: int = 1500) -> Config:
    return Config(
        objective=Causal(
            model=Transformer(context=128, width=192, depth=4, heads=6, positions="rotary", bias=False, dropout=0.1, unroll=0)
        ),
        data=Data(source=source_from(text, data), tokenizer=BytePair(vocab=2048)),
        optimizer=Optimizer(name="muon", lr=4e-3, betas=(0.9, 0.98), decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=100, final=0.05),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=500, save=500, sample=500),
        samples=("Return a", "The "),
    )
