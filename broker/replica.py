"""What the replicas of one partition are known to hold, and what is committed of it (pure).

On the leader: its followers' ends, the in-sync set as stored and as proposed, and the high
watermark that follows from both. On a follower: the high watermark its leader told it.

Invariants:
- ``high_watermark`` never falls (S11), and rises on a leader only when all of the *maximal* ISR
  counted for it (R3): the set as last read from the metadata store, and every proposed one of
  which it is not known that it can no longer be stored (R4);
- it stands still while the ISR is smaller than ``min_isr``, or while the ELR is not empty: whoever
  may be elected holds all that is committed (S7, S8), whatever min_isr others go by;
- a replica counts by what it has flushed with durability ``fsync``, else by what it has written;
- a follower that has not fetched in this epoch counts for nothing, and is not taken in (R5).

All times are seconds of one monotonic clock. ``observe_own`` and ``observe_fetch`` are called for
every append and every fetch: they cost a comparison per follower.

Deliberately not here: sending, storing, and whether a fetch is of the right epoch and lineage
(R1, R2), which the partition checks first.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tailrace.broker import election
from tailrace.broker.catalog import Leadership
from tailrace.broker.config import Durability

UNKNOWN = -1  # an end nobody has told in this epoch
NEVER = -math.inf


@dataclass(slots=True)
class Follower:
    """What one follower told by its fetches in this epoch."""

    broker_epoch: int = 0  # 0: has not fetched
    end: int = UNKNOWN  # it holds everything below
    flushed: int = UNKNOWN
    counted: int = UNKNOWN  # one of both, by durability
    cleaned: int = UNKNOWN  # it has compacted everything below (R39)
    fetched_at: float = NEVER
    caught_up_at: float = NEVER  # when it last had all that the leader had then
    leader_end: int = 0  # the leader's end at its last fetch


@dataclass(frozen=True, slots=True)
class IsrChange:
    """A change of the in-sync set to be stored by compare-and-swap.

    Compare the partition's key with ``leadership.revision`` and ``brokers/{id}`` of each one in
    ``added`` with the broker epoch of its fetches (R6).
    """

    leadership: Leadership  # as it shall be, with the revision it is built on
    added: Mapping[str, int]  # broker id -> broker epoch
    removed: tuple[str, ...]


class Replica:
    """This broker's copy of one partition among its replicas. Not leading at first."""

    __slots__ = (
        "_counting",
        "_doubtful",
        "_halted",
        "_own",
        "_pending",
        "_watched_since",
        "durability",
        "end",
        "epoch_start",
        "followers",
        "high_watermark",
        "leadership",
        "leading",
        "maximal_isr",
        "min_isr",
    )

    def __init__(self, durability: Durability, high_watermark: int) -> None:
        self.durability: Durability = durability
        self.high_watermark = high_watermark
        self.leadership = Leadership(None, 0, ())
        self.leading = False
        self.end = high_watermark  # of the own log
        self.epoch_start = high_watermark  # the leader's end when its epoch began (LESO)
        self.min_isr = 1
        self.followers: dict[str, Follower] = {}  # every other replica
        self.maximal_isr: frozenset[str] = (
            frozenset()
        )  # every broker that is, or may be, in the ISR (R4)
        self._own = UNKNOWN  # what this broker itself counts for
        self._counting: tuple[Follower, ...] = ()  # of the maximal ISR, without this broker
        self._halted = True  # nothing may be committed, whoever holds it
        self._watched_since = math.inf  # first ``isr_change`` of this epoch
        self._pending: Leadership | None = None  # proposed, under way
        self._doubtful: tuple[Leadership, ...] = ()  # proposed, outcome unknown (R16)

    # ── roles ────────────────────────────────────────────────────────────────────────────────

    def lead(self, leadership: Leadership, *, epoch_start: int, min_isr: int) -> None:
        """Begin to lead in a new epoch, with ``epoch_start`` as the log's end.

        Members of the ISR have ``lag_max`` from the first ``isr_change`` on to show themselves.
        """
        assert leadership.leader is not None, "nobody leads"
        assert leadership.leader in leadership.isr, "a leader is in sync with itself"
        assert leadership.leader_epoch > self.leader_epoch or not self.leading, "a new epoch (S9)"
        assert epoch_start >= self.high_watermark, "what is committed is in the log (S6)"
        self.leading = True
        self.leadership = leadership
        self.epoch_start = self.end = epoch_start
        self.min_isr = min_isr
        self.followers = {}
        self._own = UNKNOWN
        self._watched_since = math.inf
        self._pending, self._doubtful = None, ()
        self._regroup()

    def follow(self, leadership: Leadership) -> None:
        """Lead no more, or follow somebody else, or nobody."""
        self.leading = False
        self.leadership = leadership
        self.followers = {}
        self._pending, self._doubtful = None, ()
        self._regroup()

    @property
    def leader_epoch(self) -> int:
        return self.leadership.leader_epoch

    def reconfigure(self, durability: Durability, min_isr: int) -> bool:
        """Go by changed settings of the topic; whether the high watermark rose.

        What this broker itself counts for follows with the next ``observe_own``: until then, where
        syncs count from now on, no more than was committed.
        """
        if durability == "fsync" != self.durability:
            self._own = min(self._own, self.high_watermark)
        self.durability, self.min_isr = durability, min_isr
        for follower in self.followers.values():
            follower.counted = self._count(follower.end, follower.flushed)
        self._regroup()
        return self._advance()

    # ── what is held ─────────────────────────────────────────────────────────────────────────

    def observe_own(self, end: int, flushed: int) -> bool:
        """Take note of the leader's own log; whether the high watermark rose."""
        assert flushed <= end, "more flushed than written"
        self.end = end
        self._own = counted = flushed if self.durability == "fsync" else end
        if counted <= self.high_watermark or self._halted:
            return False
        for follower in self._counting:
            if follower.counted < counted:
                counted = follower.counted
        if counted <= self.high_watermark:
            return False
        self.high_watermark = counted
        return True

    def observe_fetch(
        self,
        broker_id: str,
        offset: int,
        flushed: int,
        broker_epoch: int,
        now: float,
        cleaned: int = UNKNOWN,
    ) -> bool:
        """Take note of a follower's fetch; whether the high watermark rose.

        ``offset`` is its log's end: the fetch was checked to be of this leader epoch, and of this
        leader's lineage up to there (R1, R2). From a broker that holds no replica, or from its
        time before it registered anew, it is ignored (R6).
        """
        assert flushed <= offset, "more flushed than written"
        follower = self.followers.get(broker_id)
        if follower is None or broker_epoch < follower.broker_epoch:
            return False
        follower.broker_epoch = broker_epoch
        follower.end, follower.flushed, follower.cleaned = offset, flushed, cleaned
        follower.counted = counted = flushed if self.durability == "fsync" else offset
        # KIP-16's rule: at the end now, or now where the end was at its last fetch.
        if counted >= self.end:
            follower.caught_up_at = now
        elif counted >= follower.leader_end and follower.fetched_at > follower.caught_up_at:
            follower.caught_up_at = follower.fetched_at
        follower.leader_end, follower.fetched_at = self.end, now
        return counted > self.high_watermark and self._advance()

    def observe_leader(self, high_watermark: int, end: int, flushed: int) -> bool:
        """On a follower: what its leader answered, and its own log; whether it rose (R3)."""
        assert not self.leading, "a leader is told by nobody"
        self.end = end
        known = min(high_watermark, self._count(end, flushed))
        if known <= self.high_watermark:
            return False
        self.high_watermark = known
        return True

    @property
    def shown_high_watermark(self) -> int | None:
        """What clients are told; None while an earlier leader may have told more (S11, R12).

        Records below ``high_watermark`` are committed all the same.
        """
        return self.high_watermark if self.high_watermark >= self.epoch_start else None

    @property
    def enough(self) -> bool:
        """Whether the ISR suffices for acks=all; else NotEnoughReplicas T030."""
        return len(self.leadership.isr) >= self.min_isr

    def holders(self) -> list[str]:
        """Followers in the ISR that have all of the leader's log: to whom it may hand over."""
        return [
            member
            for member in self.leadership.isr
            if member in self.followers and self.followers[member].counted >= self.end
        ]

    def lags(self, start: int) -> tuple[tuple[str, int], ...]:
        """Records that each follower lacks; of one that has not fetched in this epoch all there
        are, as nothing is known of it. ``start``: of the log."""
        return tuple(
            (broker_id, max(0, self.end - max(follower.end, start)))
            for broker_id, follower in self.followers.items()
        )

    def cleaned_min(self, own: int) -> int:
        """Below this every replica has compacted; UNKNOWN while one has not told (R39)."""
        return min((own, *(follower.cleaned for follower in self.followers.values())))

    # ── the in-sync set ──────────────────────────────────────────────────────────────────────

    @property
    def change_pending(self) -> bool:
        """Whether a change is under way; the next one waits for ``commit_change`` and so on."""
        return self._pending is not None

    def isr_change(
        self, now: float, lag_max: float, unfit: Collection[str] = ()
    ) -> IsrChange | None:
        """The change that is due, if any: ``begin_change`` before it is sent.

        Out goes whoever lacks something and had not caught up for ``lag_max`` seconds, never the
        leader. In comes who is at the high watermark and beyond the epoch's start (R5), unless it
        is among the ``unfit``: those are about to go, or gone.
        """
        if not self.leading or self._pending is not None:
            return None
        current = self.leadership
        self._watched_since = min(self._watched_since, now)
        alone = not self.followers and current.isr == (current.leader,)
        alone = alone and not current.elr and not current.doubted
        if alone and not self._doubtful:
            return None  # nobody to come or to go: looked at for every partition of a lone broker
        removed = tuple(one for one in current.isr if self._late(one, now - lag_max))
        added = {
            broker_id: follower.broker_epoch
            for broker_id, follower in self.followers.items()
            if broker_id not in current.isr
            and broker_id not in unfit
            and follower.broker_epoch > 0
            and follower.counted >= max(self.high_watermark, self.epoch_start)
            and self._lasting(follower, now - lag_max)
        }
        isr = (*(one for one in current.isr if one not in removed), *added)
        proposed = election.with_isr(current, isr, self.min_isr)
        proposed = election.at_work(proposed, self.min_isr)
        if proposed == current and not self._doubtful:
            return None
        return IsrChange(proposed, added, removed)

    def begin_change(self, change: IsrChange) -> None:
        """It is about to be sent: from now on it may be stored."""
        assert self._pending is None, "one change at a time"
        assert change.leadership.revision == self.leadership.revision, "built on what is known"
        self._pending = change.leadership
        self._regroup()

    def commit_change(self, leadership: Leadership) -> bool:
        """The store has this now, by our change or by somebody else's, in the same epoch.

        Whatever was proposed before can no longer be stored: it was compared with a revision
        that is past. Older news than what is known changes nothing. Whether the watermark rose.
        """
        if not self.leading or leadership.revision <= self.leadership.revision:
            return False
        assert leadership.leader_epoch == self.leader_epoch, "another epoch: lead or follow"
        self.leadership = leadership
        self._pending, self._doubtful = None, ()
        self._regroup()
        return self._advance()

    def abort_change(self, change: IsrChange) -> bool:
        """The store refused it, and had still the known revision when it was read after that.

        What was refused stays refused: revisions do not come back. (A store with a later revision
        is ``commit_change``: whose change that was does not matter.) Nothing if the change is
        past already. Whether the watermark rose.
        """
        if self._pending != change.leadership:
            return False
        self._doubtful = tuple(one for one in self._doubtful if one != self._pending)
        self._pending = None
        self._regroup()
        return self._advance()

    def doubt_change(self, change: IsrChange) -> None:
        """The outcome is unknown (R16): it may be stored yet, even if the store does not have it.

        Its members count until the store is known to have a later revision; the next change, one
        that changes nothing if need be, makes one. Nothing if the change is past already.
        """
        if self._pending != change.leadership:
            return
        if change.leadership not in self._doubtful:
            self._doubtful = (*self._doubtful, change.leadership)
        self._pending = None

    # ── how ──────────────────────────────────────────────────────────────────────────────────

    def _count(self, end: int, flushed: int) -> int:
        return flushed if self.durability == "fsync" else end

    def _proposed(self) -> Sequence[Leadership]:
        return self._doubtful if self._pending is None else (*self._doubtful, self._pending)

    def watch_anew(self, now: float) -> None:
        """This process stood still: what followers said meanwhile has not been read yet."""
        if self._watched_since <= now:
            self._watched_since = now

    def _late(self, broker_id: str, since: float) -> bool:
        follower = self.followers.get(broker_id)
        if follower is None or self._watched_since >= since:  # the leader; or it is too early
            return False
        return not self._lasting(follower, since)

    def _lasting(self, follower: Follower, since: float) -> bool:
        """Whether it has everything, or lately had; else it would leave as soon as it came."""
        return follower.counted >= self.end or follower.caught_up_at >= since

    def _regroup(self) -> None:
        """Work out who counts, after a change of the sets."""
        current, proposed = self.leadership, self._proposed()
        if not self.leading:
            self.maximal_isr = frozenset[str]()
            self._counting, self._halted = (), True
            return
        maximal = frozenset(current.isr).union(*(one.isr for one in proposed))
        everybody = dict.fromkeys((*current.replicas, *current.isr, *maximal))
        others = [one for one in everybody if one != current.leader]
        self.maximal_isr = maximal
        self.followers = {one: self.followers.get(one) or Follower() for one in others}
        self._counting = tuple(self.followers[one] for one in others if one in maximal)
        smallest = min(len(one.isr) for one in (current, *proposed))
        self._halted = smallest < self.min_isr or bool(current.elr)

    def _advance(self) -> bool:
        """Raise the high watermark as far as it may go."""
        if self._halted:
            return False
        reached = min((self._own, *(follower.counted for follower in self._counting)))
        if reached <= self.high_watermark:
            return False
        self.high_watermark = reached
        return True
