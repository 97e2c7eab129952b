"""Scores of continuations: every architecture against its whole pass, alone as in company."""

import jax
import numpy as np
import pytest

from lm.data.prompts import Prompt
from lm.decode.score import Pair, Scorer
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder
from lm.sharding import make_mesh
from tests.decode.test_steps import LENGTHS, MODELS, NEW, rows, whole
from tests.marks import quick


class Asked:
    """What an objective tells the scorer."""

    generative, answers = True, True

    def __init__(self, name):
        self.model, self.prefix = MODELS[name], name == "prefix"

    def writer(self, params):
        return self, params


def pairs_of(name):
    tokens, sources = rows()
    source = sources if isinstance(MODELS[name], EncoderDecoder) else [None] * 3
    return [Pair(Prompt(ids[:n], s), ids[n:]) for ids, n, s in zip(tokens, LENGTHS, source)]


@pytest.mark.parametrize("name", quick(MODELS, ("causal", "prefix", "t5", "memory", "lstm")))
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


@pytest.mark.parametrize("name", ["causal", "t5"])
def test_scores_do_not_depend_on_company(name):
    params, _ = whole(name)
    pairs = pairs_of(name)
    alone = [Scorer(Asked(name), params, tokens=1)([pair])[0] for pair in pairs]
    for together in (Scorer(Asked(name), params)(pairs[::-1])[::-1], Scorer(Asked(name), params, tokens=64)(pairs)):
        for a, b in zip(alone, together):
            np.testing.assert_allclose(a.logprobs, b.logprobs, atol=3e-5)


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
