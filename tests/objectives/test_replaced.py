"""ELECTRA: rows by the authors' rules, both losses as transformers has them, parts and packing that change nothing."""

import dataclasses
import functools
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import Config
from lm.data.corpus.store import Tokens
from lm.data.tokenizer.tokenizer import Bytes
from lm.errors import UserError
from lm.models.flops import parameter_count
from lm.models.heads import Head
from lm.models.presets import ELECTRA_BASE, ELECTRA_LARGE, ELECTRA_SMALL
from lm.models.transformer import Transformer
from lm.objectives import replaced
from lm.objectives.replaced import Replaced
from lm.sharding import unbox
from lm.train import gradients
from tests.models.reference import arrays, stacked, stirred

PAD, CLS, SEP, MASK, EDGE, LOW, VOCAB = 0, 1, 2, 3, 4, 5, 500
ENDS = np.zeros(VOCAB, bool)
ENDS[10:135] = True  # every fourth token ends a sentence: none reaches over half a row


def tokenizer(separator=EDGE):
    ids = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    table = SimpleNamespace(ends_sentence=ENDS)
    return SimpleNamespace(vocab=VOCAB, separator=separator, special_id=ids.__getitem__, piece_table=lambda: table)


def objective(context=128, **changes) -> Replaced:
    model = Transformer(
        context=context, width=12, depth=2, heads=3, mlp=48, embed=8, types=2, placement="post", eps=1e-12,
        embed_norm=True, activation="gelu", init_truncate=True, dropout=changes.pop("dropout", 0.0),
    )  # fmt: skip
    return Replaced(model=model, generator_width=0.5, **changes).resolve(tokenizer())


def stream(*sizes, seed=0) -> Tokens:
    rng = np.random.default_rng(seed)
    return Tokens.of([rng.integers(LOW, VOCAB, size) for size in sizes], EDGE, VOCAB)


def rows(found: Replaced, tokens: Tokens, count: int, seed=1) -> dict[str, np.ndarray]:
    rng, opened = np.random.default_rng(seed), found.records.open(tokens)
    examples = [found.corrupt(rng, opened.record(rng, opened.at(i, 0))) for i in range(count)]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@functools.cache
def million():
    """Rows of 128 from a million tokens of long documents."""
    found = objective()
    return found, rows(found, stream(*[50_000] * 20), 8000)


def near(count, share, total, sigmas=5):
    """Within five standard errors of a binomial share."""
    assert abs(count / total - share) < sigmas * (share * (1 - share) / total) ** 0.5, (count / total, share)


def examples_of(batch):
    """Cut each row into its examples: tokens and types."""
    for tokens, types, segments in zip(batch["original"], batch["types"], batch["segments"]):
        for number in range(1, segments.max() + 1):
            yield tokens[segments == number], types[segments == number]


def test_rows_are_examples():
    """[CLS] A [SEP] (B [SEP]), types 0 then 1, positions from 0; nothing is lost of one document's window."""
    found, batch = million()
    for tokens, types in list(examples_of(batch))[:500]:
        assert tokens[0] == CLS
        assert tokens[-1] == SEP
        inner = np.flatnonzero(tokens == SEP)
        assert len(inner) == 1 + types.any()
        np.testing.assert_array_equal(types, np.arange(len(types)) > inner[0])
    begins = batch["positions"] == 0
    assert ((batch["original"] == CLS) == (begins & (batch["segments"] > 0))).all()
    assert (batch["segments"] > 0).mean() > 0.98
    kept = np.isin(batch["original"], [PAD, CLS, SEP], invert=True).sum()
    assert kept > 0.98 * 8000 * found.records.tokens


def test_examples_never_cross_documents():
    """Documents of one id each: every example has one id."""
    found = objective()
    tokens = Tokens.of([np.full(n, 100 + n) for n in range(1, 200)], EDGE, VOCAB)
    batch = rows(found, tokens, 100)
    for ids, _ in examples_of(batch):
        assert len(set(ids[(ids != CLS) & (ids != SEP)])) == 1
    assert not (batch["original"] == EDGE).any()


def test_predictions_are_drawn_with_replacement():
    """n = round(0.15 length), 85 % hidden; a place is drawn again as often as chance has it."""
    _, batch = million()
    one = (batch["segments"].max(1) == 1) & ((batch["segments"] > 0).sum(1) == 128)
    weights, places = batch["weights"][one], batch["places"][one]
    np.testing.assert_array_equal(weights.sum(1), 19)
    assert (np.diff(places, axis=1) >= 0).all()
    original, tokens = batch["original"][one], batch["tokens"][one]
    assert not np.isin(np.take_along_axis(original, places, 1), [PAD, CLS, SEP, MASK]).any()
    np.testing.assert_array_equal(np.take_along_axis(original, places, 1), batch["targets"][one])
    distinct = 1 + (np.diff(places, axis=1) > 0).sum(1)
    total, draws = 125, 19
    share = 1 - (1 - 1 / total) ** draws  # of the tokens that are drawn at all
    assert abs(distinct.mean() / total - share) < 5 * distinct.std() / total / len(distinct) ** 0.5
    hidden = (tokens == MASK).sum()
    # A token stays only if each of its draws leaves it: 1 - (1 - 0.85 / total) ** draws are hidden.
    near(hidden, 1 - (1 - 0.85 / total) ** draws, total * len(tokens))
    assert (original[tokens != MASK] == tokens[tokens != MASK]).all()
    alone = np.array([np.diff(np.flatnonzero(np.append(True, np.diff(row) != 0)), append=19).max() == 1 for row in places])
    once = tokens[alone], places[alone]
    near((np.take_along_axis(*once, 1) == MASK).sum(), 0.85, once[1].size)
    spread = np.bincount(places.ravel(), minlength=128)
    assert spread[0] == spread[127] == 0
    assert spread[1:127].std() / spread[1:127].mean() < 0.15  # uniform but where a row's middle [SEP] lies


def test_segments_follow_the_authors_code():
    """One segment alone for 10 %, a random target length for 5 %; the first segment fills half of the target."""
    found, batch = million()
    sizes = [(len(ids), types.any(), np.count_nonzero(types == 0)) for ids, types in examples_of(batch)]
    whole = [(two, first) for size, two, first in sizes if size >= 125]
    near(sum(not two for two, _ in whole), 0.1, len(whole))
    rng = np.random.default_rng(0)
    goal = (128 - 3) // 2
    crossed = Counter(tuple(found.assign(rng, [goal - 10, 30, 20], 128)) for _ in range(20_000))
    # A sentence that crosses the middle goes to the first segment by a coin; once it has, nothing fits any more.
    near(crossed[False, False, True], 0.9 * 0.5, 20_000)
    near(crossed[False, True, True], 0.9 * 0.5, 20_000)
    near(crossed[False, False, False], 0.1, 20_000)
    # A later sentence that still fits goes to the first segment even behind one that did not; "fits" is strictly below.
    assert {tuple(found.assign(rng, [goal - 10, 90, 9], 128)) for _ in range(200)} >= {(False, True, False)}
    assert (False, True, False) not in {tuple(found.assign(rng, [goal - 10, 90, 10], 128)) for _ in range(200)}
    short = dataclasses.replace(found, short=0.999, single=0.0).resolve(tokenizer())
    lengths = [len(ids) for ids, _ in examples_of(rows(short, stream(*[50_000] * 4), 1000))]
    assert len(lengths) > 1300  # several to a row
    assert len(sizes) < 1.1 * len(batch["tokens"])


def test_sample_is_the_softmax():
    """Gumbel noise draws by the softmax, by each row's own key, whatever the chunk."""
    h = jnp.zeros((2, 8000, 1))
    logits = np.array([0.0, 1.0, -1.0, 2.0], np.float32)
    head = Head(table_VD=jnp.zeros((6, 1)), bias_V=jnp.asarray(np.append(logits, [5, 5]).astype(np.float32)), vocab=4)
    keys = jax.random.split(jax.random.key(0), 2)
    drawn = jax.jit(functools.partial(replaced.sample, chunk=2**13))(h, head, keys)
    share = np.bincount(np.asarray(drawn).ravel(), minlength=6) / drawn.size
    expected = np.append(np.exp(logits) / np.exp(logits).sum(), [0, 0])
    np.testing.assert_allclose(share, expected, atol=5 * 0.5 / drawn.size**0.5)
    again = replaced.sample(h[1:, :7], head, keys[1:], chunk=1)
    np.testing.assert_array_equal(again, drawn[1:, :7])


def test_write_takes_the_first_draw():
    """A place drawn twice gets its first sample; a prediction of no weight writes nothing."""
    batch = {
        "original": jnp.array([[1, 7, 8, 9, 2]]),
        "places": jnp.array([[1, 1, 3, 0]]),
        "weights": jnp.array([[1.0, 1, 1, 0]]),
    }
    np.testing.assert_array_equal(replaced.insert_samples(batch, jnp.array([[20, 30, 40, 50]])), [[1, 20, 8, 40, 2]])


# -- transformers ------------------------------------------------------------------------------------------------------


def electra_params(found: dict, config: Transformer, width: int) -> dict:
    """Project and stack of one network in our layout."""
    heads = max(1, width // 64) if width != config.width else config.heads

    def dense(name):
        return {"kernel": found[f"{name}.weight"].T, "bias": found[f"{name}.bias"]}

    def norm(name):
        return {"scale": found[f"{name}.weight"], "bias": found[f"{name}.bias"]}

    def layer(i):
        at = f"electra.encoder.layer.{i}"
        split = {
            ours: {
                "kernel": found[f"{at}.attention.self.{ours}.weight"].T.reshape(width, heads, -1),
                "bias": found[f"{at}.attention.self.{ours}.bias"].reshape(heads, -1),
            }
            for ours in ("query", "key", "value")
        }
        out = dense(f"{at}.attention.output.dense")
        split["out"] = {"kernel": out["kernel"].reshape(heads, -1, width), "bias": out["bias"]}
        return {
            "attention": split,
            "norm0": norm(f"{at}.attention.output.LayerNorm"),
            "mlp": {"up": dense(f"{at}.intermediate.dense"), "down": dense(f"{at}.output.dense")},
            "norm1": norm(f"{at}.output.LayerNorm"),
        }

    tree = {"stack": {"layers": stacked(config.depth, layer)}}
    if "electra.embeddings_project.weight" in found:
        tree["project"] = dense("electra.embeddings_project")
    return tree


def pair(found: Replaced):
    """transformers' generator and discriminator of these sizes with shared embeddings, and their parameters here."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    c, small = found.model, found.generator
    torch.manual_seed(0)

    def build(kind, model):
        config = transformers.ElectraConfig(
            vocab_size=c.vocab, embedding_size=c.embed, hidden_size=model.width, num_hidden_layers=model.depth,
            num_attention_heads=model.heads, intermediate_size=model.mlp_size, max_position_embeddings=c.context,
        )  # fmt: skip
        return stirred(torch, kind(config), 1)

    judge = build(transformers.ElectraForPreTraining, c)
    guess = build(transformers.ElectraForMaskedLM, small)
    guess.electra.embeddings = judge.electra.embeddings
    guess.generator_lm_head.weight = judge.electra.embeddings.word_embeddings.weight
    ours, theirs = arrays(judge), arrays(guess)

    def norm(found, name):
        return {"scale": found[f"{name}.weight"], "bias": found[f"{name}.bias"]}

    def dense(found, name):
        return {"kernel": found[f"{name}.weight"].T, "bias": found[f"{name}.bias"]}

    at = "electra.embeddings"
    params = {
        "embed": {"table": ours[f"{at}.word_embeddings.weight"]},
        "input": {
            "places": {"table": ours[f"{at}.position_embeddings.weight"]},
            "types": {"table": ours[f"{at}.token_type_embeddings.weight"]},
            "norm": norm(ours, f"{at}.LayerNorm"),
        },
        "generator": electra_params(theirs, small, small.width)
        | {
            "transform": {"dense": dense(theirs, "generator_predictions.dense")}
            | {"norm": norm(theirs, "generator_predictions.LayerNorm")},
            "head_bias": theirs["generator_lm_head.bias"],
        },
        "discriminator": electra_params(ours, c, c.width)
        | {
            "dense": dense(ours, "discriminator_predictions.dense"),
            "judge": dense(ours, "discriminator_predictions.dense_prediction"),
        },
    }
    return torch, guess, judge, params


def test_losses_are_those_of_transformers(monkeypatch):
    """Packed rows here, one example a row there, for the same sampled tokens."""
    found = objective(context=48)
    batch = rows(found, stream(*[17, 30, 9, 44] * 10), 6)
    assert (batch["segments"].max(1) > 1).any()
    torch, guess, judge, params = pair(found)
    shapes = jax.eval_shape(lambda: unbox(found.init(jax.random.key(0), batch)))
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)
    sampled = np.random.default_rng(3).integers(LOW, VOCAB, batch["places"].shape).astype(np.int32)
    sampled[:, ::3] = batch["targets"][:, ::3]  # some guesses are right
    monkeypatch.setattr(replaced, "sample", lambda *args: jnp.asarray(sampled))
    sums, _ = jax.jit(lambda p, b: found.loss(p, b, None, None))(params, batch)

    fake = batch["original"].copy()
    for row, places, weights, new in zip(fake, batch["places"], batch["weights"], sampled):
        for place, weight, token in reversed(list(zip(places, weights, new))):
            if weight:
                row[place] = token
    nll, hits, judged, right, count = 0.0, 0, 0.0, 0, 0
    for r, segments in enumerate(batch["segments"]):
        for number in range(1, segments.max() + 1):
            here = segments == number
            ids = {name: torch.tensor(batch[name][r][here][None].astype(np.int64)) for name in ("tokens", "types")}
            with torch.no_grad():
                logits = guess(ids["tokens"], token_type_ids=ids["types"]).logits[0].log_softmax(-1).numpy()
                labels = torch.tensor((fake != batch["original"])[r][here][None].astype(np.int64))
                out = judge(torch.tensor(fake[r][here][None].astype(np.int64)), token_type_ids=ids["types"], labels=labels)
            judged += float(out.loss) * here.sum()
            right += int(((out.logits > 0) == (labels > 0)).sum())
            count += here.sum()
            low = np.flatnonzero(here)[0]
            for place, target, weight in zip(batch["places"][r], batch["targets"][r], batch["weights"][r]):
                if weight and here[place]:
                    nll -= logits[place - low, target]
                    hits += logits[place - low].argmax() == target
    np.testing.assert_allclose(sums["generator"][0], nll, rtol=2e-5)
    np.testing.assert_allclose(sums["discriminator"][0], judged, rtol=2e-5)
    assert sums["generator"][1] == batch["weights"].sum()
    assert sums["discriminator"][1] == count
    assert int(sums["generator_accuracy"][0]) == hits
    assert int(sums["accuracy"][0]) == right


# -- the device half ---------------------------------------------------------------------------------------------------


@functools.cache
def trained():
    """Eight packed rows, parameters with noise, and gradients in one part."""
    found = objective(context=32)
    batch = {k: jnp.asarray(v) for k, v in rows(found, stream(*[17, 30, 9, 44] * 10), 8).items()}
    params = unbox(jax.jit(found.init)(jax.random.key(0), batch))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
    params["discriminator"]["judge"]["kernel"] *= 10  # judgements of either kind
    return found, params, batch


@functools.cache
def step(parts):
    return jax.jit(functools.partial(gradients, Config(objective=trained()[0], batch=8, micro_batches=parts)))


def grads_of(parts, rows=slice(None)):
    _, params, batch = trained()
    keys = jax.random.split(jax.random.key(2), 8)
    return step(parts)(params, {k: v[rows] for k, v in batch.items()}, None, keys[rows])[:2]


@functools.cache
def judge():
    """The loss of evaluation."""
    found, params, _ = trained()
    return functools.partial(jax.jit(lambda p, b: found.loss(p, b, None, None)[0]), params)


def test_parts_and_order_change_nothing():
    """Accumulation 1 = 4, rows turned round, the samples included; also where nothing is random."""
    whole, sums = grads_of(1)
    scale = optax.tree.norm(whole)
    for other, other_sums in (grads_of(4), grads_of(1, slice(None, None, -1))):
        assert max(jnp.abs(a - b).max() for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(other))) < 1e-6 * scale
        for name in sums:
            np.testing.assert_allclose(other_sums[name], sums[name], rtol=1e-5)
    batch = trained()[2]
    turned = judge()({k: v[::-1] for k, v in batch.items()})
    for name, value in judge()(batch).items():
        np.testing.assert_allclose(turned[name], value, rtol=1e-5)


def test_gradients_stay_in_their_network():
    """Sampling has no gradient: the discriminator's loss moves no layer of the generator, and the other way round."""
    found, params, batch = trained()

    @jax.jit
    def gradient(scales):
        def total(p):
            sums = found.loss(p, batch, None, None)[0]
            return scales[0] * sums["generator"][0] + scales[1] * sums["discriminator"][0]

        return jax.grad(total)(params)

    small, large = gradient(jnp.array([1.0, 0.0])), gradient(jnp.array([0.0, 1.0]))
    assert all((x == 0).all() for x in jax.tree.leaves((large["generator"], small["discriminator"])))
    assert all((x != 0).any() for x in jax.tree.leaves((small["generator"], large["discriminator"], large["embed"])))


def test_counts_and_padding():
    """F1 from its sums; a row of padding, as evaluation adds them, changes no sum."""
    batch, judged = trained()[2], judge()
    sums = judged(batch)
    (both, said), (_, truly) = sums["precision"], sums["recall"]
    np.testing.assert_allclose(sums["f1"], (2 * both, said + truly))
    assert sums["replaced"][0] == truly
    assert 0 < both <= min(said, truly)
    empty = judged({k: v.at[7].set(0) for k, v in batch.items()})
    seven = judged({k: v.at[7].set(v[6]) for k, v in batch.items()})
    six = judged({k: v.at[6:].set(0) for k, v in batch.items()})
    for name in sums:  # seven rows + row 6 once more = twice (seven) - (six)
        np.testing.assert_allclose(
            np.subtract(seven[name], empty[name]), np.subtract(empty[name], six[name]), rtol=1e-4, atol=1e-3
        )


def test_hostile_records():
    """Empty documents, one token, only separators, only padding: rows of the usual shapes, nothing broken."""
    found = objective()
    usual = {k: (v.shape[1:], v.dtype) for k, v in rows(found, stream(500), 1).items()}
    for sizes in ([0] * 300, [1], [1] * 300, [0, 1, 0, 2], [400]):
        batch = rows(found, stream(*sizes), 2)
        assert {k: (v.shape[1:], v.dtype) for k, v in batch.items()} == usual
    length = found.records.length
    nothing = {"tokens": np.zeros(length, np.int32), "segments": np.zeros(length, np.int32), "marked": False}
    row = found.corrupt(np.random.default_rng(0), nothing)
    assert not row["segments"].any()
    assert not row["weights"].any()
    masks = found.corrupt(
        np.random.default_rng(0), {**nothing, "tokens": np.full(length, MASK), "segments": np.ones(length, np.int32)}
    )
    assert not masks["weights"].any()
    with pytest.raises(UserError, match="context"):
        objective(context=4)


@pytest.mark.parametrize(
    ("model", "width", "network", "generator"),
    [
        (ELECTRA_SMALL, 1.0, 13_483_008, None),
        (ELECTRA_BASE, 1 / 3, 108_891_648, 33_740_602),
        (ELECTRA_LARGE, 1 / 4, 334_092_288, 51_295_290),
    ],
)
def test_published_sizes(model, width, network, generator):
    """ElectraModel, and the generator with its head, of the released files."""
    batch = {"tokens": np.zeros((1, 8), np.int32), "places": np.zeros((1, 2), np.int32)}
    params = jax.eval_shape(lambda: unbox(Replaced(model=model, generator_width=width).init(jax.random.key(0), batch)))
    shared = parameter_count((params["embed"], params["input"]))
    body = {k: v for k, v in params["discriminator"].items() if k in ("project", "stack")}
    assert shared + parameter_count(body) == network
    if generator:
        assert shared + parameter_count(params["generator"]) == generator


def test_shows_what_happened():
    found = Replaced(model=dataclasses.replace(objective().model, vocab=0))
    text = Bytes().build(None).with_special(found.special)
    found = found.resolve(text)
    ids = text.encode("A small row. It has two sentences.\n")
    length = found.records.length
    record = {
        "tokens": np.pad(ids, (0, length - len(ids))),
        "segments": (np.arange(length) < len(ids)).astype(np.int32),
        "marked": False,
    }
    example = found.corrupt(np.random.default_rng(0), record)
    fake = np.where(example["tokens"] == found.mask, ord("x"), example["original"])
    shown = found.show(text, example, {"fake": fake, "chance": np.linspace(0, 1, 128)})
    assert "[MASK]" in shown
    assert "[x]" in shown
    assert [line.split()[0] for line in shown.splitlines()] == ["original", "masked", "generator", "discriminator"]
