"""Decoding with a cache against the whole forward pass, rows against each other, and how continuations end."""

import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.rows.prompts import Prompt
from lm.data.tokenizer.tokenizer import Characters
from lm.decode.generate import generate, occurrences, row_keys
from lm.decode.prefill import bucket
from lm.decode.processors import Rules
from lm.decode.sampling import Sampling
from lm.decode.speed import random_params, tokens_per_second
from lm.decode.steps import Prompts, StackSteps
from lm.decode.strategies import AncestralSampling, BeamSearch, ContrastiveSearch, GreedySearch, SpeculativeSampling
from lm.decode.writer import Request, Writer, continue_tokens
from lm.errors import UserError
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from tests.marks import quick
from tests.processes import environment

TINY = {"vocab": 30, "context": 64, "width": 32, "depth": 2, "heads": 4, "init": 0.3, "init_positions": 0.3}
KINDS = {
    "learned": {},
    "grouped": {"positions": "rotary", "kv_heads": 2, "qkv_bias": False, "windows": (4, 0)},
    "alibi": {"positions": "alibi"},
    "post": {"positions": "bucket", "placement": "post"},
    "parallel": {"positions": "sinusoidal", "parallel": True, "bias": False},
    "qk_norm": {"positions": "rotary", "qk_norm": True, "norm": "rms", "activation": "swiglu"},
    "untied": {"tied": False, "pad_vocab": 8, "logit_cap": 30.0, "attention_cap": 20.0, "mup_base": 16},
}
GREEDY = Sampling(strategy="greedy")


def config(kind="learned"):
    return Transformer(**TINY | KINDS[kind])


@functools.cache
def params_of(kind):
    return random_params(config(kind), seed=1)


def prompts_of(*lengths):
    random = np.random.default_rng(0)
    return [Prompt(random.integers(0, TINY["vocab"], n, np.int32)) for n in lengths]


@functools.cache
def full_forward(kind):
    model = Model(config(kind))

    @jax.jit
    def logits(params, tokens_BT):
        h_BTD, _ = model.apply({"params": params}, tokens_BT)
        return model.apply({"params": params}, method="head").logits(h_BTD)

    return lambda ids: logits(params_of(kind), np.pad(ids, (0, 48 - len(ids)))[None])[0, : len(ids)]


def decode(kind, prompts, new, sampling=GREEDY, samples=1, **options):
    steps = StackSteps(config(kind))
    prepared = steps.prepare(params_of(kind), len(prompts) * samples)
    keys = row_keys(0, prompts, occurrences(prompts), samples)
    return continue_tokens(steps, prepared, prompts, keys, sampling=sampling, new=new, **options)


# One row has a layout of its own.
@pytest.mark.parametrize(
    ("kind", "rows"), quick([*((kind, 3) for kind in KINDS), ("grouped", 1)], [("grouped", 1), ("alibi", 3), ("untied", 3)])
)
def test_cached_steps_give_the_logits_of_the_full_forward(kind, rows):
    steps = StackSteps(config(kind))
    lengths = (5, 2, 9)[:rows]
    ids = [prompt.tokens for prompt in prompts_of(*[n + 10 for n in lengths])]
    tokens, segments = np.zeros((2, rows, 9), np.int32)
    for i, n in enumerate(lengths):
        tokens[i, 9 - n :], segments[i, 9 - n :] = ids[i][:n], 1
    rest = np.stack([row[n:] for row, n in zip(ids, lengths)], 1)

    @jax.jit
    def run(params):
        prepared = steps.prepare(params, rows)
        first, state = steps.prefill(prepared, Prompts(tokens, segments), 15)

        def step(state, tokens_B):
            h_BTD, state = steps.step(prepared, state, tokens_B[:, None])
            return state, steps.logits(prepared, h_BTD[:, 0])

        first = steps.logits(prepared, first[:, -1])
        return jnp.concatenate([first[None], jax.lax.scan(step, state, rest)[1]])

    found = run(params_of(kind))
    for i, n in enumerate(lengths):
        np.testing.assert_allclose(found[:, i], full_forward(kind)(ids[i])[n - 1 :], atol=1e-4)


@pytest.mark.parametrize("kind", ["learned", "grouped"])
def test_greedy_tokens_are_those_of_the_full_forward(kind):
    ids = prompts_of(7)[0].tokens
    ((tokens, logprobs),) = decode(kind, [Prompt(ids)], 20)
    for token, logprob in zip(tokens, logprobs, strict=True):
        scores = jax.nn.log_softmax(full_forward(kind)(ids)[-1])
        assert token == int(scores.argmax())
        np.testing.assert_allclose(logprob, scores[token], atol=1e-4)
        ids = np.append(ids, token)


STRICT = Rules(
    repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.2, no_repeat_ngram=2, bad_words=((4,), (5, 6)),
    encoder_repetition_penalty=1.1, min_length=12, suppress=(7,), forced_prefix=(3,),
)  # fmt: skip


@pytest.mark.parametrize(
    ("sampling", "rules"),
    [pytest.param(GREEDY, Rules(), marks=pytest.mark.slow), (Sampling(temperature=0.9, top_k=20, top_p=0.95), Rules()),
     pytest.param(GREEDY, STRICT, marks=pytest.mark.slow), (Sampling(typical_p=0.9, min_p=0.01), STRICT)],
)  # fmt: skip
def test_a_row_does_not_depend_on_its_batch(sampling, rules):
    prompts, options = prompts_of(3, 12, 21), {"rules": rules, "stops": (9,)}
    together = decode("learned", prompts, 20, sampling, **options)
    for prompt, (tokens, logprobs) in list(zip(prompts, together))[:2]:
        ((alone, alone_logprobs),) = decode("learned", [prompt], 20, sampling, **options)
        np.testing.assert_array_equal(tokens, alone)
        np.testing.assert_allclose(logprobs, alone_logprobs, atol=1e-4)


def test_samples_of_a_prompt_differ_and_do_not_depend_on_their_number():
    prompts = prompts_of(6, 11)
    two = [tuple(tokens) for tokens, _ in decode("learned", prompts, 12, Sampling(), samples=2)]
    three = [tuple(tokens) for tokens, _ in decode("learned", prompts, 12, Sampling(), samples=3)]
    assert [three[i] for i in (0, 1, 3, 4)] == two
    assert len(set(three)) == 6
    twice = [tuple(tokens) for tokens, _ in decode("learned", [prompts[0]] * 2, 12, Sampling())]
    assert twice == two[:2]


def test_one_sample_of_one_prompt_repeated():
    repeated = decode("grouped", prompts_of(6), 12, GREEDY, samples=3)
    ((alone, _),) = decode("grouped", prompts_of(6), 12)
    assert all((tokens == alone).all() for tokens, _ in repeated)


def test_a_stop_token_ends_its_row_only():
    prompts = prompts_of(3, 12, 21)
    free = [tokens.tolist() for tokens, _ in decode("learned", prompts, 20)]
    stop = free[1][4]
    ended = [tokens.tolist() for tokens, _ in decode("learned", prompts, 20, stops=(stop,))]
    for before, after in zip(free, ended):
        assert after == (before[: 1 + before.index(stop)] if stop in before else before)
    assert len(ended[1]) <= 5


LETTERS = Characters().build(lambda: ["abcdefghijklmnopqrstuvwxyz .,\n"])


def continued(prompts, max_new_tokens=40, **options):
    return generate(Causal(model=config()), params_of("learned"), LETTERS, prompts, max_new_tokens=max_new_tokens, **options)


def test_stop_strings_cut_the_text_and_the_tokens():
    (free,) = continued(["hello"], seed=3)
    stop = free.text[20:23]  # three tokens; the first place may be an earlier one
    at = free.text.index(stop)
    (cut,) = continued(["hello"], seed=3, stop=["??", stop])
    assert cut.text == free.text[:at]
    assert cut.tokens == free.tokens[: at + 3]
    assert free.logprob < cut.logprob < 0
    (both,) = continued(["hello"], seed=3, stop=[stop, free.text[5:7]])
    assert both.text == free.text[: min(at, free.text.index(free.text[5:7]))]


def test_texts_do_not_depend_on_the_other_prompts():
    together = continued(["hello", "what a long prompt", ""], num_samples=2, strategy=AncestralSampling(top_p=0.9))
    assert [s.prompt for s in together] == ["hello"] * 2 + ["what a long prompt"] * 2 + [""] * 2
    for prompt in ("hello", ""):
        alone = continued([prompt], num_samples=2, strategy=AncestralSampling(top_p=0.9))
        assert [s.text for s in alone] == [s.text for s in together if s.prompt == prompt]
    assert continued(["hello"], seed=1) != continued(["hello"], seed=2)
    assert continued([]) == []


def test_rules_are_followed():
    (free,) = continued(["hello"], strategy=GreedySearch())
    (single,) = continued(["hello"], strategy=GreedySearch(), rules=Rules(no_repeat_ngram=2))
    pairs = list(itertools.pairwise(LETTERS.encode("hello").tolist() + single.tokens))
    assert len(set(pairs)) == len(pairs)
    assert single.tokens != free.tokens
    (banned,) = continued(["hello"], rules=Rules(suppress=tuple(range(28))))
    assert set(banned.tokens) <= {28, 29, 30}
    assert free.logprob == pytest.approx(sum(free.logprobs), rel=1e-6)


def test_what_is_written_is_watched():
    seen = []
    (sample,) = continued(["hello"], seed=5, watch=lambda rows: seen.append(rows[0][0].tolist()))
    assert seen[-1] == sample.tokens
    assert len(seen) > 2
    assert all(sample.tokens[: len(ids)] == ids for ids in seen)
    assert all(len(a) < len(b) for a, b in itertools.pairwise(seen))


def test_many_prompts_come_back_in_order():
    prompts = ["a" * (1 + 7 * i % 20) + chr(97 + i % 26) for i in range(70)]
    found = continued(prompts, strategy=GreedySearch())
    assert [s.prompt for s in found] == prompts
    for i in (0, 33, 69):
        assert continued([prompts[i]], strategy=GreedySearch())[0].text == found[i].text


def test_past_the_context_searches_are_refused():
    with pytest.raises(UserError, match=r"30 prompt tokens \+ 40 new ones pass the model's context of 64: .* to 34"):
        continued(["a" * 30], strategy=BeamSearch())
    with pytest.raises(UserError, match="shorten the prompt"):
        continued(["a" * 64], strategy=BeamSearch())
    assert len(continued(["a" * 24])[0].tokens) == 40


@pytest.mark.parametrize("length", [30, 70])
def test_past_the_context_a_text_goes_on_from_its_last_half(length):
    """Greedily, stretch by stretch: to the context's end, then from the last 32 of 64 tokens, as often as it takes."""
    (sample,) = continued([text := "ab" * (length // 2)], strategy=AncestralSampling(temperature=0), max_new_tokens=80)
    assert len(sample.tokens) == 80
    (ids,) = (prompt.tokens for prompt in Writer(Causal(model=config()), params_of("learned"), LETTERS).encode([text]))
    first = len(ids) if len(ids) < 64 else 32
    expected, keep = [], first
    while len(expected) < 80:
        window = np.array([*ids, *expected], np.int32)[-keep:]
        expected += decode("learned", [Prompt(window)], min(64 - keep, 80 - len(expected)))[0][0].tolist()
        keep = 32
    assert sample.tokens == expected


def test_past_the_context_a_text_does_not_depend_on_its_batch():
    """Nor does one that fits, beside one that does not."""
    prompts, options = ["ab" * 15, "b" * 5, "ba" * 35], {"strategy": AncestralSampling(), "max_new_tokens": 50, "seed": 2}
    together = continued(prompts, **options)
    for prompt, sample in zip(prompts, together):
        assert continued([prompt], **options)[0].tokens == sample.tokens


def test_a_stop_at_the_end_of_a_stretch_ends_the_text():
    text, strategy = "ab" * 15, AncestralSampling(temperature=0)
    (free,) = continued([text], strategy=strategy, max_new_tokens=80)
    writer = Writer(Causal(model=config()), params_of("learned"), LETTERS)
    (prompt,) = writer.encode([text])
    length = 64 - len(prompt.tokens)
    request, keys = Request(new=80), row_keys(0, [prompt], [0], 1)
    expected = free.tokens[: free.tokens.index(free.tokens[length - 1]) + 1]
    writer.stops = (free.tokens[length - 1],)
    ((row,),) = strategy.write(writer, request, [prompt], keys, None)
    assert row[0].tolist() == expected


def test_buckets():
    assert [bucket(n) for n in (1, 16, 17, 24, 25, 33, 48, 49, 65, 1000)] == [16, 16, 24, 24, 32, 48, 48, 64, 96, 1024]


def test_speed_is_measured():
    assert tokens_per_second(config(), 2, new=8, prompt=4, repeats=1) > 0


MESHED = """
import jax, numpy as np
from lm.decode.generate import generate
from lm.models.model import Model
from lm.sharding import make_mesh, shardings
from lm.decode.strategies import GreedySearch
from tests.decode.test_generate import LETTERS, config, params_of
from lm.objectives.causal import Causal
ask = lambda params: generate(Causal(model=config()), params, LETTERS, ["hello"], max_new_tokens=8, strategy=GreedySearch())
expected = ask(params_of("learned"))
sizes = dict(data=2, fsdp=2, tensor=2, context=1, expert=1)
mesh = make_mesh(sizes)
with jax.set_mesh(mesh):
    boxed = jax.eval_shape(Model(config()).init, jax.random.key(0), np.zeros((4, 8), np.int32))["params"]
    params = jax.device_put(params_of("learned"), shardings(boxed, mesh))
    found = ask(params)
assert found[0].text == expected[0].text and abs(found[0].logprob - expected[0].logprob) < 1e-4, (found, expected)
"""


def test_training_parameters_on_a_mesh():
    result = subprocess.run([sys.executable, "-c", MESHED], env=environment(8), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


STRATEGIES = {
    "greedy": GreedySearch(),
    "sample": AncestralSampling(),
    "beam": BeamSearch(num_beams=2),
    "contrastive": ContrastiveSearch(),
    "speculative": None,
}


@pytest.mark.parametrize("name", quick(STRATEGIES, [*STRATEGIES][:2]))
@pytest.mark.parametrize("value", quick([np.nan, np.inf], [np.nan]))
def test_a_model_without_finite_scores_writes_nothing(name, value):
    tokenizer = Characters().build(lambda: ["abcdefghijklmnopqrstuvwxyz\n ,."])
    params = jax.tree.map(lambda x: x * value, params_of("learned"))
    objective = Causal(model=config())
    strategy = STRATEGIES[name] or SpeculativeSampling(proposer=Writer(objective, params, tokenizer), draft_tokens=2)
    with pytest.raises(UserError, match=r"no finite score for (what follows 'ab'|the texts of a search)"):
        generate(objective, params, tokenizer, ["ab"], max_new_tokens=3, strategy=strategy)
