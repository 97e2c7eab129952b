"""HTML pages from the templates of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a template to one self-contained page; all texts are escaped, whoever wrote them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
