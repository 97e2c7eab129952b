"""Speculative decoding: the target's greedy text, the target's distribution, and both caches left as they should be."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from lm.decode.processors import Rules
from lm.decode.sampling import Sampling
from lm.decode.search.speculative import continue_one, judge, speculative
from lm.decode.speed import random_params
from lm.decode.steps import Prompts, StackSteps
from lm.errors import UserError
from lm.models.model import Model
from lm.models.transformer import Transformer
from tests.marks import quick

TINY = {"context": 28, "depth": 2, "heads": 2, "init": 0.3, "init_positions": 0.3}
GREEDY = Sampling(strategy="greedy")


@functools.cache
def model(vocab, width, seed=0, **changes):
    config = Transformer(**TINY | {"vocab": vocab, "width": width} | changes)
    steps, params = StackSteps(config), random_params(config, seed)
    return steps, steps.prepare(params, 2), params


@functools.cache
def full(steps):
    @jax.jit
    def logits(params, tokens_BT):
        h_BTD, _ = Model(steps.config).apply({"params": params}, tokens_BT)
        return Model(steps.config).apply({"params": params}, method="head").logits(h_BTD)

    return logits


def prompts_of(vocab, *lengths, width=8):
    random = np.random.default_rng(0)
    tokens, segments = np.zeros((2, len(lengths), width), np.int32)
    for i, n in enumerate(lengths):
        tokens[i, width - n :], segments[i, width - n :] = random.integers(0, vocab, n), 1
    return Prompts(tokens, segments)


def run(target, draft, prompts, sampling, new=20, gamma=3, stops=(), **options):
    keys_B = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(1), i))(jnp.arange(len(prompts.tokens_BT)))
    how = {"sampling": sampling, "gamma": gamma, "new": new, "stops": stops, "keys_B": keys_B, **options}
    return speculative(*target[:2], *draft[:2], prompts, **how)


def greedily(target, ids, new, stops=(), allowed=None):
    steps, _, params = target
    ids, logprobs, begin = list(ids), [], len(ids)
    while len(ids) - begin < new and (len(ids) == begin or ids[-1] not in stops):
        scores = np.asarray(full(steps)(params, np.array([ids + [0] * (28 - len(ids))], np.int32)))[0, len(ids) - 1]
        chosen = scores.copy()
        if allowed is not None:
            chosen[~allowed(ids)] = -np.inf
        ids.append(int(chosen.argmax()))
        logprobs.append(scores[ids[-1]] - np.logaddexp.reduce(scores))
    return ids[begin:], logprobs


DRAFTS = {"worse": {"width": 16, "seed": 9}, "itself": {"width": 32}, "padded": {"width": 16, "seed": 9, "pad_vocab": 32}}


@pytest.mark.parametrize("draft", quick(DRAFTS, [*DRAFTS][:1]))
def test_greedy_texts_are_the_targets(draft):
    """Up to the context's very end, which the last round passes."""
    target, prompts = model(23, 32), prompts_of(23, 5, 1, 8)
    rows, accepted = run(target, model(23, **DRAFTS[draft]), prompts, GREEDY)
    assert accepted == 1 if draft == "itself" else 0 < accepted < 1
    for tokens, segments, (ids, logprobs) in zip(prompts.tokens_BT, prompts.segments_BT, rows, strict=True):
        expected, theirs = greedily(target, tokens[segments > 0], 20)
        assert ids.tolist() == expected
        np.testing.assert_allclose(logprobs, theirs, atol=1e-4)


@pytest.mark.parametrize("gamma", quick([1, 4], [4]))
def test_a_stop_ends_a_text_and_rules_hold(gamma):
    target, draft, prompts = model(23, 32), model(23, **DRAFTS["worse"]), prompts_of(23, 5, 2)
    texts = [tokens[segments > 0] for tokens, segments in zip(prompts.tokens_BT, prompts.segments_BT)]
    stops = (greedily(target, texts[0], 9)[0][4],)
    rows, _ = run(target, draft, prompts, GREEDY, stops=stops, gamma=gamma, rules=Rules(no_repeat_ngram=1))

    def fresh(ids):
        return ~np.isin(np.arange(23), ids)

    for text, (ids, _) in zip(texts, rows, strict=True):
        assert ids.tolist() == greedily(target, text, 16, stops, fresh)[0][: len(ids)]
        assert ids[-1] in stops or len(ids) == 20
    rows, _ = run(target, draft, prompts, GREEDY, stops=stops, gamma=gamma)
    for text, (ids, _) in zip(texts, rows, strict=True):
        assert ids.tolist() == greedily(target, text, 20, stops)[0]


DRAWS = [(Sampling(temperature=0.7, top_p=0.9), 3), (Sampling(), 2), (Sampling(top_k=3), 1)]


@pytest.mark.parametrize(("sampling", "gamma"), quick(DRAWS, DRAWS[:1]))
def test_texts_follow_the_targets_distribution(sampling, gamma):
    """20,000 texts of three tokens over five, against the target's exact probabilities of all 125."""
    vocab, draws = 5, 20_000
    target, draft = model(vocab, 16, seed=2), model(vocab, 8, seed=4, depth=1)
    prompt = prompts_of(vocab, 3)
    how = {"steps": target[0], "draft_steps": draft[0], "sampling": sampling, "rules": Rules(), "gamma": gamma}

    @jax.jit
    def texts(keys):
        one = functools.partial(continue_one, target[1], draft[1], prompt, stops=(), room=3, new=3, **how)
        ids, _, _, accepted, rounds = jax.vmap(lambda key: one(key))(keys)
        return ids[:, :3] @ jnp.array([25, 5, 1]), accepted.sum() / rounds.sum() / gamma

    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(3), i))(jnp.arange(draws))
    parts = [texts(part) for part in keys.reshape(2, -1)]
    found = np.concatenate([np.asarray(ids) for ids, _ in parts])
    assert 0.05 < np.mean([rate for _, rate in parts]) < 0.95  # proposals are refused and accepted
    law = exact(target, np.asarray(prompt.tokens_BT)[0, -3:], sampling, vocab)
    assert fits(np.bincount(found, minlength=125), law)
    assert not fits(np.bincount(found, minlength=125), exact(draft, np.asarray(prompt.tokens_BT)[0, -3:], sampling, vocab))


def exact(target, ids, sampling, vocab):
    """Probabilities of all texts of three tokens."""
    steps, _, params = target
    rows = np.array([[*ids, *text] for text in itertools.product(range(vocab), repeat=3)], np.int32)
    scores = sampling.process(full(steps)(params, rows)[:, len(ids) - 1 : -1].astype(jnp.float32))
    p = np.asarray(jax.nn.softmax(scores), np.float64)
    return np.take_along_axis(p, rows[:, len(ids) :, None], 2)[..., 0].prod(1)


def fits(counts, law):
    if counts[law == 0].any():
        return False
    expected = counts.sum() * law
    rare = expected < 8
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    counts, expected = counts[expected > 0], expected[expected > 0]
    return chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_a_proposal_is_judged_by_the_published_rule():
    """One proposal of a fixed token: accepted with min(1, p/q), else a token of max(p - q, 0)."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.7, 0.1])
    keys = jax.random.split(jax.random.key(0), 40_000)
    scores = jnp.log(jnp.array([p, p])), jnp.log(jnp.array([q]))
    count, extra = jax.vmap(lambda key: judge(*scores, jnp.array([1]), key, False))(keys)
    np.testing.assert_allclose(count.mean(), 3 / 7, atol=0.01)
    refused = np.asarray(extra)[np.asarray(count) == 0]
    np.testing.assert_allclose(np.bincount(refused, minlength=3) / len(refused), [0.75, 0, 0.25], atol=0.015)
    behind = np.asarray(extra)[np.asarray(count) == 1]
    np.testing.assert_allclose(np.bincount(behind, minlength=3) / len(behind), p, atol=0.015)


def test_a_row_depends_on_its_key_alone():
    target, draft, prompts = model(23, 32), model(23, **DRAFTS["worse"]), prompts_of(23, 5, 1, 8)
    together, _ = run(target, draft, prompts, Sampling(temperature=0.8))
    alone, _ = run(target, draft, jax.tree.map(lambda x: x[:1], prompts), Sampling(temperature=0.8))
    wider = Prompts(*(np.pad(x[:1], ((0, 0), (8, 0))) for x in (prompts.tokens_BT, prompts.segments_BT)))
    shifted, _ = run(target, draft, wider, Sampling(temperature=0.8))
    assert together[0][0].tolist() == alone[0][0].tolist() == shifted[0][0].tolist()
    np.testing.assert_allclose(shifted[0][1], alone[0][1], atol=1e-4)
    assert len({tuple(ids) for ids, _ in together}) == 3


def test_mistakes_are_told():
    target, prompts = model(23, 32), prompts_of(23, 5)
    with pytest.raises(UserError, match="at least 1"):
        run(target, target, prompts, GREEDY, gamma=0)

    class Still(StackSteps):
        rewinds = False

    with pytest.raises(UserError, match="Still cannot forget"):
        run(target, (Still(target[0].config), target[1]), prompts, GREEDY)
