"""GPT-2 and GPT-1 against transformers: logits, hidden states, packed rows, and training steps against torch's AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Config, Optimizer
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.train import train_step
from lm.training.state import chain, create
from tests.models.reference import arrays, documents, gpt2_params, stirred

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

# vocabulary, context, width, depth, heads, inner, seed
SHAPES = [(53, 17, 20, 3, 5, None, 0), (97, 32, 14, 1, 2, 37, 1), (31, 23, 24, 2, 1, None, 2)]


def pair(vocab, context, width, depth, heads, inner, seed):
    """The same model twice: (transformers, our config, our parameters)."""
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocab,
            n_positions=context,
            n_embd=width,
            n_layer=depth,
            n_head=heads,
            n_inner=inner,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    stirred(torch, theirs, seed)
    config = Transformer(vocab=vocab, context=context, width=width, depth=depth, heads=heads, mlp=inner or 0)
    return theirs, config, gpt2_params(arrays(theirs), config)


def apply(config, params, *inputs):
    """Hidden states and logits."""

    @jax.jit
    def run(params, *inputs):
        model = Model(config)
        h, _ = model.apply({"params": params}, *inputs)
        return h, model.apply({"params": params}, method="head").logits(h)

    return run(params, *inputs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_logits_and_hidden_states(shape):
    theirs, config, params = pair(*shape)
    tokens = np.random.default_rng(shape[-1]).integers(0, config.vocab, (3, config.context))
    with torch.no_grad():
        found = theirs(torch.tensor(tokens), output_hidden_states=True)
    h, logits = apply(config, params, tokens)
    np.testing.assert_allclose(h, found.hidden_states[-1].numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(logits, found.logits.numpy(), atol=1e-4, rtol=1e-4)
    assert np.abs(found.logits.numpy()).max() > 1


def test_parameter_count_is_theirs():
    theirs, _, params = pair(*SHAPES[0])
    assert sum(x.size for x in jax.tree.leaves(params)) == sum(p.numel() for p in theirs.parameters())


def test_loss_is_theirs():
    theirs, config, params = pair(*SHAPES[0])
    tokens = np.random.default_rng(5).integers(0, config.vocab, (4, config.context))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), labels=torch.tensor(tokens)).loss.item()
    sums, _ = jax.jit(Causal(model=config).loss)(params, shifted(tokens), None, None)
    assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(expected, rel=1e-5)


def shifted(tokens):
    """Rows of one document: every token but the first is a target."""
    rows, length = tokens.shape
    return {
        "tokens": tokens[:, :-1].astype(np.int32),
        "targets": tokens[:, 1:].astype(np.int32),
        "weights": np.ones((rows, length - 1), np.float32),
        "segments": np.ones((rows, length - 1), np.int32),
        "positions": np.tile(np.arange(length - 1, dtype=np.int32), (rows, 1)),
    }


def test_packed_documents_are_separate_rows():
    theirs, config, params = pair(53, 17, 20, 2, 5, None, 4)
    sizes = (7, 1, 5)
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, config.vocab, size) for size in sizes]
    segments, positions = documents(*sizes, length=config.context)
    tokens = np.zeros(config.context, np.int64)
    tokens[: sum(sizes)] = np.concatenate(texts)
    _, logits = apply(config, params, tokens[None], positions[None], segments[None])
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.tensor(text[None])).logits[0].numpy() for text in texts])
        unseparated = theirs(torch.tensor(tokens[None])).logits[0].numpy()[: sum(sizes)]
    np.testing.assert_allclose(logits[0, : sum(sizes)], expected, atol=1e-4, rtol=1e-4)
    assert np.abs(expected - unseparated).max() > 0.1


def test_training_steps_are_torchs():
    """Three steps of clipped AdamW, decay on matrices and tables. A large eps: key biases have no gradient but noise."""
    theirs, model, params = pair(31, 13, 12, 2, 3, None, 6)
    lr, decay, clip, betas, eps = 1e-2, 0.1, 0.5, (0.8, 0.95), 1e-4
    steps = 3
    batches = np.random.default_rng(1).integers(0, model.vocab, (steps, 4, model.context))

    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    rule = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)
    losses, norms = [], []
    for tokens in batches:
        rule.zero_grad()
        loss = theirs(torch.tensor(tokens), labels=torch.tensor(tokens)).loss
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip).item())
        losses.append(loss.item())
        rule.step()
    assert min(norms) > clip

    config = Config(
        objective=Causal(model=model),
        optimizer=Optimizer(lr=lr, betas=betas, eps=eps, decay=decay, clip=clip),
        steps=steps,
        batch=4,
    )
    boxed = jax.eval_shape(config.objective.init, jax.random.key(0), shifted(batches[0]))
    optimizer = chain(config, boxed)
    state = create(config, optimizer, jax.tree.map(jnp.asarray, params))
    step = jax.jit(lambda state, batch: train_step(config, optimizer, state, batch))
    for tokens, loss, norm in zip(batches, losses, norms):
        state, sums = step(state, shifted(tokens))
        assert float(sums["loss"][0] / sums["loss"][1]) == pytest.approx(loss, rel=1e-5)
        assert float(sums["grad_norm"][0]) == pytest.approx(norm, rel=1e-4)
    expected = gpt2_params(arrays(theirs), model)
    moved = sorted(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), params, expected)))
    assert moved[1] > 1e-2  # all but the key biases
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), jax.device_get(state.params), expected)


def test_post_norm_is_gpt1():
    theirs = transformers.OpenAIGPTLMHeadModel(
        transformers.OpenAIGPTConfig(
            vocab_size=37,
            n_positions=15,
            n_embd=20,
            n_layer=3,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    stirred(torch, theirs, 3)
    config = Transformer(vocab=37, context=15, width=20, depth=3, heads=4, placement="post")
    params = gpt2_params(arrays(theirs), config, names=("tokens_embed", "positions_embed"))
    tokens = np.random.default_rng(0).integers(0, 37, (2, 15))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(apply(config, params, tokens)[1], expected, atol=1e-4, rtol=1e-4)
