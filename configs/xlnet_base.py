"""XLNet base (12 x 768, 117 M) with the recipe of the paper's large model (Yang et al. 2019, table 8).

    python -m lm.main --config=configs/xlnet_base.py                             # the interpreter's documentation
    python -m lm.main --config=configs/xlnet_base.py:text='corpus/*.txt'         # one's own text
    python -m lm.main --config=configs/xlnet_base.py:tokenizer=path/to/xlnet     # XLNet's own vocabulary

Rows of 512, 256 of them new, 85 predicted; a memory of 384; half of the rows from right to left. 8,192 rows a step in
micro-batches of 32. Two differences: the release decays the biases of the scores and the segment vectors as well, here
only matrices decay; and it drops out embeddings of distances. On a CPU take configs/xlnet_nano.py.
"""

from dataclasses import replace

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.models.presets import XLNET_BASE
from lm.objectives.permuted import Permuted


def config(text: str | None = None, data: str | None = None, tokenizer: str | None = None) -> Config:
    model = replace(XLNET_BASE, dropout=0.1, attention_dropout=0.1, pad_vocab=128, dtype="bfloat16", remat="full")
    return Config(
        objective=Permuted(model=model, reuse=256, block=256, predictions=85, alpha=6, beta=1),
        data=Data(
            source=source_from(text, data),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=31_998),  # and <sep>, <cls>
            validation=0.01,
            packing="windows",
        ),
        optimizer=Optimizer(lr=4e-4, eps=1e-6, decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=40_000, final=0.001),
        steps=500_000,
        batch=8192,
        micro_batches=256,
        every=Every(log=10, evaluate=1000, save=1000, sample=1000),
    )
