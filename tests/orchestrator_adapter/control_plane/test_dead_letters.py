"""``GET /dead-letters`` over HTTP."""

from __future__ import annotations

from orchestrator_adapter import DeadLetterKind, WiredEnds, map_items
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.control_plane import fetch, served
from tests.helpers.running import eventually


async def test_dead_letters_are_paged_and_have_no_payload() -> None:
    """The newest first, by operator and all; what the item was is not sent, only its type and size."""

    async def source(ends: WiredEnds) -> None:
        for number in range(30):
            frame = f"SECRET {number}".encode()
            ends.dead_letter(frame, DeadLetterKind.DESERIALIZATION, f"frame {number} is too short")
        await ends.emit([1])
        await ends.shutdown.wait()

    built = chain(source, map_items(lambda item: item), CollectSink()).build()

    async def during(url: str) -> None:
        await eventually(lambda: built.ledger().written == 1, "the item behind them")
        answer = await fetch(f"{url}/dead-letters")
        assert "SECRET" not in answer.text
        first = answer.json()
        assert (len(first["letters"]), first["total"], first["kept"], first["next_before"]) == (20, 30, 30, 11)
        newest = first["letters"][0]
        assert newest["at"] > 0
        del newest["at"]
        assert newest == {
            "number": 30,
            "operator": "source",
            "kind": "Deserialization",
            "message": "frame 29 is too short",
            "attempts": 1,
            "payload": "bytes (9)",
        }
        rest = (await fetch(f"{url}/dead-letters?operator=source&before=11&limit=100")).json()
        assert [letter["number"] for letter in rest["letters"]] == list(range(10, 0, -1))
        assert rest["next_before"] is None
        assert (await fetch(f"{url}/dead-letters?operator=sink")).json()["total"] == 0

        for query, status, message in (
            ("operator=absent", 404, "there is no operator 'absent'; there are: op-1, sink, source"),
            ("limit=0", 400, "limit: expected a number of at least 1, got '0'"),
            ("before=x", 400, "before: expected a number of at least 1, got 'x'"),
            (f"before={'9' * 5_000}", 400, f"before: expected a number of at least 1, got '{'9' * 100}'"),
        ):
            wrong = await fetch(f"{url}/dead-letters?{query}")
            assert (wrong.status_code, wrong.json()) == (status, {"error": message})

    await served(built, during)
