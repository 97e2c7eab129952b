"""Strict JSON: bounded reading of untrusted documents, writing without NaN, checksums of objects."""

import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.errors import UserError, check, one_line

DEPTH = 200  # levels of nesting; configs, tokenizers and annotations have fewer than twenty
BYTES = 2 << 30  # of one document; larger data belong into JSON lines
WORDS = {dict: "an object", list: "a list", str: "a string", int: "a whole number", float: "a number", bool: "true or false",
         type(None): "null"}  # fmt: skip


def parse_json(text: str | bytes, where: str, kind: type | tuple[type, ...] | None = None) -> Any:
    """Parse one JSON document; `where` names it in errors, `kind` is its required type (or types).

    Raises UserError for broken JSON, bytes that are not UTF-8, numbers of more digits than Python converts, more than DEPTH
    levels and a document of another type.
    """
    if len(text) > BYTES:
        raise UserError(f"{where}: {len(text):,} bytes are more than one JSON document may have; use JSON lines")
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise UserError(f"{where}: no valid JSON ({error.msg} at {place}); mend it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 near byte {error.start}; convert it first") from None
    except RecursionError:
        raise UserError(f"{where}: nested deeper than {DEPTH} levels; flatten it") from None
    except ValueError as error:  # an integer past sys.get_int_max_str_digits()
        raise UserError(f"{where}: a number of too many digits ({one_line(str(error), 80)})") from None
    # Lines of a corpus pass here by the million: the cheap bound on the depth comes before the walk.
    if brackets(text) > DEPTH and depth(value) > DEPTH:
        raise UserError(f"{where}: nested deeper than {DEPTH} levels; flatten it")
    # The exact type first: this is the path of every line of a corpus.
    if kind is not None and type(value) is not kind:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # bool is a subclass of int in Python, not in JSON.
        fits = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
        words = " or ".join(WORDS.get(one, one.__name__) for one in kinds)
        check(fits, f"{where}: {words} is needed, not {WORDS[type(value)]}")
    return value


def load_json(path: str | Path, kind: type | tuple[type, ...] | None = None) -> Any:
    """Read a JSON file (`parse_json`). Errors of the file system propagate (`lm.errors.translate`)."""
    path = Path(path).expanduser()
    # Before reading: a pipe of zeros or a model file named by mistake must not fill the memory.
    size = path.stat().st_size
    check(size <= BYTES, f"{path}: {size:,} bytes are more than one JSON document may have; use JSON lines")
    return parse_json(path.read_bytes(), str(path), kind)


def load_json_lines(path: str | Path, kind: type | tuple[type, ...] | None = dict) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, value) of a JSON lines file; blank lines are skipped."""
    with Path(path).expanduser().open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, parse_json(line, f"{path}, line {number}", kind)


def brackets(text: str | bytes) -> int:
    """Count opening brackets: an upper bound on the depth."""
    return text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")


def depth(value: Any) -> int:
    """Return the nesting depth, by breadth: recursion would overflow on the very documents to reject."""
    level, count = [value], 0
    while level := [one for one in level if isinstance(one, (dict, list))]:
        count += 1
        if count > DEPTH:
            break
        level = list(itertools.chain.from_iterable(one.values() if isinstance(one, dict) else one for one in level))
    return count


def dump_json(value: Any, indent: int | None = None) -> str:
    """Serialise to JSON; NaN and infinity, which JSON lacks, become null."""
    # Nearly all values are finite: they are walked only when the encoder refuses.
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)


def without_nan(value: Any) -> Any:
    """Replace non-finite numbers by None, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: without_nan(one) for name, one in value.items()}
    return [without_nan(one) for one in value] if isinstance(value, (list, tuple)) else value


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Add the checksum of a JSON object to it, as "seal"."""
    return {**values, "seal": zlib.crc32(json.dumps(values, sort_keys=True).encode())}


def is_sealed(values: Mapping[str, Any]) -> bool:
    """Return whether the "seal" of a JSON object matches its content."""
    rest = {name: value for name, value in values.items() if name != "seal"}
    return values.get("seal") == seal(rest)["seal"]
