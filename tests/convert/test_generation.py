"""Text written by an imported model, token for token that of transformers: greedily and with beams, ragged prompts."""

import numpy as np
import pytest

from lm.convert.convert import load
from lm.data.rows.prompts import Prompt
from lm.decode.generate import row_keys
from lm.decode.prefill import batch_prompts, opened_steps
from lm.decode.processors import Rules
from lm.decode.sampling import Sampling
from lm.decode.search.beam import Beams, beam_search
from lm.decode.writer import continue_tokens
from tests.convert.test_families import CASES
from tests.marks import quick

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LONG = {"n_positions": 96, "max_position_embeddings": 96}  # prompts and 64 new tokens
WRITERS = ["gpt2", "gpt1", "llama, tied and stretched", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "t5",
           "t5 1.1", "bart", "mbart", "marian", "xlnet"]  # fmt: skip
NEW, LENGTHS, START = 64, (9, 4, 7), 2


def make(name, folder):
    """A random reference model with room, loud enough to write more than one word."""
    architecture, fields = CASES[name]
    cls = getattr(transformers, architecture)
    fields = {k: LONG.get(k, v) for k, v in fields.items()} | ({"num_layers": 3} if "T5" in architecture else {})
    config = cls.config_class(**fields)
    if "max_position_embeddings" in vars(config):
        config.max_position_embeddings = 96
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:  # of biases and norms, loud ones would always write the same
                parameter.add_(0.25 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def theirs(model, prompts, beams=1, new=NEW, **more):
    """Each prompt alone: what transformers writes, no token ending it."""
    how = transformers.GenerationConfig(
        max_new_tokens=new, do_sample=False, num_beams=beams, pad_token_id=0, decoder_start_token_id=START,
        eos_token_id=more.pop("eos", None), no_repeat_ngram_size=2, **more,
    )  # fmt: skip
    model.generation_config = how
    rows = []
    for prompt in prompts:
        ids = torch.tensor(prompt[None].astype(np.int64))
        # XLNet's memory of what it has written is an approximation there: without, it reads all again, as ours does.
        extra = {"use_mems": False} if model.config.model_type == "xlnet" else {}
        with torch.no_grad():
            row = model.generate(ids, generation_config=how, attention_mask=torch.ones_like(ids), **extra)
        rows.append(row[0, 1 if model.config.is_encoder_decoder else len(prompt) :].numpy())
    return rows


def asked(objective, prompts):
    if objective.writes == "answer":
        return [Prompt(np.array([START], np.int32), ids) for ids in prompts]
    return [Prompt(ids) for ids in prompts]


def drawn():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 50, n).astype(np.int32) for n in LENGTHS]


@pytest.mark.parametrize("name", quick(WRITERS, ("gpt2", "t5", "xlnet")))
def test_greedy_text_is_theirs(name, tmp_path):
    model, prompts = make(name, tmp_path), drawn()
    loaded = load(tmp_path)
    steps, ours = opened_steps(loaded.objective), asked(loaded.objective, prompts)
    new = 12 if name == "xlnet" else NEW  # which reads all again for every token
    rows = continue_tokens(
        steps,
        steps.prepare(loaded.params, len(prompts)),
        ours,
        row_keys(0, ours, [0] * len(ours), 1),
        sampling=Sampling(strategy="greedy"),
        rules=Rules(no_repeat_ngram=2),  # random networks soon write one word for ever
        new=new,
    )
    wanted = theirs(model, prompts, new=new)
    for (ids, _), row in zip(rows, wanted):
        np.testing.assert_array_equal(ids, row)
    assert len(set(np.concatenate(wanted).tolist())) > 6


@pytest.mark.parametrize("name", quick(WRITERS[:-1], ("mistral", "t5")))
def test_beams_are_theirs(name, tmp_path):
    model, prompts = make(name, tmp_path), drawn()
    loaded = load(tmp_path)
    steps, ours = opened_steps(loaded.objective), asked(loaded.objective, prompts)
    prepared = steps.prepare(loaded.params, 3 * len(prompts))
    how = {"beams": Beams(count=3), "rules": Rules(stops=(5,), no_repeat_ngram=2), "new": 16, "stops": (5,)}
    found = beam_search(steps, prepared, batch_prompts(ours), **how)
    for hypotheses, wanted in zip(found, theirs(model, prompts, beams=3, new=16, eos=5)):
        ids = hypotheses[0].ids
        np.testing.assert_array_equal(ids, wanted[: len(ids)])
        assert not wanted[len(ids) :].any()
