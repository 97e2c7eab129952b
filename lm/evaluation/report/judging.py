"""Blind side-by-side comparison of systems by human judges.

    python -m lm.evaluation.report.judging --outputs=a.jsonl --outputs=b.jsonl --sheet=sheet.csv
    python -m lm.evaluation.report.judging --read=sheet-ann.csv --read=sheet-ben.csv --key=sheet.key.json

The first command writes sheet.csv for a spreadsheet, sheet.html, the same comparisons with buttons that save such a csv, and
sheet.key.json, which maps sides to systems and must not reach the judges. The second prints win rates, their significance
and the judges' agreement.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.files import decode
from lm.errors import UserError, check
from lm.evaluation.metrics.agreement import counts_of, fleiss_kappa, krippendorff_alpha
from lm.evaluation.metrics.statistics import Figure, Figures, mean, proportion
from lm.outputs import replace_file
from lm.pages import render
from lm.strict_json import dump_json, load_json

TEMPLATE = Path(__file__).with_name("judging_page.html")
COLUMNS = ("row", "prompt", "left", "right", "preference", "comment")
WORDS = {"left": "left", "l": "left", "right": "right", "r": "right", "tie": "tie", "t": "tie", "=": "tie"}
# Texts that a spreadsheet runs as a formula, in full-width forms too, behind any number of apostrophes (`to_cell`).
FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


@dataclass(frozen=True)
class Judgement:
    """One judge's choice between two systems' texts for an item; `preferred` is a system's name, None for a tie."""

    item: int
    judge: str
    left: str
    right: str
    preferred: str | None
    comment: str = ""

    @property
    def pair(self) -> tuple[str, str]:
        """The two systems in the order of their names."""
        return min(self.left, self.right), max(self.left, self.right)

    def score(self, system: str) -> float:
        """Return 1 where the system was preferred, 1/2 for a tie, 0 where the other was."""
        return 0.5 if self.preferred is None else float(self.preferred == system)


def write_sheet(path: Path, items: Sequence[str], systems: Mapping[str, Sequence[str]], seed: int = 0) -> Path:
    """Write the sheet, its page and its key, and return the key's path.

    Each pair of systems is compared on each item (a prompt). Rows are shuffled and sides balanced: each system is on the
    left in half of its rows. Raises UserError rather than overwrite a file.
    """
    check(len(systems) > 1, "a comparison needs at least two systems")
    check(len(items) > 0, "a comparison needs at least one item")
    for name, texts in systems.items():
        check(len(texts) == len(items), f"system '{name}' has {len(texts)} texts for {len(items)} items")
    check(path.suffix.lower() == ".csv", f"the sheet {path} must be named FILE.csv; its page and key stand beside it")
    page, key_path = path.with_suffix(".html"), path.with_suffix(".key.json")
    for file in (path, page, key_path):
        check(not file.exists(), f"{file} exists and may hold judgements: choose another name or remove it")
    # Row names carry a digest of the sheet's contents: the key of another sheet is refused.
    whole = json.dumps([list(items), {n: list(t) for n, t in systems.items()}, seed], ensure_ascii=False)
    sheet = hashlib.sha256(whole.encode()).hexdigest()[:6]
    key: dict[str, dict[str, Any]] = {
        f"r{sheet}-{i:04}": {"item": item, "left": a, "right": b} for i, (item, a, b) in _placed(len(items), systems, seed)
    }
    rows = [(r, items[k["item"]], *(systems[k[side]][k["item"]] for side in ("left", "right")), "", "") for r, k in key.items()]
    # The key first: a sheet without its key could never be read.
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(key_path, dump_json({"systems": list(systems), "rows": key}, indent=1) + "\n")
    text = io.StringIO(newline="")
    text.write("\ufeff")  # a byte-order mark, by which spreadsheets detect UTF-8
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([COLUMNS, *(map(to_cell, row) for row in rows)])
    replace_file(path, text.getvalue(), "backslashreplace")
    replace_file(page, render(TEMPLATE, {"name": path.stem, "rows": [row[:4] for row in rows]}), "backslashreplace")
    return key_path


def to_cell(text: str) -> str:
    """Prefix an apostrophe to formulas of a spreadsheet, and to texts that `from_cell` would change."""
    return f"'{text}" if FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """Remove the apostrophe of `to_cell`."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _placed(items: int, systems: Mapping[str, object], seed: int) -> Iterator[tuple[int, tuple[int, str, str]]]:
    """Number the comparisons (item, left, right) from 1 in the order shown."""
    rng = np.random.default_rng(seed)
    rows = []
    for a, b in itertools.combinations(systems, 2):
        swapped = rng.permutation(np.arange(items) % 2 if rng.random() < 0.5 else (np.arange(items) + 1) % 2)
        rows += [(item, *((b, a) if turn else (a, b))) for item, turn in enumerate(swapped)]
    return enumerate([rows[i] for i in rng.permutation(len(rows))], 1)


def read_sheet(paths: Sequence[Path], key: Path) -> list[Judgement]:
    """Read filled sheets; rows without a preference are skipped.

    The judge stands in the `judge` column, else the file's name is the judge. Raises UserError with file and line for a row
    that the key lacks, an invalid preference, or a row judged twice by one judge.
    """
    rows = read_key(key)
    judgements: list[Judgement] = []
    seen: dict[tuple[str, str], str] = {}
    for path in paths:
        for line, cells in _cells(path):
            where = f"{path}:{line}"
            row, judge = cells["row"].strip(), cells.get("judge", "").strip() or path.stem
            check(
                row in rows,
                f"{where}: row '{row}' is not in {key.name}: a sheet of another comparison, or an edited number",
            )
            word = cells["preference"].strip().lower()
            if not word:
                continue
            check(word in WORDS, f"{where}: preference '{word}' must be left, right or tie (or empty: not judged)")
            # Two votes of one judge would count as two judges.
            earlier = seen.setdefault((row, judge), where)
            check(earlier == where, f"{where}: judge '{judge}' has judged row {row} before, in {earlier}")
            sides = rows[row]
            preferred = sides.get(WORDS[word])  # None for a tie
            comment = cells.get("comment", "")
            judgements.append(Judgement(sides["item"], judge, sides["left"], sides["right"], preferred, comment))
    check(len(judgements) > 0, f"no row of {', '.join(map(str, paths)) or 'no file'} has a preference")
    return judgements


def read_key(path: Path) -> dict[str, dict[str, Any]]:
    """Read the systems of each row's sides: {row: {"item", "left", "right"}}."""
    check(path.exists(), f"no {path}: the key was written beside the sheet")
    key = load_json(path)
    rows = key.get("rows") if isinstance(key, dict) else None
    kinds = {"item": int, "left": str, "right": str}
    if not isinstance(rows, dict) or not all(
        isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in kinds.items()) for row in rows.values()
    ):
        raise UserError(f"{path} is no key of a sheet: name the FILE.key.json that was written beside it")
    return rows


def _cells(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (first line number, cells by column) of each row; spreadsheets separate by commas, semicolons or tabs."""
    check(path.exists(), f"no sheet {path}")
    text = decode(path.read_bytes(), str(path)).removeprefix("\ufeff")
    header = text.partition("\n")[0]
    csv.field_size_limit(sys.maxsize)  # the default limit is 131,072 characters a cell
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    columns = [name.strip().lower() for name in next(lines, [])]
    missing = [name for name in ("row", "preference") if name not in columns]
    check(not missing, f"{path}:1: no column {' and '.join(missing)}; there are: {', '.join(columns) or 'none'}")
    line = lines.line_num + 1
    for row in lines:
        if any(cell.strip() for cell in row):
            check(len(row) == len(columns), f"{path}:{line}: {len(row)} cells under {len(columns)} columns")
            yield line, dict(zip(columns, map(from_cell, row)))
        line = lines.line_num + 1


def scores(judgements: Sequence[Judgement], first: str, second: str) -> np.ndarray:
    """Compute the first system's mean score against the second on each judged item, (items,)."""
    chosen = [j for j in judgements if {j.left, j.right} == {first, second}]
    check(len(chosen) > 0, f"nobody compared '{first}' with '{second}'")
    by_item: dict[int, list[float]] = {}
    for j in chosen:
        by_item.setdefault(j.item, []).append(j.score(first))
    return np.array([np.mean(values) for _, values in sorted(by_item.items())])


def win_rates(judgements: Sequence[Judgement], seed: int = 0) -> Figures:
    """Measure win/A/B (a tie is half a win), tie/A/B, p/A/B and `left`, the judges' bias to the left side.

    Judges of one item see the same texts, so the units of error are items, not judgements. p/A/B is the two-sided p of the
    win rate by a paired permutation test: exact up to 13 items, else of 10,000 draws. `left` excludes ties; 0.5 is unbiased.
    """
    figures: Figures = {}
    for a, b in sorted({j.pair for j in judgements}):
        figures |= {f"win/{x}/{y}": mean(scores(judgements, x, y)) for x, y in ((a, b), (b, a))}
        ties = [j.preferred is None for j in judgements if j.pair == (a, b)]
        figures[f"tie/{a}/{b}"] = proportion(sum(ties), len(ties))
        figures[f"p/{a}/{b}"] = Figure.of(p_value(scores(judgements, a, b), seed), np.nan)
    decided = [j for j in judgements if j.preferred is not None]
    return figures | ({"left": proportion(sum(j.preferred == j.left for j in decided), len(decided))} if decided else {})


def p_value(wins_N: np.ndarray, seed: int = 0) -> float:
    """Test win rates of items against 1/2 by exchanging the two systems of each item."""
    from scipy.stats import permutation_test

    def difference(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        return (first - second).mean(axis)

    if len(wins_N) < 2:  # a single item supports nothing; scipy refuses it
        return 1.0
    sides, rng = (wins_N, 1 - wins_N), np.random.default_rng(seed)
    return float(permutation_test(sides, difference, permutation_type="samples", n_resamples=10_000, rng=rng).pvalue)


def judges_agree(judgements: Sequence[Judgement], seed: int = 0) -> Figures:
    """Measure krippendorff_alpha over comparisons; with equally many judges each also fleiss_kappa and raw agreement.

    {} where no comparison has two judges.
    """
    units: dict[tuple, list[str]] = {}
    for j in judgements:
        units.setdefault((j.item, *j.pair), []).append(j.preferred or "")
    ratings = [r for r in units.values() if len(r) > 1]
    if not ratings:
        return {}
    figures = krippendorff_alpha(ratings, seed=seed)
    if len({len(r) for r in ratings}) == 1:
        figures |= fleiss_kappa(counts_of(ratings)[0], seed)
    return figures


def main(overrides: list[tuple[str, str]]) -> None:
    """Write a sheet of generated texts, or measure filled sheets."""
    from absl import flags

    from lm.console import table
    from lm.evaluation.files import read_examples

    check(not overrides, "this command takes no --config.* flags")
    values = flags.FLAGS
    check(bool(values.sheet) != bool(values.read), "use --sheet=FILE.csv to write one, or --read=FILE.csv with its --key")
    if values.sheet:
        check(len(values.outputs) > 1, "name two files or more of lm.generate --output: --outputs=a.jsonl --outputs=b.jsonl")
        systems = {Path(path).stem: read_examples(path) for path in values.outputs}
        prompts = {name: [example.get("prompt") for example in examples] for name, examples in systems.items()}
        first, *others = prompts
        odd = [name for name in others if prompts[name] != prompts[first]]
        # Texts of other prompts, or two files of one name, would compare nothing.
        check(len(systems) == len(values.outputs) and not odd, f"{odd or values.outputs}: other prompts, or the same file name")
        texts = {name: [example.get("text") for example in examples] for name, examples in systems.items()}
        key = write_sheet(Path(values.sheet), prompts[first], texts, values.seed)
        print(f"{values.sheet} and its page {Path(values.sheet).with_suffix('.html')} for the judges; keep {key} from them")
        return
    check(bool(values.key), "--read needs --key=FILE.key.json, the key of the sheet")
    judgements = read_sheet([Path(path) for path in values.read], Path(values.key))
    figures = {**win_rates(judgements, values.seed), **judges_agree(judgements, values.seed)}
    rows = [(name, f.value, "" if np.isnan(f.error) else f"{f.error:.2g}") for name, f in figures.items()]
    print(table(rows, ("judgement", "value", "±")))


if __name__ == "__main__":
    from absl import flags

    from lm.flags import run

    flags.DEFINE_multi_string("outputs", [], "a system's texts, as lm.generate --output writes them; one file a system")
    flags.DEFINE_string("sheet", None, "write the sheet here, FILE.csv, and FILE.html and FILE.key.json beside it")
    flags.DEFINE_multi_string("read", [], "a filled sheet, one a judge")
    flags.DEFINE_string("key", None, "key of the sheets")
    flags.DEFINE_integer("seed", 0, "seed of sides and order, or of resamples", lower_bound=0)
    run(main)
