"""All cases, group by group."""

from tests.hostile import damage, typed

CASES = [*typed.CASES, *damage.CASES]
