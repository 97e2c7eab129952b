"""Start of an entry point: flags, overrides, one line for a user's mistake."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

from lm.errors import UserError, check, translate
from lm.extensions import from_command_line
from lm.outputs import Output, output_file
from lm.usage import HELP, usage

BUG = (
    "error: this is a defect of lm, not a mistake of yours: please report it with the command and the lines above; what was "
    "saved before is whole"
)


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Extract `--config.a.b=v` and `--config.a.b v` from the command line; return (rest, [(path, text)])."""
    rest, overrides, items = [], [], iter(argv)
    for item in items:
        name, equals, text = item.lstrip("-").partition("=")
        if item.startswith("-") and name.startswith("config."):
            if not equals:
                value = next(items, None)
                if value is None:
                    raise UserError(f"--{name} needs a value: --{name}=VALUE")
                text = value
            overrides.append((name.removeprefix("config."), text))
        else:
            rest.append(item)
    return rest, overrides


def run(
    main: Callable[[list[tuple[str, str]]], None], described: type | None = None,
    groups: Mapping[str, Mapping[str, str]] | None = None, argument: str = "",
) -> None:  # fmt: skip
    """Run an entry point `main(overrides)` under absl; errors of users and of the machine are one line and exit status 2
    (`Temporary`: 75).

    `described`: the class of the command's config, whose fields an unknown flag is compared with; `groups`: those of --help
    (`lm.usage.usage`); `argument`: the flag that one argument without a name sets. Only a defect of lm prints a traceback;
    LM_TRACEBACK=1 prints one for every error.
    """
    from absl import app, flags, logging

    from lm.platform import keep_freed_memory

    keep_freed_memory()
    logging.set_verbosity(logging.FATAL)  # Orbax logs every file it writes; its errors become UserErrors
    if not os.environ.get("LM_TRACEBACK"):  # after a damaged save, its other reads fail later, in the background
        for name in ("asyncio", "concurrent.futures"):
            getLogger(name).setLevel(CRITICAL)
        sys.unraisablehook = lambda _: None

    try:
        if "modules" not in flags.FLAGS:
            flags.DEFINE_list("modules", [], "your own modules to import first: their objectives, sources, tasks, strategies")
        if HELP & {*sys.argv[1:]}:
            print(usage(sys.modules["__main__"].__doc__ or "", flags.FLAGS, groups))
            return
        from_command_line(sys.argv)
        argv, overrides = split_overrides(sys.argv)
        app.run(
            lambda _: main(overrides), argv=argv, flags_parser=lambda args: parse_flags(flags.FLAGS, args, described, argument)
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        sys.exit(141)
    except BaseException as error:  # a panic of Rust code is no Exception
        if isinstance(error, SystemExit):
            raise
        line = translate(error)
        if line is None or os.environ.get("LM_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {line}" if line else BUG, file=sys.stderr, flush=True)
        sys.exit(error.status if isinstance(error, UserError) else 2 if line else 1)


def import_own() -> None:
    """Import the modules of --modules before this command's flags are defined, where these depend on them."""
    try:
        from_command_line(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def define_output(text: str, default: str | None = None) -> Any:
    """Define --output with the help `text`, and --overwrite; return the holder of --output."""
    from absl import flags

    flags.DEFINE_bool("overwrite", False, "let --output replace an existing file")
    return flags.DEFINE_string("output", default, text)


def define_new_heads() -> Any:
    """Define --allow_new_heads of a command that opens model folders; return its holder."""
    from absl import flags

    return flags.DEFINE_bool("allow_new_heads", False, "draw heads that a model folder lacks at random, instead of an error")


def define_mesh() -> Any:
    """Define --mesh of a command that opens runs or model folders; return its holder."""
    from absl import flags

    text = "spread the model over this machine's devices: fsdp=8, or fsdp=4,tensor=2; without it, all on the first"
    return flags.DEFINE_string("mesh", None, text)


def output(command: str, inputs: Sequence[str | Path | None] = ()) -> Output | None:
    """Return the checked output file of --output (`lm.outputs.output_file`), None without the flag; call it before the work."""
    from absl import flags

    name = flags.FLAGS.output
    return None if name is None else output_file(name, command, [one for one in inputs if one], flags.FLAGS.overwrite)


def parse_flags(flag_values: Any, argv: Sequence[str], described: type | None = None, argument: str = "") -> list[str]:
    """Parse absl flags; raises UserError for an unknown or malformed flag and for a stray argument.

    `argument`: the flag that one argument without a name sets, before, between or after flags.
    """
    from absl import flags

    if argument:
        flag_values.set_gnu_getopt()
    try:
        rest = flag_values(argv)
    except flags.UnrecognizedFlagError as error:
        raise UserError(unknown_flag(error, described)) from error
    except flags.Error as error:
        raise UserError(str(error).replace("\n", " ")) from error
    if argument and len(rest) == 2:
        flag_values[argument].parse(rest.pop())
    check(len(rest) == 1, f"'{' '.join(rest[1:])}' is not a flag; flags look like --name=value, see --help")
    return rest


def unknown_flag(error: Any, described: type | None) -> str:
    """Return the message for an unknown flag; it may mean a field of `described`, the class of the command's config."""
    message = str(error).replace("\n", " ")
    if described and "Did you mean" not in message:
        from lm.suggestions import flag

        meant = flag(described, error.flagname)
        return f"unknown flag --{error.flagname}: did you mean {meant}?" if meant else message
    return message
