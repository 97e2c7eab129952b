"""Contrastive sentence embeddings: SimCSE (Gao et al. 2021), without labels, with pairs, with hard negatives.

    python -m lm.objectives.contrastive [--config=configs/simcse_nano.py]
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.corruption.masking import budget, replace
from lm.corruption.sentences import sentences
from lm.data.rows.records import Documents, Windows
from lm.errors import check, check_choices, check_range
from lm.fields import derived
from lm.models.flops import train_flops
from lm.models.heads import Pooler, cross_entropy, gather
from lm.models.layers import fold
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Objective, fit


@dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """Find each sentence's partner among those of the whole batch: InfoNCE of cosines; constants of the paper.

    `fields` 1: a sentence of running text and itself, told apart by dropout alone; 2: the pairs, 3: the triples (sentence,
    entailed one, contradiction) of the data. `hard_weight` is added to the logit of the sentence's own contradiction.
    `pooling` "cls" puts a dense layer and tanh over the first token, which with `mlp_only_train` evaluation leaves out.
    `mlm` > 0 adds that much of a masked-token loss (BERT's 80/10/10) on the same sentences.
    """

    paper: ClassVar[str] = "Gao et al. 2021 (SimCSE)"
    holds: ClassVar[str] = (
        "sentences segments (B, F, T), F of a row; seed (B,) of the dropout in evaluation; with the masked-token"
        " term masked (B, F, T); places targets weights (B, F, P)"
    )

    embeds: ClassVar[bool] = True

    model: Transformer
    fields: Literal[1, 2, 3] = 1
    length: int = 32  # tokens of a sentence, specials counted
    shortest: int = 4  # shorter ones (headings, numbers) recur in a batch, where they would be false negatives
    pooling: Literal["cls", "cls_before_pooler", "avg", "avg_top2", "avg_first_last"] = "cls"
    mlp_only_train: bool = True  # the paper's choice without labels
    temperature: float = 0.05
    hard_weight: float = 0.0
    mlm: float = 0.0  # 0.1 in the paper
    rate: float = 0.15
    cls: int | None = None  # these are filled in by `resolve`
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
    def special(self):
        return ("[PAD]", "[CLS]", "[SEP]") + ("[MASK]",) * bool(self.mlm)

    @property
    def headless(self):
        return not self.mlm

    @property
    def records(self):
        if self.fields == 1:  # room for the rest of a sentence that began before and for all of the next
            return Windows(length=2 * self.length, stride=2 * self.length)
        return Documents(fields=self.fields, limit=(self.length,) * self.fields, pack=False)

    @property
    def scales(self):
        return {"contrast": 1.0} | ({"mlm": self.mlm} if self.mlm else {})

    @property
    def predictions(self) -> int:
        """Places P of a sentence."""
        return max(1, round(self.rate * self.length))

    def resolve(self, tokenizer):
        ids = {name[1:-1].lower(): tokenizer.special_id(name) for name in self.special}
        model, pieces = fit(self.model, tokenizer), tokenizer.piece_table()
        return dataclasses.replace(self, model=model, pieces=pieces, separator=tokenizer.separator, **ids)

    def corrupt(self, rng, record):
        sentences = [self.sentence(record)] if self.fields == 1 else record["documents"][0]
        tokens = np.full((self.fields, self.length), self.pad, np.int32)
        segments = np.zeros_like(tokens)
        for i, ids in enumerate(sentences[: self.fields]):
            if len(ids):  # without a token a sentence is absent
                ids = np.concatenate([[self.cls], ids[: self.length - 2], [self.sep]])
                tokens[i, : len(ids)], segments[i, : len(ids)] = ids, 1
        row = {"sentences": tokens, "segments": segments, "seed": np.int32(rng.integers(2**31))}
        return row | (self.masked(rng, tokens) if self.mlm else {})

    def sentence(self, record) -> np.ndarray:
        """Take the first sentence of a window that begins in it and is not too short; else what there is."""
        tokens, begins, ends, _ = sentences(record, self.pieces.ends_sentence, self.separator)
        if not len(begins):
            return tokens
        first = int(record["positions"][0] > 0 and len(begins) > 1)  # else the window begins within a sentence
        pick = first + int((ends - begins >= self.shortest)[first:].argmax())
        return tokens[begins[pick] : ends[pick]]

    def masked(self, rng, tokens: np.ndarray) -> dict[str, np.ndarray]:
        """Hide tokens of each sentence as BERT does (Devlin et al. 2019)."""
        shape = self.fields, self.predictions
        row = {"masked": tokens.copy(), "places": np.zeros(shape, np.int32), "targets": np.zeros(shape, np.int32)}
        row["weights"] = np.zeros(shape, np.float32)
        for i, ids in enumerate(tokens):
            open = np.flatnonzero((ids != self.cls) & (ids != self.sep) & (ids != self.pad))
            count = budget(len(open) + 2, self.rate, min(self.predictions, len(open)))
            places = np.sort(rng.permutation(open)[:count])
            row["places"][i, :count], row["targets"][i, :count], row["weights"][i, :count] = places, ids[places], 1
            row["masked"][i, places] = replace(rng, ids[places], (0.8, 0.1, 0.1), self.mask, 0, self.model.vocab)
        return row

    def masked_network(self):
        return Model(self.model) if self.mlm else super().masked_network()

    def init(self, key, batch):
        params = Model(self.model).init(key, batch["sentences"][:, 0])["params"]
        if self.pooling != "cls":
            return params
        state = jnp.zeros((1, 1, self.model.width))
        return {**params, "mlp": self.mlp.init(jax.random.fold_in(key, 1), state)["params"]}

    @property
    def mlp(self) -> Pooler:
        return Pooler(self.model.width, std=self.model.std, truncate=self.model.init_truncate)

    def weights(self, batch):
        found = {"contrast": present(batch).all(1).sum(dtype=jnp.float32)}
        return found | ({"mlm": batch["weights"].sum()} if self.mlm else {})

    def loss(self, params, batch, memory, keys_B):
        z_BKD = self.embed(params, batch, keys_B)
        rows = batch["rows"] if "peers" in batch else jnp.arange(len(z_BKD))
        # Own rows live, all others fixed: over the parts of a batch the gradients add up to those of the whole.
        all_BKD = jax.lax.stop_gradient(batch["peers"]).at[rows].set(z_BKD) if "peers" in batch else z_BKD
        nll_B, hits_B, anchor_B = retrieve(all_BKD, self.temperature, self.hard_weight)
        whole, own_B = nll_B.sum(), anchor_B[rows]
        value = whole + jax.lax.stop_gradient(nll_B[rows].sum() - whole)
        count = own_B.sum()
        apart_B = jnp.sum((z_BKD[:, 0] - z_BKD[:, 1]) ** 2, -1)
        sums = {
            "contrast": (value, count),
            "retrieved": (hits_B[rows].sum(), count),
            "alignment": (jnp.sum(apart_B * own_B), count),
            "uniformity": (uniformity(all_BKD[:, 0], anchor_B) * count, count),
        }
        return sums | (self.masked_sums(params, batch, keys_B) if self.mlm else {}), memory

    def masked_sums(self, params, batch, keys_B):
        """Sum the masked-token loss and its hits over all sentences."""
        model, variables = Model(self.model), {"params": params}
        masked, places, targets, weights, segments = (
            batch[name].reshape(-1, batch[name].shape[-1])
            for name in ("masked", "places", "targets", "weights", "segments")
        )
        keys = views(keys_B, range(3, 3 + self.fields))
        h_RTD, _ = model.apply(variables, masked, None, segments, keys_B=keys, causal=False)
        h_RPD = model.apply(variables, gather(h_RTD, places), method="transform")
        found = cross_entropy(h_RPD, model.apply(variables, method="head"), targets, weights)
        return {"mlm": (found["total"], weights.sum()), "mlm_accuracy": (found["hits"], weights.sum())}

    def peers(self, params, batch, keys_B):
        return jax.lax.stop_gradient(self.embed(params, batch, keys_B))

    def embed(self, params, batch, keys_B, *, drop: bool = True):
        """Return unit vectors (B, K, D) of the K = max(2, F) sentences of each row, 0 for one that is absent.

        Without keys it is the test's embedding. A sentence that stands alone still needs two views: their dropout then
        comes from the row's own seed; not so with `drop=False`, which gives K = F vectors.
        """
        tokens, segments, train = batch["sentences"], batch["segments"], keys_B is not None
        if self.fields == 1 and drop:
            tokens, segments = jnp.repeat(tokens, 2, 1), jnp.repeat(segments, 2, 1)
            keys_B = keys_B if train else jax.vmap(jax.random.key)(batch["seed"])
        shape = tokens.shape
        tokens, segments = tokens.reshape(-1, shape[2]), segments.reshape(-1, shape[2])
        between = self.pooling in ("avg_top2", "avg_first_last")
        h_RTD, states = Model(self.model).apply(
            {"params": params},
            tokens,
            None,
            segments,
            keys_B=views(keys_B, range(shape[1])),
            causal=False,
            collect=between,
        )
        if between:
            h_RTD = (h_RTD + states[-2 if self.pooling == "avg_top2" else 1]) / 2
        if self.pooling.startswith("cls"):
            z_RD = h_RTD[:, 0]
        else:
            real_RT = segments > 0
            z_RD = jnp.sum(h_RTD * real_RT[..., None], 1) / jnp.maximum(real_RT.sum(1), 1)[:, None]
        if self.pooling == "cls" and (train or not self.mlp_only_train):
            z_RD = self.mlp.apply({"params": params["mlp"]}, z_RD[:, None])
        z_BKD = z_RD.astype(jnp.float32).reshape(*shape[:2], -1)
        z_BKD = z_BKD * jax.lax.rsqrt(
            jnp.maximum(jnp.sum(z_BKD**2, -1, keepdims=True), 1e-16)
        )  # torch's 1e-8 of a norm
        return jnp.where(segments.reshape(shape).any(-1)[..., None], z_BKD, 0)

    def predict(self, params, batch):
        z_BFD = self.embed(params, batch, None, drop=False)
        cosines = z_BFD[:, 0] @ z_BFD[:, -1 if self.fields == 1 else 1].T
        if self.fields == 1:
            cosines = jnp.where(jnp.eye(len(cosines), dtype=bool), -2, cosines)
        other = 0 if self.fields == 1 else 1
        return {"nearest": batch["sentences"][cosines.argmax(1), other], "cosine": cosines.max(1)}

    def show(self, tokenizer, example, found=None):
        def line(name, ids, special=False):
            return f"{name:15}{' '.join(tokenizer.decode(ids[ids != self.pad], special=special).split())}"

        names = ("sentence", "partner", "contradiction")
        lines = [line(name, ids) for name, ids in zip(names, example["sentences"])]
        if self.mlm:
            lines += [line("masked", ids, special=True) for ids in example["masked"]]
        if found is not None:
            lines += [f"{line('nearest', found['nearest'])} (cosine {found['cosine']:.2f})"]
        return "\n".join(lines)

    def flops(self):
        sentences = max(2, self.fields) + self.fields * (self.mlm > 0)
        head = 6 * self.model.vocab * self.model.embed_size * self.predictions * self.fields * (self.mlm > 0)
        return sentences * self.length * train_flops(dataclasses.replace(self.model, vocab=0), self.length) + head


def present(batch) -> jax.Array:
    """Tell which sentences (B, F) have tokens."""
    return batch["segments"].any(-1)


def views(keys_B: jax.Array | None, sites: range) -> jax.Array | None:
    """Derive one key for each of K sites of each row, (B * K,)."""
    return None if keys_B is None else jnp.stack([fold(keys_B, site) for site in sites], 1).reshape(-1)


def retrieve(z_BKD: jax.Array, temperature: float, hard_weight: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return of each row, (B,): the nats of finding its partner (row 0 of K asks, row 1 answers), whether it is the
    nearest, and whether row and partner are there at all. Row 2, where there is one, adds negatives.
    """
    there_BK = jnp.any(z_BKD != 0, -1)
    logits = jnp.einsum("bd,ckd->bkc", z_BKD[:, 0], z_BKD[:, 1:]) / temperature
    if z_BKD.shape[1] == 3:
        logits = logits.at[:, 1].add(hard_weight * jnp.eye(len(logits)))
    logits = jnp.where(there_BK[:, 1:].T, logits, jnp.finfo(jnp.float32).min)
    own_B = jnp.diagonal(logits[:, 0])
    anchor_B = there_BK[:, :2].all(1).astype(jnp.float32)
    nll_B = jax.nn.logsumexp(logits, axis=(1, 2)) - own_B
    own_BKC = jnp.eye(len(logits), dtype=bool)[:, None] & (jnp.arange(logits.shape[1]) == 0)[:, None]
    hits_B = own_B >= jnp.where(own_BKC, -jnp.inf, logits).max((1, 2))
    return jnp.where(anchor_B > 0, nll_B, 0), hits_B * anchor_B, anchor_B


def uniformity(z_BD: jax.Array, there_B: jax.Array) -> jax.Array:
    """log of the mean over pairs of exp(-2 |x - y|^2) (Wang & Isola 2020); absent rows count in no pair."""
    pairs_BC = there_B[:, None] * there_B * (1 - jnp.eye(len(z_BD)))
    potential = jnp.sum(pairs_BC * jnp.exp(4 * (z_BD @ z_BD.T) - 4))  # |x - y|^2 = 2 - 2 x.y
    return jnp.log(jnp.maximum(potential, 1e-30) / jnp.maximum(pairs_BC.sum(), 1))


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/simcse_nano.py")
