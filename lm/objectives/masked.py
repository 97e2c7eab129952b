"""Masked language modelling, with or without a sentence objective: BERT and its line.

    python -m lm.objectives.masked [--config=configs/bert_nano.py]

| system | unit, ngrams | count | instead of [MASK] | sentence |
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
from lm.data.rows.records import Windows
from lm.data.text.words import ENTITY, PHRASE, WORD
from lm.errors import check, check_choices, check_range
from lm.fields import derived
from lm.models import flops
from lm.models.heads import Pooler, cross_entropy, gather
from lm.models.layers import Linear
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Objective, fit

BITS = {"word": WORD, "phrase": PHRASE, "entity": ENTITY}
LABELS = {
    "nsp": ("B follows A", "B is from elsewhere"),
    "sop": ("in order", "swapped, or B is from elsewhere"),
    "consecutive": ("B is from elsewhere", "B follows A"),
}


@dataclass(frozen=True, kw_only=True)
class Masked(Objective):
    """Predict tokens that were hidden, and with `sentence` whether two sentences go together.

    `rate` of the tokens are chosen, in units of `unit` (with probability `unit_share` a row, else single tokens:
    ERNIE's mixture) and in runs of 1, 2, ... units with probabilities `ngrams`. `count`: "round" fills a budget of
    round(rate x length) tokens (BERT), "stochastic" takes that many units, rounded at random (RoBERTa), "each" draws for
    every unit by itself (ERNIE). Of the chosen tokens `shares` are masked, random from id `low` on, and left as they
    are; with `similar` words are replaced by similar words instead (MacBERT). `specials` lets special tokens be chosen
    too (RoBERTa). `copies` > 0 fixes that many maskings of each window (BERT's 10), 0 draws anew.

    Rows are [CLS] A [SEP] B [SEP] of one document, with types, or, without a sentence objective, [CLS] text [SEP]: full
    sentences over the borders of documents. There, with data.packing="documents", tokens see their own document only;
    [CLS] belongs to the first of the row and [SEP] to the last, and every document but the first of the row brings the
    separator of the corpus, at its beginning.
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
    short_share: float = 0.1  # rows of a random length below the whole (Devlin et al. 2019), with a sentence objective
    copies: int = 0
    predictions: int = 0  # places for them in a row; 0: as many as there can be, or nearly, where chance decides
    ids: Any = derived()
    pieces: Any = derived()
    closed: Any = derived()  # bool [V]: never chosen
    words: Any = derived()

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, float("inf"), "length", "low", "copies", "predictions")
        check(0 < self.rate <= 1, f"rate={self.rate} must be above 0 and at most 1")
        for name in ("unit_share", "short_share"):
            check(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must be from 0 to 1")
        for name in ("shares", "ngrams"):
            found = getattr(self, name)
            check(min(found) >= 0 and math.isclose(sum(found), 1), f"{name}={found} must be shares that add up to 1")
        check(len(self.ngrams) == 1 or self.count == "round", f"ngrams need count='round', not '{self.count}'")
        check(not self.similar or self.unit != "token", "similar=True replaces words: unit='word'")
        check(self.sentence == "none" or self.model.types > 1, f"sentence='{self.sentence}' needs model.types=2")
        check(
            4 < self.row <= self.model.context,
            f"rows of {self.row} tokens must be longer than 4 and at most model.context={self.model.context}",
        )

    # -- host ----------------------------------------------------------------------------------------------------------

    special = ("[CLS]", "[SEP]", "[MASK]", "[PAD]")

    @property
    def row(self) -> int:
        """Tokens of a row, T."""
        return self.length or self.model.context

    @property
    def records(self) -> Windows:
        """A pair is cut out of the first whole sentences of twice the text that it takes."""
        stride = self.row - (2 if self.sentence == "none" else 3)
        twice = 1 if self.sentence == "none" else 2
        return Windows(length=twice * stride, stride=stride, others=twice - 1, apart=twice > 1, copies=self.copies)

    @property
    def places(self) -> int:
        """Predictions of a row, P."""
        if self.count == "round" or (self.count == "stochastic" and self.unit == "token"):
            most = max(1, math.ceil(self.rate * self.row - 1e-9))
        else:
            most = masking.room(self.row, self.rate)
        return min(self.predictions or most, self.row)

    @property
    def scales(self):
        return {"mlm": 1.0} if self.sentence == "none" else {"mlm": 1.0, "pair": 1.0}

    def resolve(self, tokenizer):
        names = [tokenizer.special_id(name) for name in self.special]
        ids = Ids(*names, tokenizer.separator, tokenizer.vocab)
        check(self.low < ids.vocab, f"low={self.low} leaves no token of {ids.vocab} to draw")
        closed = np.zeros(ids.vocab, bool)
        if not self.specials:
            closed[[i for i in ids[:5] if i is not None]] = True
        derived = {"ids": ids, "closed": closed, "pieces": tokenizer.piece_table()}
        return dataclasses.replace(self, model=fit(self.model, tokenizer), **derived)

    def study(self, corpus):
        """Find similar words, once for a corpus: the table is kept beside it."""
        if self.sentence in ("nsp", "consecutive") and any(tokens.documents < 2 for _, tokens in corpus.train):
            print(f"sentence='{self.sentence}': the corpus has one document, so no B is from elsewhere", flush=True)
        if not self.similar:
            return self
        path = corpus.folder / f"similar-{self.unit}-{self.ids.vocab}.npz"
        words = load(path) if path.exists() else self.table(corpus.train[0][1])
        if corpus.sha256 and not path.exists():  # text made up for a trial has neither hash nor folder
            save(words, path)
        return dataclasses.replace(self, words=words)

    def table(self, stream, most: int = 20_000_000) -> Words:
        """Find similar words in the first `most` tokens of a stream."""
        tokens, marked = stream.tokens[:most].astype(np.int32), stream.marks is not None
        starts = self.unit_starts(tokens, stream.marks[:most] if marked else tokens, marked, self.unit)
        first, sizes, order = masking.units(starts, ~self.closed[tokens])
        return similar_words(tokens, first[order], sizes[order])

    def corrupt(self, rng, record):
        length, ids = self.row, self.ids
        if self.sentence == "none":
            row = lay_text(record, length, ids)
        else:
            row = lay_pair(rng, record, length, ids, self.pieces.ends_sentence, self.sentence, self.short_share)
        none = np.zeros(0, np.int64)
        places, fed, first = self.hide(rng, row, record["marked"]) if row.real else (none, row.tokens, none)
        count, most = len(places), self.places
        indices, targets, weights = np.zeros(most, np.int32), np.zeros(most, np.int32), np.zeros(most, np.float32)
        indices[:count], targets[:count], weights[:count] = places, row.tokens[places], 1
        found = {"tokens": fed, "segments": row.segments, "positions": row.positions}
        found |= {"places": indices, "targets": targets, "weights": weights}
        if self.model.types:
            found["types"] = row.types
        if self.unit != "token":  # for `show`
            found["starts"] = np.zeros(length, bool)
            found["starts"][first] = True
        if self.sentence != "none":
            found |= {"pair": np.array(row.label, np.int32), "pair_weights": np.array(row.counts, np.float32)}
        return found

    def unit_starts(self, tokens: np.ndarray, marks: np.ndarray, marked: bool, unit: str) -> np.ndarray:
        """Mark, bool [T], where units begin: as the data says, else where pieces begin a word."""
        if unit == "token":
            return np.ones(len(tokens), bool)
        if marked:
            return (marks & BITS[unit]) > 0
        check(
            unit == "word", f"unit='{unit}' needs a corpus with marks: the source Tagged, or words=Jieba() of the data"
        )
        return self.pieces.word_starts(tokens)

    def hide(self, rng, row: Row, marked: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Choose places, ascending, at most P, and write over them: int [P], int32 [T], and where units begin, int [U]."""
        tokens = row.tokens[: row.real]
        unit = self.unit if self.unit_share == 1 or rng.random() < self.unit_share else "token"
        starts = self.unit_starts(tokens, row.marks[: row.real], marked, unit)
        first, sizes, order = masking.units(starts, ~self.closed[tokens])
        chosen = self.choose(rng, rng.permutation(order), first, sizes, row.real)
        places = masking.tokens_of(first, sizes, chosen)
        if self.similar and unit != "token":
            check(self.words is not None, "similar=True needs the corpus: resolve, then study")
            of = first[chosen], sizes[chosen]
            fed = replace_words(rng, row.tokens, *of, self.words, self.shares, self.low, self.ids.vocab)
            return places, fed, first
        fed = row.tokens.copy()
        fed[places] = masking.replace(rng, tokens[places], self.shares, self.ids.mask, self.low, self.ids.vocab)
        return places, fed, first

    def choose(self, rng, order: np.ndarray, first: np.ndarray, sizes: np.ndarray, real: int) -> np.ndarray:
        """Take units of a shuffled order, at most P tokens of them."""
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

    def masked_network(self):
        return Model(self.model)

    def init(self, key, batch):
        model = self.model
        params = Model(model).init(key, batch["tokens"])["params"]
        if self.sentence == "none":
            return params
        pooler, pair = self.heads()
        h_BTD = jnp.zeros((1, 1, model.width))
        first, second = jax.random.split(jax.random.fold_in(key, 1))
        found = {"pooler": pooler.init(first, h_BTD)["params"], "pair": pair.init(second, h_BTD[:, 0])["params"]}
        return {**params, **found}

    def heads(self) -> tuple[Pooler, Linear]:
        """Make what stands between the first token and the label of a pair."""
        model = self.model
        std = {"std": model.init, "truncate": model.init_truncate}
        return Pooler(model.width, **std), Linear((model.width, 2), ("embed", None), **std)

    def weights(self, batch):
        found = {"mlm": batch["weights"].sum()}
        return found if self.sentence == "none" else found | {"pair": batch["pair_weights"].sum()}

    def states(self, params, batch, keys_B):
        """Return the states of all tokens (B, T, D) and those of the places, ready for the vocabulary (B, P, E)."""
        model, variables = Model(self.model), {"params": params}
        inputs = batch["tokens"], batch["positions"], batch["segments"]
        h_BTD, _ = model.apply(variables, *inputs, types_BT=batch.get("types"), keys_B=keys_B, causal=False)
        return h_BTD, model.apply(variables, gather(h_BTD, batch["places"]), method="transform")

    def pair_logits(self, params, h_BTD):
        """Score both labels of each pair, float32 (B, 2)."""
        pooler, pair = self.heads()
        pooled_BD = pooler.apply({"params": params["pooler"]}, h_BTD)
        return pair.apply({"params": params["pair"]}, pooled_BD).astype(jnp.float32)

    def loss(self, params, batch, memory, keys_B):
        h_BTD, h_BPE = self.states(params, batch, keys_B)
        head = Model(self.model).apply({"params": params}, method="head")
        found = cross_entropy(h_BPE, head, batch["targets"], batch["weights"])
        count = batch["weights"].sum()
        sums = {"mlm": (found["total"], count), "accuracy": (found["hits"], count)}
        if self.sentence != "none":
            logits_B2, weights_B = self.pair_logits(params, h_BTD), batch["pair_weights"]
            right_B = jnp.take_along_axis(jax.nn.log_softmax(logits_B2), batch["pair"][:, None], 1)[:, 0]
            hits_B = logits_B2.argmax(-1) == batch["pair"]
            sums["pair"] = (-(weights_B * right_B).sum(), weights_B.sum())
            sums["pair_accuracy"] = ((weights_B * hits_B).sum(), weights_B.sum())
        return sums, memory

    def predict(self, params, batch):
        h_BTD, h_BPE = self.states(params, batch, None)
        head = Model(self.model).apply({"params": params}, method="head")
        found = {"guess": head.logits(h_BPE).argmax(-1)}
        return found if self.sentence == "none" else found | {"pair_guess": self.pair_logits(params, h_BTD).argmax(-1)}

    def flops(self):
        """The vocabulary and its transform are for the places only."""
        model, length = self.model, self.row
        everywhere = flops.train_flops(dataclasses.replace(model, vocab=0), length) * length
        return everywhere + 6 * self.places * model.embed_size * (model.vocab + model.width * model.transform)

    # -- for people ----------------------------------------------------------------------------------------------------

    def show(self, tokenizer, example, found=None):
        """Write tokens one above the other: as they were, as they are read, and as guessed where asked."""
        real, asked = int(np.count_nonzero(example["segments"])), example["weights"] > 0
        places, targets = example["places"][asked], example["targets"][asked]
        original = example["tokens"][:real].copy()
        original[places] = targets
        starts, guesses = example.get("starts", self.pieces.word_starts(original)), found and found["guess"][asked]
        cells = side_by_side(tokenizer, original, example["tokens"], places, guesses, self.ids.mask, starts)
        return "\n".join([*self.heading(example, found), cells])

    def heading(self, example, found) -> list[str]:
        """Explain the signs, and say what the sentences are to each other."""
        lines = ["read: ____ masked, . left as it was, else another token" + ("; guess: = right" if found else "")]
        if self.sentence != "none" and example["pair_weights"]:
            names = LABELS[self.sentence]
            guess = f"; guess: {names[int(found['pair_guess'])]}" if found else ""
            lines.append(f"pair: {names[int(example['pair'])]}{guess}")
        return lines


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/bert_nano.py")
