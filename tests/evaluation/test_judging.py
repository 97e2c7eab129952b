"""Sheets for human judges: blind, balanced, read back with errors that name file and line."""

import csv
import json
import re

import pytest

from lm.errors import UserError
from lm.evaluation.report.judging import (
    Judgement,
    from_cell,
    judges_agree,
    read_sheet,
    scores,
    to_cell,
    win_rates,
    write_sheet,
)

ITEMS = [f'prompt {i}\nin two lines, "quoted"' for i in range(20)]
SYSTEMS = {"alpha": [f"good {i}" for i in range(20)], "beta": [f"<b>bad</b> {i}" for i in range(20)]}


@pytest.fixture
def key(tmp_path):
    return write_sheet(tmp_path / "sheet.csv", ITEMS, SYSTEMS, seed=1)


def rows_of(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill(tmp_path, name, choose, delimiter=","):
    """Write a judge's file: choose(row) gives the preference."""
    rows = rows_of(tmp_path / "sheet.csv")
    path = tmp_path / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(row | {"preference": choose(row)} for row in rows)
    return path


def better(row):
    return "Left" if row["left"].startswith("good") else " r "


def test_sheet_is_blind_and_balanced(tmp_path, key):
    rows = rows_of(tmp_path / "sheet.csv")
    assert len(rows) == 20
    assert list(rows[0]) == ["row", "prompt", "left", "right", "preference", "comment"]
    assert sorted(row["prompt"] for row in rows) == sorted(ITEMS)
    assert [row["prompt"] for row in rows] != ITEMS  # shuffled
    assert sum(row["left"].startswith("good") for row in rows) == 10
    for file in ("sheet.csv", "sheet.html"):
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert "alpha" not in text
        assert "beta" not in text
    known = json.loads(key.read_text())["rows"]
    for row in rows:
        place = known[row["row"]]
        assert row["prompt"] == ITEMS[place["item"]]
        assert row["left"] == SYSTEMS[place["left"]][place["item"]]
        assert row["right"] == SYSTEMS[place["right"]][place["item"]]


def test_sheet_repeats_from_its_seed(tmp_path, key):
    for seed, same in ((1, True), (2, False)):
        write_sheet(tmp_path / f"{seed}" / "sheet.csv", ITEMS, SYSTEMS, seed)
        assert ((tmp_path / f"{seed}" / "sheet.csv").read_text() == (tmp_path / "sheet.csv").read_text()) is same


def test_page(tmp_path, key):
    page = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert page.count("<section") == 20
    assert "&lt;b&gt;bad&lt;/b&gt; 3" in page
    assert "{{" not in page
    assert len(re.findall(r'<input type="radio"', page)) == 60
    assert "http" not in page  # nothing is fetched


def test_nothing_is_written_over(tmp_path, key):
    with pytest.raises(UserError, match="may hold judgements"):
        write_sheet(tmp_path / "sheet.csv", ITEMS, SYSTEMS)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_read_back(tmp_path, key, delimiter):
    path = fill(tmp_path, "ann", better, delimiter)
    found = read_sheet([path], key)
    assert {j.preferred for j in found} == {"alpha"}
    assert {j.judge for j in found} == {"ann"}
    assert sorted(j.item for j in found) == list(range(20))
    rates = win_rates(found)
    assert rates["win/alpha/beta"].value == 1
    assert rates["win/beta/alpha"].value == 0
    assert rates["tie/alpha/beta"].value == 0
    assert rates["left"].value == 0.5  # the sides are balanced, so a fair judge has no side
    assert rates["p/alpha/beta"].value < 0.001


def test_several_judges(tmp_path, key):
    ann = fill(tmp_path, "ann", better)
    ben = fill(tmp_path, "ben", lambda row: "tie")
    eve = fill(tmp_path, "eve", lambda row: "left" if row["row"].endswith(("1", "3")) else "")
    found = read_sheet([ann, ben, eve], key)
    assert len(found) == 20 + 20 + sum(row["row"].endswith(("1", "3")) for row in rows_of(tmp_path / "sheet.csv"))
    agreed = judges_agree([j for j in found if j.judge != "eve"])
    assert agreed["agreement"].value == 0
    assert agreed["fleiss_kappa"].value == pytest.approx(-1)
    assert set(judges_agree(found)) == {"krippendorff_alpha"}  # not as many judges for each
    assert judges_agree([j for j in found if j.judge == "ann"]) == {}
    both = read_sheet([ann, fill(tmp_path, "ben", better)], key)
    assert win_rates(both)["win/alpha/beta"].value == 1


def test_the_pages_file_is_read(tmp_path, key):
    row = rows_of(tmp_path / "sheet.csv")[0]["row"]
    saved = tmp_path / "saved.csv"
    saved.write_text(f'\ufeffrow,judge,preference,comment\n"{row}","Li, 李","left","so ""good"""\n', encoding="utf-8")
    (found,) = read_sheet([saved], key)
    assert (found.judge, found.comment) == ("Li, 李", 'so "good"')
    assert found.preferred == found.left


def test_three_systems(tmp_path):
    systems = SYSTEMS | {"gamma": ["so so"] * 20}
    key = write_sheet(tmp_path / "three" / "s.csv", ITEMS, systems)
    rows = json.loads(key.read_text())["rows"].values()
    pairs = [tuple(sorted((r["left"], r["right"]))) for r in rows]
    assert {p: pairs.count(p) for p in pairs} == {("alpha", "beta"): 20, ("alpha", "gamma"): 20, ("beta", "gamma"): 20}


def test_items_are_the_units():
    """Ten judges of one item are not ten items."""
    crowd = [Judgement(0, f"j{k}", "a", "b", "a") for k in range(10)] + [Judgement(1, "j0", "b", "a", None)]
    assert scores(crowd, "a", "b").tolist() == [1, 0.5]
    rates = win_rates(crowd)
    assert rates["win/a/b"].value == 0.75
    assert rates["p/a/b"].value == 1
    few = [Judgement(i, "j", "a", "b", "a") for i in range(6)]
    assert win_rates(few)["p/a/b"].value == 2 / 2**6  # exact: all exchanges of sides
    assert win_rates(few[:1])["p/a/b"].value == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("row,choice\n", r"bad\.csv:1: no column preference; there are: row, choice"),
        ("", r"bad\.csv:1: no column row and preference; there are: none"),
        ("row,preference\nROW,left\n\nROW,rihgt\n", r"bad\.csv:4: preference 'rihgt' must be left, right or tie"),
        ("row,preference\nROW,left\nROW,left\n", r"bad\.csv:3: judge 'bad' has judged row .* before, in .*bad\.csv:2"),
        ("row,preference\nr00-1,left\n", r"bad\.csv:2: row 'r00-1' is not in sheet\.key\.json"),
        ('row,note,preference\nROW,"two\nlines",left\nROW,left\n', r"bad\.csv:4: 2 cells under 3 columns"),
        ("row,preference\nROW,\n", "has a preference"),
    ],
)
def test_malformed_rows_are_told_with_their_line(tmp_path, key, text, words):
    bad = tmp_path / "bad.csv"
    bad.write_text(text.replace("ROW", rows_of(tmp_path / "sheet.csv")[0]["row"]), encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_sheet([bad], key)


def test_other_mistakes_are_told(tmp_path, key):
    bad = tmp_path / "bad.csv"
    bad.write_bytes(b"row,preference,comment\n\xe4\xf6")
    with pytest.raises(UserError, match=r"bad\.csv:2: .* is not UTF-8"):
        read_sheet([bad], key)
    with pytest.raises(UserError, match="no sheet"):
        read_sheet([tmp_path / "none.csv"], key)
    with pytest.raises(UserError, match="was written beside the sheet"):
        read_sheet([], tmp_path / "none.json")
    with pytest.raises(UserError, match="'b' has 1 texts for 2 items"):
        write_sheet(tmp_path / "x.csv", ["p", "q"], {"a": ["1", "2"], "b": ["1"]})
    with pytest.raises(UserError, match="nobody compared"):
        scores([Judgement(0, "j", "a", "b", "a")], "a", "c")


FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "'=1", "''+1", "'tis", "", "a;=1", " =1"]


def test_a_spreadsheet_runs_nothing_of_a_sheet(tmp_path):
    """Texts come back as they were, those too that begin with an apostrophe themselves."""
    assert [from_cell(to_cell(text)) for text in FORMULAS] == FORMULAS
    assert to_cell("'tis") == "'tis"
    key = write_sheet(tmp_path / "s.csv", FORMULAS, {"a": FORMULAS, "b": FORMULAS[::-1]})
    rows = rows_of(tmp_path / "s.csv")
    assert not [cell for row in rows for cell in row.values() if cell[:1] and cell[0] in "=+-@\t\r\n\uff1d"]
    assert sorted(row["prompt"] for row in rows) == sorted(map(to_cell, FORMULAS))
    filled = tmp_path / "ann.csv"
    with filled.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"preference": "'=" if i else "left", "comment": "'=1"} for i, row in enumerate(rows))
    assert [j.preferred is None for j in read_sheet([filled], key)] == [False] + [True] * 12
    assert {j.comment for j in read_sheet([filled], key)} == {"=1"}


@pytest.mark.parametrize("name", ["x.html", "x.key.json", "x", "x.txt"])
def test_a_sheet_is_named_as_one(tmp_path, name):
    with pytest.raises(UserError, match=r"must be named FILE\.csv"):
        write_sheet(tmp_path / name, ITEMS, SYSTEMS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ['{"rows": []}', '{"rows": {"r": {"item": "0", "left": "", "right": ""}}}', "{", "[" * 9999])
def test_what_is_no_key_is_told(tmp_path, key, text):
    key.write_text(text)
    with pytest.raises(UserError, match=r"sheet\.key\.json") as error:
        read_sheet([tmp_path / "sheet.csv"], key)
    assert "\n" not in str(error.value)
