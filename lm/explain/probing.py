"""Probing classifiers: labels of texts or words from the states of each layer, by logistic regression.

Control tasks as in Hewitt & Liang 2019: a probe that learns random labels of words as well as real ones shows its own
capacity and not what the states hold; selectivity is the accuracy less that of the control.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.data.labelled.columns import Columns
from lm.data.labelled.files import Labelled
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.errors import check
from lm.explain.attribution import Params, states_of
from lm.models.encoder_decoder import EncoderDecoder, Seq2Seq
from lm.models.model import Model
from lm.models.transformer import Transformer
from lm.objectives.base import Objective
from lm.objectives.finetune import network

COLUMNS = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".tab", ".txt")  # words with labels, one a line
ROWS = 16  # of one pass
HELD_OUT = 0.25
Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Probing:
    """Held-out accuracy of a probe on the states after the embeddings and every layer, (L + 1,), with a 95 % interval.

    `control`: accuracy on the control task; `majority`: of the most frequent training label.
    """

    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    control: np.ndarray
    majority: float
    labels: list[str]
    unit: str  # "texts" or "words"
    counts: tuple[int, int]  # training, held out

    @property
    def selectivity(self) -> np.ndarray:
        return self.accuracy - self.control


@dataclass(frozen=True)
class Item:
    """A text in pieces with one label, or with a label for each piece."""

    pieces: list[str]
    labels: list[str]
    spaced: bool = True


def read_items(path: str, text: str = "text", label: str = "label", most: int = 1000) -> list[Item]:
    """Read labelled texts (.csv, .tsv, .jsonl: `text`, `label`) or words in columns (CoNLL; of CoNLL-U the UPOS)."""
    check(Path(path).is_file(), f"--probe={path}: there is no such file")
    ending = Path(path).suffix.lower()
    if ending in COLUMNS:
        source = Columns(path=path)
        source = replace(source, word=1, tag=3) if ending == ".conllu" else source
        examples = source.open().examples[:most]
        return [Item(one.values["words"], one.values["tags"], one.values["spaced"]) for one in examples]
    items = []
    for one in Labelled(path=path).open().examples[:most]:
        value = one.get(label, (str, int, float, bool))
        items.append(Item([one.get(text)], [str(value)]))
    return items


def encode(objective: Objective, tokenizer: Tokenizer, item: Item) -> tuple[np.ndarray, list[slice]]:
    """Return the ids of an item with the special tokens of its network, and the positions of each piece."""
    ids = []
    for k, piece in enumerate(item.pieces):
        behind_space = item.spaced and k and (tokenizer.byte_level or tokenizer.characters)
        ids.append(tokenizer.encode(f" {piece}" if behind_space else piece))
    if objective.rows is not None:
        frame = network.frame(objective.model, objective.rows, tokenizer)
        before, _, after = frame.around(1)
    elif "[MASK]" in objective.special:
        before, after = [tokenizer.special_id("[CLS]")], [tokenizer.special_id("[SEP]")]
    else:
        before, after = list(objective.lead(tokenizer)) if objective.writes == "text" else [], []
    at = np.cumsum([len(before), *map(len, ids)]).tolist()
    whole = np.concatenate([np.asarray(part, np.int32) for part in (before, *ids, after)])
    return whole, [slice(low, high) for low, high in itertools.pairwise(at)]


@partial(jax.jit, static_argnums=(0, 1))
def layer_states(
    model: Transformer | EncoderDecoder, causal: bool, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    """Return the states before and after every layer, of an encoder-decoder its encoder's, (L + 1, B, T, D)."""
    variables, bare = {"params": params}, network.bare(model)
    if isinstance(model, EncoderDecoder):
        more = {"method": "encode", "mutable": ["intermediates"]}
        _, seen = Seq2Seq(bare).apply(variables, tokens_BT, None, segments_BT, **more)
        return states_of(seen["intermediates"]["encoder"])
    return Model(bare).apply(variables, tokens_BT, None, segments_BT, causal=causal, collect=True)[1]


def features(
    objective: Objective, params: Params, tokenizer: Tokenizer, items: Sequence[Item]
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Return a vector of each labelled piece and layer, (L + 1, N, D), and the pieces' (number of the item, text).

    Of a text the mean of its tokens' states, of a word among several the state of its last token.
    """
    model = objective.model
    fits = isinstance(model, Transformer | EncoderDecoder) and "embed" in params
    check(fits, f"probes read Transformers, not a model of {type(objective).__name__}")
    causal = objective.rows.causal if objective.rows is not None else objective.writes == "text"
    context = model.encoder.context if isinstance(model, EncoderDecoder) else model.context
    words = any(len(item.labels) > 1 for item in items)
    encoded = [encode(objective, tokenizer, item) for item in items]
    # Longest last: rows of about one length share a pass, whose width is a multiple of 16.
    order, vectors, owners = np.argsort([len(ids) for ids, _ in encoded], kind="stable"), [], []
    for low in range(0, len(order), ROWS):
        part = order[low : low + ROWS].tolist()
        width = min(context, -(-max(len(encoded[i][0]) for i in part) // 16) * 16)
        tokens, segments = np.zeros((2, ROWS, width), np.int32)
        for row, i in enumerate(part):
            ids = encoded[i][0][:width]
            tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
        states_LBTD = np.asarray(layer_states(model, causal, params, tokens, segments), np.float32)
        for row, i in enumerate(part):
            for piece, at in zip(items[i].pieces, encoded[i][1]):
                at = slice(at.start, min(at.stop, width))
                # A piece without tokens, or beyond the context, keeps the state before it, so that labels stay in step.
                at = at if at.stop > at.start else slice(max(0, min(at.start, width) - 1), max(1, min(at.start, width)))
                vectors.append(states_LBTD[:, row, at.stop - 1] if words else states_LBTD[:, row, at].mean(1))
                owners.append((i, piece))
    return np.stack(vectors, 1), owners


def probe(
    objective: Objective, params: Params, tokenizer: Tokenizer, items: Sequence[Item], *, seed: int = 0, cost: float = 1.0
) -> Probing:
    """Fit a logistic regression to the states of every layer on three quarters of the items, and measure it on the others.

    `cost`: scikit-learn's C. The words of a sentence stay on one side. The control task gives each word type a label drawn
    from the labels' distribution; of texts, which do not recur, it shuffles the labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check(len(items) >= 8, f"{len(items)} examples are too few for a probe: give at least 8")
    vectors_LND, owners = features(objective, params, tokenizer, items)
    rng = np.random.default_rng(seed)
    seen: dict[int, int] = {}
    labels = []
    for i, _ in owners:  # the pieces of an item come in their order
        seen[i] = seen.get(i, -1) + 1
        labels.append(items[i].labels[seen[i]])
    gold, numbers = np.array(labels), np.array([i for i, _ in owners])
    words = any(len(item.labels) > 1 for item in items)
    types = [piece.lower() for _, piece in owners] if words else list(range(len(owners)))
    drawn: dict[Any, str] = {}
    shuffled = iter(rng.permutation(gold).tolist())
    control = np.array([drawn.setdefault(kind, label) for kind, label in zip(types, shuffled)])
    held_items = rng.permutation(len(items))[: max(1, round(HELD_OUT * len(items)))]
    held = np.isin(numbers, held_items)
    names, counts = np.unique(gold[~held], return_counts=True)
    check(len(names) > 1, "the training examples of the probe have one label: nothing to tell apart")

    def accuracy(vectors_ND: np.ndarray, labels_N: np.ndarray) -> float:
        if len(np.unique(labels_N[~held])) < 2:
            return float((labels_N[held] == labels_N[~held][0]).mean())
        model = make_pipeline(StandardScaler(), LogisticRegression(C=cost, max_iter=2000))
        return float(model.fit(vectors_ND[~held], labels_N[~held]).score(vectors_ND[held], labels_N[held]))

    exact = np.array([accuracy(vectors_ND, gold) for vectors_ND in vectors_LND])
    low, high = wilson(exact, int(held.sum()))
    return Probing(
        exact, low, high, np.array([accuracy(vectors_ND, control) for vectors_ND in vectors_LND]),
        float((gold[held] == names[counts.argmax()]).mean()), sorted({*labels}), "words" if words else "texts",
        (int((~held).sum()), int(held.sum())),
    )  # fmt: skip


def wilson(shares: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of proportions of `count` trials (Wilson 1927)."""
    centre = (shares + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * np.sqrt(shares * (1 - shares) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return centre - half, centre + half
