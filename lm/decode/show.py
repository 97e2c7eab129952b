"""Samples on the screen: text as it grows, never half a character; token probabilities in colour or listed; progress."""

import math
import os
import sys
import time
from collections.abc import Callable, Sequence

from lm.console import duration, printable, table
from lm.data.tokenizer.tokenizer import Tokenizer
from lm.decode.results import Filled, Sample
from lm.decode.writer import Row

BROKEN = "\ufffd"  # decoded form of bytes that are no whole character
LATE = 4  # bytes after which a broken character stays broken: UTF-8 has no longer ones


class Stream:
    """Prints a continuation as it grows: called with all new ids each time, it prints the part of their text that is final.

    Held back: bytes of an incomplete character, and the start of a possible stop string. With `shades` each token is
    coloured by its probability.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), shades: bool = False):
        self.tokenizer, self.stop, self.shades = tokenizer, stop, shades
        self.shown, self.count = "", 0  # printed text, and its number of tokens
        self.notice = ""

    def wait(self) -> None:
        """Say behind the prompt that the model compiles; the first token takes its place."""
        self.notice = " (compiling)"
        print(f"\033[2m{self.notice}\033[0m", end="", flush=True)

    def __call__(self, rows: list[Row]) -> None:
        """Print the new part of the first row."""
        if self.notice:
            print("\b" * len(self.notice) + "\033[K", end="", flush=True)
            self.notice = ""
        ids, logprobs = rows[0]
        if not self.shades:
            self.put(self.certain(self.tokenizer.decode(ids)))
            return
        # One token at a time, each in its colour; tokens that make up one character share the least probability.
        for count in range(self.count + 1, len(ids) + 1):
            certain = self.certain(self.tokenizer.decode(ids[:count]))
            if len(certain) > len(self.shown):
                self.put(certain, math.exp(float(min(logprobs[self.count : count]))))
                self.count = count

    def certain(self, text: str) -> str:
        """Cut the end of a text that the next tokens may change."""
        ends = [at for at in (text.find(s) for s in self.stop) if at >= 0]
        if ends:
            return text[: min(ends)]
        broken = len(text) - len(text.rstrip(BROKEN))
        if 0 < broken < LATE:
            text = text[:-broken]
        for size in range(min(len(text), max(map(len, self.stop), default=0)), 0, -1):
            if any(s.startswith(text[-size:]) for s in self.stop):
                return text[:-size]
        return text

    def put(self, text: str, probability: float | None = None) -> None:
        new = text[len(self.shown) :]
        if new:
            new = printable(new)
            print(new if probability is None else shaded(new, probability), end="", flush=True)
            self.shown = text

    def end(self, sample: Sample) -> None:
        """Print the text held back, and end the line."""
        self.put(sample.text, 0.0 if self.shades else None)
        print(flush=True)


def shaded(text: str, probability: float) -> str:
    """Colour a text: green from 0.5, yellow from 0.1, red below."""
    colour = 32 if probability >= 0.5 else 33 if probability >= 0.1 else 31
    return f"\033[{colour}m{text}\033[0m"


def show(samples: Sequence[Sample], tokenizer: Tokenizer, probabilities: bool = False, between: str = "") -> None:
    """Print each prompt, dimmed on a terminal, with its continuation; a line above each when there are several.

    `between`: separates the two, a line's end where one answers the other.
    """
    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")
    for i, sample in enumerate(samples):
        if len(samples) > 1:
            print(f"{dim}--- {i + 1} of {len(samples)}, log-probability {sample.logprob:.2f}{plain}")
        print(f"{dim}{printable(sample.prompt)}{plain}{between}{printable(sample.text)}", flush=True)
        if probabilities:
            print(tokens_table(sample, tokenizer), flush=True)


def tokens_table(sample: Sample, tokenizer: Tokenizer) -> str:
    """Lay out a sample's tokens with their probabilities."""
    rows = [(repr(piece), math.exp(p)) for piece, p in zip(tokenizer.pieces(sample.tokens), sample.logprobs)]
    return table(rows, ("token", "probability"))


def show_filled(samples: Sequence[Filled]) -> None:
    """Print texts whose masks were filled, and the candidates for each mask."""
    for i, sample in enumerate(samples):
        if len(samples) > 1:
            print(f"--- {i + 1} of {len(samples)}, log-probability {sample.logprob:.2f}")
        print(printable(sample.text), flush=True)
        for number, candidates in enumerate(sample.masks, 1):
            listed = ", ".join(f"{printable(c.token)} {c.probability:.3f}" for c in candidates)
            print(f"  mask {number}: {listed}", flush=True)


class FileProgress:
    """Progress through a file: a bar on a terminal, a line every ten seconds anywhere else."""

    def __init__(self, count: int, done: int, say: Callable[[str], None] = print):
        self.count, self.done, self.first, self.say = count, done, done, say
        self.tokens, self.began = 0, time.monotonic()
        self.printed, self.bar = self.began, None
        if done:
            say(f"going on behind {done:,} of {count:,} prompts")
        if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            shown = (
                TextColumn("prompts"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[rate]}"),
            )
            self.bar = Bar(*shown, TimeRemainingColumn(), expand=True, refresh_per_second=4)
            self.bar.start()
            self.task = self.bar.add_task("", total=count, completed=done, rate="")

    def add(self, tokens: int) -> None:
        """Count one more prompt and its new tokens."""
        self.done, self.tokens, now = self.done + 1, self.tokens + tokens, time.monotonic()
        seconds = max(now - self.began, 1e-9)
        rate = f"{self.tokens / seconds:,.0f} tok/s"
        if self.bar:
            self.bar.update(self.task, completed=self.done, rate=rate)
        elif now - self.printed > 10:
            remaining = (self.count - self.done) * seconds / (self.done - self.first)
            self.say(f"prompts {self.done:,}/{self.count:,}  {rate}  eta {duration(remaining)}")
            self.printed = now

    def close(self) -> None:
        if self.bar:
            self.bar.stop()
