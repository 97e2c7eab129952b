"""What the logits of whole rows leave out: token types, padding, the heads for pairs; files without heads; a file of ours."""

import jax
import numpy as np
import pytest

from lm.convert.convert import flat, load, save
from lm.data.tokenizer.tokenizer import Bytes
from lm.models.encoder_decoder import Seq2Seq
from lm.models.model import Model
from lm.models.presets import twice
from lm.models.transformer import Transformer
from lm.objectives.seq2seq import Seq2seq
from lm.sharding import unbox
from tests.convert.test_families import make

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["bert", "ernie", "albert", "electra, generator", "distilbert", "roberta"])
def test_types_padding_and_pairs(name, tmp_path):
    """A row of two sentences, and a shorter one that padding fills."""
    theirs, loaded = make(name, tmp_path), load(tmp_path)
    rng = np.random.default_rng(0)
    real = np.array([[1] * 11, [1] * 7 + [0] * 4])
    tokens, types = rng.integers(3, 50, real.shape), np.cumsum(np.arange(11) == 5)[None] * real
    more = {} if loaded.objective.model.types < 2 else {"token_type_ids": torch.tensor(types)}
    # Positions as they count here: RoBERTa's own would begin anew at tokens that look like padding.
    places = torch.arange(11)[None] + loaded.objective.model.offset
    with torch.no_grad():
        found = theirs(torch.tensor(tokens), attention_mask=torch.tensor(real), position_ids=places, **more)
    batch = {"tokens": tokens, "positions": np.arange(11)[None] * np.ones_like(real), "segments": real, "types": types}
    batch |= {"places": np.arange(11)[None] * np.ones_like(real)}
    h_BTD, h_BPE = loaded.objective.states(loaded.params, batch, None)
    logits = Model(loaded.objective.model).apply({"params": loaded.params}, method="head").logits(h_BPE)
    expected = found.get("prediction_logits", found.get("logits"))
    np.testing.assert_allclose(logits[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(logits[1, :7], expected[1, :7], atol=1e-4)
    for head in ("seq_relationship_logits", "sop_logits"):
        if head in found:
            np.testing.assert_allclose(loaded.objective.pair_logits(loaded.params, h_BTD), found[head], atol=1e-5)


def test_ours_with_no_bias_of_logits(tmp_path):
    """The original Transformer goes out as Marian, which has such a bias, and comes back without one."""
    shape = {"vocab": 61, "width": 24, "depth": 2, "heads": 4, "context": 18, "activation": "relu", "placement": "post"}
    model = twice(Transformer(**shape, positions="sinusoidal", embed_scale=24**0.5))
    ours, tokens = Seq2seq(model=model), np.random.default_rng(0).integers(3, 50, (2, 9))
    params = unbox(ours.init(jax.random.key(0), {"source": tokens, "tokens": tokens}))
    save(ours, params, Bytes().build(lambda: ()), tmp_path, "")
    theirs, info = transformers.MarianMTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"], info
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(tokens), decoder_input_ids=torch.tensor(tokens)).logits
    again = load(tmp_path)
    network = Seq2Seq(again.objective.model)
    h_BTD = network.apply({"params": again.params}, tokens, tokens)
    np.testing.assert_allclose(network.apply({"params": params}, method="head").logits(h_BTD), expected, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, params, again.params)


@pytest.mark.parametrize("name", ["albert", "distilbert", "mbart", "marian", "electra", "xlnet"])
def test_a_backbone_alone(name, tmp_path):
    """Names without the prefix; heads are drawn anew, and said; the backbone is what it is with them."""
    whole = make(name, tmp_path / "whole")
    whole.base_model.save_pretrained(tmp_path / "alone")
    alone, loaded = load(tmp_path / "alone"), load(tmp_path / "whole")
    heads = ("transform/", "head_bias", "generator/", "discriminator/dense/", "discriminator/judge/")
    assert all(name.startswith(heads) for name in alone.drawn)
    ours, theirs = flat(alone.params), flat(loaded.params)
    for name in set(ours) - set(alone.drawn):
        np.testing.assert_array_equal(ours[name], theirs[name])
