"""A text from a text, small enough for two CPU cores: the first line of a docstring from the paragraphs below it.

    python -m lm.objectives.text2text
    python -m lm.main --config=configs/text2text_nano.py:text=pairs.jsonl,start=HF_DIR
    python -m lm.main --config=configs/text2text_nano.py:text=news.csv,source='{article} TL;DR:',target='{summary}',decoder=yes

`source` and `target` are templates over the columns of a csv or tsv or the keys of JSON lines. `decoder=yes` prompts a
decoder. Without a `start` 2 + 2 layers of 128 (3 of a decoder) learn from the
pairs alone. Look at eval/validation/examples/rougeL at the end, and at predictions.jsonl.
"""

from configs import examples, finetuning
from configs.start_nano import DECODER, PAIR, tuned
from lm.config import Config
from lm.data.tokenizer.tokenizer import BytePair
from lm.models.presets import twice
from lm.objectives.text2text import Text2text, fields


def config(
    text: str | None = None, data: str | None = None, held_out: str | None = None, start: str | None = None,
    source: str = "{source}", target: str = "{target}", decoder: bool = False, steps: int = 600,
) -> Config:  # fmt: skip
    model = tuned(DECODER) if decoder else twice(tuned(PAIR.encoder))
    objective = Text2text(model=model, source=source, target=target, lengths=(128, 64), smoothing=0.1)
    pairs = examples("summary", text, data, held_out, fields(source)[0], tokenizer=BytePair(vocab=4096))
    return finetuning(objective, pairs, start, steps, lr=3e-4, every=300)
