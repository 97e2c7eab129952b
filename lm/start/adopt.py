"""A run that starts from a folder takes network and tokenizer from it; the config keeps the choices of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm.config import Config, read_config
from lm.convert.convert import family_of
from lm.convert.differ import TRAINING, differences
from lm.convert.families import FAMILIES, family_named
from lm.convert.folder import Folder
from lm.convert.runs import kind_of
from lm.data.tokenizer.tokenizer import Pretrained
from lm.errors import UserError, check
from lm.models.encoder_decoder import EncoderDecoder
from lm.models.positions import context_of
from lm.objectives.base import Objective
from lm.runs import is_published


def adopt(config: Config, given: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """Return the config with the network and the tokenizer of its `start`, and the lines to print.

    Architecture comes from the folder; dropout, inits, dtype and the like from the config, and so does the context where
    positions have no table (a published one is a bound). A tokenizer named by its path stays, too. `given`: fields set on
    the command line; UserError names both values of one that the folder would change, so that none is ignored.
    """
    inner = config.objective.inner
    if inner is not config.objective:
        # A wrapper trains the objective inside it: that one adopts, under the names it has there.
        deeper = [name.replace("objective.objective.", "objective.", 1) for name in given]
        adopted, lines = adopt(dataclasses.replace(config, objective=inner), deeper)
        return dataclasses.replace(adopted, objective=config.objective.around(adopted.objective)), lines
    if config.start and config.objective.apart:
        return adopt_parts(config, given)
    if not config.start or "model" not in {field.name for field in dataclasses.fields(config.objective)}:
        return config, []  # the parts of a mixture share one model, which stands in each of them

    # The network: the folder's architecture with the config's choices of training.
    model = config.objective.model
    theirs, start = described(config.start, config.objective.task)
    if type(theirs) is not type(model):
        return config, []  # another kind of network: `start_from` reports the arrays that fit
    mine = model.sized(model.vocab or theirs.vocab)
    taken = merged(mine, theirs, published=is_published(config.start))
    changed = differences(taken, mine)
    for name in (name.removeprefix("objective.model.") for name in given if name.startswith("objective.model.")):
        asked, has = at(mine, name), at(taken, name)
        check(
            asked == has,
            f"--config.objective.model.{name}={asked}: start='{config.start}' has {has}; leave it out, or start elsewhere",
        )

    # The head and the start token follow the folder where the config leaves them open.
    fields: dict[str, Any] = {"model": taken if changed else mine}
    head = head_like(config.objective, kind_of(Path(config.start).expanduser()))
    if head is not None:
        fields["head"] = head
    begins = any(field.name == "start" for field in dataclasses.fields(config.objective))
    if start is not None and begins and config.objective.start is None:
        fields["start"] = start

    # The tokenizer: rows of the folder's tables belong to its tokens.
    data = config.data
    path = str(Path(config.start).expanduser().absolute())
    if not isinstance(data.tokenizer, Pretrained):
        odd = [name for name in given if name.startswith("data.tokenizer.")]
        check(not odd, f"--config.{', '.join(odd)}: start='{config.start}' brings its tokenizer; leave it out")
        data = dataclasses.replace(data, tokenizer=Pretrained(path))
    objective = dataclasses.replace(config.objective, **fields)
    parts = [f"the network ({', '.join(changed)})"] * bool(changed) + ["the tokenizer"] * (data != config.data)
    parts += [f"the head ({head.inner}, {head.activation})"] if head is not None else []
    lines = [f"start={config.start}: {' and '.join(parts)} {'are' if len(parts) > 1 else 'is'} the folder's"] if parts else []
    return dataclasses.replace(config, objective=objective, data=data), lines


def adopt_parts(config: Config, given: Sequence[str]) -> tuple[Config, list[str]]:
    """Adopt the network in every task that shares it, and each task's own head."""
    adopted, parts, lines = config, [], []
    for part in config.objective.parts:
        adopted, more = adopt(dataclasses.replace(config, objective=part.objective), given)
        parts.append(dataclasses.replace(part, objective=adopted.objective))
        lines += more
    objective = dataclasses.replace(config.objective, parts=tuple(parts))
    return dataclasses.replace(config, objective=objective, data=adopted.data), list(dict.fromkeys(lines))


def head_like(objective: Objective, kind: str) -> Any:
    """Return the head of a model_type for an objective's task, None where the objective's own choice is the same.

    `head.inner="auto"` goes by the tokens, which are BERT's in ELECTRA and DistilBERT too; their heads are others.
    """
    head, heads = objective.head, family_named(kind).heads if kind in FAMILIES else None
    layout = heads.layouts.get(objective.task) if heads else None
    if head is None or layout is None or head.inner != "auto" or head.pool != "auto" or layout.activation == "tanh":
        return None
    return dataclasses.replace(head, inner=layout.inner, activation=layout.activation)


def described(start: str, task: str = "") -> tuple[Any, int | None]:
    """Return the model of a published folder or of a run, and the start token of its targets, None: the usual.

    `task`: the head to assume, whatever the folder's is.
    """
    if not is_published(start):
        objective = read_config(Path(start)).objective
        return objective.model, objective.start
    folder = Folder(start)
    settings = folder.config
    folder.close()
    first = settings.get("decoder_start_token_id")
    return family_of(settings, task).objective(settings).model, None if first == settings.get("eos_token_id") else first


def merged(mine: Any, theirs: Any, published: bool) -> Any:
    """Return the folder's model with our choices of training; a run's table keeps its padding, as it is read whole."""
    if isinstance(mine, EncoderDecoder):
        sides = {side: merged(getattr(mine, side), getattr(theirs, side), published) for side in ("encoder", "decoder")}
        return dataclasses.replace(theirs, **sides)
    names = {field.name for field in dataclasses.fields(theirs)}
    kept = {name: getattr(mine, name) for name in names & (TRAINING if published else TRAINING - {"pad_vocab"})}
    if context_of(theirs) != "table":
        # A published context bounds the lengths of its training; in a run of ours it is a choice of the user.
        free = not published or context_of(theirs) == "free"
        kept["context"] = mine.context if free else min(mine.context, theirs.context)
    return dataclasses.replace(theirs, **kept)


def at(model: Any, path: str) -> Any:
    """Return the value at a dotted path; values of 0 are not derived."""
    for name in path.split("."):
        if not hasattr(model, name):
            raise UserError(f"objective.model has no field '{path}' where it starts from a folder")
        model = getattr(model, name)
    return model
