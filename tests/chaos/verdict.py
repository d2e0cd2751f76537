"""The oracle of a schedule: the promises that hold at the end of every run, with every kind of fault.

It walks the graph once, from the sources on. It knows nothing of channels, leases or supervisors.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from typing import TypeAlias

from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.primitives.errors import DeadLetterLimitExceeded, ReaderGone, Stalled
from orchestrator_adapter.storage.dead_letter import DeadLetter, DeadLetterKind
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.restart import BoundedRestart, NeverRestart, RestartPolicy
from tests.chaos.record import RunRecord
from tests.chaos.scenario import READY_MADE, Group, Item, Part

_SLACK_S = 0.5  # the loop may be late, once for each timer on the way
_RAISED_ON_REJECTION = {DeadLetterKind.VALIDATION_FAILED, DeadLetterKind.SCHEMA_MISMATCH}

Sent: TypeAlias = dict[Item, bool]
"""Items that must have arrived here; false for those that an edge on the way may have shed."""


def check_promises(record: RunRecord) -> list[str]:
    """Every broken promise, as a sentence."""
    if record.built.event is None and not record.spawns and record.requests:
        return []  # run() was cancelled before its first step: there was no run
    if record.built.event is None:
        return ["run() has ended without an event"]
    return [
        *_ledger_sums(record),
        *(() if _loose(record) else _every_id(record)),
        *_order(record),
        *_ending(record),
        *_tasks(record),
        *_budgets(record),
        *_time(record),
    ]


# The ledger.


def _ledger_sums(record: RunRecord) -> Iterator[str]:
    assert record.built.event is not None
    figures, world, store = record.built.event.figures, record.world, record.store
    ledger = figures.ledger
    if not ledger.balanced and not world.leaked:
        yield f"the ledger does not balance: {ledger}"
    if ledger.in_flight:
        yield f"the ledger has {ledger.in_flight} items in flight at the end: {ledger}"
    named = {violation.operator for violation in figures.violations}
    if named != world.leaked:
        yield f"operators that lost items: {sorted(world.leaked)}; named: {sorted(named)}"
    loose = _loose(record)
    again = sum(counter.total() for counter in world.again.values())
    written = sum(map(len, world.written.values())) - again
    if ledger.written != written and not loose:
        yield f"written by the ledger {ledger.written}, by the sinks {written}"
    entered = sum(map(len, world.entered.values()))
    if ledger.ingested != entered and not loose:
        yield f"ingested by the ledger {ledger.ingested}, by the sources {entered}"
    dead = len(store.kept) + len(_lost(record))
    if ledger.dead_lettered + ledger.rejected != dead:
        yield f"dead-lettered and rejected {ledger.dead_lettered + ledger.rejected}, in the store or rejected {dead}"
    reported = sum(int(count) for problem in figures.problems for count in re.findall(r"^(\d+) items of", problem))
    if reported != len(_lost(record)):
        yield f"the store rejected {len(_lost(record))} items for good, and {reported} were reported as problems"
    shed = sum(edge.shed for edge in record.edges.values())
    if ledger.shed != shed:
        yield f"shed by the ledger {ledger.shed}, by the edges {shed}"
    undelivered = sum(
        letter.message.startswith("operator ") for letter in _dead(record) if letter.kind is DeadLetterKind.UNDELIVERED
    )
    if figures.undelivered != undelivered:
        yield f"undelivered by the event {figures.undelivered}, in the dead letters {undelivered}"
    if ledger.repeated and all(part.kind in READY_MADE for part in record.scenario.parts if part.role in _MIDDLE):
        yield f"{ledger.repeated} items repeated, although all operators are ready-made"
    for letter in _dead(record):
        yield from _letter(letter, record)


_MULTIPLYING = {"broadcast", "crew", "partition", "flat_map", "burst", "group"}
_MIDDLE = (Role.OPERATOR, Role.FAN_IN, Role.FAN_OUT)


def _loose(record: RunRecord) -> bool:
    """Whether a straggler has items that the run cannot count: those of a source, or those of a write in progress.

    Items that a source took and did not offer are not ingested yet. A write that ends after the run writes items that
    were already counted as undelivered.
    """
    assert record.built.event is not None
    stragglers = [_part(record, straggler.operator) for straggler in record.built.event.figures.stragglers]
    return any(part.role is Role.SOURCE or part.kind in _BLOCKING for part in stragglers)


def _letter(letter: DeadLetter, record: RunRecord) -> Iterator[str]:
    part = _part(record, letter.operator)
    if not letter.message:
        yield f"a dead letter of {part.name!r} without a reason: {letter}"
    if letter.message.endswith("has ended for good (Ok)") and part.name not in record.world.returned_early:
        yield f"{part.name!r} ended with Ok before its input had ended, and {letter.payload} was left"
    if letter.kind is DeadLetterKind.POISON_PILL:
        if not letter.attempts == len(letter.history) == part.max_deliveries:
            yield f"{letter.payload} is a pill after {letter.history}, with max_deliveries={part.max_deliveries}"
        # A gathering fan-in leases one item of each input: every item leased together with the one at fault is a suspect.
        alone = part.max_deliveries > 1 and part.kind != "gather"
        if alone and letter.payload not in record.world.at_fault[part.name]:
            yield f"{letter.payload} is a pill of {part.name!r}, but the operator never failed on it"


def _lost(record: RunRecord) -> list[DeadLetter]:
    """The letters that the store rejected for good; without those whose items then stay with their operator."""
    return [letter for letter in record.store.rejected if letter.kind not in _RAISED_ON_REJECTION]


def _dead(record: RunRecord) -> list[DeadLetter]:
    return [*record.store.kept, *_lost(record)]


def _part(record: RunRecord, name: str) -> Part:
    return next(part for part in record.scenario.parts if part.name == name)


def _members(payload: Item | Group) -> tuple[Item, ...]:
    return payload.members if isinstance(payload, Group) else (payload,)


# Ids.


def _every_id(record: RunRecord) -> Iterator[str]:
    """Every item that entered is written, or was dead-lettered, shed or given an outcome on its way."""
    assert record.built.event is not None
    world = record.world
    repeated = record.built.event.figures.ledger.repeated
    dead: dict[str, Counter[Item]] = defaultdict(Counter)
    for letter in _dead(record):
        dead[letter.operator].update(_members(letter.payload))
    inputs: dict[str, Sent] = defaultdict(dict)
    copies: dict[str, Counter[Item]] = defaultdict(Counter)  # how often each could arrive without faults
    shedding = {edge for edge, figures in record.edges.items() if figures.shed}
    for part in _topological(record):
        name = part.name
        if part.role is Role.SOURCE:
            entered = world.entered[name]
            if len({*entered}) < len(entered):
                yield f"{name!r} entered an item twice"
            inputs[name], copies[name] = dict.fromkeys(entered, True), Counter(entered)
        gone = dead[name]
        if foreign := {
            item
            for item in gone
            if item not in copies[name] and item not in _made(part, copies[name]) and part.kind != "group"
        }:
            yield f"{name!r} dead-lettered items that it cannot have received: {_some(foreign)}"
        if part.role is Role.SINK:
            yield from _sink(record, part, inputs[name], copies[name], gone, repeated)
            continue
        links = [link for link in record.scenario.links if link.upstream == name]
        for index, link in enumerate(links):
            edge = f"{link.upstream} -> {link.downstream}"
            certain = not any(shed.startswith(edge) for shed in shedding)
            for item, sure in inputs[name].items():
                for output in _outputs(part, item, index, len(links)):
                    copies[link.downstream][output] += copies[name][item]
                    if item not in gone and output not in gone and item not in world.excused[name]:
                        arrived = inputs[link.downstream]
                        arrived[output] = arrived.get(output, False) or (sure and certain)
            # An item that need not arrive may still arrive: a copy of it took another path, or came before.
            for item in copies[name].keys() - inputs[name].keys():
                for output in _outputs(part, item, index, len(links)):
                    copies[link.downstream][output] += copies[name][item]


def _outputs(part: Part, item: Item, index: int, outputs: int) -> list[Item]:
    if part.malformed(item) or (part.kind == "emit" and item.number % 13 == 12):
        return []
    if part.kind == "partition" and not item.everywhere and part.output(item, outputs) != index:
        return []
    return part.outputs(item)


def _made(part: Part, items: Counter[Item]) -> set[Item]:
    return {output for item in items for output in part.outputs(item)}


def _sink(
    record: RunRecord, part: Part, due: Sent, copies: Counter[Item], gone: Counter[Item], repeated: int
) -> Iterator[str]:
    written = Counter(item for entry in record.world.written[part.name] for item in _members(entry))
    missing = {item for item, sure in due.items() if sure and item not in written and item not in gone}
    if missing:
        yield f"{part.name!r} has neither written nor dead-lettered {_some(missing)}"
    if foreign := written.keys() - copies.keys():
        yield f"{part.name!r} wrote items that cannot have arrived: {_some(foreign)}"
    again = Counter[Item]()
    for entry, count in record.world.again[part.name].items():
        for item in _members(entry):
            again[item] += count
    excess = Counter({item: written[item] + gone[item] - again[item] - copies[item] for item in written})
    twice = {item for item, count in excess.items() if count > 0}
    if twice and not repeated:
        yield f"nothing was repeated, but {part.name!r} has written or dead-lettered an item too often: {_some(twice)}"
    multiplied = any(part.kind in _MULTIPLYING for part in record.scenario.parts)
    if not multiplied and sum(excess[item] for item in twice) > repeated:
        yield f"{repeated} were repeated, but {part.name!r} has written or dead-lettered more than that twice: {_some(twice)}"


def _topological(record: RunRecord) -> list[Part]:
    before: dict[str, list[str]] = {part.name: [] for part in record.scenario.parts}
    for link in record.scenario.links:
        before[link.downstream].append(link.upstream)
    return [_part(record, name) for name in TopologicalSorter(before).static_order()]


def _some(items: set[Item]) -> str:
    return ", ".join(map(str, sorted(items)[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")


# Order.


def _order(record: RunRecord) -> Iterator[str]:
    """With one path from a source to a sink, the items are written in order (the first copy of each).

    If items left twice, the first copy of one may have been dead-lettered or shed, and the second one comes later.
    """
    assert record.built.event is not None
    ledger = record.built.event.figures.ledger
    if ledger.repeated and ledger.shed:
        return
    dead = (item for letter in _dead(record) for item in _members(letter.payload) if ledger.repeated)
    late = {(item.source, item.number) for item in dead}
    ways: dict[str, Counter[str]] = defaultdict(Counter)
    for part in _topological(record):
        if part.role is Role.SOURCE:
            ways[part.name][part.name] = 1
        for link in record.scenario.links:
            if link.upstream == part.name:
                ways[link.downstream] += ways[part.name]
    for sink, entries in record.world.written.items():
        items = list(dict.fromkeys(item for entry in entries for item in _members(entry)))
        for source, count in ways[sink].items():
            own = [item for item in items if item.source == source and (item.source, item.number) not in late]
            if count == 1 and own != sorted(own):
                yield f"{sink!r} wrote the items of {source!r} out of order: {', '.join(map(str, own))}"


# The event.


def _ending(record: RunRecord) -> Iterator[str]:
    event = record.built.event
    assert event is not None
    figures = event.figures
    panics = [exited for _, exited in record.exits if isinstance(exited.exit, task_exit.Panicked)]
    if len(record.escalated) > 1:
        yield f"escalated more than once: {record.escalated}"
    if panics and not record.escalated:
        yield f"{panics[0].operator!r} panicked, and this was not escalated"
    if record.escalated:
        _, first = record.escalated[0]
        named = (event.name, getattr(event, "operator", None))
        if named != (first.kind, first.operator):
            yield f"escalated {first.kind} of {first.operator!r}, but the event is {named[0]} of {named[1]!r}"
        if isinstance(event, events.Panicked) and event.operator != panics[0].operator:
            yield f"the first panic was of {panics[0].operator!r}, but the event names {event.operator!r}"
    elif isinstance(event, events.ShutDown) and not record.requests:
        yield f"shut down ({event.reason}) without a request"
    elif isinstance(event, events.AllOk):
        if record.phases and not record.scenario.done_when:
            yield "AllOk, although the graph was being shut down"
        bad = {name: str(exit_) for name, exit_ in figures.exits.items() if not isinstance(exit_, task_exit.Ok)}
        if bad and not record.scenario.done_when:
            yield f"AllOk, but {bad}"
        if not {*record.scenario.done_when} <= {n for n, e in figures.exits.items() if isinstance(e, task_exit.Ok)}:
            yield f"AllOk, but of {sorted(record.scenario.done_when)} not all have ended: {figures.exits}"
    elif isinstance(event, events.BudgetExhausted | events.Panicked):
        yield f"{event.name} of {event.operator!r}, which was never escalated"


def _tasks(record: RunRecord) -> Iterator[str]:
    event = record.built.event
    assert event is not None
    stragglers = {straggler.operator for straggler in event.figures.stragglers}
    # A blocking write that has begun is completed, even after the abort.
    may_not_stop = {part.name for part in record.scenario.parts if part.swallow or part.kind in _BLOCKING}
    if unnamed := record.alive_at_end - stragglers:
        yield f"still running after the run, and not named as stragglers: {sorted(unnamed)}"
    if obedient := stragglers - may_not_stop:
        yield f"named as stragglers, but they obey cancellation: {sorted(obedient)}"
    first_abort = min((at for at, phase in record.phases if phase.phase >= 2), default=float("inf"))
    for at, exited in record.exits:
        part = _part(record, exited.operator)
        if isinstance(exited.exit, task_exit.Aborted) and at < first_abort and not part.swallow:
            yield f"{exited.operator!r} was aborted, and no abort was due: {exited.exit}"
        if isinstance(exited.exit, task_exit.Errored) and isinstance(exited.exit.error, Stalled):
            waits = any(fault.kind in {"slow", "stall"} for fault in part.faults.values()) or part.kind in _BLOCKING
            if not waits:
                yield f"{part.name!r} waits only for its edges, but was aborted as stalled"
    running = Counter[str]()
    seen: list[events.Spawned | events.Exited] = [what for _, what in record.spawns]
    seen += [what for _, what in record.exits]
    for what in sorted(seen, key=lambda what: (what.instance, isinstance(what, events.Exited))):
        running[what.operator] += 1 if isinstance(what, events.Spawned) else -1
        if not 0 <= running[what.operator] <= 1:
            yield f"{what.operator!r} ran {running[what.operator]} times at once"


def _within_window(policy: RestartPolicy, restarts: list[float], now: float) -> list[float]:
    """The ``restarts`` that count at ``now``; none without a window."""
    window_s = policy.rule.window.total_seconds() if isinstance(policy.rule, BoundedRestart) else 0.0
    return [at for at in restarts if now - at < window_s]


_BLOCKING = {"durable", "blocking relay"}


def _budgets(record: RunRecord) -> Iterator[str]:
    """No sliding window has more charged restarts than its bound, and every restart within the budget is admitted."""
    by_operator: dict[str, list[float]] = defaultdict(list)
    for restarted in record.restarts:
        policy = _part(record, restarted.operator).restart_policy
        if isinstance(policy.rule, NeverRestart):
            yield f"{restarted.operator!r} was restarted against its policy"
        if not restarted.charged:
            continue
        charged = by_operator[restarted.operator]
        begun = restarted.at_monotonic + restarted.backoff_s
        charged.append(begun)
        recent = _within_window(policy, charged, begun)
        if isinstance(policy.rule, BoundedRestart) and len(recent) > policy.rule.max_restarts:
            yield f"{restarted.operator!r}: {len(recent)} restarts within {policy.rule.window}, against {policy}"
    panicked = {exited.operator: at for at, exited in record.exits if isinstance(exited.exit, task_exit.Panicked)}
    for at, spawned in record.spawns:
        if at > panicked.get(spawned.operator, float("inf")):
            yield f"{spawned.operator!r} was restarted after a panic"
        if spawned.restarted is not None and not record.phases:
            due = spawned.restarted.at_monotonic + spawned.restarted.backoff_s
            if not due - 1e-6 <= at <= due + _SLACK_S:
                yield f"{spawned.operator!r} was to be restarted at {due:.3f} s, and was at {at:.3f} s"
    event = record.built.event
    if isinstance(event, events.BudgetExhausted):
        policy = _part(record, event.operator).restart_policy
        at, _ = record.escalated[0]
        recent = _within_window(policy, by_operator[event.operator], at)
        did_not_stop = isinstance(event.error, Stalled) and "did not stop" in str(event.error)
        unmendable = did_not_stop or _contains_any(event.error, (ReaderGone, DeadLetterLimitExceeded))
        spent = isinstance(policy.rule, NeverRestart) or (
            isinstance(policy.rule, BoundedRestart) and len(recent) == policy.rule.max_restarts
        )
        if not unmendable and not spent:
            yield f"{event.operator!r} was not restarted, although {policy} had room: restarts at {recent}, now {at}"


def _contains_any(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(_contains_any(member, kinds) for member in error.exceptions)
    return isinstance(error, kinds)


def _time(record: RunRecord) -> Iterator[str]:
    """A shutdown takes at most the grace period and twice the patience."""
    if not record.phases:
        return
    grace_s, patience_s = record.scenario.grace.total_seconds(), record.scenario.patience.total_seconds()
    began, _ = record.phases[0]
    if record.ended_at > began + grace_s + 2 * patience_s + _SLACK_S:
        yield f"the shutdown began at {began:.3f} s and took until {record.ended_at:.3f} s"
    if len(record.requests) > 1:
        second = max(record.requests[1], began)
        if record.ended_at > second + 2 * patience_s + _SLACK_S:
            yield f"a second request came at {second:.3f} s, and the run took until {record.ended_at:.3f} s"
    numbers = [phase.phase for _, phase in record.phases]
    if numbers != sorted({*numbers}):
        yield f"the phases of the shutdown were {numbers}"
