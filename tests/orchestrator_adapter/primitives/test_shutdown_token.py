from __future__ import annotations

import asyncio

from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.testing import settle


async def test_the_token_wakes_every_waiter_and_keeps_its_first_reason() -> None:
    """Every waiter is woken, every callback called once (a late one at once). A second reason changes nothing."""
    token = ShutdownToken()
    called: list[str] = []
    token.on_set(lambda: called.append("early"))
    waiting = [asyncio.create_task(token.wait()) for _ in range(3)]
    await settle()
    token.set("SIGTERM")
    token.set("SIGINT")
    token.on_set(lambda: called.append("late"))
    await asyncio.gather(*waiting)
    await token.wait()
    assert (token.reason, called) == ("SIGTERM", ["early", "late"])


async def test_a_failing_shutdown_callback_does_not_stop_the_others() -> None:
    """If one callback raises, the next one is still called."""
    token = ShutdownToken()
    called: list[str] = []
    token.on_set(lambda: _fail(ValueError("callback")))
    token.on_set(lambda: called.append("second"))
    token.set("test")
    assert called == ["second"]


def _fail(error: Exception) -> None:
    raise error
