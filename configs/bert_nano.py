"""A BERT that learns in three minutes on two CPU cores: 4 x 192, WordPiece of 4,096, the interpreter's documentation.

    python -m lm.main --config=configs/bert_nano.py
    python -m lm.main --config=configs/bert_nano.py:text=my_text.txt,system=roberta

`system` selects the objective: bert (Devlin et al. 2019), wwm (its whole-word models), roberta (Liu et al. 2019), albert
(Lan et al. 2020, masks and sentence order), macbert (Cui et al. 2020). Norms come first and Muon takes the steps, which
learns in minutes, where the papers' recipe takes hours.
"""

from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.tokenizer.tokenizer import WordPiece
from lm.models.transformer import Transformer
from lm.objectives.masked import Masked

SYSTEMS = {
    "bert": {"sentence": "nsp", "copies": 10},
    "wwm": {"unit": "word", "sentence": "nsp", "copies": 10},
    "roberta": {"count": "stochastic", "specials": True, "low": 4},
    "albert": {"unit": "word", "ngrams": (6 / 11, 3 / 11, 2 / 11), "sentence": "sop", "copies": 40},
    "macbert": {"unit": "word", "ngrams": (0.4, 0.3, 0.2, 0.1), "similar": True, "sentence": "sop"},
}


def config(
    text: str | None = None,
    data: str | None = None,
    steps: int = 1500,
    system: Literal["bert", "wwm", "roberta", "albert", "macbert"] = "bert",
) -> Config:
    model = Transformer(
        context=128, width=192, depth=4, heads=6, types=2, activation="gelu", transform=True, head_bias=True,
        init_positions=0.02, init_truncate=True, unroll=0,
    )  # fmt: skip
    return Config(
        objective=Masked(model=model, **SYSTEMS[system]),
        data=Data(source=source_from(text, data), tokenizer=WordPiece(vocab=4096)),
        optimizer=Optimizer(name="muon", lr=4e-3, betas=(0.9, 0.98), eps=1e-6, decay=0.1, clip=1.0),
        schedule=Schedule(shape="linear", warmup=100),
        steps=steps,
        batch=16,
        every=Every(log=50, evaluate=500, save=500, sample=500),
    )
