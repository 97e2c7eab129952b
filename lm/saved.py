"""The parameters of a run's checkpoint, read onto one device or a mesh, checked against config and tokenizer."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from lm.config import Config, read_config
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check, unknown
from lm.runs import digest_of
from lm.sharding import AXES, make_mesh, shardings, unbox
from lm.training.checkpoint import Checkpoints, compare
from lm.training.integrity import path_of, shape_in


def read_mesh(text: str | None) -> jax.sharding.Mesh | None:
    """Parse --mesh, `AXIS=SIZE,...`, into a mesh of all devices (an axis that is not named: 1); None without it."""
    if not text:
        return None
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in AXES:
            raise unknown("axis of --mesh", name, AXES)
        check(
            size == "-1" or size.isdecimal(), f"--mesh={text}: write AXIS=SIZE, for example fsdp=8; -1 is all remaining devices"
        )
        sizes[name] = int(size)
    return make_mesh(sizes)


def mesh_of(params: Any) -> jax.sharding.Mesh:
    """Return the mesh on which parameters lie; one of this process's first device where they lie on no mesh."""
    for x in jax.tree.leaves(params):
        if (
            isinstance(x, jax.Array)
            and isinstance(x.sharding, NamedSharding)
            and isinstance(x.sharding.mesh, jax.sharding.Mesh)
        ):
            return x.sharding.mesh
    return make_mesh(dict.fromkeys(AXES, 1), jax.local_devices()[:1])


def load_params(config: Config, workdir: Path, step: str, tokenizer: str = "", mesh: jax.sharding.Mesh | None = None) -> Any:
    """Read the parameters of a checkpoint (their average if the run kept one) onto a mesh, or onto this machine's first device.

    `step`: a number, "latest", "best", or "auto": the best of a run with patience (`Config.stop`), else the latest. For the
    words, damaged checkpoints are skipped with a line on stderr. `tokenizer`: digest of the tokenizer in use. Raises UserError
    where config or tokenizer differ from those of the training.
    """
    check((workdir / "checkpoints").is_dir(), f"'{workdir}' has no finished checkpoint yet")
    checkpoints = Checkpoints(workdir, config.keep, read_only=True, stop=config.stop)
    saved = checkpoints.steps()
    check(len(saved) > 0, f"'{workdir}' has no finished checkpoint yet")
    by_number = step not in ("auto", "latest", "best")
    kept = ", ".join(map(str, saved))
    check(
        not by_number or (step.isdecimal() and int(step) in saved),
        f"--step={step}: '{workdir}' has {kept}; or say auto, latest or best",
    )
    # Straight onto these devices, whatever mesh the run was trained on.
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    part = "average" if config.optimizer.average else "params"

    def attempt(number: int) -> Any:
        notes = checkpoints.notes(number)
        check_tokenizer(notes, tokenizer, workdir)
        # config.json is a file that people edit: equal digests spare tracing the network.
        differs = digest_of(read_config(workdir).objective) != notes.get("objective")
        if differs or mesh:
            resolved = config.objective.resolve(Tokenizer.load(workdir / "tokenizer.json"))  # heads depend on special tokens
            check_objective(resolved, notes, part, checkpoints.folder(number))
        stored = checkpoints.stored(number)
        check(part in stored, f"checkpoint {checkpoints.folder(number)} has no '{part}': config.json is of another run")
        places = shardings(traced(resolved, notes), mesh) if mesh else jax.tree.map(lambda _: place, stored[part])
        abstract = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=at), stored[part], places)
        return checkpoints.restore(number, abstract, part=part)

    if by_number:
        return attempt(int(step))
    return checkpoints.first_whole(checkpoints.results(step), attempt, lambda line: print(line, file=sys.stderr, flush=True))[1]


def check_tokenizer(notes: Mapping[str, Any], tokenizer: str, workdir: Path) -> None:
    """Raise UserError where a tokenizer's digest differs from that of the training."""
    trained = notes.get("tokenizer") or tokenizer
    check(
        not tokenizer or tokenizer == trained,
        f"{workdir / 'tokenizer.json'} is not the tokenizer that the run was trained with: bring it back",
    )


def check_objective(objective: Any, notes: Mapping[str, Any], part: str, path: Path) -> None:
    """Raise UserError where the parameters of a config differ in name or shape from a checkpoint's.

    It traces the network, which takes a second: call it only where the digests of the objectives differ.
    """
    arrays = notes.get("arrays")
    if not arrays or not notes.get("batch"):  # a save from before checksums, or of a published folder
        return
    wanted = {part: unbox(traced(objective, notes))}
    compare(wanted, {name: shape_in(entry) for name, entry in arrays.items()}, path)
    expected = {path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(wanted)[0]}
    if more := [name for name in arrays if name.startswith(f"{part}/") and name not in expected]:
        raise UserError(f"checkpoint {path} holds '{more[0]}', which config.json knows nothing of: it is of another model")


def traced(objective: Any, notes: Mapping[str, Any]) -> Any:
    """Return the abstract parameters of a resolved objective with their axes, for the batch of a checkpoint's notes."""
    # An imported folder was saved without a batch: these arrays are enough for the shapes of any network.
    shapes = notes.get("batch") or dict.fromkeys(("tokens", "source", "places"), ((1, 8), "int32"))
    batch = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (shape, dtype) in shapes.items()}
    return jax.eval_shape(objective.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
