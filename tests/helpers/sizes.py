"""How much a test repeats: a small size in ``make test``, the full size in ``make test-long`` (marker ``long``)."""

from __future__ import annotations

import os
from typing import Any

import pytest

LONG = "TESTS_LONG" in os.environ
"""Whether this is ``make test-long``."""

_SHARE = 4  # of a property's examples, one in so many is tried in `make test`


def small_and_long(names: str | tuple[str, ...], small: Any, *long: Any) -> pytest.MarkDecorator:
    """Parametrize a test twice: ``small`` for ``make test``, and every ``long`` for ``make test-long``."""
    return pytest.mark.parametrize(
        names, [small, *(pytest.param(*_values(each), marks=pytest.mark.long) for each in long)]
    )


def examples(count: int) -> int:
    """How many examples Hypothesis tries: ``count`` in ``make test-long``, a quarter of them in ``make test``."""
    return count if LONG else max(1, count // _SHARE)


def _values(each: Any) -> tuple[Any, ...]:
    return each if isinstance(each, tuple) else (each,)
