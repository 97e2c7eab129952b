"""k-fold cross-validation of a fine-tuning: every labelled example is held out once, by a network that has not seen it.

    python -m launch.folds --config=configs/classify_nano.py [--folds=5] [--workdir=runs/NAME-folds] [--config.a.b=v ...]

Trains one run a fold, one after another, in WORKDIR/1, WORKDIR/2 ...; the same command again goes on where it was, and
trains no finished fold twice. What the config holds out itself is not looked at (`Data.fold`). Labels are those of all
examples: a label that only one fold has is known to every network, though that fold's never learned it (of several tasks,
each fold's are those of its training side). Of texts to write every one is answered, not the first 200. With
`stop.patience` each fold is measured by the checkpoint that is best on it, which flatters a little. In WORKDIR:

    folds.json         every figure: of each fold, mean, standard deviation, and of all predictions together
    predictions.jsonl  every example once, as its own fold's network answers, with "fold"; figures.json, errors.html and
                       pictures of all of them, as a run leaves them (lm.evaluation.downstream)
"""

import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from launch.finetune import train
from lm.config import Config, load, override, parse, read_config
from lm.console import table
from lm.data.corpus.split import assign_folds
from lm.data.sources import components
from lm.data.types import Example, ExampleSet, labelled
from lm.errors import check
from lm.flags import run
from lm.outputs import replace_file
from lm.strict_json import dump_json, load_json, load_json_lines
from lm.studies.runs import ended

VALUES = flags.FlagValues()  # of its own: other commands, imported beside this one, have some of the same names
CONFIG = flags.DEFINE_string("config", None, "config file and its arguments: FILE.py[:key=value,...]", flag_values=VALUES)
FOLDS = flags.DEFINE_integer("folds", 5, "parts, each held out once", lower_bound=2, flag_values=VALUES)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the runs (default: runs/NAME-folds)", flag_values=VALUES)

HELD_OUT = "eval/validation/"
Figures = dict[str, float | None]


def main(overrides: list[tuple[str, str]]) -> None:
    """Train the folds, print the table, write the files."""
    spec, count = CONFIG.value, FOLDS.value
    check(spec is not None, "which config? --config=configs/classify_nano.py is a good first one")
    check("data.fold" not in dict(overrides), "--config.data.fold is set by this command: leave it out, give --folds")
    config = override(load(spec), overrides)
    check(labelled(config.data.source), "folds are of labelled examples; this config reads running text: train it once")
    folder = Path(WORKDIR.value or f"runs/{Path(spec.partition(':')[0]).stem}-folds")
    check(folder.is_dir() or not folder.exists(), f"--workdir={folder} is a file; name a folder")
    asked = {"config": spec, "folds": count, "overrides": [list(pair) for pair in overrides]}
    more = [*whole_answers(config), *overrides, *labels_of(config, overrides, count)]
    begin(folder, asked)
    for number in range(1, count + 1):
        workdir = folder / str(number)
        train(spec, workdir, [*more, ("data.fold", f"{number}/{count}")])
        check(ended(workdir), f"{workdir} stopped before its end; the same command goes on from here")
    each = [figures_of(folder / str(number)) for number in range(1, count + 1)]
    together = gathered(config, folder, count)
    names = dict.fromkeys(name for one in each for name in one)
    found = {name: spread([one.get(name) for one in each], together.get(name)) for name in names}
    replace_file(folder / "folds.json", dump_json(asked | {"figures": found}, indent=1) + "\n")
    print(shown(found, count))
    print(f"{folder}/folds.json" + ", predictions.jsonl: every example by a network that has not seen it" * bool(together))


def whole_answers(config: Config) -> list[tuple[str, str]]:
    """Give the override with which a run that writes texts answers all held-out sources."""
    return [("objective.reply.most", "0")] if hasattr(config.objective, "reply") else []


def begin(folder: Path, asked: dict[str, Any]) -> None:
    """Note what is asked for; raises UserError where the folder holds folds of something else."""
    path = folder / "folds.json"
    if path.exists():
        before = load_json(path, dict)
        odd = [name for name in asked if before.get(name) != asked[name]]
        check(not odd, f"{folder} holds folds with another {', '.join(odd)}; name another --workdir")
        return
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(path, dump_json(asked, indent=1) + "\n")


def labels_of(config: Config, overrides: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Give the override that names the labels of all examples; none where the objective has none, or was told them."""
    from lm.data.corpus.prepare import prepare
    from lm.objectives.base import resolve

    if config.start:  # the tokenizer is the folder's
        from lm.start.adopt import adopt

        config, _ = adopt(config, [name for name, _ in overrides])
    path, inner = "objective", config.objective
    if hasattr(inner, "objective"):  # what Regularised trains
        path, inner = "objective.objective", inner.objective
    if getattr(inner, "labels", None) != ():
        return []
    data = replace(config.data, fold=f"1/{count}", augment=())
    corpus = prepare(data, report=lambda line: print(line, file=sys.stderr, flush=True))
    held_out = corpus.validation
    sides = [(n, side.examples + held_out.of(k).examples) for k, (n, side) in enumerate(corpus.train)]
    whole = replace(
        corpus,
        train=tuple((share, ExampleSet(corpus.name, examples)) for share, examples in sides),
        validation=ExampleSet(held_out.name, []),
    )
    objective = resolve(replace(config, data=data), whole)[0].objective
    labels = getattr(objective, "objective", objective).labels
    text = ",".join(labels)
    same = parse(text, tuple[str, ...], "labels") == labels
    check(same, f"labels {labels} have commas, quotes or brackets, which no flag can say: set {path}.labels in the config")
    return [(f"{path}.labels", text)] if labels else []


def figures_of(workdir: Path) -> Figures:
    """Read a run's held-out figures, those of its examples by their own names."""
    summary = load_json(workdir / "summary.json", dict)
    found = {name.removeprefix(HELD_OUT): value for name, value in summary.items() if name.startswith(HELD_OUT)}
    found.pop("filled", None)  # tells of rows, not of answers
    path = workdir / "figures.json"
    if not path.exists():  # several tasks have a file each
        return found
    figures = load_json(path, dict)
    found = {name: value for name, value in found.items() if not name.startswith("examples/")}
    return found | {name: value for name, value in figures.items() if f"{name}_error" in figures}


def spread(values: Sequence[float | None], together: float | None = None) -> dict[str, Any]:
    """Give a figure's values, their mean, the standard deviation from fold to fold (n - 1), and that of all predictions."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    mean = statistics.mean(known) if known else None
    return {"folds": list(values), "mean": mean, "std": statistics.stdev(known) if len(known) > 1 else None,
            "together": together}  # fmt: skip


def shown(found: dict[str, dict[str, Any]], count: int) -> str:
    """Lay the figures out as a table."""
    rows = [[name, *one["folds"], one["mean"], one["std"], one["together"]] for name, one in found.items()]
    cells = [["" if cell is None else cell for cell in row] for row in rows]
    return table(cells, ("figure", *map(str, range(1, count + 1)), "mean", "± std", "together"))


def gathered(config: Config, folder: Path, count: int) -> Figures:
    """Write the predictions of all folds in the order of the data; give their figures. Nothing where runs leave none."""
    from lm.evaluation.downstream import Found, leave
    from lm.evaluation.metrics.statistics import flat
    from lm.evaluation.predictions import FORMS

    if not all((folder / str(number) / "predictions.jsonl").exists() for number in range(1, count + 1)):
        return {}
    examples = [example for _, source in components(config.data.source) for example in source.open()]
    part_N = assign_folds(examples, count)
    found: dict[int, dict[str, Any]] = {}
    for number in range(1, count + 1):
        answers = [one for _, one in load_json_lines(folder / str(number) / "predictions.jsonl")]
        places = matched(answers, examples, np.flatnonzero(part_N == number - 1))
        found |= {place: {**one, "fold": f"{number}/{count}"} for place, one in places}
    predictions = [found[place] for place in sorted(found)]
    if left := len(examples) - len(found):
        print(f"{left} of {len(examples)} examples count nothing: their labels are not among the objective's")
    objective = read_config(folder / "1").objective.measured()
    form = FORMS[objective.answers.form]
    all_of_them = Found(form, objective, predictions, [examples[place] for place in sorted(found)])
    figures = all_of_them.figures()
    leave(all_of_them, figures, folder)
    return flat(figures)


def matched(predictions: list[dict[str, Any]], examples: Sequence[Example], places: Sequence[int]) -> list[tuple[int, dict]]:
    """Pair a fold's predictions with the places of its examples: both are in the order of the data, some may be missing."""
    pairs, rest = [], iter(places)
    for one in predictions:
        place = next((int(place) for place in rest if examples[place].where == one["where"]), None)
        check(place is not None, f"{one['where']} is not in its fold any more: the data changed; name another --workdir")
        pairs.append((place, one))
    return pairs


if __name__ == "__main__":
    flags.FLAGS.append_flag_values(VALUES)
    VALUES.mark_as_parsed()
    run(main, Config)
