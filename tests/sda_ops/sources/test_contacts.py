"""What the sources report as contacts: times before which everything that had arrived has been emitted. On real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter import BuiltGraph, Factory, RestartPolicy
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph, settle
from sda_ops.event_time.promises import PromiseRules, ReadOrder
from sda_ops.event_time.source import OnContact, watermarked
from sda_ops.event_time.watermark import Watermark
from sda_ops.records.observation import Observation
from sda_ops.sources import radar as radar_module
from sda_ops.sources.isl import IslFeed, isl_source
from sda_ops.sources.optical import optical_source
from sda_ops.sources.radar import radar_source
from sda_ops.sources.replay import ReplayFeed, replay_source
from tests.helpers.running import NOON_NS, Fault, GatedSink, datagram, eventually, fed_by, port_of
from tests.sda_ops.sources.isl.beacons import Peers, listener_of, message, messages, received_part
from tests.sda_ops.sources.optical_archive import NOW_NS, Archive, entry, feed
from tests.sda_ops.sources.replay_files import tdm
from tests.sda_ops.sources.test_radar import FEED as RADAR
from tests.sda_ops.sources.test_radar import send

ISL = IslFeed("127.0.0.1", 0)
S = 10**9


@pytest.fixture
async def peers() -> AsyncIterator[Peers]:
    peers = Peers()
    yield peers
    peers.close()


class Contacts:
    """The contacts of a source, each with the number of items that it had emitted by then."""

    def __init__(self, *, start_ns: int | None = None) -> None:
        self.seen: list[tuple[float, int]] = []
        self.built: BuiltGraph | None = None
        self._start_ns = ManualClock().now_ns() if start_ns is None else start_ns

    def __call__(self, at_ns: int) -> None:
        assert self.built is not None
        self.seen.append(((at_ns - self._start_ns) / S, self.built.ledger().ingested))

    @property
    def last(self) -> tuple[float, int] | None:
        """When, in seconds since the start of the clock, and after how many items."""
        return self.seen[-1] if self.seen else None

    async def after(self, built: BuiltGraph, when: tuple[float, int]) -> None:
        await eventually(lambda: self.last == when, f"a contact {when}, last {self.last}")


# Radar.


async def test_a_radar_without_datagrams_has_a_contact_each_second() -> None:
    clock, contacts = ManualClock(), Contacts()

    async def during(built: BuiltGraph) -> None:
        contacts.built = built
        await port_of(built)
        await contacts.after(built, (0.0, 0))
        for second in range(1, 4):
            await clock.advance_when_idle(1.0)
            await contacts.after(built, (float(second), 0))
        built.request_shutdown("test")

    await run_graph(fed_by(radar_source(RADAR, on_contact=contacts), CollectSink()), clock=clock, during=during)
    assert contacts.seen == [(0.0, 0), (1.0, 0), (2.0, 0), (3.0, 0)]


async def test_a_radar_that_waits_for_space_has_no_contact_until_it_has_emptied_its_socket() -> None:
    """Datagrams arrived while it did not read: the time of that drain, not the time before, is a contact."""
    clock, contacts, sink = ManualClock(), Contacts(), GatedSink()

    async def during(built: BuiltGraph) -> None:
        contacts.built = built
        port = await port_of(built)
        await contacts.after(built, (0.0, 0))
        send(port, *map(datagram, range(20)))
        await eventually(lambda: built.ledger().ingested == 20, "the source has read them, and waits")
        for _ in range(5):
            await clock.advance_when_idle(1.0)
        send(port, *map(datagram, range(20, 30)))
        assert contacts.last == (0.0, 0)
        sink.gate.set()
        await contacts.after(built, (5.0, 30))
        built.request_shutdown("test")

    graph = fed_by(radar_source(RADAR, on_contact=contacts), sink, capacity=8)
    await run_graph(graph, clock=clock, during=during)
    assert [contact for contact in contacts.seen if contact[0] < 5.0] == [(0.0, 0), (0.0, 20)]


async def test_in_a_burst_that_keeps_its_socket_full_a_radar_advances_its_mark_by_its_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten consecutive full drains give no contact. The mark follows the newest datagram of each."""
    monkeypatch.setattr(radar_module, "_DRAIN_BATCH", 8)
    clock, sink, contacts = ManualClock(now_ns=NOON_NS + S), CollectSink(controls=True), Contacts(start_ns=NOON_NS)
    rules = PromiseRules(
        max_lateness=timedelta(seconds=2), order=ReadOrder.ARRIVAL, least_step=timedelta(0), idle_after=None
    )

    def make(on_contact: OnContact) -> Factory:
        def both(at_ns: int) -> None:
            contacts(at_ns)
            if contacts.last != (1.0, 0):  # the first drain, of an empty socket, would promise more than the data
                on_contact(at_ns)

        return radar_source(RADAR, on_contact=both)

    async def during(built: BuiltGraph) -> None:
        contacts.built = built
        port = await port_of(built)
        await contacts.after(built, (1.0, 0))
        send(port, *map(datagram, range(80)))
        await contacts.after(built, (1.0, 80))
        built.request_shutdown("test")

    await run_graph(fed_by(watermarked(make, rules, times_of=times_of), sink), clock=clock, during=during)
    marks = [it.time_ns - NOON_NS for it in sink.items if isinstance(it, Watermark) and it.time_ns is not None]
    assert marks == [*(last - 2 * S for last in range(7, 80, 8)), -S]
    assert [emitted for _, emitted in contacts.seen] == [0, 80]


# Optical.


async def test_a_poll_that_returned_nothing_new_is_a_contact_as_of_its_request() -> None:
    """A poll with a new observation is not a contact, because the next one may have more. Nor is a failed poll."""
    clock, contacts = ManualClock(), Contacts()
    async with Archive(entry(1)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            contacts.built = built

            async def polls(count: int) -> None:
                await eventually(lambda: len(archive.requests) == count, f"{count} polls")
                await settle()

            await polls(1)
            assert contacts.last is None
            await clock.advance_when_idle(5.0)
            await contacts.after(built, (5.0, 1))
            archive.entries.append(entry(2))
            await clock.advance_when_idle(5.0)
            await eventually(lambda: built.ledger().ingested == 2, "the second")
            archive.answers.append(None)
            await clock.advance_when_idle(5.0)
            await polls(4)
            assert contacts.last == (5.0, 1)
            await clock.advance_when_idle(1.0)  # the retry
            await contacts.after(built, (16.0, 2))
            built.request_shutdown("test")

        source = optical_source(feed(archive, poll_interval=timedelta(seconds=5)), on_contact=contacts)
        await run_graph(fed_by(source, CollectSink()), clock=clock, during=during)
    assert contacts.seen == [(5.0, 1), (16.0, 2)]


# ISL.


async def test_an_isl_source_has_contact_twice_a_second_while_a_connection_is_live(peers: Peers) -> None:
    """Before the first connection it has no contact, nor once every beacon has been silent for too long."""
    clock, contacts = ManualClock(), Contacts()

    async def during(built: BuiltGraph) -> None:
        contacts.built = built
        await port_of(built)
        for _ in range(4):
            await clock.advance_when_idle(0.5)
        assert contacts.last is None
        beacon, _ = await peers.join(built)
        beacon.send(message(1))
        await eventually(lambda: built.ledger().ingested == 1, "its frame")
        for _ in range(8):
            await clock.advance_when_idle(0.5)
        await contacts.after(built, (4.0, 1))  # live until two seconds after its last data
        beacon.send(message(2))
        await eventually(lambda: built.ledger().ingested == 2, "its next frame")
        await clock.advance_when_idle(0.5)
        await contacts.after(built, (6.5, 2))
        built.request_shutdown("test")

    source = isl_source(ISL, on_contact=contacts, live_for=timedelta(seconds=2))
    await run_graph(fed_by(source, CollectSink()), clock=clock, during=during)
    assert [at for at, _ in contacts.seen if at <= 4.0] == [2.5, 3.0, 3.5, 4.0]


async def test_bytes_that_wait_in_any_connection_keep_an_isl_source_from_a_contact(peers: Peers) -> None:
    """The inbox is full, so no connection is read: what the kernel has received has arrived, and is not emitted."""
    clock, contacts, sink = ManualClock(), Contacts(), GatedSink()

    async def during(built: BuiltGraph) -> None:
        contacts.built = built
        (busy, _), (other, theirs) = await peers.join(built), await peers.join(built)
        busy.send(messages(*range(2_000)))
        listener = listener_of(built)
        await eventually(lambda: listener.paused, "a full inbox")
        before = contacts.last
        other.send(message(5_000))
        await eventually(lambda: theirs.unread_bytes == 76, "the kernel has the other beacon's frame")
        for _ in range(10):
            await clock.advance_when_idle(0.5)
        assert contacts.last == before
        sink.gate.set()
        await eventually(lambda: len(sink.items) == 2_001, "everything")
        await clock.advance_when_idle(0.5)
        await eventually(lambda: contacts.last is not None and contacts.last[1] == 2_001, "a contact")
        built.request_shutdown("test")

    source = isl_source(
        IslFeed("127.0.0.1", 0, inbox_frames=16), on_contact=contacts, live_for=timedelta(seconds=3_600)
    )
    await run_graph(fed_by(source, sink, capacity=8), clock=clock, during=during)


async def test_after_a_pause_an_isl_source_has_no_contact_while_its_observations_are_too_old(peers: Peers) -> None:
    """A beacon that was not read kept what the kernel had no room for. Only its observations show how old that is."""
    clock, contacts, sink = ManualClock(now_ns=NOON_NS + 20 * S), Contacts(start_ns=NOON_NS), GatedSink()

    async def during(built: BuiltGraph) -> None:
        contacts.built = built
        beacon, _ = await peers.join(built)
        beacon.send(messages(*range(1_000)))  # they were measured at noon, 20 s ago
        await eventually(lambda: listener_of(built).paused, "a full inbox")
        sink.gate.set()
        await eventually(lambda: len(sink.items) == 1_000, "everything")
        assert contacts.last == (20.0, 0)  # when the connection was accepted
        await clock.advance_when_idle(0.5)
        assert contacts.last == (20.0, 0)
        beacon.send(message(1_000, at_ns=clock.now_ns()))
        await eventually(lambda: len(sink.items) == 1_001, "an observation that is not behind")
        await clock.advance_when_idle(0.5)
        await contacts.after(built, (21.0, 1_001))
        built.request_shutdown("test")

    source = isl_source(IslFeed("127.0.0.1", 0, inbox_frames=16), on_contact=contacts, live_for=timedelta(seconds=10))
    await run_graph(fed_by(source, sink, capacity=8), clock=clock, during=during)


async def test_a_part_of_a_frame_does_not_keep_an_isl_source_from_a_contact(peers: Peers) -> None:
    """A frame arrives with its last byte."""
    clock, contacts = ManualClock(), Contacts()

    async def during(built: BuiltGraph) -> None:
        contacts.built = built
        beacon, ours = await peers.join(built)
        beacon.send(message(1)[:30])
        await received_part(ours, 30)
        await clock.advance_when_idle(0.5)
        await contacts.after(built, (0.5, 0))
        built.request_shutdown("test")

    await run_graph(fed_by(isl_source(ISL, on_contact=contacts), CollectSink()), clock=clock, during=during)


# The sources with their watermarks.


def times_of(observation: Observation) -> tuple[int, int]:
    return observation.sensor_timestamp, observation.ingest_timestamp


async def test_a_restarted_radar_keeps_its_mark_and_loses_and_repeats_no_datagram() -> None:
    """100 ms and 10 ms are subtracted from the contact. The second instance continues with the mark of the first."""
    clock, sink = ManualClock(now_ns=NOON_NS), CollectSink(controls=True)
    rules = PromiseRules(
        max_lateness=timedelta(milliseconds=100), clock_error=timedelta(milliseconds=10), order=ReadOrder.ARRIVAL
    )
    source = Fault(watermarked(lambda on_contact: radar_source(RADAR, on_contact=on_contact), rules, times_of=times_of))

    def marks() -> list[float]:
        sent = [it.time_ns for it in sink.items if isinstance(it, Watermark)]
        return [round((time_ns - NOON_NS) / S, 9) for time_ns in sent if time_ns is not None]

    async def during(built: BuiltGraph) -> None:
        port = await port_of(built)
        send(port, *map(datagram, range(50)))
        await eventually(lambda: marks() and len(sink.items) - len(marks()) == 50, "fifty, and a mark")
        source.strike()
        await eventually(lambda: source.instances == 2, "the restart")
        send(port, *map(datagram, range(50, 60)))
        await eventually(lambda: len(sink.items) - len(marks()) == 60, "ten more")
        for count in (2, 3):
            await clock.advance_when_idle(1.0)
            await eventually(lambda: len(marks()) >= count, "the next mark")  # noqa: B023 - awaited at once
        built.request_shutdown("test")

    graph = fed_by(source, sink, policy=RestartPolicy.always(backoff=None))
    event = await run_graph(graph, clock=clock, during=during)
    assert marks() == [-0.11, 0.89, 1.89]
    assert event.figures.ledger.ingested == event.figures.ledger.written == 60
    assert event.figures.ledger_holds


@pytest.mark.parametrize("publish_s", [29.9, 35.0])
async def test_an_archive_that_is_35_s_late_against_30_s_breaks_its_promise_and_is_counted(publish_s: float) -> None:
    """Its entry comes behind the mark; an entry that is 29.9 s late is in time."""
    clock, sink = ManualClock(), CollectSink(controls=True)
    rules = PromiseRules(max_lateness=timedelta(seconds=30), order=ReadOrder.EVENT_TIME)
    async with Archive().serving() as archive:

        async def during(built: BuiltGraph) -> None:
            for second in range(40):
                await eventually(lambda: len(archive.requests) > second, "a poll")  # noqa: B023 - awaited at once
                await settle()
                await clock.advance_when_idle(1.0)
            archive.entries.append(entry(1, at_ns=clock.now_ns() - round(publish_s * S)))
            await clock.advance_when_idle(1.0)
            await eventually(lambda: built.ledger().written == 1, "the entry")
            built.request_shutdown("test")

        polled = feed(archive, poll_interval=timedelta(seconds=1))
        source = watermarked(lambda it: optical_source(polled, on_contact=it), rules, times_of=times_of)
        event = await run_graph(fed_by(source, sink), clock=clock, during=during)
    late = event.figures.counters["source"].get("late_at_source", 0)
    assert late == (1 if publish_s > 30 else 0)
    at = next(at for at, it in enumerate(sink.items) if not isinstance(it, Watermark))
    before = sink.items[at - 1]
    assert before.time_ns > NOW_NS
    assert (sink.items[at].sensor_timestamp < before.time_ns) == bool(late)


async def test_a_replay_promises_its_last_event_time(tmp_path: Path) -> None:
    """Years ago, in the time of its files."""
    path = tdm(tmp_path / "track.tdm", 0, 1, 2, 3, 4)
    sink = CollectSink(controls=True)
    rules = PromiseRules(max_lateness=timedelta(0), order=ReadOrder.EVENT_TIME, own_time=True, idle_after=None)
    replayed = replay_source(ReplayFeed(paths=(path,), pace=None))
    await run_graph(fed_by(watermarked(lambda _: replayed, rules, times_of=times_of), sink))
    items: list[Any] = [it for it in sink.items if not isinstance(it, Watermark)]
    assert len(items) == 5
    assert sink.items[-1] == Watermark(items[-1].sensor_timestamp, "source")
