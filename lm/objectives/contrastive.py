"""Contrastive sentence embeddings: SimCSE (Gao et al. 2021), without labels, with pairs, with hard negatives.

python -m lm.objectives.contrastive [--config=configs/simcse_nano.py]
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.corruption.masking import budget, replace
from lm.corruption.sentences import sentences
from lm.data.rows.records import Documents, Windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_choices, check_range
from lm.fields import derived
from lm.models.flops import train_flops
from lm.models.heads import Pooler, cross_entropy, gather
from lm.models.layers import fold
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Batch, Example, Objective, Sums


@dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """InfoNCE over cosine similarities: retrieve each sentence's partner among those of the whole batch.

    Constants of the paper. `fields` 1: a sentence of running text and itself, which differ in dropout alone; 2: the
    pairs, 3: the triples (sentence, entailment, contradiction) of the data. `hard_weight` is added to the logit of the
    sentence's own contradiction. `pooling` "cls" puts a dense layer and tanh over the first token, omitted in evaluation
    with `mlp_only_train`. `mlm` > 0 is the coefficient of a masked-language-modelling loss (BERT's 80/10/10) on the same
    sentences.
    """

    paper: ClassVar[str] = "Gao et al. 2021 (SimCSE)"
    holds: ClassVar[str] = (
        "sentences segments (B, F, T), F of a row; seed (B,) of the dropout in evaluation; with the masked-token"
        " term masked (B, F, T); places targets weights (B, F, P)"
    )

    embeds: ClassVar[bool] = True

    model: Transformer
    fields: Literal[1, 2, 3] = 1
    length: int = 32  # tokens of a sentence, special tokens included
    shortest: int = 4  # shorter ones (headings, numbers) recur in a batch, as false negatives
    pooling: Literal["cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last"] = "cls"
    mlp_only_train: bool = True  # the paper's choice without labels
    temperature: float = 0.05  # divides the similarities
    hard_weight: float = 0.0
    mlm: float = 0.0  # 0.1 in the paper
    rate: float = 0.15
    cls: int | None = None  # ids, set by `resolve`
    sep: int | None = None
    mask: int | None = None
    pad: int | None = None
    separator: int | None = None
    pieces: Any = derived()

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, 1, "rate")
        check_range(self, 0, float("inf"), "mlm", "hard_weight")
        check_range(self, 1, float("inf"), "shortest")
        check(0 < self.temperature < float("inf"), f"temperature={self.temperature} must be positive")
        check(
            3 <= self.length <= self.model.context,
            f"length={self.length} must lie in 3..{self.model.context}, the context",
        )

    @property
    def special(self) -> tuple[str, ...]:
        return ("[PAD]", "[CLS]", "[SEP]") + ("[MASK]",) * bool(self.mlm)

    @property
    def headless(self) -> bool:
        return not self.mlm

    @property
    def records(self) -> Windows | Documents:
        if self.fields == 1:  # the end of a sentence that started before, and all of the next
            return Windows(length=2 * self.length, stride=2 * self.length)
        return Documents(fields=self.fields, limit=(self.length,) * self.fields, pack=False)

    @property
    def scales(self) -> Mapping[str, float]:
        return {"contrast": 1.0} | ({"mlm": self.mlm} if self.mlm else {})

    @property
    def predictions(self) -> int:
        """Return the number of predictions in a sentence, P."""
        return max(1, round(self.rate * self.length))

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        sentences = [self.sentence(record)] if self.fields == 1 else record["documents"][0]
        tokens = np.full((self.fields, self.length), self.pad, np.int32)
        segments = np.zeros_like(tokens)
        for i, ids in enumerate(sentences[: self.fields]):
            if len(ids):  # an absent sentence has no tokens, not even the special ones
                ids = np.concatenate([[self.cls], ids[: self.length - 2], [self.sep]])
                tokens[i, : len(ids)], segments[i, : len(ids)] = ids, 1
        row = {"sentences": tokens, "segments": segments, "seed": np.array(rng.integers(2**31), np.int32)}
        return row | (self.masked(rng, tokens) if self.mlm else {})

    def sentence(self, record: Mapping[str, Any]) -> np.ndarray:
        """Return the first sentence that starts in the window and is not too short; else the first of any length."""
        tokens, begins, ends, _ = sentences(record, self.pieces.ends_sentence, self.separator)
        if not len(begins):
            return tokens
        first = int(record["positions"][0] > 0 and len(begins) > 1)  # the window may start within a sentence
        pick = first + int((ends - begins >= self.shortest)[first:].argmax())
        return tokens[begins[pick] : ends[pick]]

    def masked(self, rng: np.random.Generator, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Mask tokens of each sentence by BERT's 80/10/10 rule (Devlin et al. 2019, 3.1)."""
        shape = self.fields, self.predictions
        row = {"masked": tokens.copy(), "places": np.zeros(shape, np.int32), "targets": np.zeros(shape, np.int32)}
        row["weights"] = np.zeros(shape, np.float32)
        for i, ids in enumerate(tokens):
            open = np.flatnonzero((ids != self.cls) & (ids != self.sep) & (ids != self.pad))
            # The rate is of all tokens of the sentence, [CLS] and [SEP] among them, as in BERT.
            count = budget(len(open) + 2, self.rate, min(self.predictions, len(open)))
            places = np.sort(rng.permutation(open)[:count])
            row["places"][i, :count], row["targets"][i, :count], row["weights"][i, :count] = places, ids[places], 1
            row["masked"][i, places] = replace(rng, ids[places], (0.8, 0.1, 0.1), self.mask, 0, self.model.vocab)
        return row

    def masked_network(self) -> Model:
        return Model(self.model) if self.mlm else super().masked_network()

    def init(self, key: jax.Array, batch: Batch) -> Any:
        params = Model(self.model).init(key, batch["sentences"][:, 0])["params"]
        if self.pooling != "cls":
            return params
        state = jnp.zeros((1, 1, self.model.width))
        return {**params, "mlp": self.mlp.init(jax.random.fold_in(key, 1), state)["params"]}

    @property
    def mlp(self) -> Pooler:
        return Pooler(self.model.width, std=self.model.std, truncate=self.model.init_truncate)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        contrast = batch["segments"].any(-1).all(1).sum(dtype=jnp.float32)  # rows without an absent sentence
        return {"contrast": contrast} | ({"mlm": batch["weights"].sum()} if self.mlm else {})

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        z_BKD = self.embed(params, batch, keys_B)
        rows = batch["rows"] if "peers" in batch else jnp.arange(len(z_BKD))
        # Own rows are differentiated, all others constant: over the micro-batches the gradients add up to those of the batch.
        all_BKD = jax.lax.stop_gradient(batch["peers"]).at[rows].set(z_BKD) if "peers" in batch else z_BKD
        nll_B, hits_B, anchor_B = retrieve(all_BKD, self.temperature, self.hard_weight)
        whole, own_B = nll_B.sum(), anchor_B[rows]
        # Own rows are negatives of the others as well: the gradient is that of the whole sum, the value that of own rows.
        value = whole + jax.lax.stop_gradient(nll_B[rows].sum() - whole)
        count = own_B.sum()
        # Alignment and uniformity (Wang & Isola 2020). The latter is over all pairs of the batch and no sum over rows:
        # times the count of own rows, micro-batches average it.
        distance_B = jnp.sum((z_BKD[:, 0] - z_BKD[:, 1]) ** 2, -1)
        sums = {
            "contrast": (value, count),
            "retrieved": (hits_B[rows].sum(), count),
            "alignment": (jnp.sum(distance_B * own_B), count),
            "uniformity": (uniformity(all_BKD[:, 0], anchor_B) * count, count),
        }
        return sums | (self.masked_sums(params, batch, keys_B) if self.mlm else {}), memory

    def masked_sums(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
        """Sum the masked-language-modelling loss and its hits over all sentences."""
        model, variables = Model(self.model), {"params": params}
        masked, places, targets, weights, segments = (
            batch[name].reshape(-1, batch[name].shape[-1]) for name in ("masked", "places", "targets", "weights", "segments")
        )
        # Sites 0 to 2 are those of `embed`: the two passes must not share dropout masks.
        keys = views(keys_B, range(3, 3 + self.fields))
        h_RTD, _ = model.apply(variables, masked, None, segments, keys_B=keys, causal=False)
        h_RPD = model.apply(variables, gather(h_RTD, places), method="transform")
        mlm = cross_entropy(h_RPD, model.apply(variables, method="head"), targets, weights)
        return {"mlm": (mlm["total"], weights.sum()), "mlm_accuracy": (mlm["hits"], weights.sum())}

    def peers(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> jax.Array | None:
        return jax.lax.stop_gradient(self.embed(params, batch, keys_B))

    def embed(self, params: Any, batch: Batch, keys_B: jax.Array | None, *, drop: bool = True) -> jax.Array:
        """Return unit vectors (B, K, D) of the K = max(2, F) sentences of each row, zero for an absent one.

        Without keys, pooling is that of evaluation. With F = 1 two views are still needed: their dropout then comes from
        the row's own seed. `drop=False` returns K = F vectors, without dropout.
        """
        tokens, segments, train = batch["sentences"], batch["segments"], keys_B is not None
        if self.fields == 1 and drop:
            # Each sentence twice in one pass; the keys of their sites differ, thus their dropout, and nothing else.
            tokens, segments = jnp.repeat(tokens, 2, 1), jnp.repeat(segments, 2, 1)
            keys_B = keys_B if train else jax.vmap(jax.random.key)(batch["seed"])
        shape = tokens.shape
        # Sentences become rows, encoded in one forward pass.
        tokens, segments = tokens.reshape(-1, shape[2]), segments.reshape(-1, shape[2])
        averaged = self.pooling in ("avg_top2", "avg_first_last")  # over two layers
        h_RTD, states = Model(self.model).apply(
            {"params": params},
            tokens,
            None,
            segments,
            keys_B=views(keys_B, range(shape[1])),
            causal=False,
            collect=averaged,
        )
        if averaged:
            # The states before the first layer come first: 1 is the first layer's.
            h_RTD = (h_RTD + states[-2 if self.pooling == "avg_top2" else 1]) / 2
        if self.pooling.startswith("cls"):
            z_RD = h_RTD[:, 0]
        else:
            real_RT = segments > 0
            z_RD = jnp.sum(h_RTD * real_RT[..., None], 1) / jnp.maximum(real_RT.sum(1), 1)[:, None]
        # Without labels, training with the layer but evaluating without it works better in the paper.
        if self.pooling == "cls" and (train or not self.mlp_only_train):
            z_RD = self.mlp.apply({"params": params["mlp"]}, z_RD[:, None])
        z_BKD = z_RD.astype(jnp.float32).reshape(*shape[:2], -1)
        # 1e-16 of a square is the 1e-8 of a norm in torch's cosine similarity.
        z_BKD = z_BKD * jax.lax.rsqrt(jnp.maximum(jnp.sum(z_BKD**2, -1, keepdims=True), 1e-16))
        # Zero vectors mark absent sentences for `retrieve`, which excludes them.
        return jnp.where(segments.reshape(shape).any(-1)[..., None], z_BKD, 0)

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        z_BFD = self.embed(params, batch, None, drop=False)
        cosines = z_BFD[:, 0] @ z_BFD[:, -1 if self.fields == 1 else 1].T
        if self.fields == 1:
            # Below every cosine, as a sentence is no neighbour of its own.
            cosines = jnp.where(jnp.eye(len(cosines), dtype=bool), -2, cosines)
        other = 0 if self.fields == 1 else 1
        return {"nearest": batch["sentences"][cosines.argmax(1), other], "cosine": cosines.max(1)}

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        def line(name: str, ids: np.ndarray, special: bool = False) -> str:
            return f"{name:15}{' '.join(tokenizer.decode(ids[ids != self.pad], special=special).split())}"

        names = ("sentence", "partner", "contradiction")
        lines = [line(name, ids) for name, ids in zip(names, example["sentences"])]
        if self.mlm:
            lines += [line("masked", ids, special=True) for ids in example["masked"]]
        if found is not None:
            lines += [f"{line('nearest', found['nearest'])} (cosine {found['cosine']:.2f})"]
        return "\n".join(lines)

    def flops(self) -> float:
        sentences = max(2, self.fields) + self.fields * (self.mlm > 0)
        head = 6 * self.model.vocab * self.model.embed_size * self.predictions * self.fields * (self.mlm > 0)
        return sentences * self.length * train_flops(dataclasses.replace(self.model, vocab=0), self.length) + head


def views(keys_B: jax.Array | None, sites: range) -> jax.Array | None:
    """Derive a key for each of K sites of each row, (B * K,)."""
    return None if keys_B is None else jnp.stack([fold(keys_B, site) for site in sites], 1).reshape(-1)


def retrieve(z_BKD: jax.Array, temperature: float, hard_weight: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return of each row (B,) the InfoNCE loss in nats, whether its partner is the nearest, and whether both are present.

    Of the K sentences the first is the anchor, the second its partner; the third adds hard negatives.
    """
    present_BK = jnp.any(z_BKD != 0, -1)
    logits = jnp.einsum("bd,ckd->bkc", z_BKD[:, 0], z_BKD[:, 1:]) / temperature
    if z_BKD.shape[1] == 3:
        logits = logits.at[:, 1].add(hard_weight * jnp.eye(len(logits)))
    # The lowest finite number: with -inf the logsumexp of a batch without sentences would have a NaN gradient.
    logits = jnp.where(present_BK[:, 1:].T, logits, jnp.finfo(jnp.float32).min)
    own_B = jnp.diagonal(logits[:, 0])
    anchor_B = present_BK[:, :2].all(1).astype(jnp.float32)
    nll_B = jax.nn.logsumexp(logits, axis=(1, 2)) - own_B
    # The partner itself is left out of its competitors.
    own_BKC = jnp.eye(len(logits), dtype=bool)[:, None] & (jnp.arange(logits.shape[1]) == 0)[:, None]
    hits_B = own_B >= jnp.where(own_BKC, -jnp.inf, logits).max((1, 2))
    return jnp.where(anchor_B > 0, nll_B, 0), hits_B * anchor_B, anchor_B


def uniformity(z_BD: jax.Array, present_B: jax.Array) -> jax.Array:
    """Return log E exp(-2 |x - y|^2) over pairs of present rows (Wang & Isola 2020)."""
    pairs_BC = present_B[:, None] * present_B * (1 - jnp.eye(len(z_BD)))
    potential = jnp.sum(pairs_BC * jnp.exp(4 * (z_BD @ z_BD.T) - 4))  # |x - y|^2 = 2 - 2 x.y
    return jnp.log(jnp.maximum(potential, 1e-30) / jnp.maximum(pairs_BC.sum(), 1))


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/simcse_nano.py")
