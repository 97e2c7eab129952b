"""Sequence labelling: a tag for each word (named entities, parts of speech), by softmax or a linear-chain CRF.

python -m lm.objectives.tag [--config=configs/tag_nano.py]
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.rows.packing import owners, word_windows
from lm.data.rows.templates import Laid
from lm.data.tokenizer.tokenizer import Tokenizer
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
from lm.objectives.base import Answers, Batch, Objective, Scored, Sums
from lm.objectives.base import Example as Row
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Rows, Trunk


class WordWindow(NamedTuple):
    """A window of a sentence: its tokens, the words that it scores, int64 [n], and the position of each one's first token."""

    laid: Laid
    words: np.ndarray
    firsts: np.ndarray


Scheme = Literal["auto", "none", "IOB1", "IOB2", "IOBES"]


@dataclass(frozen=True, kw_only=True)
class Tag(Tuned, Objective):
    """Cross-entropy of the tag of each word, scored at its first token; nats per word.

    `words`, `tags`: the fields of the two lists of an example. Sentences longer than a row are read in windows that overlap
    by up to `overlap` tokens; each word is scored in the window that has most context around it. `dropout` before the
    scores.

    `crf`: a linear-chain CRF over the tags of a sentence. `forbid` masks the transitions that the `scheme` of the tags
    excludes, when "decoding", or "always" (in the loss too). Scheme "auto" is detected in the training examples: IOB1,
    IOB2 (BIO), IOBES (BILOU, BMES), or "none", with a line of output that states the reason. For a sentence in windows
    the loss, `accuracy` and `inside` score each window's own words as a chain without start and end scores at a cut;
    `merge` decodes the whole sentence.
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
    scheme: Scheme = "auto"
    overlap: int = 32
    dropout: float = 0.0
    rows: Rows = Rows()

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, 0, 1, "dropout")
        check_range(self, 0, float("inf"), "overlap")
        network.check_rows(self.model, self.rows)
        check(not self.crf or self.unknown == "refuse", "unknown='skip' leaves gaps in a chain of tags: crf=False")

    # -- host ----------------------------------------------------------------------------------------------------------

    def learn(self, training: Sequence[Example], held_out: Sequence[Example]) -> Self:
        """Set the tags, "O" first, and the scheme."""
        names = {tag for example in training for tag in example.get(self.tags, list)}
        labels = self.labels or tuple(sorted(names, key=lambda name: (name != "O", name)))
        check(len(labels) > 1, f"{len(labels)} tag(s) in {self.tags!r}: nothing to tell apart")
        scheme = self.scheme_of(training, held_out) if self.crf and self.forbid != "never" else self.scheme
        return dataclasses.replace(self, labels=labels, scheme=scheme)

    def check_example(self, example: Example) -> None:
        self.targets(example)

    def scheme_of(self, training: Sequence[Example], held_out: Sequence[Example]) -> Scheme:
        """Detect the scheme, or "none"; with `forbid="always"` refuse tags that violate it, else report their number."""
        scheme, share = self.scheme, 0.0
        if scheme == "auto":
            scheme, share = nearest(example.get(self.tags, list) for example in training)
        always = self.forbid == "always"
        # "always" puts forbidden transitions into the loss: held-out sentences must be free of them, too.
        checked = [*training, *held_out] if always else training
        steps = ((example, odd_step(scheme, example.get(self.tags, list))) for example in checked if scheme != "none")
        odd = [(example.where, step) for example, step in steps if step]
        if odd and (always or self.scheme == "auto"):  # a scheme from config.json was reported when it was detected
            where, step = odd[0]
            report = f"{where}: {step} is not {scheme}, as in {len(odd):,} of {len(checked):,} sentences"
            check(not always, f"{report}; mend the tags, or set objective.forbid=decoding: always makes them impossible")
            if jax.process_index() == 0:
                none = f"; no scheme fits better, so nothing is forbidden: set objective.scheme={scheme} to forbid it"
                print(report + (none if share > NOISE else "; decoding gives no such tags: objective.forbid=never"), flush=True)
        return "none" if share > NOISE else scheme

    def targets(self, example: Example) -> np.ndarray:
        """Return the index of each word's gold tag, int32 [words]; -1 for an unknown one."""
        words, tags = example.get(self.words, list), example.get(self.tags, list)
        check(len(words) == len(tags) > 0, f"{example.where}: {len(words)} words and {len(tags)} tags; mend the example")
        odd = next((tag for tag in tags if tag not in self.labels), None)
        if odd is not None and self.unknown == "refuse":
            raise network.unknown_label(example.where, odd, self.labels)
        return np.array([self.labels.index(tag) if tag in self.labels else -1 for tag in tags], np.int32)

    def lay(self, example: Example) -> list[WordWindow]:
        """Cut a sentence into windows of whole words."""
        pieces = self.frame.words(example.get(self.words, list), example.values.get("spaced", True), example.where)
        capacity = self.limit - self.frame.overhead(1)
        check(capacity > 0, f"objective.rows.length={self.limit} leaves no token for a word; raise it")
        # A word longer than a window keeps its first tokens: it is scored at the first.
        pieces = [piece[:capacity] for piece in pieces]
        sizes = [len(piece) for piece in pieces]
        # At most half a window overlaps, so that every window advances.
        spans = word_windows(sizes, capacity, min(self.overlap, capacity // 2))
        firsts = np.cumsum([0, *sizes])
        tokens = [(int(firsts[low]), int(firsts[high])) for low, high in spans]
        owner = owners(tokens, int(firsts[-1]))[firsts[:-1]]
        windows = []
        for k, (low, high) in enumerate(spans):
            laid = self.frame.join([np.concatenate(pieces[low:high])], self.limit)
            own = np.arange(low, high)[owner[low:high] == k]
            windows.append(WordWindow(laid, own, laid.begins[0] + firsts[own] - firsts[low]))
        return windows

    def sizes(self, example: Example) -> list[tuple[int, int]]:
        return [(len(window.laid.tokens), len(window.words)) for window in self.lay(example)]

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Row:
        """Lay out windows in a row: "places" (W,) of the words' first tokens, "targets", "weights", and chain borders.

        "begins": first word of a window; "opens", "closes": first and last word of its sentence.
        """
        windows = [(self.lay(example)[part], self.targets(example)) for example, part in record["examples"]]
        row, starts = self.lay_row([window.laid for window, _ in windows])
        count, first = record["room"], 0
        row |= {name: np.zeros(count, np.int32) for name in ("places", "targets")}
        row |= {"weights": np.zeros(count, np.float32)}
        row |= {name: np.zeros(count, bool) for name in ("begins", "opens", "closes")}
        for ((_, own, firsts), targets), start in zip(windows, starts):
            span = slice(first, first + len(own))
            row["places"][span] = start + firsts
            # An unknown tag keeps its place with weight 0.
            row["targets"][span] = np.maximum(targets[own], 0)
            row["weights"][span] = targets[own] >= 0
            # A window starts a chain, but only the ends of the sentence itself have start and end scores.
            row["begins"][span] = own == own[:1]
            row["opens"][span] = own == 0
            row["closes"][span] = own == len(targets) - 1
            first = span.stop
        return row

    # -- device --------------------------------------------------------------------------------------------------------

    def init_head(self, key: jax.Array) -> dict[str, Any]:
        head = {"classifier": self.init_token_scorer(key, len(self.labels))}
        if self.crf:
            head["crf"] = Chain(len(self.labels)).init(jax.random.fold_in(key, 2))["params"]
        return head

    def scored(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> Scored:
        """Score the tags of each word, of a CRF its emissions, at the state of the word's first token."""
        # A word has one tag, scored at its first token (Devlin et al. 2019, 5.3).
        h_BWD = gather(self.states(params, batch, keys_B), batch["places"])
        return Scored(self.score_tokens(params["classifier"], h_BWD, len(self.labels), keys_B), h_BWD)

    def logits(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> jax.Array:
        """Score the tags of each word, float32 (B, W, tags)."""
        return self.scored(params, batch, keys_B).scores_BPC

    def chain(self, params: Any, when: Literal["training", "decoding"]) -> Weights:
        """Return the weights of the CRF, with forbidden transitions masked where `forbid` asks for it."""
        weights = Chain(len(self.labels)).apply({"params": params["crf"]})
        known = self.scheme not in ("auto", "none")
        return forbid(weights, self.labels, self.scheme) if known and self.forbid in ("always", when) else weights

    @staticmethod
    def places(batch: Batch) -> Places:
        return Places(batch["weights"] > 0, *(batch[name] for name in ("begins", "opens", "closes")))

    def terms(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
        logits_BWC, targets, weights_BW = self.logits(params, batch, keys_B), batch["targets"], batch["weights"]
        count = weights_BW.sum()
        if self.crf:
            weights, places = self.chain(params, "training"), self.places(batch)
            total = jnp.sum(log_partition(logits_BWC, places, weights) - path_score(logits_BWC, targets, places, weights))
        else:
            log_BWC = jax.nn.log_softmax(logits_BWC)
            total = -jnp.sum(jnp.take_along_axis(log_BWC, targets[..., None], -1)[..., 0] * weights_BW)
        hits_BW = (self.best(params, logits_BWC, batch) == targets) * weights_BW
        sums = {"loss": (total, count), "accuracy": (hits_BW.sum(), count)}
        if "O" in self.labels:  # most words are outside of every entity, so that accuracy alone would flatter
            inside_BW = weights_BW * (targets != self.labels.index("O"))
            sums["inside"] = jnp.sum(hits_BW * inside_BW), inside_BW.sum()
        return sums

    def best(self, params: Any, logits_BWC: jax.Array, batch: Batch) -> jax.Array:
        """Decode the tags by argmax or Viterbi, int32 (B, W)."""
        logits_BWC = jax.lax.stop_gradient(logits_BWC)  # for metrics: nothing is differentiated through Viterbi
        if not self.crf:
            return logits_BWC.argmax(-1).astype(jnp.int32)
        weights = jax.lax.stop_gradient(self.chain(params, "decoding"))
        return viterbi(logits_BWC, self.places(batch), weights)

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return the tag of each word, "guess" (B, W).

        A CRF adds the emissions, "scores" (B, W, C), and "chain" (B, C + 2, C), the transitions, start and end repeated for
        each row: `merge` decodes a sentence from the windows of several rows.
        """
        logits_BWC = self.logits(params, batch)
        outputs = {"guess": self.best(params, logits_BWC, batch)}
        if not self.crf:
            return outputs
        steps_CC, start_C, end_C = self.chain(params, "decoding")
        chain_KC = jnp.concatenate([steps_CC, start_C[None], end_C[None]])
        return outputs | {"scores": logits_BWC, "chain": jnp.broadcast_to(chain_KC, (len(logits_BWC), *chain_KC.shape))}

    def decide(self, example: Example, part: int, scores_PC: np.ndarray, outputs: Row) -> list[tuple[int, ...]]:
        return [(int(tag),) for tag in outputs["guess"][: len(scores_PC)]]

    # -- after training ------------------------------------------------------------------------------------------------

    @property
    def answers(self) -> Answers:
        return Answers("tags", "tagger", (self.words,))

    def placeholder(self, example: Example) -> dict[str, Any]:
        return {self.tags: [self.labels[0]] * len(example.get(self.words, list))}

    def unbounded(self, tokenizer: Tokenizer, examples: Sequence[Example]) -> Self:
        # Decodes as "always" does, without the gold tags, which are placeholders here.
        return dataclasses.replace(self, forbid="decoding") if self.forbid == "always" else self

    def outcomes(self, record: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Return the words of each window in a record and their predicted tags; `merge` joins the windows of a sentence."""
        rows, first = [], 0
        for example, part in record["examples"]:
            windows = self.lay(example)
            own = windows[part].words
            span = slice(first, first + len(own))
            guess = [self.labels[int(tag)] for tag in outputs["guess"][span]]
            row = {"where": example.where, "words": own.tolist(), "guess": guess}
            if self.crf and len(windows) > 1:
                row |= {"scores": outputs["scores"][span], "chain": outputs["chain"]}
            rows.append(row)
            first = span.stop
        return rows

    def merge(self, parts: Sequence[Mapping[str, Any]]) -> list[str]:
        """Join the windows of a sentence in the order of its words; a CRF decodes the whole sentence."""
        # Windows come in any order, and each word in one of them.
        order = np.argsort(np.concatenate([part["words"] for part in parts]))
        if "chain" in parts[0]:
            scores_WC = np.concatenate([part["scores"] for part in parts])[order]
            chain_KC = parts[0]["chain"]
            return [self.labels[tag] for tag in best_path(scores_WC, (chain_KC[:-2], chain_KC[-2], chain_KC[-1]))]
        guess = [tag for part in parts for tag in part["guess"]]
        return [guess[i] for i in order]

    def lines(self, tokenizer: Tokenizer, row: Row, outputs: Row | None) -> list[str]:
        """Describe each window as WORD/TAG, or WORD/TAG>GUESS where the prediction is another tag."""
        tokens, side, lines = row.get("source", row["tokens"]), row["segments"], []
        real = np.flatnonzero(row["weights"])
        for number in range(1, int(side.max(initial=0)) + 1):
            own = real[side[row["places"][real]] == number]
            stop = int(np.flatnonzero(side == number)[-1]) + 1
            edges = [*row["places"][own].tolist(), stop]
            words = []
            for k, low, high in zip(own.tolist(), edges, edges[1:]):
                tag = self.labels[int(row["targets"][k])]
                guess = tag if outputs is None else self.labels[int(outputs["guess"][k])]
                text = "".join(tokenizer.decode(tokens[low:high]).split())
                words.append(f"{text}/{tag}" + (f">{guess}" if guess != tag else ""))
            lines.append(" ".join(words))
        return lines


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/tag_nano.py")
