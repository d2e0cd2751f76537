"""What ``/metrics`` says, family by family, of graphs in which everything happens that can be counted. No HTTP here."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from orchestrator_adapter import (
    BreakerPolicy,
    BuiltGraph,
    DeadLetterAs,
    DeadLetterKind,
    FlowPolicy,
    OperatorGraph,
    Reject,
    RestartPolicy,
    RetryPolicy,
    SupervisionPolicy,
    WiredEnds,
    map_items,
    sift,
    source_of,
)
from orchestrator_adapter.control_plane.exposition import as_json, families, text, wants_json
from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.resilience import retry
from orchestrator_adapter.resilience.breaker import Refusal
from orchestrator_adapter.testing import (
    CollectSink,
    Fail,
    ListSource,
    ManualClock,
    Pause,
    UntilShutdown,
    chain,
    run_graph,
)
from tests.helpers.running import FailingStore, GatedSink, eventually
from tests.helpers.support import ROOT

SECTION_13 = {
    *("operator_restart_total", "operator_uptime_seconds", "circuit_breaker_state", "retry_attempts_total"),
    *("channel_occupancy", "channel_capacity", "source_ingest_rate", "source_decode_errors_total"),
    *("sink_bytes_written_total", "dead_letters_total", "flow_policy_drops_total", "event_loop_lag_seconds"),
    *("ledger_items", "ledger_balanced"),
}
"""What the specification lists."""

BESIDES = {
    *("operator_up", "operator_items_total", "operator_figure", "source_kernel_drops_total"),
    *("source_last_item_age_seconds", "sink_latency_seconds", "channel_high_water_mark", "circuit_breaker_forced"),
    *("circuit_breaker_refusals_total", "circuit_breaker_open_seconds_total", "event_loop_stalls_total"),
    "snapshot_age_seconds",
}

PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
"""What its server sends as ``Accept``."""

parse_openmetrics: Callable[[str], Any] = openmetrics.text_string_to_metric_families
"""A strict parser, which has no types."""

Figures = dict[tuple[str, ...], float]


def view(built: BuiltGraph, *, lag_s: float = 0.5, stalls: int = 2, age_s: float = 0.25) -> View:
    return View(built.status(), age_s, silent_s=0.0, threshold_s=0.25, lag_s=lag_s, stalls=stalls, held_by="")


def scraped(built: BuiltGraph) -> dict[str, Figures]:
    """By family and label values, in the order of the labels' names: what a Prometheus server reads."""
    body, _ = text(built.plan, view(built), "")
    return figures(parse_text(body.decode()))


def figures(parsed: Any) -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    for family in parsed:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in family.samples
        }
        assert {sample.name for sample in family.samples} <= {name}
    return found


class Everything:
    """A graph with an operator of every role, an edge of every policy, breakers, retries and every way to a dead letter.

    It takes in ten items and two frames that are none. ``call`` asks a partner for each, who fails the first time, and
    rejects item 1; ``fragile`` cannot bear item 5; the eight that are left are copied, for ``screen`` and ``archive``,
    who take nothing, behind edges that hold two.
    """

    def __init__(self) -> None:
        self.screen = GatedSink()
        self.archive = GatedSink()
        self.graph = graph = OperatorGraph("everything")
        feed = graph.add_source("feed", self._feed, endless=True)
        call = graph.add_operator("call", self._call)
        fragile = graph.add_operator("fragile", map_items(self._fragile))
        split = graph.add_fan_out("split")
        screen = graph.add_sink("screen", self._screen)
        archive = graph.add_sink("archive", self.archive)
        graph.connect(feed, call, 16)
        graph.connect(call, fragile, 16)
        graph.connect(fragile, split, 16)
        graph.connect(split, screen, 2, policy=FlowPolicy.shed())
        graph.connect(split, archive, 2, policy=FlowPolicy.timed(timedelta(milliseconds=1)))

    async def run(self, look: Callable[[BuiltGraph], Coroutine[Any, Any, None]]) -> BuiltGraph:
        """Run it; look at it when all has come to rest; and let it end."""
        kept: list[BuiltGraph] = []

        async def during(built: BuiltGraph) -> None:
            kept.append(built)
            await eventually(lambda: built.ledger().dead_lettered == 2 + 1 + 6, "the last dead letter")
            await look(built)
            built.request_shutdown("seen")
            self.screen.gate.set()
            self.archive.gate.set()

        event = await run_graph(self.graph, during=during)
        assert event.figures.ledger_holds
        return kept[0]

    async def _feed(self, ends: WiredEnds) -> None:
        for frame in (b"x", b"y"):
            ends.dead_letter(frame, DeadLetterKind.DESERIALIZATION, "no frame")
            ends.count("decode_errors")
        ends.gauge("kernel_drops", 3)
        ends.gauge("port", 9201)
        await ends.emit(range(10))
        await ends.shutdown.wait()

    async def _call(self, ends: WiredEnds) -> None:
        policy = BreakerPolicy(threshold=1.0, min_calls=100)
        partner = ends.breaker("partner", policy)
        ends.breaker("broken", policy).force_open("by hand")
        assert isinstance(ends.breaker("broken", policy).ask(), Refusal)
        quick = RetryPolicy(timedelta(microseconds=1), timedelta(microseconds=1), 5)
        failures = [OSError("at first")]

        async for item in ends.receiver:

            async def ask(item: int = item) -> retry.RetryDisposition[int]:
                return retry.Retry(failures.pop()) if failures else retry.RetryOk(item)

            await ends.with_retry(quick, ask, breaker=partner)
            if item == 1:
                ends.reject(item, "not this one")
                ends.commit([], acknowledge=1)
            else:
                ends.commit([item], acknowledge=1)
            await ends.flush()

    def _fragile(self, item: int) -> int:
        if item == 5:
            raise OSError("not five")
        return item

    async def _screen(self, ends: WiredEnds) -> None:
        ends.count("bytes_written", 77)
        ends.count("decode_errors", 4)  # of a sink: a figure like any other
        ends.latency.record(2_000_000_000, 100)
        await self.screen(ends)


async def test_every_family_has_the_values_of_what_happened() -> None:
    """On a graph with every kind of vertex, edge, breaker and dead letter, each figure is the one that must come out."""
    seen: list[dict[str, Figures]] = []

    async def look(built: BuiltGraph) -> None:
        seen.append(scraped(built))

    await Everything().run(look)
    (told,) = seen
    assert set(told) == SECTION_13 | BESIDES
    assert told["operator_restart_total"] == {
        **{(name,): 0 for name in ("feed", "call", "split", "screen", "archive")},
        ("fragile",): 2,
    }
    assert told["operator_up"] == {(name,): 1 for name in ("feed", "call", "fragile", "split", "screen", "archive")}
    assert all(uptime > 0 for uptime in told["operator_uptime_seconds"].values())
    assert told["operator_items_total"] == {  # direction, operator
        ("consumed", "feed"): 0,
        ("emitted", "feed"): 10,
        ("consumed", "call"): 10,
        ("emitted", "call"): 9,
        ("consumed", "fragile"): 9,
        ("emitted", "fragile"): 8,
        ("consumed", "split"): 8,
        ("emitted", "split"): 16,
        ("consumed", "screen"): 0,
        ("emitted", "screen"): 0,
        ("consumed", "archive"): 0,
        ("emitted", "archive"): 0,
    }
    assert told["circuit_breaker_state"] == {("partner",): 0, ("broken",): 1}
    assert told["circuit_breaker_forced"] == {("partner",): 0, ("broken",): 1}
    assert told["circuit_breaker_refusals_total"] == {("partner",): 0, ("broken",): 1}
    assert told["circuit_breaker_open_seconds_total"][("partner",)] == 0
    assert told["circuit_breaker_open_seconds_total"][("broken",)] > 0
    assert told["retry_attempts_total"] == {("call",): 1}
    assert told["channel_occupancy"] == {
        ("feed -> call",): 0,
        ("call -> fragile",): 0,
        ("fragile -> split",): 0,
        ("split -> screen",): 2,
        ("split -> archive",): 2,
    }
    assert set(told["channel_capacity"].values()) == {16, 2}
    assert told["channel_high_water_mark"][("feed -> call",)] == 10
    assert told["channel_high_water_mark"][("split -> screen",)] == 2
    assert told["source_ingest_rate"][("feed",)] > 0
    assert told["source_decode_errors_total"] == {("feed",): 2}
    assert told["source_kernel_drops_total"] == {("feed",): 3}
    assert told["source_last_item_age_seconds"][("feed",)] > 0
    assert told["sink_bytes_written_total"] == {("screen",): 77}
    assert told["sink_latency_seconds"] == {
        ("0.5", "screen"): pytest.approx(2, rel=0.045),
        ("0.99", "screen"): pytest.approx(2, rel=0.045),
        ("1", "screen"): 2,
    }
    dead = told["dead_letters_total"]  # kind, operator
    assert {labels: count for labels, count in dead.items() if count} == {
        ("Deserialization", "feed"): 2,
        ("ValidationFailed", "call"): 1,
        ("PoisonPill", "fragile"): 1,
        ("Undelivered", "split"): 6,
    }
    assert len(dead) == 6 * len(DeadLetterKind)
    assert told["flow_policy_drops_total"] == {
        ("feed -> call", "backpressure"): 0,
        ("call -> fragile", "backpressure"): 0,
        ("fragile -> split", "backpressure"): 0,
        ("split -> screen", "shed"): 6,
        ("split -> archive", "timed"): 6,
    }
    assert told["ledger_items"] == {
        ("ingested",): 12,
        ("repeated",): 0,
        ("derived",): 8,
        ("written",): 0,
        ("duplicates",): 0,
        ("rejected",): 1,
        ("discarded",): 0,
        ("absorbed",): 0,
        ("shed",): 6,
        ("dead_lettered",): 9,
        ("in_flight",): 4,
    }
    assert told["ledger_balanced"] == {(): 1}
    assert told["event_loop_lag_seconds"] == {(): 0.5}
    assert told["event_loop_stalls_total"] == {(): 2}
    assert told["snapshot_age_seconds"] == {(): 0.25}
    assert told["operator_figure"] == {("port", "feed"): 9201, ("decode_errors", "screen"): 4}


async def test_every_family_has_a_help_and_every_format_tells_the_same() -> None:
    """Prometheus text, OpenMetrics (which its strict parser accepts) and JSON: the same families, samples and values."""

    async def look(built: BuiltGraph) -> None:
        fixed = view(built)
        plain, plain_type = text(built.plan, fixed, "text/plain;version=0.0.4;q=0.5,*/*;q=0.1")
        open_, open_type = text(built.plan, fixed, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        assert plain_type.startswith("text/plain; version=0.0.4")
        assert open_type.startswith("application/openmetrics-text; version=1.0.0")
        assert open_.endswith(b"# EOF\n")
        told = figures(parse_text(plain.decode()))
        assert figures(parse_openmetrics(open_.decode())) == told
        listed = as_json(built.plan, fixed)["metrics"]
        assert {
            family["name"]: {
                tuple(value for _, value in sorted(sample["labels"].items())): sample["value"]
                for sample in family["samples"]
            }
            for family in listed
        } == told
        assert all(sample["name"] == family["name"] for family in listed for sample in family["samples"])
        assert {family["type"] for family in listed} == {"counter", "gauge"}
        assert all(len(family["help"].split()) > 2 for family in listed)
        documented: list[Metric] = list(families(built.plan, fixed))
        assert len({family.documentation for family in documented}) == len(documented)
        looked.append(built)

    looked: list[BuiltGraph] = []
    await Everything().run(look)
    assert looked


def test_what_has_not_begun_is_told_with_zeros_and_without_claims() -> None:
    """No rate but 0, no age of an item that never came, no bytes of a sink that does not count them, no breaker."""
    told = scraped(chain(source_of([1]), CollectSink()).build())
    assert set(told) == SECTION_13 | BESIDES
    assert told["operator_up"] == {("source",): 0, ("sink",): 0}
    assert told["operator_uptime_seconds"] == {("source",): 0, ("sink",): 0}
    assert told["source_ingest_rate"] == told["source_decode_errors_total"] == {("source",): 0}
    for absent in (
        *("source_last_item_age_seconds", "source_kernel_drops_total", "sink_bytes_written_total"),
        *("sink_latency_seconds", "circuit_breaker_state", "retry_attempts_total", "operator_figure"),
    ):
        assert told[absent] == {}


def test_the_documentation_lists_exactly_these_families_with_their_types() -> None:
    """``docs/control-plane.md`` is the reference: a family that is new, renamed or gone must be so there, too."""
    rows = re.findall(
        r"^\| `(\w+)` \| (counter|gauge) \|", (ROOT / "docs" / "control-plane.md").read_text(), re.MULTILINE
    )
    built = chain(source_of([1]), CollectSink()).build()
    assert dict(rows) == {family["name"]: family["type"] for family in as_json(built.plan, view(built))["metrics"]}
    assert len(rows) == len(SECTION_13 | BESIDES)


def test_names_may_be_anything() -> None:
    """Quotes, backslashes, line breaks and what is not ASCII come back as they were."""
    name = 'a "b"\\c\nd ✓'
    graph = OperatorGraph("odd")
    graph.connect(graph.add_source(name, source_of([])), graph.add_sink("sink", CollectSink()), 1)
    assert (name,) in scraped(graph.build())["operator_up"]
    built = graph.build()
    body, _ = text(built.plan, view(built), "application/openmetrics-text")
    assert (name,) in figures(parse_openmetrics(body.decode()))["operator_up"]


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("", False),
        ("*/*", False),
        ("application/*", False),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("text/html, application/json;q=0.9, */*;q=0.8", True),
        ("application/json;q=0.4, text/plain;q=0.5", False),
        ("application/json;q=0.5, text/plain;q=0.4", True),
        ("application/json, application/openmetrics-text", False),
        ("application/json;q=0", False),
        ("application/json;q=nonsense", False),
        ("application/jsonp", False),
        (
            PROMETHEUS_3,
            False,
        ),
    ],
)
def test_json_is_for_who_asks_for_it(accept: str, json: bool) -> None:  # noqa: FBT001 - a table's column
    """By name, and no less than for text; a Prometheus server gets text whatever else it can read."""
    assert wants_json(accept) is json


@pytest.mark.parametrize("accept", ["application/openmetrics-text;version=abc", "text/plain;version=", ";;;,=,q", "☃"])
def test_an_accept_header_that_makes_no_sense_gets_plain_text(accept: str) -> None:
    """And no error."""
    built = chain(source_of([1]), CollectSink()).build()
    _, content_type = text(built.plan, view(built), accept)
    assert content_type.startswith("text/plain; version=0.0.4")


# Dead letters by operator and kind.


async def test_the_dead_letters_by_kind_are_the_ledgers_whatever_the_way_there() -> None:
    """Rejected, buried, poison, panic's leases, undelivered, timed out; also those that the store would not keep."""
    ways = Counter[DeadLetterKind]()
    for seed in range(40):
        rng = random.Random(seed)
        sink = GatedSink()
        graph = OperatorGraph("dead")
        source = graph.add_source("source", ListSource(list(range(60)), UntilShutdown()))
        check = graph.add_operator("check", sift(_judge(rng)))
        work = graph.add_operator("work", map_items(_fails(rng)), restart_policy=RestartPolicy.always())
        graph.connect(source, check, rng.choice([1, 8]))
        graph.connect(check, work, rng.choice([1, 8]))
        policy = rng.choice([FlowPolicy.timed(timedelta(milliseconds=1)), FlowPolicy.shed(), FlowPolicy.backpressure()])
        graph.connect(work, graph.add_sink("sink", sink), 4, policy=policy)
        kept: list[BuiltGraph] = []

        async def during(built: BuiltGraph, kept: list[BuiltGraph] = kept, rng: random.Random = rng) -> None:
            kept.append(built)
            for _ in range(rng.randrange(200)):
                await asyncio.sleep(0)  # a turn of the loop
                _agree(built)
            built.request_shutdown("first")
            built.request_shutdown("second")

        event = await run_graph(
            graph,
            during=during,
            dead_letters=FailingStore(rng.randrange(6)),
            policy=SupervisionPolicy(patience=timedelta(milliseconds=50)),
        )
        assert event.figures.ledger.balanced
        ways += _agree(kept[0])
    assert set(ways) == {
        *(DeadLetterKind.VALIDATION_FAILED, DeadLetterKind.SCHEMA_MISMATCH, DeadLetterKind.POISON_PILL),
        *(DeadLetterKind.PROCESSING_EXCEPTION, DeadLetterKind.UNDELIVERED),
    }


def _agree(built: BuiltGraph) -> Counter[DeadLetterKind]:
    """Hold every edge's and operator's figures against the ledger's. The dead letters by kind."""
    status = built.status()
    by_kind = Counter[DeadLetterKind]()
    for operator in status.operators:
        by_kind.update(operator.dead_letters)
    assert by_kind.total() == status.ledger.dead_lettered + status.ledger.rejected
    assert by_kind[DeadLetterKind.VALIDATION_FAILED] == status.ledger.rejected
    drops = sum(edge.policy_drops for edge in status.edges.values())
    assert status.ledger.shed <= drops <= status.ledger.shed + by_kind[DeadLetterKind.UNDELIVERED]
    return by_kind


def _judge(rng: random.Random) -> Callable[[int], Reject | DeadLetterAs | None]:
    def judge(item: int) -> Reject | DeadLetterAs | None:
        match rng.randrange(8):
            case 0:
                return Reject("not believed")
            case 1:
                return DeadLetterAs(DeadLetterKind.SCHEMA_MISMATCH, "not agreed on")
            case _:
                return None

    return judge


def _fails(rng: random.Random) -> Callable[[int], int]:
    panics_at = rng.choice([None, 40])

    def work(item: int) -> int:
        if item == panics_at:
            raise KeyError(item)
        if item % 10 == 7:
            raise OSError("poison")
        return item

    return work


async def test_what_is_buried_for_a_branch_that_is_done_is_no_drop_of_the_edges_policy() -> None:
    """The dead letters know it, the flow policy does not."""

    async def first_only(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    async def look(built: BuiltGraph) -> None:
        await eventually(lambda: built.status().edges["split -> one"].dead_lettered == 9, "the items nobody wants")
        told = scraped(built)
        assert set(told["flow_policy_drops_total"].values()) == {0}
        assert told["dead_letters_total"][("Undelivered", "split")] > 0
        looked.append(told)
        built.request_shutdown("enough")

    looked: list[Any] = []
    graph = OperatorGraph("branches")
    source = graph.add_source("source", ListSource([1], list(range(9)), UntilShutdown()))
    split = graph.add_fan_out("split")
    graph.connect(source, split, 1)
    graph.connect(split, graph.add_sink("one", first_only), 4, policy=FlowPolicy.shed())
    graph.connect(split, graph.add_sink("two", CollectSink()), 4)
    await run_graph(graph, during=look, policy=SupervisionPolicy(done_when=frozenset({"one", "two"})))
    assert looked


# The rate.


async def test_the_rate_is_of_all_that_a_source_takes_in_and_goes_on_across_its_restarts() -> None:
    """Items, malformed frames, duplicates and what is of no interest; a restart forgets nothing and starts nothing anew."""
    clock = ManualClock()

    async def odd(ends: WiredEnds) -> None:
        if ends.instance == 1:
            ends.dead_letter(b"x", DeadLetterKind.DESERIALIZATION, "no frame")
            ends.duplicate(2)
            ends.discard(3)
        await script(ends)

    async def look(built: BuiltGraph) -> None:
        await clock.advance_when_idle(10)
        before = built.status().operators[0]
        assert before.restarts == 0
        assert before.ingest_rate_per_s == pytest.approx((1 + 2 + 3 + 4) / 10, rel=0.2)
        await clock.advance_when_idle(10)
        after = built.status().operators[0]
        assert after.restarts == 1
        assert after.ingest_rate_per_s == pytest.approx((10 + 10) / 20, rel=0.2)
        assert built.status().operators[1].ingest_rate_per_s is None
        built.request_shutdown("enough")

    script = ListSource([0] * 4, Pause(timedelta(seconds=15)), Fail(OSError("cable")), [0] * 10, UntilShutdown())
    await run_graph(chain(odd, CollectSink()), clock=clock, during=look)
