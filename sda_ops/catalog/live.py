"""A catalogue that is replaced while everything runs: the new one as a whole, or, if it is no good, the old one still.

Who reads `LiveCatalog.current` holds one version, which never changes; the next is another object with the next number.

Parsing runs in a thread, but in Python, and holds the interpreter's lock in turns of 5 ms (``sys.getswitchinterval``):
for as long as it takes (0.3 s for 14,683 objects in CSV, 0.6 s in XML) whatever else runs has what turns are left, and each
step of the event loop may begin 5 ms late (10 ms at worst on an idle machine of two cores, 27 ms on a crowded one, where
it also takes three times as long).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

from orchestrator_adapter import Clock, EventLog, ShutdownToken, SystemClock, call_hook
from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.fetch import CatalogSource, CatalogUnavailable, NotModified, fetch
from sda_ops.catalog.reader import Catalog, RowProblem, decode_text, newest_of_each, parse_catalog

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplacementLimits:
    """When a new catalogue is not believed.

    Attributes:
        max_bad_share: Bad rows over all rows.
        min_size_share: Objects over those of the catalogue it is to replace.
    """

    max_bad_share: float = 0.1
    min_size_share: float = 0.5

    def __post_init__(self) -> None:
        problems = [
            f"ReplacementLimits: {name} must be in [0, 1], got {value!r}"
            for name, value in (("max_bad_share", self.max_bad_share), ("min_size_share", self.min_size_share))
            if not 0.0 <= value <= 1.0
        ]
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, slots=True, eq=False)
class CatalogVersion:
    """A catalogue as it was loaded. Two are the same if they are one object.

    Attributes:
        number: 1 for the first that was loaded, and so on.
        element_sets: One an object: the newest.
        columns: The same, in the same order.
        problems: The rows that gave none.
        loaded_ns: When it became the current one, UTC nanoseconds.
        source: Where it is from, without secrets.
        digest: SHA-256 of the content, in hexadecimal.
    """

    number: int
    element_sets: tuple[ElementSet, ...]
    columns: ElementColumns
    problems: tuple[RowProblem, ...]
    loaded_ns: int
    source: str
    digest: str


@dataclass(frozen=True, slots=True)
class Refreshed:
    """There is a new catalogue, and it is the current one."""

    version: CatalogVersion


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The source still holds the current one."""

    version: CatalogVersion


@dataclass(frozen=True, slots=True)
class CatalogRejected:
    """There is none to be had, or it is no good; the current one stays.

    Attributes:
        reason: Why, and from where.
        at_ns: When that was found, UTC nanoseconds.
        kept: What stays; ``None`` if nothing has been loaded yet.
    """

    reason: str
    at_ns: int
    kept: CatalogVersion | None


RefreshOutcome: TypeAlias = Refreshed | Unchanged | CatalogRejected


def replacement_problem(old: CatalogVersion | None, new: Catalog, limits: ReplacementLimits) -> str | None:
    """Why ``new`` must not take the place of ``old`` (if there is one); ``None`` if it may.

    The first catalogue is judged by its rows only: one that is cut off is better than none.
    """
    objects, bad = len(new.element_sets), len(new.problems)
    first_problem = f", the first: {new.problems[0]}" if new.problems else ""
    if objects == 0:
        return f"expected at least one usable row, got none ({bad} bad{first_problem})"
    if bad > limits.max_bad_share * (objects + bad):
        return f"expected at most {limits.max_bad_share:.0%} bad rows, got {bad} of {objects + bad}{first_problem}"
    if old is not None and new.truncated:
        return f"it ends in the middle of a row: {new.problems[-1]}"
    if old is not None and objects < limits.min_size_share * len(old.element_sets):
        return f"expected at least {limits.min_size_share:.0%} of the {len(old.element_sets)} objects before, got {objects}"
    return None


class LiveCatalog:
    """The current catalogue of one source. Belongs to one event loop; any number of tasks may use it.

    Attributes:
        source: Where it is from.
        rejection: Why the source's content is not the current one, as long as it is not.
    """

    def __init__(
        self,
        source: CatalogSource,
        *,
        limits: ReplacementLimits | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.source = source
        self.rejection: CatalogRejected | None = None
        self.clock = SystemClock() if clock is None else clock
        self._log = EventLog(logger, clock=self.clock)
        self._rng = random.Random() if rng is None else rng
        self._limits = ReplacementLimits() if limits is None else limits
        self._current: CatalogVersion | None = None
        self._listeners: list[tuple[Callable[[CatalogVersion], object]]] = []
        self._looked_at: _LookedAt | None = None
        self._one_at_a_time = asyncio.Lock()

    @property
    def current(self) -> CatalogVersion:
        """The newest good one. Raises ``CatalogUnavailable`` before `load` has returned."""
        if self._current is None:
            raise CatalogUnavailable(f"{self.source}: not loaded yet; await load() first")
        return self._current

    async def load(self) -> CatalogVersion:
        """The current version, loaded now if there is none. Raises ``CatalogUnavailable`` if there is none to be had."""
        if self._current is None:
            outcome = await self.refresh()
            if isinstance(outcome, CatalogRejected):
                raise CatalogUnavailable(outcome.reason)
        return self.current

    async def refresh(self) -> RefreshOutcome:
        """Look whether the source has another catalogue, and make it the current one if it is good.

        Listeners have been told when it returns. One refresh at a time; others wait. Cancelled, it has changed nothing
        (a parse that was under way runs to its end in its thread, and is dropped).
        """
        async with self._one_at_a_time:
            known = self._looked_at
            validators = known.validators if known is not None else {}
            try:
                content = await fetch(self.source, validators, clock=self.clock, rng=self._rng)
            except CatalogUnavailable as error:
                return self._reject(str(error))
            if isinstance(content, NotModified):
                assert known is not None  # no validators, no such answer
                return self._reject(known.reason) if known.reason is not None else self._unchanged()
            found = await asyncio.to_thread(_examine, content.body, self.source, self._current, known, self._limits)
            self._looked_at = _LookedAt(found.digest, content.validators, found.reason)
            if found.reason is not None:
                return self._reject(found.reason)
            return self._unchanged() if found.good is None else self._replace(found.digest, *found.good)

    def on_change(self, listener: Callable[[CatalogVersion], object]) -> Callable[[], None]:
        """Tell ``listener`` each version from the next on, on the event loop. Returns a call that ends it.

        What it raises is logged, and goes no further.
        """
        entry = (listener,)
        self._listeners.append(entry)

        def end() -> None:
            self._listeners = [other for other in self._listeners if other is not entry]

        return end

    def _unchanged(self) -> Unchanged:
        self.rejection = None
        return Unchanged(self.current)

    def _reject(self, reason: str) -> CatalogRejected:
        """Logged once, however often it is found again."""
        if self.rejection is None or self.rejection.reason != reason:
            kept = 0 if self._current is None else self._current.number
            self._log(
                "catalog_rejected", level=logging.ERROR, source=str(self.source), reason=reason, kept_version=kept
            )
        self.rejection = CatalogRejected(reason, self.clock.now_ns(), self._current)
        return self.rejection

    def _replace(self, digest: str, catalog: Catalog, columns: ElementColumns) -> Refreshed:
        number = 1 if self._current is None else self._current.number + 1
        version = CatalogVersion(
            number, catalog.element_sets, columns, catalog.problems, self.clock.now_ns(), catalog.file, digest
        )
        self._current, self.rejection = version, None
        self._log(
            "catalog_refreshed",
            source=version.source,
            version=number,
            objects=len(columns),
            bad_rows=len(version.problems),
            digest=digest,
        )
        for (listener,) in self._listeners:
            call_hook(listener, version)
        return Refreshed(version)


async def keep_fresh(live: LiveCatalog, every: timedelta, shutdown: ShutdownToken) -> None:
    """Refresh ``live`` every so often, on its clock, until the shutdown; a refresh under way is cancelled by that.

    The first refresh comes after ``every``: load it before. Ends by itself only at the shutdown.
    """
    stopping = asyncio.ensure_future(shutdown.wait())
    try:
        while not await shutdown.wait_at_most(every.total_seconds(), live.clock):
            refreshing = asyncio.ensure_future(live.refresh())
            try:
                await asyncio.wait({refreshing, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if refreshing.done():
                    refreshing.result()  # a bug in it must not be silent
            finally:
                refreshing.cancel()
                await asyncio.gather(refreshing, return_exceptions=True)
    finally:
        stopping.cancel()


@dataclass(frozen=True, slots=True)
class _LookedAt:
    """The source's content when last seen: what it was, how to ask for another, and what was wrong with it."""

    digest: str
    validators: Mapping[str, str]
    reason: str | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What a content is: no good (``reason``), good and new (``good``), or neither: the current one again."""

    digest: str
    reason: str | None = None
    good: tuple[Catalog, ElementColumns] | None = None


def _examine(
    body: bytes,
    source: CatalogSource,
    current: CatalogVersion | None,
    known: _LookedAt | None,
    limits: ReplacementLimits,
) -> _Found:
    digest = hashlib.sha256(body).hexdigest()
    if current is not None and digest == current.digest:
        return _Found(digest)
    if known is not None and digest == known.digest:
        return _Found(digest, known.reason)
    try:
        catalog = newest_of_each(parse_catalog(decode_text(body), file=str(source)))
    except ValueError as error:
        return _Found(digest, str(error))
    reason = replacement_problem(current, catalog, limits)
    if reason is not None:
        return _Found(digest, f"{source}: {reason}")
    return _Found(digest, good=(catalog, ElementColumns.of(catalog.element_sets)))
