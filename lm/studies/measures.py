"""Measures of the networks of a study, kept in STUDY/measures: each network is measured once, by a process of its own."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from lm.config import Config, to_json
from lm.errors import UserError, check
from lm.outputs import Claim, replace_file
from lm.strict_json import load_json
from lm.studies.plan import Measure
from lm.studies.runs import last_line
from lm.studies.slots import Slot
from lm.studies.study import hash_of
from lm.training.settings import Every, Keep, Optimizer


class Missing(Exception):
    """A network that has not been measured; `config` as `lm.studies.measure` reads it."""

    def __init__(self, key: str, config: Config):
        super().__init__(key)
        self.key, self.config = key, config


class Measures:
    """The measures of a study's folder; calling it raises Missing for a network that was never measured."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute() / "measures"
        self.known: dict[str, Measure] = {}

    def __call__(self, config: Config, before: Measure | None) -> Measure:
        config = essence(config, before)
        key = hash_of(config)
        if key not in self.known:
            try:
                values = load_json(self.folder / key / "measure.json", dict)
            except (OSError, UserError):
                start = str(self.folder / before.key) if before else config.start
                raise Missing(key, dataclasses.replace(config, start=start)) from None
            self.known[key] = Measure(key=key, **values)
        return self.known[key]


def essence(config: Config, before: Measure | None) -> Config:
    """Reset the fields that neither sizes nor times depend on, so that seeds and learning rates share a measure."""
    optimizer = Optimizer(
        name=config.optimizer.name,
        average=config.optimizer.average,
        clip=config.optimizer.clip,
        groups=config.optimizer.groups,
        private=config.optimizer.private,
    )
    return dataclasses.replace(
        config,
        optimizer=optimizer,
        steps=1000,
        seed=0,
        evaluate=(),
        every=Every(),
        keep=Keep(),
        samples=(),
        wandb=False,
        data=dataclasses.replace(config.data, half=""),
        start=f"../{before.key}" if before else config.start,
    )


def complete(
    measures: Measures, wanted: Sequence[Callable[[], object]], slots: Sequence[Slot], say: Callable[[str], None]
) -> None:
    """Measure networks, one in each slot, until every function of `wanted`, which calls `measures`, finds all of its own.

    Raises UserError for a network that does not train.
    """
    free: Queue[Slot] = Queue()
    for slot in slots:
        free.put(slot)

    def one(missing: Missing) -> None:
        slot = free.get()
        try:
            measure(measures.folder / missing.key, missing.config, slot, say)
        finally:
            free.put(slot)

    while True:
        absent: dict[str, Missing] = {}
        for function in wanted:
            try:
                function()
            except Missing as missing:
                absent[missing.key] = missing
        if not absent:
            return
        with ThreadPoolExecutor(len(slots)) as pool:
            for future in [pool.submit(one, missing) for missing in absent.values()]:
                future.result()


def measure(folder: Path, config: Config, slot: Slot, say: Callable[[str], None]) -> None:
    """Run `lm.studies.measure` for one network."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            claim = Claim(folder, "")
            break
        except UserError:  # another call of the same study measures it
            time.sleep(0.5)
    with claim:
        if (folder / "measure.json").exists():
            return
        say(f"measuring {type(config.objective).__name__.lower()}: a few steps of {config.batch} sequences")
        replace_file(folder / "asked.json", to_json(config))
        with (folder / "console.txt").open("w", encoding="utf-8") as console:
            command = slot.command("lm.studies.measure", f"--folder={folder}")
            done = subprocess.run(
                command, stdout=console, stderr=subprocess.STDOUT, env=environment(slot), stdin=subprocess.DEVNULL, check=False
            )
        line = last_line(folder / "console.txt").removeprefix("error: ")
        check(done.returncode == 0, f"{type(config.objective).__name__} cannot be trained: {line} ({folder / 'console.txt'})")


def environment(slot: Slot) -> dict[str, str]:
    """Return the environment of a process in a slot."""
    return {**os.environ, **slot.environment, "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
