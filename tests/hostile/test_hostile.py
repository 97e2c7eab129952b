"""The hostile cases under pytest: a part of each group by default, all of them with -m slow; see `python -m tests.hostile`."""

import json
import subprocess
import sys
from functools import cache

import pytest

from tests.hostile.tables import CASES
from tests.processes import environment

GROUPS = list(dict.fromkeys(case.group for case in CASES))
QUICK = [group for group in GROUPS if any(case.quick for case in CASES if case.group == group)]


@pytest.fixture(scope="session")
def verdicts(tmp_path_factory):
    """Give the verdicts on the quick or on all cases; each set is run once, by a process that may fork."""

    @cache
    def run(quick: bool) -> list[dict]:
        path = tmp_path_factory.mktemp("hostile") / "verdicts.json"
        command = [sys.executable, "-m", "tests.hostile", f"--json={path}", *["--quick"] * quick]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert path.exists(), done.stderr[-3000:]
        return json.loads(path.read_text())

    return run


def bad(found: list[dict], group: str) -> list[dict]:
    return [one for one in found if one["group"] == group and one["kind"] != "well"]


@pytest.mark.parametrize("group", QUICK)
def test_some_of_each_group_end_in_one_line_or_in_the_truth(group, verdicts):
    assert not bad(verdicts(True), group)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_all_hostile_cases_end_in_one_line_or_in_the_truth(group, verdicts):
    assert not bad(verdicts(False), group)
