"""The tuned lens: nearer to the last layer on text that it was not trained on, and kept for its parameters alone."""

import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.explain import tuned_lens
from lm.explain.explain import lay_out, predict
from tests.explain import opened

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def trained(models):
    theirs, objective, params, tokenizer = opened(models, "gpt2")
    ids = np.random.default_rng(0).integers(97, 123, 63 * 40).astype(np.int32)
    lens = tuned_lens.train(objective, params, tokenizer, ids[: 63 * 32], steps=60, rate=2e-2)
    return theirs, objective, params, tokenizer, ids[63 * 32 :], lens


def test_nearer_than_the_logit_lens_on_held_out_text(trained):
    """Of every level; the logit lens's divergence is that of torch's hidden states."""
    theirs, objective, params, tokenizer, held_out, lens = trained
    before = tuned_lens.measure(objective, params, tokenizer, held_out)
    after = tuned_lens.measure(objective, params, tokenizer, held_out, lens)
    assert before.shape == after.shape == (3,)
    assert (after < 0.7 * before).all()
    rows = np.concatenate([np.full((8, 1), tokenizer.separator), held_out.reshape(8, 63)], 1)
    with torch.no_grad():
        found = theirs(torch.tensor(rows, dtype=torch.long), output_hidden_states=True)
        final = found.logits.log_softmax(-1)
        for level, states in enumerate(found.hidden_states[:-1]):
            log_p = theirs.lm_head(theirs.transformer.ln_f(states)).log_softmax(-1)
            divergence = (final.exp() * (final - log_p)).sum(-1)[:, 1:].mean()
            assert before[level] == pytest.approx(float(divergence), rel=1e-3)


def test_files_belong_to_their_parameters(trained, tmp_path):
    _, objective, params, tokenizer, _, lens = trained
    tuned_lens.save(lens, tmp_path / tuned_lens.FILE, params)
    loaded = tuned_lens.load(tmp_path / tuned_lens.FILE, params)
    np.testing.assert_array_equal(loaded.weights_LDD, lens.weights_LDD)
    with pytest.raises(UserError, match="other parameters"):
        tuned_lens.load(tmp_path / tuned_lens.FILE, jax.tree.map(lambda x: x + 1, params))
    (tmp_path / "broken").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="no translators"):
        tuned_lens.load(tmp_path / "broken", params)

    # On a page beside the logit lens: equal at the last layer, not below.
    reading = lay_out(objective, params, tokenizer, "a cat", None)
    one = predict(reading, params, tokenizer, 2, loaded)[0]
    assert [x["layer"] for x in one["tuned"]] == [x["layer"] for x in one["lens"]] == [0, 1, 2, 3]
    assert one["tuned"][-1] == one["lens"][-1]
    assert one["tuned"][1]["p"] != one["lens"][1]["p"]


def test_masked_models_and_others(models):
    """Rows of a masked model have masks between [CLS] and [SEP]; an encoder-decoder gets a line."""
    _, objective, _, tokenizer = opened(models, "bert")
    network = tuned_lens.network_of(objective)
    text = tuned_lens.text_rows(objective, network, tokenizer, np.full(38 * 3, 9, np.int32))
    cls, sep, mask = (tokenizer.special_id(name) for name in ("[CLS]", "[SEP]", "[MASK]"))
    assert text.rows_RT.shape == (3, 40)
    assert ((text.rows_RT[:, 0] == cls) & (text.rows_RT[:, -1] == sep)).all()
    assert (np.take_along_axis(text.rows_RT, text.positions_RP, 1) == mask).all()
    assert (text.rows_RT == mask).sum() == text.positions_RP.size == 3 * round(0.15 * 38)
    with pytest.raises(UserError, match="tuned lens is of"):
        tuned_lens.network_of(opened(models, "t5")[1])
    with pytest.raises(UserError, match="less than a row"):
        tuned_lens.text_rows(objective, network, tokenizer, np.zeros(3, np.int32))
