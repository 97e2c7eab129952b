"""Kills, full disks, two at once, numbers that are none, and figures that must be the truth."""
# ruff: noqa: E501  (tables read best with a case a line)

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.hostile.case import Case
from tests.hostile.typed import TINY

KILLS, BOTH, FINITE, HONEST = "kills and full disks", "concurrency", "NaN and infinity", "numerical honesty"
SAMPLE = "lm.generate --model=HF --prompts=many.txt --output=o.jsonl --max_new_tokens=6 --strategy=greedy"
PREPARE = "lm.prepare --text=big.txt --tokenizer=bpe --vocab=300 --cache=c"


def start(line: str, **more) -> subprocess.Popen:
    """Start a real process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *line.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, **more,
    )  # fmt: skip


def ended(process: subprocess.Popen, status: int = 0, seconds: float = 300) -> tuple[str, str]:
    """Wait, and check the status and that no traceback is there."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == status, f"status {process.returncode}: {err[-800:]}"
    assert "Traceback" not in err, err[-800:]
    return out, err


def killed(line: str, after: float) -> None:
    """Start a command and kill it after some seconds, if it has not ended."""
    process = start(line)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def inputs(folder: Path) -> None:
    """Write what the killed commands read."""
    text = (folder / "a.txt").read_text()
    (folder / "big.txt").write_text(text * 6)
    (folder / "many.txt").write_text("\n".join(line[:20] for line in text.splitlines() if len(line) > 20))


def texts_of(folder: Path) -> list:
    return [(o["prompt"], o["text"], o["tokens"]) for o in map(json.loads, (folder / "o.jsonl").read_text().splitlines())]


def losses(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def arrays(folder: Path) -> list[bytes]:
    """Read every array of the last checkpoint without the code under test."""
    import jax
    import orbax.checkpoint as ocp

    reader, path = ocp.PyTreeCheckpointer(), (folder / "checkpoints" / "12" / "state").absolute()
    saved = reader.metadata(path).item_metadata.tree
    plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)  # whatever devices it was saved from
    tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=plain))
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def tokens_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("c/corpora/*/*")) if path.suffix in (".bin", ".starts")}


# what -> (command, what it leaves, the folder or file that is removed to do it from the start)
WORK: dict[str, tuple[str, Callable, str]] = {
    "training": (f"lm.main --config={TINY} --workdir=W", lambda f: (losses(f / "W"), arrays(f / "W")), "W"),
    "saving": (f"lm.main --config={TINY} --workdir=W --config.every.save=1", lambda f: (losses(f / "W"), arrays(f / "W")), "W"),
    "preparing": (PREPARE, tokens_of, "c"),
    "generating": (SAMPLE, texts_of, "o.jsonl"),
    "evaluating": ("lm.evaluate --workdir=RUN --output=e.json", lambda f: json.loads((f / "e.json").read_text()), "e.json"),
    "converting": ("lm.convert --workdir=RUN --output=X", lambda f: (f / "X/model.safetensors").read_bytes(), "X"),
}


def kills(what: str, count: int, seed: int) -> Callable[[Path], None]:
    """Do the work once undisturbed, then once with `count` kills at random: the ends must be the same to the bit."""

    def work(folder: Path) -> None:
        line, left, product = WORK[what]
        inputs(folder)
        began = time.monotonic()
        ended(start(line))
        whole, usual = left(folder), time.monotonic() - began
        path = folder / product
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        chance = random.Random(seed)
        for _ in range(count):
            killed(line, chance.uniform(0.3, 1.05) * usual)
        if not (path.exists() and what in ("converting", "generating")):  # what is whole is refused the second time
            ended(start(line))
        assert left(folder) == whole, "another end than without kills"

    return work


def two_processes(count: int) -> Callable[[Path], None]:
    """Kill one of two processes; the other ends in a line; the same commands again end as an undisturbed run does."""

    def run(folder: Path, workdir: str, after: float | None) -> None:
        import socket

        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        line = f"lm.main --config={TINY} --workdir={workdir} --config.mesh.fsdp=2 --distributed=127.0.0.1:{port},2,"
        pair = [start(line + str(k)) for k in range(2)]
        if after is None:
            for process in pair:
                ended(process)
            return
        time.sleep(after)
        os.killpg(pair[1].pid, signal.SIGKILL)
        _, err = pair[0].communicate(timeout=300)
        pair[1].communicate()
        assert pair[0].returncode in (0, 75), f"status {pair[0].returncode}: {err[-500:]}"
        assert "Traceback" not in err

    def work(folder: Path) -> None:
        began = time.monotonic()
        run(folder, "S", None)
        usual = time.monotonic() - began
        chance = random.Random(count)
        for _ in range(count):
            run(folder, "W", chance.uniform(0.3, 1.0) * usual)
        run(folder, "W", None)
        assert losses(folder / "W") == losses(folder / "S")
        assert arrays(folder / "W") == arrays(folder / "S")

    return work


def full_disk(line: str, status: int = 2) -> Callable[[Path], None]:
    """Let a file grow to 20 kB and no further, as a full disk does; what is there already stays."""

    def work(folder: Path) -> None:
        import resource

        inputs(folder)
        (folder / "o.jsonl").unlink(missing_ok=True)

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))

        process = start(
            line, preexec_fn=limit, env={**os.environ, "LM_CACHE": str(folder / "c"), "JAX_COMPILATION_CACHE_DIR": ""}
        )
        out, err = process.communicate(timeout=300)
        assert process.returncode == status, f"status {process.returncode}: {out[-300:]}{err[-500:]}"
        assert "Traceback" not in err, err[-800:]
        assert len([x for x in err.splitlines() if x.startswith("error: ")]) == 1, err[-500:]

    return work


def second(first: str, then: str, ready: str, words: str, seeds: float = 60) -> Callable[[Path], None]:
    """Start one command, wait for its file, start another: the second says who is there, the first ends well."""

    def work(folder: Path) -> None:
        inputs(folder)
        one = start(first)
        until = time.monotonic() + seeds
        while not list(folder.glob(ready)) and one.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        two = start(then)
        _, err = two.communicate(timeout=200)
        assert "Traceback" not in err, err[-500:]
        assert two.returncode in (0, 2), err[-500:]
        assert two.returncode == 0 or any(word in err for word in words.split("|")), err[-500:]
        _, err = one.communicate(timeout=300)
        assert one.returncode == 0, err[-500:]
        if (folder / "o.jsonl").exists():
            prompts = [o["prompt"] for o in map(json.loads, (folder / "o.jsonl").read_text().splitlines())]
            assert len(prompts) == len((folder / "many.txt").read_text().splitlines()), f"{len(prompts)} samples"

    return work


LONG = f"lm.main --config={TINY} --workdir=W --config.steps=60 --config.every.save=3"


def not_finite(value: float, name: str = "wte") -> Callable[[Path], None]:
    """Put a number that is none into the weights of the model folder."""

    def work(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        path = folder / "HF/model.safetensors"
        tensors = load_file(path)
        tensors = {n: np.full_like(t, value) if name in n else t for n, t in tensors.items()}
        save_file(tensors, path, {"format": "pt"})

    return work


def no_nan(folder: Path, stdout: str) -> str | None:
    """JSON outputs hold no NaN."""
    for path in folder.glob("*.json*"):
        if "NaN" in path.read_text() or "Infinity" in path.read_text():
            return f"{path.name} holds NaN"
    return None


def figures(*within: tuple[str, str, float, float]) -> Callable[[Path, str], str | None]:
    """Check figures of e.json: (task, metric, low, high)."""

    def work(folder: Path, stdout: str) -> str | None:
        found = json.loads((folder / "e.json").read_text())
        for task, metric, low, high in within:
            value = next((v for name, v in found.get(task, {}).items() if metric in name), None)
            if value is None or not low <= value <= high:
                return f"{task} {metric} is {value}, not from {low} to {high}"
        return None

    return work


def speeds(folder: Path, stdout: str) -> str | None:
    """No step is faster than a hundred times the run as a whole, and no share of a machine above one."""
    summary = json.loads((folder / "W/summary.json").read_text())
    for line in map(json.loads, (folder / "W/metrics.jsonl").read_text().splitlines()):
        if line.get("train/matmul_share", 0) > 1 or not math.isfinite(line.get("train/tokens_per_second", 1)):
            return f"step {line['step']}: {line}"
    return None if summary.get("train/matmul_share", 0) <= 1 else "mfu above 1 in summary.json"


def honest() -> list[Case]:
    score, tiny = "lm.evaluate --workdir=RUN --output=e.json", f"lm.main --config={TINY} --workdir=W"
    ask = f"{score} --tasks=choices:q.jsonl"

    def choices(*rows: tuple[list[str], int]) -> dict[str, str]:
        return {"q.jsonl": "".join(json.dumps({"question": "2+2=", "choices": c, "answer": a}) + "\n" for c, a in rows)}

    return [
        Case(HONEST, "speeds of steps that are looked at", f"{tiny} --config.every.evaluate=1 --config.every.save=1", "0", also=speeds),
        Case(HONEST, "speeds with log=3", f"{tiny} --config.every.log=3", "0", also=speeds),
        Case(HONEST, "speeds of one step", f"{tiny} --config.steps=1", "0", also=speeds),
        Case(HONEST, "speeds of two steps", f"{tiny} --config.steps=2", "0", also=speeds),
        Case(HONEST, "speeds with samples", f"{tiny} --config.every.sample=1 --config.steps=4", "0", also=speeds),
        Case(HONEST, "an empty option", ask, "2 q.jsonl", files=choices((["four", ""], 0))),
        Case(HONEST, "an empty right option", ask, "2 q.jsonl", files=choices((["four", ""], 1))),
        Case(HONEST, "one option", ask, "02 ", files=choices((["four"], 0))),
        Case(HONEST, "no options", ask, "2 q.jsonl", files=choices(([], 0))),
        Case(HONEST, "an answer past the options", ask, "2 q.jsonl", files=choices((["a", "b"], 2))),
        Case(HONEST, "an answer below the options", ask, "2 q.jsonl", files=choices((["a", "b"], -3))),
        Case(HONEST, "equal options", ask, "02 ", files=choices((["a", "a"], 0))),
        Case(HONEST, "two equal questions", ask, "0", files=choices((["a", "bb"], 0), (["a", "bb"], 1)),
             also=figures(("choices:q.jsonl", "accuracy", 0.5, 0.5))),
        Case(HONEST, "a text of one token", f"{score} --text=a", "0"),
        Case(HONEST, "an empty text", f"{score} --text=", "02 "),
        Case(HONEST, "an empty file", f"{score} --tasks=perplexity:empty.txt", "2 empty.txt"),
        Case(HONEST, "a file of one byte", f"{score} --tasks=perplexity:short.txt", "02 "),
        Case(HONEST, "the run's own figure again", score, "0", also=figures(("validation", "perplexity", 5, 300))),
        Case(HONEST, "a single document", f"{tiny} --config.steps=2", "0 validation"),
        Case(HONEST, "nothing held out", f"{tiny} --config.steps=2 --config.data.validation=0", "0"),
        Case(HONEST, "an empty split with patience", f"{tiny} --config.data.validation=0 --config.stop.patience=2", "2 stop.patience"),
        Case(HONEST, "pairs that are equal", f"{score} --tasks=pairs:p.jsonl", "02 ", files={"p.jsonl": '{"first": "a", "second": "a"}\n'}),
        Case(HONEST, "an empty half of a pair", f"{score} --tasks=pairs:p.jsonl", "2 p.jsonl|''", files={"p.jsonl": '{"first": "a", "second": ""}\n'}),
        Case(HONEST, "a last word alone", f"{score} --tasks=last_word:p.jsonl", "02 ", files={"p.jsonl": '{"text": "alone"}\n'}),
        Case(HONEST, "formulas in a sheet", "lm.evaluation.report.judging --outputs=a.jsonl --outputs=b.jsonl --sheet=s.csv", "0", also=formulas),
        Case(HONEST, "a layer that is not there", "lm.explain --workdir=RUN --text=ab --layers=99", "2 layers"),
    ]  # fmt: skip


def formulas(folder: Path, stdout: str) -> str | None:
    import csv

    cells = [cell for row in csv.reader((folder / "s.csv").open(encoding="utf-8-sig", newline="")) for cell in row]
    wrong = [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]
    return f"a spreadsheet would evaluate {wrong}" if wrong else None


def cases() -> list[Case]:
    world = {"training": "", "saving": "", "preparing": "", "generating": "HF", "evaluating": "RUN", "converting": "RUN"}
    table = [
        Case(KILLS, f"{what} {number} {needs}", kills(what, 2, number), "0", seconds=900)
        for what, needs in world.items()
        for number in range(8)
    ]
    table += [Case(KILLS, "two processes", two_processes(4), "0", seconds=900)]
    disks = {
        "train": f"lm.main --config={TINY} --workdir=W", "prompts HF": SAMPLE, "convert RUN": WORK["converting"][0],
        "prepare": PREPARE, "sample RUN": "lm.generate --workdir=RUN --prompt=The --num_samples=400 --max_new_tokens=8 --output=o.jsonl",
    }  # fmt: skip
    table += [Case(KILLS, f"full disk: {name}", full_disk(line), "0", seconds=200) for name, line in disks.items()]
    table += [
        Case(BOTH, "two trainings", second(LONG, LONG, "W/checkpoints/*", "in use by"), "0", seconds=300),
        Case(BOTH, "two trainings from the start", second(LONG, LONG, "W/config.json", "in use by"), "0", seconds=300),
        Case(BOTH, "two samplers HF", second(SAMPLE, SAMPLE, "o.jsonl*", "in use by|is there already"), "0", seconds=300),
        Case(BOTH, "two preparers", second(PREPARE, PREPARE, "c/corpora/*.partial", ""), "0", seconds=300),
        Case(BOTH, "evaluation beside training", second(LONG, "lm.evaluate --workdir=W", "W/checkpoints/3", ""), "0", seconds=300),
        Case(BOTH, "sampling beside training", second(LONG, "lm.generate --workdir=W --prompt=x --max_new_tokens=3", "W/checkpoints/3", ""), "0",
             seconds=300),
        Case(BOTH, "a conversion beside training", second(LONG, "lm.convert --workdir=W --output=X", "W/checkpoints/3", ""), "0", seconds=300),
        Case(BOTH, "two conversions RUN", second("lm.convert --workdir=RUN --output=X", "lm.convert --workdir=RUN --output=X", "X*", "X"), "0",
             seconds=300),
    ]  # fmt: skip
    sample, infinite = "lm.generate --model=HF --prompt=The --max_new_tokens=4", float("inf")
    table += [
        Case(FINITE, "weights of NaN", sample, "2 finite", damage=not_finite(math.nan), also=no_nan),
        Case(FINITE, "weights of NaN, to a file", f"{sample} --output=o.jsonl", "2 finite", damage=not_finite(math.nan), also=no_nan),
        Case(FINITE, "infinite weights", sample, "2 finite", damage=not_finite(infinite), also=no_nan),
        Case(FINITE, "a scored text of NaN", "lm.evaluate --model=HF --text=hello --output=o.json", "2 finite", damage=not_finite(math.nan)),
        Case(FINITE, "norms of NaN, by beams", f"{sample} --strategy=beam", "2 finite", damage=not_finite(math.nan, "ln_f")),
        Case(FINITE, "a perplexity of NaN", "lm.evaluate --model=HF --tasks=perplexity:a.txt --output=o.json", "2 finite", damage=not_finite(math.nan)),
        Case(FINITE, "a learning rate of 1e30", f"lm.main --config={TINY} --workdir=W --config.optimizer.lr=1e30 --config.optimizer.clip=0 "
             "--config.skip_limit=3", "2 3 steps in a row"),
    ]  # fmt: skip
    return [*table, *honest()]


CASES = cases()
