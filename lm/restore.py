"""Where a run begins: at its newest whole checkpoint, with the parameters of another run, or with random ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lm.config import Config
from lm.data.corpus.corpus import Corpus
from lm.errors import check
from lm.training.checkpoint import Checkpoints
from lm.training.state import TrainState, initialise


def adopted(config: Config, overridden: Sequence[str] = ()) -> Config:
    """Take network and tokenizer from the folder of `config.start`, but for the fields `overridden`; say so."""
    if not config.start:
        return config
    from lm.start.adopt import adopt

    config, lines = adopt(config, list(overridden))
    print("\n".join(lines))
    return config


def restore(
    config: Config, workdir: Path, checkpoints: Checkpoints, corpus: Corpus, abstract: TrainState, batch: Mapping[str, Any]
) -> tuple[TrainState, int, dict[str, Any]]:
    """Return (state, step, notes of the save): from the workdir, else parameters from `config.start`, else random.

    A damaged checkpoint is set aside for the one before it. Raises UserError when the workdir's run had other data or another
    model, or when none of its checkpoints is whole.
    """
    lead = jax.process_index() == 0

    def attempt(step: int) -> tuple[TrainState, dict[str, Any]]:
        notes = checkpoints.notes(step)
        corpus.check_identity(notes, workdir, "use another --workdir")
        check(step <= config.steps, f"{workdir} is at step {step} already, past steps={config.steps}")
        return checkpoints.restore(step, abstract), notes

    # A folder with checkpoints resumes even where `config.start` is set: the start has been taken already.
    if steps := checkpoints.steps():
        step, (state, notes) = checkpoints.first_whole(
            steps[::-1], attempt, lambda line: print(line, flush=True) if lead else None
        )
        return state, step, notes
    state = initialise(config, batch, abstract)
    if config.start:
        from lm.start.begin import begin

        state, lines = begin(config, state, abstract)
        if lead:
            print("\n".join(lines), flush=True)
    return state, 0, {"seconds": 0.0}
