"""A SimCSE without labels that learns in two minutes on two CPU cores: 3 x 128, sentences of Python's documentation.

    python -m lm.objectives.contrastive
    python -m lm.main --config=configs/simcse_nano.py:text=my_text.txt
    python -m lm.main --config=configs/simcse_nano.py:text=pairs.csv,fields=2

Gao et al. 2021. Look at eval/validation/uniformity: -4 is spread evenly, and a network drawn at random has about -2; and at
contrast, the loss of finding a sentence's other dropout view among the batch's. The masked-token term, 0.1 in the
paper, stands in for the pre-training that its encoders had.
"""

from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.text.tables import Table
from lm.data.tokenizer.tokenizer import BytePair
from lm.errors import check
from lm.models.transformer import Transformer
from lm.objectives.contrastive import Contrastive

COLUMNS = ("sent0", "sent1", "hard_neg")  # of the authors' nli_for_simcse.csv


def config(text: str | None = None, data: str | None = None, fields: Literal[1, 2, 3] = 1, steps: int = 600) -> Config:
    check(fields == 1 or text, f"fields={fields} needs text=FILE.csv with the columns {COLUMNS}")
    return Config(
        objective=Contrastive(
            model=Transformer(
                context=32,
                width=128,
                depth=3,
                heads=4,
                embed_norm=True,
                transform=True,
                head_bias=True,
                init_positions=0.02,
                dropout=0.1,
                attention_dropout=0.1,
            ),
            fields=fields,
            pooling="avg",  # [CLS] of a network from scratch would have to learn first to look at the others
            mlm=0.1,
        ),
        data=Data(
            source=source_from(text, data) if fields == 1 else Table(path=text, fields=COLUMNS[:fields]),
            tokenizer=BytePair(vocab=2048),
        ),
        optimizer=Optimizer(lr=1e-3, betas=(0.9, 0.98), decay=0.01, clip=1.0),
        schedule=Schedule(shape="linear", warmup=100),
        steps=steps,
        batch=64,
        every=Every(log=50, evaluate=200, save=200, sample=200),
    )
