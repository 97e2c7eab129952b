"""Text to text: what a row holds, the same loss as transformers, packing, prompts, and what a user gets wrong."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.config import load
from lm.convert.convert import load as load_folder
from lm.data.corpus.corpus import Corpus
from lm.data.corpus.prepare import prepare
from lm.data.rows.examples import balanced_fit, pair_lengths
from lm.data.tokenizer.tokenizer import Bytes
from lm.data.types import Example, ExampleSet
from lm.decode.generate import generate
from lm.decode.strategies import GreedySearch
from lm.errors import UserError
from lm.evaluation.replies import replies
from lm.models.presets import twice
from lm.objectives.base import resolve, training_batches
from lm.objectives.denoise import Denoise
from lm.objectives.text2text import Reply, Text2text, fields
from lm.sharding import unbox
from tests.marks import quick
from tests.objectives.labelled import configs, model, prepared, words

PAD, UNK, CLS, SEP = range(4)
ONE, TWO, THREE, FOUR, FIVE, SIX = range(5, 11)
KINDS = ("pair", "decoder", "prefix")


def example(source="one two", target="three four", **more) -> Example:
    return Example({"source": source, "target": target, **more}, "f:1")


def small(paired=True, **changes) -> Text2text:
    shape = model(types=0)
    found = Text2text(**{"model": twice(shape) if paired else shape, "lengths": (12, 8), **changes})
    return found.resolve(words())


def row(objective, *examples):
    return objective.corrupt(np.random.default_rng(0), {"examples": [(one, 0) for one in examples], "room": 4})


def test_an_encoder_reads_the_source_and_a_decoder_writes_the_target():
    found = row(small(), example(), example("five", "six"))
    assert found["source"].tolist() == [CLS, ONE, TWO, SEP, CLS, FIVE, SEP, *[0] * 5]
    assert found["source_segments"].tolist() == [1] * 4 + [2] * 3 + [0] * 5
    assert found["targets"].tolist() == [CLS, THREE, FOUR, SEP, CLS, SIX, SEP, 0]
    assert found["tokens"].tolist() == [SEP, CLS, THREE, FOUR, SEP, CLS, SIX, 0]  # BART: </s> in front
    assert found["weights"].tolist() == [1] * 7 + [0]


def test_a_decoder_is_asked_for_the_target_alone():
    found = row(small(paired=False, bidirectional=True), example(), example("five", "six"))
    end = words().separator
    assert found["tokens"].tolist()[:9] == [end, ONE, TWO, THREE, FOUR, end, FIVE, SIX, 0]
    assert found["targets"].tolist()[:9] == [ONE, TWO, THREE, FOUR, end, FIVE, SIX, end, 0]
    assert found["weights"].tolist()[:9] == [0, 0, 1, 1, 1, 0, 1, 1, 0]
    assert found["prefix"].tolist()[:9] == [1, 1, 1, 0, 0, 1, 1, 0, 0]
    assert not row(small(paired=False), example())["prefix"].any()
    shown = small(paired=False).show(words(), found).splitlines()
    assert ["one two" in shown[0], "three four" in shown[1], "five" in shown[2], "six" in shown[3]] == [True] * 4


def test_a_denoiser_is_a_start_and_needs_no_token_more():
    """Its table has a row for each of its tokens: one more would not fit it."""
    bytes_ = Bytes().build(lambda: ()).with_special(Denoise(model=twice(model(types=0))).special)
    asked = Text2text(model=twice(model(types=0, vocab=bytes_.vocab)), lengths=(12, 8))
    found = asked.resolve(bytes_.with_special(asked.special))
    assert found.model.decoder.vocab == bytes_.vocab
    assert (found.lead_ids, found.start) == ((bytes_.special_id("[CLS]"),), bytes_.special_id("[SEP]"))
    assert small(start=7).start == 7
    bare = Bytes().build(lambda: ()).with_special(("</s>", "<pad>"))  # T5
    asked = Text2text(model=twice(model(types=0, vocab=0)), lengths=(12, 8))
    found = asked.resolve(bare.with_special(asked.special))
    assert (found.lead_ids, found.start, found.end) == ((), bare.special_id("[PAD]"), bare.special_id("</s>"))


def test_templates_lists_and_cuts():
    chat = small(source="{turns} two", target="{reply}", keep="end", lengths=(5, 8))
    one = Example({"turns": ["one", "six five four three"], "reply": ["one", "two"]}, "f:1")
    assert chat.texts(one) == ("one\nsix five four three two", ["one", "two"])
    assert chat.lay(one)[0].tolist() == [CLS, FOUR, THREE, TWO, SEP]  # the latest turn stays
    assert chat.answer(one).tolist() == [ONE, SEP]  # the first reference is learned
    assert chat.prompt(words(), "six").source.tolist() == [CLS, SIX, TWO, SEP]
    assert dataclasses.replace(chat, keep="start").resolve(words()).lay(one)[0].tolist() == [CLS, ONE, SIX, FIVE, SEP]


@pytest.mark.parametrize(("change", "said"), [
    ({"source": "text"}, "names no value"),
    ({"source": "{text"}, "write braces that are text twice"),
    ({"source": "{0}"}, "write a value's name"),
    ({"lengths": (400, 8)}, "more than the model's context takes: 64 and 64"),
    ({"bidirectional": True}, "for a decoder alone"),
    ({"keep": "middle"}, "start"),
])  # fmt: skip
def test_mistakes_in_a_config_are_named(change, said):
    with pytest.raises(UserError, match=said):
        small(**change)


@pytest.mark.parametrize(("one", "said"), [
    (example(source=" "), "f:1: 'source' is empty; mend or remove the example"),
    (example(target=""), "f:1: 'target' is empty"),
    (example(target=[]), "f:1: 'target' is empty"),
    (example(target=["one", " "]), "f:1: 'target' is empty"),
    (example(target=["one", None]), "f:1: 'target' has None in its list, not a text"),
    (example(source=["one", None]), "f:1: 'source' has None in its list, not a text"),
    (example(source="\u200b"), "f:1: the tokenizer leaves nothing of the source"),
    (example(target="\u200b"), "f:1: the tokenizer leaves nothing of the target"),
    (Example({"source": "one"}, "f:1"), "f:1: no 'target'; it has source"),
])  # fmt: skip
def test_mistakes_in_an_example_are_named(one, said):
    with pytest.raises(UserError, match=said):
        small().lay(one)
    assert fields("{a} and {b}: {a}") == ["a", "b"]


def test_a_template_does_not_hide_that_nothing_is_in_it():
    with pytest.raises(UserError, match=r"^f:1: 'source' is empty; mend"):
        small(source="one {source}").texts(example(source=" "))
    both = small(source="{a} {b}")
    one = Example({"a": "one", "b": "", "target": "two"}, "f:1")
    assert both.texts(one)[0] == "one "  # an instruction without an input
    with pytest.raises(UserError, match="f:1: 'a' and 'b' is empty"):
        both.texts(one._replace(values={**one.values, "a": ""}))


@pytest.mark.parametrize("later", ["held out", "training"])
@pytest.mark.parametrize("long", ["source", "target"])
@pytest.mark.parametrize("paired", [True, False])
def test_rows_hold_texts_that_are_longer_than_the_first_ones(later, long, paired):
    """A side that is chosen by the first 2,000 examples holds `lengths`, and rows stay full."""
    many, few, most = " ".join(["one"] * 30), "two three four", 2000
    plain = example(many, few) if long == "target" else example(few, many)
    odd = Example(dict.fromkeys(("source", "target"), many), "f:9")
    train = [plain] * most + [odd] * (later == "training")
    sides = [ExampleSet("x", side) for side in (train, [plain, odd])]
    found = small(paired, lengths=(32, 24)).study(Corpus(words(), ((1.0, sides[0]),), sides[1], "x", 0, "", None))
    for side in sides:
        assert found.records.open(side).filled > (0.85 if side is sides[0] else 0)


def test_a_row_that_is_too_short_is_named_by_its_own_field():
    found = small(lengths=(12, 8), row=(12, 4))
    with pytest.raises(UserError, match=r"f:1: 4 \+ 5 tokens, more than a row of 12 \+ 4; raise objective.row, leave it"):
        found.records.open(ExampleSet("x", [example(target="one two three")]))


@pytest.mark.parametrize("trunk", KINDS)
def test_packed_or_alone_the_loss_is_the_same(trunk):
    """Several examples of a row see nothing of each other: sums over rows of one each are the same."""
    config, corpus, _ = prepared(f"{configs('tiny_text2text.py')}:trunk={trunk},dropout=0")
    packed, alone = config.objective, dataclasses.replace(config.objective, pack=False, row=())
    alone = alone.resolve(corpus.tokenizer)
    params, found = None, []
    for objective in (packed, alone):
        side = corpus.train[0][1]
        stream = objective.records.open(side)
        assert objective is alone or stream.count < len(side)
        rows = [objective.corrupt(np.random.default_rng(0), stream.record(None, i)) for i in range(stream.count)]
        batch = {name: np.stack([one[name] for one in rows]) for name in rows[0]}
        params = params or unbox(objective.init(jax.random.key(0), batch))
        found.append(jax.device_get(jax.jit(lambda p, b, o=objective: o.loss(p, b, None, None)[0])(params, batch)))
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=2e-5)


@pytest.mark.parametrize("trunk", quick(["pair", "decoder"], ["decoder"]))
def test_the_texts_are_those_of_generate_and_their_cost_is_the_loss(trunk):
    config, corpus, batch = prepared(f"{configs('tiny_text2text.py')}:trunk={trunk},dropout=0")
    objective, side = dataclasses.replace(config.objective, reply=Reply(tokens=6, most=0)), corpus.validation
    objective = objective.resolve(corpus.tokenizer)
    params = unbox(objective.init(jax.random.key(0), batch))
    found = replies(objective, params, side.examples)
    assert [one for one, _ in found] == side.examples
    prompts = [one.get("source") for one in side.examples]
    samples = generate(objective, params, corpus.tokenizer, prompts, max_new_tokens=6, strategy=GreedySearch())
    assert [row["guess"] for _, row in found] == [sample.text.strip() for sample in samples]
    stream = objective.records.open(side)
    rows = [objective.corrupt(np.random.default_rng(0), stream.held_out(None, i)) for i in range(stream.count)]
    sums, _ = objective.loss(params, {name: np.stack([one[name] for one in rows]) for name in rows[0]}, None, None)
    lead = 0.0  # an own vocabulary has no <s>, so all of a target is asked for
    total = -sum(row["reference_logprob"] for _, row in found)
    assert total + lead == pytest.approx(float(sums["loss"][0]), rel=1e-4)
    assert found[0][1]["reference_bytes"] == len(side.examples[0].get("target"))
    objective = dataclasses.replace(objective, reply=Reply(tokens=6, most=2, beams=2)).resolve(corpus.tokenizer)
    some = replies(objective, params, side.examples)
    assert len(some) == 2
    assert [one for one, _ in some] == [one for one in side.examples if one in [x for x, _ in some]]


def test_t5_and_gpt2_have_the_loss_of_transformers(tmp_path):
    """Published folders, their tokens: the mean cross-entropy of the labels that transformers computes."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    their_t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**shape, pad_token_id=PAD, eos_token_id=SEP, decoder_start_token_id=PAD, dropout_rate=0.0)
    ).eval()
    shape = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": SEP}
    their_gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, eos_token_id=SEP)).eval()
    one, ids = example("one two three", "four five"), torch.tensor
    for theirs, paired in ((their_t5, True), (their_gpt, False)):
        folder = tmp_path / type(theirs).__name__
        theirs.save_pretrained(folder)
        words().core.save(str(folder / "tokenizer.json"))
        loaded = load_folder(str(folder))
        objective = Text2text(model=loaded.objective.model, lengths=(12, 8), start=PAD if paired else None).resolve(words())
        objective = dataclasses.replace(objective, lead_ids=() if paired else objective.lead_ids)  # T5 has no <s>
        objective = dataclasses.replace(objective, tokenizer=words())
        found = row(objective, one)
        sums, _ = objective.loss(loaded.params, {name: x[None] for name, x in found.items()}, None, None)
        if paired:
            with torch.no_grad():
                expected = theirs(input_ids=ids([[ONE, TWO, THREE, SEP]]), labels=ids([[FOUR, FIVE, SEP]])).loss
        else:
            end = words().separator
            tokens, labels = [end, ONE, TWO, THREE, FOUR, FIVE, end], [-100] * 4 + [FOUR, FIVE, end]
            with torch.no_grad():
                expected = theirs(input_ids=ids([tokens]), labels=ids([labels])).loss
        assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(float(expected), abs=1e-5)


@given(st.lists(st.tuples(st.integers(1, 16), st.integers(1, 8)), min_size=1, max_size=60), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_rows_of_two_sides_hold_everything_once(sizes, seed):
    table, limits = np.array(sizes), np.array([16, 8])
    rows = balanced_fit(table, np.random.default_rng(seed).permutation(len(table)), limits, open_rows=4)
    assert sorted(k for one in rows for k in one) == list(range(len(sizes)))
    assert all((table[one].sum(0) <= limits).all() for one in rows)


def test_rows_of_two_sides_are_full():
    """Sources and targets of lengths that agree by halves: nine tenths of both sides are real."""
    rng = np.random.default_rng(0)
    source = rng.integers(8, 120, 2000)
    target = np.clip((source * rng.uniform(0.1, 0.4, 2000)).astype(int), 3, 40)
    table = np.stack([source, target], 1)
    sides = pair_lengths(table, (128, 40))
    rows = balanced_fit(table, rng.permutation(len(table)), np.array(sides))
    assert table.sum() / (len(rows) * sum(sides)) >= 0.9


@pytest.mark.parametrize("text", ['{"source": "a", "target": ["b", "c"]}', '{"source": "a", "target": "b"}'])
def test_files_of_pairs_are_read(text, tmp_path):
    lines = [text.replace('"a"', json.dumps(f"a {i}")) for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    config = load(f"configs/text2text_nano.py:text={tmp_path / 'pairs.jsonl'}")
    config, corpus = resolve(config, prepare(config.data))
    batch = training_batches(config, corpus)[0]
    assert batch["weights"].sum() > 0
    assert config.objective.row
