"""Scores of continuations: every architecture against its whole pass, alone as in company."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.data.rows.prompts import Prompt
from lm.decode.score import Pair, Scorer
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.memory import MemoryModel, empty_memory
from lm.objectives.recurrent import Recurrent
from lm.sharding import make_mesh
from tests.decode.test_steps import LENGTHS, MODELS, NEW, rows, whole
from tests.marks import quick


class Asked:
    """What an objective tells the scorer."""

    writes = "answer"

    def __init__(self, name):
        self.model, self.prefix = MODELS[name], name == "prefix"

    def writer(self, params):
        return self, params


def pairs_of(name):
    tokens, sources = rows()
    source = sources if isinstance(MODELS[name], EncoderDecoder) else [None] * 3
    return [Pair(Prompt(ids[:n], s), ids[n:]) for ids, n, s in zip(tokens, LENGTHS, source)]


@pytest.mark.parametrize("name", quick(MODELS, ("causal", "prefix", "t5", "memory of zeros", "lstm")))
def test_scores_are_those_of_the_whole_pass(name):
    params, logits_BTV = whole(name)
    found = Scorer(Asked(name), params)(pairs_of(name))
    for one, pair, logits_TV in zip(found, pairs_of(name), logits_BTV):
        logprobs_TV = np.asarray(jax.nn.log_softmax(logits_TV[:-1]))
        own = logprobs_TV[np.arange(NEW), pair.target]
        np.testing.assert_allclose(one.logprobs, own, atol=3e-5)
        np.testing.assert_array_equal(one.greedy, logprobs_TV.argmax(-1) == pair.target)
        np.testing.assert_allclose(one.confidence, np.exp(logprobs_TV.max(-1)), atol=1e-5)
        np.testing.assert_allclose(one.squares, np.exp(2 * logprobs_TV).sum(-1), atol=1e-5)


@pytest.mark.parametrize("placement", quick(["post", "pre"], ["post"]))
@pytest.mark.parametrize("same_length", quick([False, True], [False]))
def test_lengths_are_those_of_the_whole_pass(placement, same_length):
    """Transformer-XL before its memory of zeros: rows of every length, padded to buckets, as each is alone."""
    more = {"memory": 12, "begin": "zeros", "placement": placement, "same_length": same_length}
    model, draw = dataclasses.replace(MODELS["memory"], **more), np.random.default_rng(0)
    network, params = MemoryModel(model), whole("memory")[0]
    texts = [draw.integers(1, model.vocab, n + 1).astype(np.int32) for n in (1, 2, 13, 15, 16, 17, 23, 24, 25, 40)]

    @jax.jit
    def alone(ids):
        h_BTD, _ = network.apply({"params": params}, ids[None, :-1], None, empty_memory(model, 1))
        logprobs = jax.nn.log_softmax(network.apply({"params": params}, method="head").logits(h_BTD[0]))
        return logprobs[np.arange(len(ids) - 1), ids[1:]]

    found = Scorer(Recurrent(model=model), params)([Pair(Prompt(ids[:1]), ids[1:]) for ids in texts])
    for one, ids in zip(found, texts):
        np.testing.assert_allclose(one.logprobs, alone(ids), atol=1e-5)


@pytest.mark.parametrize("name", ["causal", "t5", "memory of zeros"])
def test_scores_do_not_depend_on_company(name):
    params, _ = whole(name)
    pairs = pairs_of(name)
    alone = [Scorer(Asked(name), params, tokens=1)([pair])[0] for pair in pairs]
    for together in (Scorer(Asked(name), params)(pairs[::-1])[::-1], Scorer(Asked(name), params, tokens=64)(pairs)):
        for a, b in zip(alone, together):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=3e-5)


def test_no_finite_score_is_an_error():
    params = jax.tree.map(lambda x: x * np.nan, whole("causal")[0])
    with pytest.raises(UserError, match="no finite score for token 1 of 6"):
        Scorer(Asked("causal"), params)(pairs_of("causal"))


def test_what_cannot_be_scored_is_said():
    scorer = Scorer(Asked("causal"), whole("causal")[0])
    with pytest.raises(UserError, match="context of 64"):
        scorer([Pair(Prompt(np.ones(60, np.int32)), np.ones(6, np.int32))])
    with pytest.raises(UserError, match="nothing to score"):
        scorer([Pair(Prompt(np.ones(6, np.int32)), np.ones(0, np.int32))])
    scorer([Pair(Prompt(np.ones(60, np.int32)), np.ones(5, np.int32))])


@pytest.mark.parametrize("name", ["causal", "bart"])
def test_scores_do_not_depend_on_the_mesh(name):
    """Parameters cut over eight devices, inside the mesh of a training run."""
    params, _ = whole(name)
    alone = Scorer(Asked(name), params)(pairs_of(name))
    mesh = make_mesh({"data": 2, "fsdp": 4, "tensor": 1, "context": 1, "expert": 1})
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    whole_ones = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = jax.tree.map(lambda x: jax.device_put(x, cut if x.ndim and x.shape[0] % 4 == 0 else whole_ones), params)
    with jax.set_mesh(mesh):
        found = Scorer(Asked(name), spread)(pairs_of(name))
    for a, b in zip(alone, found):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=3e-5)
