"""How an entry point starts: flags, overrides, one line for a user's mistake."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm.errors import UserError, check


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Take `--config.a.b=v` and `--config.a.b v` out of the command line; return (rest, [(path, text)])."""
    rest, found, items = [], [], iter(argv)
    for item in items:
        name, equals, text = item.lstrip("-").partition("=")
        if item.startswith("-") and name.startswith("config."):
            if not equals:
                text = next(items, None)
                check(text is not None, f"--{name} needs a value: --{name}=VALUE")
            found.append((name.removeprefix("config."), text))
        else:
            rest.append(item)
    return rest, found


def run(main: Callable[[list[tuple[str, str]]], None]) -> None:
    """Run an entry point under absl: `main(overrides)`; a user's mistake is one line on stderr and exit status 2."""
    from absl import app, flags, logging

    from lm.platform import keep_freed_memory

    keep_freed_memory()
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every file it writes

    try:
        argv, overrides = split_overrides(sys.argv)
        app.run(lambda _: main(overrides), argv=argv, flags_parser=lambda args: parse_flags(flags.FLAGS, args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)


def output_file(name: str) -> Path:
    """Give the file of --output; raises UserError at once, not after the work, where it cannot be written."""
    output = Path(name)
    check(output.parent.is_dir(), f"--output={output}: there is no folder '{output.parent}'; make it first")
    check(not output.is_dir(), f"--output={output} is a folder; name a file")
    return output


def parse_flags(flag_values: Any, argv: Sequence[str]) -> list[str]:
    """Parse absl flags; an unknown or malformed one, or a stray word, is a user's mistake."""
    from absl import flags

    try:
        rest = flag_values(argv)
    except flags.Error as error:
        raise UserError(str(error).replace("\n", " ")) from error
    check(len(rest) == 1, f"'{' '.join(rest[1:])}' is not a flag; flags look like --name=value, see --help")
    return rest
