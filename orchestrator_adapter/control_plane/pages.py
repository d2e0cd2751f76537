"""Every page of the control plane: which path has which answer."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from orchestrator_adapter.control_plane.access import READS
from orchestrator_adapter.control_plane.answers import Answers, answer, as_json
from orchestrator_adapter.control_plane.collectors import Collectors
from orchestrator_adapter.control_plane.event_stream import EventStreams, Renders
from orchestrator_adapter.control_plane.exposition import JSON, text_format, wants_json
from orchestrator_adapter.control_plane.exposition import as_json as metrics_as_json
from orchestrator_adapter.control_plane.health import Health, health_of
from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.graph.plan import Plan

_INDEX = "index.html"
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".json": JSON,
}


def page_files() -> Mapping[str, bytes]:
    """The files of the live page, by their path below ``page``. Reads the disk."""
    return dict(_files_below(files("orchestrator_adapter.control_plane") / "page", ""))


def _files_below(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for each in folder.iterdir():
        if each.is_dir():
            found += _files_below(each, f"{prefix}{each.name}/")
        else:
            found.append((f"{prefix}{each.name}", each.read_bytes()))
    return found


def application(
    plan: Plan,
    answers: Answers,
    collectors: Collectors,
    *,
    documents: Renders,
    streams: EventStreams,
    page: Mapping[str, bytes],
    more: tuple[Route, ...] = (),
) -> Starlette:
    """The pages, and ``more`` of them."""

    def health_page(view: View) -> Response:
        health = _health(view)
        body = {
            "status": health.status.value,
            "reasons": list(health.reasons),
            "graph": plan.name,
            "event_loop_lag_s": view.lag_s,
            "snapshot_age_s": view.age_s,
        }
        return as_json(body, 200 if health.ok else 503)

    def status_only(view: View) -> Response:
        health = _health(view)
        return as_json({"status": health.status.value}, 200 if health.ok else 503)

    async def health(request: Request) -> Response:
        if not request.scope["state"][READS]:
            return await answers.get("status", status_only)
        return await answers.get("health", health_page)

    async def metrics(request: Request) -> Response:
        accept = ",".join(request.headers.getlist("accept"))
        if wants_json(accept):
            return await answers.get(JSON, lambda view: as_json(metrics_as_json(plan, view, collectors)))
        text = text_format(accept)
        return await answers.get(
            text.content_type, lambda view: answer(text.render(plan, view, collectors), text.content_type)
        )

    async def live(_: Request) -> Response:
        return _file(page, _INDEX)

    async def page_file(request: Request) -> Response:
        return _file(page, request.path_params["name"])

    async def graph(_: Request) -> Response:
        return answer(await documents.current(), JSON)

    named = [
        Route("/", live),
        Route("/graph", graph),
        Route("/events", streams.answer),
        Route("/health", health),
        Route("/metrics", metrics),
        *more,
    ]
    pages: list[BaseRoute] = [*named, Route("/page/{name:path}", page_file)]

    async def rejected(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        body = {"error": error.detail, "pages": [page.path for page in named]}
        return as_json(body, error.status_code, error.headers)

    async def failed(_: Request, error: Exception) -> Response:
        return as_json({"error": f"{type(error).__name__}: {error}"}, 500)

    app = Starlette(routes=pages, exception_handlers={HTTPException: rejected, Exception: failed})
    app.router.redirect_slashes = False  # /health/ is not a page: 404
    return app


def _health(view: View) -> Health:
    return health_of(view.status, silent_s=view.silent_s, threshold_s=view.threshold_s, blocked_by=view.blocked_by)


def _file(page: Mapping[str, bytes], name: str) -> Response:
    """A file of the page. A name is compared with those that there are, so it cannot lead anywhere else."""
    if (content := page.get(name)) is None:
        raise HTTPException(404)
    return answer(content, _CONTENT_TYPES.get(name[name.rfind(".") :], "text/plain; charset=utf-8"))
