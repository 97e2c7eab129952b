"""Start a run from a published model folder."""

from __future__ import annotations

import jax

from lm.convert import task_heads
from lm.convert.convert import family_of, flat, load, nested, some
from lm.errors import UserError, check
from lm.models.encoder_decoder import EncoderDecoder
from lm.objectives.base import Objective
from lm.training.parameters import matched
from lm.training.state import TrainState


def start_from(path: str, objective: Objective, state: TrainState, abstract: TrainState) -> tuple[TrainState, list[str]]:
    """Put a published folder's parameters into a fresh state; return the lines to print.

    Parameters that the folder lacks stay as drawn, and so does a head for other labels; its other parameters are left out.
    Raises UserError where shapes differ or nothing fits.
    """
    mesh = jax.tree.leaves(abstract.params)[0].sharding.mesh
    objective = objective.inner
    model = objective.model
    rows = model.decoder if isinstance(model, EncoderDecoder) else model

    # Tasks that share a network have several heads, a folder one: that of labels is tried first.
    several = [part.objective.task for part in objective.parts]
    task = min(several, key=lambda one: one != task_heads.SEQUENCE) if several else objective.task
    loaded = load(path, mesh, pad_vocab=getattr(rows, "pad_vocab", 1), task=task)
    ours, theirs, place = flat(state.params), flat(loaded.params), flat(abstract.params)
    theirs = task_heads.labelled(objective, loaded.objective, theirs) if task and not several else theirs

    # Arrays in both, of equal shape; the second of two that share one source is a copy, as steps donate their buffers.
    both = {name: other for name, other in matched(ours, theirs).items() if other not in loaded.drawn}
    check(bool(both), f"start='{path}' is a {type(loaded.objective).__name__}: no parameter of it is in this objective")
    for name, other in both.items():
        if ours[name].shape != theirs[other].shape:
            raise UserError(
                f"start='{path}' has '{other}' as {theirs[other].shape}, this config needs {ours[name].shape}: set "
                "objective.model as the folder's config.json says"
            )
    taken = {name: theirs[other] if name == other else theirs[other].copy() for name, other in both.items()}
    found = {name: jax.device_put(taken[name], place[name].sharding) if name in both else x for name, x in ours.items()}

    # Report every array that did not carry over, in our names.
    lines = [f"started from {path}: {len(both)} of {len(ours)} arrays"]
    if fresh := set(ours) - set(both):
        lines.append(f"drawn anew: {some(fresh)}")
    unread = set(loaded.left)
    if task:
        unread = task_heads.known_as(family_of({"model_type": loaded.kind}), loaded.objective.model, unread)
    if left := (set(theirs) - set(ours) - set(both.values()) - set(loaded.drawn)) | unread:
        lines.append(f"left out: {some(left)}")
    average = None if state.average is None else jax.tree.map(lambda x: x.copy(), nested(found))
    return state.replace(params=nested(found), average=average), lines
