from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter.channels import spilling_edge
from orchestrator_adapter.channels.control import Control
from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.storage.spill import spilled_items
from orchestrator_adapter.testing import settle
from tests.helpers.sizes import examples
from tests.orchestrator_adapter.operators.bench import Bench, cancel

SMALL = 4_000  # bytes; some hundred small integers


def spilling(folder: Path, **options: object) -> Bench:
    policy = FlowPolicy.spill(folder, **options)  # type: ignore[arg-type]
    bench = Bench(capacity=4, policy=policy, bookkeeping=Bookkeeping.SOURCE)
    bench.output.open()
    return bench


def balance(bench: Bench) -> bool:
    """What was emitted is processed, in the edge, on disk, in the outbox, shed or dead-lettered."""
    edge, figures = bench.output, bench.output.statistics()
    processed = edge.reader.account.consumed
    waiting = figures.occupancy + figures.spilled + edge.outbox_items
    return bench.account.emitted == processed + waiting + figures.shed + figures.dead_lettered


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.spill"))


async def test_what_does_not_fit_is_delivered_from_disk_in_order(tmp_path: Path) -> None:
    """A writer of a thousand items never waits for a reader that takes none; the reader then gets them in order."""
    bench = spilling(tmp_path)
    for start in range(0, 1_000, 10):
        await bench.ends.emit(range(start, start + 10))
    figures = bench.output.statistics()
    assert (figures.occupancy, figures.spilled, figures.spilled_total, figures.sent) == (4, 996, 996, 1_000)
    assert figures.spilled_bytes > 0
    assert balance(bench)
    bench.output.close()
    arrived: list[int] = []
    async for item in bench.drain:
        arrived.append(item)
        assert balance(bench)
        assert bench.output.channel.occupancy <= 4
    assert arrived == list(range(1_000))
    figures = bench.output.statistics()
    assert (figures.spilled, figures.spilled_bytes, figures.sent, figures.received) == (0, 0, 1_000, 1_000)
    assert files_in(tmp_path) == []


async def test_the_end_of_the_stream_comes_after_the_items_on_disk(tmp_path: Path) -> None:
    """The writer closes the edge while most items are on disk: the reader sees the end after the last of them."""
    bench = spilling(tmp_path)
    await bench.ends.emit(range(20))
    bench.output.close()
    assert not bench.drain.closed
    taken: list[int] = []
    while not bench.drain.ended:
        taken += bench.drain.try_recv_many(3)
    assert taken == list(range(20))
    assert await bench.drain.recv_many() == []


async def test_a_full_queue_makes_the_writer_wait_and_says_so_once(tmp_path: Path) -> None:
    """The default: backpressure. Nothing is lost, and the log has one line with the cause."""
    bench = spilling(tmp_path, max_bytes=SMALL)
    sending = asyncio.create_task(bench.ends.sender.send_many(range(5_000)))
    await settle()
    assert not sending.done()
    assert bench.output.statistics().spilled_bytes <= SMALL
    arrived: list[int] = []
    while not sending.done() or bench.output.statistics().occupancy:
        arrived += bench.drain.try_recv_many()
        await settle(3)
        assert balance(bench)
    assert arrived == list(range(5_000))
    full = [fields for decision, fields in bench.log if decision == Decision.SPILL_FULL]
    assert len(full) == 1
    assert full[0]["cause"].endswith("of at most 4,000 bytes: the writer waits")


async def test_too_many_control_items_among_the_spilled_items_make_the_writer_wait_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stay in memory. A bound of three, instead of a hundred thousand."""
    monkeypatch.setattr(spilling_edge, "_MAX_SIGNALS", 3)
    bench = spilling(tmp_path, when_full="shed")
    marks = [item for number in range(4) for item in (number, Mark(number))]
    sending = asyncio.create_task(bench.ends.emit([-4, -3, -2, -1, *marks]))
    await settle()
    assert not sending.done()
    (cause,) = [fields["cause"] for decision, fields in bench.log if decision == Decision.SPILL_FULL]
    assert cause == "3 control items wait: the writer waits"
    await cancel(sending)


async def test_a_full_queue_can_shed(tmp_path: Path) -> None:
    """With ``when_full="shed"`` the writer never waits, and what fits neither in the edge nor on disk is counted as shed."""
    bench = spilling(tmp_path, max_bytes=SMALL, when_full="shed")
    for start in range(0, 5_000, 100):
        await bench.ends.emit(range(start, start + 100))
    figures = bench.output.statistics()
    assert figures.shed == figures.policy_drops == 5_000 - 4 - figures.spilled > 0
    assert balance(bench)
    assert bench.drain.try_recv_many() == [0, 1, 2, 3]


async def test_a_cancelled_send_has_not_accepted_what_it_could_not_place(tmp_path: Path) -> None:
    """The items accepted so far are in the edge and on disk; the others are the caller's."""
    bench = spilling(tmp_path, max_bytes=SMALL)
    sending = asyncio.create_task(bench.ends.sender.send_many(range(5_000)))
    await settle()
    await cancel(sending)
    figures = bench.output.statistics()
    assert bench.account.emitted == figures.occupancy + figures.spilled < 5_000
    assert bench.output.outbox == []


async def test_an_item_that_cannot_be_pickled_waits_for_room_in_the_edge(tmp_path: Path) -> None:
    """It is delivered itself, in its place in the order, after the items before it were read from disk."""

    def odd() -> None:
        """A function of a function cannot be pickled."""

    bench = spilling(tmp_path)
    sending = asyncio.create_task(bench.ends.sender.send_many([*range(10), odd, *range(11, 20)]))
    await settle()
    assert not sending.done()
    arrived: list[object] = []
    while not sending.done() or bench.output.statistics().occupancy:
        arrived += bench.drain.try_recv_many()
        await settle(3)
    assert arrived == [*range(10), odd, *range(11, 20)]


async def test_items_that_cannot_be_read_back_are_dead_letters(tmp_path: Path) -> None:
    """A damaged file costs its items, counted one by one, and not the run."""
    bench = spilling(tmp_path)
    await bench.ends.emit(range(10))
    (path,) = files_in(tmp_path)
    os.truncate(path, 0)
    assert bench.drain.try_recv_many() == [0, 1, 2, 3]
    bench.drain.acknowledge()
    ((why, items),) = bench.dead_lettered
    assert str(path) in why
    assert len(items) == bench.output.statistics().dead_lettered == 6
    assert balance(bench)
    await bench.ends.emit([10])
    assert bench.drain.try_recv_many() == [10]


async def test_a_reader_that_ends_leaves_the_files_and_their_number(tmp_path: Path) -> None:
    """What the reader did not take is counted: items in memory and those in the files, which can be read later."""
    bench = spilling(tmp_path)
    await bench.ends.emit(range(2_000))
    assert bench.drain.try_recv_many() == [0, 1, 2, 3]
    bench.drain.acknowledge()
    bench.output.channel.withdraw(leased_only=False)
    left = bench.output.leave_spilled()
    bench.output.finish()
    assert left is not None
    assert left.count == 2_000 - 8
    assert [*left.items, *spilled_items(tmp_path)] == list(range(8, 2_000))
    assert balance(bench)


async def test_the_log_says_what_an_earlier_run_left(tmp_path: Path) -> None:
    """One line with the number of items and files. The items are not delivered."""
    earlier = spilling(tmp_path)
    await earlier.ends.emit(range(100))
    earlier.output.leave_spilled()
    bench = spilling(tmp_path)
    ((decision, fields),) = bench.log
    assert decision == Decision.SPILL_LEFT
    assert (fields["edge"], fields["items"], fields["files"]) == ("op -> out-0", 96, 1)
    await bench.ends.emit([1])
    assert bench.drain.try_recv_many() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_bytes": 0}, r"^FlowPolicy\.spill: max_bytes must be >= 1, got 0$"),
        ({"when_full": "timed"}, r"^FlowPolicy\.spill: when_full must be 'backpressure' or 'shed', got 'timed'$"),
    ],
)
def test_a_spill_policy_checks_its_values(options: dict[str, object], message: str) -> None:
    """What is wrong is said with the value."""
    with pytest.raises(ValueError, match=message):
        FlowPolicy.spill("folder", **options)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Mark(Control):
    after: int


@settings(max_examples=examples(100))
@given(
    capacity=st.integers(1, 5),
    sheds=st.booleans(),
    max_bytes=st.sampled_from([100, 300, 100_000]),
    seed=st.integers(0, 9_999),
    steps=st.lists(st.sampled_from(["emit", "send", "offer", "mark", "take", "take", "fail", "cancel"]), max_size=25),
)
def test_every_item_is_delivered_once_and_in_order_or_shed(
    capacity: int,
    sheds: bool,  # noqa: FBT001 - hypothesis passes names
    max_bytes: int,
    seed: int,
    steps: list[str],
) -> None:
    """For any order of sends, takes, failures and cancellations: the balance always holds, and control items keep their place."""
    rng = random.Random(seed)

    async def scenario(folder: Path) -> None:
        policy = FlowPolicy.spill(folder, max_bytes=max_bytes, when_full="shed" if sheds else "backpressure")
        bench = Bench(capacity=capacity, policy=policy, bookkeeping=Bookkeeping.SOURCE)
        edge, channel = bench.output, bench.output.channel
        edge.open()
        channel.max_signals = 2
        made = marks = 0
        arrived: list[int | Mark] = []
        writing: asyncio.Task[None] | None = None

        def take() -> None:
            edge.acknowledge()
            if taken := channel.take(rng.randint(1, 40)) if channel.ready else []:
                arrived.extend(taken)

        def fail() -> None:
            del arrived[len(arrived) - channel.leased :]
            edge.return_leases("failed", 1_000)

        for step in steps:
            idle = writing is None or writing.done()
            match step:
                case "emit" | "send" if idle:
                    items = range(made, made := made + rng.randint(1, 40))
                    send = bench.ends.emit if step == "emit" else bench.ends.sender.send_many
                    writing = asyncio.create_task(send(items))
                case "offer" if idle:
                    bench.ends.sender.offer(range(made, made := made + rng.randint(1, 40)))
                case "mark" if idle:
                    marks += 1
                    bench.ends.sender.offer_control(Mark(made - 1))
                case "take":
                    take()
                case "fail":
                    fail()
                case "cancel" if writing is not None:
                    writing.cancel()
                    await asyncio.gather(writing, return_exceptions=True)
                case _:
                    pass
            await settle(rng.randrange(4))
            assert balance(bench)
            assert channel.occupancy <= capacity
        while not (writing is None or writing.done()) or edge.outbox or channel.ready or channel.leased:
            take()
            await settle(3)
            if edge.outbox and (writing is None or writing.done()):
                writing = asyncio.create_task(bench.ends.flush())
        assert balance(bench)
        data = [item for item in arrived if not isinstance(item, Mark)]
        assert data == sorted(set(data))
        assert len(data) == bench.account.emitted - bench.account.shed
        assert sheds or bench.account.shed == 0
        assert len(arrived) - len(data) == marks == channel.signals_received
        place = [item.after + 0.5 if isinstance(item, Mark) else item for item in arrived]
        assert place == sorted(place)
        assert files_in(folder) == []
        edge.leave_spilled()

    with TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder)))
