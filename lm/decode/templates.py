"""Renders one untrusted chat template in a process of its own, bounded in time, memory and length.

`lm.decode.chat` starts this file with the seconds of processor time for a rendering. The first line of standard input is
the template, each further one the variables of a rendering; the answer to each is a line, {"text"} or {"problem",
"message"}, all JSON. Nothing here imports lm: a process with jinja2 alone starts in a tenth of a second, and holds nothing
that a template could reach.
"""

import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 512 << 20  # bytes of address space; macOS takes the limit without keeping to it
LONGEST = 10_000_000  # characters of a conversation


class Generation(Extension):
    """{% generation %} marks the assistant's words for training; in decoding it has no effect."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own way

    def parse(self, parser: jinja2.parser.Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Names(jinja2.utils.Namespace):
    """A namespace whose attributes may not start with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        safe(name)
        super().__setitem__(name, value)


def safe(*names: str) -> None:
    if any(str(name).startswith("_") for name in names):
        raise jinja2.exceptions.SecurityError(f"it sets an attribute that starts with an underscore: {names}")


def namespace(*args: Any, **pairs: Any) -> Names:
    values = dict(*args) | pairs
    safe(*values)
    return Names(values)


def raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def tojson(
    x: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment() -> ImmutableSandboxedEnvironment:
    """Set up the names that published templates rely on: tojson, raise_exception, strftime_now, break and continue."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": namespace,
        "dict": lambda *args, **pairs: dict(*args, **pairs),  # not the class itself
    }
    return made


def limit(kind: int, most: int) -> None:
    """Set a soft limit of this process, where the platform has it."""
    hard = resource.getrlimit(kind)[1]
    try:
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    except (OSError, ValueError):
        return


def answer(make: Callable[[], str]) -> None:
    """Answer one request by a line: its text, or the problem."""
    seconds = int(sys.argv[1])
    limit(resource.RLIMIT_CPU, int(time.process_time()) + seconds + 1)  # past it the kernel ends the process
    try:
        text = make()
        if len(text) > LONGEST:
            raise ValueError(f"it writes {len(text):,} characters, more than {LONGEST:,}")
        line = json.dumps({"text": text})
    except jinja2.exceptions.SecurityError as error:
        line = problem("is not safe", error)
    except jinja2.exceptions.TemplateSyntaxError as error:
        line = problem("is no Jinja template", error)
    except MemoryError:
        line = json.dumps({"problem": "is refused", "message": f"it takes more than {MEMORY >> 20} MB of memory"})
    except RecursionError:
        line = json.dumps({"problem": "is refused", "message": "it is nested, or calls itself, too deeply"})
    except Exception as error:  # an untrusted program may raise anything
        line = problem("refuses this conversation", error)
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def problem(kind: str, error: Exception) -> str:
    return json.dumps({"problem": kind, "message": " ".join(str(error)[:400].split()) or type(error).__name__})


def serve() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, whose end closes this input
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    # No core file of a template that is killed.
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_AS, MEMORY)
    made: list[Any] = []

    def compiled() -> str:
        made.append(environment().from_string(json.loads(sys.stdin.readline())))
        return ""

    answer(compiled)
    for line in sys.stdin if made else ():
        variables = json.loads(line)
        answer(partial(made[0].render, variables))


if __name__ == "__main__":
    serve()
