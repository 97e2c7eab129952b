"""Masked language modelling, with or without a sentence-pair objective: BERT and its successors.

    python -m lm.objectives.masked [--config=configs/bert_nano.py]

| system | unit, ngrams | count | in place of [MASK] | sentence |
|---|---|---|---|---|
| BERT (Devlin et al. 2019) | token; whole-word models: word | round, 10 copies | | nsp |
| RoBERTa (Liu et al. 2019) | token | stochastic, specials, low=4 | | none |
| ALBERT (Lan et al. 2020) | word, 1 to 3 with p ~ 1/n | round, 40 copies | | sop |
| BERT-wwm (Cui et al. 2021) | word, of the data | round, 10 copies | | nsp |
| MacBERT (Cui et al. 2020) | word, 1 to 4 | round | similar words | sop |
| ERNIE 1.0 (Sun et al. 2019) | phrase or entity, of the data | each, low=1 | | consecutive |
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.console import side_by_side
from lm.corruption import masking
from lm.corruption.encoder_rows import Ids, Row, lay_pair, lay_text
from lm.corruption.pairs import Sentence
from lm.corruption.similar import Words, load, replace_words, save, similar_words
from lm.data.corpus.corpus import Corpus
from lm.data.corpus.store import Tokens
from lm.data.rows.records import Windows
from lm.data.text.words import ENTITY, PHRASE, WORD
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check, check_choices, check_range
from lm.fields import derived
from lm.models import flops
from lm.models.heads import Pooler, cross_entropy, gather
from lm.models.layers import Linear
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Batch, Example, Objective, Sums

BITS = {"word": WORD, "phrase": PHRASE, "entity": ENTITY}
LABELS = {
    "nsp": ("B follows A", "B is from elsewhere"),
    "sop": ("in order", "swapped, or B is from elsewhere"),
    "consecutive": ("B is from elsewhere", "B follows A"),
}


@dataclass(frozen=True, kw_only=True)
class Masked(Objective):
    """Predict masked tokens, and with `sentence` the relation of two sentences.

    `rate` of the tokens are selected, in units of `unit` (with probability `unit_share` a row, else single tokens: ERNIE's
    mixture) and in n-grams of 1, 2, ... units with probabilities `ngrams`. `count`: "round" fills a budget of
    round(rate x length) tokens (BERT), "stochastic" takes that many units, rounded at random (RoBERTa), "each" draws
    every unit independently (ERNIE). Of the selected tokens `shares` are masked, replaced by a random id from `low` on,
    and kept (80/10/10 in BERT, 3.1); with `similar` words are replaced by similar words instead (MacBERT). `specials`
    lets special tokens be selected too (RoBERTa). `copies` > 0 fixes that many maskings of each window (BERT's 10).

    Rows are [CLS] A [SEP] B [SEP] of one document, with types, or, without a sentence objective, [CLS] text [SEP]: full
    sentences across document borders. There, with data.packing="documents", tokens attend to their own document only;
    [CLS] belongs to the first of the row and [SEP] to the last, and each further document starts with the separator.
    """

    paper: ClassVar[str] = "BERT (Devlin et al. 2019), RoBERTa, ERNIE 1.0 (2019), ALBERT, MacBERT (2020), BERT-wwm (2021)"
    holds: ClassVar[str] = (
        "tokens types segments positions starts (B, T); places targets weights (B, P); with sentences pair pair_weights (B,)"
    )
    fills: ClassVar[tuple[str, ...]] = ("fill", "gibbs")

    model: Transformer
    length: int = 0  # tokens of a row, 0: model.context; BERT's first nine tenths of the steps have 128 of 512
    rate: float = 0.15
    unit: Literal["token", "word", "phrase", "entity"] = "token"
    unit_share: float = 1.0
    ngrams: tuple[float, ...] = (1.0,)
    count: Literal["round", "stochastic", "each"] = "round"
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    low: int = 0
    specials: bool = False
    similar: bool = False
    sentence: Sentence = "none"
    short_share: float = 0.1  # rows of a random shorter length (Devlin et al. 2019, A.2), with a sentence objective
    copies: int = 0
    predictions: int = 0  # P, the most in a row; 0: the greatest possible number, or a bound that chance rarely exceeds
    ids: Any = derived()
    pieces: Any = derived()
    closed: Any = derived()  # bool [V]: never selected
    words: Any = derived()

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "length", "low", "copies", "predictions")
        check(0 < self.rate <= 1, f"rate={self.rate} must be above 0 and at most 1")
        for name in ("unit_share", "short_share"):
            check(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must be from 0 to 1")
        for name in ("shares", "ngrams"):
            shares = getattr(self, name)
            check(min(shares) >= 0 and math.isclose(sum(shares), 1), f"{name}={shares} must be shares that add up to 1")
        check(len(self.ngrams) == 1 or self.count == "round", f"ngrams need count='round', not '{self.count}'")
        check(not self.similar or self.unit != "token", "similar=True replaces words: unit='word'")
        check(self.sentence == "none" or self.model.types > 1, f"sentence='{self.sentence}' needs model.types=2")
        most = self.model.context
        check(4 < self.row <= most, f"rows of {self.row} tokens must be longer than 4 and at most model.context={most}")

    # -- host ----------------------------------------------------------------------------------------------------------

    special = ("[CLS]", "[SEP]", "[MASK]", "[PAD]")

    @property
    def row(self) -> int:
        """Return the number of tokens in a row, T."""
        return self.length or self.model.context

    @property
    def records(self) -> Windows:
        """Read windows of a row's text; of a pair twice that, so that it can end with a whole sentence."""
        stride = self.row - (2 if self.sentence == "none" else 3)
        twice = 1 if self.sentence == "none" else 2
        return Windows(length=twice * stride, stride=stride, others=twice - 1, apart=twice > 1, copies=self.copies)

    @property
    def places(self) -> int:
        """Return the number of predictions in a row, P."""
        if self.count == "round" or (self.count == "stochastic" and self.unit == "token"):
            most = max(1, math.ceil(self.rate * self.row - 1e-9))
        else:
            most = masking.room(self.row, self.rate)
        return min(self.predictions or most, self.row)

    @property
    def scales(self) -> Mapping[str, float]:
        return {"mlm": 1.0} if self.sentence == "none" else {"mlm": 1.0, "pair": 1.0}

    def resolve(self, tokenizer: Tokenizer) -> "Masked":
        cls, sep, mask, pad = map(tokenizer.special_id, self.special)
        ids = Ids(cls, sep, mask, pad, tokenizer.separator, tokenizer.vocab)
        check(self.low < ids.vocab, f"low={self.low} leaves no token of {ids.vocab} to draw")
        # Special tokens frame the text and are never targets, except in RoBERTa's release.
        closed = np.zeros(ids.vocab, bool)
        if not self.specials:
            closed[[i for i in ids[:5] if i is not None]] = True
        return dataclasses.replace(super().resolve(tokenizer), ids=ids, closed=closed)

    def study(self, corpus: Corpus) -> "Masked":
        """Find similar words once, in a table that is stored beside the corpus."""
        if self.sentence in ("nsp", "consecutive") and any(tokens.documents < 2 for _, tokens in corpus.train):
            print(f"sentence='{self.sentence}': the corpus has one document, so no B is from elsewhere", flush=True)
        if not self.similar:
            return self
        path = corpus.folder / f"similar-{self.unit}-{self.ids.vocab}.npz"
        words = load(path) if path.exists() else self.table(corpus.train[0][1])
        if corpus.sha256 and not path.exists():  # a synthetic corpus has neither hash nor folder
            save(words, path)
        return dataclasses.replace(self, words=words)

    def table(self, stream: Tokens, most: int = 20_000_000) -> Words:
        """Find similar words in the first `most` tokens of a stream."""
        tokens, marked = stream.tokens[:most].astype(np.int32), stream.marks is not None
        starts = self.unit_starts(tokens, stream.marks[:most] if marked else tokens, marked, self.unit)
        first, sizes, order = masking.units(starts, ~self.closed[tokens])
        return similar_words(tokens, first[order], sizes[order])

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Example:
        length, ids = self.row, self.ids
        if self.sentence == "none":
            row = lay_text(record, length, ids)
        else:
            row = lay_pair(rng, record, length, ids, self.pieces.ends_sentence, self.sentence, self.short_share)
        none = np.zeros(0, np.int64)
        places, tokens, first = self.hide(rng, row, record["marked"]) if row.real else (none, row.tokens, none)
        # P is fixed, so that all batches have one shape; unused predictions have weight 0.
        count, most = len(places), self.places
        indices, targets, weights = np.zeros(most, np.int32), np.zeros(most, np.int32), np.zeros(most, np.float32)
        indices[:count], targets[:count], weights[:count] = places, row.tokens[places], 1
        example = {"tokens": tokens, "segments": row.segments, "positions": row.positions}
        example |= {"places": indices, "targets": targets, "weights": weights}
        if self.model.types:
            example["types"] = row.types
        if self.unit != "token":  # for `show`
            example["starts"] = np.zeros(length, bool)
            example["starts"][first] = True
        if self.sentence != "none":
            example |= {"pair": np.array(row.label, np.int32), "pair_weights": np.array(row.counts, np.float32)}
        return example

    def unit_starts(self, tokens: np.ndarray, marks: np.ndarray, marked: bool, unit: str) -> np.ndarray:
        """Return unit starts, bool [T]: those marked in the data, else the pieces that start a word."""
        if unit == "token":
            return np.ones(len(tokens), bool)
        if marked:
            return (marks & BITS[unit]) > 0
        check(unit == "word", f"unit='{unit}' needs a corpus with marks: the source Tagged, or words=Jieba() of the data")
        return self.pieces.word_starts(tokens)

    def hide(self, rng: np.random.Generator, row: Row, marked: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Select and corrupt at most P tokens: their positions, ascending, the row int32 [T], and unit starts, int [U]."""
        tokens = row.tokens[: row.real]
        unit = self.unit if self.unit_share == 1 or rng.random() < self.unit_share else "token"
        starts = self.unit_starts(tokens, row.marks[: row.real], marked, unit)
        first, sizes, order = masking.units(starts, ~self.closed[tokens])
        chosen = self.choose(rng, rng.permutation(order), first, sizes, row.real)
        places = masking.tokens_of(first, sizes, chosen)
        if self.similar and unit != "token":
            check(self.words is not None, "similar=True needs the corpus: resolve, then study")
            spans = first[chosen], sizes[chosen]
            corrupted = replace_words(rng, row.tokens, *spans, self.words, self.shares, self.low, self.ids.vocab)
            return places, corrupted, first
        corrupted = row.tokens.copy()
        corrupted[places] = masking.replace(rng, tokens[places], self.shares, self.ids.mask, self.low, self.ids.vocab)
        return places, corrupted, first

    def choose(
        self, rng: np.random.Generator, order: np.ndarray, first: np.ndarray, sizes: np.ndarray, real: int
    ) -> np.ndarray:
        """Select units in a shuffled order, of at most P tokens in all."""
        if self.count == "round":
            budget = masking.budget(real, self.rate, self.places)
            if len(self.ngrams) == 1:
                return masking.fill(order, sizes, budget)
            return masking.fill_ngrams(rng, order, first, sizes, budget, self.ngrams)
        if self.count == "stochastic":
            order = order[: masking.stochastic(rng, len(order), self.rate)]
        else:
            order = order[rng.random(len(order)) < self.rate]
        return masking.fill(order, sizes, self.places)

    # -- device --------------------------------------------------------------------------------------------------------

    def masked_network(self) -> Model:
        return Model(self.model)

    def init(self, key: jax.Array, batch: Batch) -> Any:
        model = self.model
        params = Model(model).init(key, batch["tokens"])["params"]
        if self.sentence == "none":
            return params
        pooler, pair = self.heads()
        h_BTD = jnp.zeros((1, 1, model.width))
        # Heads have keys of their own, so that the encoder's parameters do not depend on `sentence`.
        first, second = jax.random.split(jax.random.fold_in(key, 1))
        heads = {"pooler": pooler.init(first, h_BTD)["params"], "pair": pair.init(second, h_BTD[:, 0])["params"]}
        return {**params, **heads}

    def heads(self) -> tuple[Pooler, Linear]:
        """Return the pooler over [CLS] and the classifier of pairs."""
        std: dict[str, Any] = {"std": self.model.init, "truncate": self.model.init_truncate}
        return Pooler(self.model.width, **std), Linear((self.model.width, 2), ("embed", None), **std)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        mlm = {"mlm": batch["weights"].sum()}
        return mlm if self.sentence == "none" else mlm | {"pair": batch["pair_weights"].sum()}

    def states(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Return the states of all tokens (B, T, D), and transformed for the vocabulary head at the targets (B, P, E)."""
        model, variables = Model(self.model), {"params": params}
        inputs = batch["tokens"], batch["positions"], batch["segments"]
        h_BTD, _ = model.apply(variables, *inputs, types_BT=batch.get("types"), keys_B=keys_B, causal=False)
        # At the P targets only: at all T positions the vocabulary logits would dominate memory.
        return h_BTD, model.apply(variables, gather(h_BTD, batch["places"]), method="transform")

    def pair_logits(self, params: Any, h_BTD: jax.Array) -> jax.Array:
        """Return the logits of each pair's labels, float32 (B, 2)."""
        pooler, pair = self.heads()
        pooled_BD = pooler.apply({"params": params["pooler"]}, h_BTD)
        return pair.apply({"params": params["pair"]}, pooled_BD).astype(jnp.float32)

    def loss(self, params: Any, batch: Batch, memory: Any, keys_B: jax.Array | None) -> tuple[Sums, Any]:
        h_BTD, h_BPE = self.states(params, batch, keys_B)
        head = Model(self.model).apply({"params": params}, method="head")
        mlm = cross_entropy(h_BPE, head, batch["targets"], batch["weights"])
        count = batch["weights"].sum()
        sums = {"mlm": (mlm["total"], count), "accuracy": (mlm["hits"], count)}
        if self.sentence != "none":
            logits_B2, weights_B = self.pair_logits(params, h_BTD), batch["pair_weights"]
            right_B = jnp.take_along_axis(jax.nn.log_softmax(logits_B2), batch["pair"][:, None], 1)[:, 0]
            hits_B = logits_B2.argmax(-1) == batch["pair"]
            sums["pair"] = (-(weights_B * right_B).sum(), weights_B.sum())
            sums["pair_accuracy"] = ((weights_B * hits_B).sum(), weights_B.sum())
        return sums, memory

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        h_BTD, h_BPE = self.states(params, batch, None)
        head = Model(self.model).apply({"params": params}, method="head")
        guess = {"guess": head.logits(h_BPE).argmax(-1)}
        return guess if self.sentence == "none" else guess | {"pair_guess": self.pair_logits(params, h_BTD).argmax(-1)}

    def flops(self) -> float:
        """Count the FLOPs of a training step on one row; the vocabulary head and its transform run on P positions only."""
        model, length = self.model, self.row
        everywhere = flops.train_flops(dataclasses.replace(model, vocab=0), length) * length
        return everywhere + 6 * self.places * model.embed_size * (model.vocab + model.width * model.transform)

    def show(self, tokenizer: Tokenizer, example: Example, found: Example | None = None) -> str:
        """Format tokens in aligned lines: original, corrupted, and predicted at the targets."""
        real, counted = int(np.count_nonzero(example["segments"])), example["weights"] > 0
        places, targets = example["places"][counted], example["targets"][counted]
        original = example["tokens"][:real].copy()
        original[places] = targets
        starts, guesses = example.get("starts", self.pieces.word_starts(original)), found["guess"][counted] if found else None
        cells = side_by_side(tokenizer, original, example["tokens"], places, guesses, self.ids.mask, starts)
        return "\n".join([*self.heading(example, found), cells])

    def heading(self, example: Example, found: Example | None) -> list[str]:
        """Return the legend, and the pair's label and prediction."""
        lines = ["read: ____ masked, . left as it was, else another token" + ("; guess: = right" if found else "")]
        if self.sentence != "none" and example["pair_weights"]:
            names = LABELS[self.sentence]
            guess = f"; guess: {names[int(found['pair_guess'])]}" if found else ""
            lines.append(f"pair: {names[int(example['pair'])]}{guess}")
        return lines


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/bert_nano.py")
