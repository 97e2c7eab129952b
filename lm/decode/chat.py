"""Chat templates: a conversation laid out as the model was trained on it, by the Jinja template that it came with.

Templates are programs from elsewhere: they run in jinja2's sandbox, which lets them change nothing and reach no
attribute that begins with an underscore.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lm.errors import UserError, check

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant" | ..., "content": text}
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Chat:
    """A model's template and the special tokens that it names; `folder`: a published model's or a run's."""

    def __init__(self, folder: str | Path):
        folder = Path(folder).expanduser()
        config = read(folder / "tokenizer_config.json")
        self.folder, self.source = folder, template(folder, config)
        self.special = {name: text for name in NAMED if (text := content(config.get(name))) is not None}
        self.compiled = compiled(self.source, folder)

    def render(self, messages: Sequence[Message], *, reply: bool = True, tools: Any = None) -> str:
        """Lay a conversation out, up to where the reply begins; `tools`: what the model may call.

        Special tokens stand in the text as they are written: encode it with `special=True` and add none.
        """
        import jinja2

        check_messages(messages)
        try:
            return self.compiled.render(
                messages=messages, tools=tools, documents=None, add_generation_prompt=reply, **self.special
            )
        except jinja2.exceptions.SecurityError as error:
            raise UserError(f"{self.folder}: its chat template is not safe: {line(error)}") from error
        except (jinja2.exceptions.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{self.folder}: its chat template refuses this conversation: {line(error)}") from error


def check_messages(messages: Any) -> None:
    """Raise UserError unless this is a list of {"role": ..., "content": ...}."""
    check(
        isinstance(messages, list | tuple) and len(messages) > 0,
        "messages must be a list of {role, content}, not empty",
    )
    for message in messages:
        good = isinstance(message, Mapping) and isinstance(message.get("role"), str) and len(message) > 1
        check(good, f"a message must be an object with role and content, not {json.dumps(message)[:80]}")


def template(folder: Path, config: Mapping[str, Any]) -> str:
    """Find a folder's template: chat_template.jinja, chat_template.json, or what tokenizer_config.json holds.

    Of several named ones the "default" is taken.
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found = read(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(found, list):
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    check(isinstance(found, str), f"{folder} has no chat template (chat_template.jinja); leave --chat and messages out")
    return found


def read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no valid JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def content(token: Any) -> str | None:
    """Return a special token's text, which files write plainly or as an object."""
    return token.get("content") if isinstance(token, dict) else token


def compiled(source: str, folder: Path) -> Any:
    """Compile a template with what published ones rely on: tojson, raise_exception, strftime_now, break and continue."""
    try:
        import jinja2
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise UserError("chat templates need the package jinja2: pip install 'jinja2>=3.1.6'") from error

    class Generation(Extension):
        """{% generation %} marks the assistant's words for training; for writing it is nothing."""

        tags = {"generation"}  # noqa: RUF012  jinja2's own way

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Names(jinja2.utils.Namespace):
        def __setitem__(self, name, value):
            safe(name)
            super().__setitem__(name, value)

    def safe(*names):
        if any(str(name).startswith("_") for name in names):
            raise jinja2.exceptions.SecurityError(f"it sets an attribute that begins with an underscore: {names}")

    def named(values):
        safe(*values)
        return Names(values)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": lambda *args, **pairs: named(dict(*args, **pairs)),
        "dict": lambda *args, **pairs: dict(*args, **pairs),  # not the class itself
    }
    try:
        return environment.from_string(source)
    except jinja2.exceptions.TemplateError as error:
        raise UserError(f"{folder}: its chat template is no Jinja template: {line(error)}") from error


def line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
