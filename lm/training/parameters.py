"""Groups of parameters by their paths: which are trained, how fast beside the others, and from when on.

A path is the names from the root of the parameters, joined by slashes: `stack/layers/attention/query/kernel`. A pattern is
a regular expression that is searched in it, or the word `heads`: what a task has added on top of the network. Repeated
layers are one array with a leading axis, so that what differs from layer to layer is a vector over that axis.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.errors import UserError, check, check_range

EMBEDDINGS = {"embed", "input", "project", "query", "encoder_input", "decoder_input"}
VOCABULARY = {"transform", "head_bias", "output"}  # pre-training's heads: no task draws them anew
STACKS = {"stack", "encoder", "decoder"}
HEADS = "heads"  # a pattern of its own, as heads are called differently from task to task


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which parameters are trained, and the share of the learning rate (and of the decay) that each of them gets.

    `train`: patterns of what is trained; none: all, but in a network with LoRA factors or adapters only these and the
    task's heads (and with adapters the norms: Houlsby et al. 2019). `freeze`: patterns of what is not, after that.
    What is frozen has no gradient and no optimizer slot. `rates`: "PATTERN=FACTOR"; factors of several patterns multiply.
    `head`: factor on all that lies above the stack.

    `layer_decay` y gives a head 1, layer i of L counted from 0 y^(L - i + `layer_gap`) and the embeddings
    y^(L + 1 + `layer_gap`): the gap is 1 in the code of ELECTRA (Clark et al. 2020) and 0 where each layer has y times the
    rate of what lies on it (ULMFiT, Howard & Ruder 2018: 1/2.6; BEiT). The norm that ends a stack has y. A decoder's layers
    lie on its encoder's; layers that share their parameters count as one.

    `unfreeze` > 0 lets layers join from the top, one every so many steps, after the heads (ULMFiT): until then they do
    not move, but their moments follow the gradient, so that Adam does not begin with steps of momentum one.
    """

    train: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    head: float = 1.0
    layer_decay: float = 1.0
    layer_gap: int = 1
    unfreeze: int = 0

    def __post_init__(self):
        check_range(self, 0, float("inf"), "head", "layer_gap", "unfreeze")
        check(0 < self.layer_decay <= 1, f"layer_decay={self.layer_decay} must be above 0 and at most 1")
        for pattern in (*self.train, *self.freeze, *(pattern for pattern, _ in self.factors)):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"optimizer.groups: '{pattern}' is no regular expression: {error}") from error

    @property
    def factors(self) -> tuple[tuple[str, float], ...]:
        """Give `rates` as (pattern, factor)."""
        found = []
        for rate in self.rates:
            pattern, equals, text = rate.rpartition("=")
            try:
                check(bool(equals) and float(text) >= 0, "")
            except (ValueError, UserError):
                raise UserError(f"optimizer.groups.rates: '{rate}' is not PATTERN=FACTOR with a factor from 0 on") from None
            found.append((pattern, float(text)))
        return tuple(found)


def matching(pattern: str, paths: Iterable[str], field: str) -> set[str]:
    """Find the paths of a pattern; raises UserError where there is none, as it would be passed over unnoticed."""
    paths = list(paths)
    found = {path for path in paths if (is_task_head(path) if pattern == HEADS else re.search(pattern, path))}
    if not found:
        some = ", ".join(sorted(paths)[:: max(1, len(paths) // 6)][:6])
        raise UserError(f"{field}: '{pattern}' matches no parameter of this network; its paths are like {some}")
    return found


def trained(groups: Groups, paths: Iterable[str]) -> set[str]:
    """Choose the paths that are trained; raises UserError for a pattern without a parameter, and where none is left."""
    paths = set(paths)
    added = {path for path in paths if is_added(path)}
    chosen = set(paths)
    if groups.train:
        chosen = set().union(*(matching(pattern, paths, "optimizer.groups.train") for pattern in groups.train))
    elif added:
        adapted = any("/adapter" in path for path in added)
        chosen = added | {path for path in paths if is_task_head(path) or (adapted and "norm" in path)}
    for pattern in groups.freeze:
        chosen -= matching(pattern, paths, "optimizer.groups.freeze")
    check(bool(chosen), "optimizer.groups: every parameter is frozen, nothing would be trained; freeze fewer")
    return chosen


def is_added(path: str) -> bool:
    """Tell what was added to a network for tuning: LoRA factors and adapters."""
    return path.endswith(("/lora_a", "/lora_b")) or "/adapter" in path


def is_task_head(path: str) -> bool:
    """Tell the parameters above the stack from the network's own, its vocabulary head included."""
    names = path.split("/")
    inside = {"layers", "buckets", *EMBEDDINGS, *VOCABULARY} & set(names)
    return not inside and not is_last_norm(names)


def is_last_norm(names: list[str]) -> bool:
    return len(names) > 2 and names[-2] == "norm" and names[-3] in STACKS


def heights(shapes: Mapping[str, tuple[tuple, tuple]]) -> dict[str, np.ndarray]:
    """Count for every path how far it lies below the heads, int (L,) where it has an axis of layers, else ().

    Heads 0, the last layer and the norm on it 1, ..., layer i of L: L - i, embeddings L + 1. `shapes`: path -> (shape,
    logical axes).
    """
    depths: dict[str, int] = {}  # stack -> layers
    for path, (shape, axes) in shapes.items():
        stack, found, _ = f"/{path}".partition("/layers/")
        if found:
            depths[stack] = shape[axes.index("layers")] if "layers" in axes else 1

    def above(stack: str) -> int:  # layers of the decoder on an encoder
        parent, _, name = stack.rpartition("/")
        return depths.get(f"{parent}/decoder", 0) if name == "encoder" else 0

    top = max((depth + above(stack) for stack, depth in depths.items()), default=0)
    found = {}
    for path, (_, axes) in shapes.items():
        names, (stack, layered, _) = path.split("/"), f"/{path}".partition("/layers/")
        owner = "/" + "/".join(names[: next((i + 1 for i, name in enumerate(names) if name in STACKS), 0)])
        if layered:
            depth = depths[stack] - np.arange(depths[stack] if "layers" in axes else 1) + above(stack)
            found[path] = depth if "layers" in axes else depth[0]
        elif names[-1] == "buckets":  # T5 keeps them in its first layer
            found[path] = np.asarray(depths[owner] + above(owner))
        elif is_last_norm(names):
            found[path] = np.asarray(1 + above(owner))
        else:
            found[path] = np.asarray(top + 1 if EMBEDDINGS & set(names) else 0)
    return found


def factors(groups: Groups, shapes: Mapping[str, tuple[tuple, tuple]]) -> dict[str, np.ndarray]:
    """Give for every path its factor on the learning rate, float32, that broadcasts against the parameter."""
    patterns = [(matching(pattern, shapes, "optimizer.groups.rates"), factor) for pattern, factor in groups.factors]
    found = {}
    for path, height in heights(shapes).items():
        gap = 0 if is_last_norm(path.split("/")) else groups.layer_gap
        factor = np.where(height > 0, groups.layer_decay ** (height + gap), groups.head)
        for paths, rate in patterns:
            factor = factor * (rate if path in paths else 1.0)
        found[path] = spread(factor, shapes[path]).astype(np.float32)
    return found


def joins(groups: Groups, shapes: Mapping[str, tuple[tuple, tuple]]) -> dict[str, np.ndarray]:
    """Give for every path the first step in which it moves, int32, that broadcasts against the parameter."""
    return {
        path: spread(height * groups.unfreeze, shapes[path]).astype(np.int32) for path, height in heights(shapes).items()
    }


def spread(x: np.ndarray, like: tuple[tuple, tuple]) -> np.ndarray:
    """Lay a vector over layers along the axis of layers."""
    _, axes = like
    return x if not np.ndim(x) else x.reshape([-1 if name == "layers" else 1 for name in axes])


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Lay a tree of dictionaries out by path."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: x for name, one in tree.items() for k, x in flat(one, f"{path}/{name}" if path else name).items()}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *outer, last = path.split("/")
        at = tree
        for name in outer:
            at = at.setdefault(name, {})
        at[last] = leaf
    return tree


def split(groups: Groups, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Part parameters into those that are trained and the others, both by path."""
    leaves = flat(params)
    chosen = trained(groups, leaves)
    return {p: x for p, x in leaves.items() if p in chosen}, {p: x for p, x in leaves.items() if p not in chosen}


LAST = re.compile(r"classifier/(out/)?(kernel|bias)|crf/.*")  # what scores labels one by one


def alike(mine: tuple[Any, Any], theirs: tuple[Any, Any]) -> bool:
    """Tell whether scores of the one serve the other; a published folder without names calls its labels LABEL_0 and on."""
    (own, kind), (names, other) = mine, theirs
    unnamed = bool(own) and bool(names) and len(own) == len(names) and all(re.fullmatch(r"LABEL_\d+", x) for x in names)
    return kind == other and (own == names or unnamed)


def matched(wanted: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """Pair the paths of a network's arrays with those that they are filled from.

    A mixture keeps the network under "trunk", and BERT's pooler, which heads begin with, once for each of its parts.
    """
    known = {name.removeprefix("trunk/"): name for name in theirs}
    found = {}
    for name in wanted:
        own = name.removeprefix("trunk/")
        inner = own.partition("/")[2]
        if own in known:
            found[name] = known[own]
        elif inner.startswith("pooler/") and inner in known:
            found[name] = known[inner]
    return found
