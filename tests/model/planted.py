"""Bugs, planted one at a time: the search must find each (safety design, 7.6).

7, a leader that goes on after its lease, is none here: R3 keeps it from acknowledging what others
do not hold, and that it answers nobody then is the session's, outside of the pure rules.
"""

from collections.abc import Collection, Iterable, Mapping
from unittest import mock

from tailrace.broker import election
from tailrace.broker.catalog import Leadership
from tailrace.broker.config import Durability
from tailrace.broker.election import Test
from tailrace.broker.replica import Follower, IsrChange
from tests.model.search import Found, search
from tests.model.state import Copy, Rules


class IsrOnly(Copy):
    """3: whoever is to come in does not count until that is stored."""

    def _proposed(self) -> tuple[Leadership, ...]:
        return ()


class ShrinksAtOnce(Copy):
    """3, the other half: who is to leave does not count from the moment that is proposed."""

    def _regroup(self) -> None:
        super()._regroup()
        if self.leading and self._pending is not None:
            isr = self._pending.isr
            self._counting = tuple(one for name, one in self.followers.items() if name in isr)


class JoinsEarly(Copy):
    """No bug: a follower need not have caught up lately, R5 alone says when it comes in."""

    def _lasting(self, follower: Follower, since: float) -> bool:
        return True


class NoEpochStart(JoinsEarly):
    """4: a follower comes into the ISR below the start of the leader's epoch."""

    def isr_change(
        self, now: float, lag_max: float, unfit: Collection[str] = ()
    ) -> IsrChange | None:
        start, self.epoch_start = self.epoch_start, 0
        try:
            return super().isr_change(now, lag_max, unfit)
        finally:
            self.epoch_start = start


class NoFlush(Copy):
    """8: what is written counts, although crashes lose it."""

    def __init__(self, durability: Durability, high_watermark: int) -> None:
        super().__init__("os", high_watermark)

    def reconfigure(self, durability: Durability, min_isr: int) -> bool:
        return super().reconfigure("os", min_isr)


class ShownAtOnce(Copy):
    """23: a fresh leader shows a watermark that lags behind its predecessor's."""

    @property
    def shown_high_watermark(self) -> int | None:
        return self.high_watermark


class BelowMinimum(Copy):
    """R3: commits with fewer than min_isr in sync."""

    def _regroup(self) -> None:
        super()._regroup()
        self._halted = not self.leading


class EligibleDoNotHalt(Copy):
    """R9: commits while others could be elected from the ELR."""

    def _regroup(self) -> None:
        super()._regroup()
        self._halted = not self.leading or len(self.leadership.isr) < self.min_isr


class OldFetchesCount(Copy):
    """R3: what followers told in an earlier epoch counts in this one."""

    def lead(self, leadership: Leadership, *, epoch_start: int, min_isr: int) -> None:
        kept = self.followers
        super().lead(leadership, epoch_start=epoch_start, min_isr=min_isr)
        self.followers.update(kept)
        self._regroup()

    def follow(self, leadership: Leadership) -> None:
        kept = self.followers
        super().follow(leadership)
        self.followers = kept


def anybody(
    order: Iterable[str], among: Collection[str], *, alive: Test, may_lead: Test
) -> str | None:
    """R10: a leader from outside of ISR and ELR, without a command."""
    return next(filter(alive, (*among, *order)), None)


PLANTED: Mapping[str, Rules] = {
    "1 truncate to the watermark": Rules(moves=1, bug="truncate to watermark"),
    "2 no epoch check on fetch": Rules(moves=2, epochs=3, bug="any epoch"),
    "3 proposed members do not count": Rules(changes=1, isr="ab", copy=IsrOnly),
    "3 a proposed shrink holds at once": Rules(changes=1, copy=ShrinksAtOnce),
    "4 expand below the epoch's start": Rules(
        moves=1, changes=1, late=1, isr="ab", copy=NoEpochStart
    ),
    "5 expand without broker epoch": Rules(changes=1, wipes=1, isr="ab", bug="no broker epoch"),
    "6 AlterIsr without compare": Rules(changes=1, moves=1, isr="ab", bug="no compare"),
    "8 no flush": Rules(crashes=1, slow_flush=True, copy=NoFlush),
    "23 a watermark that falls is shown": Rules(moves=1, copy=ShownAtOnce),
    "KIP-903 another copy in the same epoch": Rules(
        losses=1, changes=1, late=1, isr="ab", epochs=1, bug="same epoch with another"
    ),
    "25 epoch written at the first append": Rules(moves=1, records=2, isr="ab", bug="late epoch"),
    "27 a lost reply is a refusal": Rules(changes=1, doubts=1, isr="ab", bug="lost is aborted"),
    "R3 commit below min_isr": Rules(changes=1, copy=BelowMinimum),
    "R3 fetches of old epochs count": Rules(moves=2, epochs=3, copy=OldFetchesCount),
    "R7 a wiped broker stays": Rules(wipes=1, bug="wiped stays"),
    "R7 doubts end when a leader is named": Rules(
        crashes=1, kills=1, epochs=3, isr="ab", durability="replicated", bug="doubts end by name"
    ),
    "R9 commit while the ELR is not empty": Rules(changes=1, lowered=1, copy=EligibleDoNotHalt),
    "S9 a leader restarts in its epoch": Rules(crashes=1, records=2, bug="same epoch"),
}

# Found as well, but not in a second.
DEEP: Mapping[str, Rules] = {
    "KIP-903 a copy again in the same epoch": Rules(
        targets=2, changes=1, bug="same epoch without it"
    ),
}


def find(name: str) -> Found:
    """The search for one of them."""
    return search(PLANTED.get(name) or DEEP[name])


def find_anybody() -> Found:
    """R10, planted in ``election``."""
    with mock.patch.object(election, "choose", anybody):
        return search(Rules(isr="ab", expiries=2))
