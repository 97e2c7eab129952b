"""Checkpoints: asynchronous Orbax saves of the state, the last and the best kept, restored onto any mesh.

A save is trusted only when it is whole: its notes carry a checksum of their own and one of each array
(`lm.training.integrity`), which every restore computes again.
"""

import contextlib
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
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
ASIDE = "damaged"  # folder of a run for its damaged checkpoints
Result = TypeVar("Result")


class Damaged(UserError):
    """The content of a checkpoint differs from its checksums, or cannot be read."""

    def __init__(self, folder: Path, reason: str):
        super().__init__(f"checkpoint {folder} is damaged ({reason})")


class Checkpoints:
    """The checkpoints of one run, under `workdir/checkpoints`.

    `read_only`: for every reader beside the run itself, as opening for writing removes half-written saves. `stop` names the
    figure that ranks them.
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
            kept.append(policies.BestN(**ranked, keep_checkpoints_without_metrics=False))  # else all without an evaluation

        class Manager(ocp.CheckpointManager):
            def metrics(self, step: int) -> dict[str, float] | None:
                return figures_of(folder / str(step))  # Orbax's own would raise on those of any save that is damaged

        # Orbax starts threads of its own, which `close` joins; it does not name them.
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

    def ranked(self) -> list[int]:
        """List the evaluated steps, the best first, ties by the earlier step."""
        figures = {step: each for step in self.steps() if (each := figures_of(self.folder(step))) is not None}
        return sorted(figures, key=lambda step: self.stop.rank(figures[step]))

    def results(self, step: str = "auto") -> list[int]:
        """List the candidate steps for "auto", "latest" or "best", the first choice first."""
        newest = self.steps()[::-1]
        if step == "best" or (step == "auto" and self.stop.patience):
            best = self.ranked()
            return [*best, *(other for other in newest if other not in best)]
        return newest

    def folder(self, step: int) -> Path:
        """Return the folder of a step."""
        return Path(self.manager.directory) / str(step)

    def save(
        self,
        step: int,
        state: Any,
        notes: Mapping[str, Any],
        figures: Mapping[str, float] | None = None,
        batch: Mapping[str, Any] | None = None,
    ) -> None:
        """Start saving: returns after the copy off the devices, while a thread writes.

        `figures`: of an evaluation at this step, if there was one. `batch`: the arrays whose shapes the notes keep, from which
        a config's parameters are traced later (`lm.saved.check_objective`).
        """
        if step in self.manager.all_steps():
            return
        tree, ranked = to_tree(state), ranks(step, figures)
        shapes = {name: [list(x.shape), np.dtype(x.dtype).name] for name, x in (batch or {}).items()}
        noted = seal({**notes, "figures": ranked, "batch": shapes, "arrays": checksums(tree)})
        args = self.ocp.args.Composite(state=self.ocp.args.StandardSave(tree), notes=self.ocp.args.JsonSave(noted))
        self.manager.save(step, args=args, metrics=ranked, force=True)

    def amend(self, step: int, notes: Mapping[str, Any], figures: Mapping[str, float] | None) -> None:
        """Add notes and the figures of a later evaluation to a save; delete checkpoints that no longer rank among the kept.

        Waits until the save is on disk. A collective call: all processes make it.
        """
        self.wait()
        ranked = ranks(step, figures)
        # Orbax cannot change a finished save, so its two JSON files are replaced; each replacement is atomic.
        if jax.process_index() == 0:
            noted = {name: value for name, value in self.notes(step).items() if name != "seal"}
            replace_file(self.folder(step) / "notes" / "metadata", json.dumps(seal({**noted, **notes, "figures": ranked})))
            if ranked is not None:
                path = self.folder(step) / "metrics" / "metrics"
                path.parent.mkdir(exist_ok=True)
                replace_file(path, json.dumps(ranked))
        agreed(True)  # a barrier: nobody lists the folder before the files are in place
        self.manager.reload()
        # Orbax ranked this save when it began, without figures, and may have kept one that it now surpasses.
        for old in set(self.steps()) - {*self.steps()[-max(self.keep.last, 1) :], *self.ranked()[: self.keep.best]}:
            self.manager.delete(old)

    def notes(self, step: int) -> dict[str, Any]:
        """Return the notes saved beside the state; raises Damaged where they do not match their checksum."""
        path = self.folder(step) / "notes" / "metadata"
        try:
            notes = load_json(path, dict)
        except (OSError, UserError) as error:
            raise Damaged(self.folder(step), f"its notes cannot be read: {translate(error)}") from None
        # Saves from before checksums have neither.
        if ("seal" in notes or "arrays" in notes) and not is_sealed(notes):
            raise Damaged(self.folder(step), "its notes do not match their checksum")
        return notes

    def restore(self, step: int, abstract: Any, part: str | None = None) -> Any:
        """Read the state of a step, or its field `part` alone, straight into the shardings of `abstract`.

        Raises UserError where the checkpoint holds arrays of other names or shapes, Damaged where a checksum differs.
        """
        # Orbax reads only the arrays of the tree, so a part costs no memory for the optimizer's.
        tree = to_tree(abstract) if part is None else {part: abstract}
        arrays = self.notes(step).get("arrays")
        # Before Orbax reads anything: its own errors on a wrong shape name neither the array nor the way out.
        shapes = self.shapes(step) if arrays is None else {name: shape_in(entry) for name, entry in arrays.items()}
        compare(tree, shapes, self.folder(step))
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
        if odd := [name for name, entry in again.items() if arrays and entry != arrays[name]]:
            raise Damaged(self.folder(step), f"'{odd[0]}' is not what was saved")
        return restored[part] if part else abstract.replace(**restored)

    def stored(self, step: int) -> dict[str, Any]:
        """Return the shapes and dtypes of all arrays of a step, as a tree."""
        # Not the manager's item_metadata: in a process that has saved nothing yet it knows no handler and returns None.
        with self.reading(step):
            metadata = self.ocp.StandardCheckpointer().metadata(self.folder(step) / "state").item_metadata
        if metadata is None:
            raise Damaged(self.folder(step), "the list of its arrays is missing or cannot be read")
        return metadata.tree

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Map the path of each array of a step to its shape, from Orbax's metadata: for saves without checksums."""
        leaves = jax.tree_util.tree_flatten_with_path(self.stored(step))[0]
        return {path_of(path): tuple(x.shape) for path, x in leaves if hasattr(x, "shape")}

    @contextlib.contextmanager
    def reading(self, step: int) -> Iterator[None]:
        """Turn Orbax's errors on a broken checkpoint into Damaged; lack of memory or permission is not damage."""
        try:
            yield
        except (UserError, MemoryError, PermissionError):
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
                raise
            raise Damaged(self.folder(step), one_line(f"{type(error).__name__}: {error}", 120)) from error

    def first_whole(
        self, steps: Sequence[int], attempt: Callable[[int], Result], say: Callable[[str], None]
    ) -> tuple[int, Result]:
        """Return (step, attempt(step)) for the first of `steps` at which it does not raise Damaged.

        Damaged ones before it are reported and, unless read_only, moved to `workdir/damaged`, never deleted. Raises UserError
        where none is whole, and moves nothing then. A collective call.
        """
        damaged: list[Damaged] = []
        for step in steps:
            error: Damaged | None = None
            try:
                result = attempt(step)
            except Damaged as damage:
                error = damage
            # A checkpoint counts as whole only where every process could read its part.
            if agreed(error is None):
                for before, other in zip(damaged, steps):
                    moved = "" if self.read_only else f"; it lies in {self.set_aside(other)} now"
                    say(f"{before}: taking that of step {step}{moved}")
                if damaged and not self.read_only:
                    self.manager.reload()
                return step, result
            damaged.append(error or Damaged(self.folder(step), "another process could not read it"))
        raise UserError(f"{damaged[0]}, and no whole one is left in {self.workdir}: bring a copy back or use another --workdir")

    def set_aside(self, step: int) -> Path:
        """Move a checkpoint out of Orbax's folder; return its new path."""
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
        # Orbax does not wait for its removal of half-written saves, which at the interpreter's end dies with a traceback.
        for thread in self.begun:
            threading.Thread.join(thread)  # not Orbax's own `join`: it raises, and hides the error that closes the run


def to_tree(state: Any) -> dict[str, Any]:
    """Turn the state into a dictionary of its fields without those that are None, which Orbax does not keep."""
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    return {name: value for name, value in fields.items() if value is not None}


def compare(wanted: Any, stored: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise UserError with the first array that a checkpoint lacks or stores in another shape."""
    for keys, x in jax.tree_util.tree_flatten_with_path(wanted)[0]:
        name, shape = path_of(keys), tuple(x.shape)
        if name not in stored:
            raise UserError(f"checkpoint {path} has no '{name}': it is of another model or optimizer; use another --workdir")
        if stored[name] != shape:
            raise UserError(
                f"checkpoint {path} holds '{name}' as {stored[name]}, this config needs {shape}: it is of another shape; "
                "use its config or another --workdir"
            )


def agreed(good: bool) -> bool:
    """Return whether the flag is true in every process: an all-reduce, and so a barrier."""
    if jax.process_count() == 1:
        return good
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def ranks(step: int, figures: Mapping[str, float] | None) -> dict[str, float] | None:
    """Return the finite figures, and the step, which breaks ties."""
    return None if figures is None else {n: float(v) for n, v in figures.items() if math.isfinite(v)} | {"step": step}


def figures_of(folder: Path) -> dict[str, float] | None:
    """Return the figures of the evaluation at a save's step: from its notes, in older saves from Orbax's file.

    None without an evaluation, and where they cannot be read: only ranking needs them.
    """
    with contextlib.suppress(UserError, OSError):
        notes = load_json(folder / "notes" / "metadata", dict)
        if "figures" in notes and is_sealed(notes):
            return notes["figures"]
    with contextlib.suppress(UserError, OSError):
        return load_json(folder / "metrics" / "metrics", dict)
    return None
