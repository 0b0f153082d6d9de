"""What one link to a leader copies, and of which of it the leader has to be asked anew.

A partition that cannot go on (its leader does not lead, the disk is full, bytes do not fit) rests
for a while; the others go on.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from random import Random

import trio

from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.partition import Partition
from tailrace.broker.timers import Timers

log = logging.getLogger("tailrace.broker.followed")

# Of a partition that cannot go on; twice as long each time. Briefly at first: often the new leader
# only hears of it some milliseconds after its followers, while producers wait for these.
REST_MIN_S, REST_MAX_S = 0.005, 2.0
TOLD_AFTER = 9  # of these, 2 s, which a change of the leader may take
UNASKED = -1


class Followed:
    """One partition in one epoch of its leader, from the moment its link took it up."""

    __slots__ = (
        "asked_from",
        "behind_bytes",
        "busy",
        "epoch",
        "failures",
        "fresh",
        "leader_end",
        "partition",
        "telling",
        "unanswered",
    )

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.epoch = partition.leadership.leader_epoch
        self.busy = False  # it is being cut
        self.fresh = True  # the leader has told nothing yet on this connection
        self.failures = 0  # since it last went on
        self.leader_end = -1
        self.telling = False  # it is asked for again after a sync
        self.unanswered = 0  # requests that name it
        self.asked_from = UNASKED  # the log's end then, in the last of them that was answered
        self.behind_bytes = 0  # copied since it last had all that its leader had

    @property
    def where(self) -> PartitionId:
        return self.partition.topic_id, self.partition.number

    @property
    def current(self) -> bool:
        """Whether it is still to be copied in this epoch."""
        partition = self.partition
        follows = partition.role == "follower" and partition.serving
        return follows and partition.leadership.leader_epoch == self.epoch

    @property
    def overtaken(self) -> bool:
        """Whether its log is not what it was when the leader was asked what it answers now."""
        return self.asked_from != self.partition.log.end

    def begin_anew(self) -> None:
        """Nothing was asked on this connection."""
        self.fresh = True
        self.unanswered, self.asked_from = 0, UNASKED


class FollowedSet:
    """``news`` is told when there is something to ask.

    Invariant: of what is in ``names`` the leader has to be asked anew.
    """

    def __init__(
        self, leader_id: str, timers: Timers, rng: Random, *, news: Callable[[], None]
    ) -> None:
        self.leader_id = leader_id
        self.by_place: dict[PartitionId, Followed] = {}
        self.names: dict[Followed, None] = {}
        self._timers = timers
        self._rng = rng
        self._news = news

    def assign(self, wanted: Mapping[PartitionId, Partition]) -> None:
        """Copy exactly these from now on."""
        for where, known in list(self.by_place.items()):
            if where not in wanted or not known.current:
                self.leave(known)
            elif known.partition.log.quarantined:
                self.name(known)  # the cluster may count on it no more, so that it can be repaired
        for where, partition in wanted.items():
            if where not in self.by_place:
                self.add(partition)

    def add(self, partition: Partition) -> None:
        """Copy this one, too."""
        one = Followed(partition)
        self.by_place[one.where] = one
        self.name(one)

    def leave(self, one: Followed) -> None:
        """Copy it no more; answers that come yet are for nobody."""
        del self.by_place[one.where]
        self.names.pop(one, None)

    def mine(self, one: Followed) -> bool:
        """Whether it is copied here still, in this epoch."""
        return one.current and self.by_place.get(one.where) is one

    def has_all(self, one: Followed) -> bool:
        """Whether it holds all that its leader had when it last told, and follows it still."""
        partition = one.partition
        led = partition.leadership.leader == self.leader_id
        return led and self.mine(one) and partition.log.end >= one.leader_end

    def passed_by(self, one: Followed) -> bool:
        """Nothing is done about it for now: it is being cut, and named after that; or this broker
        is about to do something else with it, and if that comes to nothing it is named, too."""
        cut = one.busy or one.partition.cutting  # by this link, or by the one it was with before
        if not cut and not one.current:
            self.rest_longer(one)
        return cut or not one.current

    def name(self, one: Followed) -> None:
        """Ask for it with the next request."""
        if self.by_place.get(one.where) is one:
            self.names[one] = None
            self._news()

    def name_again(self, one: Followed) -> None:
        """What was answered is of no use any more: ask, unless that was done already."""
        if not one.unanswered:
            self.name(one)

    def rest_longer(self, one: Followed, least_s: float = 0.0) -> None:
        """Longer than the last time, unless it went on since."""
        one.failures += 1
        seconds = min(REST_MAX_S, REST_MIN_S * 2 ** min(one.failures, 10))
        self.rest(one, max(least_s, seconds * (0.5 + self._rng.random() / 2)))

    def rest(self, one: Followed, seconds: float) -> None:
        """Ask for it after so long."""
        self._timers.at(trio.current_time() + seconds, partial(self.name, one))

    def stuck(self, one: Followed, why: str, code: str | None, rest_s: float = 0.0) -> None:
        """It cannot go on, and is tried again; told once, if that lasts, until it can."""
        partition = one.partition
        self.rest_longer(one, rest_s)
        if one.failures == TOLD_AFTER:
            log.warning(
                "%s[%d] cannot be copied from %s for now: %s",
                *(partition.topic, partition.number, self.leader_id, why),
                extra={"event": "replica.stuck", "code": code, **partition.where},
            )
