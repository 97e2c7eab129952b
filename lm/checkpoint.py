"""Checkpoints: asynchronous Orbax saves of the state, the last ones and the best ones kept, restored onto any mesh."""

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lm.config import Config, Keep
from lm.errors import UserError, check
from lm.stopping import EarlyStop

BY_LOSS = EarlyStop()


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints`.

    `read_only` for whoever only looks: the run may be writing, and opening it to write removes half-written saves.
    `stop` says by which figure they are ranked.
    """

    def __init__(self, workdir: Path, keep: Keep, read_only: bool = False, stop: EarlyStop = BY_LOSS):
        import orbax.checkpoint as ocp

        self.ocp, self.stop = ocp, stop
        policies = ocp.checkpoint_managers
        # Never `best_fn` with `max_to_keep`: that deletes the newest checkpoint when it is not among the best.
        kept = [policies.LatestN(max(keep.last, 1))]
        if keep.best:
            ranked = {"get_metric_fn": stop.rank, "reverse": True, "n": keep.best}
            kept.append(policies.BestN(**ranked, keep_checkpoints_without_metrics=False))  # else all that were not evaluated
        before = set(threading.enumerate())
        self.manager = ocp.CheckpointManager(
            Path(workdir).absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=stop.rank,
                best_mode="min",
                enable_async_checkpointing=True,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )
        self.begun = [x for x in threading.enumerate() if x not in before and not x.daemon]

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint, None when there is none."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the best figure, of equal ones the earliest; the newest where none was evaluated."""
        found = self.manager.best_step()
        return self.latest() if found is None else found

    def result(self) -> int | None:
        """Step of what the run has come to: with patience its best checkpoint, else its newest."""
        return self.best() if self.stop.patience else self.latest()

    def save(self, step: int, state: Any, notes: dict[str, Any], figures: Mapping[str, float] | None = None) -> None:
        """Start saving; the copy off the devices is done when this returns, the writing goes on behind.

        `figures` are those of an evaluation at this step, if there was one.
        """
        if step in self.manager.all_steps():
            return
        args = self.ocp.args.Composite(
            state=self.ocp.args.StandardSave(to_tree(state)), notes=self.ocp.args.JsonSave(notes)
        )
        ranked = None if figures is None else {n: float(v) for n, v in figures.items() if math.isfinite(v)} | {"step": step}
        self.manager.save(step, args=args, metrics=ranked, force=True)

    def notes(self, step: int) -> dict[str, Any]:
        """What was noted beside the state."""
        return self.manager.restore(step, args=self.ocp.args.Composite(notes=self.ocp.args.JsonRestore()))["notes"]

    def restore(self, step: int, abstract: Any, part: str | None = None) -> Any:
        """Read the state (or one field of it) of a step straight into the shardings of `abstract`.

        Raises UserError when the checkpoint holds arrays of other names or shapes.
        """
        tree = to_tree(abstract) if part is None else {part: abstract}
        folder = self.manager.directory / str(step)
        compare(tree, self.stored(step), folder)
        args = (
            self.ocp.args.StandardRestore(tree)
            if part is None
            else self.ocp.args.PyTreeRestore(
                tree,
                restore_args=self.ocp.checkpoint_utils.construct_restore_args(tree),
                partial_restore=True,
            )
        )
        found = self.manager.restore(step, args=self.ocp.args.Composite(state=args))["state"]
        return found[part] if part else abstract.replace(**found)

    def stored(self, step: int) -> dict[str, Any]:
        """Shapes and dtypes of all arrays of a step, as they were saved."""
        # Not the manager's item_metadata: in a process that has saved nothing yet it knows no handler and gives None.
        folder = self.manager.directory / str(step) / "state"
        return self.ocp.StandardCheckpointer().metadata(folder).item_metadata.tree

    def wait(self) -> None:
        """Block until every started save is on disk."""
        self.manager.wait_until_finished()

    def close(self) -> None:
        """Finish the saves and release the manager."""
        self.manager.wait_until_finished()
        self.manager.close()
        # Orbax does not wait for its removal of half-written saves: at the interpreter's end that would die with a traceback.
        for thread in self.begun:
            threading.Thread.join(thread)  # not Orbax's own `join`: it raises, which would hide why we close


def to_tree(state: Any) -> dict[str, Any]:
    """Turn the state into a plain dictionary; fields that are None are left out, as Orbax does not keep them."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value is not None}


def compare(wanted: Any, stored: Any, path: Any) -> None:
    """Raise UserError naming the first array that a checkpoint lacks or holds in another shape."""

    def shapes(tree):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {keys(p): tuple(x.shape) for p, x in leaves if hasattr(x, "shape")}

    def keys(path):
        return "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)

    have, want = shapes(stored), shapes(wanted)
    for name, shape in want.items():
        if name not in have:
            raise UserError(
                f"checkpoint {path} has no '{name}': it is of another model or optimizer; use another --workdir"
            )
        if have[name] != shape:
            raise UserError(
                f"checkpoint {path} holds '{name}' as {have[name]}, this config needs {shape}: it is of another shape; "
                "use its config or another --workdir"
            )


def is_published(path: str | Path) -> bool:
    """Tell a model folder in Hugging Face's layout from a run: its config.json names no objective."""
    try:
        return "objective" not in json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def load_params(config: Config, workdir: Path, step: str) -> Any:
    """Read the parameters (their average when the run kept one) of a checkpoint onto this machine's first device.

    `step`: a number, "latest", "best", or "auto": the best one of a run with patience (`Config.stop`), else the latest.
    """
    check((workdir / "checkpoints").is_dir(), f"'{workdir}' has no finished checkpoint yet")
    checkpoints = Checkpoints(workdir, config.keep, read_only=True, stop=config.stop)
    saved = checkpoints.manager.all_steps()
    check(len(saved) > 0, f"'{workdir}' has no finished checkpoint yet")
    named = {"auto": checkpoints.result, "latest": checkpoints.latest, "best": checkpoints.best}
    if step in named:
        number = named[step]()
    else:
        kept = ", ".join(map(str, saved))
        check(step.isdigit() and int(step) in saved, f"--step={step}: '{workdir}' has {kept}; or say auto, latest or best")
        number = int(step)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    part = "average" if config.optimizer.average else "params"
    stored = checkpoints.stored(number)[part]
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=place), stored)
    return checkpoints.restore(number, abstract, part=part)
