"""``check_fields``: every field that is out of bounds, in one error."""

from __future__ import annotations

import pytest

from orchestrator_adapter.primitives.check_fields import check_fields


def test_every_field_out_of_bounds_is_named_with_its_bounds_and_value() -> None:
    """Two of three are out of bounds: the message has both, in order."""
    with pytest.raises(ValueError, match="Policy") as raised:
        check_fields("Policy", ("low", 0, False, ">= 1"), ("good", 1, True, ">= 1"), ("text", "", "", "not empty"))
    assert str(raised.value) == "Policy: low must be >= 1, got 0; Policy: text must be not empty, got ''"


def test_fields_within_bounds_raise_nothing() -> None:
    """Also no fields at all."""
    check_fields("Policy", ("good", 1, True, ">= 1"))
    check_fields("Policy")
