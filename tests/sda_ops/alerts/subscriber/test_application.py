from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from sda_ops.alerts.delivery.signature import signed_headers, signing_key
from sda_ops.alerts.formats.json import alert_json
from sda_ops.alerts.subscriber.application import application
from sda_ops.alerts.subscriber.plain_line import plain_line
from sda_ops.alerts.subscriber.table import ReceivedAlert, SubscriberTable
from sda_ops.records.alert import Alert
from tests.helpers.alerts import risk

ID = UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
NOW_NS = 1_767_268_800_000_000_000
KEY = signing_key("one that both know")


@pytest.fixture
def table(tmp_path: Path) -> SubscriberTable:
    return SubscriberTable(tmp_path / "made" / "alerts.sqlite")


def client(
    table: SubscriberTable, key: bytes | None = None, on_alert: Callable[[ReceivedAlert], object] | None = None
) -> httpx.AsyncClient:
    app = application(table, now_ns=lambda: NOW_NS, key=key, on_alert=on_alert)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://subscriber")


async def test_a_repeat_is_answered_as_the_first_and_acted_on_once(table: SubscriberTable) -> None:
    acted: list[str] = []
    async with client(table, on_alert=lambda alert: acted.append(alert.key)) as http:
        for key in (f"{ID}/0", f"{ID}/0", f"{ID}/1", f"{ID}/0"):
            answer = await http.post("/alerts", content=b"{}", headers={"Idempotency-Key": key})
            assert answer.status_code == 200
    assert table.keys() == [(ID, 0), (ID, 1)]
    assert acted == [f"{ID}/0", f"{ID}/1"]
    assert table.deliveries() == 4


async def test_what_was_seen_is_known_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "alerts.sqlite"
    for _ in range(2):
        table = SubscriberTable(path)
        async with client(table) as http:
            await http.post("/", content=b"{}", headers={"Idempotency-Key": f"{ID}/0"})
        assert table.keys() == [(ID, 0)]
        table.close()


async def test_only_a_delivery_with_the_right_signature_is_stored(table: SubscriberTable) -> None:
    signed = signed_headers(KEY, f"{ID}/0", NOW_NS // 10**9, b"{}")
    async with client(table, key=KEY) as http:
        identity = {"Idempotency-Key": f"{ID}/0"}
        assert (await http.post("/", content=b"{}", headers=identity)).status_code == 401
        assert (await http.post("/", content=b"{1}", headers=identity | signed)).status_code == 401
        assert table.keys() == []
        assert (await http.post("/", content=b"{}", headers=identity | signed)).status_code == 200
    assert table.keys() == [(ID, 0)]


@pytest.mark.parametrize("key", ["", f"{ID}", f"{ID}/", f"{ID}/-1", f"{ID}/1.0", "x/0", f"{ID}/{10**30}"])
async def test_a_delivery_without_a_valid_key_is_rejected(table: SubscriberTable, key: str) -> None:
    async with client(table) as http:
        answer = await http.post("/", content=b"{}", headers={"Idempotency-Key": key})
    assert answer.status_code == 400
    assert table.keys() == []


async def test_a_body_that_is_too_large_is_rejected_before_its_end(table: SubscriberTable) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield bytes(1 << 16)

    async with client(table) as http:
        answer = await http.post("/", content=endless(), headers={"Idempotency-Key": f"{ID}/0"})
    assert answer.status_code == 413
    assert sent < 1 << 22
    assert table.keys() == []


async def test_an_alert_that_cannot_be_written_is_to_be_sent_again(table: SubscriberTable) -> None:
    table.close()
    async with client(table) as http:
        answer = await http.post("/", content=b"{}", headers={"Idempotency-Key": f"{ID}/0"})
    assert answer.status_code == 503


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        ("application/json", b"[1]", ": (not an alert in JSON, version 1)"),
        ("application/json", b"\xff{", ": (not an alert in JSON, version 1)"),
        ("application/json", b'{"objects": [1, 2]}', ": (not an alert in JSON, version 1)"),
        (
            "text/plain; charset=utf-8",
            b"TCA = 2026-01-01T12:00:00.000\nMISS_DISTANCE = 83.4 [m]",
            ": 83.4 m at 2026-01-01T12:00:00.000 UTC",
        ),
        (
            "application/xml",
            b'<TCA>2026-01-01T12:00:00.000</TCA><MISS_DISTANCE units="m">83.4</MISS_DISTANCE>',
            ": 83.4 m at 2026-01-01T12:00:00.000 UTC",
        ),
        (
            "text/plain; charset=utf-8",
            b"COMMENT STATUS = RETRACTED\nTCA = 2026-01-01T12:00:00.000\nMISS_DISTANCE = 83.4 [m]",
            ": retracted: 83.4 m at 2026-01-01T12:00:00.000 UTC",
        ),
        (
            "application/xml",
            b"<COMMENT>STATUS = RETRACTED</COMMENT><TCA>2026-01-01T12:00:00.000</TCA><MISS_DISTANCE>83.4</MISS_DISTANCE>",
            ": retracted: 83.4 m at 2026-01-01T12:00:00.000 UTC",
        ),
        ("application/xml", b"<TCA>\x1b[31m</TCA><MISS_DISTANCE>1</MISS_DISTANCE>", ": 1 m at ?[31m UTC"),
        ("application/xml", b"<html>", ""),
    ],
)
def test_an_alert_is_one_printable_line(content_type: str, body: bytes, said: str) -> None:
    assert plain_line(ReceivedAlert(ID, 3, content_type, body, NOW_NS)) == f"alert {ID}/3{said}"


def test_an_alert_of_sda_fusion_is_one_line_with_objects_distance_and_time() -> None:
    alert = Alert(conjunction_id=ID, revision=3, severity="high", recorded_timestamp=NOW_NS, risk=risk(0))
    received = ReceivedAlert(ID, 3, "application/json", alert_json(alert), NOW_NS)
    assert plain_line(received) == f"alert {ID}/3: high, provisional: 1 and 2, 300 m at 2035-12-30T12:00:00 UTC"
