"""Answers of the control plane: their headers, and how they are reused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from email.utils import formatdate
from typing import Any

from starlette.responses import Response

from orchestrator_adapter.control_plane.exposition import JSON
from orchestrator_adapter.control_plane.snapshot import Snapshots, View

_POLICY = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # CSP level 3
)


def headers() -> dict[str, str]:
    """The headers of every answer. CORS is not enabled: scripts of other origins can read nothing."""
    return {
        "Connection": "close",
        "Cache-Control": "no-store",
        "Content-Security-Policy": _POLICY,
        "Cross-Origin-Resource-Policy": "same-origin",
        "Date": formatdate(usegmt=True),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }


def as_json(body: Mapping[str, Any], status: int = 200, more: Mapping[str, str] | None = None) -> Response:
    """``body`` as JSON."""
    return answer(json.dumps(body).encode(), JSON, status, more)


def answer(body: bytes, content_type: str, status: int = 200, more: Mapping[str, str] | None = None) -> Response:
    """An answer with the headers of every answer, and ``more``."""
    return Response(body, status, {**(more or {}), **headers()}, media_type=content_type)


class Answers:
    """Rendered answers, each reused for a moment: a crowd of clients costs the graph one rendering, and not one each."""

    def __init__(self, snapshots: Snapshots, reuse_for: timedelta) -> None:
        self._snapshots = snapshots
        self._reuse_for_s = reuse_for.total_seconds()
        self._rendered: dict[
            str, tuple[float, Response]
        ] = {}  # by kind of answer: when it was rendered, and the answer

    async def get(self, kind: str, render: Callable[[View], Response]) -> Response:
        """The answer of this kind: a recent one, or a new one that ``render`` makes."""
        if (recent := self._recent(kind)) is not None:
            return recent
        view = await self._snapshots.view()
        if (recent := self._recent(kind)) is not None:  # another request has rendered it during the wait
            return recent
        answer = render(view)
        now = asyncio.get_running_loop().time()
        self._rendered = {kind: each for kind, each in self._rendered.items() if now - each[0] < self._reuse_for_s}
        self._rendered[kind] = (now, answer)
        return answer

    def _recent(self, kind: str) -> Response | None:
        rendered_at, answer = self._rendered.get(kind, (float("-inf"), None))
        return answer if asyncio.get_running_loop().time() - rendered_at < self._reuse_for_s else None
