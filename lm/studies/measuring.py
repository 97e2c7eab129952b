"""A network's sizes, and the seconds of a few of its steps: the work of `lm.studies.measure`."""

import dataclasses
import resource
import time
from pathlib import Path

from lm import platform
from lm.config import from_json, to_json
from lm.data.corpus.prepare import prepare
from lm.objectives.base import resolve
from lm.objectives.quantity import quantity
from lm.outputs import replace_file
from lm.restore import adopted
from lm.strict_json import dump_json
from lm.timing import step

REPEATS = 5  # steps that are timed


def measure_folder(folder: Path) -> None:
    """Measure the config of a folder's asked.json; write its resolved form, its tokenizer and measure.json."""
    began = time.monotonic()
    platform.begin()

    config = adopted(from_json((folder / "asked.json").read_bytes(), str(folder / "asked.json")))
    # The network is taken from the folder, its values are not: time and sizes do not depend on them.
    config = dataclasses.replace(config, start=None)
    config, corpus = resolve(config, prepare(config.data, report=print))
    prepared = time.monotonic() - began
    timed = step(config, corpus, REPEATS)
    replace_file(folder / "config.json", to_json(config))
    corpus.tokenizer.save(folder / "tokenizer.json")
    found = {
        "params": int(timed["parameters"]),
        "step_tokens": timed["step_tokens"],
        "step_flops": timed["step_flops"],
        "step_seconds": timed["step_seconds"],
        "state_bytes": int(timed["state_bytes"]),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "start_seconds": prepared + timed["compile_seconds"],
        "quantity": quantity(config.objective),
    }
    replace_file(folder / "measure.json", dump_json(found, indent=1) + "\n")
