"""Numbers in config dataclasses that mean nothing are refused where they are set; NaN and infinity everywhere."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from lm.config import load, override
from lm.corruption.spans import Denoiser
from lm.data.corpus.corpus import Corpus
from lm.errors import UserError
from lm.models.lstm import LSTM
from lm.models.positions import Rotary
from lm.models.transformer import Transformer
from lm.objectives.base import resolve

CONFIGS = Path(__file__).parent / "configs"


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        (Denoiser(), {"mean": math.inf}),
        (Denoiser(), {"weight": math.nan}),
        (LSTM(), {"forget": math.nan}),
        (Rotary(), {"low": -1.0}),
        (Rotary(), {"high": math.nan}),
        (Rotary(), {"original": 0}),
        (Rotary(), {"base": math.inf}),
        (Rotary(), {"local": math.inf}),
        (Transformer(), {"embed_scale": math.nan}),
        (Transformer(), {"logit_scale": math.inf}),
        (Transformer(), {"windows": (-3,)}),
        (Transformer(), {"windows": ()}),
    ],
)
def test_parts_refuse(value, changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        replace(value, **changes)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("tiny_classify", {"class_weights": (math.nan, 1.0)}),
        ("tiny_classify", {"class_weights": (-1.0, 1.0)}),
        ("tiny_contrastive", {"temperature": math.inf}),
        ("tiny_contrastive", {"hard_weight": math.nan}),
        ("tiny_extract", {"threshold": math.nan}),
        ("tiny_rank", {"top": math.inf}),
    ],
)
def test_objectives_refuse(config, changes):
    objective = load(str(CONFIGS / f"{config}.py")).objective
    with pytest.raises(UserError, match=next(iter(changes))):
        replace(objective, **changes)


@pytest.mark.parametrize("value", ["-3", "400"])
def test_a_token_id_that_the_tokenizer_lacks(value):
    config = override(load(str(CONFIGS / "tiny.py")), [("objective.separator", value)])
    tokenizer = config.data.tokenizer.build(lambda: ["a"])
    with pytest.raises(UserError, match=f"objective.separator={value} is no id of the tokenizer"):
        resolve(config, Corpus(tokenizer, (), (), "", 0, "", Path()))
