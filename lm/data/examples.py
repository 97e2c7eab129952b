"""Labelled examples for fine-tuning: small config values, each opened as an indexed reader of dictionaries.

An example keeps its raw text: objectives turn it into tokens, so that labels of words and spans of characters survive
every tokenizer. Sets that people label are small: they are read whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lm.errors import UserError, check, check_choices, check_range

Task = Literal["topic", "marks", "questions", "next", "alike", "summary"]
# Names of values that are no text of an example: its number, its labels (ner, pos, chunks: CoNLL-2003 as TFDS has it).
BESIDE = re.compile(r"(?i:(?:.+_)?(?:id|idx|index|guid|uuid|labels?|tags?)|ner|pos|chunks)|.+ID")


class Example(NamedTuple):
    """Values by name (texts, numbers, lists of either) and where they were read, for errors: FILE:LINE.

    Examples of one `group` are held out together, or not ("": those with the same values). `part` is the number of the
    source in a mixture.
    """

    values: dict[str, Any]
    where: str
    group: str = ""
    part: int = 0

    def get(self, name: str, kind: type | tuple[type, ...] = str) -> Any:
        """Return a value of that kind; raise UserError naming file, line and what there is."""
        if name not in self.values:
            raise UserError(f"{self.where}: no {name!r}; it has {', '.join(self.values) or 'nothing'}")
        value = self.values[name]
        if not isinstance(value, kind):
            wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{self.where}: {name!r} is {type(value).__name__}, not {wanted}")
        return value


@dataclass(frozen=True)
class Read:
    """An opened source: its examples in order."""

    name: str
    examples: tuple[Example, ...]
    signed: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]

    def signature(self) -> str:
        return self.signed


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One example a row of .csv, .tsv and .tab files, a line of .jsonl files; every column is a value.

    `columns` names the columns of tables whose first row does not. `quoted=False` takes quotes as ordinary characters.
    """

    path: str
    columns: tuple[str, ...] = ()
    quoted: bool = True

    def open(self) -> Read:
        from lm.data.example_files import read_labelled

        return read_labelled(self.path, tuple(self.columns), self.quoted)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Sentences of tagged words as CoNLL writes them: one word a line, blank lines between; "words" and "tags".

    Columns are parted by tabs where the first line has one, else by spaces (`separator`: by that), and counted from 0, or
    from the end below 0. Left out are -DOCSTART-, lines that begin with "# " (with `comments`), and what CoNLL-U has beside
    words. `spaced=False`: no spaces between the words (Chinese).
    """

    path: str
    word: int = 0
    tag: int = -1
    separator: str = ""
    spaced: bool = True
    comments: bool = False

    def open(self) -> Read:
        from lm.data.example_files import read_columns

        return read_columns(self)


@dataclass(frozen=True, kw_only=True)
class Entities:
    """Named entities in words with tags (`lm.data.sources.Tagged`), a character a word: "words" and "tags" in BIO.

    `kinds` pairs a tag of the corpus with the name of the entity.
    """

    path: str
    kinds: tuple[tuple[str, str], ...] = (("nr", "PER"), ("ns", "LOC"), ("nt", "ORG"))

    def open(self) -> Read:
        from lm.data.example_files import read_entities

        return read_entities(self.path, dict(self.kinds))


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions about paragraphs: SQuAD's JSON (1.1, 2.0; DRCD), CMRC's own form too.

    Values: "id", "question", "context", "answers" (texts, none where the paragraph does not say) and "starts", the
    character of the paragraph where each begins.
    """

    path: str

    def open(self) -> Read:
        from lm.data.questions import read_questions

        return read_questions(self.path)


@dataclass(frozen=True, kw_only=True)
class Cloze:
    """Questions made out of running text (`lm.data.cloze`): sentences with a gap, whose words stand once more near by.

    `path`: what `text=` takes for running text. Paragraphs of up to `limit` characters are asked about; `gap` stands for
    what is asked. Values as those of Questions. To learn answering from, before questions that people wrote.
    """

    path: str
    limit: int = 720
    gap: str = "what"

    def __post_init__(self):
        check_range(self, 1, float("inf"), "limit")
        check(bool(self.gap.strip()), "gap is empty: name a word that stands for what is asked")

    def open(self) -> Read:
        from lm.data.cloze import read_cloze

        return read_cloze(self.path, self.limit, self.gap)


@dataclass(frozen=True, kw_only=True)
class TfdsExamples:
    """Whole records of a TensorFlow Datasets set (`lm.data.sources.Tfds`), class numbers as their names.

    `field` is one that must be there. SQuAD's answers become "answers" and "starts". Of texts that a set has in several
    languages (XNLI) that in `language` is read.
    """

    name: str
    split: str = "train"
    field: str = "text"
    language: str = ""
    data_dir: str | None = None

    def open(self) -> Read:
        from lm.data.example_files import read_tfds

        return read_tfds(self)


@dataclass(frozen=True, kw_only=True)
class Documented:
    """Examples made of the installed interpreter's documentation, for trying fine-tuning out; nothing is downloaded.

    "topic": a paragraph and its package; "marks": words and the mark that follows each; "questions": what a function is
    for, a span of its module's text; "next": the text that belongs to a name, of four; "alike": two sentences and
    whether they are of one text; "summary": the paragraphs of a docstring and its first line.
    """

    task: Task = "topic"

    def __post_init__(self):
        check_choices(self)

    def open(self) -> Read:
        from lm.data.documented import read_documented

        return read_documented(self.task)


ExampleSource = Labelled | Columns | Entities | Questions | Cloze | TfdsExamples | Documented


def labelled(source: Any) -> bool:
    """Tell a source of labelled examples, or a mixture of such alone, from one of running text."""
    return all(isinstance(one, ExampleSource) for one in getattr(source, "sources", (source,)))


def examples_from(
    text: str | None, task: Task = "topic", data: str | None = None, field: str = "text", language: str = ""
) -> ExampleSource:
    """Turn the config arguments `text=PATH` and `data=tfds:NAME[:SPLIT]` into a source: a file by its name, a set of
    TensorFlow Datasets with `field` and `language` of `TfdsExamples`. Neither gives Documented examples of a task.
    """
    check(not (text and data), f"text={text} and data={data} both name examples: give one of them")
    if data:
        return _published(data, field, language)
    if text is None:
        return Documented(task=task)
    ending = text.lower().rpartition(".")[2]
    if ending in ("conll", "bio", "iob", "iob2") or (task == "marks" and ending in ("txt", "tsv", "tab")):
        return Columns(path=text)
    if ending == "conllu":  # FORM and UPOS
        return Columns(path=text, word=1, tag=3)
    if ending in ("csv", "tsv", "tab", "jsonl", "ndjson"):
        return Labelled(path=text)
    if ending == "json":
        return Questions(path=text)
    raise UserError(
        f"text={text}: labelled examples come in .csv, .tsv, .jsonl, .conll, .conllu, (questions) .json or (words with tags) "
        ".txt files"
    )


def held_out_from(
    held_out: str | None, task: Task = "topic", field: str = "text", language: str = "", share: float = 0.1
) -> ExampleSource | float:
    """Turn the config argument `held_out=PATH|tfds:NAME:SPLIT` into a source; without it a share of the training examples."""
    if held_out is None:
        return share
    text, data = (None, held_out) if held_out.startswith("tfds:") else (held_out, None)
    return examples_from(text, task, data, field, language)


def _published(data: str, field: str, language: str) -> TfdsExamples:
    """Read tfds:NAME[:VERSION][:SPLIT]; a split may be train[:80%], and only a version begins with a digit."""
    found = re.fullmatch(r"tfds:([^:\[\]]+(?::\d[\d.*]*)?)(?::([^\d:].*))?", data)
    if found is None:
        raise UserError(f"data={data}: write data=tfds:NAME or tfds:NAME:SPLIT, or text=PATH for files")
    return TfdsExamples(name=found[1], split=found[2] or "train", field=field, language=language)


class ExampleSet:
    """One side of a split; where code asks for running text, it says that there is none."""

    def __init__(self, name: str, examples: list[Example]):
        self.name, self.examples = name, examples
        self.documents = len(examples)
        self.raw_bytes = sum(len(text.encode()) for example in examples for text in strings(example.values))

    def __len__(self) -> int:
        return len(self.examples)

    def of(self, part: int) -> ExampleSet:
        """Give the examples of one source of a mixture."""
        return ExampleSet(f"{self.name}, source {part + 1}", [example for example in self.examples if example.part == part])

    @property
    def separator(self):
        raise UserError(
            f"{self.name} holds labelled examples, which are no running text: take an objective that reads them "
            "(classify, tag, extract, choice, rank, text2text), or another source"
        )

    tokens = starts = marks = separator


def told(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out numbers and labels of an example, by their names: the rest is what it tells."""
    return {name: value for name, value in values.items() if not BESIDE.fullmatch(name)}


def strings(values: dict[str, Any]) -> list[str]:
    """List the texts of an example, those in lists too."""
    found = []
    for value in values.values():
        found += [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
    return found


def check_text(text: str, where: str, name: str) -> None:
    """Refuse half a surrogate pair, which JSON can write and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        check(False, f"{where}: {name!r} has half a surrogate pair at character {error.start}; mend the escape")
