"""JSON schemas as regular expressions: every text that matches is an instance of the schema.

Not every instance matches: objects hold the properties that the schema names, in its order, a value of any kind is a
scalar, and there is at most one space behind a comma or a colon. What an expression cannot say is refused by name.
"""

import json
import re
from typing import Any

from lm.errors import UserError, check

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
    "date": r"[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))",
    "time": r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
FORMATS["date-time"] = f"{FORMATS['date']}T{FORMATS['time']}"
NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
NOTES |= {"$schema", "$id", "$comment", "$defs", "definitions"}
KEYS = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}


def to_regex(schema: Any) -> str:
    """Return the expression of a whole schema; raises UserError for what it cannot follow."""
    return value(schema, schema, ())


def value(schema: Any, root: Any, path: tuple[str, ...]) -> str:
    """Return the expression of a part; `path`: the references followed to it."""
    if schema is True or schema == {}:
        return either(SCALARS.values())
    check(isinstance(schema, dict), f"--json_schema: {shown(schema)} is no schema that text can follow")
    keys = set(schema) - NOTES
    if not keys:
        return either(SCALARS.values())
    for name, make in (
        ("$ref", reference),
        ("enum", enumeration),
        ("const", enumeration),
        ("anyOf", union),
        ("oneOf", union),
    ):
        if name in keys:
            beside = {"enum": {"type"}, "const": {"type"}}.get(name, set())
            refuse(keys - {name} - beside, f"beside {name}")
            return make(schema, root, path)
    kinds = schema["type"] if "type" in schema else implied(keys)
    kinds = [kinds] if isinstance(kinds, str) else kinds
    refuse(keys - {"type"}.union(*(KEYS.get(kind, set()) for kind in kinds)), f"of {' or '.join(kinds)}")
    return either(typed(kind, schema, root, path) for kind in kinds)


def implied(keys: set[str]) -> str:
    """Guess the type from the keywords, as people leave it out."""
    found = [kind for kind, names in KEYS.items() if keys & names]
    check(len(found) == 1, f"--json_schema: the keyword '{min(keys)}' is not supported; give a \"type\"")
    return found[0]


def refuse(keys: set[str], where: str) -> None:
    if keys:
        raise UserError(
            f"--json_schema: the keyword '{min(keys)}' {where} is not supported; leave it out and check afterwards"
        )


def typed(kind: str, schema: dict, root: Any, path: tuple[str, ...]) -> str:
    """Return the expression of values of one type."""
    if kind == "string":
        return string(schema)
    if kind == "array":
        return array(schema, root, path)
    if kind == "object":
        return mapping(schema, root, path)
    if kind == "integer" and KEYS["integer"] & set(schema):
        return integers(schema)
    check(kind in SCALARS, f"--json_schema: unknown type '{kind}'")
    return SCALARS[kind]


def reference(schema: dict, root: Any, path: tuple[str, ...]) -> str:
    name = schema["$ref"]
    check(name not in path, f"--json_schema: {name} holds itself, which no automaton can follow")
    check(name.startswith("#"), f"--json_schema: {name} is not in the schema itself")
    part = root
    for step in filter(None, name[1:].split("/")):
        check(isinstance(part, dict) and step in part, f"--json_schema: there is no {name}")
        part = part[step]
    return value(part, root, (*path, name))


def enumeration(schema: dict, root: Any, path: tuple[str, ...]) -> str:
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    kept = [v for v in values if not kinds or any(is_a(v, kind) for kind in kinds)]
    check(bool(kept), f"--json_schema: no value of {shown(values)} is of the type {shown(kinds)}")
    return either(re.escape(json.dumps(v, ensure_ascii=False)) for v in kept)


def is_a(value: Any, kind: str) -> bool:
    types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    return isinstance(value, types.get(kind, ()))


def union(schema: dict, root: Any, path: tuple[str, ...]) -> str:
    """Any of the parts; oneOf only where no value can be of two."""
    parts = schema.get("anyOf") or schema["oneOf"]
    if "oneOf" in schema:
        kinds = [part.get("type") if isinstance(part, dict) else None for part in parts]
        apart = all(isinstance(kind, str) for kind in kinds) and len({*kinds} | {"integer"} & {*kinds}) == len(kinds)
        check(
            apart and not {"integer", "number"} <= {*kinds},
            "--json_schema: oneOf needs parts of different types; use anyOf",
        )
    return either(value(part, root, path) for part in parts)


def string(schema: dict) -> str:
    """A string of so many characters, or of a pattern, which the whole of it then matches."""
    limits = {"minLength", "maxLength"} & set(schema)
    for name in ("pattern", "format"):
        if name in schema:
            refuse((limits | {"pattern", "format"} & set(schema)) - {name}, f"beside {name}")
    if "pattern" in schema:
        return f'(?:"(?:{pattern(schema["pattern"])})")'
    if "format" in schema:
        check(schema["format"] in FORMATS, f"--json_schema: the format '{schema['format']}' is not supported")
        return f'(?:"{FORMATS[schema["format"]]}")'
    return f'(?:"{CHARACTER}{times(schema.get("minLength", 0), schema.get("maxLength"))}")'


def pattern(expression: str) -> str:
    """Take an expression for the inside of a string, where it can match nothing that JSON writes otherwise."""
    from lm.decode.automaton import automaton

    expression = expression.removeprefix("^")
    if expression.endswith("$") and not expression.endswith(r"\$"):
        expression = expression[:-1]
    next_SY, _ = automaton(expression, f"--json_schema: the pattern {expression}")
    written = next_SY[:, [*range(32), ord('"'), ord("\\")]]
    check(
        bool((written < 0).all()),
        f"--json_schema: the pattern {expression} lets quotes, backslashes or control characters in; name the characters",
    )
    return expression


def array(schema: dict, root: Any, path: tuple[str, ...]) -> str:
    item = value(schema.get("items", True), root, path)
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    check(most is None or least <= most, f"--json_schema: minItems={least} is above maxItems={most}")
    if most == 0:
        return r"\[\]"
    more = times(max(least - 1, 0), None if most is None else most - 1)
    inside = f"{item}(?:, ?{item}){more}"
    return rf"(?:\[{inside}\])" if least else rf"(?:\[(?:{inside})?\])"


def mapping(schema: dict, root: Any, path: tuple[str, ...]) -> str:
    """An object: the named properties in their order; without names, any number of keys."""
    parts, required = schema.get("properties", {}), set(schema.get("required", []))
    missing = required - set(parts)
    check(not missing, f"--json_schema: the required property '{min(missing, default='')}' is not among the properties")
    if not parts:
        extra = schema.get("additionalProperties", True)
        pair = "" if extra is False else f"(?:{SCALARS['string']}: ?{value(extra, root, path)})"
        return rf"(?:\{{(?:{pair}(?:, ?{pair})*)?\}})" if pair else r"\{\}"
    pairs = [
        re.escape(json.dumps(k, ensure_ascii=False)) + f": ?{value(part, root, path)}" for k, part in parts.items()
    ]
    must = [name in required for name in parts]

    def rest(at: int) -> str:
        return "".join(f"(?:, ?{pair})" + ("" if need else "?") for pair, need in zip(pairs[at:], must[at:]))

    if any(must):
        first = must.index(True)
        before = "".join(f"(?:{pair}, ?)?" for pair in pairs[:first])
        return rf"(?:\{{{before}{pairs[first]}{rest(first + 1)}\}})"
    return rf"(?:\{{{either(pair + rest(i + 1) for i, pair in enumerate(pairs))}?\}})"


def integers(schema: dict) -> str:
    """Whole numbers between the bounds, given or exclusive."""
    lows = [schema.get("minimum"), None if "exclusiveMinimum" not in schema else schema["exclusiveMinimum"] + 1]
    highs = [schema.get("maximum"), None if "exclusiveMaximum" not in schema else schema["exclusiveMaximum"] - 1]
    bounds = [x for x in (*lows, *highs) if x is not None]
    check(all(isinstance(x, int) for x in bounds), "--json_schema: bounds of integers must be whole numbers")
    low = max((x for x in lows if x is not None), default=None)
    high = min((x for x in highs if x is not None), default=None)
    check(low is None or high is None or low <= high, f"--json_schema: no integer lies between {low} and {high}")
    parts = []
    if low is None or low < 0:
        parts += ["-" + p for p in naturals(1 if high is None or high >= 0 else -high, None if low is None else -low)]
    if high is None or high >= 0:
        parts += naturals(max(low or 0, 0), high)
    return either(parts)


def naturals(low: int, high: int | None) -> list[str]:
    """Write the whole numbers from low >= 0 to high as expressions of equally many digits each."""
    if high is None:
        digits = len(str(low))
        return [*naturals(low, 10**digits - 1), f"[1-9][0-9]{{{digits},}}"]
    found = []
    while low <= high:
        free = 0  # how many last digits may be anything
        while low and low % 10 ** (free + 1) == 0 and low + 10 ** (free + 1) - 1 <= high:
            free += 1
        step, first = 10**free, low // 10**free
        last = min(high // step - (high % step != step - 1), first // 10 * 10 + 9)
        head, a, b = str(first)[:-1], first % 10, last % 10
        found.append(head + (str(a) if a == b else f"[{a}-{b}]") + (f"[0-9]{{{free}}}" if free else ""))
        low = (last + 1) * step
    return found


def times(least: int, most: int | None) -> str:
    return "*" if least == 0 and most is None else f"{{{least},{'' if most is None else most}}}"


def either(parts: Any) -> str:
    return f"(?:{'|'.join(parts)})"


def shown(x: Any) -> str:
    return json.dumps(x, ensure_ascii=False)[:80]
