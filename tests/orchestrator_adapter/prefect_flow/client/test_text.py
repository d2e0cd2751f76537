"""Text from outside made storable."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prefect.utilities.text import truncated_to

from orchestrator_adapter.prefect_flow.client.text import storable


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), max_size=300), st.integers(2, 80))
def test_long_text_is_cut_as_prefects_own_engine_cuts_it(text: str, limit: int) -> None:
    """With the same wording. The beginning and the end are kept."""
    assert storable(text, limit=limit) == truncated_to(limit, text)


@example("\ud7ff\ud800\udfff\ue000\x00\x01")
@given(st.text(alphabet=st.characters(categories=["Cs", "Cc", "Ll"])))
def test_only_characters_that_cannot_be_stored_are_replaced(text: str) -> None:
    """Lone surrogates and NUL, one by one. Every other character keeps its place, and the result is valid UTF-8."""
    result = storable(text)
    result.encode()
    assert len(result) == len(text)
    for was, is_ in zip(text, result, strict=True):
        assert is_ == ("\N{REPLACEMENT CHARACTER}" if was == "\x00" or "\ud800" <= was <= "\udfff" else was)


@pytest.mark.parametrize("length", [0, 1, 99_999, 100_000])
def test_a_state_message_may_be_as_long_as_prefects_own_limit(length: int) -> None:
    """A text of 100,000 characters is not changed."""
    assert storable(length * "x") == length * "x"
    assert len(storable(200_000 * "x")) < 100_100
