"""JSON schemas as regular expressions: every text that matches is an instance of the schema.

Not every instance matches: objects hold the properties that the schema names, in its order, a value of any kind is a
scalar, and there is at most one space behind a comma or a colon. Keywords that no expression can express are rejected.
"""

import json
import re
from dataclasses import replace
from typing import Any

from lm.decode.grammar.automaton import characters, parsed
from lm.decode.grammar.keywords import KEYS, NOTES, STRUCTURE, TYPE_NAMES, At, check_keywords, refuse, shown
from lm.errors import check, one_line, unknown

CHARACTER = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])'
INTEGER = r"(?:-?(?:0|[1-9][0-9]*))"
NUMBER = rf"(?:{INTEGER}(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{{1,2}})?)"
SCALARS = {
    "string": f'(?:"{CHARACTER}*")',
    "integer": INTEGER,
    "number": NUMBER,
    "boolean": "(?:true|false)",
    "null": "null",
}
FORMATS = {
    # February ends on the 28th: a match must be a date in any year.
    "date": r"[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "time": r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"


def to_regex(schema: Any) -> str:
    """Return the expression of a whole schema; raises UserError, with the path, for unsupported parts."""
    at = At(schema)
    try:
        return value(schema, at)
    except RecursionError:
        raise at.error("nested too deeply to follow; flatten it") from None


def value(schema: Any, at: At) -> str:
    """Return the expression of a part."""
    if schema is True or schema == {}:
        return at.either(SCALARS.values())
    at.check(isinstance(schema, dict), f"{shown(schema)} is no schema that text can follow")
    keys = set(schema) - NOTES
    if not keys:
        return at.either(SCALARS.values())
    check_keywords(schema, keys & STRUCTURE, at)
    # Keywords that describe the whole value come alone; a type may stand beside listed values.
    for name, make in (
        ("$ref", reference),
        ("enum", enumeration),
        ("const", enumeration),
        ("anyOf", union),
        ("oneOf", union),
    ):
        if name in keys:
            beside = {"enum": {"type"}, "const": {"type"}}.get(name, set())
            refuse(keys - {name} - beside, f"beside {name}", at)
            return make(schema, at)
    kinds = types(schema, at) if "type" in schema else [implied(keys, at)]
    refuse(keys - {"type"}.union(*(KEYS.get(kind, set()) for kind in kinds)), f"of {' or '.join(kinds)}", at)
    check_keywords(schema, keys, at)
    return at.either(typed(kind, schema, at) for kind in kinds)


def types(schema: dict, at: At) -> list[str]:
    """Return the types that a schema names; none where it names none."""
    kinds = schema.get("type", [])
    kinds = list(dict.fromkeys([kinds] if isinstance(kinds, str) else kinds))
    for kind in kinds:
        if kind not in TYPE_NAMES:
            raise at.error(str(unknown("type", kind, list(TYPE_NAMES))))
    return kinds


def implied(keys: set[str], at: At) -> str:
    """Infer the type from the keywords, where it is left out."""
    kinds = [kind for kind, names in KEYS.items() if keys & names]
    at.check(len(kinds) == 1, f"the keyword '{one_line(min(keys), 60)}' is not supported; give a \"type\"")
    return kinds[0]


def typed(kind: str, schema: dict, at: At) -> str:
    """Return the expression of values of one type."""
    if kind == "string":
        return string(schema, at)
    if kind == "array":
        return array(schema, at)
    if kind == "object":
        return mapping(schema, at)
    if kind == "integer" and KEYS["integer"] & set(schema):
        return integers(schema, at)
    return SCALARS[kind]


def reference(schema: dict, at: At) -> str:
    """Return the expression of a reference, compiled once: definitions that name each other twice would double each time."""
    name = schema["$ref"]
    label = one_line(name, 60)
    at.check(name not in at.followed, f"{label} holds itself, which no automaton can follow")
    at.check(name.startswith("#"), f"{label} is not in the schema itself")
    if name not in at.written:
        part = at.root
        for step in filter(None, name[1:].split("/")):
            at.check(isinstance(part, dict) and step in part, f"there is no {label}")
            part = part[step]
        at.written[name] = value(part, replace(at, path=name, followed=(*at.followed, name)))
    return at.written[name]


def enumeration(schema: dict, at: At) -> str:
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    kinds = types(schema, at)
    kept = [v for v in values if not kinds or any(is_a(v, kind) for kind in kinds)]
    at.check(kept, f"no value of {shown(values)} is of the type {shown(kinds)}")
    at.check(all(map(is_finite, kept)), "NaN and infinity cannot be written as JSON")
    return at.either(re.escape(json.dumps(v, ensure_ascii=False)) for v in kept)


def is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


def is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    return isinstance(value, TYPE_NAMES[kind])


def union(schema: dict, at: At) -> str:
    """Return the alternatives of anyOf, and of oneOf where no value can match two."""
    name = "anyOf" if "anyOf" in schema else "oneOf"
    if name == "oneOf":
        # An automaton cannot count how many parts match: they must exclude each other by their types.
        kinds = [part.get("type") if isinstance(part, dict) else None for part in schema[name]]
        apart = all(isinstance(kind, str) for kind in kinds) and len({*kinds} | {"integer"} & {*kinds}) == len(kinds)
        at.check(
            apart and not {"integer", "number"} <= {*kinds},
            "oneOf needs parts of different types; use anyOf",
        )
    return at.either(value(part, at.below(name, i)) for i, part in enumerate(schema[name]))


def string(schema: dict, at: At) -> str:
    """Return the expression of a string of bounded length, or of a pattern or format, which it matches in full."""
    limits = {"minLength", "maxLength"} & set(schema)
    for name in ("pattern", "format"):
        if name in schema:
            refuse((limits | {"pattern", "format"} & set(schema)) - {name}, f"beside {name}", at)
    if "pattern" in schema:
        return f'(?:"(?:{pattern(schema["pattern"], at.below("pattern"))})")'
    if "format" in schema:
        name = one_line(schema["format"], 60)
        at.check(name in FORMATS, f"the format '{name}' is not supported; valid: {', '.join(FORMATS)}")
        return f'(?:"{FORMATS[name]}")'
    return f'(?:"{CHARACTER}{times(*counts(schema, "Length", at))}")'


def counts(schema: dict, unit: str, at: At) -> tuple[int, int | None]:
    """Return the bounds min... and max... of a length, None for no upper one."""
    least, most = schema.get(f"min{unit}", 0), schema.get(f"max{unit}")
    at.check(most is None or least <= most, f"min{unit}={least} is above max{unit}={most}")
    return least, most


def pattern(expression: str, at: At) -> str:
    """Check a pattern for the inside of a string: it may match no character that JSON escapes."""
    what = f"--json_schema, at {one_line(at.path, 120)}: the pattern {one_line(expression, 60)}"
    expression = expression.removeprefix("^")
    if expression.endswith("$") and not expression.endswith(r"\$"):
        expression = expression[:-1]
    written = [range(32), (ord('"'),), (ord("\\"),)]
    for ranges in characters(parsed(expression, what), what):
        inside = any(low <= codes[-1] and codes[0] <= high for low, high in ranges for codes in written)
        check(not inside, f"{what} lets quotes, backslashes or control characters in; name the characters")
    return expression


def array(schema: dict, at: At) -> str:
    """Return the expression of a list: its first item, then a comma before each further one."""
    least, most = counts(schema, "Items", at)
    if most == 0:
        return r"\[\]"
    item = value(schema.get("items", True), at.below("items"))
    more = times(max(least - 1, 0), None if most is None else most - 1)
    inside = f"{item}(?:, ?{item}){more}"
    return rf"(?:\[{inside}\])" if least else rf"(?:\[(?:{inside})?\])"


def mapping(schema: dict, at: At) -> str:
    """Return the expression of an object: the named properties in their order, or without names any number of keys."""
    parts, required = schema.get("properties", {}), set(schema.get("required", []))
    missing = one_line(min(required - set(parts), default=""), 60)
    at.check(required <= set(parts), f"the required property '{missing}' is not among the properties")
    if not parts:
        extra = schema.get("additionalProperties", True)
        pair = "" if extra is False else f"(?:{SCALARS['string']}: ?{value(extra, at.below('additionalProperties'))})"
        return rf"(?:\{{(?:{pair}(?:, ?{pair})*)?\}})" if pair else r"\{\}"
    pairs = at.within(
        re.escape(json.dumps(k, ensure_ascii=False)) + f": ?{value(part, at.below('properties', k))}"
        for k, part in parts.items()
    )
    must = [name in required for name in parts]

    def rest(start: int) -> str:
        return "".join(f"(?:, ?{pair})" + ("" if need else "?") for pair, need in zip(pairs[start:], must[start:]))

    # Commas: optional properties before the first required one bring theirs behind, all later ones before.
    if any(must):
        first = must.index(True)
        before = "".join(f"(?:{pair}, ?)?" for pair in pairs[:first])
        return rf"(?:\{{{before}{pairs[first]}{rest(first + 1)}\}})"
    return rf"(?:\{{{at.either(pair + rest(i + 1) for i, pair in enumerate(pairs))}?\}})"


def integers(schema: dict, at: At) -> str:
    """Return the expression of the whole numbers between the bounds, inclusive or exclusive."""
    lows = [schema.get("minimum"), None if "exclusiveMinimum" not in schema else schema["exclusiveMinimum"] + 1]
    highs = [schema.get("maximum"), None if "exclusiveMaximum" not in schema else schema["exclusiveMaximum"] - 1]
    low = max((x for x in lows if x is not None), default=None)
    high = min((x for x in highs if x is not None), default=None)
    at.check(low is None or high is None or low <= high, f"no integer lies between {low} and {high}")
    parts = []
    if low is None or low < 0:
        # A negative number is a minus and its absolute value, between exchanged bounds.
        parts += ["-" + p for p in naturals(1 if high is None or high >= 0 else -high, None if low is None else -low)]
    if high is None or high >= 0:
        parts += naturals(max(low or 0, 0), high)
    return at.either(parts)


def naturals(low: int, high: int | None) -> list[str]:
    """Return expressions of the whole numbers from low >= 0 to high, of a fixed number of digits each."""
    if high is None:
        digits = len(str(low))
        return [*naturals(low, 10**digits - 1), f"[1-9][0-9]{{{digits},}}"]
    ranges = []
    while low <= high:
        free = 0  # how many last digits may be anything
        while low and low % 10 ** (free + 1) == 0 and low + 10 ** (free + 1) - 1 <= high:
            free += 1
        step, first = 10**free, low // 10**free
        # A range stays within ten values of its leading digit and below the last whole block under `high`.
        last = min(high // step - (high % step != step - 1), first // 10 * 10 + 9)
        head, a, b = str(first)[:-1], first % 10, last % 10
        ranges.append(head + (str(a) if a == b else f"[{a}-{b}]") + (f"[0-9]{{{free}}}" if free else ""))
        low = (last + 1) * step
    return ranges


def times(least: int, most: int | None) -> str:
    return "*" if least == 0 and most is None else f"{{{least},{'' if most is None else most}}}"
