"""Run hostile cases and print a table: how many of each group are well, and the bad ones with command and output.

python -m tests.hostile [--group=damage] [--case=words] [--jobs=2] [--quick] [--verbose] [--json=FILE]
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
KINDS = ("well", "traceback", "hang", "silent")


def environment() -> None:
    """Set what must be set before jax is imported; children inherit it."""
    from tests.processes import xla_flags

    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"lm-tests-{os.getuid()}/compiled"))
    os.environ.update(
        JAX_PLATFORMS="cpu", XLA_FLAGS=xla_flags(1), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0", HF_HUB_OFFLINE="1",
        OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), TOKENIZERS_PARALLELISM="false",
        PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip


def main() -> int:
    """Read the flags, run the cases, print the table; the status says whether all are well."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--group", default="", help="only groups whose name holds these words")
    parser.add_argument("--case", default="", help="only cases whose name or command holds these words")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="only the quick ones")
    parser.add_argument("--verbose", action="store_true", help="print every case and its last line")
    parser.add_argument("--json", help="write every verdict to this file")
    parser.add_argument("--base", default=str(Path(tempfile.gettempdir()) / f"lm-hostile-{os.getuid()}"), help="scratch folder")
    given = parser.parse_args()
    environment()
    from tests import forks
    from tests.hostile import jobs, world
    from tests.hostile.case import contents, verdict
    from tests.hostile.tables import CASES

    forks.preload()
    cases = [c for c in CASES if given.group in c.group and (c.quick or not given.quick) and given.case in f"{c.name} {c.run}"]
    base = Path(given.base)
    base.mkdir(parents=True, exist_ok=True)
    here = world.build(base, given.jobs)
    before = {}

    def tasks():
        for number, case in enumerate(cases):
            folder = base / "cases" / f"{os.getpid()}-{number}"
            line = case.run if isinstance(case.run, str) else ""
            world.lay_out(here, folder, f"{line} {case.name} {' '.join(case.files)}")
            for name, content in case.files.items():
                world.put(folder / name, content)
            if case.damage:
                case.damage(folder)
            before[number] = contents(folder)
            work = forks.command(words(line)) if line else (lambda case=case, folder=folder: case.run(folder))
            yield (number, folder), folder, work, world.variables(base), case.seconds

    counts, found = Counter(), []
    for (number, folder), outcome in jobs.serve(tasks(), given.jobs):
        case = cases[number]
        if outcome.status == 2:
            after = contents(folder)
            lost = tuple(name for digest, name in before.pop(number).items() if digest not in after)
            outcome = outcome.__class__(**{**vars(outcome), "lost": lost})
        kind, wrong = verdict(case, outcome, folder)
        counts[case.group, kind] += 1
        last = (outcome.stderr.strip() or outcome.stdout.strip())[-1500:]
        found.append({
            "group": case.group, "case": case.name, "command": str(case.run), "expect": case.expect, "kind": kind,
            "wrong": wrong,
            "seconds": round(outcome.seconds, 1), "output": last if kind != "well" else last.splitlines()[-1:],
        })  # fmt: skip
        if kind != "well" or given.verbose:
            print(f"[{kind}] {case.group}: {case.name}\n    {case.run}\n    {wrong} (expected: {case.expect})")
            print("".join(f"    | {line[:300]}\n" for line in last.splitlines()[-6:]), flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        for ending in ("out", "err"):
            Path(f"{folder}.{ending}").unlink(missing_ok=True)
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1))
    report(counts)
    return int(any(kind != "well" for _, kind in counts))


def words(line: str) -> list[str]:
    """Part a command line at spaces outside quotes; an argument may hold everything but the quote around it."""
    import shlex

    return shlex.split(line)


def report(counts: Counter) -> None:
    """Print groups and kinds as a table."""
    groups = list(dict.fromkeys(group for group, _ in counts))
    rows = [(group, *(counts[group, kind] for kind in KINDS)) for group in groups]
    rows.append(("all", *(sum(row[k] for row in rows) for k in range(1, 5))))
    print(f"{'group':28}{'tried':>7}" + "".join(f"{kind:>11}" for kind in KINDS))
    for name, *figures in rows:
        print(f"{name:28}{sum(figures):7}" + "".join(f"{figure:11}" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
