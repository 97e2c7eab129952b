"""What must not change unnoticed: resolved configs, parameter paths and shapes, five losses.

    python -m tests.golden.regenerate

writes the files beside this one anew; `git diff tests/golden` then shows what a change of code did.
"""

import dataclasses
import functools
import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.config import Config, Optimizer, Schedule, load
from lm.fields import chosen
from lm.models import presets
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.causal import Causal
from lm.sharding import is_named, unbox
from lm.train import train_step
from lm.training.state import abstract_params, chain, create

FOLDER = Path(__file__).parent
CONFIGS = sorted(p for p in (FOLDER.parent.parent / "configs").glob("*.py") if p.stem != "__init__")
MODELS = {
    "gpt2": presets.GPT2_SMALL,
    "llama": Transformer(
        vocab=128_256, width=4096, depth=32, heads=32, kv_heads=8, mlp=14_336, activation="swiglu", norm="rms",
        positions="rotary", bias=False, tied=False, qk_norm=True,
    ),
    "bucket": Transformer(vocab=100, width=64, depth=2, heads=4, positions="bucket", placement="post"),
}  # fmt: skip


def own(value: Any, default: Any, path: str) -> Iterator[str]:
    """List what a value sets otherwise than its default does, a line a field."""
    if dataclasses.is_dataclass(value):
        if type(value) is not type(default):
            yield f"{path}: {name_of(type(value))}"
            default = None
        for field in chosen(value):
            yield from own(getattr(value, field.name), default_of(field, default), f"{path}.{field.name}".lstrip("."))
    elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)) and value != default:
        for i, part in enumerate(value):
            yield from own(part, None, f"{path}[{i}]")
    elif value != default or type(value) is not type(default):
        yield f"{path} = {json.dumps(value, ensure_ascii=False)}"


def default_of(field: dataclasses.Field, owner: Any) -> Any:
    """Return the value that a field has in its owner's default, or by itself."""
    if owner is not None:
        return getattr(owner, field.name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def name_of(cls: type) -> str:
    return f"{cls.__module__.removeprefix('lm.')}.{cls.__qualname__}"


def classes(value: Any) -> Iterator[type]:
    """List the dataclasses in a tree."""
    if dataclasses.is_dataclass(value):
        yield type(value)
        value = tuple(getattr(value, field.name) for field in chosen(value))
    for part in value if isinstance(value, tuple) else ():
        yield from classes(part)


def defaults(found: Iterable[type]) -> str:
    """Write every class of a config with its fields' defaults."""
    lines = []
    for cls in sorted(set(found), key=name_of):
        values = [
            field.name if value is dataclasses.MISSING else f"{field.name}={value!r}"
            for field in chosen(cls) for value in [default_of(field, None)] if not dataclasses.is_dataclass(value)
        ]  # fmt: skip
        lines += [name_of(cls), *textwrap.wrap(" ".join(values), 116, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join(lines) + "\n"


def configs() -> dict[str, str]:
    """Every file in configs/ as the fields that it sets, and once the defaults of all classes in them."""
    loaded = {path.stem: load(str(path)) for path in CONFIGS}
    text = {f"{name}.txt": "\n".join(own(config, None, "")) + "\n" for name, config in loaded.items()}
    return {**text, "defaults.txt": defaults(cls for config in loaded.values() for cls in classes(config))}


def parameters(model: Transformer) -> str:
    """One line a parameter: path, shape, logical axes."""
    boxed = jax.eval_shape(Model(model).init, jax.random.key(0), np.zeros((1, 8), np.int32))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=is_named)
    rows = [(jax.tree_util.keystr(path, simple=True, separator="/"), box.value.shape, box.axes) for path, box in leaves]
    return "".join(f"{path} {list(shape)} {' '.join(map(str, axes))}\n" for path, shape, axes in rows)


def losses() -> str:
    """Five steps on one tiny batch: init, keys, dropout, clipping, AdamW, schedule, all in five numbers."""
    model = Transformer(vocab=61, context=16, width=16, depth=2, heads=2, dropout=0.1, attention_dropout=0.1)
    config = Config(
        objective=Causal(model=model, z_loss=1e-3),
        optimizer=Optimizer(lr=0.05, decay=0.1, clip=1.0),
        schedule=Schedule(shape="cosine", warmup=1),
        steps=5,
        batch=4,
        micro_batches=2,
    )
    rng = np.random.default_rng(0)
    ones = np.ones((4, 16), np.int32)
    tokens = rng.integers(0, 61, (4, 17)).astype(np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": ones.astype(np.float32),
        "segments": ones,
        "positions": np.tile(np.arange(16, dtype=np.int32), (4, 1)),
    }
    optimizer = chain(config, abstract_params(config.objective, batch))
    params = unbox(jax.jit(config.objective.init)(jax.random.key(0), batch))
    state, found = create(config, optimizer, params), []
    step = jax.jit(lambda state, batch: train_step(config, optimizer, state, batch))
    for _ in range(config.steps):
        state, sums = step(state, batch)
        found.append(float(sums["loss"][0] / sums["loss"][1]))
    return json.dumps([round(x, 6) for x in found]) + "\n"


@functools.cache
def everything() -> dict[str, str]:
    """File name -> text; the losses, which have a tolerance, apart."""
    return {**configs(), **{f"{name}.parameters.txt": parameters(model) for name, model in MODELS.items()}}


def main() -> None:
    files = {**everything(), "losses.json": losses()}
    for old in (*FOLDER.glob("*.json"), *FOLDER.glob("*.txt")):
        old.unlink()
    for name, text in files.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(FOLDER / name)


if __name__ == "__main__":
    main()
