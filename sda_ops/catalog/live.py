"""A catalogue that is replaced while the pipeline runs. A new one replaces it as a whole; a bad one leaves it unchanged.

`LiveCatalog.current` is one immutable version. The next version is another object with the next number.

The last good content of a URL can be kept on disk (`CatalogCache`). Then a start needs no server: it begins with that content,
and asks the server only if the content is older than the interval of refreshes.

Parsing runs in a thread, but in Python, which holds the interpreter's lock for 5 ms at a time (``sys.getswitchinterval``).
While it runs (0.3 s for 14,683 objects in CSV, 0.6 s in XML), each step of the event loop may begin 5 ms late: measured
were at most 10 ms on an idle machine with two cores, and 27 ms on a busy one, where parsing also takes three times as long.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias, TypeVar, assert_never

import numpy as np

from orchestrator_adapter import (
    Attempt,
    CircuitBreaker,
    Clock,
    EventLog,
    RetryCutShort,
    RetryDiscard,
    RetryDisposition,
    RetryOk,
    RetryPolicy,
    SystemClock,
    call_hook,
    check_fields,
    with_retry,
)
from sda_ops.astro.time import NS_PER_S, Floats
from sda_ops.catalog.cache import CachedContent, CacheError, read_cache, write_cache
from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.fetch import (
    CATALOG_BREAKER,
    CatalogLocation,
    CatalogUnavailable,
    CatalogUrl,
    Content,
    NotModified,
    Retrying,
    fetch,
)
from sda_ops.catalog.history import newest_age_hours, selected, without_future
from sda_ops.catalog.reader import (
    Catalog,
    RowProblem,
    all_of_each,
    decode_text,
    parse_catalog,
    without_usable_rows,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReplacementLimits:
    """When a new catalogue is rejected.

    Attributes:
        max_bad_share: The largest allowed share of bad rows in all rows.
        bad_rows_allowed: So many bad rows are allowed regardless of their share, if they are not more than the good ones: one
            damaged line must not cost a small file.
        min_size_share: The smallest allowed number of objects, as a share of the objects in the current catalogue.
    """

    max_bad_share: float = 0.1
    bad_rows_allowed: int = 2
    min_size_share: float = 0.5

    def __post_init__(self) -> None:
        check_fields(
            "ReplacementLimits",
            ("max_bad_share", self.max_bad_share, 0.0 <= self.max_bad_share <= 1.0, "in [0, 1]"),
            ("bad_rows_allowed", self.bad_rows_allowed, self.bad_rows_allowed >= 0, ">= 0"),
            ("min_size_share", self.min_size_share, 0.0 <= self.min_size_share <= 1.0, "in [0, 1]"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class CatalogVersion:
    """A loaded catalogue. Versions compare by identity.

    Attributes:
        number: 1 for the first version, then 2, and so on.
        element_sets: Object by object, those of one object sorted by epoch: of several, the nearest to an observation's
            time is used (`sda_ops.catalog.history`). Sets of the future are left out.
        columns: The same element sets, in the same order.
        problems: The rows without a usable element set.
        loaded_ns: When it became the current version, UTC nanoseconds.
        source: Its file or URL, without secrets.
        digest: SHA-256 of the content, in hexadecimal.
        remarks: What is unusual in the content, but costs no row.
    """

    number: int
    element_sets: tuple[ElementSet, ...]
    columns: ElementColumns
    problems: tuple[RowProblem, ...]
    loaded_ns: int
    source: str
    digest: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refreshed:
    """There is a new catalogue, and it is now the current one."""

    version: CatalogVersion


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The source still has the content of the current version."""

    version: CatalogVersion


@dataclass(frozen=True, slots=True)
class CatalogRejected:
    """The source is unavailable or its content is bad. The current version stays.

    Attributes:
        reason: The source, and what is wrong with it.
        at_ns: When this was detected, UTC nanoseconds.
        kept: The version that stays; ``None`` if nothing has been loaded yet.
    """

    reason: str
    at_ns: int
    kept: CatalogVersion | None


RefreshOutcome: TypeAlias = Refreshed | Unchanged | CatalogRejected


def replacement_problem(old: CatalogVersion | None, new: Catalog, limits: ReplacementLimits) -> str | None:
    """Why ``new`` must not replace ``old``; ``None`` if it may.

    Without an ``old`` one, only the rows are checked: a truncated catalogue is better than none.
    """
    objects, bad = _objects(new.element_sets), len(new.problems)
    first_problem = f", the first: {new.problems[0]}" if new.problems else ""
    if (nothing := without_usable_rows(new)) is not None:
        return nothing
    few = bad <= min(limits.bad_rows_allowed, new.rows - bad)
    if not few and bad > limits.max_bad_share * new.rows:
        return f"expected at most {limits.max_bad_share:.0%} bad rows, got {bad} of {new.rows}{first_problem}"
    if old is not None and new.truncated:
        return f"it ends in the middle of a row: {new.problems[-1]}"
    if old is not None and objects < limits.min_size_share * (before := _objects(old.element_sets)):
        return f"expected at least {limits.min_size_share:.0%} of the {before} objects before, got {objects}"
    return None


def _objects(element_sets: Sequence[ElementSet]) -> int:
    return len({element_set.catalog_number for element_set in element_sets})


@dataclass(frozen=True, slots=True)
class CatalogCache:
    """Where the last good content of a URL is kept, and when a start uses it without a request.

    Attributes:
        directory: Its folder.
        fresh_for: Content that the server confirmed less than this ago is used without a request.
    """

    directory: Path
    fresh_for: timedelta = timedelta(hours=2)


class LiveCatalog:
    """The current catalogue of one source. It belongs to one event loop; any number of tasks may use it.

    Attributes:
        source: The file or URL.
        rejection: The last refresh's rejection; ``None`` if the current version is the source's content.
        confirmed_ns: When the source last had the current version's content, UTC nanoseconds; 0 before the first version.
    """

    def __init__(
        self,
        source: CatalogLocation,
        *,
        cache: CatalogCache | None = None,
        limits: ReplacementLimits | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.source = source
        self.rejection: CatalogRejected | None = None
        self.confirmed_ns = 0
        self.clock = SystemClock() if clock is None else clock
        self._log = EventLog(logger, clock=self.clock)
        self._rng = random.Random() if rng is None else rng
        self._breaker = CircuitBreaker.with_policy("catalog", CATALOG_BREAKER, clock=self.clock)
        self._cache = cache
        self._limits = ReplacementLimits() if limits is None else limits
        self._current: CatalogVersion | None = None
        self._listeners: list[tuple[Callable[[CatalogVersion], object]]] = []
        self._last_fetch: _LastFetch | None = None
        self._refreshing = asyncio.Lock()

    @property
    def current(self) -> CatalogVersion:
        """The newest good version. Raises ``CatalogUnavailable`` before `load` has returned."""
        if self._current is None:
            raise CatalogUnavailable(f"{self.source}: not loaded yet; await load() first")
        return self._current

    async def load(self) -> CatalogVersion:
        """The current version, loaded now if there is no version yet.

        The cache comes first. If it has content that is older than its ``fresh_for``, the server is asked once, for
        10 seconds at most, and the cached version is used if that fails. Raises ``CatalogUnavailable`` if neither cache
        nor source has a good catalogue.
        """
        if self._current is None and isinstance(self.source, CatalogUrl) and self._cache is not None:
            await self._load_from_cache(self.source, self._cache)
            if self._current is not None and self.age >= self._cache.fresh_for:
                await self.refresh(policy=_AT_START)
        if self._current is None:
            outcome = await self.refresh()
            if isinstance(outcome, CatalogRejected):
                raise CatalogUnavailable(outcome.reason)
        return self.current

    @property
    def age(self) -> timedelta:
        """How long ago the source last had the current version's content."""
        return timedelta(microseconds=max(0, self.clock.now_ns() - self.confirmed_ns) // 1000)

    async def refresh(self, *, retrying: Retrying | None = None, policy: RetryPolicy | None = None) -> RefreshOutcome:
        """Fetch the source's catalogue, and make it the current one if it is new and good.

        ``retrying`` makes the attempts of a request, with a circuit breaker; by default with one of this catalogue's own.
        ``policy`` replaces that of the URL. Listeners have been called when this returns. One refresh runs at a time; others
        wait. A cancelled refresh changes nothing (parsing that has begun runs to its end in its thread, and its result is
        dropped).
        """
        async with self._refreshing:
            last = self._last_fetch
            validators = last.validators if last is not None else {}
            source = self.source
            if policy is not None and isinstance(source, CatalogUrl):
                source = replace(source, retry=policy)
            try:
                content = await fetch(source, validators, clock=self.clock, retrying=retrying or self._retrying)
            except CatalogUnavailable as error:
                if isinstance(error.__cause__, RetryCutShort):  # not an error: the graph is shutting down
                    return CatalogRejected(str(error), self.clock.now_ns(), self._current)
                return self._reject(str(error))
            if isinstance(content, NotModified):
                assert last is not None  # without validators a server does not answer this
                if last.problem is not None:
                    return self._reject(last.problem)
                return await self._confirm(None)
            digest, examined = await asyncio.to_thread(
                _examine, content.body, self.source, self._current, last, self._limits, self.clock.now_ns()
            )
            problem = examined.problem if isinstance(examined, _Bad) else None
            self._last_fetch = _LastFetch(digest, content.validators, problem)
            match examined:
                case _Bad(problem):
                    return self._reject(problem)
                case _Same():
                    return await self._confirm(content)
                case _New():
                    outcome = self._replace(digest, examined)
                    await self._confirm(content)
                    return outcome
                case _:
                    assert_never(examined)

    def on_change(self, listener: Callable[[CatalogVersion], object]) -> Callable[[], None]:
        """Call ``listener`` with each later version, on the event loop. Returns a function that ends this.

        An exception of the listener is logged and has no other effect.
        """
        entry = (listener,)
        self._listeners.append(entry)

        def end() -> None:
            self._listeners = [other for other in self._listeners if other is not entry]

        return end

    async def _retrying(
        self, policy: RetryPolicy, op: Callable[[], Awaitable[RetryDisposition[_T]]]
    ) -> RetryOk[_T] | RetryDiscard:
        return await with_retry(
            policy, op, breaker=self._breaker, clock=self.clock, rng=self._rng, on_attempt=self._log_delay
        )

    def _log_delay(self, attempt: Attempt) -> None:
        """Before the graph exists nothing else says why the start takes long: a server may ask for minutes."""
        if attempt.delay is not None:
            error, delay_s = str(attempt.error), round(attempt.delay.total_seconds(), 1)
            fields = {"downstream": "catalog", "attempt": attempt.number, "error": error, "retry_in_s": delay_s}
            self._log.write("downstream_failing", logging.WARNING, fields)

    async def _confirm(self, content: Content | None) -> Unchanged:
        """The source has the current version's content; ``None``: the same as at the last fetch. Keep it in the cache."""
        self.rejection = None
        self.confirmed_ns = self.clock.now_ns()
        version = self.current
        if self._cache is not None and isinstance(self.source, CatalogUrl):
            try:
                kept = await asyncio.to_thread(_keep, self._cache.directory, self.source, content, self.confirmed_ns)
                if not kept and self._last_fetch is not None:
                    self._last_fetch = replace(self._last_fetch, validators={})  # the next answer has the content
            except CacheError as error:
                self._log_cache(str(error))
        return Unchanged(version)

    def _log_cache(self, reason: str) -> None:
        self._log("catalog_cache_failed", level=logging.WARNING, source=str(self.source), reason=reason)

    async def _load_from_cache(self, source: CatalogUrl, cache: CatalogCache) -> None:
        """Make the cached content the current version, if it is of this URL and good."""
        async with self._refreshing:
            try:
                cached = await asyncio.to_thread(read_cache, cache.directory, source)
            except CacheError as error:
                self._log_cache(str(error))
                return
            if cached is None:
                return
            digest, examined = await asyncio.to_thread(
                _examine, cached.body, source, None, None, self._limits, self.clock.now_ns()
            )
            if isinstance(examined, _Bad):
                self._log_cache(f"the cached content is bad: {examined.problem}")
                return
            assert isinstance(examined, _New)  # there is no current version
            self.confirmed_ns = cached.confirmed_ns
            self._last_fetch = _LastFetch(digest, cached.validators, None)
            self._replace(digest, examined, from_cache=True)

    def _reject(self, reason: str) -> CatalogRejected:
        """Keep the current version. The same reason is logged once, however often it recurs."""
        if self.rejection is None or self.rejection.reason != reason:
            kept = 0 if self._current is None else self._current.number
            self._log(
                "catalog_rejected", level=logging.ERROR, source=str(self.source), reason=reason, kept_version=kept
            )
        self.rejection = CatalogRejected(reason, self.clock.now_ns(), self._current)
        return self.rejection

    def _replace(self, digest: str, new: _New, *, from_cache: bool = False) -> Refreshed:
        if not from_cache:
            self.confirmed_ns = self.clock.now_ns()
        number = 1 if self._current is None else self._current.number + 1
        catalog, columns = new.catalog, new.columns
        version = CatalogVersion(
            number,
            catalog.element_sets,
            columns,
            catalog.problems,
            self.clock.now_ns(),
            catalog.file,
            digest,
            catalog.remarks,
        )
        self._current, self.rejection = version, None
        self._log(
            "catalog_refreshed",
            source=version.source,
            version=number,
            from_cache=from_cache,
            confirmed_s_ago=round(self.age.total_seconds()),
            objects=len(new.ages_h),
            element_sets=len(columns),
            future_sets_left_out=new.future,
            epochs=[_utc(int(columns.epoch_ns.min())), _utc(int(columns.epoch_ns.max()))],
            median_age_h=round(float(np.median(new.ages_h)), 1),
            oldest_age_h=round(float(new.ages_h.max()), 1),
            bad_rows=len(version.problems),
            remarks=[*map(str, version.problems[:_PROBLEMS_LOGGED]), *version.remarks[:_PROBLEMS_LOGGED]],
            digest=digest,
        )
        for (listener,) in self._listeners:
            call_hook(listener, version)
        return Refreshed(version)


_AT_START = RetryPolicy(
    timedelta(seconds=1), timedelta(seconds=30), max_attempts=1, attempt_timeout=timedelta(seconds=10)
)
_T = TypeVar("_T")
_PROBLEMS_LOGGED = 3


def _utc(timestamp_ns: int) -> str:
    return f"{datetime.fromtimestamp(timestamp_ns // NS_PER_S, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _keep(directory: Path, source: CatalogUrl, content: Content | None, confirmed_ns: int) -> bool:
    """Write the content to the cache; without ``content``, only the new time. False if there is no content to write."""
    if content is not None:
        kept = CachedContent(content.body, content.validators, confirmed_ns)
    else:
        cached = read_cache(directory, source)
        if cached is None:
            return False  # it was removed, or another run has replaced it by that of another URL
        kept = replace(cached, confirmed_ns=confirmed_ns)
    write_cache(directory, source, kept)
    return True


@dataclass(frozen=True, slots=True)
class _LastFetch:
    """The content that was fetched last: its digest, the headers that ask for a newer one, and what was wrong with it."""

    digest: str
    validators: Mapping[str, str]
    problem: str | None


@dataclass(frozen=True, slots=True)
class _Bad:
    """The content is not usable."""

    problem: str


@dataclass(frozen=True, slots=True)
class _Same:
    """The content is that of the current version."""


@dataclass(frozen=True, slots=True)
class _New:
    """The content is a good catalogue, and another one than the current.

    Attributes:
        catalog: Without the element sets of the future.
        columns: Of its element sets.
        ages_h: The age of each object's newest set, hours.
        future: How many sets were left out.
    """

    catalog: Catalog
    columns: ElementColumns
    ages_h: Floats
    future: int


_Examined: TypeAlias = _Bad | _Same | _New


def _examine(
    body: bytes,
    source: CatalogLocation,
    current: CatalogVersion | None,
    last: _LastFetch | None,
    limits: ReplacementLimits,
    now_ns: int,
) -> tuple[str, _Examined]:
    """The content's digest, and what it is. Content that was rejected before is not parsed again."""
    digest = hashlib.sha256(body).hexdigest()
    if current is not None and digest == current.digest:
        return digest, _Same()
    if last is not None and digest == last.digest and last.problem is not None:
        return digest, _Bad(last.problem)
    try:
        text = decode_text(body)
    except ValueError as error:
        return digest, _Bad(f"{source}: {error}")
    try:
        catalog = all_of_each(parse_catalog(text, file=str(source)))
    except ValueError as error:
        return digest, _Bad(str(error))
    problem = replacement_problem(current, catalog, limits)
    if problem is not None:
        return digest, _Bad(f"{source}: {problem}")
    columns = ElementColumns.of(catalog.element_sets)
    kept = without_future(columns.catalog_number, columns.epoch_ns, now_ns=now_ns)
    future = len(columns) - len(kept)
    if future:
        columns = selected(columns, kept)
        catalog = replace(catalog, element_sets=tuple(catalog.element_sets[row] for row in kept.tolist()))
    return digest, _New(catalog, columns, newest_age_hours(columns, now_ns=now_ns), future)
