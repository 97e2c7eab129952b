"""The text of --help: a command's docstring, and its flags in groups, each with its kind and default."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from absl.flags import Flag, FlagValues

HELP = frozenset(("--help", "-help", "-h", "-?", "--helpshort"))
KINDS = {"int": "INT", "float": "NUMBER", "bool": "", "comma separated list of strings": "A,B"}
INDENT, NAMES = 2, 30  # columns before a flag, and of flags


def usage(doc: str, flag_values: FlagValues, groups: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """Format a command's help; `groups` maps a title to flags and their help texts there ("": the flag's own).

    A flag may stand in several groups, with another text in each; flags in none come last.
    """
    known = own_flags(flag_values)
    named = {name for group in (groups or {}).values() for name in group}
    rest = {name: "" for name in known if name not in named}
    sections = [*(groups or {}).items(), ("Other flags" if groups else "Flags", rest)]
    blocks = [doc.strip()]
    for title, texts in sections:
        lines = [line(known[name], text) for name, text in texts.items() if name in known]
        blocks += [f"{title}:\n" + "\n".join(lines)] * bool(lines)
    return "\n\n".join(blocks)


def own_flags(flag_values: FlagValues) -> dict[str, Flag]:
    """Return the command's flags by name, in the order of their definition, without those of libraries."""
    home = {name: str(flag_values.find_module_defining_flag(name, "")) for name in flag_values}
    ours = ("", "lm", "launch", sys.argv[0])  # a module that runs as a command defines flags under its file's name
    return {name: flag_values[name] for name, module in home.items() if {module, module.split(".")[0]} & {*ours}}


def line(flag: Flag, text: str = "") -> str:
    """Format one flag: `--name=KIND`, its text, the default unless the text says it."""
    kind = KINDS.get(flag.flag_type(), "TEXT")
    name = f"--{flag.name}={kind}" if kind else f"--{'[no]' * (flag.default is True)}{flag.name}"
    text = re.sub(r";\s*repeat this option to specify a list of values", "", text or flag.help)  # absl's addition
    if flag.default not in (None, "", [], [""]) and flag.default is not False and "default" not in text:
        text = f"{text} (default {flag.default:g})" if kind == "NUMBER" else f"{text} (default {flag.default})"
    width = max(72, min(120, shutil.get_terminal_size().columns))
    wrapped = textwrap.wrap(text, width - NAMES - INDENT, break_on_hyphens=False) or [""]
    first = f"{name:{NAMES}}" if len(name) < NAMES else f"{name}\n{' ' * (INDENT + NAMES)}"
    return " " * INDENT + first + f"\n{' ' * (INDENT + NAMES)}".join(wrapped)
