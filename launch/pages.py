"""Tables that commands write into pages, between two HTML comments."""

from collections.abc import Sequence
from pathlib import Path

from lm.errors import check
from lm.outputs import replace_file


def write_between(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace the lines between `<!-- NAME -->` and `<!-- /NAME -->`; raises UserError for a page without both comments."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(first)
    _, closed, after = rest.partition(last)
    check(bool(found and closed), f"{page} has no {first} ... {last}")
    replace_file(page, "\n".join([before + first, *lines, last + after]))


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Format a table in Markdown, a line a row."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows)]
