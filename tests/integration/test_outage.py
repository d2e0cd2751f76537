"""A short outage of a real archive, in each of the four ways; ``make outage`` runs the full 30 s."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.outage import SHORT, perform
from orchestrator_adapter import BreakerState
from sda_ops.simulate.config import OutageStyle


# Refused connections are `long`: test_optical_failures has such an outage in `make test`.
@pytest.mark.parametrize("style", ["503", "blackhole", "drip", pytest.param("refuse", marks=pytest.mark.long)])
async def test_an_outage_of_the_archive_costs_no_restart_and_no_observation(style: OutageStyle, tmp_path: Path) -> None:
    """503s, refused connections, a black hole, a drip: everything sent is logged once; the breaker opens and closes."""
    result = await perform(style, SHORT, tmp_path)
    assert result.logged == result.sent
    assert result.figures.ledger_holds
    assert not result.figures.restarts
    breaker = result.figures.breakers["optical"]
    assert (breaker.state, breaker.opened > 0) == (BreakerState.CLOSED, True)
    assert result.attempts_in_outage > 0
    if style != "refuse":
        # A poll's first attempt is not a retry. One request was under way when the outage began, and the two processes may
        # count one more at its beginning or end differently.
        assert abs(result.requests_in_outage - 1 - result.attempts_in_outage) <= 2
