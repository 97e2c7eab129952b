"""Files of prompts: thousands of lines in batches of similar length, samples saved as they finish, resumed after a kill."""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

from lm.data.rows.prompts import Prompt
from lm.decode.generate import occurrences
from lm.decode.results import Filled, Sample, as_object
from lm.errors import UserError, check
from lm.outputs import Claim, replace_file
from lm.strict_json import dump_json, parse_json

WINDOW = 4096  # prompts in memory, sorted by length


class Job(Protocol):
    """The work on each prompt of a file (`lm.decode.modes`)."""

    def encode(self, record: Mapping[str, Any]) -> Prompt:
        """Read {"prompt"} or {"messages"}; raise UserError for one that cannot be continued."""

    def notice(self, prompt: Prompt) -> str:
        """Say what is unusual about the samples of a prompt; "" where nothing is."""

    def samples(
        self, prompts: list[tuple[str, Prompt]], numbers: list[int]
    ) -> Iterator[tuple[int, list[Sample] | list[Filled]]]:
        """Yield (index into `prompts`, its samples) in any order; `numbers`: equal prompts before each."""


class Progress(Protocol):
    """A display of the progress."""

    def add(self, tokens: int) -> None:
        """Count one more prompt and its new tokens."""

    def close(self) -> None:
        """Stop."""


def complete(
    job: Job, path: Path, output: Path, settings: Mapping[str, Any], progress: Callable[[int, int], Progress] | None = None,
    overwrite: bool = False,
) -> int:  # fmt: skip
    """Write the samples of all prompts of a file, in its order, as JSON lines with their "index"; return their number.

    Until the end they are in OUTPUT.partial, in the order in which they finished; the same command resumes from there, one
    process at a time. Raises UserError where a line is wrong, before anything is written, where OUTPUT.partial belongs to
    other `settings` or another program, where another process writes it, and where OUTPUT exists, unless `overwrite`.
    `progress` is called with the number of prompts and of those done before.
    """
    partial = output.with_name(output.name + ".partial")
    check(not partial.is_dir(), f"{partial} is a folder, and a file of this name is needed: move it, or name another --output")
    with Claim(partial, "name another --output"):
        check(overwrite or not output.exists(), f"{output} is there already; name another --output or add --overwrite")
        settings = {"prompts": hashlib.sha256(path.read_bytes()).hexdigest(), **settings}
        # All lines are encoded before the first is decoded: a mistake in the last one costs no work.
        count = 0
        notices: dict[str, None] = {}
        for _, prompt in encoded(job, path):
            count += 1
            notices[job.notice(prompt)] = None
        check(count > 0, f"{path} holds no prompts")
        for notice in filter(None, notices):
            print(notice, file=sys.stderr)
        done = resume(partial, settings)
        display = progress(count, len(done)) if progress else None
        try:
            with partial.open("a", encoding="utf-8") as file:
                work(job, path, file, done, display)
        finally:
            if display:
                display.close()
        sort(partial, output)
    return count


def work(job: Job, path: Path, file: TextIO, done: set[int], progress: Progress | None) -> None:
    """Append the samples of all prompts that are not done, those of one prompt together and sealed."""
    seen: Counter[bytes] = Counter()
    for low, window in windows(encoded(job, path)):
        numbers = occurrences([prompt for _, prompt in window], seen)
        remaining = [i for i in range(len(window)) if low + i not in done]
        for at, samples in job.samples([window[i] for i in remaining], [numbers[i] for i in remaining]):
            index = low + remaining[at]
            # The seal comes last: a kill in between leaves samples that do not count.
            lines = (dump_json({"index": index, **as_object(sample)}) for sample in samples)
            file.write("".join(f"{line}\n" for line in (*lines, dump_json({"done": index}))))
            file.flush()
            if progress:
                progress.add(sum(len(sample.tokens) for sample in samples))


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, record) of a .jsonl of {"prompt"} or {"messages"} objects, or of any other file's lines."""
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                text = line.rstrip("\n")
                if path.suffix != ".jsonl":
                    yield number, {"prompt": text}
                elif text.strip():
                    yield number, parsed(path, number, text)
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 near byte {error.start}; convert it first") from error


def parsed(path: Path, number: int, text: str) -> dict[str, Any]:
    record = parse_json(text, f"{path}, line {number}")
    good = isinstance(record, dict) and (isinstance(record.get("prompt"), str) or "messages" in record)
    check(good, f'{path}, line {number}: an object with "prompt" (text) or "messages" is needed')
    return record


def encoded(job: Job, path: Path) -> Iterator[tuple[str, Prompt]]:
    """Yield (text, prompt) of each record."""
    for number, record in records(path):
        try:
            prompt = job.encode(record)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        messages = "messages" in record
        yield json.dumps(record["messages"], ensure_ascii=False) if messages else record["prompt"], prompt


def windows(items: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Cut an iterator into lists; yield each with the index of its first item."""
    low = 0
    while window := list(islice(items, WINDOW)):
        yield low, window
        low += len(window)


def resume(partial: Path, settings: Mapping[str, Any]) -> set[int]:
    """Return the indices of finished prompts, and cut off samples without a seal; start the file where there is none."""
    if not partial.exists() or not partial.stat().st_size:
        replace_file(partial, dump_json({"settings": dict(settings)}) + "\n")
        return set()
    done, good = set(), 0
    for end, record in entries(partial):
        if not good:
            same(partial, record["settings"], settings)
        if not good or "done" in record:
            done |= {record["done"]} if good else set()
            good = end
    os.truncate(partial, good)
    return done


def entries(partial: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (offset of its end, object) of each whole line: first the settings, then samples ("index") and seals ("done").

    A kill may leave a last line without its end. Raises UserError for a file of another form.
    """
    with partial.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number > 1 and not line.endswith(b"\n"):
                return
            try:
                record = parse_json(line, "", dict)
                kind, name = (dict, "settings") if number == 1 else (int, "done" if "done" in record else "index")
                check(isinstance(record.get(name), kind), "")
            except UserError:
                raise UserError(
                    f"{partial}, line {number}: no unfinished file of lm.generate; move it, or name another --output"
                ) from None
            yield file.tell(), record


def same(partial: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError where a file was started with other settings."""
    now = json.loads(dump_json(dict(now)))
    other = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if other:
        raise UserError(
            f"{partial} was started with another {', '.join(other)}: use the same, remove the file, or name another --output"
        )


def sort(partial: Path, output: Path) -> None:
    """Copy the samples in the order of their prompts, atomically; only offsets are held in memory.

    Of a prompt with several sets, the first that was sealed counts.
    """
    sealed: dict[int, list[tuple[int, int]]] = {}  # (offset, bytes) of each sample
    waiting: dict[int, list[tuple[int, int]]] = {}
    start = 0
    for end, record in entries(partial):
        if "index" in record:
            waiting.setdefault(record["index"], []).append((start, end - start))
        elif "done" in record:
            sealed.setdefault(record["done"], waiting.pop(record["done"], []))
        start = end
    fresh = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with partial.open("rb") as file, fresh.open("wb") as sorted_file:
            for index in sorted(sealed):
                for start, size in sealed[index]:
                    file.seek(start)
                    sorted_file.write(file.read(size))
            sorted_file.flush()
            os.fsync(sorted_file.fileno())
        fresh.replace(output)
    finally:
        fresh.unlink(missing_ok=True)
    partial.unlink()
