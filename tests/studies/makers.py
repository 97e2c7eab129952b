"""Studies and outcomes by hand: equal arguments give equal values."""

import dataclasses
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm.studies.results import Outcome, Point
from lm.studies.study import LOSS, Arm, Study
from tests.configs import tiny

CONFIG = tiny.config(text="hello")


def arm(name: str, control_of: str = "", **fields) -> Arm:
    """Return an arm of the tiny config; `fields` of the config, "lr" of its optimizer, "width" of its model."""
    config = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, lr=fields.pop("lr", 1e-2)))
    model = dataclasses.replace(config.objective.model, width=fields.pop("width", 32), depth=fields.pop("depth", 2))
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, model=model), **fields)
    return Arm(name=name, stages=(config,), control_of=control_of)


def study(names: Sequence[str] = ("plain", "wide", "other"), **values) -> Study:
    """Return a study of arms that differ in their learning rate."""
    arms = tuple(arm(name, lr=1e-2 * (k + 1)) for k, name in enumerate(names))
    return Study(**{"arms": arms, "name": "made", "seeds": 5, **values})


def outcome(one: Study, name: str, seed: int, loss: float, figures: dict | None = None, **values) -> Outcome:
    """Return a finished run whose loss falls to `loss`; `values` replace fields."""
    steps, final = 100, values.pop("final_rate", 0.01)
    rate = values.pop("noise", 0.02)
    rng = np.random.default_rng(zlib.crc32(f"{name}{seed}".encode()))
    params, tokens = values.get("params", 10_000), values.get("tokens", 1e6)
    flops = values.setdefault("flops", 6.0 * params * tokens)
    seconds = values.setdefault("seconds", 60.0)
    curve = []
    for step in range(5, steps + 1, 5):
        share = step / steps
        held_out = loss + 2.5 * (math.exp(-5 * share) - math.exp(-5)) + rate * rng.normal() * (step < steps)
        lr = 0.01 * (final + (1 - final) * (1 + math.cos(math.pi * share)) / 2)
        point = {"train/loss": held_out - 0.1 + rate * rng.normal(), "train/lr": lr}
        if step % 10 == 0:
            point[LOSS] = held_out
        curve.append(Point(step, share * tokens, share * flops, share * seconds, point))
    digest = f"{zlib.crc32(repr((name, seed)).encode()):08x}"
    found = {
        "arm": name, "seed": seed, "hash": digest, "state": "done", "folders": {"train": Path("runs") / digest},
        "steps": steps, "tokens": tokens, "params": params,
        "figures": {LOSS: loss, "train/loss": loss - 0.1, **(figures or {})},
        "curve": tuple(curve), "quantity": "negative log-likelihood", "samples": (("Once", f"{name} upon a time"),),
    }  # fmt: skip
    return Outcome(**{**found, **values})


def outcomes(one: Study, shift: Sequence[float] | None = None, noise: float = 0.01, **values) -> list[Outcome]:
    """Return finished runs of all arms and seeds: seeds share most of their noise, arm k is shifted by shift[k]."""
    found = []
    for seed in one.seeds:
        common = 0.03 * np.random.default_rng(seed).normal()
        for k, a in enumerate(one.arms):
            own = noise * np.random.default_rng(1000 + 17 * seed + k).normal()
            found.append(outcome(one, a.name, seed, 3.0 + common + own + (shift[k] if shift else 0.0), **values))
    return found


def replaced(found: Sequence[Outcome], name: str, seeds: Sequence[int] = (), **values) -> list[Outcome]:
    """Replace fields of the outcomes of one arm."""
    return [dataclasses.replace(o, **values) if o.arm == name and (not seeds or o.seed in seeds) else o for o in found]
