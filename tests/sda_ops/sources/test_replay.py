"""Replay of files: order and pace, restarts, shutdown, malformed entries, and the real tracks."""

from __future__ import annotations

import os
import threading
from collections import deque
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestrator_adapter import BuiltGraph, DeadLetterKind, DeadLetterList
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph, settle
from sda_ops.records.observation import RadarTarget, Uncertainty
from sda_ops.sources import replay
from sda_ops.sources.replay import Playback, ReplayFeed, read_files, replay_source
from sda_ops.wire.tdm import TdmConventions
from tests.helpers.running import FailingStore, Fault, GatedSink, counter, eventually, fed_by, observations
from tests.sda_ops.sources.replay_files import FIRST_NS, iod, offsets_s, tdm

EISCAT = "eiscat_envisat_2016-09-06/2002-009A-2016-09-06_08-27-08.tdm"
NOSS = "optical_noss_2019/tlegen_37386.dat"


def real(*paths: str) -> tuple[Path, ...]:
    root = Path(os.environ.get("SDA_DATA_DIR", Path(__file__).parents[3] / "../shared/data"))
    for path in paths:
        if not (root / path).exists():
            pytest.skip(f"real data absent: no {root / path} (set SDA_DATA_DIR)")
    return tuple(root / path for path in paths)


async def at_each_second(clock: ManualClock, sink: CollectSink, seconds: int) -> list[int]:
    """How many observations have arrived, now and after each further second of the clock."""
    await eventually(lambda: sink.items, "the first observation")
    await settle()
    arrived = [len(sink.items)]
    for _ in range(seconds):
        await clock.advance_when_idle(1.0)
        arrived.append(len(sink.items))
    return arrived


async def test_files_are_merged_in_time_order(tmp_path: Path) -> None:
    """From any format, file or folder; the stream ends after the last, and the ledger balances."""
    feed = ReplayFeed(
        paths=(
            tdm(tmp_path / "a.tdm", 0, 2, 5),
            iod(tmp_path / "b.dat", 1, 2, 9),
            tdm(tmp_path / "c.tdm", 8, 3, participant="VALLEY"),
        ),
        pace=None,
    )
    sink = CollectSink()
    event = await run_graph(fed_by(replay_source(feed), sink))
    assert isinstance(event, events.AllOk)
    assert event.figures.exits["source"] == task_exit.Ok()
    assert offsets_s(sink.items) == [0, 1, 2, 2, 3, 5, 8, 9]
    assert [item.source_id for item in sink.items[2:5]] == ["tdm-HILL", "optical-4172", "tdm-VALLEY"]
    assert [item.source_kind for item in sink.items[:2]] == ["radar", "optical"]
    assert (event.figures.ledger.ingested, event.figures.ledger.written) == (8, 8)
    assert event.figures.ledger_holds


@pytest.mark.parametrize(
    ("pace", "arrived"),
    [(1.0, [1, 2, 3, 3, 3, 5]), (2.0, [1, 3, 3, 5, 5, 5]), (0.5, [1, 1, 2, 2, 3, 3]), (None, [5, 5, 5, 5, 5, 5])],
)
async def test_observations_are_emitted_at_the_pace(tmp_path: Path, pace: float | None, arrived: list[int]) -> None:
    """One measured s seconds after the first is emitted s / pace seconds after it: not sooner and not later."""
    clock, sink = ManualClock(), CollectSink()
    feed = ReplayFeed(paths=(tdm(tmp_path / "a.tdm", 0, 1, 2, 5, 5.0001),), pace=pace)

    async def during(built: BuiltGraph) -> None:
        assert await at_each_second(clock, sink, 5) == arrived
        await clock.advance_when_idle(60.0)

    event = await run_graph(fed_by(replay_source(feed), sink), clock=clock, during=during)
    assert isinstance(event, events.AllOk)
    assert offsets_s(sink.items) == [0, 1, 2, 5, 5.0001]


async def test_the_ingest_time_is_the_time_of_emission(tmp_path: Path) -> None:
    """The sensor's time is the file's, years ago; all other fields are the file's, too."""
    clock, sink = ManualClock(), CollectSink()
    feed = ReplayFeed(
        paths=(tdm(tmp_path / "a.tdm", 0, 2),),
        conventions=TdmConventions(uncertainty=Uncertainty(sigma_range_m=5.0)),
    )

    async def during(built: BuiltGraph) -> None:
        await at_each_second(clock, sink, 2)

    await run_graph(fed_by(replay_source(feed), sink), clock=clock, during=during)
    start_ns = ManualClock().now_ns()
    assert [item.ingest_timestamp - start_ns for item in sink.items] == [0, 2_000_000_000]
    assert [item.sensor_timestamp - FIRST_NS for item in sink.items] == [0, 2_000_000_000]
    assert [item.target for item in sink.items] == [RadarTarget(500_000.0), RadarTarget(501_000.0)]
    assert {item.uncertainty for item in sink.items} == {Uncertainty(sigma_range_m=5.0)}


async def test_the_feeds_angle_sigma_is_used_for_iod_lines_without_one(tmp_path: Path) -> None:
    """And for no others."""
    path = iod(tmp_path / "a.dat", 0, extra="37386 11 014A   4172 E 20190501213235845 17 25 2008223+702585\n")
    feed = ReplayFeed(paths=(path,), conventions=TdmConventions(uncertainty=Uncertainty(sigma_angle_rad=0.25)))
    with_sigma, without_sigma = read_files(feed).observations
    assert with_sigma.uncertainty.sigma_angle_rad == pytest.approx(0.3 / 60 * 3.14159265 / 180)
    assert without_sigma.uncertainty == Uncertainty(sigma_angle_rad=0.25)


async def test_a_restart_in_the_middle_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """The next instance continues at the position and on the schedule of the first, without reading the file again.

    Malformed entries are not counted again either.
    """
    clock, sink = ManualClock(), CollectSink()
    path = iod(tmp_path / "a.dat", *range(20), extra="garbage\n")
    source = Fault(replay_source(ReplayFeed(paths=(path,))))

    async def during(built: BuiltGraph) -> None:
        await at_each_second(clock, sink, 7)
        path.unlink()
        source.strike()
        while source.instances < 2:
            await clock.advance_when_idle(0.1)
        await clock.advance_when_idle(20.0)
        await eventually(lambda: len(sink.items) == 20, "the rest")

    event = await run_graph(fed_by(source, sink), clock=clock, during=during)
    assert isinstance(event, events.AllOk)
    assert offsets_s(sink.items) == list(range(20))
    assert sink.items[-1].ingest_timestamp - sink.items[0].ingest_timestamp <= 28_000_000_000
    assert event.figures.restarts["source"].total == 1
    assert (event.figures.ledger.ingested, event.figures.ledger.written, event.figures.ledger.repeated) == (21, 20, 0)
    assert event.figures.counters["source"]["decode_errors"] == event.figures.ledger.dead_lettered == 1
    assert event.figures.ledger_holds


async def test_a_failure_during_backpressure_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """Observations that wait for room are delivered by the next instance, once."""
    sink = GatedSink()
    source = Fault(
        replay_source(ReplayFeed(paths=(tdm(tmp_path / "a.tdm", *(n / 100 for n in range(1_500))),), pace=None))
    )

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: built._runs["source"].waits_for_space, "the source waits for room")
        source.strike()
        await settle()
        sink.gate.set()

    event = await run_graph(fed_by(source, sink, capacity=8), during=during)
    assert offsets_s(sink.items) == [n / 100 for n in range(1_500)]
    assert event.figures.restarts["source"].total == 1
    assert (event.figures.ledger.ingested, event.figures.ledger.written, event.figures.ledger.repeated) == (
        1_500,
        1_500,
        0,
    )
    assert event.figures.ledger_holds


async def test_a_delayed_source_catches_up(tmp_path: Path) -> None:
    """The schedule is the files': observations that became due are emitted at once, and the next at its own time."""
    clock, sink = ManualClock(), GatedSink()
    feed = ReplayFeed(paths=(tdm(tmp_path / "a.tdm", 0, 1, 2, 3, 4, 5, 6, 20),))

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: built.ledger().ingested == 1, "the first observation")
        for _ in range(10):
            await clock.advance_when_idle(1.0)
        sink.gate.set()
        await settle()
        assert len(sink.items) == 7
        await clock.advance_when_idle(9.9)
        assert len(sink.items) == 7
        await clock.advance_when_idle(0.1)
        assert len(sink.items) == 8

    await run_graph(fed_by(replay_source(feed), sink, capacity=1), clock=clock, during=during)


async def test_a_shutdown_ends_a_wait(tmp_path: Path) -> None:
    """The next observation is due in a week; the source ends without an error, and the ledger has only what was emitted."""
    clock, sink = ManualClock(), CollectSink()
    path = tdm(tmp_path / "a.tdm", 0)
    late = iod(tmp_path / "b.dat", extra="37386 11 014A   4171 G 20190507205224671 17 25 1656431+025146 37 S\n")

    async def during(built: BuiltGraph) -> None:
        await at_each_second(clock, sink, 1)
        built.request_shutdown("test")

    event = await run_graph(fed_by(replay_source(ReplayFeed(paths=(path, late))), sink), clock=clock, during=during)
    assert isinstance(event, events.ShutDown)
    assert event.figures.exits["source"] == task_exit.Ok()
    assert (len(sink.items), event.figures.ledger.ingested) == (1, 1)
    assert not clock.pending_timers


async def test_a_shutdown_ends_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that hangs, as on a network drive, blocks neither the event loop nor the drain."""
    reading, answer = threading.Event(), threading.Event()

    def hang(_: Path) -> bytes:
        reading.set()
        answer.wait()
        return b""

    async def during(built: BuiltGraph) -> None:
        await eventually(reading.is_set, "the source reads")
        built.request_shutdown("test")

    monkeypatch.setattr(replay, "read_regular_file", hang)
    try:
        graph = fed_by(replay_source(ReplayFeed(paths=(tmp_path / "a.tdm",))), CollectSink())
        event = await run_graph(graph, during=during, grace=timedelta(milliseconds=100))  # for the thread that reads
    finally:
        answer.set()
    assert isinstance(event, events.ShutDown)
    assert event.figures.exits["source"] == task_exit.Ok()


async def test_a_shutdown_before_the_start_ends_at_once(tmp_path: Path) -> None:
    """Nothing is ingested."""
    built = fed_by(replay_source(ReplayFeed(paths=(tdm(tmp_path / "a.tdm", 0),))), CollectSink()).build()
    built.request_shutdown("before the run")
    event = await built.run()
    assert isinstance(event, events.ShutDown)
    assert event.figures.ledger.ingested == 0


async def test_malformed_entries_cost_only_themselves(tmp_path: Path) -> None:
    """They are counted and dead-lettered with their bytes, file and line; the good entries are emitted."""
    sink, letters = CollectSink(), DeadLetterList()
    broken = iod(tmp_path / "b.dat", 0, extra="garbage\n" * 3)
    ranging = tmp_path / "c.tdm"
    ranging.write_bytes(tdm(tmp_path / "a.tdm", 1).read_bytes().replace(b"RANGE_UNITS = km", b"RANGE_UNITS = RU"))
    feed = ReplayFeed(paths=(broken, ranging), pace=None)
    event = await run_graph(fed_by(replay_source(feed), sink), dead_letters=letters)
    assert offsets_s(sink.items) == [0]
    assert [letter.payload for letter in letters.letters[:3]] == [b"garbage"] * 3
    assert letters.letters[3].payload == b"RANGE = 2019-05-01T21:32:31.000000 1001\n"
    assert letters.letters[0].message == f"{broken}: IOD line 2: columns 17-20: expected a station's number, got '    '"
    assert letters.letters[3].message == f"{ranging}: TDM line 11: expected RANGE_UNITS s or km, got RU"
    assert {letter.kind for letter in letters.letters} == {DeadLetterKind.DESERIALIZATION}
    assert event.figures.counters["source"]["decode_errors"] == 4
    assert (event.figures.ledger.ingested, event.figures.ledger.dead_lettered) == (5, 4)
    assert event.figures.ledger_holds


async def test_a_failing_dead_letter_store_loses_no_entry(tmp_path: Path) -> None:
    """The next instance offers the entry again, and each is kept and counted once."""
    letters = FailingStore(1)
    path = iod(tmp_path / "a.dat", 0, 1, extra="one\ntwo\n")
    sink = CollectSink()
    event = await run_graph(fed_by(replay_source(ReplayFeed(paths=(path,), pace=None)), sink), dead_letters=letters)
    assert [letter.payload for letter in letters.letters] == [b"one", b"two"]
    assert event.figures.counters["source"]["decode_errors"] == 2
    assert event.figures.restarts["source"].total == 1
    assert offsets_s(sink.items) == [0, 1]
    assert event.figures.ledger_holds


async def test_many_malformed_entries_do_not_block_the_event_loop(tmp_path: Path) -> None:
    """Other tasks run while they are dead-lettered, and none is left out."""
    path = iod(tmp_path / "a.dat", 0, extra="garbage\n" * 2_000)
    sink, seen = CollectSink(), set()

    async def during(built: BuiltGraph) -> None:
        while (count := counter(built, "decode_errors") or 0) < 2_000:
            seen.add(count)
            await settle(1)

    await run_graph(fed_by(replay_source(ReplayFeed(paths=(path,), pace=None)), sink), during=during)
    assert len(seen) > 4


def test_all_problems_of_a_feed_are_reported_together() -> None:
    """One error names each invalid field, its bound and its value."""
    with pytest.raises(ValueError, match="ReplayFeed") as raised:
        ReplayFeed(paths=(), pattern="/etc/*", pace=0.0)
    assert str(raised.value).split("; ") == [
        "ReplayFeed: paths must be one at least, got ()",
        "ReplayFeed: pattern must be a relative glob, got '/etc/*'",
        "ReplayFeed: pace must be > 0 and finite, or None, got 0.0",
    ]
    for pace in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="pace"):
            ReplayFeed(paths=(Path("a"),), pace=pace)


@given(
    st.lists(st.integers(0, 3_000), min_size=1, max_size=40),
    st.lists(st.floats(0, 10), max_size=40),
    st.sampled_from([0.5, 1.0, 60.0]),
)
def test_a_playback_takes_each_observation_once_and_not_too_early(
    times_ms: list[int], call_times_s: list[float], pace: float
) -> None:
    """At any times of the calls: in order, at most a millisecond early, and all of them in the end."""
    base = observations(len(times_ms))
    times_ns = [FIRST_NS + ms * 1_000_000 for ms in sorted(times_ms)]
    items = [replace(item, sensor_timestamp=at) for item, at in zip(base, times_ns, strict=True)]
    playback, taken = Playback(list(items), deque()), []
    for now_s in [100.0, *(100.0 + call_s for call_s in sorted(call_times_s)), 1e6]:
        batch = playback.take(now_s, pace)
        first_ns = items[0].sensor_timestamp
        assert all((o.sensor_timestamp - first_ns) / 1e9 / pace <= now_s - 100.0 + 0.001001 for o in batch)
        taken += batch
        if not playback.done:
            assert playback.wait_s(now_s, pace) > 0.0
    assert taken == items
    assert playback.wait_s(1e6, pace) == 0.0


def test_at_most_one_batch_is_taken_at_a_time() -> None:
    """However much is due: the graph runs in between."""
    playback = Playback(observations(1_300), deque())
    assert [len(playback.take(0.0, None)) for _ in range(4)] == [512, 512, 276, 0]


async def test_the_real_tracks_are_replayed_whole_and_the_same_each_time() -> None:
    """EISCAT's 913 points of ENVISAT and the 29 positions of NOSS 3-5 (A), merged; a second replay has the same ids."""
    radar, optical = real(EISCAT, NOSS)
    feed = ReplayFeed(paths=(optical, radar), pace=None, conventions=TdmConventions(doppler_sign=-1))
    runs = []
    for _ in range(2):
        sink = CollectSink()
        event = await run_graph(fed_by(replay_source(feed), sink))
        assert event.figures.ledger_holds
        runs.append(sink.items)
    assert [item.source_kind for item in runs[0]] == ["radar"] * 913 + ["optical"] * 29
    times = [item.sensor_timestamp for item in runs[0]]
    assert times == sorted(times)
    assert len({item.observation_id for item in runs[0]}) == 942
    assert [item.observation_id for item in runs[0]] == [item.observation_id for item in runs[1]]


async def test_the_real_track_takes_its_recorded_time_divided_by_the_pace() -> None:
    """At 300 times its pace EISCAT's 288.5 s last 0.962 s: incomplete after 0.96 s, complete after 0.97 s."""
    clock, sink = ManualClock(), CollectSink()
    (path,) = real(EISCAT)

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: sink.items, "the first observation")
        for _ in range(96):
            await clock.advance_when_idle(0.01)
        assert len(sink.items) < 913
        await clock.advance_when_idle(0.01)
        assert len(sink.items) == 913

    await run_graph(fed_by(replay_source(ReplayFeed(paths=(path,), pace=300.0)), sink), clock=clock, during=during)
    assert sink.items[-1].ingest_timestamp - sink.items[0].ingest_timestamp == pytest.approx(288.52e9 / 300, abs=1e7)
