"""UserError, the exception for mistakes that the user can correct, its checks, and errors of the platform in one line."""

import difflib
import errno
import json
import typing
from collections.abc import Collection, Sequence
from typing import Any

SHORT = 12  # names that an error lists beside the nearest one


class UserError(Exception):
    """A user's mistake: one line that names the field, file or flag, and the remedy.

    Entry points print it without a traceback and exit with its status (`lm.flags.run`); a traceback means a defect of lm.
    """

    status = 2


class Temporary(UserError):
    """The end of a run that is nobody's mistake: the same command, started again, resumes it.

    Its status is EX_TEMPFAIL of sysexits.h, on which schedulers and `launch.local` start a job again.
    """

    status = 75


def check(condition: object, message: str) -> None:
    """Raise `UserError(message)` unless the condition holds."""
    if not condition:
        raise UserError(message)


def unknown(kind: str, name: str, valid: Collection[str], meant: Sequence[str] | None = None) -> UserError:
    """Return the error for an unknown name: it suggests `meant`, by default the nearest valid name.

    Beside a suggestion, a long list of valid names is left out.
    """
    near = difflib.get_close_matches(str(name), valid, 1) if meant is None else meant
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    listed = "" if near and len(valid) > SHORT else f"valid: {', '.join(valid)}"
    return UserError(f"unknown {kind} '{name}': {hint}{listed}".rstrip())


def check_choices(instance: Any) -> None:
    """Raise UserError where a field of a Literal type holds another value."""
    for name, kind in typing.get_type_hints(type(instance)).items():
        choices = typing.get_args(kind)
        if typing.get_origin(kind) is typing.Literal and getattr(instance, name) not in choices:
            raise unknown(name, getattr(instance, name), [str(c) for c in choices])


def check_range(instance: Any, low: float, high: float, *names: str) -> None:
    """Raise UserError unless low <= field < high for each named field, and it is finite."""
    for name in names:
        value = getattr(instance, name)
        above = f" and below {high:g}" if high < float("inf") else ""
        wanted = f"at least {low:g}{above}" if low > -float("inf") else "a finite number"
        check(low <= value < high and value > -float("inf"), f"{name}={value} must be {wanted}")


# -- errors of the environment in one line ------------------------------------------------------------------------------

# errno -> (cause, remedy); the file name precedes them.
BY_ERRNO = {
    errno.EFBIG: ("the file is larger than this system or its limit allows", "raise the limit with `ulimit -f`"),
    errno.ENOSPC: ("the disk is full", "make room or name a folder on another disk; what was finished is kept"),
    errno.EDQUOT: ("the disk quota is used up", "make room or name a folder on another disk; what was finished is kept"),
    errno.EROFS: ("the file system is read-only", "name a folder that can be written"),
    errno.EACCES: ("no permission", "change its permissions or name another"),
    errno.EPERM: ("not permitted", "change its permissions or name another"),
    errno.ENAMETOOLONG: ("the name is too long", "name a shorter one"),
    errno.EISDIR: ("is a folder where a file is needed", "name a file"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "name another folder"),
    errno.ENOENT: ("does not exist", "check the path"),
    errno.EEXIST: ("exists already", "remove it or name another"),
    errno.ENOTEMPTY: ("the folder is not empty", "is another process using it? name another folder"),
    errno.ELOOP: ("its links lead in a circle", "name another"),
    errno.EMFILE: ("too many open files", "raise the limit with `ulimit -n`"),
    errno.ENOMEM: ("out of memory", "make the batch, the model or the input smaller"),
    errno.EADDRINUSE: ("the port is taken", "name another port"),
    errno.EIO: ("the disk reports an error", "check the disk"),
}
# Part of the message of a library's error without errno -> the line.
BY_TEXT = (
    ("File too large", "a file is larger than this system or its limit allows: raise the limit (ulimit -f)"),
    ("No space left on device", "the disk is full: make room or name a folder on another disk; what was finished is kept"),
    ("Disk quota exceeded", "the disk quota is used up: make room or name a folder on another disk"),
    ("Read-only file system", "the file system is read-only: name a folder that can be written"),
    ("Permission denied", "no permission to read or write a file: {text}"),
)
ARCHIVES = {"zlib.error", "zipfile.BadZipFile", "tarfile.ReadError", "gzip.BadGzipFile", "lzma.LZMAError", "builtins.EOFError"}


def translate(error: BaseException) -> str | None:
    """Return one line for an error of the environment or of an input; None for a defect of this code.

    A reader that knows more (the line of a file, its role) raises UserError itself; this is the boundary behind all readers, so
    that none has to catch every error of the platform.
    """
    name, text = f"{type(error).__module__}.{type(error).__qualname__}", one_line(str(error))
    # Types before texts: the message of a library may contain any words.
    if isinstance(error, UserError):
        return str(error)
    if name == "pyo3_runtime.PanicException":  # no Exception: a panic in the Rust code of tokenizers
        return f"the tokenizer library gave up: {text}; its tokenizer.json or the text is beyond what it can do"
    if isinstance(error, OSError):
        return os_error(error)
    if isinstance(error, UnicodeDecodeError):
        return f"a file is not UTF-8 near byte {error.start}: convert it first"
    if isinstance(error, UnicodeEncodeError):
        return f"text holds a character that cannot be written as {error.encoding} (position {error.start}): remove it"
    if isinstance(error, RecursionError):
        return "an input is nested too deeply: flatten it"
    if isinstance(error, MemoryError):
        return "out of memory: make the batch, the model or the input smaller"
    if isinstance(error, OverflowError):
        return f"a number is too large ({text}): give a smaller one"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON: {text}"
    if name in ARCHIVES:
        return f"a compressed file is damaged or cut short ({text or 'unexpected end'}): fetch it again"
    # Orbax, tensorstore and tokenizers report the file system in words alone.
    for part, line in BY_TEXT:
        if part in text:
            return line.format(text=text)
    if "RESOURCE_EXHAUSTED" in text or "Out of memory" in text:  # jax has one class for every failure of XLA
        return (
            f"the device is out of memory ({text[:200]}): lower batch, raise micro_batches, set objective.model.remat, or "
            "shard over a larger mesh"
        )
    return None


def os_error(error: OSError) -> str:
    """Return the line for an OSError: file, cause, remedy."""
    where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    cause, remedy = BY_ERRNO.get(error.errno or 0, (one_line(error.strerror or str(error)) or type(error).__name__, ""))
    if len(where) > 200:
        where = f"{where[:80]}...{where[-40:]}"
    return f"{where + ': ' if where else ''}{cause}{': ' + remedy if remedy else ''}"


def one_line(text: str, most: int = 400) -> str:
    """Collapse white space and truncate to `most` characters."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."
