"""Multi-task pre-training on a shared trunk (Liu et al. 2019, MT-DNN; Raffel et al. 2020, 2.1).

python -m lm.objectives.mixture [--config=configs/mixture_nano.py]
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.corpus.corpus import Corpus
from lm.data.rows.records import Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import UserError, check, check_choices
from lm.objectives.base import Batch, Example, Objective, Sums

# Parameters shared by all parts, by name; all others (heads, poolers) are a part's own.
TRUNK = ("embed", "input", "project", "stack", "encoder_input", "encoder", "decoder_input", "decoder")
# Names inside a network, by which `lm.training.parameters` groups arrays: no part may be called so.
INNER = ("layers", "buckets", "query", "transform", "head_bias", "output")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One objective of a mixture; `weight` is the coefficient of its loss, or its share of the steps."""

    name: str
    objective: Any
    weight: float = 1.0

    def __post_init__(self):
        plain = self.name.isidentifier() and self.name not in ("trunk", *TRUNK, *INNER)
        check(plain, f"part '{self.name}' of a mixture: give it a plain word for a name, not one of the network's")
        check(0 < self.weight < float("inf"), f"part '{self.name}' of a mixture has weight {self.weight}; it must be above 0")

    def of(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Select this part's entries `part/name` of a batch, metrics or a row, and strip the prefix."""
        own = {k.removeprefix(f"{self.name}/"): x for k, x in tree.items() if k.startswith(f"{self.name}/")}
        if tree.get("peers") is not None and self.name in tree["peers"]:
            own |= {"peers": tree["peers"][self.name]}
        return own | {k: tree[k] for k in ("rows",) if k in tree}

    def named(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Prefix names with the part's: the inverse of `of`."""
        return {f"{self.name}/{k}": x for k, x in tree.items()}

    def params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return this part's parameters: the trunk and its own."""
        return {**params["trunk"], **params.get(self.name, {})}

    def loss(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
        """Return the part's sums, prefixed; parts of a mixture carry no memory."""
        return self.named(self.objective.loss(self.params(params), self.of(batch), None, keys_B)[0])

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        return self.named(self.objective.predict(self.params(params), self.of(batch)) or {})

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None) -> str:
        """Format this part's entries of a row, under its name."""
        return f"[{self.name}]\n{self.objective.show(tokenizer, self.of(example), (found and self.of(found)) or None)}"


class Parts:
    """Mixin of objectives with parts: one trunk below all of them, and members collected from the parts."""

    parts: tuple[Part, ...]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]

    def __post_init__(self):
        names = [part.name for part in self.parts]
        check(len(names) > 1 and len(set(names)) == len(names), f"a mixture needs parts of different names, not {names}")

    @property
    def model(self) -> Any:
        return self.parts[0].objective.model

    @property
    def special(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for part in self.parts for name in part.objective.special))

    @property
    def writes(self) -> str:
        return next((part.objective.writes for part in self.parts if part.objective.writes), "")

    def writer(self, params: Any) -> tuple[Objective, Any]:
        part = next(part for part in self.parts if part.objective.writes)
        return part.objective, part.params(params)

    def of(self, parts: tuple[Part, ...]) -> Self:
        """Copy with other parts."""
        return dataclasses.replace(self, parts=parts)

    def each(self, change: Callable[[Objective], Objective]) -> Self:
        """Change the objective of every part."""
        return self.of(tuple(dataclasses.replace(part, objective=change(part.objective)) for part in self.parts))

    def resolve(self, tokenizer: Tokenizer) -> Self:
        return self.each(lambda objective: objective.resolve(tokenizer))

    def sized(self, vocab: int) -> Self:
        return self.each(lambda objective: objective.sized(vocab))

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Initialise the parameters: one "trunk", and under each part's name its own."""
        params: dict[str, Any] = {"trunk": {}}
        for i, part in enumerate(self.parts):
            # Folded with the part's number: heads of equal shape must not start with equal values.
            drawn = part.objective.init(jax.random.fold_in(key, i), {**batch, **part.of(batch)})
            for name in [name for name in drawn if name in TRUNK]:  # the first part's are taken
                shared, own = params["trunk"].setdefault(name, drawn[name]), drawn.pop(name)
                same = jax.tree.map(jnp.shape, shared) == jax.tree.map(jnp.shape, own)
                check(same, f"part '{part.name}' has another '{name}' than the parts before it: give all the same model")
            if drawn:
                params[part.name] = drawn
        return params

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {k: w for part in self.parts for k, w in part.named(part.objective.weights(part.of(batch))).items()}

    def alone(self, number: jax.Array, run: Callable[[Part], dict[str, Any]]) -> dict[str, Any]:
        """Evaluate part `number` alone (lax.switch); the entries of the other parts are zeros of their shapes."""
        # The branches of a switch return one structure, which `eval_shape` finds without computing a part.
        shapes = [jax.eval_shape(lambda p=p: run(p)) for p in self.parts]
        nothing = {k: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), x) for s in shapes for k, x in s.items()}
        return jax.lax.switch(number, [lambda p=p: {**nothing, **run(p)} for p in self.parts])


@dataclass(frozen=True, kw_only=True)
class Multitask(Parts, Objective):
    """Train several objectives on one trunk; each keeps its head and its metrics, named `part/metric`.

    `take="all"` adds the weighted losses of all parts in every step; `take="one"` draws one part a step, with the
    weights as probabilities, and computes that alone. All parts corrupt the same windows of text, as long as the longest
    needs; the others use their first tokens.
    """

    paper: ClassVar[str] = "Liu et al. 2019 (MT-DNN); Raffel et al. 2020 (T5), 2.1"
    holds: ClassVar[str] = "the arrays of every part, as part/name"

    parts: tuple[Part, ...]
    take: Literal["all", "one"] = "all"

    def __post_init__(self):
        check_choices(self)
        super().__post_init__()
        for part in self.parts:
            records = part.objective.records
            if not isinstance(records, Windows) or records.order != "shuffled":
                raise UserError(f"part '{part.name}' reads whole documents or in order: it cannot share windows of text")

    @property
    def nats(self) -> str | None:
        return next((f"{p.name}/{p.objective.nats}" for p in self.parts if p.objective.nats), None)

    @property
    def records(self) -> Windows:
        # As large as any part needs; `beginning` truncates for the others.
        windows = [part.objective.records for part in self.parts]
        largest = {name: max(getattr(w, name) for w in windows) for name in ("length", "stride", "others", "copies")}
        return Windows(**largest)

    @property
    def scales(self) -> Mapping[str, float]:
        # A drawn part counts in full: its weight is already the probability of the draw.
        weight = {part.name: part.weight if self.take == "all" else 1.0 for part in self.parts}
        return {f"{p.name}/{k}": weight[p.name] * s for p in self.parts for k, s in p.objective.scales.items()}

    def study(self, corpus: Corpus) -> Self:
        return self.each(lambda objective: objective.study(corpus))

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        example: Example = {}
        for part in self.parts:
            example |= part.named(part.objective.corrupt(rng, beginning(record, part.objective.records.length)))
        return example

    def initial_memory(self, rows: int) -> Any:
        """Return a step counter, for the draw of a part; one a row, as memory has an axis of rows."""
        return jnp.zeros((rows,), jnp.int32) if self.take == "one" else None

    def peers(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> dict[str, Any] | None:
        peers = {p.name: p.objective.peers(p.params(params), p.of(batch), keys_B) for p in self.parts}
        return {name: x for name, x in peers.items() if x is not None} or None

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        # Evaluation measures every part, whichever training draws.
        if self.take == "all" or keys_B is None:
            return {name: pair for part in self.parts for name, pair in part.loss(params, batch, keys_B).items()}, memory
        # One draw for all rows, of the step's number alone: micro-batches and devices must run the same part.
        shares = jnp.log(jnp.array([part.weight for part in self.parts]))
        draw = jax.random.categorical(jax.random.fold_in(jax.random.key(0), memory[0]), shares)
        return self.alone(draw, lambda part: part.loss(params, batch, keys_B)), memory + 1

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array] | None:
        return {name: x for part in self.parts for name, x in part.predict(params, batch).items()} or None

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        return "\n".join(part.show(tokenizer, example, found) for part in self.parts)

    def flops(self) -> float:
        each = [part.objective.flops() for part in self.parts]
        if self.take == "all":
            return sum(each)
        total = sum(part.weight for part in self.parts)
        return sum(part.weight / total * work for part, work in zip(self.parts, each))


def beginning(record: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Truncate a record of a window, and the other windows in it."""
    others = [beginning(other, length) for other in record.get("others", ())]
    return {k: x[:length] if isinstance(x, np.ndarray) else x for k, x in record.items()} | {"others": others}


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/mixture_nano.py")
