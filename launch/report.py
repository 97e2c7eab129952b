"""Report on an ablation study: the difference of each arm to the baseline with its interval, a verdict, and warnings.

    python -m launch.report DIR [--metric=eval/validation/loss] [--baseline=ARM]

Works while runs are missing or running, and says so. Prints the comparisons and the warnings; in DIR:

    report.md, report.tex, *.png     for an appendix or a pull request
    report.html                      one page: tables, curves, samples, and the command that repeats each run
    results.csv, comparisons.csv     a row a run, and a row an arm and figure
"""

from pathlib import Path

from absl import flags

from lm.errors import check
from lm.flags import run

VALUES = flags.FlagValues()  # of its own: other commands, imported beside this one, have some of the same names
FOLDER = flags.DEFINE_string("folder", None, "folder of a study: the argument without a name", flag_values=VALUES)
METRIC = flags.DEFINE_string("metric", "", "figures to compare, joined by commas (default: the study's)", flag_values=VALUES)
BASELINE = flags.DEFINE_string("baseline", "", "arm that others are compared with (default: the study's)", flag_values=VALUES)


def main(overrides: list[tuple[str, str]]) -> None:
    """Read the runs, write the report, print the table."""
    check(bool(FOLDER.value) and not overrides, "which study? name its folder and nothing else: python -m launch.report DIR")
    from lm.studies.report import write_report
    from lm.studies.report.compare import select
    from lm.studies.results import read_results

    folder = Path(FOLDER.value)
    study, outcomes = read_results(folder)
    study = select(study, outcomes, METRIC.value, BASELINE.value)
    print(write_report(folder, study, outcomes))


if __name__ == "__main__":
    flags.FLAGS.append_flag_values(VALUES)
    VALUES.mark_as_parsed()
    run(main, argument="folder")
