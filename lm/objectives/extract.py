"""Extractive question answering: the answer as a span of a paragraph (SQuAD 1.1 and 2.0, CMRC, DRCD).

python -m lm.objectives.extract [--config=configs/extract_nano.py]
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.labelled.answers import Choice, Window, answer, candidates, token_span
from lm.data.labelled.check import check_tokens, refuse_empties, refuse_empty
from lm.data.rows.packing import owners, token_windows
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.data.types import Example
from lm.errors import check, check_choices, check_range
from lm.models.heads import gather
from lm.objectives.base import Answers, Batch, Objective, Scored, Sums
from lm.objectives.base import Example as Row
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Rows, Trunk


@dataclass(frozen=True, kw_only=True)
class Extract(Tuned, Objective):
    """Cross-entropy of the first and of the last token of the answer, over question and paragraph; the mean of both.

    Examples have "question", "context", "answers" and "starts". A paragraph longer than a row is read in windows `stride`
    tokens apart, each behind the first `question` tokens of the question; in a window without the first answer the target
    is the special token. Decoding: an answer has at most `longest` tokens; of each window the `candidates` best starts and
    ends are paired. `null`: questions may have no answer, "" (None: if one of the training examples has none), predicted
    where its score exceeds the best span's by more than `threshold`.

    `types`: token type 1 marks the paragraph ("second" text), or its tokens that occur in the question ("asked"; exact
    match, Chen et al. 2017, 3.2), as a network trained for minutes has not learned to compare words.
    """

    paper: ClassVar[str] = "Devlin et al. 2019 (BERT); Rajpurkar et al. 2016, 2018 (SQuAD)"
    holds: ClassVar[str] = "tokens types segments positions (B, T); starts ends numbers weights (B, P)"
    task: ClassVar[str] = "QuestionAnswering"

    model: Trunk
    stride: int = 128
    question: int = 64
    longest: int = 30
    candidates: int = 20
    types: Literal["second", "asked"] = "second"
    null: bool | None = None
    threshold: float = 0.0
    dropout: float = 0.0
    rows: Rows = Rows()

    def __post_init__(self) -> None:
        check_choices(self)
        check(self.types == "second" or getattr(self.model, "types", 0) > 1, "types='asked' needs objective.model.types=2")
        check_range(self, 1, float("inf"), "stride", "question", "longest", "candidates")
        check_range(self, 0, 1, "dropout")
        check_range(self, -float("inf"), float("inf"), "threshold")
        network.check_rows(self.model, self.rows)

    # -- host ----------------------------------------------------------------------------------------------------------

    @property
    def choice(self) -> Choice:
        """Settings of decoding."""
        return Choice(self.candidates, self.longest, self.threshold)

    def learn(self, training: Sequence[Example], held_out: Sequence[Example]) -> Self:
        """Set whether questions may have no answer."""
        null = any(not self.gold(example) for example in training) if self.null is None else self.null
        return dataclasses.replace(self, null=null)

    def check_example(self, example: Example) -> None:
        refuse_empties([example], "question", "context")
        for text, start in self.gold(example):
            refuse_empty(text, example.where, "a text in 'answers'")
            there = start >= 0 and example.get("context")[start : start + len(text)] == text
            check(there, f"{example.where}: the answer {text!r} is not at character {start} of the paragraph; mend it")

    def gold(self, example: Example) -> list[tuple[str, int]]:
        """Return (text, first character) of each gold answer; raises UserError where the two lists differ in length."""
        texts, starts = example.get("answers", list), example.get("starts", list)
        check(len(texts) == len(starts), f"{example.where}: {len(texts)} answers and {len(starts)} starts; mend the example")
        return list(zip(texts, starts))

    def lay(self, example: Example) -> list[Window]:
        """Cut a paragraph into windows, each behind the question."""
        question, context = self.frame.encode(example.get("question").strip())[: self.question], example.get("context")
        ids, spans = self.frame.spans(context)
        check_tokens(len(question), example.get("question"), example.where, "'question'")
        check_tokens(len(ids), context, example.where, "'context'")
        capacity = self.limit - len(question) - self.frame.overhead(2)
        check(capacity > 0, f"objective.rows.length={self.limit} leaves no token for paragraphs; raise it or lower question")
        # A token of several windows is scored in the one that shows most context around it (run_squad).
        cuts = token_windows(len(ids), capacity, self.stride)
        owner, laid_out = owners(cuts, len(ids)), []
        for k, (low, high) in enumerate(cuts):
            laid = self.frame.join([question, ids[low:high]], self.limit)
            if self.types == "asked":
                laid = laid._replace(types=np.zeros_like(laid.types))
                laid.types[laid.begins[1] :][: high - low] = np.isin(ids[low:high], question)
            # "No answer" is a span of the token that stands for the whole text: <cls>, which XLNet puts last.
            none = len(laid.tokens) - 1 if self.frame.style == "xlnet" else 0
            laid_out.append(Window(laid, laid.begins[1], spans[low:high], owner[low:high] == k, none))
        return laid_out

    def sizes(self, example: Example) -> list[tuple[int, int]]:
        return [(len(window.laid.tokens), 1) for window in self.lay(example)]

    def target(self, example: Example, window: Window) -> tuple[int, int]:  # type: ignore[override]  # of a window
        """Return the positions of the first and the last token of the gold answer in a window."""
        gold = self.gold(example)
        if gold and len(window.spans):
            text, start = gold[0]
            end = start + len(text)
            span = token_span(window.spans, start, end)
            # An answer cut by the window's edge counts as absent: another window holds all of it.
            whole = window.spans[0, 0] <= start and end <= window.spans[-1, 1]
            if span and whole:
                return window.begin + span[0], window.begin + span[1]
        return window.none, window.none

    def corrupt(self, rng: np.random.Generator, record: Mapping[str, Any]) -> Row:
        """Lay out windows in a row: "starts" and "ends" (P,) of the answers, "numbers" of the segments, "weights"."""
        parts = [(example, self.lay(example)[part]) for example, part in record["examples"]]
        row, begins = self.lay_row([window.laid for _, window in parts])
        count = record["room"]
        row |= {name: np.zeros(count, np.int32) for name in ("starts", "ends", "numbers")}
        row["weights"] = np.zeros(count, np.float32)
        for k, ((example, window), begin) in enumerate(zip(parts, begins)):
            start, end = self.target(example, window)
            row["starts"][k], row["ends"][k] = begin + start, begin + end
            row["numbers"][k], row["weights"][k] = k + 1, 1
        return row

    # -- device --------------------------------------------------------------------------------------------------------

    def init_head(self, key: jax.Array) -> dict[str, Any]:
        return {"answer": self.init_token_scorer(key, 2)}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        # Two cross-entropies an answer, whose mean is the loss.
        return {"loss": 2 * batch["weights"].sum()}

    def logits(self, params: Any, batch: Batch, keys_B: jax.Array | None = None) -> jax.Array:
        """Score each token as the first and the last of an answer: float32 (B, T, 2)."""
        return self.score_tokens(params["answer"], self.states(params, batch, keys_B), 2, keys_B)

    def scored(self, params: Any, batch: Batch) -> Scored:
        """Score the tokens of each window as starts, then as ends: C = 2T, -inf outside; the state is the best start's."""
        h_BTD = self.states(params, batch, None)
        logits_BT2 = self.score_tokens(params["answer"], h_BTD, 2, None)
        own_BPT = batch["segments"][:, None] == batch["numbers"][..., None]
        sides = [jnp.where(own_BPT, logits_BT2[:, None, :, side], -jnp.inf) for side in range(2)]
        return Scored(jnp.concatenate(sides, -1), gather(h_BTD, sides[0].argmax(-1)))

    def terms(self, params: Any, batch: Batch, keys_B: jax.Array | None) -> Sums:
        logits_BT2, weights_BP = self.logits(params, batch, keys_B), batch["weights"]
        own_BPT = batch["segments"][:, None] == batch["numbers"][..., None]
        total, right_BP = jnp.zeros(()), weights_BP > 0
        for side, name in enumerate(("starts", "ends")):
            # The softmax is over the window's own tokens: others of its row are masked.
            scores_BPT = jnp.where(own_BPT, logits_BT2[:, None, :, side], jnp.finfo(jnp.float32).min)
            target_BP = jnp.take_along_axis(logits_BT2[..., side], batch[name], 1)
            total += jnp.sum((jax.nn.logsumexp(scores_BPT, -1) - target_BP) * weights_BP)
            right_BP &= scores_BPT.argmax(-1) == batch[name]
        count = weights_BP.sum()
        return {"loss": (total, 2 * count), "exact": (right_BP.sum(), count)}

    def predict(self, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """Return the scores of each token as the first and the last of an answer, "start" and "end" (B, T)."""
        logits_BT2 = self.logits(params, batch)
        return {"start": logits_BT2[..., 0], "end": logits_BT2[..., 1]}

    # -- after training ------------------------------------------------------------------------------------------------

    @property
    def answers(self) -> Answers:
        return Answers("spans", "reader", ("question", "context"))

    def placeholder(self, example: Example) -> dict[str, Any]:
        return {"answers": [], "starts": []}

    def unbounded(self, tokenizer: Tokenizer, examples: Sequence[Example]) -> Self:
        # A published network does not say whether it was trained on questions without an answer; it answers every one.
        return dataclasses.replace(self, null=False) if self.null is None else self

    def outcomes(self, record: Mapping[str, Any], outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Return the scored spans of each window in a record; `merge` selects among the windows of a question."""
        rows, first = [], 0
        for example, part in record["examples"]:
            window = self.lay(example)[part]
            span = slice(first, first + len(window.laid.tokens))
            none, spans = candidates(window, outputs["start"][span], outputs["end"][span], self.choice)
            rows.append({"where": example.where, "none": none, "spans": spans})
            first = span.stop
        return rows

    def score_names(self, example: Example) -> tuple[str, ...]:
        return ()

    def decide(self, example: Example, part: int, scores_PC: np.ndarray, outputs: Row) -> list[tuple[int, ...]]:
        """Return the start and the end of the best answer in a window, or of "no answer"."""
        window, (starts, ends) = self.lay(example)[part], np.split(scores_PC[0], 2)
        none, spans = candidates(window, starts, ends, self.choice)
        if not spans or (self.null and none - spans[0].score > self.threshold):
            return [(window.none, len(starts) + window.none)]
        first, last = (window.begin + i for i in token_span(window.spans, spans[0].start, spans[0].end))
        return [(first, len(starts) + last)]

    def merge(self, example: Example, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Select the answer to a question from the spans of its windows: text, odds of no answer, candidates."""
        scored = [(part["none"], part["spans"]) for part in parts]
        return answer(example.get("context"), scored, self.choice, bool(self.null))

    def lines(self, tokenizer: Tokenizer, row: Row, outputs: Row | None) -> list[str]:
        tokens, side, lines = row.get("source", row["tokens"]), row["segments"], []
        for k in np.flatnonzero(row["weights"]):
            own = np.flatnonzero(side == row["numbers"][k])

            def words(start: int, end: int, whole: np.ndarray = own) -> str:
                text = " ".join(tokenizer.decode(tokens[start : end + 1]).split())
                return text if start <= end and (text or start not in whole[:1]) else "(none)"

            lines.append(f"text    {' '.join(tokenizer.decode(tokens[own], special=True).split())}")
            lines.append(f"answer  {words(row['starts'][k], row['ends'][k]) or '(none)'}")
            if outputs is not None:
                start, end = (int(own[0]) + int(outputs[name][own].argmax()) for name in ("start", "end"))
                lines.append(f"guess   {words(start, end) or '(none)'}")
        return lines


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/extract_nano.py")
