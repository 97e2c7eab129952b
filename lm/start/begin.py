"""Initial parameters from the `start` of a config: another run, or a published folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from lm.config import Config, read_config
from lm.errors import UserError, check
from lm.objectives.base import Objective
from lm.runs import is_published
from lm.training.checkpoint import Checkpoints
from lm.training.parameters import LAST, alike, is_added, matched
from lm.training.state import TrainState

MOST = 8  # names listed of each kind


def begin(config: Config, state: TrainState, abstract: TrainState) -> tuple[TrainState, list[str]]:
    """Put the parameters of `config.start` into a fresh state; return the lines to print."""
    if is_published(config.start):
        from lm.start.published import start_from

        return start_from(config.start, config.objective, state, abstract)
    return from_run(Path(config.start), config, state, abstract)


def from_run(path: Path, config: Config, state: TrainState, abstract: TrainState) -> tuple[TrainState, list[str]]:
    """Restore the arrays that a run shares with this objective, straight into this mesh's shardings.

    Heads that the run lacks stay as drawn, its other heads are left out, and scores of other labels are drawn anew. Raises
    UserError where shapes differ or nothing fits.
    """
    run = read_config(path)
    other = Checkpoints(path, run.keep, read_only=True, stop=run.stop)
    check(bool(other.steps()), f"start='{path}' has no finished checkpoint")

    def attempt(step: int) -> tuple[TrainState, list[str]]:
        return taken(path, run, other, step, config, state, abstract)

    return other.first_whole(other.results(), attempt, print)[1]


def taken(
    path: Path, run: Config, other: Checkpoints, step: int, config: Config, state: TrainState, abstract: TrainState
) -> tuple[TrainState, list[str]]:
    """Restore the arrays of one checkpoint; raises Damaged where it is incomplete."""
    part = "average" if run.optimizer.average else "params"
    wanted, theirs = (flatten_dict(tree, sep="/") for tree in (abstract.params, plain(other.stored(step)[part])))
    other_labels = relabelled(config.objective, run.objective)
    # Scores of other labels have the right shape by chance at most: they are drawn anew.
    both = {name: one for name, one in matched(wanted, theirs).items() if not other_labels(name)}
    lost = sorted(name for name in set(theirs) - set(both.values()) if is_added(name))
    if lost:
        raise UserError(
            f"start='{path}' was tuned with LoRA or adapters, which this network lacks ({lost[0]}): set objective.model as "
            f"there, or start from a plain folder: python -m lm.convert --workdir={path} --output=FOLDER merges LoRA"
        )
    if not both:
        raise UserError(f"start='{path}' holds no array of this objective's network; name a run with one like it")
    # Only the arrays in both are read, each into this mesh's layout; the other run may have had another mesh.
    asked = unflatten_dict({theirs: wanted[name] for name, theirs in both.items()}, sep="/")
    found = flatten_dict(other.restore(step, asked, part=part), sep="/")
    # One source may fill several arrays: all but its namesake are copies, as steps donate their buffers.
    found = {name: found[theirs] if name == theirs else jnp.copy(found[theirs]) for name, theirs in both.items()}
    params = unflatten_dict({**flatten_dict(state.params, sep="/"), **found}, sep="/")
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    lines = [f"started from {path}, step {step}: {len(both)} of {len(wanted)} arrays"]
    lines += listed("drawn anew", set(wanted) - set(both)) + listed("left out", set(theirs) - set(both.values()))
    return state.replace(params=params, average=average), lines


def relabelled(objective: Objective, other: Objective) -> Callable[[str], bool]:
    """Tell the arrays that score the labels of a task which `other` has with other labels, or of another kind."""
    mine, theirs = labels_of(objective), labels_of(other)
    odd = [name for name in mine if name in theirs and not alike(mine[name], theirs[name])]
    return lambda path: any(path.startswith(name) and LAST.fullmatch(path.removeprefix(name)) for name in odd)


def labels_of(objective: Objective) -> dict[str, tuple[Any, Any]]:
    """Give (labels, kind) of each task by what its arrays' names begin with; of one that has none (None, None)."""
    objective = objective.inner
    parts = {f"{part.name}/": part.objective for part in objective.parts} or {"": objective}
    return {name: (one.labels, one.kind) for name, one in parts.items()}


def plain(tree: Any) -> Any:
    """Convert Orbax's metadata of a tree to plain dictionaries."""
    return {name: plain(one) for name, one in tree.items()} if isinstance(tree, dict) else tree


def listed(what: str, names: set[str]) -> list[str]:
    """Format up to MOST names on one line; no line without names."""
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return [f"{what}: {', '.join(sorted(names)[:MOST])}{more}"] if names else []
