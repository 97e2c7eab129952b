"""A run's folder: its lock, and the digest by which its checkpoints know its objective."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from lm.config import to_json
from lm.errors import UserError, check
from lm.outputs import Claim
from lm.strict_json import load_json
from lm.training.checkpoint import agreed

FILES, FOLDERS = ("config.json", "tokenizer.json", "metrics.jsonl", "summary.json"), ("checkpoints", "tensorboard", "samples")


def is_published(path: str | Path) -> bool:
    """Return whether a folder is a model in Hugging Face's layout, not a run: its config.json names no objective."""
    try:
        return "objective" not in load_json(Path(path) / "config.json", dict)
    except (OSError, UserError):
        return False


def digest_of(objective: Any) -> str:
    """Return the SHA-256 of a resolved objective, as a checkpoint's notes hold it."""
    return hashlib.sha256(to_json(objective).encode()).hexdigest()


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
