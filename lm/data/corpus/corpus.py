"""The training data as a config value (`Data`), and prepared (`Corpus`)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm.data.corpus.split import parse_fold
from lm.data.demo import Documentation
from lm.data.text.words import Words
from lm.data.tokenizer.tokenizer import BytePair, Tokenizer, Vocabulary
from lm.data.types import Augmentation, ExampleSet, ExampleSource, TextSource, labelled
from lm.errors import UserError, check


@dataclass(frozen=True, kw_only=True)
class Data:
    """The training data of a run.

    `validation` is a source of its own, or the share of documents held out by a hash of their content (of a corpus
    with a single document: the last share of its characters). `packing`: 'documents' keeps attention and positions
    within a document, 'windows' runs over their borders. `words` marks the words of text without spaces.
    Sources of `lm.data.labelled` hold labelled examples, for fine-tuning; they stay text until a row is made. `fold` "2/5"
    holds out the second of five equal folds (`lm.data.corpus.split`) in place of `validation`, which is then not read.
    `augment` adds changed copies of the training examples (`lm.data.corpus.augment`). `half` evaluates the first or second half
    of the held-out data: a choice made on one, such as a learning rate, is judged on the other.
    """

    source: TextSource | ExampleSource = dataclasses.field(default_factory=Documentation)
    tokenizer: Vocabulary = dataclasses.field(default_factory=BytePair)
    validation: float | TextSource | ExampleSource = 0.05
    packing: Literal["documents", "windows"] = "documents"
    words: Words | None = None
    augment: tuple[Augmentation, ...] = ()
    fold: str = ""
    half: Literal["", "first", "second"] = ""

    def __post_init__(self):
        if isinstance(self.validation, int | float) and not 0 <= self.validation < 1:
            raise UserError(f"validation={self.validation}: give a share from 0 to below 1, or a source")
        if self.packing not in ("documents", "windows"):
            raise UserError(f"packing={self.packing!r}: use 'documents' or 'windows'")
        check(self.half in ("", "first", "second"), f"half={self.half!r}: use 'first' or 'second', or leave it empty")
        if not isinstance(self.augment, tuple) or not all(isinstance(one, Augmentation) for one in self.augment):
            raise UserError(f"augment={self.augment!r}: give a tuple of values of lm.data.corpus.augment, such as (Edits(),)")
        if self.fold and parse_fold(self.fold) and not labelled(self.source):
            raise UserError(f"fold={self.fold} is for labelled examples; of running text hold out a share: validation=0.05")
        if self.augment and not labelled(self.source):
            raise UserError("augment is for labelled examples; the source is running text: leave it out")


@dataclass(frozen=True)
class Corpus:
    """Prepared tokens: `train` pairs each stream with its share of rows; `bytes`, `sha256` are of the whole text."""

    tokenizer: Tokenizer
    train: tuple[tuple[float, Any], ...]  # Tokens, or an ExampleSet each
    validation: Any
    name: str
    bytes: int
    sha256: str
    folder: Path

    def halved(self, half: str) -> Corpus:
        """Keep one half of the held-out documents or examples; "": all of them."""
        if not half:
            return self
        validation = self.validation.half(half == "second")
        check(len(validation) > 1, f"data.half={half}: the held-out data of {self.name} are too few to be halved")
        return dataclasses.replace(self, validation=validation)

    @property
    def holds_out(self) -> bool:
        """Whether anything can be evaluated: an example, or a token behind another."""
        return len(self.validation) > (0 if isinstance(self.validation, ExampleSet) else 1)

    def identity(self) -> dict[str, str]:
        """Hashes that must be equal for a run to resume and its figures to be reproduced."""
        return {"corpus": self.sha256, "tokenizer": self.tokenizer.sha256()}

    def check_identity(self, notes: dict[str, Any], workdir: Path, otherwise: str) -> None:
        """Raise UserError unless a checkpoint's notes name these data; an imported run names none."""
        for name, value in self.identity().items():
            line = f"the {name} is not the one that {workdir} was trained with; bring it back or {otherwise}"
            check(notes[name] in (value, ""), line)
