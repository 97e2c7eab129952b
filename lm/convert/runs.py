"""Published folders in place of runs: opened, imported as runs at step 0, and runs exported as folders."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.config import Config, read_config, to_json
from lm.convert.absent import without
from lm.convert.convert import Loaded, load, save, some
from lm.convert.folder import read_json
from lm.data.corpus.corpus import Data
from lm.data.demo import Documentation
from lm.data.tokenizer.special import find
from lm.data.tokenizer.tokenizer import Pretrained, Tokenizer
from lm.errors import check
from lm.models.merge import merged
from lm.saved import load_params, read_mesh
from lm.strict_json import dump_json, load_json
from lm.training.checkpoint import Checkpoints
from lm.training.settings import Every
from lm.training.state import TrainState

PUBLISHED = "published.json"  # in an imported run: model_type and the parameters that its folder lacked


def opened(
    workdir: str | None, model: str | None, step: str = "auto", new_heads: bool = False, mesh: str | None = None
) -> tuple[Config, Any, Tokenizer]:
    """Return config, parameters and tokenizer of a run, or of a published folder; `mesh`: as --mesh (`lm.saved.read_mesh`).

    Heads that the folder lacks are reported on stderr. `new_heads`: drawn at random; else they are `Absent`, an error for
    whatever reads them.
    """
    check(bool(workdir) != bool(model), "name one of them: --workdir=RUN, a trained run, or --model=HF_DIR, a model folder")
    devices = read_mesh(mesh)
    if workdir:
        config = read_config(Path(workdir))
        config = dataclasses.replace(config, objective=config.objective.inner)
        tokenizer = Tokenizer.load(Path(workdir) / "tokenizer.json")
        params = load_params(config, Path(workdir), step, tokenizer.sha256(), devices)
        drawn = untrained(Path(workdir), step)
        return config, report_missing(params, drawn, workdir, new_heads), tokenizer
    loaded = load(model, devices)
    if loaded.left:
        print(f"{model}: left out: {some(set(loaded.left))}, without a counterpart in this model", file=sys.stderr, flush=True)
    params = report_missing(loaded.params, loaded.drawn, model, new_heads)
    return as_config(loaded, model), params, whole(loaded, model).tokenizer


def report_missing(params: Any, drawn: Sequence[str], folder: str, new_heads: bool) -> Any:
    """Report missing heads on stderr; return the parameters, with those absent unless `new_heads`."""
    if not drawn:
        return params
    how = "drawn at random: their output is noise" if new_heads else "reading them is an error (--allow_new_heads)"
    print(f"{folder}: not in the file: {some(set(drawn))}; {how}", file=sys.stderr, flush=True)
    return params if new_heads else without(params, drawn, folder)


def untrained(workdir: Path, step: str = "auto") -> tuple[str, ...]:
    """Return the parameters of an imported run that its folder lacked; none after training."""
    file = workdir / PUBLISHED
    drawn = load_json(file, dict).get("drawn", []) if file.is_file() else []
    check(isinstance(drawn, list) and all(isinstance(name, str) for name in drawn), f"{file}: drawn must be a list of texts")
    steps = {path.name for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()}
    # Any later checkpoint has trained them.
    return tuple(drawn) if step == "0" or steps <= {"0"} else ()


def whole(loaded: Loaded, model: str) -> Loaded:
    if loaded.tokenizer is None:
        Tokenizer.load(model)  # raises, naming the missing files
    return loaded


def as_config(loaded: Loaded, model: str) -> Config:
    """Return a published model as the config of a run; its text is Python's documentation until one is named."""
    whole(loaded, model)
    lacking = [name for name in loaded.objective.special if find(loaded.tokenizer.core, name) is None]
    check(
        not lacking,
        f"{model}: its tokenizer has {len(loaded.objective.special) - len(lacking)} of the {len(loaded.objective.special)} "
        f"special tokens that such a model needs, not {some(set(lacking), 3)}; python -m lm.convert --model={model} "
        "--pad_vocab=1 --output=FOLDER writes one that has them",
    )
    data = Data(source=Documentation(), tokenizer=Pretrained(str(Path(model).expanduser().absolute())))
    objective = loaded.objective.resolve(loaded.tokenizer).published()
    return Config(objective=objective, data=data, steps=1, batch=8, every=Every())


def import_run(model: str, workdir: Path) -> list[str]:
    """Write a published folder as a run at step 0; return the lines to print."""
    check(not (workdir / "config.json").exists(), f"{workdir} is a run already; name another --workdir")
    loaded = load(model)
    write_run(as_config(loaded, model), loaded.params, loaded.tokenizer, workdir)
    remember(workdir, loaded.kind, loaded.drawn)
    lines = [f"{workdir}: a run at step 0; lm.generate and lm.evaluate take it, start={workdir} trains it"]
    return [*summary_of(loaded, model), *lines]


def remember(workdir: Path, kind: str, drawn: Sequence[str]) -> None:
    """Record beside a run its published model_type and the parameters drawn at random."""
    (workdir / PUBLISHED).write_text(dump_json({"model_type": kind, "drawn": list(drawn)}) + "\n", encoding="utf-8")


def write_run(config: Config, params: Any, tokenizer: Tokenizer, workdir: Path) -> None:
    """Write parameters as a run at step 0."""
    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, config.keep)
    # Parameters only, as `start` reads no more of a run; "best" is above any loss that training may measure.
    notes = {"seconds": 0.0, "best": 1e30, "corpus": "", "tokenizer": tokenizer.sha256()}
    state = TrainState(np.zeros((), np.int32), params, None, None, None, None)  # type: ignore[arg-type]  # on the host
    checkpoints.save(0, state, notes)
    checkpoints.close()
    tokenizer.save(workdir / "tokenizer.json")
    (workdir / "config.json").write_text(to_json(config), encoding="utf-8")


def summary_of(loaded: Loaded, model: str) -> list[str]:
    count = sum(x.size for x in jax.tree.leaves(loaded.params))
    lines = [f"{model}: {type(loaded.objective).__name__}, {count / 1e6:,.1f} M parameters"]
    if loaded.drawn:
        lines.append(f"not in the file, drawn anew: {some(set(loaded.drawn))}")
    if loaded.left:
        lines.append(f"in the file, without a counterpart here, left out: {some(set(loaded.left))}")
    if loaded.kind == "mbart":
        lines.append("mBART's language codes are not set behind a source: write them in the text, or end it with them")
    return lines


def export_run(workdir: Path, output: Path, step: str = "auto", mesh: str | None = None) -> str:
    """Write a run as a published folder, with a card of its config and figures; `mesh`: as --mesh."""
    check(not output.exists() or (output.is_dir() and not any(output.iterdir())), f"{output} exists; name a new folder")
    config, params, tokenizer = opened(str(workdir), None, step, mesh=mesh)
    several = config.objective.parts
    check(not several, f"'{workdir}' has {len(several)} heads, a folder one: start a run of one task from it, and write that")
    # LoRA factors are multiplied into their matrices: transformers' classes have none.
    model, params = merged(config.objective.model, params)
    objective = dataclasses.replace(config.objective, model=model)
    left = save(objective, params, tokenizer, output, card(workdir, config), kind_of(workdir))
    return f"{output}: config.json, weights, tokenizer and card" + (f"; left out: {some(left)}" if left else "")


def kind_of(path: Path) -> str:
    """Follow a run's starts to a published folder and return its model_type; empty: none, or gone."""
    seen: set[Path] = set()  # starts may form a circle after folders were moved
    while path not in seen and path.is_dir():
        seen.add(path)
        for file in (path / PUBLISHED, path / "config.json"):
            if file.is_file() and (kind := read_json(file).get("model_type")):
                return str(kind)
        start = read_config(path).start if (path / "config.json").is_file() else None
        if not start:
            break
        path = Path(start).expanduser()
    return ""


def card(workdir: Path, config: Config) -> str:
    """Return a model card in Markdown: figures and config of a run."""
    path = workdir / "summary.json"
    summary = load_json(path, dict) if path.exists() else {}
    corpus = summary.pop("corpus", {}).get("name", "unknown text")
    rows = [f"| {name} | {value:.6g} |" for name, value in summary.items() if isinstance(value, int | float)]
    table = ["| figure | value |", "|---|---|", *rows] if rows else []
    kind = type(config.objective).__name__
    intro = f"A language model trained with `lm` (objective: {kind}) on {corpus}."
    return "\n".join(["---", "library_name: transformers", "---", "", "# " + workdir.name, "", intro, "", *table, "",
                      "```json", to_json(config).rstrip(), "```", ""])  # fmt: skip
