"""A run's folder: its lock, and the parameters of a checkpoint, checked against config and tokenizer."""

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from lm.config import Config, read_config, to_json
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check
from lm.outputs import Claim
from lm.sharding import unbox
from lm.strict_json import load_json
from lm.training.checkpoint import Checkpoints, agreed, compare
from lm.training.integrity import path_of, shape_in

FILES, FOLDERS = ("config.json", "tokenizer.json", "metrics.jsonl", "summary.json"), ("checkpoints", "tensorboard", "samples")


def is_published(path: str | Path) -> bool:
    """Return whether a folder is a model in Hugging Face's layout, not a run: its config.json names no objective."""
    try:
        return "objective" not in load_json(Path(path) / "config.json", dict)
    except (OSError, UserError):
        return False


def load_params(config: Config, workdir: Path, step: str, tokenizer: str = "") -> Any:
    """Read the parameters of a checkpoint (their average if the run kept one) onto this machine's first device.

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
    # Straight onto one device, whatever mesh the run was trained on.
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    part = "average" if config.optimizer.average else "params"

    def attempt(number: int) -> Any:
        notes = checkpoints.notes(number)
        check_tokenizer(notes, tokenizer, workdir)
        # config.json is a file that people edit: equal digests spare tracing the network.
        if digest_of(read_config(workdir).objective) != notes.get("objective"):
            resolved = config.objective.resolve(Tokenizer.load(workdir / "tokenizer.json"))  # heads depend on special tokens
            check_objective(resolved, notes, part, checkpoints.folder(number))
        stored = checkpoints.stored(number)
        check(part in stored, f"checkpoint {checkpoints.folder(number)} has no '{part}': config.json is of another run")
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=place), stored[part])
        return checkpoints.restore(number, abstract, part=part)

    if by_number:
        return attempt(int(step))
    return checkpoints.first_whole(checkpoints.results(step), attempt, lambda line: print(line, file=sys.stderr, flush=True))[1]


def digest_of(objective: Any) -> str:
    """Return the SHA-256 of a resolved objective, as a checkpoint's notes hold it."""
    return hashlib.sha256(to_json(objective).encode()).hexdigest()


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
    batch = {name: jax.ShapeDtypeStruct(tuple(shape), dtype) for name, (shape, dtype) in notes["batch"].items()}
    wanted = {part: unbox(jax.eval_shape(objective.init, jax.eval_shape(lambda: jax.random.key(0)), batch))}
    compare(wanted, {name: shape_in(entry) for name, entry in arrays.items()}, path)
    expected = {path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(wanted)[0]}
    if more := [name for name in arrays if name.startswith(f"{part}/") and name not in expected]:
        raise UserError(f"checkpoint {path} holds '{more[0]}', which config.json knows nothing of: it is of another model")


@contextlib.contextmanager
def owned(workdir: Path) -> Iterator[None]:
    """Lock a run's folder; raises UserError, in all processes, where another run holds it."""
    claim, error = None, None
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                check(not (workdir / name).is_dir(), f"{workdir / name} is a folder where the run writes a file: move it away")
            for name in FOLDERS:
                check(not (workdir / name).is_file(), f"{workdir / name} is a file where the run has a folder: move it away")
            claim = Claim(workdir, "name another --workdir")
        except (UserError, OSError) as refusal:
            error = refusal
    # Process 0 alone holds the lock, but all must raise: the others would wait for it in the first collective.
    if not agreed(error is None):
        raise error or UserError(f"process 0 cannot write '{workdir}'")
    try:
        yield
    finally:
        if claim:
            claim.close()
            with contextlib.suppress(OSError):  # an empty folder is not left behind
                workdir.rmdir()
