"""The ledger: every item that enters is accounted for, at any moment and in the final event.

``ingested + repeated + derived = written + duplicates + rejected + discarded + absorbed + shed + dead_lettered + in_flight``

Control items are no term of it. They are counted apart, as signals, and their own equation is

``sent = received + undelivered + in_flight``

One ``OperatorAccount`` per operator counts what it consumed, emitted and declared, and is balanced at each
acknowledgement. Knows nothing of channels or tasks: the runtime reports what happened and what is in flight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, TypeAlias

Outcome: TypeAlias = Literal["duplicates", "rejected", "discarded", "dead_lettered"]
"""The named outcomes an operator can declare for an item it does not pass on."""


class Bookkeeping(Enum):
    """How an operator's account must balance at each acknowledgement."""

    SOURCE = "source"
    """Every item that it emitted or gave an outcome was ingested."""
    CONSERVING = "conserving"
    """It emitted every item that it consumed, or gave it a named outcome."""
    EXPANDING = "expanding"
    """It may derive items (copies, expansions, aggregates), and absorb items into its state."""
    SINK = "sink"
    """Every item that it consumed without a named outcome is written."""


@dataclass(frozen=True, slots=True)
class LedgerViolation:
    """An operator whose account did not balance: it consumed ``consumed`` items and accounted for ``accounted``."""

    operator: str
    consumed: int
    accounted: int

    def __str__(self) -> str:
        what = "shortfall" if self.accounted < self.consumed else "surplus"
        return (
            f"operator {self.operator!r}: ledger {what}: acknowledged {self.consumed} items, but emitted or gave a named "
            f"outcome to {self.accounted}; declare the operator as expanding if it derives or absorbs items"
        )


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The ledger's terms at one moment, in items. See the module's equation."""

    ingested: int
    repeated: int
    derived: int
    written: int
    duplicates: int
    rejected: int
    discarded: int
    absorbed: int
    shed: int
    dead_lettered: int
    in_flight: int

    @property
    def entered(self) -> int:
        """The equation's left side."""
        return self.ingested + self.repeated + self.derived

    @property
    def accounted(self) -> int:
        """The equation's right side."""
        return (
            self.written
            + self.duplicates
            + self.rejected
            + self.discarded
            + self.absorbed
            + self.shed
            + self.dead_lettered
            + self.in_flight
        )

    @property
    def balanced(self) -> bool:
        """Whether both sides are equal."""
        return self.entered == self.accounted

    def as_dict(self) -> dict[str, int]:
        """Exactly the equation's terms, in its order."""
        return {name: getattr(self, name) for name in LEDGER_TERMS}

    def __str__(self) -> str:
        left = " + ".join(f"{name} {getattr(self, name):,}" for name in LEDGER_TERMS[:3])
        right = " + ".join(f"{name} {getattr(self, name):,}" for name in LEDGER_TERMS[3:])
        return f"{left} {'=' if self.balanced else '≠'} {right}"


LEDGER_TERMS: tuple[str, ...] = tuple(LedgerSnapshot.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class SignalsSnapshot:
    """The control items of a graph at one moment, counted once for each edge that they were sent into.

    Attributes:
        sent: Control items that operators have sent. A fan-out sends one for each output.
        received: Control items that operators have acknowledged.
        undelivered: Control items whose reader, or whose writer with a full edge, has ended for good before they were read.
        in_flight: Control items in edges and outboxes.
    """

    sent: int = 0
    received: int = 0
    undelivered: int = 0
    in_flight: int = 0

    @property
    def balanced(self) -> bool:
        """Whether every control item that was sent is accounted for."""
        return self.sent == self.received + self.undelivered + self.in_flight

    def as_dict(self) -> dict[str, int]:
        """Exactly the equation's terms, in its order."""
        return {name: getattr(self, name) for name in SignalsSnapshot.__dataclass_fields__}


@dataclass(slots=True)
class OperatorAccount:
    """One operator's account. Kept across its restarts; used only on the event loop.

    ``_open`` counts the items that the operator has emitted or declared for items that it has still on lease.
    """

    operator: str
    bookkeeping: Bookkeeping
    ingested: int = 0
    repeated: int = 0
    derived: int = 0
    consumed: int = 0
    emitted: int = 0
    written: int = 0
    duplicates: int = 0
    rejected: int = 0
    discarded: int = 0
    absorbed: int = 0
    shed: int = 0
    dead_lettered: int = 0
    signals_in: int = 0  # control items that it has acknowledged
    signals_out: int = 0  # control items that it has sent, one for each output
    violation: LedgerViolation | None = None
    _open: int = field(default=0)

    @property
    def open(self) -> int:
        """Items that have left this operator although the leased item they came from is not acknowledged yet."""
        return self._open

    def emit(self, count: int) -> None:
        """``count`` items left through an output."""
        self.emitted += count
        if self.bookkeeping is Bookkeeping.SOURCE:
            self.ingested += count
        else:
            self._open += count

    def declare(self, outcome: Outcome, count: int) -> None:
        """``count`` items were given a named outcome instead of being passed on."""
        setattr(self, outcome, getattr(self, outcome) + count)
        if self.bookkeeping is Bookkeeping.SOURCE:
            self.ingested += count
        else:
            self._open += count

    def acknowledge(self, count: int, *, still_leased: int = 0) -> None:
        """``count`` leased items are processed: balance the account for them.

        Items that have left beyond that may come from the ``still_leased`` other items of the operator, of this input or
        another. They stay open until those are acknowledged, unless the operator may derive items.
        """
        accounted, self._open = self._open, 0
        if 0 < accounted - count <= still_leased and self.bookkeeping is not Bookkeeping.EXPANDING:
            accounted, self._open = count, accounted - count
        self.consumed += count
        if self.bookkeeping is Bookkeeping.SINK:
            self.written += max(0, count - accounted)
        if accounted == count:
            return
        if self.bookkeeping is Bookkeeping.EXPANDING:
            if accounted > count:
                self.derived += accounted - count
            else:
                self.absorbed += count - accounted
        elif (self.bookkeeping is not Bookkeeping.SINK or accounted > count) and self.violation is None:
            self.violation = LedgerViolation(self.operator, count, accounted)

    def settle(self) -> None:
        """The operator ended well, without a lease: count what has left since the last acknowledgement (a last aggregate)."""
        if self._open:
            self.acknowledge(0)

    def lease_lost(self) -> None:
        """The leases are returned or dead-lettered: what had left for their items counts as repeated."""
        self.repeated += self._open
        self._open = 0

    def withdrawn(self, count: int) -> None:
        """The runtime dead-lettered ``count`` items that were sent to this operator."""
        self.consumed += count
        self.dead_lettered += count


def snapshot(
    accounts: Iterable[OperatorAccount], *, pending: int, leased: Mapping[str, int] | None = None
) -> LedgerSnapshot:
    """Sum the accounts.

    ``pending`` is the number of items in edges (leased ones included) and in outboxes, ``leased`` the number that each
    operator has on lease. A leased item whose output has already left is in flight once, not twice. Items that have left
    an expanding operator beyond that are derived, although its account is balanced only at the next acknowledgement.
    """
    accounts = tuple(accounts)
    terms = {name: sum(getattr(account, name) for account in accounts) for name in LEDGER_TERMS if name != "in_flight"}
    counted_twice = 0
    for account in accounts:
        of_its_lease = account.open
        if leased is not None and account.bookkeeping is Bookkeeping.EXPANDING:
            of_its_lease = min(account.open, leased.get(account.operator, 0))
        counted_twice += of_its_lease
        terms["derived"] += account.open - of_its_lease
    return LedgerSnapshot(**terms, in_flight=pending - counted_twice)
