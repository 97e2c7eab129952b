"""The contents of one page: a network's predictions on one text, with all that the options ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.config import Config
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check
from lm.explain import tuned_lens
from lm.explain.ablation import BUDGET, ablate
from lm.explain.attribution import Params
from lm.explain.compare import compare, token_scores
from lm.explain.embeddings import embedding_map, ids_in, ids_of, neighbours
from lm.explain.explain import explain, lay_out
from lm.explain.labelled import example_of, explain_labels, select_task, texts_of
from lm.explain.nearest import similar, training_examples
from lm.explain.probing import probe, read_items
from lm.objectives.base import Objective

Text = str | Mapping[str, Any]
Opened = tuple[Config, Params, Tokenizer]


@dataclass(frozen=True)
class Options:
    """Options of a page; the flags of `lm.explain` of the same names describe them."""

    target: str = ""  # of the texts, empty: none
    label: str = ""
    task: str = ""
    layers: str = "auto"
    attribute: str = "auto"
    baseline: str = "mean"
    top: int = 5
    training: int = 2000
    ablate: str = "auto"
    neurons: int = 20
    tuned_lens: str = "auto"
    lens_text: str = ""
    words: tuple[str, ...] = ()
    probe: str = ""


def contents(
    opened: Opened, text: Text, options: Options, folder: Path, beside: tuple[str, Opened] | None = None
) -> dict[str, Any]:
    """Explain a text, or of a labelled objective an example, as plain values and arrays (see `lm.explain.page.page`).

    `folder`: that of the run, which names the page and keeps the tuned lens. `beside`: the name of another network and what
    was opened of it.
    """
    config, params, tokenizer = opened
    target, label = options.target or None, options.label or None
    objective, params = select_task(config.objective, params, options.task or None)
    # Mistakes in what was named come before minutes of work.
    items = read_items(options.probe) if options.probe else []
    words = ids_of(tokenizer, options.words)
    shown: dict[str, Any] = {name: getattr(options, name) for name in ("layers", "attribute", "baseline", "top")}
    if objective.answers is not None and not objective.writes:
        check(not options.target, f"--target is for encoder-decoders; this run is a {objective.answers.kind}")
        check(beside is None, f"--beside compares probabilities of tokens; this run is a {objective.answers.kind}")
        check(not options.lens_text, f"--lens_text is for models of tokens; this run is a {objective.answers.kind}")
        found = explain_labels(objective, params, tokenizer, text, label=label, **shown)
        add_nearest(found, objective, (config, params, tokenizer), options)
        plain = " ".join(texts_of(objective, example_of(objective, text)))
    else:
        check(not options.label, "--label is for runs of labelled examples; this one predicts tokens")
        check(isinstance(text, str), "a model of running text explains a text, not a mapping of values")
        if options.lens_text:
            tuned_lens.network_of(objective)
            lay_out(objective, params, tokenizer, str(text), target)
        translators = translators_of(objective, (config, params, tokenizer), options, folder)
        found = explain(objective, params, tokenizer, str(text), target=target, translators=translators, **shown)
        plain = f"{text} {options.target}"
    if options.ablate != "none":
        try:
            budget = float("inf") if options.ablate == "all" else BUDGET
            found["ablation"] = ablate(
                objective, params, tokenizer, text, target=target, label=label,
                neurons=options.neurons, budget=budget,
            )  # fmt: skip
        except UserError as error:
            check(options.ablate == "auto", str(error))
            found["notes"].append(f"Without ablation: {error}.")
    if beside is not None:
        name, (other, other_params, other_tokenizer) = beside
        first = token_scores(objective, params, tokenizer, str(text), target)
        second = token_scores(other.objective, other_params, other_tokenizer, str(text), target)
        found["beside"] = {"name": name, "comparison": compare(first, second), "text": target or text}
    ids = words or ids_in(tokenizer, plain)
    found["neighbours"] = neighbours(params, tokenizer, ids)
    if len({*ids, *(id for one in found["neighbours"] for id in one.ids)}) > 2:
        found["map"] = embedding_map(params, tokenizer, found["neighbours"])
    if items:
        found["probe"] = probe(objective, params, tokenizer, items)
    return {**found, "name": folder.name}


def add_nearest(found: dict[str, Any], objective: Objective, opened: Opened, options: Options) -> None:
    """Add the nearest training examples to predictions of labels; a note where the data is out of reach."""
    config, params, tokenizer = opened
    if not options.training:
        return
    try:
        own, examples = training_examples(config, tokenizer, options.task or None, options.training)
    except (UserError, OSError) as error:
        found["notes"].append(f"Without nearest training examples: {error}.")
        return
    nearest = similar(own, examples, params, found["states"], objective.answers.reads)
    for prediction, closest in zip(found["predictions"], nearest):
        prediction["nearest"] = closest
    found["notes"].append(f"Nearest of the first {len(examples):,} training examples (--training=N for another number).")


def translators_of(objective: Objective, opened: Opened, options: Options, folder: Path) -> tuned_lens.Translators | None:
    """Return the translators of the tuned lens: those of a file, or trained on --lens_text where there is no file yet."""
    config, params, tokenizer = opened
    if options.tuned_lens == "none":
        check(not options.lens_text, "--lens_text trains a tuned lens: leave out --tuned_lens=none")
        return None
    path = folder / tuned_lens.FILE if options.tuned_lens == "auto" else Path(options.tuned_lens).expanduser()
    if path.is_file():
        return tuned_lens.load(path, params)
    if not options.lens_text:
        check(options.tuned_lens == "auto", f"--tuned_lens={path}: there is no such file; --lens_text=FILE trains it")
        return None
    is_run = (folder / "checkpoints").is_dir()
    check(is_run or options.tuned_lens != "auto", "--lens_text with a model folder: name the lens's file, --tuned_lens=FILE")
    check(path.parent.is_dir(), f"--tuned_lens={path}: there is no folder {path.parent}")
    own = options.lens_text == "train"
    ids = tuned_lens.read_ids(config, tokenizer, None if own else options.lens_text)
    translators = tuned_lens.train(objective, params, tokenizer, ids)
    tuned_lens.save(translators, path, params)
    return translators
