"""Parameter groups by path: which parameters are trained, their factors on the learning rate, and their first steps.

A path joins the names from the root of the parameters by slashes: `stack/layers/attention/query/kernel`. A pattern is a
regular expression searched in it, or the word `heads`: the parameters that a task adds on top of the network. Repeated layers
are one array with a leading axis, so a value per layer is a vector along that axis.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.errors import UserError, check, check_range

EMBEDDINGS = {"embed", "input", "project", "query", "encoder_input", "decoder_input"}
VOCABULARY = {"transform", "head_bias", "output"}  # heads of pre-training: no task draws them again
STACKS = {"stack", "encoder", "decoder"}
HEADS = "heads"  # a pattern of its own, as heads are called differently from task to task


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Trained and frozen parameters, and the factor of each on the learning rate (and so on the decay).

    `train`: patterns of the trained parameters. Empty: all; in a network with LoRA factors or adapters only these and the
    task's heads (with adapters also the norms: Houlsby et al. 2019). `freeze`: patterns of frozen parameters, applied after
    `train`; they have no gradient and no optimizer state. `rates`: "PATTERN=FACTOR"; factors of several patterns multiply.
    `head`: factor on all parameters above the stack.

    `layer_decay` y sets the factor to 1 for a head, y^(L - i + `layer_gap`) for layer i of L, counted from 0, and
    y^(L + 1 + `layer_gap`) for the embeddings. The gap is 1 in the code of ELECTRA (Clark et al. 2020), and 0 where each layer
    has y times the rate of the layer above (ULMFiT, Howard & Ruder 2018: 1/2.6; BEiT). The norm that ends a stack has y. An
    encoder's layers lie below its decoder's; layers that share their parameters count as one.

    `unfreeze` > 0 unfreezes one more layer every so many steps, from the top, after the heads (gradual unfreezing, ULMFiT).
    Until then a layer does not move, but its moments follow the gradient, so that Adam does not start with unit steps.
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
        """Parse `rates` into (pattern, factor)."""
        pairs = []
        for rate in self.rates:
            pattern, equals, text = rate.rpartition("=")
            try:
                check(bool(equals) and float(text) >= 0, "")
            except (ValueError, UserError):
                raise UserError(f"optimizer.groups.rates: '{rate}' is not PATTERN=FACTOR with a factor from 0 on") from None
            pairs.append((pattern, float(text)))
        return tuple(pairs)


def matching(pattern: str, paths: Iterable[str], field: str) -> set[str]:
    """Return the paths that match a pattern; raises UserError for none: a misspelt pattern would otherwise freeze nothing."""
    paths = list(paths)
    matches = {path for path in paths if (is_task_head(path) if pattern == HEADS else re.search(pattern, path))}
    if not matches:
        some = ", ".join(sorted(paths)[:: max(1, len(paths) // 6)][:6])
        raise UserError(f"{field}: '{pattern}' matches no parameter of this network; its paths are like {some}")
    return matches


def trained(groups: Groups, paths: Iterable[str]) -> set[str]:
    """Return the paths of trained parameters; raises UserError for a pattern that matches none, and where all are frozen."""
    paths = set(paths)
    added = {path for path in paths if is_added(path)}
    # Added parameters mean parameter-efficient tuning: training the rest too has to be asked for by `train`.
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
    """Return whether a parameter was added for tuning: a LoRA factor or an adapter."""
    return path.endswith(("/lora_a", "/lora_b")) or "/adapter" in path


def is_task_head(path: str) -> bool:
    """Return whether a parameter belongs to a task's head: above the stack, and not of the vocabulary head."""
    names = path.split("/")
    # By exclusion: every task names its own head, the network's own parts are few.
    inside = {"layers", "buckets", *EMBEDDINGS, *VOCABULARY} & set(names)
    return not inside and not is_last_norm(names)


def is_last_norm(names: list[str]) -> bool:
    return len(names) > 2 and names[-2] == "norm" and names[-3] in STACKS


def heights(shapes: Mapping[str, tuple[tuple, tuple]]) -> dict[str, np.ndarray]:
    """Return the distance of every path from the heads, int (L,) where it has an axis of layers, else ().

    0 for heads, 1 for the last layer and the norm on it, L - i for layer i of L, L + 1 for embeddings. `shapes`: path ->
    (shape, logical axes).
    """
    # Depths first: a layer's distance depends on the number of layers of its stack.
    depths: dict[str, int] = {}  # stack -> number of its layers
    for path, (shape, axes) in shapes.items():
        stack, layered, _ = f"/{path}".partition("/layers/")
        if layered:
            depths[stack] = shape[axes.index("layers")] if "layers" in axes else 1

    def above(stack: str) -> int:  # the decoder's layers, for its encoder
        parent, _, name = stack.rpartition("/")
        return depths.get(f"{parent}/decoder", 0) if name == "encoder" else 0

    # Embeddings lie below the deepest stack, an encoder below its decoder.
    top = max((depth + above(stack) for stack, depth in depths.items()), default=0)
    result = {}
    for path, (_, axes) in shapes.items():
        names, (stack, layered, _) = path.split("/"), f"/{path}".partition("/layers/")
        owner = "/" + "/".join(names[: next((i + 1 for i, name in enumerate(names) if name in STACKS), 0)])
        if layered:
            depth = depths[stack] - np.arange(depths[stack] if "layers" in axes else 1) + above(stack)
            result[path] = depth if "layers" in axes else depth[0]
        elif names[-1] == "buckets":  # T5 keeps them in its first layer
            result[path] = np.asarray(depths[owner] + above(owner))
        elif is_last_norm(names):
            result[path] = np.asarray(1 + above(owner))
        else:
            result[path] = np.asarray(top + 1 if EMBEDDINGS & set(names) else 0)
    return result


def factors(groups: Groups, shapes: Mapping[str, tuple[tuple, tuple]]) -> dict[str, np.ndarray]:
    """Return the factor of every path on the learning rate, float32, broadcastable against the parameter."""
    patterns = [(matching(pattern, shapes, "optimizer.groups.rates"), factor) for pattern, factor in groups.factors]
    result = {}
    for path, height in heights(shapes).items():
        gap = 0 if is_last_norm(path.split("/")) else groups.layer_gap
        # An array over layers, as stacked layers are one parameter with a factor each.
        factor = np.where(height > 0, groups.layer_decay ** (height + gap), groups.head)
        for paths, rate in patterns:
            factor = factor * (rate if path in paths else 1.0)
        result[path] = spread(factor, shapes[path]).astype(np.float32)
    return result


def joins(groups: Groups, shapes: Mapping[str, tuple[tuple, tuple]]) -> dict[str, np.ndarray]:
    """Return the first step in which every path moves, int32, broadcastable against the parameter."""
    return {path: spread(height * groups.unfreeze, shapes[path]).astype(np.int32) for path, height in heights(shapes).items()}


def spread(x: np.ndarray, like: tuple[tuple, tuple]) -> np.ndarray:
    """Reshape a vector over layers to broadcast along the axis of layers."""
    _, axes = like
    return x if not np.ndim(x) else x.reshape([-1 if name == "layers" else 1 for name in axes])


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Flatten a tree of dictionaries to path -> leaf."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: x for name, one in tree.items() for k, x in flat(one, f"{path}/{name}" if path else name).items()}


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild the tree of dictionaries: the inverse of `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *outer, last = path.split("/")
        at = tree
        for name in outer:
            at = at.setdefault(name, {})
        at[last] = leaf
    return tree


def split(groups: Groups, params: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split parameters into (trained, frozen), both path -> array."""
    leaves = flat(params)
    chosen = trained(groups, leaves)
    return {p: x for p, x in leaves.items() if p in chosen}, {p: x for p, x in leaves.items() if p not in chosen}


LAST = re.compile(r"classifier/(out/)?(kernel|bias)|crf/.*")  # layers with one output per label


def alike(target: tuple[Any, Any], source: tuple[Any, Any]) -> bool:
    """Return whether a classifier for the source's (labels, kind) serves the target's.

    A published folder without names of its own calls its labels LABEL_0, LABEL_1, ...: as many are taken for the same.
    """
    (labels, kind), (names, other) = target, source
    unnamed = bool(labels) and len(labels) == len(names or ()) and all(re.fullmatch(r"LABEL_\d+", x) for x in names)
    return kind == other and (labels == names or unnamed)


def matched(targets: Iterable[str], sources: Iterable[str]) -> dict[str, str]:
    """Map the path of each array of a network to the path of the array that fills it.

    A mixture keeps the network under "trunk", and BERT's pooler, the first layer of heads, once for each of its parts.
    """
    by_name = {path.removeprefix("trunk/"): path for path in sources}
    result = {}
    for path in targets:
        name = path.removeprefix("trunk/")
        inner = name.partition("/")[2]
        if name in by_name:
            result[path] = by_name[name]
        elif inner.startswith("pooler/") and inner in by_name:
            result[path] = by_name[inner]
    return result
