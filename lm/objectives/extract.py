"""The answer to a question as a span of a paragraph: SQuAD 1.1 and 2.0, CMRC, DRCD.

    python -m lm.objectives.extract [--config=configs/extract_nano.py]
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.labelled.answers import Choice, Window, answer, candidates, token_span
from lm.data.labelled.check import check_tokens, refuse_empties, refuse_empty
from lm.data.rows.packing import owners, token_windows
from lm.data.types import Example
from lm.errors import check, check_choices, check_range
from lm.models.layers import Linear, dropout, fold
from lm.objectives.base import Answers, Objective
from lm.objectives.finetune import network
from lm.objectives.finetune.base import Tuned
from lm.objectives.finetune.network import Rows, Trunk


@dataclass(frozen=True, kw_only=True)
class Extract(Tuned, Objective):
    """Score each token of question and paragraph as the first and as the last of the answer; half the sum of both losses.

    Examples have "question", "context", "answers" and "starts". Paragraphs too long for a row are read in windows `stride`
    tokens apart, behind the first `question` tokens of the question; where a window does not hold the first answer,
    the special token is asked for. At most `longest` tokens make an answer; `candidates` starts and ends of each window
    are looked at. `null`: "" is an answer, too (None: if a training example has none), where its score is above the
    best span's by more than `threshold`.

    `types` says what token types tell: the paragraph ("second" text), or those of its tokens that the question has, too
    ("asked"; Chen et al. 2017, 3.2, exact match). A network of minutes has not learned to compare words by itself.
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

    def __post_init__(self):
        check_choices(self)
        check(self.types == "second" or getattr(self.model, "types", 0) > 1, "types='asked' needs objective.model.types=2")
        check_range(self, 1, float("inf"), "stride", "question", "longest", "candidates")
        check_range(self, 0, 1, "dropout")
        check_range(self, -float("inf"), float("inf"), "threshold")
        network.check_rows(self.model, self.rows)

    # -- host ----------------------------------------------------------------------------------------------------------

    @property
    def choice(self) -> Choice:
        return Choice(self.candidates, self.longest, self.threshold)

    def study(self, corpus):
        """Find whether questions have no answer, and the length of a row; refuse empty texts and answers that are elsewhere."""
        examples = network.examples_of(corpus)
        refuse_empties([*examples, *corpus.validation.examples], "question", "context")
        for example in [*examples, *corpus.validation.examples]:
            for text, start in self.gold(example):
                refuse_empty(text, example.where, "a text in 'answers'")
                there = start >= 0 and example.get("context")[start : start + len(text)] == text
                check(there, f"{example.where}: the answer {text!r} is not at character {start} of the paragraph; mend it")
        null = any(not self.gold(example) for example in examples) if self.null is None else self.null
        return dataclasses.replace(self, null=null, rows=network.settled(self, corpus))

    def gold(self, example: Example) -> list[tuple[str, int]]:
        """Return the text and the first character of each answer; raises UserError where their numbers differ."""
        texts, starts = example.get("answers", list), example.get("starts", list)
        check(len(texts) == len(starts), f"{example.where}: {len(texts)} answers and {len(starts)} starts; mend the example")
        return list(zip(texts, starts))

    def lay(self, example: Example) -> list[Window]:
        """Lay the windows of an example out."""
        asked, context = self.frame.encode(example.get("question").strip())[: self.question], example.get("context")
        ids, spans = self.frame.spans(context)
        check_tokens(len(asked), example.get("question"), example.where, "'question'")
        check_tokens(len(ids), context, example.where, "'context'")
        longest = network.limit(self.model, self.rows)
        room = longest - len(asked) - self.frame.overhead(2)
        check(room > 0, f"objective.rows.length={longest} leaves no token for paragraphs; raise it or lower question")
        cuts = token_windows(len(ids), room, self.stride)
        owner, found = owners(cuts, len(ids)), []
        for k, (low, high) in enumerate(cuts):
            laid = self.frame.join([asked, ids[low:high]], longest)
            if self.types == "asked":
                laid = laid._replace(types=np.zeros_like(laid.types))
                laid.types[laid.begins[1] :][: high - low] = np.isin(ids[low:high], asked)
            none = len(laid.tokens) - 1 if self.frame.style == "xlnet" else 0
            found.append(Window(laid, laid.begins[1], spans[low:high], owner[low:high] == k, none))
        return found

    def sizes(self, example: Example) -> list[tuple[int, int]]:
        return [(len(window.laid.tokens), 1) for window in self.lay(example)]

    def target(self, example: Example, window: Window) -> tuple[int, int]:
        """Give the places of the first and the last token of the answer in a window."""
        answers = self.gold(example)
        if answers and len(window.spans):
            text, start = answers[0]
            end = start + len(text)
            found = token_span(window.spans, start, end)
            whole = window.spans[0, 0] <= start and end <= window.spans[-1, 1]
            if found and whole:
                return window.begin + found[0], window.begin + found[1]
        return window.none, window.none

    def corrupt(self, rng, record):
        laid = [(example, self.lay(example)[part]) for example, part in record["examples"]]
        row, begins = network.lay_row([window.laid for _, window in laid], self.model, self.frame, self.row)
        room = record["room"]
        row |= {name: np.zeros(room, np.int32) for name in ("starts", "ends", "numbers")}
        row["weights"] = np.zeros(room, np.float32)
        for k, ((example, window), begin) in enumerate(zip(laid, begins)):
            start, end = self.target(example, window)
            row["starts"][k], row["ends"][k] = begin + start, begin + end
            row["numbers"][k], row["weights"][k] = k + 1, 1
        return row

    # -- device --------------------------------------------------------------------------------------------------------

    @property
    def scorer(self) -> Linear:
        init = network.stack_of(self.model).linear(self.model.width)
        return Linear((self.model.width, 2), ("embed", None), **init)

    def init(self, key, batch):
        state = jnp.zeros((1, 1, self.model.width))
        scorer = self.scorer.init(jax.random.fold_in(key, 1), state)["params"]
        return {**network.draw(self.model, key, self.rows), "answer": scorer}

    def weights(self, batch):
        return {"loss": 2 * batch["weights"].sum()}

    def logits(self, params, batch, keys_B=None):
        """Score each token as the first and the last of an answer: float32 (B, T, 2)."""
        h_BTD = network.states(self.model, params, batch, keys_B, self.rows.causal)
        h_BTD = dropout(h_BTD, self.dropout, fold(keys_B, 1000), 1)
        return self.scorer.apply({"params": params["answer"]}, h_BTD.astype(jnp.float32))

    def loss(self, params, batch, memory, keys_B):
        logits_BT2, weights_BP = self.logits(params, batch, keys_B), batch["weights"]
        own_BPT = batch["segments"][:, None] == batch["numbers"][..., None]
        total, right_BP = 0.0, weights_BP > 0
        for side, name in enumerate(("starts", "ends")):
            scores_BPT = jnp.where(own_BPT, logits_BT2[:, None, :, side], jnp.finfo(jnp.float32).min)
            target_BP = jnp.take_along_axis(logits_BT2[..., side], batch[name], 1)
            total += jnp.sum((jax.nn.logsumexp(scores_BPT, -1) - target_BP) * weights_BP)
            right_BP &= scores_BPT.argmax(-1) == batch[name]
        count = weights_BP.sum()
        return {"loss": (total, 2 * count), "exact": (right_BP.sum(), count), "filled": network.filled(batch)}, memory

    def predict(self, params, batch):
        """Give each token's scores as the first and the last of an answer, (B, T) both."""
        logits_BT2 = self.logits(params, batch)
        return {"start": logits_BT2[..., 0], "end": logits_BT2[..., 1]}

    # -- for people ----------------------------------------------------------------------------------------------------

    @property
    def answers(self):
        return Answers("spans", "reader", ("question", "context"))

    def placeholder(self, example):
        return {"answers": [], "starts": []}

    def unbounded(self, tokenizer, examples):
        # A published network does not say whether it was trained on questions without an answer; it answers every one.
        return dataclasses.replace(self, null=False) if self.null is None else self

    def outcomes(self, record, found) -> list[dict[str, Any]]:
        """Say of each window of a record what it offers; `merge` chooses among the windows of a question."""
        rows, at = [], 0
        for example, part in record["examples"]:
            window = self.lay(example)[part]
            here = slice(at, at + len(window.laid.tokens))
            none, spans = candidates(window, found["start"][here], found["end"][here], self.choice)
            rows.append({"where": example.where, "none": none, "spans": spans})
            at = here.stop
        return rows

    def merge(self, example: Example, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Choose the answer of one question from what its windows offer: text, odds of no answer, candidates."""
        offers = [(part["none"], part["spans"]) for part in parts]
        return answer(example.get("context"), offers, self.choice, bool(self.null))

    def show(self, tokenizer, example, found=None):
        tokens, side, lines = example.get("source", example["tokens"]), example["segments"], []
        for k in np.flatnonzero(example["weights"]):
            own = np.flatnonzero(side == example["numbers"][k])

            def words(start: int, end: int, whole=own) -> str:
                text = " ".join(tokenizer.decode(tokens[start : end + 1]).split())
                return text if start <= end and (text or start not in whole[:1]) else "(none)"

            lines.append(f"text    {' '.join(tokenizer.decode(tokens[own], special=True).split())}")
            lines.append(f"answer  {words(example['starts'][k], example['ends'][k]) or '(none)'}")
            if found is not None:
                start, end = (int(own[0]) + int(found[name][own].argmax()) for name in ("start", "end"))
                lines.append(f"guess   {words(start, end) or '(none)'}")
        return "\n".join(lines) or network.EMPTY


if __name__ == "__main__":
    from lm.main import main

    main(default="configs/extract_nano.py")
