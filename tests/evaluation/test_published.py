"""Text of published folders is scored as their tokenizers encode it: against transformers, and the harness's own backend."""

import dataclasses
import json

import numpy as np
import pytest

from lm.convert.runs import import_run, opened
from lm.errors import UserError
from lm.evaluation.harness import likelihoods, prefix, rolling
from lm.evaluation.perplexity import Perplexity, text_scores
from lm.evaluation.probes import Pairs, sentence_logprobs
from lm.evaluation.subject import Subject

TEXT = "the cat sat on the mat and the dog sat on the cat while a bird sang of mats, cats and dogs\n" * 2
END = "<|endoftext|>"
# A first token of its own as Llama's, none as Qwen's, the last one as OPT's, one that is declared but not written as Phi's.
KINDS = {"first": ("<s>", "</s>", True), "none": (None, END, False), "same": (END, END, True), "declared": ("<s>", END, False)}
TEXTS = ("the cat sat", "a", f"on the mat {END} dogs", "</s>the cat", TEXT)


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """A small random Llama as transformers saves it, with a byte-level tokenizer of the kind."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from tokenizers import processors

    from lm.data.tokenizer.tokenizer import BytePair

    first, last, template = KINDS[request.param]
    path = tmp_path_factory.mktemp(request.param)
    core = BytePair(vocab=290).build(lambda: [TEXT]).core
    core.add_special_tokens(["<s>", "</s>"])  # of all kinds: one compiled program serves them
    if template:
        core.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A $B", special_tokens=[(first, core.token_to_id(first))]
        )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=core, bos_token=first, eos_token=last, pad_token=END)
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=core.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3, bos_token_id=fast.bos_token_id, eos_token_id=fast.eos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def theirs(folder):
    """Their tokenizer, and log p of ids after those before them."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def logprobs(ids):
        with torch.no_grad():
            found = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1).numpy()
        return [None, *found[np.arange(len(ids) - 1), ids[1:]]]

    return transformers.AutoTokenizer.from_pretrained(folder), logprobs


@pytest.fixture(scope="module")
def subject(folder):
    return Subject(*opened(None, str(folder)))


def test_texts_begin_as_the_tokenizer_begins_them(subject, theirs):
    tokenizer, logprobs = theirs
    before = len(tokenizer("").input_ids)
    for text in TEXTS[:-1]:
        ids, found = tokenizer(text).input_ids, text_scores(subject, text)
        assert found["ids"] == ids[before:]
        wanted = logprobs(ids)[before:]
        assert [p is None for p in found["logprobs"]] == [p is None for p in wanted]
        known = [p for p in wanted if p is not None]
        np.testing.assert_allclose([p for p in found["logprobs"] if p is not None], known, atol=2e-5)
        assert found["sum"] == (pytest.approx(sum(known), abs=2e-4) if known else None)


def test_an_imported_run_is_published_too(folder, subject, tmp_path):
    import_run(str(folder), tmp_path)
    run = Subject(*opened(str(tmp_path), None))
    assert text_scores(run, TEXTS[2]) == text_scores(subject, TEXTS[2])
    assert (run.tokenizer.separator, run.tokenizer.around) == (subject.tokenizer.separator, subject.tokenizer.around)
    assert prefix(run.tokenizer) == prefix(subject.tokenizer)


def test_pairs_and_perplexity(subject, theirs, tmp_path):
    tokenizer, logprobs = theirs
    sums = [[p for p in logprobs(tokenizer(text).input_ids) if p is not None] for text in ("the cat sat", "a bird sang")]
    found = sentence_logprobs(subject, ["the cat sat", "a bird sang"])
    np.testing.assert_allclose(found, [[sum(one), len(one)] for one in sums], atol=1e-4)
    line = json.dumps({"first": "the cat sat", "second": "a bird sang"})
    (tmp_path / "pairs.jsonl").write_text(line)
    difference = Pairs(path=str(tmp_path / "pairs.jsonl")).measure(subject)["difference"].value
    assert difference == pytest.approx(sum(sums[0]) - sum(sums[1]), abs=1e-4)
    (tmp_path / "text.txt").write_text("a bird sang")
    nats = Perplexity(path=str(tmp_path / "text.txt")).measure(subject)["nats_per_token"].value
    assert nats == pytest.approx(-np.mean(sums[1]), abs=2e-5)


def rolled(tokenizer, logprobs, text, length=64):
    """The harness's rolling windows (0.4.13) written out: the prefix, then every token of the encoded text once."""
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    own = not text.startswith(tokenizer.decode([prefix]))
    ids, total, done = tokenizer.encode(text, add_special_tokens=own), 0.0, 0
    while done < len(ids):
        end = min(done + length, len(ids))
        window = [prefix, *ids[:end]] if done == 0 else ids[end - length - 1 : end]
        total += float(sum(logprobs(window)[-(end - done) :]))
        done = end
    return total


def test_the_harness(subject, theirs):
    """Rolling texts and continuations, by its rules; by itself in `test_the_harness_itself`."""
    tokenizer, logprobs = theirs
    assert rolling(subject, TEXTS) == pytest.approx([rolled(tokenizer, logprobs, text) for text in TEXTS], abs=5e-4)
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    before, whole = tokenizer.encode("the cat"), tokenizer.encode("the cat sat")
    alone = [prefix, *tokenizer.encode("the cat", add_special_tokens=False)]
    wanted = [sum(logprobs(whole)[len(before) :]), sum(logprobs(alone)[1:])]
    found = likelihoods(subject, [("the cat ", "sat"), ("", "the cat")])
    assert [value for value, _ in found] == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(UserError, match="adds no token"):
        likelihoods(subject, [("the cat", "")])


def test_the_harness_itself(folder, subject):
    HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
    from lm_eval.api.instance import Instance

    model = HFLM(pretrained=str(folder), device="cpu", batch_size=1)
    pairs = [("the cat", " sat on"), ("", "the dog"), ("a bird ", "sang"), (f"cats{END}", " dogs"), (TEXT, " cats")]

    def asked(kind, args):
        return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(args)]

    wanted = model.loglikelihood_rolling(asked("loglikelihood_rolling", [(text,) for text in TEXTS]))
    assert rolling(subject, TEXTS) == pytest.approx(wanted, abs=5e-4)
    wanted = model.loglikelihood(asked("loglikelihood", pairs))
    found = likelihoods(subject, pairs)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_a_run_is_scored_as_it_was_trained(folder):
    """Behind the separator; special tokens in a text are text, unless asked for."""
    config, params, tokenizer = opened(None, str(folder))
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, template=False))
    assert config.objective.lead(tokenizer) == (tokenizer.separator,)
    found = text_scores(Subject(config, params, tokenizer), f"cats{END}")
    assert len(found["ids"]) > 3
    assert all(p is not None for p in found["logprobs"])
    read = text_scores(Subject(config, params, tokenizer.reading_special()), f"cats{END}")
    assert read["ids"][-1] == tokenizer.token_id(END)
