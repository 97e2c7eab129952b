"""A family of published models from outside: a class and one entry read and write a folder, labels on top included."""

import jax
import numpy as np
import pytest

from lm.convert.convert import family_for, flat, load, save
from lm.convert.families import FAMILIES, all_families, family_named
from lm.convert.family import Family, Fields, written
from lm.convert.layouts import SEQUENCE, Heads, decoder
from lm.convert.rules import Rule, dense, normal
from lm.data.tokenizer.tokenizer import Characters
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.sharding import unbox
from tests.models.reference import tiny

SIZES = {"vocab": "vocab_size", "context": "n_ctx", "width": "n_embd", "depth": "n_layer", "heads": "n_head", "mlp": "n_inner"}


class Toy(Family):
    """ALiBi on a pre-norm stack."""

    name, prefix = "toy", "toy."
    heads = Heads("Toy", "decoder", decoder("", None))
    copies = ((r"^unembed\.weight$", "embed/table"),)
    buffers = r"slopes$"

    def objective(self, settings):
        return Causal(model=Transformer(**Fields(settings).sizes(SIZES), positions="alibi"))

    def settings(self, objective):
        return {"model_type": "toy", "architectures": ["ToyForCausalLM"], **written(objective.model, SIZES)}

    def rules(self, objective):
        layer, ours = "toy.layers.{i}", "stack/layers"
        rules = [Rule("embed/table", "toy.embed.weight"), *normal("stack/norm", "toy.norm")]
        for name in ("norm0", "norm1"):
            rules += normal(f"{ours}/{name}", f"{layer}.{name}")
        for name in ("query", "key", "value"):
            rules += dense(f"{ours}/attention/{name}", f"{layer}.{name}")
        rules += dense(f"{ours}/attention/out", f"{layer}.out", inputs=2)
        return [*rules, *dense(f"{ours}/mlp/up", f"{layer}.up"), *dense(f"{ours}/mlp/down", f"{layer}.down")]


def test_a_family_is_a_class_and_one_entry(tmp_path, monkeypatch):
    characters = Characters().build(lambda: ["abcdefghij"])
    objective = Causal(model=tiny(vocab=characters.vocab, positions="alibi", depth=2)).resolve(characters)
    params = unbox(objective.init(jax.random.key(0), {"tokens": np.zeros((1, 4), np.int32)}))
    with pytest.raises(UserError, match="no family of published models"):
        family_for(objective)
    monkeypatch.setitem(FAMILIES, "toy", Toy())
    assert family_for(objective)[0].name == "toy"
    assert not save(objective, params, characters, tmp_path / "out", "card")
    again = load(tmp_path / "out")
    assert again.kind == "toy"
    assert not again.drawn
    for name, x in flat(params).items():
        np.testing.assert_array_equal(flat(again.params)[name], x, err_msg=name)
    labelled = load(tmp_path / "out", task=SEQUENCE)
    assert labelled.drawn == ("classifier/kernel",)


def test_entries_name_the_families_of_their_modules():
    assert [family.name for family in all_families()] == list(FAMILIES)
    with pytest.raises(UserError, match="did you mean 'gpt2'"):
        family_named("gpt-2")
