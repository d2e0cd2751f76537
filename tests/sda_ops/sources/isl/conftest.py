from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.sda_ops.sources.isl.beacons import Peers


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    """Peers for one test. Fails the test where an exception reaches only the event loop's handler."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    peers = Peers()
    yield peers
    peers.close()
    assert not unhandled
