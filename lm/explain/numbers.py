"""The values of --layers and --attribute."""

from lm.errors import check


def numbers(text: str, low: int, name: str) -> list[int] | None:
    """Read 'auto', 'all' (None for either) or numbers from `low` on."""
    if text in ("auto", "all"):
        return None
    parts = text.split(",")
    check(all(part.strip().isdecimal() and len(part) < 10 and int(part) >= low for part in parts),
          f"--{name}={text}: give auto, all, or numbers from {low} on, joined by commas")  # fmt: skip
    return [int(part) for part in parts]
