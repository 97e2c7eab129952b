"""A published model beside the reference library: the largest difference after every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.console import table
from lm.convert.convert import load
from lm.convert.folder import read_json
from lm.errors import UserError, check
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.model import Model
from lm.models.transformer import Transformer

ROWS, LENGTH = 2, 32


def compare(path: str) -> str:
    """Run both on the same random tokens in float32; a table of states and logits."""
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError("--check compares with transformers: pip install transformers torch") from None
    name = (read_json(Path(path).expanduser() / "config.json").get("architectures") or ["AutoModel"])[0]
    check(hasattr(transformers, name), f"--check: transformers {transformers.__version__} has no {name}; another version may")
    loaded = load(path)
    model = loaded.objective.model
    if not isinstance(model, Transformer | EncoderDecoder) or not {"stack", "decoder"} & set(loaded.params):
        raise UserError(f"--check does not know the layers of {type(loaded.objective).__name__}")
    length = min(LENGTH, model.context)
    tokens = np.random.default_rng(0).integers(5, model.vocab, (ROWS, length)).astype(np.int32)
    settings = transformers.AutoConfig.from_pretrained(path)
    theirs = getattr(transformers, name).from_pretrained(path).eval().float()
    ids = torch.tensor(tokens, dtype=torch.long)
    more = {"decoder_input_ids": ids} if settings.is_encoder_decoder else {}
    with torch.no_grad():
        found = theirs(input_ids=ids, output_hidden_states=True, **more)
    rows = [row(*pair) for pair in pairs(loaded, tokens, found)]
    return "\n".join([table(rows, ("after", "largest difference", "largest value"))])


def row(name: str, ours: Any, theirs: Any) -> tuple[str, str, str]:
    ours, theirs = np.asarray(ours, np.float32), theirs.numpy()
    return name, f"{np.abs(ours - theirs).max():.2e}", f"{np.abs(theirs).max():.2e}"


def pairs(loaded: Any, tokens: np.ndarray, found: Any):
    """Give (name, ours, theirs) of the states after the embeddings and each layer, and of the logits."""
    model, variables = loaded.objective.model, {"params": loaded.params}
    logits = found.get("prediction_logits", found.get("logits"))
    if isinstance(model, EncoderDecoder):
        apply = Seq2Seq(model).apply
        h_BSD = jax.jit(lambda v: apply(v, tokens, method="encode"))(variables)
        h_BTD = jax.jit(lambda v: apply(v, tokens, source_BSD=h_BSD, method="decode"))(variables)
        yield "encoder", h_BSD, found.encoder_last_hidden_state
        yield "decoder", h_BTD, found.decoder_hidden_states[-1]
        yield "logits", apply(variables, method="head").logits(h_BTD), logits
        return
    causal, apply = loaded.objective.generative, Model(model).apply
    run = jax.jit(lambda v: apply(v, tokens, causal=causal, collect=True))
    h_BTD, states = run(variables)
    last = len(found.hidden_states) - 1
    for i, theirs in enumerate(found.hidden_states):
        # Their last state has the norm that ends a pre-norm stack in it.
        ours = h_BTD if i == last else states[i]
        yield f"layer {i}" if i else "embeddings", ours, theirs
    if logits is not None:
        h_BTE = apply(variables, h_BTD, method="transform")
        yield "logits", apply(variables, method="head").logits(h_BTE), logits
