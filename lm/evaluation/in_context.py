"""In-context learning: k-shot prompts, multiple choice by log-likelihood, generated answers against references."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lm.data.rows.prompts import Prompt
from lm.data.types import Example
from lm.decode.generate import decode_batches, occurrences, to_sample
from lm.decode.prefill import fits
from lm.decode.strategies import GreedySearch, Strategy
from lm.decode.writer import Request
from lm.errors import check, check_choices, check_range
from lm.evaluation.files import read_examples, strings
from lm.evaluation.metrics.generation import bleu, chrf, exact_match, rouge
from lm.evaluation.metrics.qa import SQUAD, answers
from lm.evaluation.metrics.statistics import Figures, proportion
from lm.evaluation.perplexity import given
from lm.evaluation.subject import Subject

GREEDY = GreedySearch()


@dataclass(frozen=True, kw_only=True)
class Shots:
    """K-shot prompt: a description, `count` solved examples drawn per question by the seed, then the question.

    `template`: the question with an example's fields in braces. `join` precedes an answer, `between` separates examples.
    """

    count: int = 0
    path: str = ""  # file of solved examples; empty: the other questions of the task's own file
    template: str = "{question}"
    description: str = ""
    join: str = " "
    between: str = "\n\n"

    def __post_init__(self):
        check_range(self, 0, float("inf"), "count")

    def question(self, example: Example) -> str:
        try:
            return self.template.format_map(example.values)
        except KeyError as error:
            example.get(str(error.args[0]))  # raises with file and line
            raise
        except (ValueError, IndexError, AttributeError) as error:
            check(False, f"template={self.template!r}: {error}; write fields in braces, as in '{{question}}'")
            raise

    def contexts(self, questions: Sequence[Example], answer: Callable[[Example], str], seed: int) -> list[str]:
        """Return the prompt of each question; `answer` is a solved example's text."""
        pool = read_examples(self.path) if self.path else list(questions)
        own = not self.path
        check(
            self.count <= len(pool) - own,
            f"count={self.count} solved examples are more than the {len(pool) - own} available",
        )
        contexts = []
        for number, question in enumerate(questions):
            # Each question has a generator of its own: its prompt does not depend on how many others stand before it.
            rng = random.Random(f"{seed} {number}")
            others = [i for i in range(len(pool)) if not (own and i == number)] if self.count else []
            shown = [pool[i] for i in rng.sample(others, self.count)]
            parts = [self.question(example) + self.join + answer(example) for example in shown]
            parts = [self.description] * bool(self.description) + [*parts, self.question(question)]
            contexts.append(self.between.join(parts))
        return contexts


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Multiple choice by log-likelihood: {"question", "choices": [...], "answer": index}.

    `accuracy` ranks by summed log-likelihood, `accuracy_norm` per character, `accuracy_bytes` per UTF-8 byte (as
    lm-evaluation-harness), and `accuracy_mutual` by the gain over the unconditional log-likelihood (Brown et al. 2020), that
    of the choice after the text `unconditional`.
    """

    path: str
    shots: Shots = field(default_factory=Shots)
    unconditional: str = "Answer:"

    def measure(self, subject: Subject) -> Figures:
        questions = read_examples(self.path)
        options = [strings(question, "choices") for question in questions]
        for question, choices in zip(questions, options):
            right = all(map(str.strip, choices))
            check(right, f"{question.where}: an empty choice among {choices}: it would be likelier than any text")
        gold = [self.index(question, len(choices)) for question, choices in zip(questions, options)]
        contexts = self.shots.contexts(questions, self.solution, subject.seed)
        join = self.shots.join
        pairs = [given(subject, c, join + option) for c, choices in zip(contexts, options) for option in choices]
        # In the same call: one set of batches, sorted by length.
        pairs += [given(subject, self.unconditional, join + option) for choices in options for option in choices]
        sums = np.array([score.logprobs.sum(dtype=float) for score in subject.score("options", pairs)])
        conditional, alone = np.split(sums, 2)
        # Lengths are those of the choice alone: the border before it is the prompt's, equal for all.
        flat = [join + option for choices in options for option in choices]
        lengths = {"": np.ones(()), "_norm": np.array([len(o) - len(join) for o in flat]),
                   "_bytes": np.array([len(o[len(join):].encode()) for o in flat])}  # fmt: skip
        scores = {f"accuracy{name}": conditional / np.maximum(size, 1) for name, size in lengths.items()}
        scores["accuracy_mutual"] = conditional - alone
        # Questions may have different numbers of choices.
        cuts = np.cumsum([len(choices) for choices in options])[:-1]
        chosen = {name: [part.argmax() for part in np.split(values, cuts)] for name, values in scores.items()}
        return {name: proportion(sum(map(operator.eq, guesses, gold)), len(gold)) for name, guesses in chosen.items()}

    def solution(self, example: Example) -> str:
        choices = strings(example, "choices")
        return choices[self.index(example, len(choices))]

    @staticmethod
    def index(example: Example, count: int) -> int:
        index = example.get("answer", object)
        right = type(index) is int and 0 <= index < count
        check(right, f"{example.where}: 'answer' must be the index of one of {count} choices, from 0, not {index!r}")
        return index


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Generated answers against references: {"question", "answers": [...]} (or "answer").

    Greedy decoding up to `new` tokens or the first of the `stop` strings. `measure_by` "answer": exact match and F1 by
    SQuAD's rules; "text": BLEU, chrF and ROUGE.
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
        questions = read_examples(self.path)
        golds = [self.references(question) for question in questions]
        contexts = self.shots.contexts(questions, lambda example: self.references(example)[0], subject.seed)
        written = [text.strip() for text in write(subject, contexts, self.new, self.stop)]
        if self.measure_by == "answer":
            return answers(written, golds, SQUAD)
        return {**bleu(written, golds)[0], **chrf(written, golds)[0], **rouge(written, golds), **exact_match(written, golds)}

    @staticmethod
    def references(example: Example) -> list[str]:
        return strings(example, "answers" if "answers" in example.values else "answer")


def write(
    subject: Subject, prompts: Sequence[str], new: int, stop: Sequence[str] = (), strategy: Strategy = GREEDY
) -> list[str]:
    """Continue (or answer) prompts; return the texts in order.

    A prompt that leaves no capacity for `new` tokens is truncated from its start.
    """
    writer = subject.writer
    ask = Request(new=new, stop=tuple(stop), seed=subject.seed)
    encoded, limit = writer.encode(prompts), writer.steps.limit
    if limit is not None:
        check(new < limit, f"new={new} tokens fill the model's context of {limit}: none remain for a prompt")
        encoded = [Prompt(prompt.tokens[-(limit - new) :], prompt.source) for prompt in encoded]
    for prompt in encoded:
        fits(writer.steps, prompt, new)
    report, texts = subject.progress("answers", len(prompts)), [""] * len(prompts)
    for i, rows in decode_batches(writer, strategy, ask, encoded, occurrences(encoded)):
        texts[i] = to_sample(subject.tokenizer, prompts[i], *rows[0], ask.stop).text
        report(1)
    return texts
