"""Read and write model folders: config, tensors straight onto the mesh, tokenizer, model card."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.convert import albert, bart, distilbert, electra, encoders, gpt, llama, t5, xlnet
from lm.convert.family import Family, canonical
from lm.convert.folder import INDEX, SINGLE, Folder
from lm.convert.leaves import fill
from lm.convert.rules import Rule, blocks, missing, write
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError, check, unknown
from lm.sharding import shardings, unbox

FAMILIES: tuple[Family, ...] = (
    gpt.FAMILY, *encoders.FAMILIES, albert.FAMILY, distilbert.FAMILY, electra.FAMILY, llama.FAMILY, t5.FAMILY, *bart.FAMILIES,
    xlnet.FAMILY,
)  # fmt: skip
# What may be missing in a file: it is drawn anew, and said.
HEADS = ("transform/", "head_bias", "pooler/", "pair/", "output/", "generator/", "discriminator/dense/", "discriminator/judge/")
# Fields that say how a model is trained and computed, not what it is: no counterpart in their config.json.
TRAINING = {"dropout", "attention_dropout", "mlp_dropout", "last_dropout", "init", "init_positions", "init_scale_depth",
            "init_fan_in", "init_truncate", "pad_vocab", "dtype", "unroll", "remat", "mup_base"}  # fmt: skip
# Their second names of what a tied model has once: in a file with both, both are the same; in one with this only, it counts.
COPIES = {
    r"(embed_tokens|lm_head|lm_head\.decoder|predictions\.decoder|vocab_projector|lm_loss)\.weight$": "embed/table",
    r"(predictions|lm_head)\.decoder\.bias$": "head_bias",
}
SHARD = 5 * 10**9  # bytes of tensors a file


@dataclass(frozen=True)
class Loaded:
    """A folder read: the objective that such a model has, its parameters, and what was not in the file."""

    objective: Any
    params: Any
    tokenizer: Tokenizer | None
    drawn: tuple[str, ...]  # our leaves that the file lacks


def family_of(settings: dict[str, Any]) -> Family:
    kind = str(settings.get("model_type"))
    for family in FAMILIES:
        if kind in family.types:
            return family
    raise unknown("model_type of config.json", kind, [name for family in FAMILIES for name in family.types])


def load(path: str | Path, mesh: jax.sharding.Mesh | None = None, seed: int = 0) -> Loaded:
    """Read a folder, each tensor straight into its shards of the mesh (None: the first device).

    Heads that the file lacks are drawn from the seed. Raises UserError for names that no table knows and for a backbone
    that is not whole.
    """
    folder = Folder(path)
    family = family_of(folder.config)
    objective = family.objective(folder.config)
    batch = dict.fromkeys(("tokens", "source", "places"), np.zeros((1, 8), np.int32))
    boxed = jax.eval_shape(objective.init, jax.eval_shape(lambda: jax.random.key(0)), batch)
    shapes = {name: x.shape for name, x in flat(unbox(boxed)).items()}
    rules, tensors = family.rules(objective), names(folder, family, objective, shapes)
    lacking, odd = missing(rules, tensors, shapes)
    check(not odd, f"{folder.path} has tensors that {type(family).__name__} does not know: {some(odd)}")
    gone = {name for name in lacking if not name.startswith(HEADS)}
    check(not gone, f"{folder.path} lacks tensors of the backbone: {some(gone)}")
    layout = flat(placement(boxed, mesh))
    filled = {rule.ours: rule for rule in rules if rule.ours in shapes and rule.ours not in lacking}
    leaves = {name: put(rule, folder, tensors, shapes[name], layout[name]) for name, rule in filled.items()}
    folder.close()
    if lacking:

        def draw(key):  # only these: the compiler leaves the rest of the model out
            found = flat(unbox(objective.init(key, batch)))
            return {name: found[name] for name in lacking}

        leaves |= jax.jit(draw, out_shardings={name: layout[name] for name in lacking})(jax.random.key(seed))
    return Loaded(objective, nested(leaves), tokenizer_of(folder.path), tuple(sorted(lacking)))


def names(folder: Folder, family: Family, objective: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Map the table's names to the file's, without what holds nothing of ours; tied copies must be copies."""
    known = set()
    for rule in family.rules(objective):
        layers = range(shapes[rule.ours][0]) if rule.layered and rule.ours in shapes else (0,)
        known |= {rule.name(i) for i in layers}
    found, copies = {}, []
    for name in folder:
        ours = canonical(name, family, known)
        if ours is None:
            copies.append(name)
            continue
        same = ours not in found or folder.same(found[ours], name)
        check(same, f"{folder.path} has '{found.get(ours)}' and '{name}', which should be the same and are not")
        found.setdefault(ours, name)
    first = {rule.ours: rule.theirs for rule in family.rules(objective) if rule.ours in shapes and not rule.layered}
    for name in copies:
        ours = next((leaf for pattern, leaf in COPIES.items() if re.search(pattern, name)), None)
        original = first.get(ours)
        if original is None:
            continue
        same = original not in found or folder.same(found[original], name)
        check(same, f"{folder.path} has '{found.get(original)}' and '{name}', which a tied model has once, and they differ")
        found.setdefault(original, name)
    return found


@dataclass(frozen=True)
class Renamed:
    """Names of the table to tensors of a folder, read when asked for."""

    folder: Folder
    found: dict[str, str]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.folder[self.found[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.folder.shape(self.found[name])

    def rows(self, name: str, low: int, high: int) -> np.ndarray:
        return self.folder.rows(self.found[name], low, high)


def put(rule: Rule, folder: Folder, found: dict[str, str], shape: tuple[int, ...], place: Any) -> jax.Array:
    """Make one leaf on its devices, a piece at a time."""
    return fill(blocks(rule, Renamed(folder, found), shape), shape, place)


def placement(boxed: Any, mesh: jax.sharding.Mesh | None) -> Any:
    if mesh is not None:
        return shardings(boxed, mesh)
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: one, unbox(boxed))


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Lay a tree of dictionaries out by path."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: x for name, one in tree.items() for k, x in flat(one, f"{path}/{name}" if path else name).items()}


def nested(leaves: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *outer, last = path.split("/")
        at = tree
        for name in outer:
            at = at.setdefault(name, {})
        at[last] = leaf
    return tree


def some(found: set[str], most: int = 8) -> str:
    listed = sorted(found)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def tokenizer_of(path: Path) -> Tokenizer | None:
    """Read the folder's tokenizer, None when it has none."""
    files = ("tokenizer.json", "vocab.txt", "merges.txt")
    return Tokenizer.load(path) if any((path / f).exists() for f in files) or list(path.glob("*.model")) else None


def family_for(objective: Any) -> tuple[Family, dict[str, Any]]:
    """Find the family that can hold an objective's model, and its config.json; UserError says what stands against it."""
    reasons = []
    for family in FAMILIES:
        try:
            settings = family.settings(objective)
            again = family_of(settings).objective(settings)
            lost = differences(objective.model, again.model)
        except AttributeError:  # a model of another kind, without the fields that this family writes
            continue
        except UserError as error:
            reasons.append(f"{'/'.join(family.types)}: {error}")
            continue
        if not lost:
            return family, settings
        reasons.append(f"{'/'.join(family.types)}: {', '.join(lost)}")
    raise UserError(f"no family of published models is like this one. {'; '.join(reasons)}")


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Name the fields of a model that a config.json would lose."""
    if type(ours) is not type(theirs):
        return [f"{path or 'model'} is another kind"]
    found = []
    for field in dataclasses.fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if dataclasses.is_dataclass(a):
            found += differences(a, b, f"{path}{field.name}.")
        elif field.name in ("kv_heads", "head", "mlp", "embed"):
            derived = {"kv_heads": "kv", "head": "head_size", "mlp": "mlp_size", "embed": "embed_size"}[field.name]
            found += [f"{path}{field.name}={a}"] * (getattr(ours, derived) != getattr(theirs, derived))
        elif field.name == "qkv_bias":
            found += [f"{path}qkv_bias={a}"] * ((ours.bias if a is None else a) != (theirs.bias if b is None else b))
        elif field.name == "context" and getattr(ours, "positions", "relative") in ("bucket", "relative"):
            continue  # no table has its length
        elif a != b and field.name not in TRAINING:
            found.append(f"{path}{field.name}={a!r}")
    return found


def save(objective: Any, params: Any, tokenizer: Tokenizer, folder: Path, card: str) -> set[str]:
    """Write a folder that `transformers` loads; give our leaves that it has no place for."""
    from safetensors.numpy import save_file

    family, settings = family_for(objective)
    final, folder = folder, folder.with_name(folder.name + ".partial")  # a kill leaves nothing that looks whole
    folder.mkdir(parents=True, exist_ok=True)
    vocab, found = settings["vocab_size"], flat(params)
    leaves = {n: np.asarray(x)[:vocab] if n in ("embed/table", "output/table", "head_bias") else np.asarray(x)
              for n, x in found.items()}  # fmt: skip
    shards, size = [{}], 0
    for name, array in write(family.rules(objective), leaves):
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
    tokenizer.save(folder / "tokenizer.json")
    (folder / "README.md").write_text(card, encoding="utf-8")
    if final.is_dir():
        final.rmdir()  # an empty one; another is an error
    folder.rename(final)
    return set(found) - {rule.ours for rule in family.rules(objective)}
