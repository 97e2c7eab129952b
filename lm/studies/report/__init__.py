"""The report of a study: is an arm better than the baseline, how sure is that, and what else differs between them.

Read in this order: `compare` (verdicts), `warnings` and `analyses` (what surrounds them), `contents` (all of it as a value),
then its formats: `tables`, `document`, `figures` and `page`. All but `figures` are pure functions of a study and its outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm.outputs import replace_file
from lm.studies.report.contents import gather
from lm.studies.report.document import document
from lm.studies.report.figures import draw
from lm.studies.report.page import page
from lm.studies.report.tables import comparisons_csv, latex_tables, results_csv, terminal
from lm.studies.results import Outcome
from lm.studies.study import Study


def write_report(folder: Path, study: Study, outcomes: Sequence[Outcome]) -> str:
    """Compare the arms of a study and write all files of its report into its folder; return the text for the terminal.

    Equal studies and outcomes give equal files. Runs may be missing or running: the report is then partial and says so.
    Raises UserError where all runs of the baseline have failed.
    """
    contents = gather(study, outcomes)
    pictures = draw(contents, folder)
    texts = {
        "report.md": document(contents, pictures),
        "report.html": page(contents),
        "report.tex": latex_tables(contents),
        "results.csv": results_csv(contents),
        "comparisons.csv": comparisons_csv(contents),
    }
    for name, text in texts.items():
        # Half a surrogate pair, in a sample, has no bytes in UTF-8.
        replace_file(folder / name, text, "backslashreplace")
    return f"{terminal(contents)}\n\n{folder / 'report.html'}, {', '.join([*list(texts)[:1], *list(texts)[2:], *pictures])}"
