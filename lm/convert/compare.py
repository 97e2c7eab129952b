"""A published model beside the reference library: the largest difference after every layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.console import table
from lm.convert.convert import load, some
from lm.convert.family import architecture
from lm.convert.folder import read_settings
from lm.convert.layouts import ANSWER, CHOICE, SEQUENCE
from lm.errors import UserError, check
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.finetune.network import bare

ROWS, LENGTH = 2, 32


def compare(path: str) -> str:
    """Run both models on the same random tokens in float32; return a table of the differences of states and logits."""
    try:
        import torch
        import transformers
    except ImportError:
        raise UserError("--check compares with transformers: pip install transformers torch") from None
    name = architecture(read_settings(Path(path).expanduser())) or "AutoModel"
    check(hasattr(transformers, name), f"--check: transformers {transformers.__version__} has no {name}; another version may")
    loaded = load(path)
    model, task = loaded.objective.model, loaded.objective.task
    known = isinstance(model, Transformer | EncoderDecoder) and {"stack", "decoder"} & set(loaded.params)
    if not known and not task:
        raise UserError(f"--check does not know the layers of {type(loaded.objective).__name__}")
    # In float32 whatever the file has: what differs then is the implementation, not the rounding.
    reference = getattr(transformers, name).from_pretrained(path).eval().float()
    settings = reference.config
    tokens = drawn(settings, model.vocab, min(LENGTH, model.context))
    if task and settings.pad_token_id is None:
        settings.pad_token_id = 0  # not among the tokens: their heads look for the last token that is no padding
    ids = torch.tensor(tokens, dtype=torch.long)
    more = {"decoder_input_ids": ids} if settings.is_encoder_decoder else {}
    ids = ids[None] if task == CHOICE else ids
    with torch.no_grad():
        outputs = reference(input_ids=ids, output_hidden_states=True, **more)
    rows = [row(*pair) for pair in pairs(loaded, tokens, outputs)]
    lines = [table(rows, ("after", "largest difference", "largest value"))]
    if loaded.drawn:
        lines.append(f"not compared, as the file lacks them: the logits, and with them {some(set(loaded.drawn))}")
    return "\n".join(lines)


def drawn(settings: Any, vocab: int, length: int) -> np.ndarray:
    """Draw random tokens, int32 [ROWS, length]; the end token only last, for the heads of encoder-decoders."""
    # Most vocabularies begin with their special tokens, some of which transformers' classes mask or search for.
    plain = np.setdiff1d(np.arange(5, vocab), [x for x in (settings.pad_token_id, settings.eos_token_id) if x is not None])
    tokens = np.random.default_rng(0).choice(plain, (ROWS, length)).astype(np.int32)
    if settings.is_encoder_decoder:
        tokens[:, -1] = settings.eos_token_id
    return tokens


def row(name: str, ours: Any, theirs: Any) -> tuple[str, str, str]:
    ours, theirs = np.asarray(ours, np.float32), theirs.numpy()
    return name, f"{np.abs(ours - theirs).max():.2e}", f"{np.abs(theirs).max():.2e}"


def pairs(loaded: Any, tokens: np.ndarray, outputs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, ours, theirs) of the states after the embeddings and each layer, and of the logits."""
    objective, variables = loaded.objective, {"params": loaded.params}
    task = objective.task
    model = bare(objective.model) if task else objective.model
    logits = outputs.get("prediction_logits", outputs.get("logits"))
    if isinstance(model, EncoderDecoder):
        pair = Seq2Seq(model)
        h_BSD = jax.jit(lambda v: pair.apply(v, tokens, method="encode"))(variables)
        h_BTD = jax.jit(lambda v: pair.apply(v, tokens, source_BSD=h_BSD, method="decode"))(variables)
        yield "encoder", h_BSD, outputs.encoder_last_hidden_state
        yield "decoder", h_BTD, outputs.decoder_hidden_states[-1]
    elif isinstance(model, Transformer):
        causal, single = objective.rows.causal if task else objective.writes == "text", Model(model)
        run = jax.jit(lambda v: single.apply(v, tokens, causal=causal, collect=True))
        h_BTD, states = run(variables)
        last = len(outputs.hidden_states) - 1
        for i, theirs in enumerate(outputs.hidden_states):
            # Their last state includes the final norm of a pre-norm stack.
            ours = h_BTD if i == last else states[i]
            yield f"layer {i}" if i else "embeddings", ours, theirs
    if loaded.drawn:  # both draw that head at random
        return
    if task:
        theirs = outputs.logits if task != ANSWER else stacked(outputs.start_logits, outputs.end_logits)
        yield "logits", scores(objective, loaded.params, tokens).reshape(theirs.shape), theirs
    elif isinstance(model, EncoderDecoder):
        yield "logits", pair.apply(variables, method="head").logits(h_BTD), logits
    elif logits is not None:
        h_BTE = single.apply(variables, h_BTD, method="transform")
        yield "logits", single.apply(variables, method="head").logits(h_BTE), logits


def stacked(*sides: Any) -> Any:
    import torch

    return torch.stack(sides, -1)


def scores(objective: Any, params: Any, tokens: np.ndarray) -> jax.Array:
    """Return the scores of tokens, int32 [rows, length]; each row is an example, or an option of one."""
    rows, length = tokens.shape
    along, ones = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape), np.ones_like(tokens)
    batch = {"tokens": tokens, "types": 0 * ones, "segments": ones, "positions": along}
    batch |= {"source": tokens, "source_segments": ones, "source_positions": along}
    shape = {SEQUENCE: (rows, 1), CHOICE: (rows, 1, 1)}.get(objective.task)
    batch["places"] = along if shape is None else np.full(shape, length - 1 if objective.pool == "last" else 0, np.int32)
    batch["offered"] = np.ones(batch["places"].shape, bool)
    return jax.jit(objective.logits)(params, batch)
