"""Blind side-by-side comparison by people: a sheet to fill in, a key kept apart, and what the filled sheets say.

    key = write_sheet(Path("sheet.csv"), prompts, {"baseline": texts, "ours": texts}, seed=0)
    judgements = read_sheet([Path("sheet-ann.csv"), Path("sheet-ben.csv")], key)
    figures = win_rates(judgements) | judges_agree(judgements)

`write_sheet` makes sheet.csv for a spreadsheet, sheet.html with the same texts in columns and buttons that saves such a
csv, and sheet.key.json, which says what stood where and must not reach the judges.
"""

from __future__ import annotations

import csv
import hashlib
import html
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

from lm.errors import UserError, check
from lm.evaluation.metrics.agreement import counts_of, fleiss_kappa, krippendorff_alpha
from lm.evaluation.metrics.statistics import Comparison, Figures, mean, paired_permutation, proportion
from lm.evaluation.report.judging_page import TEMPLATE
from lm.outputs import replace_file
from lm.strict_json import dump_json, load_json

COLUMNS = ("row", "prompt", "left", "right", "preference", "comment")
WORDS = {"left": "left", "l": "left", "right": "right", "r": "right", "tie": "tie", "t": "tie", "=": "tie"}
# What a spreadsheet takes for a formula, full-width forms too, behind any number of apostrophes (`to_cell`).
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
        return tuple(sorted((self.left, self.right)))

    def score(self, system: str) -> float:
        """1 where the system was preferred, 1/2 for a tie, 0 where the other was."""
        return 0.5 if self.preferred is None else float(self.preferred == system)


def write_sheet(path: Path, items: Sequence[str], systems: Mapping[str, Sequence[str]], seed: int = 0) -> Path:
    """Write the sheet, its page and its key, and return the key's path.

    Each pair of systems is compared on each item (a prompt): rows are shuffled, and so are the sides, each system being on
    the left in half of its rows. Raises UserError rather than write over a file.
    """
    check(len(systems) > 1, "a comparison needs at least two systems")
    check(len(items) > 0, "a comparison needs at least one item")
    for name, texts in systems.items():
        check(len(texts) == len(items), f"system '{name}' has {len(texts)} texts for {len(items)} items")
    check(path.suffix.lower() == ".csv", f"the sheet {path} must be named FILE.csv; its page and key stand beside it")
    page, key_path = path.with_suffix(".html"), path.with_suffix(".key.json")
    for file in (path, page, key_path):
        check(not file.exists(), f"{file} exists and may hold judgements: choose another name or remove it")
    whole = json.dumps([list(items), {n: list(t) for n, t in systems.items()}, seed], ensure_ascii=False)
    sheet = hashlib.sha256(whole.encode()).hexdigest()[:6]
    key = {
        f"r{sheet}-{i:04}": {"item": item, "left": a, "right": b}
        for i, (item, a, b) in _placed(len(items), systems, seed)
    }
    rows = [
        (r, items[k["item"]], *(systems[k[side]][k["item"]] for side in ("left", "right")), "", "")
        for r, k in key.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(key_path, dump_json({"systems": list(systems), "rows": key}, indent=1) + "\n")
    text = io.StringIO(newline="")
    text.write("\ufeff")  # the mark lets spreadsheets see UTF-8
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([COLUMNS, *(map(to_cell, row) for row in rows)])
    replace_file(path, text.getvalue(), "backslashreplace")
    replace_file(page, _page(path.stem, rows), "backslashreplace")
    return key_path


def to_cell(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would run as a formula, and before texts that `from_cell` would change."""
    return f"'{text}" if FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """Take the apostrophe of `to_cell` off."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _placed(items: int, systems: Mapping[str, object], seed: int) -> Iterator[tuple[int, tuple[int, str, str]]]:
    """Number the comparisons (item, left, right) from 1 in the order shown."""
    rng = np.random.default_rng(seed)
    found = []
    for a, b in itertools.combinations(systems, 2):
        swapped = rng.permutation(np.arange(items) % 2 if rng.random() < 0.5 else (np.arange(items) + 1) % 2)
        found += [(item, *((b, a) if turn else (a, b))) for item, turn in enumerate(swapped)]
    return enumerate([found[i] for i in rng.permutation(len(found))], 1)


def read_sheet(paths: Sequence[Path], key: Path) -> list[Judgement]:
    """Read filled sheets; a row without a preference was not judged and is left out.

    The judge is the `judge` column's, or the file's name where there is none. Raises UserError with file and line for a row
    that the key does not know, a preference that is none, or a row judged twice by one judge.
    """
    rows = read_key(key)
    found: list[Judgement] = []
    seen: dict[tuple[str, str], str] = {}
    for path in paths:
        for line, cells in _cells(path):
            where = f"{path}:{line}"
            row, judge = cells["row"].strip(), cells.get("judge", "").strip() or path.stem
            check(
                row in rows,
                f"{where}: row '{row}' is not in {key.name}: a sheet of another comparison, or an edited number",
            )
            given = cells["preference"].strip().lower()
            if not given:
                continue
            check(given in WORDS, f"{where}: preference '{given}' must be left, right or tie (or empty: not judged)")
            earlier = seen.setdefault((row, judge), where)
            check(earlier == where, f"{where}: judge '{judge}' has judged row {row} before, in {earlier}")
            place = rows[row]
            preferred = place.get(WORDS[given])  # none for a tie
            found.append(
                Judgement(place["item"], judge, place["left"], place["right"], preferred, cells.get("comment", ""))
            )
    check(len(found) > 0, f"no row of {', '.join(map(str, paths)) or 'no file'} has a preference")
    return found


def read_key(path: Path) -> dict[str, dict[str, Any]]:
    """Read what stood where: {row: {"item", "left", "right"}}."""
    check(path.exists(), f"no {path}: write_sheet leaves it beside the sheet")
    found = load_json(path)
    rows = found.get("rows") if isinstance(found, dict) else None
    kinds = {"item": int, "left": str, "right": str}
    good = isinstance(rows, dict) and all(
        isinstance(row, dict) and all(isinstance(row.get(name), kind) for name, kind in kinds.items()) for row in rows.values()
    )
    check(good, f"{path} is no key of a sheet: give the FILE.key.json that was written beside it")
    return rows


def _cells(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Give each row's first line number and cells by column, with commas, semicolons or tabs between them."""
    check(path.exists(), f"no sheet {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}): save it as 'CSV UTF-8'") from error
    header = text.partition("\n")[0]
    csv.field_size_limit(sys.maxsize)  # a text may be longer than the 131,072 characters that it allows
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
    """Mean score of the first system against the second on each item that was judged, (items,)."""
    chosen = [j for j in judgements if {j.left, j.right} == {first, second}]
    check(len(chosen) > 0, f"nobody compared '{first}' with '{second}'")
    by_item: dict[int, list[float]] = {}
    for j in chosen:
        by_item.setdefault(j.item, []).append(j.score(first))
    return np.array([np.mean(values) for _, values in sorted(by_item.items())])


def win_rates(judgements: Sequence[Judgement]) -> Figures:
    """Measure win/A/B, how often A is preferred to B (a tie is half a win), tie/A/B, and `left`, the pull of the left side.

    Judges of one item see the same texts, so the error is the spread between items' means, not between judgements. `left` is
    over judgements without ties; far from 0.5 the judges looked at the side.
    """
    found: Figures = {}
    for a, b in sorted({j.pair for j in judgements}):
        found |= {f"win/{x}/{y}": mean(scores(judgements, x, y)) for x, y in ((a, b), (b, a))}
        ties = [j.preferred is None for j in judgements if j.pair == (a, b)]
        found[f"tie/{a}/{b}"] = proportion(sum(ties), len(ties))
    decided = [j for j in judgements if j.preferred is not None]
    return found | ({"left": proportion(sum(j.preferred == j.left for j in decided), len(decided))} if decided else {})


def compare(judgements: Sequence[Judgement], first: str, second: str, seed: int = 0) -> Comparison:
    """Give wins less losses of the first system, as shares of items, and the p of that under exchanged systems."""
    wins = scores(judgements, first, second)
    return Comparison(mean(2 * wins - 1), paired_permutation(wins, 1 - wins, seed=seed))


def judges_agree(judgements: Sequence[Judgement], seed: int = 0) -> Figures:
    """Measure krippendorff_alpha over compared texts, and fleiss_kappa with plain agreement where each had as many judges.

    Nothing where no text had two judges.
    """
    units: dict[tuple, list[str]] = {}
    for j in judgements:
        units.setdefault((j.item, *j.pair), []).append(j.preferred or "")
    ratings = [r for r in units.values() if len(r) > 1]
    if not ratings:
        return {}
    found = krippendorff_alpha(ratings, seed=seed)
    if len({len(r) for r in ratings}) == 1:
        found |= fleiss_kappa(counts_of(ratings)[0], seed)
    return found


def _page(name: str, rows: Sequence[tuple]) -> str:
    """Write the sheet as one page that needs nothing else: texts side by side, buttons, and a link that saves the csv."""
    parts = []
    for number, (row, prompt, left, right, *_) in enumerate(rows, 1):
        buttons = "".join(
            f'<label><input type="radio" name="{row}" value="{word}"> {shown}</label>'
            for word, shown in (("left", "left is better"), ("tie", "equally good"), ("right", "right is better"))
        )
        parts.append(
            f'<section id="{row}"><h2>{number} of {len(rows)}</h2><p class="prompt">{html.escape(str(prompt))}</p>'
            f'<div class="pair"><p>{html.escape(str(left))}</p><p>{html.escape(str(right))}</p></div>'
            f'<div class="choice">{buttons}<input class="comment" placeholder="comment"></div></section>'
        )
    return TEMPLATE.replace("{{name}}", html.escape(name)).replace("{{rows}}", "\n".join(parts))


def main(overrides: list[tuple[str, str]]) -> None:
    """Write a sheet of generated texts, or say what filled sheets found."""
    from absl import flags

    from lm.console import table
    from lm.evaluation.files import items

    check(not overrides, "this command takes no --config.* flags")
    values = flags.FLAGS
    check(bool(values.sheet) != bool(values.read), "give --sheet=FILE.csv to write one, or --read=FILE.csv with its --key")
    if values.sheet:
        check(len(values.outputs) > 1, "give two files or more of lm.generate --output: --outputs=a.jsonl --outputs=b.jsonl")
        found = {Path(path).stem: items(path) for path in values.outputs}
        prompts = {name: [item.text("prompt") for item in mine] for name, mine in found.items()}
        first, *others = prompts
        odd = [name for name in others if prompts[name] != prompts[first]]
        check(len(found) == len(values.outputs) and not odd, f"{odd or values.outputs}: not the same prompts, or the same name")
        texts = {name: [item.text("text") for item in mine] for name, mine in found.items()}
        key = write_sheet(Path(values.sheet), prompts[first], texts, values.seed)
        print(f"{values.sheet} and its page {Path(values.sheet).with_suffix('.html')} for the judges; keep {key} from them")
        return
    check(bool(values.key), "--key=FILE.key.json says what stood on which side of the sheet")
    judgements = read_sheet([Path(path) for path in values.read], Path(values.key))
    figures = {**win_rates(judgements), **judges_agree(judgements, values.seed)}
    print(table([(name, f.value, f"{f.error:.2g}") for name, f in figures.items()], ("judgement", "value", "±")))


if __name__ == "__main__":
    from absl import flags

    from lm.flags import run

    flags.DEFINE_multi_string("outputs", [], "a system's texts, as lm.generate --output writes them; one file a system")
    flags.DEFINE_string("sheet", None, "write the sheet here, FILE.csv, and FILE.html and FILE.key.json beside it")
    flags.DEFINE_multi_string("read", [], "a filled sheet, one a judge")
    flags.DEFINE_string("key", None, "the key of the sheets that are read")
    flags.DEFINE_integer("seed", 0, "seed of the sides and of the order", lower_bound=0)
    run(main)
