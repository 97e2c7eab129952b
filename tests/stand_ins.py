"""Tiny runs, model folders and files in place of those that the pages name, and the commands' tiny forms."""

import dataclasses
import gzip
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from lm.config import load
from tests.documentation import EVERY, ROOT, Command

# Tiny stand-ins: of words everywhere, and of whole commands.
SHORT = "--config.steps=2 --config.batch=4 --config.evaluate_batches=1 --config.objective.stride=16"
STAND_INS = {"HF_DIR2": "HF2", "HF_DIR": "HF", "path/to/gpt2": "HF", "path/to/bert": "BERT", "PATH": "T5"}
INSTEAD = {
    "python -m launch.learning --readme": "--curves=2 --only=span --workdir=curves --picture=a.png",
    "python -m launch.learning --only=masked,span": "--curves=2 --only=span --workdir=curves --picture=a.png",
    "python -m launch.learning --curves=100": "--curves=2 --only=span --workdir=curves --picture=a.png",
    "python -m launch.bench": "--config=tests/configs/tiny.py:text=a.txt --steps=2 --tokens=4",
    "python -m launch.bench --config=configs/gpt_nano.py --parts=machine,step --output=bench.json": (
        "--config=tests/configs/tiny.py:text=a.txt --steps=2 --parts=machine,step --output=bench.json"
    ),
    "python -m launch.bench --peers=gpt,t5 --steps=30": "--peers=bert --steps=1",
    "python -m launch.bench --parts=objectives": "--config=tests/configs/tiny.py:text=a.txt --parts=objectives",
    "python -m launch.sweep --config=gpt_nano --grid=objective.model.norm=layer,rms --seeds=5": (
        "--config=tests/configs/tiny.py:text=a.txt --grid=objective.model.norm=layer,rms --seeds=2 --workdir=runs/norms"
    ),
    "python -m launch.sweep --config=gpt_nano --grid=objective.model.positions=rotary,learned --seeds=5 --steps=300": (
        "--config=tests/configs/tiny.py:text=a.txt --grid=optimizer.lr=1e-2,1e-3 --seeds=2 --steps=2 "
        "--workdir=runs/gpt_nano-sweep"
    ),
    "python -m launch.sweep --config=gpt_nano --grid=objective.model.positions=rotary,learned --seeds=5 --steps=300 --go": (
        "--config=tests/configs/tiny.py:text=a.txt --grid=optimizer.lr=1e-2,1e-3 --seeds=2 --steps=2 "
        "--workdir=runs/gpt_nano-sweep --go"
    ),
    "python -m launch.folds --config=configs/classify_nano.py --folds=5": (
        "--config=tests/configs/tiny_classify.py --folds=2 --workdir=runs/folds"
    ),
    "python -m launch.prepare '--config=gpt_nano:text=books/*.txt' --jobs=64 --backend=slurm --minutes=240": (
        "--config=gpt_nano:text=books/*.txt --jobs=2"
    ),
    "python -m lm.main --config=configs/transformer_base.py:text=wmt14.en-de.jsonl --config.mesh.fsdp=4": (
        "--config=tests/configs/tiny_seq2seq.py:text=wmt14.en-de.jsonl --config.mesh.fsdp=4 --workdir=runs/pairs_of_wmt"
    ),
    "python -m lm.main '--config=configs/t5_base.py:text=c4/en/*.json.gz'": (
        "--config=tests/configs/tiny_span.py:text=c4/en/*.json.gz --workdir=runs/c4"
    ),
    "python -m lm.main --config=configs/extract_nano.py:text=squad.json,start=HF_DIR": (
        f"--config=configs/extract_nano.py:text=squad.json,start=BERT,length=48 --workdir=runs/questions {SHORT}"
    ),
    "python -m lm.main '--config=configs/extract_cloze.py:text=articles/*.txt,start=RUN'": (
        "--config=configs/extract_cloze.py:text=articles/*.txt,start=BERT --workdir=runs/gaps "
        f"--config.objective.rows.length=64 --config.objective.rows.row=64 {SHORT}"
    ),
    "python -m lm.compile --config=configs/gpt_small.py --topology=v5e:4x4 --config.mesh.data=1 --config.mesh.fsdp=16": (
        "--config=tests/configs/tiny.py --config.mesh.data=1 --config.mesh.fsdp=4"
    ),
    "python -m lm.compile --config=configs/gpt_small.py --topology=v5p:2x2x2 --config.mesh.data=1 --config.mesh.fsdp=8": (
        "--config=tests/configs/tiny.py --topology=cpu:8 --config.mesh.data=1 --config.mesh.fsdp=8"
    ),
    "python -m lm.compile --config=configs/gpt_small.py --topology=2xv5e:4x4 --config.mesh.data=2 --config.mesh.fsdp=16": (
        "--config=tests/configs/tiny.py --topology=cpu:4 --config.mesh.data=2 --config.mesh.fsdp=2"
    ),
    "python -m lm.convert --workdir=runs/ours --output=folder": "--workdir=runs/books --output=folder",
    "python -m lm.convert --model=HF_DIR --add_tokens=words.txt --output=HF_DIR2": (
        "--model=HF --add_tokens=words.txt --output=more"
    ),
    "python -m lm.convert --model=HF_DIR --tokenizer=PATH --initialise=overlap --workdir=RUN": (
        "--model=HF --tokenizer=T5 --initialise=overlap --workdir=runs/other"
    ),
    "python -m lm.explain --workdir=RUN '--text=Return the name of the file.'": "--workdir=RUN --text=of",
    "python -m lm.explain --workdir=runs/translate_nano '--text=return the name' '--target=Return the name.'": (
        "--workdir=SEQ --text=of --target=a"
    ),
    "python -m lm.generate --workdir=runs/bert_nano --strategy=fill '--prompt=Return the [MASK] of the file.'": (
        "--workdir=MASKED --strategy=fill --prompt=a[MASK]c"
    ),
    "python -m lm.predict --workdir=RUN --input=new.csv": "--workdir=CLS --input=new.csv",
    "python -m lm.predict --model=HF_DIR --input=questions.json --output=answers.json": (
        "--model=READER --input=questions.json --output=answers.json"
    ),
}

REVIEWS = "text,label\n" + "A good film,good\nA bad film,bad\nGood and long,good\nBad and long,bad\n" * 10
SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"The file number {i} is in the folder of the user.",
                    "qas": [{"id": f"q{i}", "question": "What?", "answers": [{"text": "The file", "answer_start": 0}]}],
                }
                for i in range(40)
            ]
        }
    ]
}  # fmt: skip
TEXTS = ("my_text.txt", "input.txt", "wiki.txt", "wiki1m.txt", "books/a.txt")
# Sentence pairs need several documents, cloze questions words that few of them have and sentences that share these.
SEVERAL = [f"corpus/{name}.txt" for name in "abc"]
ARTICLE = "Anna{0} Berg{0} discovered comet{0} Lysandra{0}. It rained. The comet{0} Lysandra{0} was what Anna{0} Berg{0} saw. "
QUESTIONS = ("squad.json", "train-v2.0.json", "dev-v2.0.json", "questions.json")
MODULE = """
class Run:
    summary = {}
    def log(self, values): pass
    def define_metric(self, name, step_metric): pass
    def finish(self, exit_code): print("wandb", options["project"], options["group"], options["tags"])
def init(**found):
    global options
    options = found
    return Run()
"""
READER = """
import sys, transformers
config = transformers.BertConfig.from_pretrained("BERT", num_labels=2)
transformers.BertForQuestionAnswering(config).save_pretrained("READER")
transformers.AutoTokenizer.from_pretrained("BERT").save_pretrained("READER")
"""


def build(base: Path) -> Path:
    """Make a folder with everything that the commands name; return it."""
    # Its exit status is no verdict: the module prints its folder by it.
    done = subprocess.run([sys.executable, "-m", "tests.hostile.world", str(base)], cwd=ROOT, capture_output=True, text=True)
    assert (base / "world" / "done").exists(), done.stderr[-2000:]
    furnish(base / "world")
    return base / "world"


def furnish(folder: Path) -> None:
    """Add the files that commands name to the runs and model folders."""
    (folder / "launch").symlink_to(ROOT / "launch")
    text = (folder / "a.txt").read_text()
    shutil.copytree(folder / "HF", folder / "HF2")
    subprocess.run([sys.executable, "-c", READER], check=True, cwd=folder)
    many = range(40)
    lines = [json.dumps({"text": part}) for part in text.split("\n\n") if part.strip()]
    files = {
        **dict.fromkeys(TEXTS, text),
        **{name: "\n\n".join(text.split("\n\n")[i :: len(SEVERAL)]) for i, name in enumerate(SEVERAL)},
        **{f"articles/{name}.txt": ARTICLE.format(name) for name in "abcdefghijkl"},
        "lambada.jsonl": '{"text": "The list is long enough."}\n' * 4,
        **dict.fromkeys(QUESTIONS, json.dumps(SQUAD)),
        **dict.fromkeys(("reviews.csv", "new.csv"), REVIEWS),
        "pairs.tsv": "premise\thypothesis\tlabel\n" + "".join(f"{i} men\t{i % 2} men\t{i % 2}\n" for i in many),
        "train.conll": "".join(f"Anna{i} B-PER\nlives O\nin O\nRome B-LOC\n\n" for i in many),
        "pairs.jsonl": "".join(f'{{"text": "{i} long texts", "summary": "{i} texts"}}\n' for i in many),
        "wmt14.en-de.jsonl": "".join(f'{{"source": "{i} words of a list", "target": "A list: {i}"}}\n' for i in range(200)),
        "lines.txt": "The\nA list\n",
        "words.txt": "documentation\nstatement\n",
        "person.json": json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}),
        "arc.jsonl": '{"question": "2+2=", "choices": ["four", "five"], "answer": 0}\n' * 8,
        "a.jsonl": '{"prompt": "p", "text": "one"}\n{"prompt": "q", "text": "two"}\n',
        "b.jsonl": '{"prompt": "p", "text": "three"}\n{"prompt": "q", "text": "four"}\n',
        "wandb.py": MODULE,
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "c4/en").mkdir(parents=True)
    (folder / "c4/en/a.json.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    for name in ("fineweb/sample/10BT", "wikipedia/20231101.en"):
        (folder / name).mkdir(parents=True)
        table = pyarrow.table({"text": [json.loads(line)["text"] for line in lines]})
        pyarrow.parquet.write_table(table, folder / name / "0.parquet")


def smaller(config: Any, started: bool) -> list[tuple[str, str]]:
    """Overrides that make a run one of seconds: two steps of a network of one layer, on a vocabulary of 300.

    `started`: network and tokenizer come from elsewhere, and are tiny.
    """
    overrides = {"steps": "2", "batch": "4", "micro_batches": "1", "evaluate_batches": "1", "schedule.warmup": "1"}
    overrides |= {f"every.{name}": "2" for name in ("log", "evaluate", "save")} | {"every.sample": "0"}
    if not started and type(config.data.tokenizer).__name__ in ("BytePair", "WordPiece"):
        overrides["data.tokenizer.vocab"] = "300"
    sizes = {"depth": 1, "width": 32, "heads": 2, "vocab": 0, "pad_vocab": 1, "unroll": 1}
    for path, model in () if started else models(config.objective, "objective"):
        fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        chosen = {name: value for name, value in sizes.items() if name in fields}
        chosen |= {name: size for name, size in (("kv_heads", 1), ("mlp", 64), ("embed", 16), ("head", 16)) if fields.get(name)}
        chosen |= {"dtype": "float32"} if "dtype" in fields else {}
        chosen |= {"remat": "none"} if "remat" in fields else {}
        overrides |= {f"{path}.{name}": str(value) for name, value in chosen.items()}
    return list(overrides.items())


def models(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The networks in an objective: dataclasses with a width."""
    for field in dataclasses.fields(value) if dataclasses.is_dataclass(value) else ():
        part = getattr(value, field.name)
        if hasattr(part, "width"):
            yield f"{path}.{field.name}", part
        else:
            yield from models(part, f"{path}.{field.name}")


def tiny(one: Command) -> list[str]:
    """The arguments of a command's tiny form."""
    words = INSTEAD[one.text].split() if one.text in INSTEAD else list(one.arguments)
    spec = one.config or ""
    if re.match(r"(configs/)?(classify|tag|extract|tasks|simcse)", spec):
        words = [word.replace("start=HF_DIR", "start=BERT").replace("start=RUN", "start=MASKED") for word in words]
    words = [word.replace("start=HF_DIR", "start=T5") if "text2text" in spec else word for word in words]
    for name, stand_in in STAND_INS.items():
        words = [re.sub(rf"\b{name}\b", stand_in, word) for word in words]
    words = [word for word in words if not word.startswith("--distributed=")]
    if one.text in INSTEAD or not (one.module == "lm.main" or one.module.startswith("lm.objectives.")):
        return words
    default = {"masked": "bert_nano", "span": "t5_nano", "regularised": "regularised_nano"}
    spec = next((word[9:] for word in words if word.startswith("--config=")), default.get(one.module.rpartition(".")[2], ""))
    if spec:
        config, given = load(spec), {name for name, _ in one.overrides}
        small = dict(smaller(config, bool(config.start) or "start" in given))
        if type(config.data.source).__name__ in ("Documentation", "Restored"):  # 2.4 MB to tokenise
            words = [word for word in words if not word.startswith("--config=")]
            words.append(f"--config={spec}{',' if ':' in spec else ':'}text=my_text.txt")
            small |= {"data.source.documents": "blank"} if type(config.data.source).__name__ == "Documentation" else {}
        small |= {"steps": "16"} if "profile" in given else {}
        words += [f"--config.{name}={value}" for name, value in small.items() if name not in given]
        if not any(word.startswith("--workdir=") for word in words):  # other pages have the same config on other text
            words.append(f"--workdir=runs/{one.page.replace('/', '-')}-{EVERY.index(one)}")
    return words


def devices(one: Command) -> int:
    return 4 if any("mesh.fsdp" in name for name, _ in one.overrides) else 1


def local(one: Command) -> list[str]:
    """The tiny form of a command that runs as several processes."""
    inner = Command(one.page, one.words[one.words.index("--") + 1 :])
    return [*one.arguments[: one.arguments.index("--") + 1], *inner.words[:3], *tiny(inner)]
