"""Sentences as pairs: which are taken, what is left of them, and where the border between the fields is."""

from lm.data.sources import pairs_from
from lm.data.text.files import JsonLines, Text
from lm.data.text.restored import Restored, bare, prose_sentences
from lm.data.text.tables import Table

TEXT = """Return the turtle's x coordinate, if
any.  It is (see above) a float.

def f(x) -> y. >>> f(1)
No.
This sentence names tempfile.tempdir as str! Return the turtle's x coordinate, if any.
"""


def test_sentences_of_prose():
    """Wrapped lines are joined; code, headings and what is shorter than four words are left out."""
    assert prose_sentences(TEXT) == [
        "Return the turtle's x coordinate, if any.",
        "It is (see above) a float.",
        "This sentence names tempfile.tempdir as str!",
        "Return the turtle's x coordinate, if any.",
    ]


def test_documents_are_pairs(tmp_path):
    """Each sentence once, the bare one first."""
    (tmp_path / "text.txt").write_text(TEXT)
    reader = Restored(source=Text(path=str(tmp_path / "text.txt"))).open()
    pieces = [reader[i] for i in range(len(reader))]
    fields = [(piece.text[: piece.borders[0]], piece.text[piece.borders[0] :]) for piece in pieces]
    assert fields == [
        ("return the turtle s x coordinate if any", "Return the turtle's x coordinate, if any."),
        ("it is see above a float", "It is (see above) a float."),
        ("this sentence names tempfile tempdir as str", "This sentence names tempfile.tempdir as str!"),
    ]
    assert all(bare(target) == source for source, target in fields)
    assert "text.txt" in reader.signature()


def test_what_a_config_s_argument_means():
    assert pairs_from("a.jsonl") == JsonLines(path="a.jsonl", fields=("source", "target"))
    assert pairs_from("a.tsv") == Table(path="a.tsv", fields=("source", "target"))
    assert pairs_from("a.txt") == Restored(source=Text(path="a.txt"))
    assert pairs_from() == Restored()
