"""File ownership: one writer of a folder or file at a time, and outputs that never replace the user's files."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lm.errors import UserError, check

# Names with a meaning in a run or model folder, even where they do not exist yet.
RESERVED = {"config.json", "tokenizer.json", "tokenizer_config.json", "metrics.jsonl", "summary.json", "published.json",
            "predictions.jsonl", "figures.json", "generation_config.json"}  # fmt: skip


# -- one owner ---------------------------------------------------------------------------------------------------------


class Claim:
    """An exclusive lock on a folder or file, held while open; the kernel releases it when its holder dies.

    The lock file is FOLDER/.lock, for a file .NAME.lock beside it; it holds process id and host, for people. On a file system
    without locks every claim succeeds.
    """

    def __init__(self, path: Path, otherwise: str):
        """Lock `path`, an existing folder or a file; raises UserError with the holder and `otherwise`, the remedy."""
        # flock, not the file's existence: a lock of a killed process must not outlive it.
        self.path = Path(path)
        inside = self.path.is_dir()
        self.lock = self.path / ".lock" if inside else self.path.with_name(f".{self.path.name}.lock")
        self.file: IO[str] | None = None
        tries = 3  # `is_claimed` holds the lock for a moment, which must not be taken for an owner
        while self.file is None:
            file = self.lock.open("a+", encoding="utf-8")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = holder_of(file)
                file.close()
                tries -= 1
                if tries:
                    time.sleep(0.02)
                    continue
                raise UserError(f"{self.path} is in use by {holder}: wait for it to end, or {otherwise}") from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
                    file.close()
                    raise
            # The holder may have removed the file between the two calls: a lock on a removed file excludes nobody.
            if same_file(self.lock, file):
                self.file = file
            else:
                file.close()
        with contextlib.suppress(OSError):  # a full disk does not lose the lock
            self.file.seek(0)
            self.file.truncate()
            self.file.write(f"process {os.getpid()} on {os.uname().nodename}")
            self.file.flush()

    def close(self) -> None:
        """Release the lock."""
        if self.file:
            self.lock.unlink(missing_ok=True)
            self.file.close()
            self.file = None

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def is_claimed(path: Path) -> bool:
    """Return whether another process holds a `Claim` on a folder or file."""
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no lock file, or a file system without locks
        pass
    return False


def holder_of(file: IO[str]) -> str:
    """Return the process and host that a lock file names."""
    file.seek(0)
    return file.read(200).strip() or "another process"


def same_file(path: Path, file: IO[str]) -> bool:
    """Return whether `path` still names this open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


# -- outputs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Output:
    """An output file that `command` may write; `path` as the user named it."""

    path: Path
    command: str

    def write(self, text: str, errors: str = "strict") -> None:
        """Write the file atomically and record its digest."""
        if self.path.exists() and not self.path.is_file():  # a pipe or a terminal: nothing to replace
            self.path.write_text(text, encoding="utf-8", errors=errors)
            return
        replace_file(self.path.resolve(), text, errors)
        self.remember()

    def remember(self) -> None:
        """Record the file's digest, so that the same command may replace it while nobody changed it."""
        with contextlib.suppress(OSError):  # without the record the next call needs --overwrite
            note = receipt(self.path)
            note.parent.mkdir(parents=True, exist_ok=True)
            replace_file(note, json.dumps({"command": self.command, "sha256": digest(self.path)}) + "\n")

    def __str__(self) -> str:
        return str(self.path)


def output_file(name: str, command: str, inputs: Sequence[str | Path] = (), overwrite: bool = False) -> Output:
    """Return the output file `name` of `command`; raises UserError, before any work, where it must not be written.

    An input, a folder, or a part of a run or model folder is never written. An existing file is replaced only if the same
    command wrote it and nobody changed it since, or with `overwrite`.
    """
    # All reasons to refuse are checked here: a command may compute for hours before it writes.
    path = Path(name).expanduser()
    flag = f"--output={name}"
    check(bool(name), "--output is empty: name a file")
    check(path.parent.is_dir(), f"{flag}: there is no folder '{path.parent}'; make it first")
    check(not path.is_dir(), f"{flag} is a folder; name a file")
    for one in inputs:
        same = os.path.exists(one) and path.exists() and os.path.samefile(path, one)
        check(not same, f"{flag} is the input itself; name another file")
    if owner := folder_of(path):
        raise UserError(f"{flag} belongs to '{owner}', a {kind_of(owner)}; name a file elsewhere")
    if path.is_file():
        check(
            overwrite or wrote(path, command),
            f"{flag} exists and was not written by this command, or was changed since; name another file or add --overwrite",
        )
    # Last the file system: permission, and room in the name for the suffix of the temporary file (`replace_file`).
    writable = os.access(path if path.exists() else path.parent, os.W_OK)
    check(writable, f"{flag}: no permission to write there; name another file")
    longest = os.pathconf(path.parent, "PC_NAME_MAX")
    check(len(os.fsencode(path.name)) + 16 <= longest, f"{flag[:60]}...: the name is too long; name a shorter one")
    return Output(path, command)


def folder_of(path: Path) -> Path | None:
    """Return the run or model folder that a file is part of; None for a file of the user's.

    Directly in such a folder, new names and files written by commands are the user's.
    """
    # Resolved: a link from outside into a run would replace the run's own file.
    real = path.resolve()
    folder = next((one for one in real.parents if kind_of(one)), None)
    if folder is None or (folder == real.parent and real.name not in RESERVED and (not real.exists() or wrote(path, None))):
        return None
    return folder


def kind_of(folder: Path) -> str:
    """Return "run", "model folder", or "" for any other folder."""
    if not (folder / "config.json").is_file():
        return ""
    if (folder / "checkpoints").is_dir() or (folder / "metrics.jsonl").is_file():
        return "run"
    return "model folder" if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*")) else ""


def wrote(path: Path, command: str | None) -> bool:
    """Return whether `command` (None: any command) wrote this file and nobody changed it since."""
    try:
        note = json.loads(receipt(path).read_text(encoding="utf-8"))
        return (command is None or note["command"] == command) and note["sha256"] == digest(path)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def receipt(path: Path) -> Path:
    """Return the path of a written file's record: in the cache, not beside the user's file."""
    root = Path(os.environ.get("LM_CACHE") or "~/.cache/lm").expanduser()
    return root / "outputs" / (hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32] + ".json")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, text: str, errors: str = "strict") -> None:
    """Write a file atomically: readers and a crash see the old content or the new."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Flushed to the disk before the rename: a crash of the machine could otherwise leave an empty file of the new name.
        with fresh.open("w", encoding="utf-8", errors=errors, newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
