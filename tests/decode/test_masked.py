"""Masks filled as transformers' pipeline fills them, one after another as a plain loop would, and the sampler's law."""

import json

import jax
import numpy as np
import pytest
from scipy.stats import chisquare

from lm.convert.convert import load
from lm.data.tokenizer.tokenizer import Tokenizer, WordPiece
from lm.decode.sampling import Sampling
from lm.decode.search import masked
from lm.decode.search.masked import chain, fill_masks, gibbs, padded
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.objectives.replaced import Replaced
from lm.sharding import unbox
from tests.marks import quick

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # tiny products: more threads only wait for each other

LINES = ["the cat sat on the mat .", "a dog ran in the park all day ,", "what is a masked model of language ?"] * 4
TEXTS = [
    "the cat [MASK] on the mat .",
    "[MASK] dog [MASK] in the [MASK] all day , the cat sat on a mat and what is a mat",
    "a model of [MASK] [MASK]",
]
SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37,
         "max_position_embeddings": 48, "initializer_range": 0.4}  # fmt: skip


def make(kind, path, tokenizer, **shape):
    """A random model folder with a tokenizer, as transformers and as we read it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(vocab_size=tokenizer.vocab, **SHAPE, **shape)
    theirs = getattr(transformers, f"{kind}ForMaskedLM")(config).eval()
    theirs.save_pretrained(path)
    tokenizer.save(path / "tokenizer.json")
    return theirs, load(path)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    theirs, loaded = make("Bert", path, WordPiece(vocab=100).build(lambda: LINES))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return theirs, transformers.PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), **names), loaded


def run(loaded, texts, **options):
    return fill_masks(loaded.objective, loaded.params, loaded.tokenizer, texts, **options)


def test_masks_are_filled_as_by_their_pipeline(bert):
    theirs, tokenizer, loaded = bert
    # A BERT folder's tokenizer.json frames the text itself; ours leaves that to the code.
    ask = transformers.pipeline("fill-mask", model=theirs, tokenizer=framing(tokenizer), top_k=7)
    for text, found in zip(TEXTS, run(loaded, TEXTS, top_k=7), strict=True):
        expected = ask(text)
        expected = expected if isinstance(expected[0], list) else [expected]
        assert len(found.masks) == len(expected) == text.count("[MASK]")
        for ours, hf in zip(found.masks, expected, strict=True):
            assert [c.id for c in ours] == [c["token"] for c in hf]
            assert [c.token for c in ours] == [c["token_str"] for c in hf]
            np.testing.assert_allclose([c.probability for c in ours], [c["score"] for c in hf], rtol=1e-4)
        best = [candidates[0] for candidates in found.masks]
        assert found.tokens == [c.id for c in best]
        np.testing.assert_allclose(found.logprob, sum(np.log(c.probability) for c in best), rtol=1e-4)


def framing(tokenizer):
    from tokenizers.processors import TemplateProcessing

    ends = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


@pytest.mark.parametrize("order", ["left_to_right", "confident"])
def test_masks_one_after_another(bert, order):
    theirs, _, loaded = bert
    mask = loaded.tokenizer.special_id("[MASK]")
    for text, found in zip(TEXTS, run(loaded, TEXTS, order=order, top_k=3), strict=True):
        ids = loaded.tokenizer.encode(f"[CLS] {text} [SEP]", special=True)
        places, chosen, total = np.flatnonzero(ids == mask), {}, 0.0
        while (open_ := np.flatnonzero(ids == mask)).size:
            with torch.no_grad():
                scores = theirs(torch.tensor(ids[None])).logits[0].log_softmax(-1).numpy()
            at = open_[0] if order == "left_to_right" else open_[scores[open_].max(1).argmax()]
            chosen[at] = ids[at] = scores[at].argmax()
            total += scores[at].max()
        assert found.tokens == [chosen[at] for at in places]
        np.testing.assert_allclose(found.logprob, total, rtol=1e-4)


def test_a_text_does_not_depend_on_the_others(bert, monkeypatch):
    loaded = bert[2]
    monkeypatch.setattr(masked, "ROWS", 2)
    for order in ("once", "confident"):
        for text, found in zip(TEXTS, run(loaded, TEXTS, order=order), strict=True):
            (alone,) = run(loaded, [text], order=order)
            assert alone.tokens == found.tokens
            assert [[c.id for c in m] for m in alone.masks] == [[c.id for c in m] for m in found.masks]
            np.testing.assert_allclose(alone.logprob, found.logprob, rtol=1e-4)


def test_roberta_by_the_name_of_its_mask(tmp_path):
    """Byte-level BPE whose mask takes the space before it; [MASK] is understood too."""
    from tokenizers import AddedToken, ByteLevelBPETokenizer

    raw = ByteLevelBPETokenizer()
    raw.train_from_iterator(LINES, vocab_size=290, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    raw.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    theirs, loaded = make("Roberta", tmp_path, tokenizer, pad_token_id=1, type_vocab_size=1)
    (found,) = run(loaded, ["the cat <mask> on"], top_k=4)
    ids = [0, *tokenizer.encode("the cat"), tokenizer.token_id("<mask>"), *tokenizer.encode(" on"), 2]
    with torch.no_grad():
        p = theirs(torch.tensor([ids])).logits.softmax(-1)[0, ids.index(tokenizer.token_id("<mask>"))]
    assert [c.id for c in found.masks[0]] == p.topk(4).indices.tolist()
    np.testing.assert_allclose([c.probability for c in found.masks[0]], p.topk(4).values, rtol=1e-4)
    assert run(loaded, ["the cat [MASK] on"], top_k=4)[0].tokens == found.tokens


def test_electras_generator_fills():
    tokenizer = WordPiece(vocab=100).build(lambda: LINES)
    model = Transformer(width=32, depth=1, heads=2, context=32, types=2, embed_norm=True, placement="post")
    objective = Replaced(model=model, generator_width=0.5).resolve(tokenizer)
    batch = dict.fromkeys(("tokens", "places"), np.zeros((1, 8), np.int32))
    params = unbox(jax.jit(objective.init)(jax.random.key(0), batch))
    (found,) = fill_masks(objective, params, tokenizer, ["the [MASK] sat"], top_k=tokenizer.vocab)
    np.testing.assert_allclose(sum(c.probability for c in found.masks[0]), 1, rtol=1e-5)


def test_a_model_without_finite_scores_fills_nothing(bert):
    loaded = bert[2]
    broken = loaded.objective, jax.tree.map(lambda x: x * np.nan, loaded.params), loaded.tokenizer
    with pytest.raises(UserError, match=r"no finite score for the masks of 'a model of \[MASK\]"):
        fill_masks(*broken, TEXTS[2:])
    with pytest.raises(UserError, match="no finite score for what follows 'the cat'"):
        gibbs(*broken, prefix="the cat", length=2, iterations=2, burn_in=1)


def test_mistakes_are_told(bert):
    loaded = bert[2]
    with pytest.raises(UserError, match=r"no \[MASK\] to fill"):
        run(loaded, ["the cat"])
    with pytest.raises(UserError, match="context of 48"):
        run(loaded, ["[MASK] " + "cat " * 50])
    with pytest.raises(UserError, match="did you mean 'confident'"):
        run(loaded, ["[MASK]"], order="confidence")
    with pytest.raises(UserError, match="Causal fills no masks"):
        Causal(model=loaded.objective.model).masked_network()


# -- Gibbs sampling ----------------------------------------------------------------------------------------------------


def conditionals(loaded, ids, places):
    """Their plain forward pass: p(token | rest) at places, for each of which the row is masked there first."""
    rows = np.repeat(ids[None], len(places), 0)
    rows[np.arange(len(places)), places] = loaded.tokenizer.special_id("[MASK]")
    tokens_BT, segments_BT = padded(list(rows))
    network, vocab = loaded.objective.masked_network(), loaded.objective.model.vocab
    found = masked.likeliest(network, loaded.params, tokens_BT, segments_BT, places[:, None], count=vocab)
    out = np.zeros((len(places), vocab))
    np.put_along_axis(out, np.asarray(found[1])[:, 0], np.exp(np.asarray(found[0])[:, 0]), 1)
    return out


def drawn(loaded, rows, stages, walk="left_to_right", length=2):
    mask = loaded.tokenizer.special_id("[MASK]")
    ids = np.array([2, *[mask] * length, 3], np.int32)
    tokens_BT, segments_BT = padded([ids] * rows)
    keys_B = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(5), i))(np.arange(rows))
    how = {"first": 1, "length": length, "mask": mask, "walk": walk, "stages": stages}
    found = chain(loaded.objective.masked_network(), loaded.params, tokens_BT, segments_BT, keys_B, **how)
    return np.asarray(found[0])[:, 1 : 1 + length], np.asarray(found[1]), ids


def test_two_draws_follow_the_conditionals(bert):
    """Left to right over two masks, many rows at once: the first follows its law, and the second its own given the first."""
    loaded = bert[2]
    pairs, logprobs, ids = drawn(loaded, 8000, ((Sampling(temperature=1.3), 2),))
    first = conditionals(loaded, ids, np.array([1]))[0]
    law = first ** (1 / 1.3) / (first ** (1 / 1.3)).sum()
    assert fits(pairs[:, 0], law)
    assert not fits(pairs[:, 0], first)  # the test can tell a temperature of 1.3 from 1
    common = np.bincount(pairs[:, 0]).argmax()
    after = ids.copy()
    after[1] = common
    second = conditionals(loaded, after, np.array([2]))[0]
    law = second ** (1 / 1.3) / (second ** (1 / 1.3)).sum()
    chosen = pairs[:, 0] == common
    assert fits(pairs[chosen, 1], law)
    np.testing.assert_allclose(logprobs[chosen, 0], np.log(first[common]), rtol=1e-4)
    np.testing.assert_allclose(logprobs[chosen, 1], np.log(second[pairs[chosen, 1]]), rtol=1e-3, atol=1e-4)


def fits(tokens, law):
    counts, expected = np.bincount(tokens, minlength=len(law)), len(tokens) * law
    rare = expected < 8
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    return chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_after_burning_in_only_likely_tokens_are_drawn(bert):
    loaded = bert[2]
    pairs, _, ids = drawn(loaded, 500, ((Sampling(), 2), (Sampling(top_k=3), 4)))
    for a, b in np.unique(pairs, axis=0):
        row = ids.copy()
        row[1:3] = a, b
        assert b in np.argsort(-conditionals(loaded, row, np.array([2]))[0])[:3]


def test_all_at_once_reads_the_text_as_it_stands(bert):
    loaded = bert[2]
    network = loaded.objective.masked_network()
    pairs, logprobs, ids = drawn(loaded, 200, ((Sampling(strategy="greedy"), 2),), walk="parallel")
    for _ in range(2):
        tokens_BT, segments_BT = padded([ids])
        values, found = masked.likeliest(network, loaded.params, tokens_BT, segments_BT, np.array([[1, 2]]), count=1)
        ids[1:3] = np.asarray(found)[0, :, 0]
    assert (pairs == ids[1:3]).all()
    np.testing.assert_allclose(logprobs[0], np.asarray(values)[0, :, 0], rtol=1e-4)


@pytest.mark.parametrize("walk", quick(["random", "left_to_right", "parallel"], ["random"]))
def test_texts_are_drawn_behind_a_prefix(bert, walk):
    loaded = bert[2]
    how = {"length": 6, "prefix": "the cat", "walk": walk, "iterations": 40, "burn_in": 20, "seed": 1}
    three = gibbs(loaded.objective, loaded.params, loaded.tokenizer, count=3, **how)
    two = gibbs(loaded.objective, loaded.params, loaded.tokenizer, count=2, **how)
    assert [x.tokens for x in two] == [x.tokens for x in three[:2]]
    assert len({tuple(x.tokens) for x in three}) == 3
    for x in three:
        assert len(x.tokens) == 6
        assert x.text.startswith("the cat")
        assert x.logprob < 0
    json.dumps([x.tokens for x in three])
