"""Fine-tuned folders of the reference library in and out: the same scores, the same bytes back, nothing passed over."""

import dataclasses
import itertools
import json
import re

import jax
import numpy as np
import pytest

from lm.config import Config, Data
from lm.convert.compare import compare
from lm.convert.convert import flat, load, save
from lm.convert.folder import Folder
from lm.convert.runs import as_config, export_run, import_run
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.two_stream import XLNet
from lm.objectives.choice import Choose
from lm.objectives.classify import Classify
from lm.objectives.extract import Extract
from lm.objectives.finetune import network
from lm.objectives.finetune.network import Head, Rows
from lm.objectives.tag import Tag
from lm.sharding import AXES, make_mesh, unbox
from lm.start.adopt import adopt
from lm.start.published import start_from
from lm.training.state import TrainState
from tests.convert.test_families import ALBERT, BART, BERT, DISTIL, LLAMA, T5, XLNET
from tests.marks import quick
from tests.objectives.labelled import model as small

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHORT = {"num_hidden_layers": 2}
GPT = {"vocab_size": 53, "n_embd": 20, "n_layer": 2, "n_head": 5, "n_positions": 20}
CAUSAL = {**LLAMA, **SHORT, "num_key_value_heads": 2}
GEMMA = {**CAUSAL, "head_dim": 10, "sliding_window": 4, "query_pre_attn_scalar": 14}
FAMILIES = {
    "Bert": {**BERT, **SHORT, "classifier_dropout": 0.25},
    "Ernie": {**BERT, **SHORT, "type_vocab_size": 4},
    "Roberta": {**BERT, **SHORT, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1},
    "Albert": {**ALBERT, **SHORT},
    "DistilBert": {**DISTIL, "n_layers": 2},
    "Electra": {**ALBERT, **SHORT},
    "XLNet": {**XLNET, "n_layer": 2, "pad_token_id": 5},
    "GPT2": GPT,
    "OpenAIGPT": GPT,
    "Llama": CAUSAL,
    "Mistral": {**CAUSAL, "sliding_window": 5},
    "Qwen2": {k: v for k, v in CAUSAL.items() if k != "head_dim"},
    "Qwen3": CAUSAL,
    "Gemma": CAUSAL,
    "Gemma2": GEMMA,
    "Gemma3Text": GEMMA,
    "Bart": {**BART, "encoder_layers": 1, "decoder_layers": 2},
    "MBart": {**BART, "encoder_layers": 1, "decoder_layers": 2, "scale_embedding": True, "decoder_start_token_id": 2},
    "T5": {**T5, "num_decoder_layers": 2, "feed_forward_proj": "relu"},
    "MT5": {**T5, "num_decoder_layers": 2, "feed_forward_proj": "gated-gelu"},
}
SEQUENCE, TOKEN, ANSWER, CHOICE = "SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"
SIMPLE = "QuestionAnsweringSimple"
ENCODERS, DECODERS = list(FAMILIES)[:6], list(FAMILIES)[7:16]
CASES = [
    *[(name, task) for name in ENCODERS for task in (SEQUENCE, TOKEN, ANSWER, CHOICE)],
    *[("XLNet", task) for task in (SEQUENCE, TOKEN, SIMPLE)],
    *[(name, SEQUENCE) for name in DECODERS],
    *[(name, TOKEN) for name in DECODERS if name not in ("OpenAIGPT", "Gemma3Text")],
    *[(name, ANSWER) for name in ("GPT2", "Llama", "Mistral", "Qwen2", "Qwen3")],
    *[(name, task) for name in ("Bart", "MBart", "T5", "MT5") for task in (SEQUENCE, ANSWER)],
]
# One of each way that names, layers and their order differ; the others repeat them.
QUICK = {
    *[(name, task) for name in ("Bert", "Roberta") for task in (SEQUENCE, TOKEN, ANSWER, CHOICE)],
    *[(name, SEQUENCE) for name in set(FAMILIES) - {"Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma3Text", "MT5", "MBart"}],
    ("Albert", CHOICE), ("Electra", CHOICE), ("DistilBert", TOKEN), ("DistilBert", ANSWER), ("XLNet", TOKEN), ("XLNet", SIMPLE),
    ("GPT2", TOKEN), ("Llama", TOKEN), ("Llama", ANSWER), ("Mistral", ANSWER), ("Bart", ANSWER), ("T5", ANSWER),
}  # fmt: skip
OBJECTIVES = {SEQUENCE: Classify, TOKEN: Tag, ANSWER: Extract, SIMPLE: Extract, CHOICE: Choose}
STYLES = {"Roberta": "roberta", "Bart": "roberta", "MBart": "roberta", "T5": "t5", "MT5": "t5", "XLNet": "xlnet"}
NAMES = {"bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "roberta": ("<s>", "<pad>", "</s>", "<unk>"),
         "t5": ("<pad>", "</s>", "<unk>"), "xlnet": ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>"),
         "decoder": ("<|endoftext|>", "<unk>")}  # fmt: skip


def tokenizer(style="bert"):
    """WordPiece of few words with a style's special tokens."""
    from tokenizers import AddedToken, models, pre_tokenizers
    from tokenizers import Tokenizer as Core

    unknown = next(name for name in NAMES[style] if "unk" in name.lower())
    vocabulary = {name: i for i, name in enumerate((*NAMES[style], *"abcdefgh"))}
    core = Core(models.WordPiece(vocabulary, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens([AddedToken(name, special=True) for name in NAMES[style]])
    return Tokenizer(core)


def tokenizer_for(name):
    return tokenizer(STYLES.get(name, "decoder" if name in DECODERS else "bert"))


def make(name, task, folder, **fields):
    """A reference model with random weights in a folder."""
    cls = getattr(transformers, f"{name}For{task}")
    more = {"num_labels": 5} if task in (SEQUENCE, TOKEN) and not {"id2label", "num_labels"} & set(fields) else {}
    more |= {"pad_token_id": 0} if name in DECODERS else {}
    model = cls(cls.config_class(**{**FAMILIES[name], **more, **fields})).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


LENGTHS = (11, 7)


def texts(config, count=2):
    """Token ids and types of sequences; those of encoder-decoders end as their config says."""
    rng, kinds = np.random.default_rng(1), getattr(config, "type_vocab_size", 3 if config.model_type == "xlnet" else 1)
    rows = [rng.integers(6, 50, LENGTHS[i % 2]) for i in range(count)]
    for row in rows:
        row[-1] = config.eos_token_id if config.is_encoder_decoder else row[-1]
    return rows, [np.arange(len(row)) * kinds // len(row) for row in rows]


def theirs_of(model, rows, types):
    """What the reference computes for each sequence, padded: scores of sequences, or of their tokens."""
    longest, left = max(map(len, rows)), model.config.model_type == "xlnet"
    pads = [((longest - len(row), 0) if left else (0, longest - len(row))) for row in rows]
    ids = np.stack([np.pad(row, pad, constant_values=model.config.pad_token_id or 0) for row, pad in zip(rows, pads)])
    real = np.stack([np.pad(np.ones(len(row), int), pad) for row, pad in zip(rows, pads)])
    more = {"token_type_ids": np.stack([np.pad(row, pad) for row, pad in zip(types, pads)])} if max(map(max, types)) else {}
    given = {"input_ids": ids, "attention_mask": real, **more}
    given = {key: torch.tensor(x) for key, x in given.items()}
    if "MultipleChoice" in type(model).__name__:
        given = {key: x[None] for key, x in given.items()}
    with torch.no_grad():
        found = model(**given)
    scores = torch.stack([found.start_logits, found.end_logits], -1) if "start_logits" in found else found.logits
    scores = scores.numpy()
    return [one[real[i] > 0] for i, one in enumerate(scores)] if scores.ndim == 3 else scores


def ours_of(loaded, rows, types):
    """The same of ours, the sequences side by side in one row with two places more; XLNet's in a row each."""
    objective, model = loaded.objective, loaded.objective.model
    groups = [[i] for i in range(len(rows))] if isinstance(model, XLNet) else [list(range(len(rows)))]
    found = []
    for group in groups:
        size = sum(len(rows[i]) for i in group) + 2
        laid = [network.Laid(rows[i].astype(np.int32), types[i].astype(np.int32), (0,)) for i in group]
        frame = objective.frame
        if isinstance(model, EncoderDecoder):
            object.__setattr__(frame, "tokenizer", tokenizer(frame.style))
        row, begins = network.lay_row(laid, model, frame, size)
        if isinstance(objective, Classify | Choose):
            places = begins[1:] - 1 if objective.pool == "last" else begins[:-1]
            row["places"] = places.astype(np.int32)
        elif isinstance(objective, Tag):
            row["places"] = np.arange(size, dtype=np.int32)
        if isinstance(objective, Choose):
            row["places"], row["offered"] = row["places"][None], np.ones((1, len(group)), bool)
        batch = {key: x[None] for key, x in row.items()}
        scores = np.asarray(jax.jit(objective.logits)(loaded.params, batch))[0]
        if isinstance(objective, Tag | Extract):
            found += [scores[low:high] for low, high in itertools.pairwise(begins)]
        else:
            found += list(scores)
    return found


def same(ours, theirs):
    assert len(ours) == len(theirs)
    assert max(np.abs(one).max() for one in theirs) > 0.01  # there is something to compare
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(("name", "task"), quick(CASES, QUICK))
def test_there_and_back(name, task, tmp_path):
    """The reference's scores of padded pairs; and a folder that it loads, without a name too many, bit for bit."""
    model = make(name, task, tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    assert type(loaded.objective) is OBJECTIVES[task]
    assert loaded.drawn == ()
    assert loaded.left == (("transformer.mask_emb",) if name == "XLNet" else ())
    rows, types = texts(model.config, 3 if task == CHOICE else 2)
    expected = theirs_of(model, rows, types)
    same(ours_of(loaded, rows, types), expected)

    left = save(loaded.objective, loaded.params, tokenizer_for(name), tmp_path / "ours", "", loaded.kind)
    assert left == set()
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    assert again.config.architectures == [type(model).__name__]
    same(theirs_of(again.eval(), rows, types), expected)
    first, second = Folder(tmp_path / "theirs"), Folder(tmp_path / "ours")
    tied = re.compile(r"mask_emb|embed_tokens\.weight$") if name in ("XLNet", "Bart", "MBart", "T5", "MT5") else None
    for key in set(first) | set(second):
        if not (tied and tied.search(key)):
            np.testing.assert_array_equal(first[key], second[key])
    back = load(tmp_path / "ours")
    assert back.objective == loaded.objective
    for one, other in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(back.params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("fields", "kind", "labels"), [
    ({"num_labels": 1}, "number", ()),
    ({"num_labels": 3, "problem_type": "multi_label_classification"}, "several", ("LABEL_0", "LABEL_1", "LABEL_2")),
    ({"id2label": {0: "no", 1: "yes"}}, "one", ("no", "yes")),
    ({"num_labels": 3, "problem_type": "single_label_classification"}, "one", ("LABEL_0", "LABEL_1", "LABEL_2")),
])  # fmt: skip
def test_what_kind_of_label(fields, kind, labels, tmp_path):
    model = make("Bert", SEQUENCE, tmp_path / "theirs", **fields)
    loaded = load(tmp_path / "theirs")
    assert (loaded.objective.kind, loaded.objective.labels) == (kind, labels)
    assert loaded.objective.head == Head(inner="pooler", pool="first", dropout=0.25)
    save(loaded.objective, loaded.params, tokenizer(), tmp_path / "ours", "")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert config.id2label == model.config.id2label
    assert config.label2id == {name: i for i, name in config.id2label.items()}
    assert config.problem_type == {"number": "regression", "several": "multi_label_classification"}.get(
        kind, "single_label_classification"
    )
    assert config.classifier_dropout == 0.25


def test_classes_are_counted_not_believed(tmp_path):
    """As rxnfp's file has it: 5 rows of scores, two names; and names of which two are the same."""
    make("Roberta", SEQUENCE, tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "num_labels": 3, "id2label": {"0": "no", "1": "yes"}}))
    loaded = load(tmp_path)
    assert loaded.objective.labels == ("no", "yes", "LABEL_2", "LABEL_3", "LABEL_4")
    assert loaded.params["classifier"]["out"]["kernel"].shape == (24, 5)
    path.write_text(json.dumps({**fields, "id2label": {str(i): "same" for i in range(5)}}))
    assert load(tmp_path).objective.labels == tuple(f"LABEL_{i}" for i in range(5))
    path.write_text(json.dumps({**fields, "problem_type": "regression"}))
    with pytest.raises(UserError, match="regression of 5 numbers"):
        load(tmp_path)


@pytest.mark.parametrize(("name", "task"), [("XLNet", CHOICE), ("XLNet", ANSWER), ("T5", TOKEN)])
def test_heads_without_a_counterpart_are_named(name, task, tmp_path):
    make(name, task, tmp_path)
    with pytest.raises(UserError, match=rf"no counterpart here for the head of {name}For{task}; known of its family: {name}"):
        load(tmp_path)


def test_summaries_of_other_kinds_are_refused(tmp_path):
    make("XLNet", SEQUENCE, tmp_path, summary_type="mean")
    with pytest.raises(UserError, match="summary_type='mean' has no counterpart"):
        load(tmp_path)


def drawn(objective):
    return jax.jit(lambda key: unbox(objective.init(key, {})))(jax.random.key(1))


def started(path, objective):
    """What a run of an objective begins with at a folder; and the lines."""
    mesh = make_mesh(dict.fromkeys(AXES, 1), jax.devices()[:1])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = drawn(objective)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params)
    make_state = lambda tree: TrainState(np.zeros((), np.int32), tree, None, None, None, None)  # noqa: E731
    state, lines = start_from(str(path), objective, make_state(params), make_state(abstract))
    return flat(params), flat(state.params), " | ".join(lines)


def ready(kind, folder, style="bert", **fields):
    """An objective on a folder's network."""
    objective = kind(model=load(folder).objective.model, **fields)
    return dataclasses.replace(objective, frame=network.frame(objective.model, objective.rows, tokenizer(style)))


def test_a_start_at_a_bare_encoder_says_that_the_head_is_drawn(tmp_path):
    make("Bert", SEQUENCE, tmp_path / "whole").bert.save_pretrained(tmp_path / "bare")
    fresh, found, said = started(tmp_path / "bare", ready(Classify, tmp_path / "bare", labels=("a", "b")))
    new = {name for name in found if np.array_equal(found[name], fresh[name])}
    assert {"classifier/kernel", "classifier/bias"} == new  # a pooler is in the file
    assert "drawn anew: classifier/bias, classifier/kernel" in said


def test_a_start_at_an_electra_takes_its_discriminator(tmp_path):
    cls = transformers.ElectraForPreTraining
    cls(cls.config_class(**FAMILIES["Electra"])).save_pretrained(tmp_path)
    tokenizer().save(tmp_path / "tokenizer.json")
    model = small(vocab=0, context=20)
    config = Config(objective=Classify(model=model, labels=("a", "b")), data=Data(), start=str(tmp_path))
    config, lines = adopt(config)
    assert (config.objective.head.inner, config.objective.head.activation) == ("dense", "gelu")
    assert "the head (dense, gelu)" in lines[0]
    assert adopt(config) == (config, [])
    fresh, found, said = started(tmp_path, config.objective.resolve(tokenizer()))
    drawn = {name for name in found if np.array_equal(found[name], fresh[name]) and np.ptp(found[name])}
    assert drawn == {"classifier/dense/kernel", "classifier/out/kernel"}
    assert "discriminator_predictions.dense.weight" in said  # left out


def test_a_start_at_other_labels(tmp_path):
    """The same labels come in our order; others leave the last layer as drawn; another task's head is left out."""
    make("Bert", SEQUENCE, tmp_path, id2label={0: "no", 1: "yes", 2: "maybe"})
    theirs = flat(load(tmp_path).params)["classifier/kernel"]
    _, found, said = started(tmp_path, ready(Classify, tmp_path, labels=("maybe", "no", "yes")))
    np.testing.assert_array_equal(found["classifier/kernel"], theirs[:, [2, 0, 1]])
    assert "drawn" not in said
    for labels in (("a", "b", "c"), ("no", "yes")):
        fresh, found, said = started(tmp_path, ready(Classify, tmp_path, labels=labels))
        np.testing.assert_array_equal(found["classifier/kernel"], fresh["classifier/kernel"])
        assert not np.array_equal(found["pooler/dense/kernel"], fresh["pooler/dense/kernel"])
        assert "drawn anew: classifier/bias, classifier/kernel" in said
    fresh, found, said = started(tmp_path, ready(Tag, tmp_path, labels=("O", "B-X", "I-X")))
    np.testing.assert_array_equal(found["classifier/kernel"], fresh["classifier/kernel"])
    assert "left out: bert.pooler.dense.bias" in said


def test_a_start_at_a_head_without_a_counterpart_takes_its_network(tmp_path):
    make("XLNet", ANSWER, tmp_path)
    model = load(tmp_path, task=SEQUENCE).objective.model
    objective = Classify(model=model, labels=("a", "b"), rows=Rows(pack=False))
    objective = dataclasses.replace(objective, frame=network.frame(model, objective.rows, tokenizer("xlnet")))
    fresh, found, said = started(tmp_path, objective)
    new = {name for name in found if np.array_equal(found[name], fresh[name])}
    assert new == {f"{layer}/{part}" for layer in ("summary", "classifier") for part in ("kernel", "bias")}
    assert "left out: answer_class.dense_0.bias" in said


def test_the_chain_of_a_crf_is_left_out_and_said(tmp_path):
    objective = Tag(model=small(embed_norm=True, placement="post", activation="gelu", eps=1e-12), labels=("O", "B-X", "I-X"),
                    crf=True)  # fmt: skip
    left = save(objective, drawn(objective), tokenizer(), tmp_path / "hf", "")
    assert left == {"crf/transitions", "crf/start", "crf/end"}
    model, info = transformers.BertForTokenClassification.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert model.config.id2label == {0: "O", 1: "B-X", 2: "I-X"}


def test_a_head_that_no_file_has(tmp_path):
    model = small(embed_norm=True, placement="post", activation="gelu", eps=1e-12)
    objective = Classify(model=model, labels=("a", "b"), head=Head(pool="mean"), rows=Rows()).resolve(tokenizer())
    with pytest.raises(UserError, match=r"nearest: bert, but its head is inner=pooler.*this one is inner=none.*pool=mean"):
        save(objective, drawn(objective), tokenizer(), tmp_path / "hf", "")
    assert not (tmp_path / "hf").exists()


def test_a_folder_becomes_a_run_and_a_folder_again(tmp_path):
    make("DistilBert", SEQUENCE, tmp_path / "theirs", id2label={0: "bad", 1: "good"})
    with pytest.raises(UserError, match="tokenizer"):
        import_run(str(tmp_path / "theirs"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    tokenizer().save(tmp_path / "theirs" / "tokenizer.json")
    lines = import_run(str(tmp_path / "theirs"), tmp_path / "run")
    assert "Classify" in lines[0]
    export_run(tmp_path / "run", tmp_path / "back")
    first, second = Folder(tmp_path / "theirs"), Folder(tmp_path / "back")
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert second.config["architectures"] == ["DistilBertForSequenceClassification"]
    assert as_config(load(tmp_path / "back"), str(tmp_path / "back")).objective.labels == ("bad", "good")


CHECKED = [("Bert", CHOICE), ("Albert", ANSWER), ("Llama", TOKEN), ("GPT2", SEQUENCE), ("XLNet", SEQUENCE), ("Bart", SEQUENCE),
           ("T5", ANSWER)]  # fmt: skip


@pytest.mark.parametrize(("name", "task"), quick(CHECKED, CHECKED[:1] + CHECKED[-1:]))
def test_check_compares_the_scores_too(name, task, tmp_path):
    make(name, task, tmp_path)
    lines = [line for line in compare(str(tmp_path)).splitlines() if re.search(r"\de[-+]\d", line)]
    assert "logits" in lines[-1]
    assert len(lines) == {"XLNet": 1, "Albert": 4, "Llama": 4, "GPT2": 4, "Bert": 4}.get(name, 3)
    for line in lines:
        difference, largest = map(float, re.findall(r"\d\.\d+e[-+]\d+", line))
        assert difference < 1e-4 < largest


def test_a_new_vocabulary_keeps_the_head(tmp_path):
    from lm.convert.vocabulary import convert

    make("Bert", SEQUENCE, tmp_path / "hf", vocab_size=12)
    tokenizer().save(tmp_path / "hf" / "tokenizer.json")
    (tmp_path / "more.txt").write_text("[X]\n[Y]\n")
    rest = {"tokenizer": None, "add_tokens": str(tmp_path / "more.txt"), "initialise": "overlap", "multiple": 1, "seed": 0}
    convert(str(tmp_path / "hf"), None, str(tmp_path / "new"), "latest", **rest)
    before, after = load(tmp_path / "hf"), load(tmp_path / "new")
    assert (before.objective.model.vocab, after.objective.model.vocab) == (12, 14)
    assert after.objective.labels == before.objective.labels
    for name, leaf in flat(after.params).items():
        np.testing.assert_array_equal(leaf[: len(flat(before.params)[name])], flat(before.params)[name])


def test_leftovers_in_a_file_are_said(tmp_path):
    """Older files of tags have a pooler; a reward model may keep its untied logits."""
    from safetensors.numpy import load_file, save_file

    for name, task, left in (("Bert", TOKEN, "bert.pooler.dense.weight"), ("Llama", SEQUENCE, "lm_head.weight")):
        make(name, task, tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        shape = (24, 24) if name == "Bert" else (61, 24)
        save_file({**load_file(file), left: np.ones(shape, np.float32)}, file, metadata={"format": "pt"})
        assert load(tmp_path / name).left == (left,)
    cls = transformers.LlamaForCausalLM
    cls(cls.config_class(**CAUSAL)).save_pretrained(tmp_path / "causal")
    loaded = load(tmp_path / "causal", task=SEQUENCE)
    assert (loaded.left, loaded.drawn) == (("lm_head.weight",), ("classifier/kernel",))
