"""The headline of a document: what a person must know first, in one or two sentences. Pure.

The document carries it, so that the live page and ``python -m flows top`` say the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from orchestrator_adapter.control_plane.document import Breaker, Document, Operator

_ENDED_BADLY = frozenset({"errored", "panicked", "straggler"})
_MOST_CHARACTERS = 200  # of one condition: an error's message may be long


def with_headline(document: Document) -> Document:
    """The same document, with its headline and its conditions."""
    return msgspec.structs.replace(document, headline=headline_of(document), conditions=conditions_of(document))


def headline_of(document: Document) -> str:
    """The most severe condition, how many more there are, and whether items are lost.

    From the most to the least severe: a stalled loop, lost items, the reasons of a health that is ``failing``, an operator that
    has failed, one that is restarted, a circuit breaker that is open, the reasons of ``degraded`` and ``draining``, a paused
    source, a bottleneck. Without any of them: how many operators run, and how much comes in.
    """
    conditions = conditions_of(document)
    first = conditions[0] if conditions else _all_well(document)
    further = f" {_count(len(conditions) - 1, 'further condition')}." if len(conditions) > 1 else ""
    balance = f" {_losses(document)}." if document.ledger.balanced else ""
    return f"{first}.{further}{balance}"


def _losses(document: Document) -> str:
    """What the ledger accounts for, or never had: what a flow policy dropped, what the kernel dropped before it was read."""
    dropped = sum(edge.dropped for edge in document.edges)
    unread = sum(operator.counters.get("kernel_drops", 0) for operator in document.operators)
    found = [
        f"{_count(unread, 'datagram')} dropped by the kernel before a source read them" if unread else "",
        f"{_count(dropped, 'item')} dropped by flow policies" if dropped else "",
    ]
    return "; ".join(filter(None, found)) or "No item is lost"


def conditions_of(document: Document) -> tuple[str, ...]:
    """What a person should check, each once and without its full stop, in the order of ``headline_of``."""
    return tuple(dict.fromkeys(_conditions(document)))


def _conditions(document: Document) -> Iterator[str]:
    loop, health, ledger = document.loop, document.health, document.ledger
    reasons = [_short(reason[:1].upper() + reason[1:]) for reason in health.reasons]
    if loop.stalled:
        blocker = f": {_short(loop.blocked_by)} blocks it" if loop.blocked_by else ""
        yield f"The event loop has not answered for {_duration(loop.silent_s)}{blocker}"
        reasons = [reason for reason in reasons if not reason.startswith("Event loop has not answered")]
    if not ledger.balanced:
        unaccounted = f"{_count(abs(ledger.lost), 'item')} {'is' if abs(ledger.lost) == 1 else 'are'}"
        yield f"The ledger does not balance: {unaccounted} {'unaccounted for' if ledger.lost >= 0 else 'counted twice'}"
    if health.status == "failing":
        yield from reasons
    for operator in document.operators:
        if operator.state in _ENDED_BADLY and not any(repr(operator.name) in reason for reason in reasons):
            yield _short(f"Operator {operator.name!r} has failed and is not restarted{_cause(operator)}")
    yield from (_restarting(operator) for operator in document.operators if operator.state == "restarting")
    yield from (_open(breaker) for breaker in document.breakers if breaker.state == "open")
    if health.status != "failing":
        yield from reasons
    if health.status == "ok" or not any("paused" in reason for reason in reasons):
        yield from (f"Source {each.name!r} is paused" for each in document.operators if each.state == "paused")
    for bottleneck in document.bottlenecks:
        yield _short(f"{bottleneck.operator!r} is the bottleneck: {bottleneck.reason}")


def _restarting(operator: Operator) -> str:
    wait = f" in {_duration(operator.restart_in_s)}" if operator.restart_in_s is not None else ""
    left = "" if operator.budget.left is None else f", {_count(operator.budget.left, 'further restart')} left"
    return _short(f"Operator {operator.name!r} is restarted{wait}{left}{_cause(operator)}")


def _open(breaker: Breaker) -> str:
    if breaker.forced:
        return f"Circuit breaker {breaker.name!r} is forced open"
    probe = f"; it admits a probe in {_duration(breaker.probe_in_s)}" if breaker.probe_in_s is not None else ""
    return f"Circuit breaker {breaker.name!r} is open{probe}"


def _all_well(document: Document) -> str:
    running = sum(operator.state == "running" for operator in document.operators)
    rate = sum(operator.rate_in for operator in document.operators if operator.role == "source")
    amount = f"{rate:,.0f}" if rate >= 10 or rate == 0 else f"{rate:.1f}"  # noqa: PLR2004 - a digit after the point below 10
    return f"Nothing is wrong: {running} of {_count(len(document.operators), 'operator')} run, {amount} items/s come in"


def _cause(operator: Operator) -> str:
    error = operator.last_error
    return "" if error is None else f": {error.kind}: {error.message}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 10:  # noqa: PLR2004 - a digit after the point below 10
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _short(text: str) -> str:
    one_line = " ".join(text.split()).removesuffix(".")
    return one_line if len(one_line) <= _MOST_CHARACTERS else f"{one_line[: _MOST_CHARACTERS - 1]}…"
