"""This broker's place among the brokers: its lease, its registration, how long both may count.

- The lease is a hint for others (R13). What this broker itself may count on is by its own clock,
  which goes on during suspension: the time before the last good keepalive was *sent*, plus the
  session timeout, less a margin (R14).
- Every registration is a new broker epoch, and what named this broker by the old one no longer
  counts (R6). Others may lead by then what this broker led: where it was registered before, it
  counts on its lease only when it has stepped back from whatever a view read since gives to others
  (``stepped_back``).
- While the store is away it is asked again and again, at most ``AGAIN_MAX_S`` apart. A lease that
  ended meanwhile is followed by a new registration.
- A single node has no lease: the lock on its data directory stands for it, and it is always valid.

What is done while the session is not valid is for others to say: they ask ``valid`` or ``check``.
"""

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.members import BrokerRecord, IdTaken
from tailrace.broker.registry import Conflict, Registry
from tailrace.protocol import texts
from tailrace.protocol.errors import MetadataUnavailable

log = logging.getLogger("tailrace.broker.session")

MARGIN = 0.1  # share of the session timeout by which this broker gives up before its lease ends
AGAIN_MIN_S, AGAIN_MAX_S = 0.1, 1.0  # between attempts while the store is away
TELL_EVERY_S = 2.0


class Session:
    """Invariant: ``epoch`` is that of the last registration that is known to have been stored."""

    def __init__(
        self,
        registry: Registry,
        boottime: Callable[[], float],
        *,
        timeout_s: float | None,
        url: str,
    ) -> None:
        """``timeout_s``: of the lease; None: there is none. ``url``: of the store, for people."""
        self.epoch = 0
        self.lease: int | None = None
        self.on_registered: Callable[[], None] = lambda: None  # in a new broker epoch
        self._registry = registry
        self._boottime = boottime
        self._timeout_s = timeout_s
        self._url = url
        self._record: BrokerRecord | None = None
        self._draining = False
        self._closed = False
        self._good_at = boottime()  # when the last request was sent that the store answered
        self._until = math.inf if timeout_s is None else -math.inf  # by boottime
        self._knows_leaders = True  # as of its registration, or later
        self._bell = Bell()  # something is wrong with the registration
        self._told_at = -math.inf

    # ── what it is worth ─────────────────────────────────────────────────────────────────────

    def valid(self) -> bool:
        """Whether this broker may count on its lease. On the hot path."""
        return self._until == math.inf or (self._knows_leaders and self._boottime() < self._until)

    def check(self) -> None:
        """Raise T100 unless ``valid``."""
        if not self.valid():
            raise self._away()

    @property
    def remaining_s(self) -> float:
        """Until it is no longer valid; infinite on a single node."""
        return max(0.0, self._until - self._boottime()) if self._knows_leaders else 0.0

    def stepped_back(self) -> None:
        """Nothing is led here any more but by a view that was read since ``on_registered``."""
        self._knows_leaders = True

    def _away(self) -> MetadataUnavailable:
        if not self._knows_leaders:
            return texts.metadata_unavailable(
                self._url, "who leads was not read again since this broker was away"
            )
        return texts.metadata_unreachable(
            self._url,
            down_s=max(0.0, self._boottime() - self._good_at),
            lease_remaining_s=self.remaining_s,
        )

    # ── registration ─────────────────────────────────────────────────────────────────────────

    async def register(self, record: BrokerRecord) -> int:
        """Be one of the brokers from now on; the broker epoch.

        T100 if the store is away. ``IdTaken`` if another directory's broker is there.
        """
        self._record = record
        await self._register(record)
        return self.epoch

    async def _register(self, record: BrokerRecord) -> None:
        began, lease = self._boottime(), None
        if self._timeout_s is not None:
            lease = await self._registry.grant(self._timeout_s)
        try:
            epoch = await self._registry.register(replace(record, lease=lease or 0), lease)
            if self._draining and lease is not None:
                await self._registry.put_draining(lease)
        except KeyError as error:  # the lease ended before it was used
            raise self._away() from error
        self._knows_leaders = self.epoch == 0  # nothing was led before
        self.lease, self.epoch, self._good_at = lease, epoch, began
        if self._timeout_s is not None:
            self._until = began + self._timeout_s * (1 - MARGIN)
        log.info(
            "registered as broker %s in epoch %d",
            *(record.broker_id, epoch),
            extra={"event": "broker.registered", "code": None, "broker_epoch": epoch},
        )
        self.on_registered()

    async def drain(self) -> None:
        """Say that this broker is about to stop: it is given no more leaderships. T100."""
        if self.lease is None:
            return  # nobody is there to take any
        self._draining = True
        with suppress(KeyError):  # the lease has ended: nobody counts on this broker any more
            await self._registry.put_draining(self.lease)

    async def close(self) -> None:
        """Leave: the others need not wait for the lease to end. T100."""
        self._closed, self._until = True, -math.inf
        if self.lease is None:
            await self._registry.leave()
        else:
            await self._registry.revoke(self.lease)

    # ── keeping it ───────────────────────────────────────────────────────────────────────────

    def doubt(self, registered_epoch: int | None) -> None:
        """The store was seen to hold another registration of this broker, or none: look again."""
        if registered_epoch != self.epoch:
            self._bell.ring()

    async def run(self) -> None:
        """Keep the lease, or take another, until cancelled."""
        if self._timeout_s is None:
            return
        again_s = AGAIN_MIN_S
        pause_s = self._timeout_s / 3
        while True:
            with trio.move_on_after(pause_s):
                await self._bell.wait()
            if self._closed:
                return
            try:
                with trio.fail_after(self._timeout_s / 3):
                    await self._keep()
            except (MetadataUnavailable, trio.TooSlowError, Conflict):
                self._tell_away()
                pause_s, again_s = again_s, min(again_s * 2, AGAIN_MAX_S)
            except IdTaken as error:
                self._tell_taken(error.other)
                pause_s = AGAIN_MAX_S
            else:
                self._tell_back()
                pause_s, again_s = self._timeout_s / 3, AGAIN_MIN_S

    async def _keep(self) -> None:
        """One keepalive; a new registration where the old one is gone."""
        assert self._record is not None, "registered"
        assert self._timeout_s is not None, "there is a lease"
        assert self.lease is not None, "there is a lease"
        sent = self._boottime()
        there = await self._registry.keepalive(self.lease)
        registered = await self._registry.registered(self._record.broker_id) if there else None
        if registered is not None and registered.epoch == self.epoch:
            if not self._closed:
                self._good_at, self._until = sent, sent + self._timeout_s * (1 - MARGIN)
            return
        if not self._closed:
            self._until = -math.inf
            await self._register(self._record)

    def _tell_away(self) -> None:
        now = self._boottime()
        if now - self._told_at < TELL_EVERY_S:
            return
        self._told_at = now
        level = logging.WARNING if self.valid() else logging.ERROR
        error = self._away()
        log.log(level, "%s", error, extra={"event": "metadata.unreachable", "code": error.code})

    def _tell_back(self) -> None:
        if self._told_at > -math.inf:
            self._told_at = -math.inf
            log.info(
                "metadata store %s answers again",
                self._url,
                extra={"event": "metadata.reachable", "code": None},
            )

    def _tell_taken(self, other: BrokerRecord) -> None:
        now = self._boottime()
        if now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            log.error(
                "another broker is registered as %s, with another data directory (at %s):"
                " this one may write nothing",
                *(other.broker_id, other.where),
                extra={"event": "broker.id_taken", "code": "T082"},
            )
