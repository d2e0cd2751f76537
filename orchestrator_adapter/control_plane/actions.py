"""``POST /actions/…``: drain, pause and resume of a source, force of a circuit breaker. Each request is logged with its result.

An action runs on the graph's loop. If the loop does not begin it within ``ControlPlane.patience``, it is withdrawn: it
does not happen later, when it is no longer expected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import cast, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator_adapter.control_plane.access import DenialLog, deny_acting
from orchestrator_adapter.control_plane.answers import as_json
from orchestrator_adapter.control_plane.config import ControlPlane
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.runtime.interventions import CannotIntervene, ForcedState, UnknownName

_QUOTED = 200  # characters of a client's text in a log line
_STATES: tuple[str, ...] = get_args(ForcedState)


class InvalidAction(Exception):
    """A parameter is missing or has a wrong value."""


class Actions:
    """The actions on one graph. Create it on the control plane's loop."""

    def __init__(
        self, built: BuiltGraph, graph_loop: asyncio.AbstractEventLoop, settings: ControlPlane, denials: DenialLog
    ) -> None:
        self._built = built
        self._graph_loop = graph_loop
        self._settings = settings
        self._denials = denials

    @property
    def routes(self) -> tuple[Route, ...]:
        """Their paths."""
        each = {
            "drain": self._drain,
            "pause": self._pause,
            "resume": self._resume,
            "breaker": self._breaker,
        }
        return tuple(
            Route(f"/actions/{name}", self._endpoint(name, make), methods=["POST"]) for name, make in each.items()
        )

    def _endpoint(self, name: str, make: Callable[[Request, str], Callable[[], str]]) -> Callable[[Request], object]:
        async def endpoint(request: Request) -> Response:
            headers = request.headers
            denial = deny_acting(
                self._settings,
                authorization=headers.get("authorization"),
                content_type=headers.get("content-type"),
            )
            if denial is not None:
                self._denials(request, denial)
                return as_json({"error": denial.message}, denial.status, denial.headers)
            who = _who(request, behind_proxy=self._settings.behind_proxy)
            status, result = await self._result(request, who, make)
            what = f"{name} {request.url.query}".strip()[:_QUOTED]
            self._built.record_action(who, what, result)
            return as_json({"result": result} if status == 200 else {"error": result}, status)  # noqa: PLR2004 - HTTP

        return endpoint

    async def _result(
        self, request: Request, who: str, make: Callable[[Request, str], Callable[[], str]]
    ) -> tuple[int, str]:
        try:
            return 200, await self._on_the_graphs_loop(make(request, who))
        except InvalidAction as error:
            return 400, str(error)
        except UnknownName as error:
            return 404, str(error)
        except CannotIntervene as error:
            return 409, str(error)
        except TimeoutError as error:
            return 503, str(error)

    async def _on_the_graphs_loop(self, action: Callable[[], str]) -> str:
        """The result of ``action``. Raises ``TimeoutError`` if the loop does not begin it in time; then it never will."""
        request: Future[str] = Future()
        try:
            self._graph_loop.call_soon_threadsafe(_carry_out, request, action)
        except RuntimeError:  # the loop is closed
            raise CannotIntervene("the run has ended; nothing was done") from None
        patience_s = self._settings.patience.total_seconds()
        await asyncio.wait({result := asyncio.wrap_future(request)}, timeout=patience_s)
        if not result.done() and request.cancel():
            raise TimeoutError(f"the event loop has not answered for {patience_s:g} s; nothing was done")
        return await result

    def _drain(self, _: Request, who: str) -> Callable[[], str]:
        def drain() -> str:
            if self._built.drain(f"requested by {who}"):
                return "the graph drains"
            raise CannotIntervene("the graph drains already, or has ended; nothing was done")

        return drain

    def _pause(self, request: Request, who: str) -> Callable[[], str]:
        source = _parameter(request, "source")

        def pause() -> str:
            changed = self._built.pause_source(source, f"requested by {who}")
            return f"source {source!r} is paused" + ("" if changed else " already")

        return pause

    def _resume(self, request: Request, who: str) -> Callable[[], str]:
        source = _parameter(request, "source")

        def resume() -> str:
            changed = self._built.resume_source(source, f"requested by {who}")
            return f"source {source!r} is resumed" if changed else f"source {source!r} was not paused"

        return resume

    def _breaker(self, request: Request, who: str) -> Callable[[], str]:
        name, state = _parameter(request, "name"), _parameter(request, "state")
        if state not in _STATES:
            raise InvalidAction(f"state: expected {', '.join(_STATES)}, got {state[:_QUOTED]!r}")
        forced = cast("ForcedState", state)

        def force() -> str:
            self._built.force_breaker(name, forced, f"requested by {who}")
            return f"circuit breaker {name!r} " + ("decides by itself" if forced == "auto" else f"is forced {forced}")

        return force


def _carry_out(request: Future[str], action: Callable[[], str]) -> None:
    """On the graph's loop, so it must not raise."""
    if request.set_running_or_notify_cancel():  # else it was withdrawn
        try:
            request.set_result(action())
        except Exception as error:  # noqa: BLE001 - raised where the result is awaited
            request.set_exception(error)


def _parameter(request: Request, name: str) -> str:
    values = request.query_params.getlist(name)
    if len(values) != 1 or not values[0]:
        raise InvalidAction(f"expected one {name} in the query, ?{name}=…, got {len(values)}")
    return values[0]


def _who(request: Request, *, behind_proxy: bool) -> str:
    """The client's address. Behind a proxy, the address that the proxy has added last, and that of the proxy."""
    client = "" if request.client is None else request.client.host
    forwarded = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    if behind_proxy and forwarded:
        return f"{forwarded[:64]} by {client}"
    return client
