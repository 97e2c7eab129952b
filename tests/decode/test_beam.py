"""Beam search gives transformers' texts and scores; diverse groups those of a slow loop; beam sampling its law."""

import functools
import itertools
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm.convert.convert import load
from lm.data.rows.prompts import Prompt
from lm.decode.prefill import KINDS, batch_prompts, opened_steps
from lm.decode.processors import Rules
from lm.decode.sampling import Sampling
from lm.decode.search import reorder
from lm.decode.search.beam import Beams, beam_search
from lm.decode.steps import Seq2SeqSteps
from lm.decode.strategies import BeamSampling, BeamSearch
from lm.decode.writer import Request
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.lstm import LSTM, LSTMModel
from lm.models.memory import MemoryModel, TransformerXL
from lm.models.transformer import Transformer
from lm.sharding import unbox
from tests.marks import quick

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # tiny products: more threads only wait for each other

NEW, VOCAB = 12, 61
STACK = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
MODELS = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": VOCAB, "n_embd": 20, "n_layer": 2, "n_head": 5, "n_positions": 40,
                                 "initializer_range": 0.5}),
    "llama": ("LlamaForCausalLM", {**STACK, "num_key_value_heads": 2, "initializer_range": 0.5}),
    "t5": ("T5ForConditionalGeneration", {"vocab_size": VOCAB, "d_model": 20, "d_kv": 6, "d_ff": 34, "num_layers": 2,
                                          "num_heads": 3, "decoder_start_token_id": 0, "initializer_factor": 2.0}),
    "bart": ("BartForConditionalGeneration", {"vocab_size": VOCAB, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2,
                                              "encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.5,
                                              "encoder_ffn_dim": 31, "decoder_ffn_dim": 31, "max_position_embeddings": 40,
                                              "forced_eos_token_id": None}),
}  # fmt: skip
LENGTHS = (5, 1, 9)
GREEDY = {"do_sample": False, "pad_token_id": 1, "max_new_tokens": NEW, "return_dict_in_generate": True, "output_scores": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    @functools.cache
    def make(kind):
        torch.manual_seed(3)
        name, shape = MODELS[kind]
        model = getattr(transformers, name)
        theirs = model(model.config_class(**shape)).eval()
        path: Path = tmp_path_factory.mktemp(kind)
        theirs.save_pretrained(path)
        loaded = load(path)
        return theirs, loaded

    return make


def prompts_for(kind, lengths=LENGTHS, seed=0):
    random = np.random.default_rng(seed)
    texts = [random.integers(4, VOCAB, n).astype(np.int32) for n in lengths]
    if kind in ("gpt2", "llama"):
        return [Prompt(ids) for ids in texts]
    return [Prompt(np.array([0 if kind == "t5" else 2], np.int32), ids) for ids in texts]


def ours(loaded, prompts, beams, stops, rules=None, new=NEW, **options):
    steps = opened_steps(loaded.objective)
    prepared = steps.prepare(loaded.params, len(prompts) * beams.count)
    rules = rules or Rules(stops=stops)
    return beam_search(steps, prepared, batch_prompts(prompts), beams=beams, rules=rules, new=new, stops=stops, **options)


def compare(kind, models, beams, stops, rules=None, **options):
    """Our texts and scores are theirs, and our log-probabilities those of a forward pass."""
    theirs, loaded = models(kind)
    prompts = prompts_for(kind)
    found = ours(loaded, prompts, beams, stops, rules)
    given = [p.tokens if p.source is None else p.source for p in prompts]
    width = max(map(len, given))
    ids, mask = np.ones((len(given), width), np.int64), np.zeros((len(given), width), np.int64)
    for i, row in enumerate(given):
        part = slice(width - len(row), None) if prompts[i].source is None else slice(len(row))
        ids[i, part], mask[i, part] = row, 1
    out = theirs.generate(
        torch.tensor(ids), attention_mask=torch.tensor(mask), num_beams=beams.count, num_return_sequences=beams.returned,
        length_penalty=beams.length_penalty, early_stopping=beams.early_stopping, eos_token_id=list(stops), **GREEDY,
        **options,
    )  # fmt: skip
    begin = width if prompts[0].source is None else 1
    expected = out.sequences[:, begin:].numpy().reshape(len(given), beams.returned, -1)
    scores = out.sequences_scores.numpy().reshape(len(given), -1)
    ended = 0
    for prompt, mine, texts, values in zip(prompts, found, expected, scores, strict=True):
        np.testing.assert_allclose([h.score for h in mine], values, rtol=2e-4, atol=2e-5)
        for h, text in zip(mine, texts, strict=True):
            np.testing.assert_array_equal(h.ids, text[: len(h.ids)])
            assert (text[len(h.ids) :] == 1).all()
            ended += int(h.ids[-1] in stops)
            np.testing.assert_allclose(h.logprob, logprob(theirs, prompt, h.ids), rtol=1e-3, atol=1e-3)
    return ended


def logprob(theirs, prompt, ids):
    read = torch.tensor(np.concatenate([prompt.tokens, ids[:-1]])[None].astype(np.int64))
    with torch.no_grad():
        if prompt.source is None:
            logits = theirs(read).logits
        else:
            logits = theirs(torch.tensor(prompt.source[None].astype(np.int64)), decoder_input_ids=read).logits
    found = logits[0, len(prompt.tokens) - 1 :].log_softmax(-1).numpy()
    return found[np.arange(len(ids)), ids].sum()


STOPS = tuple(range(20, 32))  # a share of all tokens: random models end their texts too


CASES = [("gpt2", True, 1.0), ("gpt2", False, 0.6), ("gpt2", "never", 2.0), ("gpt2", "never", -1.0), ("gpt2", False, 0.0),
         ("llama", False, 1.7), ("t5", True, 1.0), ("t5", "never", 0.5), ("bart", False, 1.0),
         ("bart", True, -0.5)]  # fmt: skip


@pytest.mark.parametrize(("kind", "early", "penalty"), quick(CASES, (*CASES[1:4:2], *CASES[5:7])))
def test_texts_and_scores_are_theirs(kind, early, penalty, models):
    beams = Beams(count=4, returned=3, early_stopping=early, length_penalty=penalty)
    ended = compare(kind, models, beams, STOPS[:6])
    assert ended > 0 or penalty > 1


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_caches_are_moved_block_by_block(kind, models, monkeypatch):
    """Blocks that the room is no multiple of; a number of beams of its own, so that it is compiled anew."""
    monkeypatch.setattr(reorder, "BLOCK", 5)
    compare(kind, models, Beams(count=5, returned=5), STOPS[:2])


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_with_least_lengths_and_no_repetition(kind, models):
    rules = Rules(stops=STOPS, min_new_tokens=5, no_repeat_ngram=2, repetition_penalty=1.3)
    options = {"min_new_tokens": 5, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3}
    compare_one_by_one(kind, models, Beams(count=4, returned=2, length_penalty=0.8), STOPS, rules, **options)


def compare_one_by_one(kind, models, beams, stops, rules, **options):
    """Theirs a prompt at a time, for it counts padding as text."""
    theirs, loaded = models(kind)
    prompts = prompts_for(kind)
    found = ours(loaded, prompts, beams, stops, rules)
    for prompt, mine in zip(prompts, found, strict=True):
        given = torch.tensor((prompt.tokens if prompt.source is None else prompt.source)[None].astype(np.int64))
        out = theirs.generate(
            given, num_beams=beams.count, num_return_sequences=beams.returned, length_penalty=beams.length_penalty,
            early_stopping=beams.early_stopping, eos_token_id=list(stops), **GREEDY, **options,
        )  # fmt: skip
        begin = len(prompt.tokens)
        np.testing.assert_allclose([h.score for h in mine], out.sequences_scores.numpy(), rtol=2e-4, atol=2e-5)
        for h, text in zip(mine, out.sequences[:, begin:].numpy(), strict=True):
            assert len(h.ids) >= 5
            np.testing.assert_array_equal(h.ids, text[: len(h.ids)])


def test_without_a_stop_and_a_single_beam(models):
    """One beam is greedy; none ends."""
    theirs, loaded = models("gpt2")
    prompts = prompts_for("gpt2")
    for (h,), prompt in zip(ours(loaded, prompts, Beams(count=1), ()), prompts, strict=True):
        out = theirs.generate(torch.tensor(prompt.tokens[None].astype(np.int64)), eos_token_id=None, **GREEDY)
        np.testing.assert_array_equal(h.ids, out.sequences[0, len(prompt.tokens) :])


@pytest.mark.parametrize("kind", quick(["gpt2", "t5"], ["t5"]))
def test_a_prompt_does_not_depend_on_its_batch(kind, models):
    loaded = models(kind)[1]
    beams = Beams(count=4, returned=4)
    prompts = prompts_for(kind, (5, 30))
    for prompt, together in zip(prompts, ours(loaded, prompts, beams, STOPS[:3], new=9), strict=True):
        (alone,) = ours(loaded, [prompt], beams, STOPS[:3], new=9)
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_array_equal(a.ids, b.ids)
            np.testing.assert_allclose([a.score, a.logprob], [b.score, b.logprob], rtol=1e-4)


SMALL = {"vocab": 6, "context": 32, "width": 16, "depth": 1}


@pytest.mark.parametrize("model", [LSTM(**SMALL), TransformerXL(**SMALL, heads=2, memory=16, init=0.5)])
def test_enough_beams_find_the_best_of_all_texts(model):
    """A state that is no cache; 36 beams for texts of three out of six tokens leave nothing out."""
    network = {LSTM: LSTMModel, TransformerXL: MemoryModel}[type(model)](model)
    start = np.array([3, 1, 5, 2], np.int32)
    params = unbox(jax.jit(network.init)(jax.random.key(1), start[None])["params"])
    params = jax.tree.map(lambda x: 3 * x, params)
    rows = np.array([[*start, *text] for text in itertools.product(range(6), repeat=3)], np.int32)
    logits = network.apply({"params": params}, method="head").logits(network.apply({"params": params}, rows)[0])
    logprobs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[:, 3:-1], rows[:, 4:, None], 2)[..., 0].sum(1)
    steps = KINDS[type(model)](model)
    beams = Beams(count=36, returned=36, length_penalty=0.0)
    prompts, prepared = batch_prompts([Prompt(start), Prompt(start[1:])]), steps.prepare(params, 72)
    found, _ = beam_search(steps, prepared, prompts, beams=beams, rules=Rules(), new=3, stops=())
    np.testing.assert_allclose([h.score for h in found], np.sort(logprobs)[::-1][:36], atol=1e-4)
    for h in found:
        np.testing.assert_allclose(h.logprob, logprobs[h.ids @ [36, 6, 1]], atol=1e-4)


@pytest.mark.parametrize("layers", quick(["bart", "t5"], ["bart"]))
def test_coverage_counts_what_every_source_token_got(layers):
    """All 36 texts of two out of six tokens, by whole passes with their attention; the penalty changes their order."""
    shape = {"vocab": 6, "context": 20, "width": 16, "depth": 2, "heads": 2, "init": 0.5}
    kind = {"placement": "post", "embed_norm": True} if layers == "bart" else {"positions": "bucket", "bias": False}
    side = Transformer(**shape, **kind)
    network = Seq2Seq(EncoderDecoder(encoder=side, decoder=side))
    sources = [np.array([3, 1, 5, 2, 4, 4, 1], np.int32), np.array([2, 5], np.int32)]
    params = unbox(jax.jit(network.init)(jax.random.key(2), sources[0][None], sources[0][None])["params"])
    params = jax.tree.map(lambda x: 2 * x, params)
    texts = np.array(list(itertools.product(range(6), repeat=2)), np.int32)
    rows = np.concatenate([np.zeros((len(texts), 1), np.int32), texts[:, :1]], 1)
    steps = Seq2SeqSteps(network.config)
    prompts = batch_prompts([Prompt(np.zeros(1, np.int32), source) for source in sources])
    passes, orders = [], []
    for source in sources:
        given = np.broadcast_to(source, (len(rows), len(source)))
        h_BTD, seen = network.apply({"params": params}, given, rows, mutable=["intermediates"])
        logits = network.apply({"params": params}, method="head").logits(h_BTD)
        logprobs = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), texts[..., None], 2)[..., 0].sum(1)
        (weights_LBNTS,) = seen["intermediates"]["decoder"]["layers"]["cross"]["weights"]
        got_BS = np.asarray(weights_LBNTS)[-1].mean(1).sum(1)
        passes.append((logprobs, np.log(np.clip(got_BS, 1e-30, 1)).sum(1)))
    for weight in (0.0, 0.8):
        beams = Beams(count=36, returned=36, length_penalty=0.0, coverage_penalty=weight)
        found = beam_search(steps, steps.prepare(params, 72), prompts, beams=beams, rules=Rules(), new=2, stops=())
        for (logprobs, covered), hypotheses in zip(passes, found, strict=True):
            wanted = logprobs + weight * covered
            np.testing.assert_allclose([h.score for h in hypotheses], np.sort(wanted)[::-1], atol=1e-4, rtol=1e-5)
            orders.append([h.ids @ [6, 1] for h in hypotheses])
    assert orders[0] != orders[2]


def test_gnmt_scores(models):
    """Published values of ((5 + n) / 6)^0.6, and texts ranked by them."""
    beams = Beams(count=6, returned=6, penalty="gnmt", length_penalty=0.6)
    np.testing.assert_allclose([1 / beams.normalise(1.0, n) for n in (10, 20)], [1.732862, 2.354362], rtol=1e-6)
    for hypotheses in ours(models("llama")[1], prompts_for("llama"), beams, STOPS):
        scores = [h.score for h in hypotheses]
        assert scores == sorted(scores, reverse=True)
        expected = [h.logprob / ((5 + len(h.ids)) / 6) ** 0.6 for h in hypotheses]
        np.testing.assert_allclose(scores, expected, rtol=1e-4)


# -- diverse beams -----------------------------------------------------------------------------------------------------


def slowly(theirs, prompt, beams, stops, new):
    """Diverse beam search with lists: groups choose in turn, each losing lambda for each earlier choice of a token."""
    size = beams.count // beams.groups
    running = [[((), 0.0, 0.0)] for _ in range(beams.groups)]
    done = [[] for _ in range(beams.groups)]
    open_ = [True] * beams.groups
    for length in range(1, new + 1):
        taken = np.zeros(VOCAB)
        for g in range(beams.groups):
            candidates = []
            for ids, total, plain in running[g]:
                scores = next_logprobs(theirs, tuple(prompt.tokens), ids)
                for v, (s, n) in enumerate(zip(scores, taken)):
                    candidates.append((total + s - beams.diversity_penalty * n, plain + s, (*ids, v)))
            candidates.sort(key=lambda c: -c[0])
            candidates = candidates[: max(2, 1 + len(stops)) * size]
            ends = [c[2][-1] in stops or length == new for c in candidates]
            if open_[g]:
                new_ones = [(t / length**beams.length_penalty, p, ids) for (t, p, ids), e in zip(candidates[:size], ends) if e]
                done[g] = sorted(done[g] + new_ones, key=lambda c: -c[0])[:size]
            running[g] = [(ids, t, p) for (t, p, ids), e in zip(candidates, ends) if not e][:size]
            if open_[g]:
                for ids, _, _ in running[g]:
                    taken[ids[-1]] += 1
            hope = max((t for _, t, _ in running[g]), default=-1e9) / length**beams.length_penalty
            open_[g] &= len(done[g]) < size or hope > done[g][-1][0]
        if not any(open_):
            break
    return sorted(itertools.chain(*done), key=lambda c: -c[0])[: beams.returned]


def next_logprobs(theirs, prompt, ids):
    with torch.no_grad():
        return theirs(torch.tensor([[*map(int, prompt), *ids]])).logits[0, -1].double().log_softmax(-1).tolist()


@pytest.mark.parametrize(("groups", "penalty"), [(2, 0.7), (4, 1.5), (2, 0.0)])
def test_groups_are_those_of_a_slow_loop(groups, penalty, models):
    theirs, loaded = models("gpt2")
    beams = Beams(count=4, groups=groups, diversity_penalty=penalty, returned=4)
    prompts = prompts_for("gpt2", (5, 2))
    firsts = set()
    for prompt, mine in zip(prompts, ours(loaded, prompts, beams, STOPS[:2], new=6), strict=True):
        expected = slowly(theirs, prompt, beams, STOPS[:2], 6)
        assert [tuple(h.ids.tolist()) for h in mine] == [ids for _, _, ids in expected]
        np.testing.assert_allclose([h.score for h in mine], [s for s, _, _ in expected], rtol=1e-4)
        np.testing.assert_allclose([h.logprob for h in mine], [p for _, p, _ in expected], rtol=1e-3)
        firsts.add(len({h.ids[0] for h in mine}))
    if penalty > 1:
        assert max(firsts) > 1


# -- beam sampling -----------------------------------------------------------------------------------------------------


def test_sampled_beams(models):
    """A single step of two beams draws two tokens without replacement, the better first: chi-square over pairs' sets."""
    from scipy.stats import chisquare

    theirs, loaded = models("llama")
    prompt = prompts_for("llama", (4,))[0]
    beams, draws = Beams(count=2, returned=2), 2000
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(np.arange(draws))
    sampling = Sampling(temperature=1.5, top_k=5)
    found = ours(loaded, [prompt] * draws, beams, (), new=1, sampling=sampling, keys_P=keys)
    scores = np.array(next_logprobs(theirs, tuple(prompt.tokens), ())) / 1.5
    kept = np.argsort(-scores)[:5]
    law = np.exp(scores[kept]) / np.exp(scores[kept]).sum()
    pairs = {(a, b): law[a] * law[b] * (1 / (1 - law[a]) + 1 / (1 - law[b])) for a in range(5) for b in range(a + 1, 5)}
    # Four are drawn for two beams, without replacement: the two best of the four; the chance that a pair is the best two.
    best = dict.fromkeys(pairs, 0.0)
    for order in itertools.permutations(range(5), 4):
        p, left = 1.0, 1.0
        for i in order:
            p, left = p * law[i] / left, left - law[i]
        best[tuple(sorted(order)[:2])] += p
    rank = {token: i for i, token in enumerate(kept)}
    counts = dict.fromkeys(best, 0)
    for pair in found:
        assert pair[0].score >= pair[1].score
        counts[tuple(rank[h.ids[0]] for h in pair)] += 1
    seen = [k for k in best if best[k] > 1e-9]
    assert sum(counts[k] for k in seen) == draws
    assert chisquare([counts[k] for k in seen], [draws * best[k] for k in seen]).pvalue > 1e-3


def test_the_strategy_draws_by_its_options_with_a_key_a_prompt(monkeypatch):
    seen = {}

    def search(steps, prepared, prompts, **options):
        seen.update(options)
        return [[], []]

    monkeypatch.setattr("lm.decode.search.beam.beam_search", search)
    monkeypatch.setattr("lm.decode.prefill.batch_prompts", list)
    writer = SimpleNamespace(steps=None, stops=(), prepared=lambda rows: rows)
    keys = jax.random.split(jax.random.key(0), 6)
    BeamSampling(num_beams=3, temperature=0.5, top_k=7).write(writer, Request(new=4, samples=3), ["a", "b"], keys, None)
    assert seen["sampling"] == Sampling(temperature=0.5, top_k=7)
    assert (seen["keys_P"] == keys[np.array([0, 3])]).all()  # those of each prompt's first sample
    seen.clear()
    BeamSearch(num_beams=3).write(writer, Request(new=4, samples=3), ["a", "b"], keys, None)
    assert not {"sampling", "keys_P"} & set(seen)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"count": 4, "groups": 3}, "do not divide"), ({"returned": 5}, "raise count"), ({"coverage_penalty": -1}, "at least 0"),
     ({"diversity_penalty": 1.0}, "groups"), ({"early_stopping": "always"}, "never"), ({"count": 0}, "at least 1"),
     ({"penalty": "gnm"}, "did you mean 'gnmt'")],
)  # fmt: skip
def test_mistakes_are_told(wrong, words):
    with pytest.raises(UserError, match=words):
        Beams(**wrong)
