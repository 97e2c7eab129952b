"""A tag for each word: named entities, parts of speech; softmax or a conditional random field on top.

    python -m lm.objectives.tag [--config=configs/tag_nano.py]
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.packing import owners, word_windows
from lm.data.rows.templates import Laid
from lm.data.types import Example
from lm.errors import check, check_choices, check_range
from lm.models.crf import (
    NOISE,
    Chain,
    Places,
    Weights,
    best_path,
    forbid,
    log_partition,
    nearest,
    odd_step,
    path_score,
    viterbi,
)
from lm.models.heads import gather
from lm.models.layers import Linear, dropout, fold
from lm.objectives.base import Answers, Objective
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Rows, Trunk


@dataclass(frozen=True, kw_only=True)
class Tag(Tuned, Objective):
    """Score tags at the first token of each word; the loss is in nats a word.

    `words` and `tags` name the lists of an example. Sentences longer than a row are read in windows that overlap by up to
    `overlap` tokens; each word counts in the one where it has most context. `dropout` before the scores.

    `crf` learns which tag follows which; `forbid` keeps from it what the `scheme` of the tags does not allow, when
    "decoding", or "always", in the loss, too. "auto" finds the scheme in the training examples: IOB1, IOB2 (BIO), IOBES
    (BILOU, BMES), or "none", with one line that says why. Of a sentence in windows the loss takes each one's words as a
    chain cut out of it, with no start and no end at a cut; so do `accuracy` and `inside`. `merge` decodes it as a whole.
    """

    paper: ClassVar[str] = "Devlin et al. 2019 (BERT); Lafferty et al. 2001, Lample et al. 2016 (CRF)"
    holds: ClassVar[str] = "tokens types segments positions (B, T); places targets weights begins opens closes (B, W)"
    task: ClassVar[str] = "TokenClassification"

    model: Trunk
    words: str = "words"
    tags: str = "tags"
    labels: tuple[str, ...] = ()
    unknown: Literal["refuse", "skip"] = "refuse"
    crf: bool = False
    forbid: Literal["never", "decoding", "always"] = "decoding"
    scheme: Literal["auto", "none", "IOB1", "IOB2", "IOBES"] = "auto"
    overlap: int = 32
    dropout: float = 0.0
    rows: Rows = Rows()

    def __post_init__(self):
        check_choices(self)
        check_range(self, 0, 1, "dropout")
        check_range(self, 0, float("inf"), "overlap")
        network.check_rows(self.model, self.rows)
        check(not self.crf or self.unknown == "refuse", "unknown='skip' leaves gaps in a chain of tags: crf=False")

    # -- host ----------------------------------------------------------------------------------------------------------

    def study(self, corpus):
        """Find the tags; with an O, so that it stands first."""
        examples = network.examples_of(corpus)
        names = {tag for example in examples for tag in example.get(self.tags, list)}
        labels = self.labels or tuple(sorted(names, key=lambda name: (name != "O", name)))
        check(len(labels) > 1, f"{len(labels)} tag(s) in {self.tags!r}: nothing to tell apart")
        found = dataclasses.replace(self, labels=labels)
        for example in [*examples, *corpus.validation.examples]:
            found.targets(example)
        scheme = self.scheme_of(examples, corpus.validation.examples) if self.crf and self.forbid != "never" else self.scheme
        return dataclasses.replace(found, scheme=scheme, rows=network.settled(found, corpus))

    def scheme_of(self, examples: Sequence[Example], held_out: Sequence[Example]) -> str:
        """Find the scheme, or "none"; refuse tags against it where they would cost 1e4 nats, else say how many there are."""
        scheme, share = self.scheme, 0.0
        if scheme == "auto":
            scheme, share = nearest(example.get(self.tags, list) for example in examples)
        always = self.forbid == "always"
        looked = [*examples, *held_out] if always else examples
        steps = ((one, odd_step(scheme, one.get(self.tags, list))) for one in looked if scheme != "none")
        odd = [(one.where, step) for one, step in steps if step]
        if odd and (always or self.scheme == "auto"):  # what config.json tells was said when it was found
            where, step = odd[0]
            said = f"{where}: {step} is not {scheme}, as in {len(odd):,} of {len(looked):,} sentences"
            check(not always, f"{said}; mend the tags, or set objective.forbid=decoding: always makes them impossible")
            if jax.process_index() == 0:
                none = f"; no scheme fits better, so nothing is forbidden: set objective.scheme={scheme} to forbid it"
                print(said + (none if share > NOISE else "; decoding gives no such tags: objective.forbid=never"), flush=True)
        return "none" if share > NOISE else scheme

    def targets(self, example: Example) -> np.ndarray:
        """Give the number of each word's tag, int32 [words]; -1 where it is not known."""
        words, tags = example.get(self.words, list), example.get(self.tags, list)
        check(len(words) == len(tags) > 0, f"{example.where}: {len(words)} words and {len(tags)} tags; mend the example")
        odd = next((tag for tag in tags if tag not in self.labels), None)
        if odd is not None and self.unknown == "refuse":
            raise network.refuse(example.where, odd, self.labels)
        return np.array([self.labels.index(tag) if tag in self.labels else -1 for tag in tags], np.int32)

    def lay(self, example: Example) -> list[tuple[Laid, np.ndarray, np.ndarray]]:
        """Lay the windows of an example out: tokens, the words that count here, and the place of each one's first token."""
        pieces = self.frame.words(example.get(self.words, list), example.values.get("spaced", True), example.where)
        longest = network.limit(self.model, self.rows)
        room = longest - self.frame.overhead(1)
        check(room > 0, f"objective.rows.length={longest} leaves no token for a word; raise it")
        pieces = [piece[:room] for piece in pieces]
        sizes = [len(piece) for piece in pieces]
        spans = word_windows(sizes, room, min(self.overlap, room // 2))
        firsts = np.cumsum([0, *sizes])
        tokens = [(int(firsts[low]), int(firsts[high])) for low, high in spans]
        owner = owners(tokens, int(firsts[-1]))[firsts[:-1]]
        found = []
        for k, (low, high) in enumerate(spans):
            laid = self.frame.join([np.concatenate(pieces[low:high])], longest)
            own = np.arange(low, high)[owner[low:high] == k]
            found.append((laid, own, laid.begins[0] + firsts[own] - firsts[low]))
        return found

    def sizes(self, example: Example) -> list[tuple[int, int]]:
        return [(len(laid.tokens), len(own)) for laid, own, _ in self.lay(example)]

    def corrupt(self, rng, record):
        laid = [(self.lay(example)[part], self.targets(example)) for example, part in record["examples"]]
        sequences = [window[0] for window, _ in laid]
        row, begins = network.lay_row(sequences, self.model, self.frame, self.row)
        room, at = record["room"], 0
        row |= {name: np.zeros(room, np.int32) for name in ("places", "targets")}
        row |= {"weights": np.zeros(room, np.float32)}
        row |= {name: np.zeros(room, bool) for name in ("begins", "opens", "closes")}
        for ((_, own, places), targets), begin in zip(laid, begins):
            here = slice(at, at + len(own))
            row["places"][here] = begin + places
            row["targets"][here] = np.maximum(targets[own], 0)
            row["weights"][here] = targets[own] >= 0
            row["begins"][here] = own == own[:1]
            row["opens"][here] = own == 0
            row["closes"][here] = own == len(targets) - 1
            at += len(own)
        return row

    # -- device --------------------------------------------------------------------------------------------------------

    @property
    def scorer(self) -> Linear:
        init = network.stack_of(self.model).linear(self.model.width)
        return Linear((self.model.width, len(self.labels)), ("embed", None), **init)

    def init(self, key, batch):
        state = jnp.zeros((1, 1, self.model.width))
        found = {"classifier": self.scorer.init(jax.random.fold_in(key, 1), state)["params"]}
        if self.crf:
            found["crf"] = Chain(len(self.labels)).init(jax.random.fold_in(key, 2))["params"]
        return {**network.draw(self.model, key, self.rows), **found}

    def logits(self, params, batch, keys_B=None):
        """Score the tags of each word, float32 (B, W, tags)."""
        h_BTD = network.states(self.model, params, batch, keys_B, self.rows.causal)
        h_BWD = dropout(gather(h_BTD, batch["places"]), self.dropout, fold(keys_B, 1000), 1)
        return self.scorer.apply({"params": params["classifier"]}, h_BWD.astype(jnp.float32))

    def chain(self, params, when: str) -> Weights:
        """Give the weights of the random field, with what is forbidden then."""
        weights = Chain(len(self.labels)).apply({"params": params["crf"]})
        known = self.scheme not in ("auto", "none")
        return forbid(weights, self.labels, self.scheme) if known and self.forbid in ("always", when) else weights

    @staticmethod
    def places(batch) -> Places:
        return Places(batch["weights"] > 0, *(batch[name] for name in ("begins", "opens", "closes")))

    def loss(self, params, batch, memory, keys_B):
        logits_BWC, targets, weights_BW = self.logits(params, batch, keys_B), batch["targets"], batch["weights"]
        count = weights_BW.sum()
        if self.crf:
            weights, places = self.chain(params, "training"), self.places(batch)
            total = jnp.sum(log_partition(logits_BWC, places, weights) - path_score(logits_BWC, targets, places, weights))
        else:
            log_BWC = jax.nn.log_softmax(logits_BWC)
            total = -jnp.sum(jnp.take_along_axis(log_BWC, targets[..., None], -1)[..., 0] * weights_BW)
        hits_BW = (self.best(params, logits_BWC, batch) == targets) * weights_BW
        sums = {"loss": (total, count), "accuracy": (hits_BW.sum(), count), "filled": network.filled(batch)}
        if "O" in self.labels:  # most words are outside of every entity
            inside_BW = weights_BW * (targets != self.labels.index("O"))
            sums["inside"] = jnp.sum(hits_BW * inside_BW), inside_BW.sum()
        return sums, memory

    def best(self, params, logits_BWC, batch):
        """Choose the tags, int32 (B, W)."""
        logits_BWC = jax.lax.stop_gradient(logits_BWC)
        if not self.crf:
            return logits_BWC.argmax(-1).astype(jnp.int32)
        weights = jax.lax.stop_gradient(self.chain(params, "decoding"))
        return viterbi(logits_BWC, self.places(batch), weights)

    def predict(self, params, batch):
        """Give the tag of each word (B, W); of a random field also what decodes a sentence that lies in several rows.

        That is the `scores` of the tags (B, W, C) and, the same for all rows, the `chain` of transitions, start and end
        (B, C + 2, C).
        """
        logits_BWC = self.logits(params, batch)
        found = {"guess": self.best(params, logits_BWC, batch)}
        if not self.crf:
            return found
        steps_CC, start_C, end_C = self.chain(params, "decoding")
        chain_KC = jnp.concatenate([steps_CC, start_C[None], end_C[None]])
        return found | {"scores": logits_BWC, "chain": jnp.broadcast_to(chain_KC, (len(logits_BWC), *chain_KC.shape))}

    # -- for people ----------------------------------------------------------------------------------------------------

    @property
    def answers(self):
        return Answers("tags", "tagger", (self.words,))

    def placeholder(self, example):
        return {self.tags: [self.labels[0]] * len(example.get(self.words, list))}

    def unbounded(self, tokenizer, examples):
        # Decodes as "always" does, without the gold tags, which are placeholders here.
        return dataclasses.replace(self, forbid="decoding") if self.forbid == "always" else self

    def outcomes(self, record, found) -> list[dict[str, Any]]:
        """Say of each part of a record which words it tags, and how; `merge` puts the parts of a sentence together."""
        rows, at = [], 0
        for example, part in record["examples"]:
            windows = self.lay(example)
            own = windows[part][1]
            here = slice(at, at + len(own))
            guess = [self.labels[int(tag)] for tag in found["guess"][here]]
            row = {"where": example.where, "words": own.tolist(), "guess": guess}
            if self.crf and len(windows) > 1:
                row |= {"scores": found["scores"][here], "chain": found["chain"]}
            rows.append(row)
            at = here.stop
        return rows

    def merge(self, parts: Sequence[dict[str, Any]]) -> list[str]:
        """Put the parts of one example in the order of its words; a random field tags the whole sentence at once."""
        order = np.argsort(np.concatenate([part["words"] for part in parts]))
        if "chain" in parts[0]:
            scores_WC = np.concatenate([part["scores"] for part in parts])[order]
            chain_KC = parts[0]["chain"]
            return [self.labels[tag] for tag in best_path(scores_WC, (chain_KC[:-2], chain_KC[-2], chain_KC[-1]))]
        guess = [tag for part in parts for tag in part["guess"]]
        return [guess[i] for i in order]

    def show(self, tokenizer, example, found=None):
        """Write words with their tags: WORD/TAG, /TAG>GUESS where the guess is another one."""
        tokens, side, lines = example.get("source", example["tokens"]), example["segments"], []
        real = np.flatnonzero(example["weights"])
        for number in range(1, int(side.max(initial=0)) + 1):
            own = real[side[example["places"][real]] == number]
            stop = int(np.flatnonzero(side == number)[-1]) + 1
            edges = [*example["places"][own].tolist(), stop]
            words = []
            for k, low, high in zip(own.tolist(), edges, edges[1:]):
                tag = self.labels[int(example["targets"][k])]
                guess = tag if found is None else self.labels[int(found["guess"][k])]
                text = "".join(tokenizer.decode(tokens[low:high]).split())
                words.append(f"{text}/{tag}" + (f">{guess}" if guess != tag else ""))
            lines.append(" ".join(words))
        return "\n".join(lines) or network.EMPTY


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/tag_nano.py")
