"""A Transformer that learns a real task in three minutes on two CPU cores: 2 + 2 x 128, capitals and punctuation restored.

    python -m lm.objectives.seq2seq
    python -m lm.main --config=configs/translate_nano.py:text=pairs.jsonl     # lines {"source": ..., "target": ...}
    python -m lm.main --config=configs/translate_nano.py:text=my_text.txt     # its sentences, restored

Vaswani et al. 2017: sinusoids, post-norm, label smoothing, inverse square root after a warm-up. Without pairs of one's own
the source is a sentence of Python's documentation as a speech recogniser would give it, the target the sentence. Look at
eval/validation/accuracy: the share of the target's tokens that are right, given those before them; copying the source place
by place scores 0.30, with a capital in front and a full stop behind 0.43.
"""

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import pairs_from
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.seq2seq import Seq2seq


def config(text: str | None = None, steps: int = 1200) -> Config:
    model = Transformer(
        context=128, width=128, depth=2, heads=4, activation="relu", placement="post", positions="sinusoidal",
        embed_scale="sqrt_width", init=128**-0.5, init_scale_depth=False, dropout=0.1, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Seq2seq(model=twice(model), smoothing=0.1),
        data=Data(source=pairs_from(text), tokenizer=BytePair(vocab=2048)),
        optimizer=Optimizer(lr=2e-3, betas=(0.9, 0.98), eps=1e-9, clip=1.0),
        schedule=Schedule(shape="rsqrt", warmup=200),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=300, save=600, sample=600),
    )
