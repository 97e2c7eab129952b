"""SimCSE on BERT base (Gao et al. 2021, appendix A; github.com/princeton-nlp/SimCSE): without labels, or on pairs.

    python -m lm.main --config=configs/simcse_base.py:text=wiki1m.txt,start=runs/bert,tokenizer=path/to/bert
    python -m lm.main --config=configs/simcse_base.py:text=nli_for_simcse.csv,fields=3,start=runs/bert,tokenizer=path/to/bert

Without labels: a million sentences of Wikipedia, one epoch of batches of 64, 3e-5. With labels: the 276 k triples of NLI
(sentence, entailed one, contradiction), three epochs of 512, 5e-5, and the dense layer over [CLS] kept in the test. Both:
32 tokens a sentence, temperature 0.05, a constant 0.1 of dropout, linear decay. `start` is a run of the same tokenizer; from
random weights use configs/simcse_nano.py. The authors keep the step that is best on STS-B dev of every 125.
"""

from dataclasses import replace
from typing import Literal

from lm.config import Config, Data, Every, Optimizer, Schedule
from lm.data.sources import source_from
from lm.data.text.tables import Table
from lm.data.tokenizer.tokenizer import BytePair, Pretrained
from lm.errors import check
from lm.models.presets import BERT_BASE
from lm.objectives.contrastive import Contrastive

COLUMNS = ("sent0", "sent1", "hard_neg")  # of the authors' nli_for_simcse.csv


def config(
    text: str | None = None,
    data: str | None = None,
    tokenizer: str | None = None,
    start: str | None = None,
    fields: Literal[1, 2, 3] = 1,
    mlm: float = 0.0,
) -> Config:
    alone = fields == 1
    check(alone or text, f"fields={fields} needs text=FILE.csv with the columns {COLUMNS}")
    model = replace(BERT_BASE, dropout=0.1, attention_dropout=0.1, dtype="bfloat16", transform=mlm > 0, head_bias=mlm > 0)
    return Config(
        objective=Contrastive(model=replace(model, vocab=0), fields=fields, mlp_only_train=alone, mlm=mlm),
        data=Data(
            source=source_from(text, data) if fields == 1 else Table(path=text, fields=COLUMNS[:fields]),
            tokenizer=Pretrained(tokenizer) if tokenizer else BytePair(vocab=30000),
            validation=0.01,
        ),
        optimizer=Optimizer(lr=3e-5 if alone else 5e-5, clip=1.0),
        schedule=Schedule(shape="linear"),
        steps=15_625 if alone else 1_614,
        batch=64 if alone else 512,
        start=start,
        every=Every(log=25, evaluate=125, save=125),
    )
