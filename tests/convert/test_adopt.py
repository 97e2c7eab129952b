"""A run that starts from a folder takes its network and tokenizer, and nothing the user asked for is passed over."""

import dataclasses
import json

import numpy as np
import pytest

from lm.config import Config, Data, override
from lm.convert.runs import import_run
from lm.data.tokenizer.tokenizer import BytePair, Bytes, Pretrained
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.objectives.masked import Masked
from lm.objectives.seq2seq import Seq2seq
from lm.start.adopt import adopt
from tests.convert.test_families import make

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def nano(objective=Causal, **changes) -> Config:
    fields = {"width": 8, "depth": 1, "heads": 2, "context": 16, "dropout": 0.3, "pad_vocab": 8, "dtype": "bfloat16"}
    return Config(objective=objective(model=Transformer(**{**fields, **changes})), data=Data(tokenizer=BytePair(vocab=300)))


def folder(name, tmp_path):
    make(name, tmp_path)
    Bytes().build(lambda: ()).save(tmp_path / "tokenizer.json")
    return str(tmp_path)


def test_without_a_start_nothing_changes():
    assert adopt(nano(), ["objective.model.width"]) == (nano(), [])


def test_network_and_tokenizer_are_the_folders(tmp_path):
    path = folder("gpt2", tmp_path)
    config = dataclasses.replace(nano(), start=path)
    found, lines = adopt(config)
    model = found.objective.model
    assert (model.width, model.depth, model.heads, model.vocab, model.context) == (20, 3, 5, 53, 17)
    assert (model.dropout, model.pad_vocab, model.dtype) == (0.3, 8, "bfloat16")
    assert found.data.tokenizer == Pretrained(path)
    assert len(lines) == 1
    assert "width=20" in lines[0]
    assert "tokenizer" in lines[0]
    assert adopt(found) == (found, [])  # resumed, or asked for as it is


@pytest.mark.parametrize(("mine", "expected"), [(16, 16), (4096, 32)])
def test_rows_are_as_long_as_asked_where_positions_have_no_table(mine, expected, tmp_path):
    config = dataclasses.replace(nano(context=mine), start=folder("llama", tmp_path))
    assert adopt(config)[0].objective.model.context == expected


def test_what_the_command_line_sets_is_kept_or_refused(tmp_path):
    path = folder("gpt2", tmp_path)

    def given(**fields):
        pairs = [(name.replace("__", "."), str(value)) for name, value in fields.items()]
        config = override(nano(), [("start", path), *pairs])
        return adopt(config, ["start", *(name for name, _ in pairs)])[0]

    assert given(objective__model__width=20).objective.model.width == 20
    assert given(objective__model__dropout=0.5).objective.model.dropout == 0.5
    for name, said in (("objective__model__width", "=24.*has 20"), ("objective__model__context", "=24.*has 17")):
        with pytest.raises(UserError, match=said):
            given(**{name: 24})
    with pytest.raises(UserError, match=r"data\.tokenizer\.vocab"):
        given(data__tokenizer__vocab=400)


def test_a_tokenizer_named_by_the_config_stays(tmp_path):
    path = folder("gpt2", tmp_path)
    config = dataclasses.replace(nano(), start=path, data=Data(tokenizer=Pretrained("elsewhere")))
    assert adopt(config)[0].data.tokenizer == Pretrained("elsewhere")


def test_other_objectives_of_the_same_network(tmp_path):
    """An encoder for masks under another objective; targets begin as Marian's and T5's do."""
    assert adopt(dataclasses.replace(nano(Masked), start=folder("roberta", tmp_path / "a")))[0].objective.model.offset == 2
    small = nano().objective.model
    pair = Config(objective=Seq2seq(model=EncoderDecoder(encoder=small, decoder=small)))
    for name, first in (("marian", 60), ("t5", 0)):
        found, _ = adopt(dataclasses.replace(pair, start=folder(name, tmp_path / name)))
        assert found.objective.start == first
        assert found.objective.model.decoder.depth == 3
        assert found.objective.model.encoder.dropout == 0.3
    other = dataclasses.replace(pair, start=str(tmp_path / "a"))
    assert adopt(other) == (other, [])  # another kind of network


def test_a_run_is_a_folder_too(tmp_path):
    fields = {"vocab_size": 257, "n_embd": 20, "n_layer": 3, "n_head": 5, "n_positions": 17}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).save_pretrained(tmp_path / "hf")
    Bytes().build(lambda: ()).save(tmp_path / "hf" / "tokenizer.json")
    import_run(str(tmp_path / "hf"), tmp_path / "run")
    found, lines = adopt(dataclasses.replace(nano(), start=str(tmp_path / "run")))
    assert (found.objective.model.width, found.objective.model.pad_vocab) == (20, 1)
    assert found.data.tokenizer == Pretrained(str(tmp_path / "run"))
    assert len(lines) == 1
    with pytest.raises(UserError, match="not a run"):
        adopt(dataclasses.replace(nano(), start=str(tmp_path / "nowhere")))


def test_padded_tables_are_filled(tmp_path):
    """Rows beyond the folder's vocabulary, of which the logits are masked."""
    from lm.convert.convert import load

    make("bart", tmp_path)
    plain, wide = load(tmp_path), load(tmp_path, pad_vocab=8)
    assert wide.objective.model.decoder.rows == 64
    np.testing.assert_array_equal(wide.params["embed"]["table"][:61], plain.params["embed"]["table"])
    assert not wide.params["embed"]["table"][61:].any()
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 61
