"""Run folders and caches damaged file by file, and what strangers' folders hold: files, templates, pickles, schemas."""
# ruff: noqa: E501  (tables read best with a case a line)

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.typed import TINY
from tests.hostile.world import edit, put

RUN, CACHE, FOREIGN = "damaged run folders", "damaged caches", "hostile folders"
RESUME = f"lm.main --config={TINY} --workdir=RUN --config.steps=13"
SAMPLE = "lm.generate --workdir=RUN --prompt=The --max_new_tokens=4 --strategy=greedy"
MEASURE = "lm.evaluate --workdir=RUN"
NEWEST = "RUN/checkpoints/12"


def cut(name: str, size: int = 0) -> Callable[[Path], None]:
    """Shorten every file that matches."""

    def work(folder: Path) -> None:
        for path in files(folder, name):
            os.truncate(path, min(size, path.stat().st_size))

    return work


def flip(name: str) -> Callable[[Path], None]:
    """Change four times three bytes of the largest file that matches."""

    def work(folder: Path) -> None:
        path = max(files(folder, name), key=lambda p: p.stat().st_size)
        raw = bytearray(path.read_bytes())
        for k in range(1, 5):
            place = len(raw) * k // 6
            raw[place : place + 3] = bytes(byte ^ 0x5A for byte in raw[place : place + 3])
        path.write_bytes(raw)

    return work


def remove(name: str) -> Callable[[Path], None]:
    """Remove a file or a folder."""

    def work(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    return work


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: put(folder / name, content)


def change(name: str, **values) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **values)


def folder_for(name: str) -> Callable[[Path], None]:
    """Put a folder in the place of a file."""

    def work(folder: Path) -> None:
        remove(name)(folder)
        (folder / name).mkdir(parents=True)

    return work


def files(folder: Path, name: str) -> list[Path]:
    path = folder / name
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else sorted(folder.glob(name))


DEEP, DIGITS = "[" * 100_000 + "]" * 100_000, "9" * 5000
# (what, damage, resume, sample, measure); None: the command does not look there, and is not tried.
FALL_BACK = "0 12|damaged"
SAVES = [
    # Sampling and measuring read the parameters alone: bytes of the optimizer's arrays do not concern them.
    ("flipped bytes", flip(f"{NEWEST}/state"), FALL_BACK, "0 ", "0 "),
    ("no _METADATA", remove(f"{NEWEST}/state/_METADATA"), *[FALL_BACK] * 3),
    ("no state", remove(f"{NEWEST}/state"), *[FALL_BACK] * 3),
    ("state cut", cut(f"{NEWEST}/state", 500), *[FALL_BACK] * 3),
    ("state empty", cut(f"{NEWEST}/state"), *[FALL_BACK] * 3),
    ("notes cut", cut(f"{NEWEST}/notes/metadata", 20), *[FALL_BACK] * 3),
    ("notes removed", remove(f"{NEWEST}/notes"), *[FALL_BACK] * 3),
    ("metrics cut", cut(f"{NEWEST}/metrics/metrics", 5), "0 ", "0 ", "0 "),
    ("all files empty", cut(NEWEST), *[FALL_BACK] * 3),
    ("empty folder", lambda f: (remove(NEWEST)(f), (f / NEWEST).mkdir()), "0 ", "0 ", "0 "),
    ("a file", lambda f: (remove(NEWEST)(f), put(f / NEWEST, "x")), "0 ", "0 ", "0 "),
    ("no commit mark", remove(f"{NEWEST}/commit_success.txt"), "0 ", "0 ", "0 "),
    ("older metrics cut", cut("RUN/checkpoints/8/metrics/metrics", 5), "0 ", "0 ", "0 "),
    ("all saves damaged", cut("RUN/checkpoints"), "2 RUN", "2 RUN", "2 RUN"),
    ("no saves", remove("RUN/checkpoints"), "0 ", "2 RUN", "2 RUN"),
]  # fmt: skip
CONFIG = "RUN/config.json"
CONFIGS = [
    ("bytes", write(CONFIG, b"\xff\xfe\x00" * 9), "config.json"),
    ("empty", write(CONFIG, ""), "config.json"),
    ("a list", write(CONFIG, "[]"), "config"),
    ("deep", write(CONFIG, DEEP), "config.json|nested"),
    ("digits", write(CONFIG, '{"a": ' + DIGITS + "}"), "config.json|digits"),
    ("a command's class", change(CONFIG, objective__type="lm.main.Foo"), "lm.main"),
    ("another command's", change(CONFIG, objective__type="lm.evaluate.Foo"), "lm.evaluate"),
    ("a Mesh for an objective", change(CONFIG, objective={"type": "lm.training.settings.Mesh"}), "objective"),
    ("less depth", change(CONFIG, objective__model__depth=1), "depth|shape"),
    ("more depth", change(CONFIG, objective__model__depth=1_000_000_000_000), "depth|shape|needs|memory"),
    ("other heads", change(CONFIG, objective__model__heads=32, objective__model__width=64), "shape|width"),
    ("steps a string", change(CONFIG, steps="x"), "steps"),
    ("removed", remove(CONFIG), "config.json"),
    ("a folder", folder_for(CONFIG), "config.json"),
]
OTHER = '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'
TOKENIZERS = [
    ("another tokenizer", write("RUN/tokenizer.json", OTHER), "tokenizer"),
    ("tokenizer bytes", write("RUN/tokenizer.json", b"\xff\x00"), "tokenizer"),
    ("tokenizer empty", write("RUN/tokenizer.json", ""), "tokenizer"),
    ("tokenizer removed", remove("RUN/tokenizer.json"), "tokenizer"),
]


def saves() -> list[Case]:
    commands = {"resume": RESUME, "sample": SAMPLE, "measure": MEASURE}
    cases = [
        Case(RUN, f"{what}: {name}", commands[name], expect, damage=damage, seconds=90)
        for what, damage, *expected in SAVES
        for name, expect in zip(commands, expected)
    ]
    cases += [Case(RUN, f"config {what}", SAMPLE, f"2 {word}", damage=damage) for what, damage, word in CONFIGS]
    cases += [Case(RUN, what, SAMPLE, f"2 {word}", damage=damage) for what, damage, word in TOKENIZERS]
    return [
        *cases,
        Case(RUN, "metrics.jsonl cut", RESUME, "0 ", damage=cut("RUN/metrics.jsonl", 300)),
        Case(RUN, "metrics.jsonl bytes", RESUME, "02 ", damage=write("RUN/metrics.jsonl", b"\xff\xfe\n{")),
        Case(RUN, "metrics.jsonl a folder", RESUME, "2 metrics.jsonl", damage=folder_for("RUN/metrics.jsonl")),
        Case(
            RUN,
            "tensorboard a file",
            RESUME,
            "02 ",
            damage=lambda f: (remove("RUN/tensorboard")(f), put(f / "RUN/tensorboard", "x")),
        ),
        Case(RUN, "summary.json garbage", RESUME, "0 ", damage=write("RUN/summary.json", "{")),
        # A field that no parameter depends on: the network is traced and found to be the checkpoint's.
        Case(
            RUN,
            "config edited by hand",
            "lm.evaluate --workdir=CLS",
            "0 accuracy",
            damage=lambda f: put(
                f / "CLS/config.json", (f / "CLS/config.json").read_text().replace('"smoothing": 0.0', '"smoothing": 0.1')
            ),
            quick=True,
        ),
        Case(RUN, "workdir a file", f"lm.main --config={TINY} --workdir=notes.txt", "2 notes.txt"),
        Case(RUN, "workdir below a file", f"lm.main --config={TINY} --workdir=notes.txt/w", "2 notes.txt"),
        Case(RUN, "workdir of 300 letters", f"lm.main --config={TINY} --workdir={'w' * 300}", "2 long"),
        Case(RUN, "workdir that is read-only", f"lm.main --config={TINY} --workdir=/proc/w", "2 /proc"),
    ]


# -- caches --------------------------------------------------------------------------------------------------------------

PREPARE = "lm.prepare --text=a.txt --tokenizer=bytes --cache=c"


def prepared(damage: Callable[[Path, Path], None]) -> Callable[[Path], None]:
    """Prepare a corpus, then damage it: `damage(folder of the case, folder of the corpus)`."""

    def work(folder: Path) -> None:
        from lm.data.corpus.corpus import Data
        from lm.data.corpus.prepare import prepare
        from lm.data.text.files import Text
        from lm.data.tokenizer.tokenizer import Bytes

        here = Path.cwd()
        os.chdir(folder)
        try:
            found = prepare(Data(source=Text(path="a.txt"), tokenizer=Bytes()), folder / "c")
            damage(folder, Path(found.folder))
        finally:
            os.chdir(here)

    return work


def changed_in_place(folder: Path, _: Path) -> None:
    """Change a text and give it back its time."""
    path = folder / "a.txt"
    time = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("the", "teh"))
    os.utime(path, ns=(time, time))


CACHES = [
    ("corpus.json cut", lambda _, c: cut("corpus.json", 9)(c), "02 corpus|cache|token"),
    ("corpus.json empty", lambda _, c: cut("corpus.json")(c), "02 corpus|cache|token"),
    ("corpus.json bytes", lambda _, c: write("corpus.json", b"\xff\xfe")(c), "02 corpus|cache|token"),
    ("corpus.json a list", lambda _, c: write("corpus.json", "[]")(c), "02 corpus|cache|token"),
    ("no corpus.json", lambda _, c: remove("corpus.json")(c), "02 corpus|cache|token"),
    ("train-0.bin cut", lambda _, c: cut("train-0.bin", 99)(c), "02 train-0|cache|token"),
    ("train-0.bin flipped", lambda _, c: flip("train-0.bin")(c), "02 train-0|cache|token"),
    ("train-0.bin removed", lambda _, c: remove("train-0.bin")(c), "02 train-0|cache|token"),
    ("train-0.json cut", lambda _, c: cut("train-0.json", 5)(c), "02 train-0|cache|token"),
    ("train-0.json a number", lambda _, c: write("train-0.json", "5")(c), "02 train-0|cache|token"),
    ("train-0.starts cut", lambda _, c: cut("train-0.starts", 3)(c), "02 train-0|cache|token"),
    ("validation.bin empty", lambda _, c: cut("validation.bin")(c), "02 validation|cache|token"),
    ("tokenizer.json cut", lambda _, c: cut("tokenizer.json", 9)(c), "02 tokenizer|cache"),
    ("tokenizer.json removed", lambda _, c: remove("tokenizer.json")(c), "02 tokenizer|cache"),
]


def caches() -> list[Case]:
    def partial(name: str, content: str) -> Callable[[Path, Path], None]:
        def work(_: Path, corpus: Path) -> None:
            corpus.rename(corpus.with_name(f"{corpus.name}.partial"))
            put(corpus.with_name(f"{corpus.name}.partial") / name, content)

        return work

    def in_the_way(_: Path, corpus: Path) -> None:
        shutil.rmtree(corpus)
        put(corpus.with_name(f"{corpus.name}.partial"), "x")

    more = [
        ("journal a list", partial("journal.json", "[]"), "02 "),
        ("journal cut", partial("journal.json", '{"si'), "02 "),
        ("a file for .partial", in_the_way, "02 partial"),
        ("the text changed, its time given back", changed_in_place, "02 "),
    ]
    cases = [Case(CACHE, name, PREPARE, expect, damage=prepared(damage)) for name, damage, expect in (*CACHES, *more)]
    odd = {"a b.txt": "02 ", "ü.txt": "0 ü", "a,b.txt": "02 ", "[x].txt": "02 "}
    cases += [
        Case(CACHE, f"a text named {name}", f'lm.prepare "--text={name}" --tokenizer=bytes --cache=c', expect,
             files={name: "some text of its own\n" * 60}) for name, expect in odd.items()
    ]  # fmt: skip
    return cases


# -- folders of strangers ------------------------------------------------------------------------------------------------

HF = "lm.generate --model=HF --prompt=The --max_new_tokens=3 --strategy=greedy"
HF_CONFIGS = {
    "n_layer": [10**12, 2.5, "two", -1, 0, None, True, [2]],
    "n_embd": [10**12, 33, 0, -32, "x"],
    "n_head": [10**9, "two", 0, 3, None],
    "n_positions": [10**12, 0, -1, "x"],
    "vocab_size": [10**12, 0, 5, "x"],
    "layer_norm_epsilon": ["x", None, -1],
    "activation_function": ["none_such", 5],
    "model_type": ["none_such", 5, None, ["gpt2"]],
    "architectures": [5, ["Unheard"]],
    "eos_token_id": ["x", 10**12, [1, "x"]],
}


def header(tensors: dict, data: bytes = b"") -> bytes:
    raw = json.dumps(tensors).encode()
    return struct.pack("<Q", len(raw)) + raw + data


WEIGHTS = {
    "empty": b"",
    "eight bytes": b"\xff" * 8,
    "a huge header": struct.pack("<Q", 1 << 62) + b"{}",
    "a header that is no JSON": struct.pack("<Q", 4) + b"{{{{",
    "a deep header": struct.pack("<Q", 200_000) + b"[" * 100_000 + b"]" * 100_000,
    "no tensors": header({}),
    "offsets beyond the end": header({"wte.weight": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 324]}}),
    "negative offsets": header({"wte.weight": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"1234"),
    "overlapping tensors": header(
        {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in ("wte.weight", "wpe.weight")}, b"1234"),
    "a huge shape": header({"wte.weight": {"dtype": "F32", "shape": [10**12, 10**12], "data_offsets": [0, 4]}}, b"1234"),
    "an unknown dtype": header({"wte.weight": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "a shape of fractions": header({"wte.weight": {"dtype": "F32", "shape": [0.5], "data_offsets": [0, 4]}}, b"1234"),
}  # fmt: skip
BACKTRACK = {"type": "Split", "pattern": {"Regex": "(a|a)*(b|b)*(a|aa)*$c"}, "behavior": "Isolated", "invert": False}
GROW = {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 9}
TOKENIZER = "HF/tokenizer.json"
TOKENIZER_FILES = [
    ("tokenizer empty", write(TOKENIZER, ""), "2 tokenizer"),
    ("tokenizer a list", write(TOKENIZER, "[]"), "2 tokenizer"),
    ("tokenizer deep", write(TOKENIZER, DEEP), "2 tokenizer"),
    ("tokenizer bytes", write(TOKENIZER, b"\xff" * 40), "2 tokenizer"),
    ("tokenizer of ids of 4e9", change(TOKENIZER, model__vocab={"a": 4_000_000_000, "b": 1}, model__merges=[]), "2 tokenizer|vocab|ids|needs"),
    ("backtracking", lambda f: (change(TOKENIZER, pre_tokenizer=BACKTRACK)(f), put(f / "p.txt", "a" * 4000)), "2 tokenizer|context"),
    ("a normalizer that grows", change(TOKENIZER, normalizer=GROW), "2 tokenizer|text|context|times"),
    ("tokenizer_config a list", write("HF/tokenizer_config.json", "[]"), "2 tokenizer_config"),
    ("eos_token 5", change("HF/tokenizer_config.json", eos_token=5), "2 eos_token|tokenizer_config"),
    ("eos_token unheard", change("HF/tokenizer_config.json", eos_token="unheard"), "02 "),
    ("chat_template 5", change("HF/tokenizer_config.json", chat_template=5), "02 "),
    ("generation_config a list", write("HF/generation_config.json", "[]"), "02 "),
    ("generation_config deep", write("HF/generation_config.json", DEEP), "02 generation_config|"),
    ("added_tokens 5", change(TOKENIZER, added_tokens=5), "2 tokenizer"),
]  # fmt: skip
SCHEMAS = {
    '{"type": 5}': "type", '{"$ref": 5}': "$ref", '{"enum": 5}': "enum", '{"enum": []}': "enum", '{"anyOf": []}': "anyOf",
    '{"properties": []}': "properties", '{"type": "object", "properties": 5}': "properties", "[]": "schema",
    '{"type": "string", "minLength": -3}': "minLength", '{"type": "string", "minLength": "x"}': "minLength",
    '{"type": "string", "minLength": 1.5}': "minLength", '{"type": "string", "maxLength": 100000000000}': "maxLength|large|parts",
    '{"type": "string", "pattern": "("}': "pattern", '{"type": "string", "pattern": 5}': "pattern",
    '{"type": "integer", "minimum": "x"}': "minimum", '{"type": "array", "minItems": -1}': "minItems",
    '{"type": "array", "items": 5}': "items", '{"$ref": "#/none"}': "#/none", '{"type": "none"}': "none", "{": "schema|JSON",
    '{"$ref": "#"}': "recurs|refer|nest|ref|itself", '{"type": "array", "maxItems": 100000000000}': "maxItems|large|parts",
}  # fmt: skip
BIG_SCHEMAS = {
    "40 definitions, twice each": json.dumps({
        "$ref": "#/$defs/d39",
        "$defs": {"d0": {"type": "string"}} | {f"d{k}": {"anyOf": [{"$ref": f"#/$defs/d{k - 1}"}] * 2} for k in range(1, 40)}}),
    "a maximum of 4,200 zeros": '{"type": "integer", "minimum": 0, "maximum": 1' + "0" * 4200 + "}",
    "3,000 levels": '{"type": "array", "items": ' * 3000 + "{}" + "}" * 3000,
    "100,000 names": json.dumps({"type": "object", "properties": {f"p{k}": {"type": "integer"} for k in range(100_000)}}),
}  # fmt: skip
REGEXES = {
    "(){4294967000}": "", "(){0,4294967000}": "", "(a{1000}){1000}": "", "((a*)*)*b": "", "a{4294967000}": "", "a{2,1}": "",
    "[z-a]": "", "(?P<x>a)(?P=x)": "", "a**": "", "\\\\": "", "(?<=a)b": "", "[" * 300: "", "((((a|b){30}){30}){30}){30}": "",
    "(" * 3000 + ")" * 3000: "", "[^\\x00-\\U0010ffff]": "", "(?i)a": "", "$^": "", ".{100000}": "",
}  # fmt: skip


def folders() -> list[Case]:
    cases = [
        Case(FOREIGN, f"{name} {value!r}", HF, "02 " if value in (None, True, 10**12) and name in ("layer_norm_epsilon", "eos_token_id", "n_head") else f"2 {name}|config.json|needs|shape|memory|model_type|family|heads|vocab|width",
             damage=change("HF/config.json", **{name: value}))
        for name, values in HF_CONFIGS.items()
        for value in values
        if name not in ("architectures", "eos_token_id")
    ]  # fmt: skip
    cases += [
        Case(FOREIGN, f"{name} {value!r}", HF, "02 ", damage=change("HF/config.json", **{name: value}))
        for name in ("architectures", "eos_token_id")
        for value in HF_CONFIGS[name]
    ]
    cases += [
        Case(FOREIGN, f"weights: {name}", HF, "2 ", damage=write("HF/model.safetensors", raw)) for name, raw in WEIGHTS.items()
    ]
    cases += [
        Case(FOREIGN, name, HF if name != "backtracking" else "lm.generate --model=HF --strategy=beam --prompts=p.txt --output=o.jsonl", expect, damage=damage)
        for name, damage, expect in TOKENIZER_FILES
    ]  # fmt: skip
    cases += [
        Case(FOREIGN, f"config {name}", HF, "2 config.json", damage=write("HF/config.json", text))
        for name, text in {
            "deep": DEEP,
            "digits": '{"a": ' + DIGITS + "}",
            "empty": "",
            "bytes": b"\xff\xfe",
            "list": "[]",
        }.items()
    ]
    limit = "--max_new_tokens=8"
    cases += [
        Case(FOREIGN, f"schema {text[:40]}", f"lm.generate --model=HF --prompt=x {limit} --json_schema=s.json", f"2 {word}",
             files={"s.json": text}) for text, word in SCHEMAS.items()
    ]  # fmt: skip
    cases += [
        Case(FOREIGN, f"schema of {name}", f"lm.generate --model=HF --prompt=x {limit} --json_schema=s.json", "02 ",
             files={"s.json": text}) for name, text in BIG_SCHEMAS.items()
    ]  # fmt: skip
    cases += [
        Case(FOREIGN, f"regex {text[:30]}", f"lm.generate --model=HF --prompt=x {limit} '--regex={text}'", "02 ")
        for text in REGEXES
    ]
    return [*cases, *indices()]


def indices() -> list[Case]:
    """Folders of several weight files, and of none."""

    def index(*names: str) -> Callable[[Path], None]:
        def work(folder: Path) -> None:
            remove("HF/model.safetensors")(folder)
            weights = {f"wte{k}.weight": name for k, name in enumerate(names)}
            put(folder / "HF/model.safetensors.index.json", json.dumps({"weight_map": weights}))

        return work

    def raw(text: str) -> Callable[[Path], None]:
        def work(folder: Path) -> None:
            remove("HF/model.safetensors")(folder)
            put(folder / "HF/model.safetensors.index.json", text)

        return work

    table = {
        "an index above the folder": index("../secret.safetensors"),
        "an index of an absolute path": index("/etc/passwd"),
        "an index of missing files": index("none.safetensors"),
        "an index that is a list": raw("[]"),
        "an index of a number": raw('{"weight_map": 5}'),
        "an index of numbers": raw('{"weight_map": {"a": 5}}'),
        "an index deep": raw(DEEP),
        "no weights": remove("HF/model.safetensors"),
        "no tokenizer": remove(TOKENIZER),
        "no config": remove("HF/config.json"),
        "weights a folder": folder_for("HF/model.safetensors"),
    }
    return [Case(FOREIGN, name, HF, "2 ", damage=damage) for name, damage in table.items()]


CASES = [*saves(), *caches(), *folders()]
