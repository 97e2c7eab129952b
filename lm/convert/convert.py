"""Read and write model folders: config, tensors straight onto the mesh, tokenizer, model card."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.convert import task_heads, tokens
from lm.convert.absent import present
from lm.convert.differ import Difference, differ, refusal
from lm.convert.families import all_families, family_named
from lm.convert.family import Family, canonical
from lm.convert.folder import INDEX, SINGLE, Folder
from lm.convert.lazy import fill
from lm.convert.rules import Rule, blocks, missing, write
from lm.data.tokenizer import special
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check
from lm.models.encoder_decoder import EncoderDecoder
from lm.sharding import shardings, unbox
from lm.sizes import check_memory
from lm.training.parameters import flat, nested

# Beginnings of our leaves that a file may lack: they are drawn and reported.
HEADS = ("transform/", "head_bias", "pooler/", "pair/", "output/", "generator/", "discriminator/dense/", "discriminator/judge/",
         "embed/bias", "embed/cluster_", "embed/output", "classifier/", "summary/", "answer/")  # fmt: skip
BATCH = dict.fromkeys(("tokens", "source", "places"), np.zeros((1, 8), np.int32))  # enough for the shapes of any objective
SHARD = 5 * 10**9  # bytes of tensors per file


@dataclass(frozen=True)
class Loaded:
    """The contents of a folder: objective, parameters, tokenizer, and the tensors that file and table do not share."""

    objective: Any
    params: Any
    tokenizer: Tokenizer | None
    drawn: tuple[str, ...]  # our leaves that the file lacks
    left: tuple[str, ...] = ()  # tensors of the file without a counterpart in the objective
    kind: str = ""  # model_type of config.json, which the model alone does not determine (mT5 is a T5)


def family_of(settings: dict[str, Any], task: str = "") -> Family:
    """Return the family of a config.json, under the head of `task` or of the task that it names."""
    return task_heads.tasked(family_named(str(settings.get("model_type"))), settings, task)


def load(path: str | Path, mesh: Any = None, seed: int = 0, pad_vocab: int = 1, task: str = "") -> Loaded:
    """Read a folder, each tensor straight into its shards of the mesh (None: the first device).

    Token tables are padded to a multiple of `pad_vocab` rows. Heads that the file lacks are drawn from the seed; `task`:
    take that task's head, whatever the file has. Raises UserError for unknown names and for an incomplete backbone.
    """
    # Names, shapes and memory are checked before any number is read: a file of the wrong kind fails at once.
    folder = Folder(path)
    family = family_of(folder.config, task)
    quantised = folder.config.get("quantization_config")
    check(not quantised, f"{folder.path / 'config.json'}: quantization_config={quantised}; read the weights before that")
    objective = padded(family.objective(folder.config), pad_vocab)
    boxed = jax.eval_shape(objective.init, jax.eval_shape(lambda: jax.random.key(0)), BATCH)
    shapes = {name: x.shape for name, x in flat(unbox(boxed)).items()}

    # Match the names of file and table, both ways.
    rules, (tensors, left) = family.rules(objective), names(folder, family, objective, shapes)
    for name, value in family.implied(objective).items():
        source = tensors.pop(name, None)
        same = source is None or np.array_equal(folder[source], value)
        check(same, f"{folder.path}: '{source}' is not what config.json implies, and this network has no place for it")
    lacking, odd = missing(rules, tensors, shapes)
    # An unknown tensor of the backbone would silently change the function; an unknown head only is not used.
    heads = {name for name in odd if name.partition(".")[0] not in backbone(rules, family.prefix)}
    odd, left = odd - heads, (*left, *sorted(heads))
    check(not odd, f"{folder.path} has tensors that {type(family).__name__} does not know: {some(odd)}")
    gone = {name for name in lacking if not name.startswith(HEADS)}
    check(not gone, f"{folder.path} lacks tensors of the backbone: {some(gone)}")

    # Read each tensor onto its devices; draw the missing heads.
    layout = flat(placement(boxed, mesh))
    filled = {rule.ours: rule for rule in rules if rule.ours in shapes and rule.ours not in lacking}
    # Every layer of every rule, as config.json and weights may be of different models.
    for name, rule in filled.items():
        for i in range(shapes[name][0]) if rule.layered else (0,):
            fits(rule, folder.shape(tensors[rule.name(i)]), shapes[name], pad_vocab)
    check_memory(4 * sum(map(math.prod, shapes.values())), str(folder.path), "read it on a larger one")
    leaves = {name: put(rule, folder, tensors, shapes[name], layout[name]) for name, rule in filled.items()}
    folder.close()
    if lacking:

        def draw(key: jax.Array) -> dict[str, jax.Array]:  # the compiler removes the rest of the model
            drawn = flat(unbox(objective.init(key, BATCH)))
            return {name: drawn[name] for name in lacking}

        leaves |= jax.jit(draw, out_shardings={name: layout[name] for name in lacking})(jax.random.key(seed))
    drawn, kind = tuple(sorted(lacking)), str(folder.config["model_type"])
    return Loaded(objective, nested(leaves), tokenizer_of(folder.path), drawn, left, kind)


def backbone(rules: list[Rule], prefix: str) -> set[str]:
    """Return the first components of a table's tensor names, with and without the prefix.

    An unknown tensor below one of them is a missing part of the network; elsewhere it is an unused head.
    """
    names = {rule.theirs for rule in rules}
    return {name.partition(".")[0] for name in names | {name.removeprefix(prefix) for name in names}} | {"lm_head"}


def fits(rule: Rule, theirs: tuple[int, ...], shape: tuple[int, ...], pad_vocab: int) -> None:
    """Raise UserError unless a tensor of shape `theirs` fills our leaf of `shape`, perhaps padded."""
    ours = shape[1:] if rule.layered else shape
    # The number of elements decides, as the axes of a matrix may be split or transposed in the file.
    have, need = math.prod(theirs) // rule.part[1], math.prod(ours)
    row = math.prod(ours[1:])
    short = need - have if rule.padded and have % max(row, 1) == 0 else 0
    check(
        have == need or 0 < short < pad_vocab * row,
        f"'{rule.theirs}' has {theirs} where config.json asks for {ours}: one of the two is another model's",
    )


def padded(objective: Any, multiple: int) -> Any:
    """Return the objective with token tables padded to a multiple of so many rows."""
    model = objective.model
    if multiple == 1:
        return objective
    if isinstance(model, EncoderDecoder):
        sides = {name: dataclasses.replace(getattr(model, name), pad_vocab=multiple) for name in ("encoder", "decoder")}
        return dataclasses.replace(objective, model=dataclasses.replace(model, **sides))
    return dataclasses.replace(objective, model=dataclasses.replace(model, pad_vocab=multiple))


def names(
    folder: Folder, family: Family, objective: Any, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Map the table's names to the file's, and list the weights without a counterpart; tied copies must be equal."""
    known = set(family.implied(objective))
    for rule in family.rules(objective):
        layers = range(shapes[rule.ours][0]) if rule.layered and rule.ours in shapes else (0,)
        known |= {rule.name(i) for i in layers}
    sources: dict[str, str] = {}
    copies = []
    for name in folder:
        ours = canonical(name, family, known)
        if ours is None:
            copies.append(name)
            continue
        same = ours not in sources or folder.same(sources[ours], name)
        check(same, f"{folder.path} has '{sources.get(ours)}' and '{name}', which should be the same and are not")
        sources.setdefault(ours, name)

    # A copy of a tied tensor stands in for an absent original; logits of their own are no copy where a task has none.
    first = {rule.ours: rule.theirs for rule in family.rules(objective) if rule.ours in shapes and not rule.layered}
    left: list[str] = []
    for name in copies:
        matches = ((re.search(pattern, name), leaf) for pattern, leaf in family.copies)
        leaves = [match.expand(leaf) for match, leaf in matches if match]
        original = next((first[leaf] for leaf in leaves if leaf in first), None)
        same = original not in sources or folder.same(sources[original], name)
        if original is None or (not same and objective.task and re.search(task_heads.OTHERS, name)):
            left.append(name)
            continue
        check(same, f"{folder.path} has '{sources.get(original)}' and '{name}', which a tied model has once, and they differ")
        sources.setdefault(original, name)
    return sources, tuple(name for name in left if not family.buffers or not re.search(family.buffers, name))


@dataclass(frozen=True)
class Renamed:
    """The tensors of a folder under the table's names, read on access."""

    folder: Folder
    names: dict[str, str]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.folder[self.names[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.folder.shape(self.names[name])

    def rows(self, name: str, low: int, high: int) -> np.ndarray:
        return self.folder.rows(self.names[name], low, high)


def put(rule: Rule, folder: Folder, names: dict[str, str], shape: tuple[int, ...], place: Any) -> jax.Array:
    """Make one leaf on its devices, a block at a time."""
    return fill(blocks(rule, Renamed(folder, names), shape), shape, place)


def placement(boxed: Any, mesh: jax.sharding.Mesh | None) -> Any:
    if mesh is not None:
        return shardings(boxed, mesh)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: one, unbox(boxed))


def some(names: set[str], most: int = 8) -> str:
    listed = sorted(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def tokenizer_of(path: Path) -> Tokenizer | None:
    """Load the folder's tokenizer; None where it has none."""
    files = ("tokenizer.json", "vocab.txt", "merges.txt")
    return Tokenizer.load(path) if any((path / f).exists() for f in files) or list(path.glob("*.model")) else None


def family_for(objective: Any, kind: str = "") -> tuple[Family, dict[str, Any]]:
    """Return the first family that holds an objective's model, starting with `kind`, and its config.json.

    Lossless: the settings are read back and compared. UserError names the nearest family and the differing fields.
    """
    both = "a prefix-LM reads its prompt in both directions, which no class of transformers does with such a decoder; a causal "
    check(not (objective.prefix and objective.writes == "text"), f"objective: {both}run, or an encoder-decoder, can be written")
    reasons: dict[str, list[Difference] | str] = {}
    for family in sorted(task_heads.candidates(all_families(), objective), key=lambda family: family.name != kind):
        # A family fits if its settings, read back, make an equal model: no list of supported fields to keep up to date.
        try:
            settings = family.settings(objective)
            again = family_of(settings).objective(settings)
            lost = differ(*(task_heads.compared(one.model, task_heads.headless(objective)) for one in (objective, again)))
        except AttributeError:  # a network of another kind, without the fields that this family writes
            continue
        except UserError as error:
            reasons[family.name] = str(error)
            continue
        if not objective.task and again.writes != objective.writes:
            reasons |= {} if lost else {family.name: "it reads text in another direction"}
        elif not lost:
            return family, settings
        elif lost[0].path:  # else a network of another kind
            reasons[family.name] = lost
    raise UserError(refusal(f"{type(objective).__name__}, {type(objective.model).__name__}", reasons))


def save(objective: Any, params: Any, tokenizer: Tokenizer, folder: Path, card: str, kind: str = "") -> set[str]:
    """Write a folder that `transformers` loads, as `kind` where that fits; return our leaves without a counterpart."""
    from safetensors.numpy import save_file

    objective = task_heads.framed(objective, tokenizer)
    family, settings = family_for(objective, kind)
    pad = special.find(tokenizer.core, "[PAD]")
    objective, params = family.fitted(objective, present(params), None if pad is None else tokenizer.token_id(pad))
    settings = family.settings(objective)
    settings = {**tokens.special_ids(tokenizer, settings, objective.writes == "text"), **settings}

    # Written under another name and renamed last: a killed process leaves no folder that looks complete.
    final, folder = folder, folder.with_name(folder.name + ".partial")
    folder.mkdir(parents=True, exist_ok=True)
    boxed = jax.eval_shape(family.objective(settings).init, jax.eval_shape(lambda: jax.random.key(0)), BATCH)

    # Without the rows that pad a table: the objective read back has none.
    rows = {name: x.shape[:1] for name, x in flat(unbox(boxed)).items()}
    leaves = {name: np.asarray(x)[: rows[name][0]] if rows.get(name) else np.asarray(x) for name, x in params.items()}

    # Shards of at most SHARD bytes: one file of a large model would have to fit in memory of whoever reads it.
    shards: list[dict[str, np.ndarray]] = [{}]
    size, more = 0, family.unread(objective) | family.implied(objective)
    for name, array in chain(write(family.rules(objective), leaves), more.items()):
        if size + array.nbytes > SHARD and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = array
        size += array.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
    else:
        files = {f"model-{i + 1:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards)}
        for file, shard in files.items():
            save_file(shard, folder / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, shard in files.items() for name in shard}}
        (folder / INDEX).write_text(json.dumps(index, indent=1))

    (folder / "config.json").write_text(json.dumps({**settings, "dtype": "float32"}, indent=1) + "\n")
    tokens.save(folder, objective, tokenizer, settings)
    (folder / "README.md").write_text(card, encoding="utf-8")
    if final.is_dir():
        final.rmdir()  # an empty one; another is an error
    folder.rename(final)
    return set(params) - {rule.ours for rule in family.rules(objective)}
