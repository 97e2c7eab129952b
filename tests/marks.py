"""Which parameters of a test run by default."""

from collections.abc import Collection

import pytest


def quick(values: Collection, those: Collection) -> list:
    """Give all values as parameters: `those` run by default, the others in the slow proofs."""
    assert set(those) <= set(values)
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=() if value in those else pytest.mark.slow)
        for value in values
    ]
