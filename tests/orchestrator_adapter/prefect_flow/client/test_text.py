"""Foreign text made fit to be told."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prefect.utilities.text import truncated_to

from orchestrator_adapter.prefect_flow.client.text import storable


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\x00"), max_size=300), st.integers(2, 80))
def test_what_is_too_long_is_cut_as_prefects_own_engine_cuts_it(text: str, limit: int) -> None:
    """In the same words, to the character: its beginning and its end are kept."""
    assert storable(text, limit=limit) == truncated_to(limit, text)


@example("\ud7ff\ud800\udfff\ue000\x00\x01")
@given(st.text(alphabet=st.characters(categories=["Cs", "Cc", "Ll"])))
def test_what_nobody_could_store_is_replaced_and_nothing_else(text: str) -> None:
    """Lone surrogates and NUL, one character each: the rest is where it was, and the whole is UTF-8."""
    told = storable(text)
    told.encode()
    assert len(told) == len(text)
    for was, is_ in zip(text, told, strict=True):
        assert is_ == ("\N{REPLACEMENT CHARACTER}" if was == "\x00" or "\ud800" <= was <= "\udfff" else was)


@pytest.mark.parametrize("length", [0, 1, 99_999, 100_000])
def test_a_message_of_a_state_may_be_as_long_as_prefect_has_them(length: int) -> None:
    """100,000 characters, and not one of them is touched."""
    assert storable(length * "x") == length * "x"
    assert len(storable(200_000 * "x")) < 100_100
