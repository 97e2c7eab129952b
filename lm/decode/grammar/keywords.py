"""Keywords of JSON schemas: the types that allow each, the kind of its value, and errors that name the path."""

import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from lm.decode.grammar.automaton import LONGEST, STATES
from lm.errors import UserError, one_line

NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
NOTES |= {"$schema", "$id", "$comment", "$defs", "definitions"}
KEYS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
# JSON's types and Python's of their values; `is_a` checks true, false and null itself.
TYPE_NAMES: dict[str, Any] = {
    "string": str, "integer": int, "number": (int, float), "boolean": (), "null": (), "array": list, "object": dict,
}  # fmt: skip
DIGITS = 40  # of a bound: enough for numbers of 128 bits


class Kind(NamedTuple):
    """A requirement on a keyword's value, as a test and in words."""

    fits: Callable[[Any], Any]
    words: str


def is_whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


SCHEMA = Kind(lambda x: isinstance(x, dict | bool), "a schema (an object, true or false)")
SCHEMAS = Kind(lambda x: isinstance(x, list) and x, "a list of one schema or more")
LIST = Kind(lambda x: isinstance(x, list) and x, "a list of one value or more")
TEXT = Kind(lambda x: isinstance(x, str), "a text")
COUNT = Kind(lambda x: is_whole(x) and 0 <= x <= STATES, f"a whole number from 0 to {STATES:,}")
BOUND = Kind(lambda x: is_whole(x) and abs(x) < 10**DIGITS, f"a whole number of at most {DIGITS} digits")
NAMES = Kind(lambda x: isinstance(x, list) and all(isinstance(name, str) for name in x), "a list of names")
TYPES = Kind(lambda x: isinstance(x, str) or (x and NAMES.fits(x)), "a type or a list of types")
KEYWORDS = {
    "type": TYPES, "$ref": TEXT, "enum": LIST, "anyOf": SCHEMAS, "oneOf": SCHEMAS,
    "minLength": COUNT, "maxLength": COUNT, "pattern": TEXT, "format": TEXT,
    "minimum": BOUND, "maximum": BOUND, "exclusiveMinimum": BOUND, "exclusiveMaximum": BOUND,
    "items": SCHEMA, "minItems": COUNT, "maxItems": COUNT,
    "properties": Kind(lambda x: isinstance(x, dict), "an object of schemas"), "required": NAMES,
    "additionalProperties": SCHEMA,
}  # fmt: skip
STRUCTURE = {"type", "$ref", "enum", "anyOf", "oneOf"}  # they decide which other keywords are allowed


@dataclass(frozen=True)
class At:
    """A position in a schema: its path, the references followed to it, and the expressions of references so far."""

    root: Any
    path: str = "#"
    followed: tuple[str, ...] = ()
    written: dict[str, str] = field(default_factory=dict)

    def below(self, *steps: str | int) -> "At":
        return replace(self, path="/".join([self.path, *map(str, steps)]))

    def error(self, message: str) -> UserError:
        return UserError(f"--json_schema, at {one_line(self.path, 120)}: {message}")

    def check(self, condition: Any, message: str) -> None:
        if not condition:
            raise self.error(message)

    def within(self, parts: Iterable[str]) -> list[str]:
        """Collect expressions; raises UserError once they pass the bound on an expression."""
        kept, size = [], 0
        for part in parts:
            kept.append(part)
            size += len(part) + 1
            if size > LONGEST:
                raise self.error(f"the schema takes more than {LONGEST:,} characters as an expression; make it smaller")
        return kept

    def either(self, parts: Iterable[str]) -> str:
        return f"(?:{'|'.join(self.within(parts))})"


def refuse(keys: set[str], where: str, at: At) -> None:
    if keys:
        key = one_line(min(keys), 60)
        raise at.error(f"the keyword '{key}' {where} is not supported; leave it out and check afterwards")


def check_keywords(schema: dict, keys: Collection[str], at: At) -> None:
    """Raise UserError where the value of one of these keywords is not of its kind."""
    for name in sorted(keys & KEYWORDS.keys()):
        kind = KEYWORDS[name]
        at.below(name).check(kind.fits(schema[name]), f"{kind.words} is needed, not {shown(schema[name])}")


def shown(x: Any) -> str:
    return one_line(json.dumps(x, ensure_ascii=False), 80)
