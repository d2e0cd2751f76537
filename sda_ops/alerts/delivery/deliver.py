"""``SubscriberDelivery``: delivers what is pending for one subscriber, until it is acknowledged.

One loop takes from the outbox the oldest pending revision of each conjunction, so that a subscriber receives the revisions of a
conjunction in order, and a revision only when it has acknowledged the one before. Different conjunctions do not wait for each
other. An attempt that fails is repeated by ``with_retry``, behind a circuit breaker of this subscriber. After a few failed
attempts an alert makes room for others and comes back later, if the subscriber accepts others.

A POST that was acknowledged before its acknowledgement is in the outbox is repeated after a kill: the subscriber recognises it
by its ``Idempotency-Key``.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import httpx

from orchestrator_adapter import (
    Attempt,
    BoundedLog,
    BreakerPolicy,
    EventLog,
    Permanent,
    PermanentFailure,
    RetriesExhausted,
    Retry,
    RetryCutShort,
    RetryDisposition,
    RetryOk,
    RetryPolicy,
    Timeout,
    Wakeup,
    WiredEnds,
    retry,
)
from orchestrator_adapter.resilience.http import submit
from sda_ops.alerts.delivery.classify import SLOW, classify
from sda_ops.alerts.delivery.pace import Pace
from sda_ops.alerts.delivery.webhook import Webhook, webhook_request
from sda_ops.alerts.metrics import AlertMetrics
from sda_ops.alerts.outbox.store import LONGEST_PAUSE, AlertOutbox
from sda_ops.alerts.outbox.values import Delivery
from sda_ops.records.risk import RiskCause

logger = logging.getLogger(__name__)

_NEW_EVIDENCE: frozenset[RiskCause] = frozenset({"screened", "observed"})
"""The causes whose latency is measured. A final revision waits for the watermark, and a recovered one for the restart."""

_POLL_S = 1.0
"""The outbox is checked this often without a wake-up: the command line may have made an alert pending, or one is due again."""

_PAGE = 64  # deliveries taken from the outbox at once
_AFTER_A_FAULT_S = 5.0  # of the outbox or of this code
_PAUSE_PER_ATTEMPT = timedelta(seconds=2)  # of one alert that fails while others are accepted

_ROUND = RetryPolicy(
    timedelta(milliseconds=500), timedelta(seconds=15), max_attempts=4, max_retry_after=timedelta(hours=1)
)
_BREAKER = BreakerPolicy(threshold=0.8, window=timedelta(minutes=1), cooldown=timedelta(seconds=15), min_calls=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryPolicy:
    """When a failed delivery is repeated.

    Attributes:
        retry: The attempts of one round. After a round, other alerts have their turn.
        breaker: When deliveries are suspended. Neither a subscriber that loses every second acknowledgement nor one alert that
            always fails should open it: ``min_calls`` is above the attempts of a round.
        slow: The pause after an answer which says that a person must repair the subscriber: 401, 404, a redirect.
    """

    retry: RetryPolicy = _ROUND
    breaker: BreakerPolicy = _BREAKER
    slow: timedelta = SLOW


@dataclass(frozen=True, slots=True)
class _Failed:
    """A failed attempt, to be noted in the outbox."""

    delivery: Delivery
    error: str
    retry_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Parked:
    """A delivery that is to be parked."""

    delivery: Delivery
    reason: str


class SubscriberDelivery:
    """The deliveries to one subscriber, by one instance of the sink."""

    def __init__(
        self,
        ends: WiredEnds,
        outbox: AlertOutbox,
        webhook: Webhook,
        *,
        policy: DeliveryPolicy,
        metrics: AlertMetrics | None = None,
    ) -> None:
        self.name = webhook.name
        self._ends = ends
        self._outbox = outbox
        self._webhook = webhook
        self._policy = policy
        self._metrics = metrics
        self._breaker = ends.breaker(f"alerts-{webhook.name}", policy.breaker)
        self._pace = ends.keep(f"pace-{webhook.name}", lambda: Pace(webhook.max_per_s, ends.clock))
        self._wakeup = Wakeup()
        self._look = True  # the outbox may have something new
        self._accepted = 0  # deliveries, by this instance
        self._failing: dict[int, int] = {}  # by delivery whose last round failed: how many were accepted until then
        self._finishing = False
        self._cut_short = False  # the shutdown has ended an attempt's retries: failures are left to the next start
        self._log = EventLog(logger, clock=ends.clock, operator=ends.name, subscriber=webhook.name)
        self._bounded_log = BoundedLog(ends.name, ends.clock)
        self._reset()

    def _reset(self) -> None:
        self._ready: deque[Delivery] = deque()
        self._tasks: dict[asyncio.Task[None], Delivery] = {}
        self._busy: set[UUID] = set()  # conjunctions with a delivery that is under way, or not yet in the outbox
        self._acknowledged: list[Delivery] = []
        self._failed: list[_Failed] = []
        self._parked: list[_Parked] = []
        self._ended: list[Delivery] = []

    def wake(self) -> None:
        """The outbox has something new."""
        self._look = True
        self._wakeup.wake()

    def finish(self) -> None:
        """Nothing new will come: `run` is to return when everything is delivered that can be delivered now."""
        self._finishing = True
        self.wake()

    async def run(self) -> None:
        """Deliver until `finish`. An exception of one turn is logged, and the next turn begins some seconds later.

        Cancelled, it cancels the requests that are under way; what is not acknowledged stays pending.
        """
        while True:
            try:
                async with await self._client() as client:
                    await self._deliver(client)
            except Exception as error:  # noqa: BLE001 - one subscriber's fault must not stop the others, nor the sink
                self._log("alert_delivery_failed", level=logging.ERROR, exc=error)
                if self._finishing:
                    return
                await Wakeup().wait_until(self._ends.clock.monotonic() + _AFTER_A_FAULT_S, self._ends.clock)
            else:
                return

    async def _client(self) -> httpx.AsyncClient:
        """Loading the system's certificates takes tens of milliseconds: in a thread, and not at all without TLS."""
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if httpx.URL(self._webhook.url).scheme == "https":
            trusted = await self._ends.run_blocking(httpx.create_ssl_context)
        return httpx.AsyncClient(verify=trusted, timeout=self._webhook.timeout.total_seconds())

    async def _deliver(self, client: httpx.AsyncClient) -> None:
        self._reset()
        try:
            while True:
                self._collect_ended()
                self._start_ready(client)
                if await self._store_outcomes() or await self._took_from_outbox():
                    continue
                if self._finishing and not self._tasks:
                    return
                await self._wait()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _collect_ended(self) -> None:
        for task in [task for task in self._tasks if task.done()]:
            self._ended.append(self._tasks.pop(task))
            task.result()  # a bug is raised here

    def _start_ready(self, client: httpx.AsyncClient) -> None:
        while self._ready and self._has_room:
            delivery = self._ready.popleft()
            self._busy.add(delivery.alert.conjunction_id)
            task = asyncio.create_task(self._one(client, delivery), name=f"alert {delivery.alert.key} to {self.name}")
            self._tasks[task] = delivery
            task.add_done_callback(lambda _: self._wakeup.wake())

    @property
    def _has_room(self) -> bool:
        return len(self._tasks) < self._webhook.concurrency and not self._cut_short

    @property
    def _may_look(self) -> bool:
        return self._look and not self._ready and self._has_room

    async def _wait(self) -> None:
        """Until a task has ended, an attempt has failed, the outbox has something new, or the next poll is due."""
        if not (self._may_look or self._failed or any(task.done() for task in self._tasks)):
            await self._wakeup.wait_until(self._ends.clock.monotonic() + _POLL_S, self._ends.clock)
            self._look = True

    # The outbox.

    async def _took_from_outbox(self) -> bool:
        """Take the next deliveries if there is room. Returns whether there are any."""
        if not self._may_look:
            return False
        self._look = False
        limit = _PAGE + len(self._busy)
        due = await self._ends.run_blocking(self._outbox.due, self.name, self._ends.clock.now_ns(), limit)
        self._ready.extend(each for each in due if each.alert.conjunction_id not in self._busy)
        return bool(self._ready)

    async def _store_outcomes(self) -> bool:
        """Write to the outbox what became of the deliveries. Returns whether one has ended."""
        ended, acknowledged, failed, parked = self._ended, self._acknowledged, self._failed, self._parked
        self._ended, self._acknowledged, self._failed, self._parked = [], [], [], []
        if acknowledged or failed or parked:
            await self._ends.run_blocking(self._store, acknowledged, failed, parked)
        for delivery in ended:
            self._busy.discard(delivery.alert.conjunction_id)
        self._look = self._look or bool(ended)
        return bool(ended)

    def _store(self, acknowledged: list[Delivery], failed: list[_Failed], parked: list[_Parked]) -> None:
        now_ns = self._ends.clock.now_ns()
        for each in failed:  # first: one of them may have been acknowledged since
            self._outbox.note_failure(each.delivery, each.error, now_ns, retry_at_ns=each.retry_at_ns)
        if acknowledged:
            self._outbox.acknowledge(acknowledged, now_ns)
        for park in parked:
            self._outbox.park(park.delivery, park.reason, now_ns)

    # One delivery.

    async def _one(self, client: httpx.AsyncClient, delivery: Delivery) -> None:
        """One round of attempts."""
        alert = delivery.alert
        try:
            body = self._webhook.body(alert)
        except Exception as error:  # noqa: BLE001 - the format is foreign code; this alert must not stop the others
            self._park(
                delivery, f"it cannot be written as {self._webhook.content_type}: {type(error).__name__}: {error}"
            )
            return

        async def attempt() -> RetryDisposition[int]:
            await self._pace.turn()
            answer = classify(await self._post(client, delivery, body), slow=self._policy.slow)
            if isinstance(answer, Retry) and answer.retry_after is not None:
                self._pace.pause(min(answer.retry_after, self._policy.retry.max_retry_after).total_seconds())
            return answer

        accepted = self._failing.get(delivery.number, self._accepted)  # when its previous round had failed
        try:
            await self._ends.with_retry(
                self._policy.retry,
                attempt,
                breaker=self._breaker,
                on_attempt=lambda made: self._note(delivery, made, others_accepted=self._accepted > accepted),
            )
        except PermanentFailure as failure:
            self._park(delivery, str(failure.__cause__))
        except RetriesExhausted:  # it is noted, and still pending; those that are ready come first
            self._failing[delivery.number] = self._accepted
            return
        except RetryCutShort:
            self._cut_short = True
            return
        else:
            self._accepted += 1
            self._acknowledged.append(delivery)
            self._measure(delivery)
        self._failing.pop(delivery.number, None)

    async def _post(
        self, client: httpx.AsyncClient, delivery: Delivery, body: bytes
    ) -> RetryOk[int] | Retry | Permanent:
        clock, limit_s = self._ends.clock, self._webhook.timeout.total_seconds()
        request = webhook_request(self._webhook, delivery.alert, body, now_ns=clock.now_ns())
        timeout = Timeout(clock, limit_s)
        try:
            async with timeout:
                return await submit(client, request, now_ns=clock.now_ns)
        except TimeoutError:
            if not timeout.expired:
                raise
            return Retry(TimeoutError(f"no answer within {limit_s:g} s"))

    def _note(self, delivery: Delivery, attempt: Attempt, *, others_accepted: bool) -> None:
        """Count a failed attempt. An alert that fails while others are accepted pauses after its round."""
        if attempt.outcome is not retry.AttemptOutcome.FAILED:
            return
        if self._metrics is not None:
            self._metrics.count("failed")
        pauses = others_accepted and attempt.delay is None and not self._ends.shutdown.is_set
        until_ns = self._ends.clock.now_ns() + pause_ns(delivery.attempts + attempt.number) if pauses else 0
        self._failed.append(_Failed(delivery, str(attempt.error), until_ns))
        self._wakeup.wake()

    def _park(self, delivery: Delivery, reason: str) -> None:
        self._parked.append(_Parked(delivery, reason))
        if self._metrics is not None:
            self._metrics.count("parked")
        self._bounded_log.note("parked", reason, event="alert_parked", subscriber=self.name, alert=delivery.alert.key)

    def _measure(self, delivery: Delivery) -> None:
        if self._metrics is None:
            return
        risk = delivery.alert.risk
        self._metrics.count("retracted" if risk.status == "retracted" else "sent")
        if risk.cause in _NEW_EVIDENCE:
            self._metrics.latency_ns(self._ends.clock.now_ns() - risk.evidence_timestamp)


def pause_ns(failed_attempts: int) -> int:
    """How long an alert that alone fails waits before its next round, nanoseconds: 2 s an attempt, at most 15 minutes."""
    return min(failed_attempts * _PAUSE_PER_ATTEMPT, LONGEST_PAUSE) // timedelta(microseconds=1) * 1_000
