"""BART's objective: rows from records, what may see what, and the published network's logits and loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.corpus.store import Tokens
from lm.data.rows.packing import lay, window
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.objectives.denoise import Denoise
from lm.objectives.rows import read
from lm.sharding import unbox
from tests.models.reference import tiny
from tests.objectives.pairs import BEGIN, END, MASK, SEPARATOR, TOKENIZER, draw, from_bart, split, twice


def denoise(**changes) -> Denoise:
    return Denoise(**{"model": twice(), **changes}).resolve(TOKENIZER)


def stream(sizes, seed=0) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens.of([rng.integers(0, BEGIN, size) for size in sizes], SEPARATOR, 29)


def rows(objective: Denoise, sizes=(3, 40, 1, 11, 2, 60, 5, 30), count: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of packed rows."""
    opened = objective.records.open(stream(sizes, seed))
    rng = np.random.default_rng(seed)
    made = [objective.corrupt(rng, opened.record(rng, opened.at(i, 0))) for i in range(count)]
    return {name: np.stack([row[name] for row in made]) for name in made[0]}


# -- rows --------------------------------------------------------------------------------------------------------------


def test_row_by_hand():
    """Two documents without noise: each from <s> to </s>, and before the decoder the </s> in front."""
    objective = denoise(share=0.0, permute=0.0)
    record = window(Tokens.of([np.array([1, 3, 5]), np.array([7])], SEPARATOR, 29), 0, 6)
    row = objective.corrupt(np.random.default_rng(0), record)
    text = [BEGIN, 1, 3, 5, END, BEGIN, 7, END]
    for name, expected in {
        "source": text,
        "targets": text,
        "tokens": [END, BEGIN, 1, 3, 5, END, BEGIN, 7],
        "segments": [1, 1, 1, 1, 1, 2, 2, 2],
        "source_segments": [1, 1, 1, 1, 1, 2, 2, 2],
        "positions": [0, 1, 2, 3, 4, 0, 1, 2],
        "source_positions": [0, 1, 2, 3, 4, 0, 1, 2],
        "weights": [1.0] * 8,
    }.items():
        np.testing.assert_array_equal(row[name], expected + [0] * 16)
        assert row[name].dtype == (np.float32 if name == "weights" else np.int32)


@pytest.mark.parametrize("changes", [{}, {"random": 0.5, "insert": 0.3, "rotate": 1.0}, {"units": "tokens", "replace": "none"}])
def test_targets_are_the_text_and_sources_fit(changes):
    """Whatever the noise: targets hold the documents in order, the decoder reads them shifted, nothing else moves."""
    objective, tokens = denoise(**changes), stream((3, 40, 1, 11, 2, 60, 5, 30))
    opened, rng = objective.records.open(tokens), np.random.default_rng(1)
    for at in range(opened.count):
        record = opened.record(rng, opened.at(at, 0))
        kept = {name: np.array(value) for name, value in record.items()}
        row = objective.corrupt(rng, record)
        for name, value in kept.items():
            np.testing.assert_array_equal(record[name], value)
        words = row["targets"][(row["targets"] < BEGIN) & (row["segments"] > 0)]
        expected = record["tokens"][record["tokens"] != SEPARATOR]
        np.testing.assert_array_equal(words, expected[: len(words)])
        assert len(words) >= len(expected) - 2 * len(np.unique(record["segments"]))
        for number in range(1, row["segments"].max() + 1):
            target, read = (row[name][row["segments"] == number] for name in ("targets", "tokens"))
            np.testing.assert_array_equal(read, [target[-1], *target[:-1]])
            assert (target[0], target[-1]) == (BEGIN, END)
            source = row["source"][row["source_segments"] == number]
            assert not len(source) or source[0] == BEGIN


def test_masked_share_over_a_million_tokens():
    """Of the words of one-word-a-token text 30 % are in spans; those that meet hide fewer: between 22 and 30 % are gone.

    The source is shorter by what is gone less one mask a span and one an insertion.
    """
    shape = tiny(context=512)
    objective = denoise(model=EncoderDecoder(encoder=shape, decoder=shape), permute=0.0)
    rng, gone, masks, total = np.random.default_rng(2), 0, 0, 0
    for _ in range(2000):
        text = 2 * rng.integers(0, 12, 510, dtype=np.int32) + 1
        row = objective.corrupt(rng, {"tokens": text, "segments": np.ones(510, np.int32)})
        size = np.count_nonzero(row["source_segments"])
        here = np.count_nonzero(row["source"][:size] == MASK)
        gone, masks, total = gone + 510 - (size - 2 - here), masks + here, total + 510
    assert total > 10**6
    assert 0.22 < gone / total < 0.30
    # 153 words in spans of mean 3 (drawn zeros included) are 51 draws and a trimmed last one, before some merge.
    assert 40 < masks / 2000 < 52.5


def test_documents_with_nothing_in_them():
    """Padding alone, separators alone, one token: rows that hold what there is."""
    objective = denoise()
    rng = np.random.default_rng(0)
    for tokens, segments in (
        ([0] * 22, [0] * 22),
        ([SEPARATOR] * 22, list(range(1, 23))),
        ([SEPARATOR, 1] + [0] * 20, [1, 1] + [0] * 20),
        ([1, SEPARATOR] * 11, list(np.arange(22) // 2 + 1)),
    ):
        row = objective.corrupt(rng, {"tokens": np.array(tokens, np.int32), "segments": np.array(segments, np.int32)})
        words = row["targets"][row["segments"] > 0]
        assert np.isin(words, (1, SEPARATOR, BEGIN, END)).all()
        assert np.count_nonzero(words == BEGIN) == row["segments"].max()
        assert row["weights"].sum() == len(words)


def test_a_wrong_configuration_is_told():
    for changes, words in (
        ({"share": 1.5}, "share=1.5"),
        ({"units": "span"}, "units"),
        ({"poisson": 0.0}, "poisson=0.0"),
    ):
        with pytest.raises(UserError, match=words):
            Denoise(model=twice(), **changes)
    with pytest.raises(UserError, match="CLS"):
        Denoise(model=twice(vocab=0)).resolve(Bytes().build(list))


def test_what_a_person_sees():
    objective = Denoise(model=twice(vocab=0), permute=0.0, share=0.0)
    tokenizer = Bytes().build(list).with_special(objective.special)
    objective = objective.resolve(tokenizer)
    row = objective.corrupt(np.random.default_rng(0), window(Tokens.of([tokenizer.encode("a word.")], 256, 300), 0, 8))
    assert objective.show(tokenizer, row) == "spoiled  '[CLS]a word.[SEP]'\ntext     '[CLS]a word.[SEP]'"
    assert "guess    '[CLS]a word.[SEP]'" in objective.show(tokenizer, row, {"guess": row["targets"]})


# -- the network -------------------------------------------------------------------------------------------------------


def test_who_sees_whom():
    """d states[t] / d vectors[s] is exactly 0 past t in the decoder and outside the own document everywhere; inside, not."""
    objective = denoise()
    params, batch = draw(objective.model), rows(objective, count=1, sizes=(5, 4, 3, 6, 5))
    pair, row = Seq2Seq(objective.model), {k: jnp.asarray(v) for k, v in batch.items()}

    def run(source_vectors, target_vectors):
        bound = pair.bind({"params": params})
        source_BSD = bound.encode_states(source_vectors, row["source_positions"], row["source_segments"])
        object.__setattr__(bound, "vectors", lambda tokens: target_vectors)
        place = row["tokens"], row["positions"], row["segments"]
        h_BTD = bound.decode(*place, source_BSD=source_BSD, source_segments_BS=row["source_segments"])
        return source_BSD[0], h_BTD[0]

    vectors = [pair.apply({"params": params}, row[name], method="vectors") for name in ("source", "tokens")]
    encoder, decoder = jax.jit(jax.jacrev(run, (0, 1)))(*vectors)
    own = batch["source_segments"][0], batch["segments"][0]
    inside = [(a[:, None] == b[None]) & (a[:, None] > 0) for a, b in ((own[0], own[0]), (own[1], own[0]), (own[1], own[1]))]
    inside[2] &= np.tril(np.ones((24, 24), bool))
    assert len(np.unique(own[1])) > 2
    for gradient, seen, queries in zip((encoder[0], decoder[0], decoder[1]), inside, (own[0], own[1], own[1])):
        size = np.abs(np.asarray(gradient)[:, :, 0]).max((1, 3))
        real = queries > 0
        assert (size[real][~seen[real]] == 0).all()
        assert (size[seen] > 0).all()


def test_packed_loss_and_gradient_are_those_of_separate_rows():
    objective = denoise()
    params, packed = draw(objective.model), rows(objective, count=1, sizes=(5, 4, 3, 6, 5))
    apart = split(packed)
    assert len(apart["tokens"]) > 2
    empty = {name: np.zeros_like(value[1:]) for name, value in apart.items()}  # one compilation for both
    packed = {name: np.concatenate([value, empty[name]]) for name, value in packed.items()}
    run = jax.jit(jax.value_and_grad(lambda p, b: objective.loss(p, b, None, None)[0]["loss"][0]))
    found = [run(params, batch) for batch in (packed, apart)]
    assert float(found[0][0]) == pytest.approx(float(found[1][0]), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found[0][1], found[1][1])


def test_parity_with_bart():
    """Logits and loss of Hugging Face's network with random weights, padding on the source's side."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.BartConfig(
        vocab_size=29, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=20, decoder_ffn_dim=20, max_position_embeddings=24, dropout=0.0,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.BartForConditionalGeneration(config).eval()
    for weights in theirs.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    ours = from_bart({k: v.detach().numpy() for k, v in theirs.state_dict().items()}, heads=3)
    rng = np.random.default_rng(0)
    targets = [np.array([0, *rng.integers(3, 29, size), 2]) for size in (9, 9)]
    sources = [np.array([0, *rng.integers(3, 29, size), 2]) for size in (5, 8)]
    batch = {}
    for names, parts in (
        (("source", "source_segments", "source_positions"), sources),
        (("targets", "segments", "positions"), targets),
    ):
        laid = [lay([part], 12) for part in parts]
        batch |= {name: np.stack([row[i] for row in laid]) for i, name in enumerate(names)}
    batch["tokens"] = np.stack([lay([np.array([part[-1], *part[:-1]])], 12)[0] for part in targets])
    batch["weights"] = (batch["segments"] > 0).astype(np.float32)
    objective = denoise()
    logits, sums = jax.jit(lambda p, b: (scores(objective.model, p, b), objective.loss(p, b, None, None)[0]))(ours, batch)
    labels = torch.tensor(np.where(batch["segments"] > 0, batch["targets"], -100))
    with torch.no_grad():
        seen = torch.tensor(batch["source_segments"])
        result = theirs(input_ids=torch.tensor(batch["source"]), attention_mask=seen, labels=labels.long())
    np.testing.assert_allclose(logits[:, :11], result.logits[:, :11], atol=1e-4)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(float(result.loss), abs=1e-4)


def scores(model, params, batch):
    h_BTD, head = read(model, params, batch)
    return head.logits(h_BTD)


def test_parameters_of_the_published_networks():
    """Appendix B of the specification."""
    from lm.models.flops import parameter_count
    from lm.models.presets import BART_BASE, BART_LARGE

    start = np.zeros((1, 4), np.int32)
    for config, count in ((BART_BASE, 139_420_416), (BART_LARGE, 406_291_456)):
        shapes = unbox(jax.eval_shape(Seq2Seq(config).init, jax.random.key(0), start, start))
        assert parameter_count(shapes) == count
