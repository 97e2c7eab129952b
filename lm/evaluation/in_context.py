"""In-context learning: k-shot prompts, options scored by log-likelihood, answers generated and compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lm.data.rows.prompts import Prompt
from lm.decode.generate import occurrences, to_sample
from lm.decode.generate import write as texts_of
from lm.decode.prefill import fits
from lm.decode.sampling import Sampling
from lm.decode.writer import Request
from lm.errors import check, check_choices, check_range
from lm.evaluation.files import Item, items
from lm.evaluation.metrics.generation import bleu, chrf, exact_match, rouge
from lm.evaluation.metrics.qa import SQUAD, answers
from lm.evaluation.metrics.statistics import Figure, Figures, proportion
from lm.evaluation.perplexity import given
from lm.evaluation.subject import Subject


@dataclass(frozen=True, kw_only=True)
class Shots:
    """How a question is put: a description, `count` solved examples drawn for it by the seed, then the question alone.

    `template` is the question with the example's fields in braces; `join` stands before an answer, `between` two examples.
    """

    count: int = 0
    path: str = ""  # where solved examples come from; empty: the other questions of the task's own file
    template: str = "{question}"
    description: str = ""
    join: str = " "
    between: str = "\n\n"

    def __post_init__(self):
        check_range(self, 0, float("inf"), "count")

    def question(self, item: Item) -> str:
        try:
            return self.template.format_map(item.values)
        except KeyError as error:
            item.get(str(error.args[0]))
            raise
        except (ValueError, IndexError, AttributeError) as error:
            check(False, f"template={self.template!r}: {error}; write fields in braces, as in '{{question}}'")
            raise

    def contexts(self, asked: Sequence[Item], answer, seed: int) -> list[str]:
        """Write what stands before each answer; `answer` gives a solved example's."""
        pool = items(self.path) if self.path else list(asked)
        own = not self.path
        check(
            self.count <= len(pool) - own,
            f"count={self.count} solved examples are more than the {len(pool) - own} that there are",
        )
        found = []
        for number, item in enumerate(asked):
            rng = random.Random(f"{seed} {number}")
            others = [i for i in range(len(pool)) if not (own and i == number)] if self.count else []
            shown = [pool[i] for i in rng.sample(others, self.count)]
            parts = [self.question(one) + self.join + answer(one) for one in shown]
            parts = [self.description] * bool(self.description) + [*parts, self.question(item)]
            found.append(self.between.join(parts))
        return found


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Which of some options is likeliest to follow: JSON lines with a question, "choices" and "answer", an index.

    `accuracy` compares summed log-likelihoods, `accuracy_norm` those per character, `accuracy_bytes` per UTF-8 byte (as
    the evaluation harness), and `accuracy_mutual` how much the question raises each (Brown et al. 2020): its
    unconditional likelihood, after `unconditional`, taken off.
    """

    path: str
    shots: Shots = field(default_factory=Shots)
    unconditional: str = "Answer:"

    def measure(self, subject: Subject) -> Figures:
        asked = items(self.path)
        options = [item.texts("choices") for item in asked]
        for item, mine in zip(asked, options):
            check(all(map(str.strip, mine)), f"{item.where}: an empty choice among {mine}: it would be likelier than any text")
        right = [self.index(item, len(mine)) for item, mine in zip(asked, options)]
        contexts = self.shots.contexts(asked, lambda one: one.texts("choices")[self.index(one, None)], subject.seed)
        join = self.shots.join
        pairs = [given(subject, c, join + option) for c, mine in zip(contexts, options) for option in mine]
        pairs += [given(subject, self.unconditional, join + option) for mine in options for option in mine]
        sums = np.array([one.logprobs.sum(dtype=float) for one in subject.score("options", pairs)])
        conditional, alone = np.split(sums, 2)
        flat = [join + option for mine in options for option in mine]
        lengths = {"": 1.0, "_norm": np.array([len(o) - len(join) for o in flat]),
                   "_bytes": np.array([len(o[len(join):].encode()) for o in flat])}  # fmt: skip
        scores = {f"accuracy{name}": conditional / np.maximum(size, 1) for name, size in lengths.items()}
        scores["accuracy_mutual"] = conditional - alone
        cuts = np.cumsum([len(mine) for mine in options])[:-1]
        return {name: hits([part.argmax() for part in np.split(values, cuts)], right) for name, values in scores.items()}

    @staticmethod
    def index(item: Item, count: int | None) -> int:
        found, count = item.get("answer"), len(item.texts("choices")) if count is None else count
        right = isinstance(found, int) and not isinstance(found, bool) and 0 <= found < count
        check(right, f"{item.where}: 'answer' must be the number of one of {count} choices, from 0, not {found!r}")
        return found


def hits(chosen: Sequence[int], right: Sequence[int]) -> Figure:
    return proportion(int(sum(int(a) == int(b) for a, b in zip(chosen, right))), len(right))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the model writes, against references: JSON lines with a question and "answers" (or one, "answer").

    Decoding is greedy, up to `new` tokens or the first of the `stop` strings. `measure_by` "answer" gives exact match
    and F1 by SQuAD's rules, "text" BLEU, chrF and ROUGE.
    """

    path: str
    shots: Shots = field(default_factory=Shots)
    new: int = 64
    stop: tuple[str, ...] = ("\n",)
    measure_by: Literal["answer", "text"] = "answer"

    def __post_init__(self):
        check_choices(self)
        check_range(self, 1, float("inf"), "new")

    def measure(self, subject: Subject) -> Figures:
        asked = items(self.path)
        golds = [one.texts("answers" if "answers" in one.values else "answer") for one in asked]
        first = {id(one): gold[0] for one, gold in zip(asked, golds)}

        def solved(one: Item) -> str:
            return first.get(id(one)) or one.texts("answers" if "answers" in one.values else "answer")[0]

        written = write(subject, self.shots.contexts(asked, solved, subject.seed), self.new, self.stop)
        written = [text.strip() for text in written]
        if self.measure_by == "answer":
            return answers(written, golds, SQUAD)
        return {**bleu(written, golds)[0], **chrf(written, golds)[0], **rouge(written, golds), **exact_match(written, golds)}


def write(subject: Subject, prompts: Sequence[str], new: int, stop: Sequence[str] = (), sampling: Sampling | None = None):
    """Continue (or answer) prompts greedily, or as `sampling` says; give the texts in order.

    A prompt that leaves no room for `new` tokens loses its beginning.
    """
    writer = subject.writer
    ask = Request(new=new, sampling=sampling or Sampling(strategy="greedy"), stop=tuple(stop), seed=subject.seed)
    encoded, limit = writer.encode(prompts), writer.steps.limit
    if limit is not None:
        check(new < limit, f"new={new} tokens leave nothing of the model's context of {limit} to a prompt")
        encoded = [Prompt(one.tokens[-(limit - new) :], one.source) for one in encoded]
    for one in encoded:
        fits(writer.steps, one, new)
    report, found = subject.progress("answers", len(prompts)), [""] * len(prompts)
    for i, rows in texts_of(writer, ask, encoded, occurrences(encoded)):
        found[i] = to_sample(subject.tokenizer, prompts[i], *rows[0], ask.stop).text
        report(1)
    return found
