"""Checkpoints: asynchronous Orbax saves of the state, the last ones and the best ones kept, restored onto any mesh.

A save is believed only when it is whole: its notes are sealed, and hold a checksum of each array
(`lm.training.integrity`) that is computed anew at every restore.
"""

import contextlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from lm.errors import UserError, one_line, translate
from lm.outputs import replace_file
from lm.strict_json import is_sealed, load_json, seal
from lm.training.integrity import checksums, path_of, shape_in
from lm.training.settings import Keep
from lm.training.stopping import EarlyStop

BY_LOSS = EarlyStop()
ASIDE = "damaged"  # the folder of a run that damaged checkpoints are moved to
Found = TypeVar("Found")


class Damaged(UserError):
    """The content of a checkpoint differs from what was saved."""

    def __init__(self, folder: Path, reason: str):
        super().__init__(f"checkpoint {folder} is damaged ({reason})")


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints`.

    `read_only` for whoever only looks: the run may be writing, and opening it to write removes half-written saves.
    `stop` says by which figure they are ranked.
    """

    def __init__(self, workdir: Path, keep: Keep, read_only: bool = False, stop: EarlyStop = BY_LOSS):
        import orbax.checkpoint as ocp

        self.ocp, self.stop, self.keep = ocp, stop, keep
        self.read_only, self.workdir = read_only, Path(workdir).absolute()
        folder = self.workdir / "checkpoints"
        policies = ocp.checkpoint_managers
        # Never `best_fn` with `max_to_keep`: that deletes the newest checkpoint when it is not among the best.
        kept = [policies.LatestN(max(keep.last, 1))]
        if keep.best:
            ranked = {"get_metric_fn": stop.rank, "reverse": True, "n": keep.best}
            kept.append(policies.BestN(**ranked, keep_checkpoints_without_metrics=False))  # else all that were not evaluated

        class Manager(ocp.CheckpointManager):
            def metrics(self, step: int) -> dict[str, float] | None:
                return figures_of(folder / str(step))  # Orbax's own would raise on those of any save that is damaged

        before = set(threading.enumerate())
        self.manager = Manager(
            folder,
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

    def steps(self) -> list[int]:
        """List the steps of the finished checkpoints, the newest last."""
        return sorted(self.manager.all_steps())

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint, None when there is none."""
        return self.manager.latest_step()

    def ranked(self) -> list[int]:
        """List the steps that were evaluated, the best first, of equal ones the earliest."""
        figures = {step: found for step in self.steps() if (found := figures_of(self.folder(step))) is not None}
        return sorted(figures, key=lambda step: self.stop.rank(figures[step]))

    def best(self) -> int | None:
        """Step of the checkpoint with the best figure, of equal ones the earliest; the newest where none was evaluated."""
        return next(iter(self.ranked()), self.latest())

    def result(self) -> int | None:
        """Step of what the run has come to: with patience its best checkpoint, else its newest."""
        return self.best() if self.stop.patience else self.latest()

    def results(self, step: str = "auto") -> list[int]:
        """List the steps that "auto", "latest" or "best" may stand for, the first choice first."""
        newest = self.steps()[::-1]
        if step == "best" or (step == "auto" and self.stop.patience):
            best = self.ranked()
            return [*best, *(one for one in newest if one not in best)]
        return newest

    def folder(self, step: int) -> Path:
        """Return where a step lies."""
        return Path(self.manager.directory) / str(step)

    def save(
        self,
        step: int,
        state: Any,
        notes: Mapping[str, Any],
        figures: Mapping[str, float] | None = None,
        batch: Mapping[str, Any] | None = None,
    ) -> None:
        """Start saving; the copy off the devices is done when this returns, the writing goes on behind.

        `figures`: of an evaluation at this step, if there was one; `batch`: shapes by which a config is compared with the
        arrays later.
        """
        if step in self.manager.all_steps():
            return
        tree = to_tree(state)
        ranked = ranks(step, figures)
        shapes = {name: [list(x.shape), np.dtype(x.dtype).name] for name, x in (batch or {}).items()}
        noted = seal({**notes, "figures": ranked, "batch": shapes, "arrays": checksums(tree)})
        args = self.ocp.args.Composite(state=self.ocp.args.StandardSave(tree), notes=self.ocp.args.JsonSave(noted))
        self.manager.save(step, args=args, metrics=ranked, force=True)

    def amend(self, step: int, notes: Mapping[str, Any], figures: Mapping[str, float] | None) -> None:
        """Add notes and the figures of a later evaluation to a save; delete checkpoints that no longer rank among the kept.

        Waits until the save is on disk. All processes call it together.
        """
        self.wait()
        ranked = ranks(step, figures)
        if jax.process_index() == 0:
            noted = {name: value for name, value in self.notes(step).items() if name != "seal"}
            replace_file(self.folder(step) / "notes" / "metadata", json.dumps(seal({**noted, **notes, "figures": ranked})))
            if ranked is not None:
                path = self.folder(step) / "metrics" / "metrics"
                path.parent.mkdir(exist_ok=True)
                replace_file(path, json.dumps(ranked))
        agreed(True)
        self.manager.reload()
        for old in set(self.steps()) - {*self.steps()[-max(self.keep.last, 1) :], *self.ranked()[: self.keep.best]}:
            self.manager.delete(old)

    def notes(self, step: int) -> dict[str, Any]:
        """Return the notes saved beside the state; raises Damaged when they do not match their checksum."""
        path = self.folder(step) / "notes" / "metadata"
        try:
            notes = load_json(path, dict)
        except (OSError, UserError) as error:
            raise Damaged(self.folder(step), f"its notes cannot be read: {translate(error)}") from None
        # Saves of before there were checksums have neither.
        if ("seal" in notes or "arrays" in notes) and not is_sealed(notes):
            raise Damaged(self.folder(step), "its notes do not match their checksum")
        return notes

    def restore(self, step: int, abstract: Any, part: str | None = None) -> Any:
        """Read the state (or one field of it) of a step straight into the shardings of `abstract`.

        Raises UserError when the checkpoint holds arrays of other names or shapes, Damaged when it is not what was saved.
        """
        tree = to_tree(abstract) if part is None else {part: abstract}
        arrays = self.notes(step).get("arrays")
        have = self.shapes(step) if arrays is None else {name: shape_in(entry) for name, entry in arrays.items()}
        compare(tree, have, self.folder(step))
        args = (
            self.ocp.args.StandardRestore(tree)
            if part is None
            else self.ocp.args.PyTreeRestore(
                tree,
                restore_args=self.ocp.checkpoint_utils.construct_restore_args(tree),
                partial_restore=True,
            )
        )
        with self.reading(step):
            restored = self.manager.restore(step, args=self.ocp.args.Composite(state=args))["state"]
            again = checksums(restored) if arrays else {}
        if odd := [name for name, entry in again.items() if entry != arrays[name]]:
            raise Damaged(self.folder(step), f"'{odd[0]}' is not what was saved")
        return restored[part] if part else abstract.replace(**restored)

    def stored(self, step: int) -> dict[str, Any]:
        """Shapes and dtypes of all arrays of a step, as they were saved."""
        # Not the manager's item_metadata: in a process that has saved nothing yet it knows no handler and gives None.
        with self.reading(step):
            metadata = self.ocp.StandardCheckpointer().metadata(self.folder(step) / "state").item_metadata
        if metadata is None:
            raise Damaged(self.folder(step), "the list of its arrays is missing or cannot be read")
        return metadata.tree

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Map the paths of all arrays of a step to their shapes, as Orbax has them: for saves without checksums."""
        leaves = jax.tree_util.tree_flatten_with_path(self.stored(step))[0]
        return {path_of(path): tuple(x.shape) for path, x in leaves if hasattr(x, "shape")}

    @contextlib.contextmanager
    def reading(self, step: int):
        """Turn what Orbax raises on a broken checkpoint into Damaged; want of memory or permission is not damage."""
        try:
            yield
        except (UserError, MemoryError, PermissionError):
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
                raise
            raise Damaged(self.folder(step), one_line(f"{type(error).__name__}: {error}", 120)) from error

    def first_whole(
        self, steps: Sequence[int], attempt: Callable[[int], Found], say: Callable[[str], None]
    ) -> tuple[int, Found]:
        """Return (step, attempt(step)) of the first of `steps` at which it does not raise Damaged.

        Those before it are said and, unless read_only, moved to `workdir/damaged`, never deleted. Raises UserError where none
        is whole; nothing is moved then. All processes call it together.
        """
        damaged: list[Damaged] = []
        for step in steps:
            found, error = None, None
            try:
                found = attempt(step)
            except Damaged as one:
                error = one
            if agreed(error is None):
                for one, other in zip(damaged, steps):
                    moved = "" if self.read_only else f"; it lies in {self.set_aside(other)} now"
                    say(f"{one}: taking that of step {step}{moved}")
                if damaged and not self.read_only:
                    self.manager.reload()
                return step, found
            damaged.append(error or Damaged(self.folder(step), "another process could not read it"))
        raise UserError(f"{damaged[0]}, and no whole one is left in {self.workdir}: bring a copy back or use another --workdir")

    def set_aside(self, step: int) -> Path:
        """Move a checkpoint out of Orbax's sight; return where it lies then."""
        folder = self.workdir / ASIDE
        taken = sum(path.name.partition("-")[0] == str(step) for path in folder.glob("*"))
        target = folder / (f"{step}-{taken + 1}" if taken else str(step))
        if jax.process_index() == 0:
            folder.mkdir(exist_ok=True)
            shutil.move(self.folder(step), target)
        agreed(True)  # nobody lists the folder before it is moved
        return target

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


def compare(wanted: Any, have: Mapping[str, tuple[int, ...]], path: Any) -> None:
    """Raise UserError naming the first array that a checkpoint lacks or holds in another shape."""
    for keys, x in jax.tree_util.tree_flatten_with_path(wanted)[0]:
        name, shape = path_of(keys), tuple(x.shape)
        if name not in have:
            raise UserError(
                f"checkpoint {path} has no '{name}': it is of another model or optimizer; use another --workdir"
            )
        if have[name] != shape:
            raise UserError(
                f"checkpoint {path} holds '{name}' as {have[name]}, this config needs {shape}: it is of another shape; "
                "use its config or another --workdir"
            )


def agreed(good: bool) -> bool:
    """Tell whether all processes say so."""
    if jax.process_count() == 1:
        return good
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def ranks(step: int, figures: Mapping[str, float] | None) -> dict[str, float] | None:
    """Return the finite figures with their step, by which equal ones are told apart."""
    return None if figures is None else {n: float(v) for n, v in figures.items() if math.isfinite(v)} | {"step": step}


def figures_of(folder: Path) -> dict[str, float] | None:
    """Return the figures of the evaluation at a save's step, from its notes, or, before those held them, from Orbax's file.

    None where there was none, and where they cannot be read: only ranking needs them.
    """
    with contextlib.suppress(UserError, OSError):
        notes = load_json(folder / "notes" / "metadata", dict)
        if "figures" in notes and is_sealed(notes):
            return notes["figures"]
    with contextlib.suppress(UserError, OSError):
        return load_json(folder / "metrics" / "metrics", dict)
    return None
