"""Terminal output: a run's progress bar (plain lines where there is no terminal), tables, aligned columns."""

import contextlib
import os
import statistics
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


class Pace:
    """Seconds per step: the median over the last intervals between two training logs.

    The interval before the first log (compilation) and intervals with an evaluation are left out; the median ignores the rare
    slow one (a checkpoint, a hiccup of the machine).
    """

    def __init__(self, stretches: int = 20):
        self.recent: deque[float] = deque(maxlen=stretches)
        self.mark: tuple[int, float] | None = None

    def train(self, step: int, now: float) -> None:
        """Add the interval since the last mark and start the next."""
        if self.mark and step > self.mark[0]:
            self.recent.append((now - self.mark[1]) / (step - self.mark[0]))
        self.mark = (step, now)

    def pause(self, step: int, now: float) -> None:
        """Start the next interval here, and discard the last: it was not plain training."""
        self.mark = (step, now)

    def eta(self, steps: int) -> float | None:
        """Return the expected seconds of `steps` more; None before the first interval."""
        return steps * statistics.median(self.recent) if self.recent else None


class Console:
    """The screen of one run.

    It shows train/loss, train/lr, train/tokens_per_second and train/mfu (on a CPU train/matmul_share), a fraction. Metrics
    without the prefix `train/` are an evaluation and get a line that stays. Log a step's training values before its evaluation:
    the time between the two is then left out of the ETA.
    """

    def __init__(self, steps: int, start: int = 0):
        self.steps = steps
        self.pace = Pace()
        self.bar = _progress() if _is_terminal() else None
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task("", total=steps, completed=start, status="starting", eta="")

    def log(self, step: int, values: dict[str, float]) -> None:
        """Show the values of one step."""
        train = {name: value for name, value in values.items() if name.startswith("train/")}
        measured = {name: value for name, value in values.items() if name not in train}
        (self.pace.pause if measured else self.pace.train)(step, time.monotonic())
        if train:
            self._show(step, train)
        if measured:
            pairs = (f"{name.removeprefix('eval/')} {number(value)}" for name, value in measured.items())
            self.say("  ".join([self._step(step), *pairs]))

    def _show(self, step: int, values: dict[str, float]) -> None:
        seconds = self.pace.eta(max(self.steps - step, 0))
        eta = "" if seconds is None else f"eta {duration(seconds)}"
        if self.bar:
            words = status({name: value for name, value in values.items() if name != "train/lr"})  # 80 columns
            self.bar.update(self.task, completed=step, status=" ".join(" ".join(words).split()), eta=eta)
        self.say("  ".join([self._step(step), *status(values), "" if self.bar else eta]).rstrip())  # stays above the bar

    def _step(self, step: int) -> str:
        return f"step {step:>{len(str(self.steps))}}/{self.steps}"

    def say(self, text: str) -> None:
        """Print lines that stay, with control characters made visible."""
        text = printable(text)
        if self.bar:
            self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Stop the bar and restore the cursor."""
        if self.bar:
            self.bar.stop()


def _is_terminal() -> bool:
    # Not rich's own test: FORCE_COLOR and the like would make it write control codes into files.
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _progress():
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[status]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}", markup=False),
        expand=True,
        refresh_per_second=4,
    )


def progress_bar(what: str, count: int) -> Callable[[int], None]:
    """Start a progress bar on a terminal; return a callback that advances it by n of `count` items."""
    if not _is_terminal() or count < 2:
        return lambda done: None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, transient=True, refresh_per_second=4)
    task, remaining = bar.add_task(what, total=count), count
    bar.start()

    def advance(done: int) -> None:
        nonlocal remaining
        remaining -= done
        bar.advance(task, done)
        if remaining <= 0:
            bar.stop()

    return advance


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show that something of unknown length goes on: a spinner with its time, on a terminal."""
    if not _is_terminal():
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), transient=True) as bar:
        bar.add_task(text)
        yield


def status(values: dict[str, float]) -> list[str]:
    """Format the known training metrics, each at a fixed width."""
    words = {
        "train/loss": lambda v: f"loss {v:6.3f}",
        "train/lr": lambda v: f"lr {v:.1e}".replace("e-0", "e-").replace("e+0", "e+"),
        "train/tokens_per_second": lambda v: f"{v:>9,.0f} tok/s",
        "train/mfu": lambda v: f"mfu {100 * v:2.0f}%",
        "train/matmul_share": lambda v: f"{100 * v:2.0f}% of matmul",
    }
    return [word(values[name]) for name, word in words.items() if name in values]


def number(value: float) -> str:
    """Format a metric with four digits: 0.9123, 24.13, 15,012."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Format seconds as 1:23, 2:03:04 or 3d 4h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24}h"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def printable(text: str) -> str:
    """Escape control characters and characters that stdout cannot encode: sampled text may hold any."""
    # Escape sequences in sampled text could rewrite the screen or the terminal's title.
    shown = "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Format rows as aligned columns; columns of numbers are right-aligned, floats have four digits."""
    cells = [[number(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    right = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, cells)])


WIDTH = 112  # columns of a line


def display_width(text: str) -> int:
    """Count terminal columns: two for a Chinese character, none for a combining mark."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def visible(piece: str) -> str:
    """Format a vocabulary piece to be visible: stripped of spaces; spaces alone and line ends as symbols."""
    text = piece.strip(" ") or "\u2423" * min(4, len(piece))
    return text.replace("\n", "\u21b5").replace("\t", "\u2192").replace("\r", "\u2190") or "\u00b7"


def side_by_side(
    tokenizer: Any,
    original: np.ndarray,
    fed: np.ndarray,
    positions: np.ndarray,
    guesses: np.ndarray | None,
    mask: int,
    starts: np.ndarray,
) -> str:
    """Align a row, int [T], with its corrupted input at `positions`, int [P], and with the predictions there, int [P].

    `fed`: the corrupted row, int [T]; `mask`: the id shown as ____; `starts`, bool [T]: first pieces of words.
    """
    text = [visible(piece) for piece in tokenizer.pieces(original)]
    read, guess = [""] * len(text), [""] * len(text)
    inputs = [visible(piece) for piece in tokenizer.pieces(fed[positions])]
    predicted = [visible(piece) for piece in tokenizer.pieces(original[positions] if guesses is None else guesses)]
    for i, position in enumerate(positions.tolist()):
        gap = "_" * min(4, display_width(text[position]))
        read[position] = gap if fed[position] == mask else "." if fed[position] == original[position] else inputs[i]
        guess[position] = "=" if guesses is not None and guesses[i] == original[position] else predicted[i]
    lines = {"text": text, "read": read} | ({} if guesses is None else {"guess": guess})
    return columns(lines, starts)


def columns(lines: Mapping[str, Sequence[str]], starts: Sequence[bool] | np.ndarray | None = None, width: int = WIDTH) -> str:
    """Align lines of cells, title -> cells, one above the other, wrapped at `width` columns.

    All lines have equally many cells. A cell that starts a word (`starts`; None: all) is preceded by a space. Empty lines are
    left out.
    """
    cells = list(zip(*lines.values(), strict=True))
    starts = [True] * len(cells) if starts is None else starts
    widths = [max(map(display_width, cell)) for cell in cells]
    margin = max(map(display_width, lines), default=0)
    blocks: list[list[list[str]]] = []
    block: list[list[str]] = []
    used = margin + 1
    for i, cell in enumerate(cells):
        gap = " " if starts[i] else ""
        if block and used + len(gap) + widths[i] > width:
            blocks.append(block)
            block, used = [], margin + 1
        used += len(gap) + widths[i]
        block.append([gap + text + " " * (widths[i] - display_width(text)) for text in cell])
    blocks.append(block)
    return "\n".join(text for block in blocks for text in _block(list(lines), block, margin))


def _block(titles: list[str], block: list[list[str]], margin: int) -> list[str]:
    rows = ["".join(row).rstrip() for row in zip(*block)]
    return [f"{t}{' ' * (margin - display_width(t))} {row}".rstrip() for t, row in zip(titles, rows) if row]
