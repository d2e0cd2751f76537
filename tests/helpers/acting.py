"""For tests of the control plane's access and actions: settings with a token, and requests with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx

from orchestrator_adapter.control_plane import ControlPlane
from tests.helpers.control_plane import ANY

TOKEN = "sixteen-characters-or-more"
ACTING: ControlPlane = replace(ANY, token=TOKEN, actions=True)
"""On a loopback address, with actions."""


async def act(url: str, action: str, token: str | None = TOKEN, **headers: str) -> httpx.Response:
    """``POST /actions/<action>``, on a new connection."""
    authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
    sent = {"Content-Type": "application/json", **authorization, **headers}
    return await asyncio.to_thread(httpx.post, f"{url}/actions/{action}", headers=sent, timeout=30)
