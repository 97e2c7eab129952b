"""Files of prompts: ten thousand lines in batches of like length, samples written as they are done, resumed after a kill."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

from lm.data.prompts import Prompt
from lm.errors import UserError, check

WINDOW = 4096  # prompts in memory, sorted by length


class Job(Protocol):
    """What is done to each prompt of a file."""

    def encode(self, record: Mapping[str, Any]) -> Prompt:
        """Read {"prompt"} or {"messages"}; raise UserError for one that cannot be continued."""

    def write(
        self, prompts: list[tuple[str, Prompt]], numbers: list[int]
    ) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Give (place in `prompts`, its samples as objects) in any order; `numbers`: how often each came before."""


class Progress(Protocol):
    """Who is told how far a file is."""

    def add(self, tokens: int) -> None:
        """Count one more prompt and its new tokens."""

    def close(self) -> None:
        """Stop."""


def complete(
    job: Job,
    path: Path,
    output: Path,
    settings: Mapping[str, Any],
    progress: Callable[[int, int], Progress] | None = None,
) -> int:
    """Write the samples of all prompts of a file, in its order, as JSON lines with their "index"; give their number.

    Until the end they lie in OUTPUT.partial as they came; the same command goes on from there. Raises UserError where a
    line is wrong, before anything is written, and where OUTPUT.partial belongs to other `settings`. `progress` is made of
    the number of prompts and of those done before.
    """
    check(not output.exists(), f"{output} is there already; remove it, or name another --output")
    settings = {"prompts": hashlib.sha256(path.read_bytes()).hexdigest(), **settings}
    count = sum(1 for _ in encoded(job, path))
    check(count > 0, f"{path} holds no prompts")
    partial = output.with_name(output.name + ".partial")
    done = resume(partial, settings)
    told = progress(count, len(done)) if progress else None
    try:
        with partial.open("a", encoding="utf-8") as file:
            work(job, path, file, done, told)
    finally:
        if told:
            told.close()
    sort(partial, output)
    return count


def work(job: Job, path: Path, file: TextIO, done: set[int], progress: Progress | None) -> None:
    """Append the samples of all prompts that are not done, those of one prompt together and sealed."""
    seen: Counter[bytes] = Counter()
    for low, window in windows(encoded(job, path)):
        numbers = [occurrence(seen, prompt) for _, prompt in window]
        left = [i for i in range(len(window)) if low + i not in done]
        for at, samples in job.write([window[i] for i in left], [numbers[i] for i in left]):
            index = low + left[at]
            lines = (json.dumps({"index": index, **sample}, ensure_ascii=False) for sample in samples)
            file.write("".join(f"{line}\n" for line in (*lines, json.dumps({"done": index}))))
            file.flush()
            if progress:
                progress.add(sum(len(sample["tokens"]) for sample in samples))


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give (line number, record) of a .jsonl of {"prompt"} or {"messages"} objects, or of any other file's lines."""
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
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: no valid JSON: {error}") from error
    good = isinstance(record, dict) and (isinstance(record.get("prompt"), str) or "messages" in record)
    check(good, f'{path}, line {number}: an object with "prompt" (text) or "messages" is needed')
    return record


def encoded(job: Job, path: Path) -> Iterator[tuple[str, Prompt]]:
    """Give the prompt's text and tokens of each record."""
    for number, record in records(path):
        try:
            prompt = job.encode(record)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        yield (
            record["prompt"] if "messages" not in record else json.dumps(record["messages"], ensure_ascii=False),
            prompt,
        )


def windows(items: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    """Cut an iterator into lists; give each with the place of its first item."""
    low = 0
    while window := list(islice(items, WINDOW)):
        yield low, window
        low += len(window)


def occurrence(seen: Counter[bytes], prompt: Prompt) -> int:
    """Count how often a prompt came before, in 16 bytes each."""
    from lm.decode.generate import fingerprint

    name = hashlib.blake2b(fingerprint(prompt), digest_size=16).digest()
    seen[name] += 1
    return seen[name] - 1


def resume(partial: Path, settings: Mapping[str, Any]) -> set[int]:
    """Open what an earlier run left, or begin: give the places that are done, and cut off what is not."""
    if not partial.exists() or not partial.stat().st_size:
        partial.write_text(json.dumps({"settings": dict(settings)}) + "\n", encoding="utf-8")
        return set()
    done, good = set(), 0
    with partial.open("rb") as file:
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):
                break
            record = json.loads(line)
            if number == 0:
                same(partial, record.get("settings", {}), settings)
                good = file.tell()
            elif "done" in record:
                done.add(record["done"])
                good = file.tell()
    with partial.open("rb+") as file:
        file.truncate(good)
    if not good:
        return resume(partial, settings)
    return done


def same(partial: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError where a file was begun with other settings."""
    now = json.loads(json.dumps(dict(now)))
    other = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if other:
        raise UserError(
            f"{partial} was begun with another {', '.join(other)}: use the same, remove the file, or name another --output"
        )


def sort(partial: Path, output: Path) -> None:
    """Copy the samples in the order of their prompts, whole or not at all; places in the file are all that is kept."""
    places: dict[int, list[tuple[int, int]]] = {}
    with partial.open("rb") as file:
        at = 0
        for line in file:
            record = json.loads(line)
            if "index" in record:
                places.setdefault(record["index"], []).append((at, len(line)))
            at += len(line)
        temporary = output.with_name(output.name + ".tmp")
        with temporary.open("wb") as sorted_file:
            for index in sorted(places):
                for start, size in places[index]:
                    file.seek(start)
                    sorted_file.write(file.read(size))
    os.replace(temporary, output)
    partial.unlink()
