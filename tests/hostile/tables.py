"""All cases, group by group; of those that take about a second each, every eighth runs by default."""

import dataclasses

from tests.hostile import damage, honesty, programs, typed
from tests.hostile.case import Case

HEAVY = (honesty.KILLS, honesty.BOTH)
EVERY = 8


def chosen(cases: list[Case]) -> list[Case]:
    """Mark what runs in the default suite."""
    return [dataclasses.replace(c, quick=c.quick or (k % EVERY == 0 and c.group not in HEAVY)) for k, c in enumerate(cases)]


CASES = chosen([*typed.CASES, *damage.CASES, *programs.CASES, *honesty.CASES])
