"""Language-model research in JAX: text -> rows -> loss -> step -> weights -> words -> figures.

A run, in the order of reading:

    text     lm.data        sources and labelled examples; `corpus` tokenises a text once and maps it from the cache afterwards
    rows     lm.data.rows   windows, packed documents, examples: a batch is a pure function of (seed, step)
    loss     lm.objectives  one file each: `corrupt` on the host (numpy, lm.corruption), `loss` on the device (jax, lm.models)
    step     lm.train       `train_step`, pure and the same for every objective; `loop` around it; its parts in lm.training
    weights  lm.training    checkpoints; lm.convert reads and writes folders of Hugging Face, lm.start begins a run from either
    words    lm.decode      continuations, answers, filled masks
    figures  lm.evaluation  held-out losses, tasks, reports; lm.explain attributes a prediction to its tokens

A run is a value, the dataclass tree `lm.config.Config`: a function in configs/ returns it, --config.a.b=value replaces fields,
the run's folder keeps it as config.json. Commands: `python -m lm.main` trains; `lm.generate`, `lm.predict`, `lm.evaluate`,
`lm.explain` and `lm.convert` take its folder; `lm.compile` compiles its step for devices that need not exist.

Modules import only from rooms that stand before their own in `FLOORS` of tests/test_house.py. Files of this folder are the
ground (errors, flags, files, processes, the mesh), the config, the loop (train, looks, progress) and the commands.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """Give `lm.load`, and the modules `lm.config` and `lm.train`, which are functions too, on first use.

    Importing `lm` alone starts neither jax nor anything else.
    """
    if name in ("load", "LanguageModel"):
        return getattr(importlib.import_module("lm.language_model"), name)
    if name in ("config", "train"):
        return importlib.import_module(f"lm.{name}")
    raise AttributeError(f"module 'lm' has no attribute {name!r}")
