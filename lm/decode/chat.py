"""Chat templates: a conversation as text, by the Jinja template that came with the model.

Templates are untrusted programs: they run in jinja2's sandbox, without side effects and without attributes that start
with an underscore, and in a process of their own, which ends where they take too long.
"""

import contextlib
import importlib.util
import json
import select
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm.errors import UserError, check
from lm.strict_json import load_json

Message = Mapping[str, Any]  # {"role": "system" | "user" | "assistant" | ..., "content": text}
SECONDS = 3  # of processor time for one rendering, which takes a thousandth of a second
WAIT = 300  # seconds for an answer: a busy machine may be slow to give processor time
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Chat:
    """A model's template and special tokens; `folder`: a published model's or a run's."""

    def __init__(self, folder: str | Path):
        folder = Path(folder).expanduser()
        config = json_object(folder / "tokenizer_config.json")
        source = template(folder, config)
        self.special = {name: text for name in NAMED if (text := content(config.get(name))) is not None}
        self.renderer = Renderer(source, folder)

    def render(self, messages: Sequence[Message], *, reply: bool = True, tools: Any = None) -> str:
        """Return a conversation as text, up to the start of the reply; `tools`: functions that the model may call.

        Special tokens are part of the text: encode it with `special=True` and add none.
        """
        check_messages(messages)
        return self.renderer.render(
            {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": reply, **self.special}
        )


class Renderer:
    """A process that renders one template (`lm.decode.templates`), restarted after a failure; thread-safe."""

    def __init__(self, source: str, folder: Path):
        check(importlib.util.find_spec("jinja2"), "chat templates need the package jinja2: pip install 'jinja2>=3.1.6'")
        self.source, self.folder, self.lock = source, folder, threading.Lock()
        self.process: subprocess.Popen | None = None
        with self.lock:
            self.start()

    def render(self, variables: Mapping[str, Any]) -> str:
        """Render the template; raises UserError where it refuses, fails, takes too long or too much memory."""
        try:
            line = json.dumps(variables)
        except (TypeError, ValueError) as error:
            raise UserError(f"a conversation is no JSON: {error}") from error
        with self.lock:
            if self.process is None:
                self.start()
            return self.ask(line)

    def start(self) -> None:
        """Start the process and let it compile the template."""
        # -P: no imports from the script's folder.
        command = [sys.executable, "-P", str(Path(__file__).with_name("templates.py")), str(SECONDS)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        # A finalizer runs at the interpreter's exit as well: no renderer outlives its owner.
        self.finish = weakref.finalize(self, end, self.process)
        self.ask(json.dumps(self.source))

    def ask(self, line: str) -> str:
        """Send one request; return the text of the answer."""
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
            ready = select.poll()
            ready.register(self.process.stdout, select.POLLIN)
            reply = self.process.stdout.readline() if ready.poll(1000 * WAIT) else b""
        except BrokenPipeError:
            reply = b""
        except BaseException:  # an interrupt: the pending answer would be taken for that of the next request
            self.close()
            raise
        if not reply.endswith(b"\n"):
            status = self.close(1)
            why = "takes too long" if status in (-signal.SIGXCPU, -signal.SIGKILL) else f"ended its process (status {status})"
            raise UserError(f"{self.folder}: its chat template {why}; use another template, or leave --chat out")
        answer = json.loads(reply)
        if "problem" in answer:
            if answer["problem"] == "is no Jinja template":
                self.close()
            raise UserError(f"{self.folder}: its chat template {answer['problem']}: {answer['message']}")
        return answer["text"]

    def close(self, patience: float = 0) -> int:
        """End the process, within `patience` seconds by itself; return its status."""
        process, self.process = self.process, None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        self.finish()
        return process.returncode


def end(process: subprocess.Popen) -> None:
    """Kill a process if it still runs, and collect its status."""
    if process.poll() is None:
        process.kill()
    process.wait()
    with contextlib.suppress(OSError):  # unread input
        process.stdin.close()
    process.stdout.close()


def check_messages(messages: Any) -> None:
    """Raise UserError unless this is a list of {"role": ..., "content": ...}."""
    check(
        isinstance(messages, list | tuple) and len(messages) > 0,
        "messages must be a list of {role, content}, not empty",
    )
    for message in messages:
        good = isinstance(message, Mapping) and isinstance(message.get("role"), str) and len(message) > 1
        if not good:
            raise UserError(f"a message must be an object with role and content, not {json.dumps(message, default=repr)[:80]}")


def template(folder: Path, config: Mapping[str, Any]) -> str:
    """Return a folder's template: chat_template.jinja, chat_template.json, or the entry of tokenizer_config.json.

    Of several named ones, the "default".
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    text = json_object(folder / "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(text, list):
        named = {entry.get("name"): entry.get("template") for entry in text if isinstance(entry, dict)}
        text = named.get("default")
    check(isinstance(text, str), f"{folder} has no chat template (chat_template.jinja); leave --chat and messages out")
    return text


def json_object(path: Path) -> dict[str, Any]:
    """Load a JSON object; an empty one where the file is missing or holds another value."""
    value = load_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def content(token: Any) -> str | None:
    """Return a special token's text, a string or an object in the file."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
