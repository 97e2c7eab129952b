"""Programs from elsewhere that must not run or not run on: chat templates, pickles; and values straight into `from_json`."""
# ruff: noqa: E501  (tables read best with a case a line)

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.world import edit

TEMPLATES, PICKLES, VALUES = "chat templates", "pickles", "values into from_json"
HELLO = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
# template -> what is expected: refused in a line, or a text that holds no secret
CHATS = {
    HELLO: "0 ", "": "02 ", "{{": "2 template", "{% for %}": "2 template", "{{ 1/0 }}": "2 template", "{{ none_such.x.y }}": "2 template",
    "{{ raise_exception('mine') }}": "2 mine", "{{ range(10**9)|list|length }}": "2 template",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}": "2 template",
    "{{ 'a' * 10000000000 }}": "2 template", "{{ '%0999999999d' % 1 }}": "2 template", "{{ [['a'*99999]*99999]*99999 }}": "2 template",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "2 template", "{{ 9**9**9 }}": "2 template|context",
    "{{ ''.__class__ }}": "02 ", "{{ ''.__class__.__mro__[1].__subclasses__() }}": "2 template", "{{ self.__init__.__globals__ }}": "2 template",
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}": "2 template", "{{ lipsum.__globals__['os'].popen('touch owned').read() }}": "2 template",
    "{% include '/etc/passwd' %}": "2 template", "{% import 'os' as os %}": "2 template", "{{ messages.append(1) }}": "2 template",
    "{{ '{0.__class__}'.format(1) }}": "02 ", "{{ ('x' ~ 'y') * 3 }}{{ messages[0].content }}": "0 ", "{{ b }}{{ messages[99].content }}": "2 template",
    "{% set x = namespace(y=1) %}{% for m in messages %}{% set x.y = x.y * 10**5000 %}{% endfor %}{{ x.y }}": "02 ",
}  # fmt: skip


def safe(folder: Path, stdout: str) -> str | None:
    return "a program ran" if (folder / "owned").exists() or "root:" in stdout else None


def chats() -> list[Case]:
    chat = "lm.generate --model=HF --chat --prompt=Hi --max_new_tokens=3"
    return [
        Case(TEMPLATES, text[:60] or "empty", chat, expect, also=safe, seconds=40,
             damage=lambda folder, text=text: edit(folder / "HF/tokenizer_config.json", chat_template=text))
        for text, expect in CHATS.items()
    ]  # fmt: skip


# -- pickles -------------------------------------------------------------------------------------------------------------


def calling(name: str, argument: str) -> bytes:
    """Pickle a call of `module name`, by hand."""
    module, _, attribute = name.rpartition(".")
    return (
        b"\x80\x02c"
        + f"{module}\n{attribute}\n".encode()
        + b"X"
        + len(argument).to_bytes(4, "little")
        + argument.encode()
        + b"\x85R."
    )


def zipped(data: bytes, *more: tuple[str, bytes]) -> Callable[[Path], None]:
    """Lay a folder out with weights in PyTorch's zip form."""

    def work(folder: Path) -> None:
        (folder / "HF/model.safetensors").unlink()
        with zipfile.ZipFile(folder / "HF/pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data.pkl", data)
            for name, content in (("archive/version", b"3\n"), *more):
                file.writestr(name, content)

    return work


def plain(data: bytes) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        (folder / "HF/model.safetensors").unlink()
        (folder / "HF/pytorch_model.bin").write_bytes(data)

    return work


def pickles() -> list[Case]:
    tensor = (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x02\x85K\x01\x85\x89}tRs."
    )
    huge = tensor.replace(b"K\x02\x85", b"\x8a\x08" + (1 << 60).to_bytes(8, "little") + b"\x85")
    table = {
        "os.system": zipped(calling("os.system", "touch owned")),
        "posix.system": zipped(calling("posix.system", "touch owned")),
        "builtins.eval": zipped(calling("builtins.eval", "open('owned', 'w')")),
        "builtins.exec": zipped(calling("builtins.exec", "open('owned', 'w')")),
        "subprocess.getoutput": zipped(calling("subprocess.getoutput", "touch owned")),
        "torch.hub.load": zipped(calling("torch.hub.load", "x")),
        "an older file": plain(calling("os.system", "touch owned")),
        "an empty file": plain(b""),
        "no zip": plain(b"PK\x03\x04" + b"\xff" * 90),
        "no pickle in it": zipped(b""),
        "an empty state": zipped(pickle.dumps({}, 2)),
        "a number": zipped(pickle.dumps(5, 2)),
        "a number as a name": zipped(pickle.dumps({5: 6}, 2)),
        "a list": zipped(pickle.dumps([1, 2], 2)),
        "a tensor without storage": zipped(tensor),
        "a tensor past its storage": zipped(tensor, ("archive/data/0", b"1234")),
        "a tensor of 2^60 numbers": zipped(huge, ("archive/data/0", b"1234" * 4)),
        "5 M marks": zipped(b"\x80\x02" + b"(" * 5_000_000 + b"."),
        "1 GB of zeros": zipped(tensor, ("archive/data/0", bytes(1 << 30))),
        "a stack that is empty": zipped(b"\x80\x02RRRR."),
        "memo of what is not there": zipped(b"\x80\x02h\x05."),
    }
    run = "lm.generate --model=HF --prompt=x --max_new_tokens=2"
    return [Case(PICKLES, name, run, "2 ", damage=damage, also=safe) for name, damage in table.items()]


# -- values straight into from_json ----------------------------------------------------------------------------------------

WRONG = {
    "objective": [5, None, "x", [], {}], "mesh": [5, None, "x", []], "mesh.fsdp": ["x", 2.5, None, True, 10**30],
    "data": [5, None], "data.tokenizer": [5, "bytes", None], "data.validation": ["x", 2, -1, [], None, True], "data.source": [5, None, {}],
    "evaluate": ["abc", 5, [5], None], "steps": [2.5, "x", None, 0, [], True], "batch": ["8", 0.5, -8], "seed": ["x", 10**40],
    "optimizer": [5, None], "optimizer.lr": ["x", None, -1], "optimizer.betas": [5, [0.9], [0.9, "x"], [0.9, 0.99, 0.999]],
    "optimizer.name": [5, "adam", None], "every.log": ["x", 0], "keep.last": ["x", -1], "stop.patience": ["x"], "start": [5, []],
    "objective.model": [5, None, "x"], "objective.model.width": ["x", 2.5, None], "objective.model.dropout": ["x", 2],
    "objective.model.windows": [5, ["x"]], "objective.model.lora": [5], "schedule.shape": [5, "x"], "wandb": ["x", 5], "samples": ["x", [5]],
}  # fmt: skip


def refused(path: str, value: object) -> Callable[[Path], None]:
    """Read a config with one wrong value: a UserError that names the field is what is needed."""

    def work(folder: Path) -> None:
        from lm.config import from_json
        from lm.errors import UserError

        edit(folder / "RUN/config.json", **{path.replace(".", "__"): value})
        try:
            found = from_json((folder / "RUN/config.json").read_text())
        except UserError as error:
            line = str(error)
        else:
            raise AssertionError(f"accepted: {path} = {value!r}: {type(found).__name__}")
        assert path.rpartition(".")[2] in line, f"the line does not name {path}: {line}"
        assert "\n" not in line

    return work


def values() -> list[Case]:
    # JSON has no integers of its own: a whole number written 8.0 is none of these.
    return [
        Case(VALUES, f"{path} = {json.dumps(value)[:40]} in RUN", refused(path, value), "0", quick=True, seconds=20)
        for path, wrong in WRONG.items()
        for value in wrong
    ]


CASES = [*chats(), *pickles(), *values()]
