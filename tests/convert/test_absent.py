"""Heads that a folder lacks: said, an error where they are read, no hindrance elsewhere, remembered by a run."""

import json

import numpy as np
import pytest

from lm.convert.convert import flat
from lm.convert.runs import export_run, import_run, opened
from lm.convert.vocabulary import convert
from lm.data.tokenizer.tokenizer import WordPiece
from lm.errors import UserError
from lm.evaluation.pseudo_likelihood import masked_logprobs
from lm.evaluation.subject import Subject
from lm.evaluation.vectors import vectors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen jugs."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A BERT with its head for masked tokens, and its backbone alone."""
    path = tmp_path_factory.mktemp("absent")
    tokenizer = WordPiece(vocab=150).build(lambda: iter([TEXT]))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=tokenizer.vocab, **sizes))
    for name, part in (("whole", model), ("alone", model.bert)):
        part.save_pretrained(path / name)
        tokenizer.save(path / name / "tokenizer.json")
    return path


def subject(folder, **how):
    return Subject(*opened(None, str(folder), **how))


def score(folder, **how):
    opened_subject = subject(folder, **how)
    return masked_logprobs(opened_subject, [opened_subject.tokenizer.encode(TEXT)[:4]])[0]


def test_what_does_not_read_a_head_works(folders, capsys):
    whole = vectors(subject(folders / "whole"), [TEXT])
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(vectors(subject(folders / "alone"), [TEXT]), whole)
    assert "head_bias" in capsys.readouterr().err


def test_what_reads_one_is_an_error_unless_it_may_be_drawn(folders, capsys):
    with pytest.raises(UserError, match=r"alone has no weights for 'transform.*--allow_new_heads"):
        score(folders / "alone")
    capsys.readouterr()
    assert np.isfinite(score(folders / "alone", new_heads=True)).all()
    assert "noise" in capsys.readouterr().err


def test_a_run_remembers_what_its_folder_lacked(folders, tmp_path):
    lines = import_run(str(folders / "alone"), tmp_path / "run")
    assert any("drawn anew" in line for line in lines)
    _, params, _ = opened(str(tmp_path / "run"), None)
    with pytest.raises(UserError, match="'head_bias'"):
        np.asarray(params["head_bias"])
    export_run(tmp_path / "run", tmp_path / "out")
    _, info = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert info["missing_keys"]
    assert all(name.startswith("cls.predictions") for name in info["missing_keys"])
    (tmp_path / "run" / "checkpoints" / "7").mkdir()  # trained since
    _, params, _ = opened(str(tmp_path / "run"), None, "0")
    with pytest.raises(UserError, match="'head_bias'"):
        np.asarray(params["head_bias"])


@pytest.mark.parametrize("target", ["output", "workdir"])
def test_another_vocabulary_makes_no_head(target, folders, tmp_path):
    tokens = tmp_path / "tokens.txt"
    tokens.write_text("foxes\n")
    ends = {"workdir": None, "output": None} | {target: str(tmp_path / "new")}
    lines = convert(str(folders / "alone"), ends["workdir"], ends["output"], add_tokens=str(tokens))
    assert any("not in" in line and "head_bias" in line for line in lines)
    if target == "workdir":
        _, params, _ = opened(str(tmp_path / "new"), None)
        assert "head_bias" in json.loads((tmp_path / "new" / "published.json").read_text())["drawn"]
    else:
        _, params, _ = opened(None, str(tmp_path / "new"))
    with pytest.raises(UserError, match="'head_bias'"):
        np.asarray(flat(params)["head_bias"])
