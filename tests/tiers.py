"""Which cases of a test belong to which tier; the tiers are in pyproject.toml."""

import pytest


def in_full(*cases):
    """Cases of a test that the quick tier leaves to the whole suite, as it has others of their kind."""
    parts = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=pytest.mark.slow) for case in parts]
