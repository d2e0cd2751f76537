"""``GET /dead-letters?operator=&before=&limit=``: the last dead letters, the newest first, without their items."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator_adapter.control_plane.answers import answer, as_json
from orchestrator_adapter.control_plane.document import DeadLetterPage, DeadLetterRow
from orchestrator_adapter.control_plane.exposition import JSON
from orchestrator_adapter.graph.plan import Plan
from orchestrator_adapter.storage.recent_dead_letters import RecentDeadLetters

_LIMIT, _MOST = 20, 100
_DIGITS = 18  # of a number in the query: far above every count


def dead_letters_route(plan: Plan, recent: RecentDeadLetters) -> Route:
    """The page."""
    operators = {vertex.name for vertex in plan.order}

    async def dead_letters(request: Request) -> Response:
        query = request.query_params
        operator = query.get("operator") or None
        if operator is not None and operator not in operators:
            names = ", ".join(sorted(operators))
            return as_json({"error": f"there is no operator {operator[:100]!r}; there are: {names}"}, 404)
        try:
            before, limit = _number(query.get("before"), "before"), _number(query.get("limit"), "limit")
        except ValueError as error:
            return as_json({"error": str(error)}, 400)
        page = recent.page(operator=operator, before=before, limit=min(limit or _LIMIT, _MOST))
        body = DeadLetterPage(
            letters=tuple(
                DeadLetterRow(
                    number=letter.number,
                    at=letter.time_ns / 1e9,
                    operator=letter.operator,
                    kind=letter.kind,
                    message=letter.message,
                    attempts=letter.attempts,
                    payload=letter.payload,
                )
                for letter in page.letters
            ),
            total=page.total,
            kept=page.kept,
            next_before=page.letters[-1].number if page.more else None,
        )
        return answer(msgspec.json.encode(body), JSON)

    return Route("/dead-letters", dead_letters)


def _number(text: str | None, name: str) -> int | None:
    """A number of at least 1; ``None`` if it is missing or empty."""
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) >= 1):
        raise ValueError(f"{name}: expected a number of at least 1, got {text[:100]!r}")
    return int(text)
