"""Contrastive search against a slow loop over transformers' hidden states."""

import numpy as np
import pytest

from lm.convert.convert import load
from lm.decode.prefill import batch_prompts, opened_steps
from lm.decode.processors import Rules
from lm.decode.search.contrastive import contrastive_search
from lm.errors import UserError
from tests.decode.test_beam import MODELS, VOCAB, prompts_for
from tests.marks import quick

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # tiny products: more threads only wait for each other

NEW = 10


@pytest.fixture(scope="module", params=["gpt2", "t5"])
def model(request, tmp_path_factory):
    torch.manual_seed(5)
    name, shape = MODELS[request.param]
    # States that differ less than those of large random weights: the penalty decides often, not always.
    shape = {k: v / 2.5 if k.startswith("init") else v for k, v in shape.items()}
    kind = getattr(transformers, name)
    theirs = kind(kind.config_class(**shape)).eval()
    path = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(path)
    return request.param, theirs, load(path)


def forward(theirs, prompt, ids):
    """Logits and last hidden states, for every token read."""
    read = torch.tensor(np.concatenate([prompt.tokens, ids])[None].astype(np.int64))
    with torch.no_grad():
        if prompt.source is None:
            out = theirs(read, output_hidden_states=True)
            return out.logits[0].numpy(), out.hidden_states[-1][0].numpy()
        source = torch.tensor(prompt.source[None].astype(np.int64))
        out = theirs(source, decoder_input_ids=read, output_hidden_states=True)
        return out.logits[0].numpy(), out.decoder_hidden_states[-1][0].numpy()


def slowly(theirs, prompt, top_k, alpha, new, banned=()):
    ids, total, decided = [], 0.0, 0
    for _ in range(new):
        logits, known = forward(theirs, prompt, np.array(ids, np.int64))
        logits = logits[-1].astype(np.float64)
        logprobs = logits - np.logaddexp.reduce(logits)
        allowed = logits.copy()
        allowed[list(banned)] = -np.inf
        p = np.exp(allowed - np.logaddexp.reduce(allowed))
        best, chosen = -np.inf, None
        for v in np.argsort(-p)[:top_k]:
            h = forward(theirs, prompt, np.array([*ids, v]))[1][-1]
            alike = max(h @ k / np.linalg.norm(h) / np.linalg.norm(k) for k in known)
            score = (1 - alpha) * p[v] - alpha * alike
            if score > best:
                best, chosen = score, v
        decided += chosen != p.argmax()
        ids.append(int(chosen))
        total += logprobs[chosen]
    return ids, total, decided


def ours(loaded, prompts, top_k, alpha, **options):
    steps = opened_steps(loaded.objective)
    prepared = steps.prepare(loaded.params, len(prompts) * top_k)
    options = {"rules": Rules(), "new": NEW, "stops": (), **options}
    return contrastive_search(steps, prepared, batch_prompts(prompts), top_k=top_k, alpha=alpha, **options)


@pytest.mark.parametrize(("top_k", "alpha"), quick([(4, 0.6), (6, 0.2)], [(4, 0.6)]))
def test_texts_are_those_of_a_slow_loop(model, top_k, alpha):
    kind, theirs, loaded = model
    prompts = prompts_for(kind, (5, 2))
    decided = 0
    for prompt, (ids, logprobs) in zip(prompts, ours(loaded, prompts, top_k, alpha), strict=True):
        expected, total, differs = slowly(theirs, prompt, top_k, alpha, NEW)
        assert ids.tolist() == expected
        np.testing.assert_allclose(logprobs.sum(), total, rtol=1e-3)
        decided += differs
    assert decided > 0  # not greedy search by another name


def test_rules_stops_and_batches(model):
    kind, theirs, loaded = model
    prompts = prompts_for(kind, (5, 2, 8))
    free = [ids.tolist() for ids, _ in ours(loaded, prompts, 3, 0.5)]
    banned = tuple({ids[0] for ids in free})
    ruled = ours(loaded, prompts, 3, 0.5, rules=Rules(suppress=banned), new=4)
    for prompt, (ids, _) in zip(prompts, ruled, strict=True):
        assert ids.tolist() == slowly(theirs, prompt, 3, 0.5, 4, banned)[0]
    stop = free[1][3]
    ended = [ids.tolist() for ids, _ in ours(loaded, prompts, 3, 0.5, stops=(stop,))]
    for before, after in zip(free, ended, strict=True):
        assert after == (before[: 1 + before.index(stop)] if stop in before else before)
    ((alone, alone_logprobs),) = ours(loaded, prompts[:1], 3, 0.5)
    assert alone.tolist() == free[0]
    np.testing.assert_allclose(alone_logprobs, ours(loaded, prompts, 3, 0.5)[0][1], rtol=1e-3)


def test_mistakes_are_told(model):
    prompts = prompts_for(model[0])
    with pytest.raises(UserError, match="from 0"):
        ours(model[2], prompts, 3, 1.5)
    with pytest.raises(UserError, match="at least 1 candidate"):
        ours(model[2], prompts, 0, 0.5)
    assert len(ours(model[2], prompts[:1], VOCAB + 9, 0.5, new=2)[0][0]) == 2
