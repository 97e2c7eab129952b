"""Training steps of published models beside PyTorch: BERT's two losses and T5's teacher forcing, from the same weights."""

import jax
import numpy as np
import optax
import pytest

from lm.config import Config, Optimizer, Schedule
from lm.convert.convert import flat, load
from lm.train import train_step
from lm.training import optimizer as optimizers
from lm.training.state import abstract_params, chain, create
from tests import test_optimizer
from tests.marks import quick
from tests.models import test_mup
from tests.models.reference import stirred
from tests.test_optimizer import AXES, MATRICES, SHAPES, follow, run, same, trees
from tests.test_schedules import factors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STEPS, ROWS = 3, 4
SMALL = {"vocab_size": 41, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
# A large eps: biases of keys have no gradient but noise, which Adam would blow up to whole steps.
RULE = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-4, "decay": 0.1, "clip": 0.5}


def bert(folder):
    config = transformers.BertConfig(
        **SMALL, max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    model = stirred(torch, transformers.BertForPreTraining(config), 0)
    model.save_pretrained(folder)
    return model


def bert_batches():
    """Rows of two sentences and padding, some places hidden: (ours, theirs) for every step."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        shape, real = (ROWS, 16), np.array([16, 9, 13, 5])
        # Their table gives the padding's id, 0, no gradient as an input: it stays out of the batch.
        tokens, shown = rng.integers(1, 41, shape), (np.arange(16) < real[:, None]).astype(np.int32)
        types = (np.arange(16) >= real[:, None] // 2) * shown
        places = np.stack([np.sort(rng.choice(n, 4, replace=False)) for n in real])
        weights = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], np.float32)
        targets, pair = rng.integers(1, 41, (ROWS, 4)), rng.integers(0, 2, ROWS)
        ours = {"tokens": tokens, "segments": shown, "types": types, "places": places, "targets": targets, "pair": pair}
        ours |= {"positions": np.tile(np.arange(16), (ROWS, 1)), "weights": weights, "pair_weights": np.ones(ROWS)}
        labels = np.full(shape, -100)
        for row in range(ROWS):
            asked = weights[row] > 0
            labels[row, places[row, asked]] = targets[row, asked]
        theirs = {"input_ids": tokens, "attention_mask": shown, "token_type_ids": types, "labels": labels}
        yield compact(ours), tensors({**theirs, "next_sentence_label": pair})


def t5(folder, gated=False, **shape):
    fields = {"vocab_size": 41, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3, **shape}
    if gated:
        fields |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    config = transformers.T5Config(**fields, dropout_rate=0.0, decoder_start_token_id=0)
    model = stirred(torch, transformers.T5ForConditionalGeneration(config), 1)
    model.save_pretrained(folder)
    return model


def t5_batches():
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        source, targets = rng.integers(1, 41, (ROWS, 11)), rng.integers(1, 41, (ROWS, 7))
        read = (np.arange(11) < np.array([11, 8, 3, 10])[:, None]).astype(np.int32)
        asked = (np.arange(7) < np.array([7, 2, 5, 6])[:, None]).astype(np.int32)
        ours = {"source": source, "source_segments": read, "source_positions": np.tile(np.arange(11), (ROWS, 1))}
        begin = np.concatenate([np.zeros((ROWS, 1)), targets[:, :-1]], 1)
        ours |= {"tokens": begin, "targets": targets, "weights": asked.astype(np.float32), "segments": asked}
        ours |= {"positions": np.tile(np.arange(7), (ROWS, 1))}
        labels = np.where(asked, targets, -100)
        yield compact(ours), tensors({"input_ids": source, "attention_mask": read, "labels": labels})


def compact(batch):
    whole = {name: x.astype(np.int32) for name, x in batch.items() if not name.endswith("weights")}
    return {**whole, **{name: x.astype(np.float32) for name, x in batch.items() if name.endswith("weights")}}


def tensors(batch):
    return {name: torch.tensor(np.asarray(x, np.int64)) for name, x in batch.items()}


def decays(name):
    """The line of every BERT script: no decay for names with "bias" or the norms in them."""
    return not any(word in name for word in ("bias", "LayerNorm", "layer_norm"))


def groups(model):
    named = list(model.named_parameters())
    return [{"params": [p for n, p in named if decays(n) == on], "weight_decay": RULE["decay"] * on} for on in (1, 0)]


class BertAdam(torch.optim.Optimizer):
    """AdamWeightDecayOptimizer of google-research/bert, optimization.py: no bias correction, decoupled decay."""

    def step(self):
        b1, b2 = RULE["betas"]
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                m = state["m"] = b1 * state.get("m", 0) + (1 - b1) * p.grad
                v = state["v"] = b2 * state.get("v", 0) + (1 - b2) * p.grad**2
                update = m / (v**0.5 + RULE["eps"]) + group["weight_decay"] * p.data
                p.data -= group["lr"] * update


def torch_rule(name, model):
    if name == "adamw_bert":
        return BertAdam(groups(model), {"lr": RULE["lr"]})
    return torch.optim.AdamW(groups(model), lr=RULE["lr"], betas=RULE["betas"], eps=RULE["eps"])


def rates(shape, rule, warmup, steps):
    """Their rates for the steps: transformers' linear schedule without its idle first step, or the formula of BERT's code."""
    if shape == "linear":
        theirs = transformers.get_linear_schedule_with_warmup(rule, warmup + 1, steps + 1)
        found = []
        for _ in range(steps):
            rule.step()  # no gradients yet: nothing moves, but the schedule wants an optimizer that began
            theirs.step()
            found.append(theirs.get_last_lr()[0])
        return found
    return [RULE["lr"] * ((t + 1) / (warmup + 1) if t < warmup else 1 - t / steps) for t in range(steps)]


def compare(model, batches, folder, optimizer, schedule, again):
    """Take the steps on both sides; every parameter agrees after each."""
    loaded = load(folder)
    config = Config(objective=loaded.objective, optimizer=optimizer, schedule=schedule, steps=STEPS + 2, batch=ROWS)
    batches = list(batches)
    transform = chain(config, abstract_params(config.objective, batches[0][0]))
    state = create(config, transform, loaded.params)
    step = jax.jit(lambda state, batch: train_step(config, transform, state, batch))
    model.eval()
    rule = torch_rule(optimizer.name, model)
    lrs = rates(schedule.shape, torch_rule("adamw", model), schedule.warmup, STEPS + 2)
    first = {name: np.asarray(x) for name, x in flat(loaded.params).items()}
    for number, (ours, theirs) in enumerate(batches):
        rule.zero_grad()
        loss = model(**theirs).loss
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), RULE["clip"]))
        assert norm > RULE["clip"]
        for group in rule.param_groups:
            group["lr"] = lrs[number]
        rule.step()
        state, sums = step(state, ours)
        total = sum(config.objective.scales[k] * float(sums[k][0] / sums[k][1]) for k in config.objective.scales)
        assert total == pytest.approx(loss.item(), rel=1e-5)
        assert float(sums["grad_norm"][0]) == pytest.approx(norm, rel=1e-4)
        assert float(sums["lr"][0]) == pytest.approx(lrs[number], rel=1e-5)
        model.save_pretrained(again / str(number))
        expected, found = (flat(tree) for tree in (load(again / str(number)).params, state.params))
        assert set(expected) == set(found)
        for name, x in expected.items():
            np.testing.assert_allclose(found[name], x, atol=1e-5, rtol=0, err_msg=f"{name} after step {number + 1}")
    still = [name for name, x in flat(state.params).items() if np.abs(np.asarray(x) - first[name]).max() < 1e-3]
    assert all(name.endswith("key/bias") for name in still), still


CASES = {"adamw": ("linear", 2), "adamw_bert": ("linear_bert", 1)}


@pytest.mark.parametrize("name", quick(CASES, ["adamw_bert"]))
def test_bert_steps_are_torchs(name, tmp_path):
    """Both losses, padding, decay by name, clipping and the schedule."""
    shape, warmup = CASES[name]
    model = bert(tmp_path / "a")
    optimizer, schedule = Optimizer(name=name, **RULE), Schedule(shape=shape, warmup=warmup)
    compare(model, bert_batches(), tmp_path / "a", optimizer, schedule, tmp_path)


@pytest.mark.parametrize("gated", quick([False, True], [True]))
def test_t5_steps_are_torchs(gated, tmp_path):
    """Teacher forcing, padding on both sides, tied and own tables."""
    model = t5(tmp_path / "a", gated)
    compare(model, t5_batches(), tmp_path / "a", Optimizer(**RULE), Schedule(shape="linear", warmup=2), tmp_path)


def test_t5_adafactor_is_theirs(tmp_path):
    """T5's own rule, steps relative to the parameter; where theirs factors small tables too (buckets), ours does not."""
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    shape = {"vocab_size": 150, "d_model": 128, "d_kv": 64, "num_heads": 2, "d_ff": 160, "num_layers": 1}
    model = t5(tmp_path / "a", **shape)
    loaded, (ours, theirs) = load(tmp_path / "a"), next(t5_batches())
    config = Config(objective=loaded.objective, optimizer=Optimizer(name="adafactor", lr=0.01), steps=9, batch=ROWS)
    transform = chain(config, abstract_params(config.objective, ours))
    state = create(config, transform, loaded.params)
    state, _ = jax.jit(lambda state, batch: train_step(config, transform, state, batch))(state, ours)
    rule = adafactor(model.parameters(), lr=0.01, relative_step=False, scale_parameter=True, warmup_init=False)
    model(**theirs).loss.backward()
    rule.step()
    model.save_pretrained(tmp_path / "b")
    before, expected, found = (flat(tree) for tree in (loaded.params, load(tmp_path / "b").params, state.params))
    for name in set(expected) - {"encoder/buckets", "decoder/buckets"}:
        assert np.abs(expected[name] - before[name]).max() > 1e-4, name
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


# -- rules that PyTorch lacks ------------------------------------------------------------------------------------------


def test_adamw_bert():
    def formula(g, memory, t, p, axes):
        m, v = memory or (0, 0)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        return m / (np.sqrt(v) + 0.1), (m, v)

    same(run(Optimizer(name="adamw_bert", betas=(0.8, 0.9), eps=0.1, decay=0.3)), follow(formula, decay=0.3))


def test_lamb():
    """You et al. 2020, algorithm 2 with the identity for phi; layers apart, vectors by Adam alone."""

    def formula(g, memory, t, p, axes):
        m, v = memory or (0, 0)
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        r = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.9**t)) + 0.1)
        if "embed" not in axes or len([a for a in axes if a != "layers"]) < 2:
            return r, (m, v)
        inner = tuple(i for i, a in enumerate(axes) if a != "layers")
        r = r + 0.3 * p
        return r * np.sqrt((p**2).sum(inner, keepdims=True) / (r**2).sum(inner, keepdims=True)), (m, v)

    same(run(Optimizer(name="lamb", betas=(0.8, 0.9), eps=0.1, decay=0.3)), follow(formula))


def test_lamb_is_optaxs_layer_by_layer():
    config = Optimizer(name="lamb", betas=(0.8, 0.9), eps=1e-6, decay=0.3)
    found = run(config, steps=1)[0]
    for name in MATRICES:
        layers = range(SHAPES[name][1][0]) if "layers" in AXES[name] else (slice(None),)
        for i in layers:
            rule = optax.lamb(1.0, 0.8, 0.9, 1e-6, weight_decay=0.3)
            p, g = trees(0)[name][i], trees(1)[name][i]
            expected, _ = rule.update(g, rule.init(p), p)
            np.testing.assert_allclose(found[name][i], expected, rtol=1e-4, atol=1e-5)


def test_lamb_of_nothing_is_adams():
    """A parameter or a gradient of zeros has no ratio."""
    axes, zeros = {"up": ("embed", "mlp")}, {"up": np.zeros((3, 4), np.float32)}
    rule = optimizers.build(Optimizer(name="lamb"), axes)
    ones = {"up": np.ones((3, 4), np.float32)}
    np.testing.assert_allclose(rule.update(ones, rule.init(zeros), zeros)[0]["up"], -1, rtol=1e-4)
    np.testing.assert_array_equal(rule.update(zeros, rule.init(ones), ones)[0]["up"], 0)


def test_adamw_bert_trains():
    test_optimizer.test_every_rule_trains("adamw_bert")


def test_lamb_trains():
    """Steps are shares of the parameters' norms: weights drawn tiny would take long to grow."""
    model = test_optimizer.tiny(depth=1)
    rule = Optimizer(name="lamb", lr=0.05, decay=0.01, clip=1.0)
    config = Config(objective=test_optimizer.Causal(model=model), optimizer=rule, batch=4, steps=24)
    batch = test_optimizer.batch()
    optimizer = chain(config, abstract_params(config.objective, batch))
    state = create(config, optimizer, jax.tree.map(jax.numpy.asarray, test_optimizer.draw(model, spread=0.1)))
    step, losses = jax.jit(lambda state, batch: train_step(config, optimizer, state, batch)), []
    for _ in range(config.steps):
        state, sums = step(state, batch)
        losses.append(float(sums["loss"][0] / sums["loss"][1]))
    assert losses[-1] < losses[0] - 1, losses


@pytest.mark.parametrize("name", ["adamw_bert", "lamb"])
def test_slots_lie_as_their_parameters(name):
    test_optimizer.test_slots_lie_as_their_parameters(name)


def test_lamb_under_mup():
    """As Adafactor: the parameters are of one size here, so what is left to scale by is 1 / sqrt(m)."""
    base, wide = test_mup.updates("lamb", 64), test_mup.updates("lamb", 256)
    for leaf in base:
        expected = test_mup.rms(base[leaf]) / (2 if leaf.endswith("kernel") else 1)
        assert test_mup.rms(wide[leaf]) == pytest.approx(expected, rel=0.05), leaf


def test_schedules_of_the_released_code():
    """A drop where the warm-up ends, then the line to 0 at the last step."""
    found = factors(Schedule(shape="linear_bert", warmup=20), 100, np.array([0, 19, 20, 50, 100]))
    np.testing.assert_allclose(found, [1 / 21, 20 / 21, 0.8, 0.5, 0], atol=1e-6)
