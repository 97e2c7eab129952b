"""HTML pages: `render` fills a template that stands beside its caller; all pages share `frame.html` and `style.css`.

A template extends the frame and fills its blocks (`title`, `style`, `main`, `script`); it inherits the colours of light and
dark, the type, cards, tables that scroll in their own box, and controls. A page is one file that fetches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def style() -> str:
    """Return the style sheet of all pages, for a page that is not rendered by `render`."""
    return (HERE / "style.css").read_text(encoding="utf-8")


def render(template: Path, values: Mapping[str, Any]) -> str:
    """Render a template to one self-contained page; all texts are escaped, whoever wrote them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
