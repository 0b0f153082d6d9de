"""Copying partitions that one other broker leads, over one connection.

One answer after another: verify and append, flush (``intake``), ask for more and tell by that what
is on the disk. What is in sync flushes with the next round. A request names the partitions of which
something has changed (``followed``); the leader remembers the others (``copying``). A request that
finds something new to name while the one before waits is sent beside it: the leader then answers
that one at once.

Replicas that are not in sync have a link of their own, with a ``CatchUp``: they are slowed down and
flushed apart, to spare those that are.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import trio

from tailrace.broker import election
from tailrace.broker.catch_up import CatchUp
from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.followed import Followed, FollowedSet
from tailrace.broker.intake import SOON_S, Intake
from tailrace.broker.limits import FETCHES_OWED_MAX, PARTITIONS_PER_REQUEST_MAX
from tailrace.broker.partition import Partition
from tailrace.broker.peer import Channel, Lost, Reply
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import FetchPartition, FetchRequest, FetchResponse

if TYPE_CHECKING:
    from tailrace.broker.node import Node

log = logging.getLogger("tailrace.broker.leader_link")

WAIT_S = 5.0  # of a request for news
ANSWER_S = 10.0  # beyond that the connection counts as dead
PARTITION_BYTES, BYTES_MAX = 1 << 20, 8 << 20  # of one answer
AGAIN_MIN_S, AGAIN_MAX_S = 0.05, 1.0  # between connections


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is under way; ``ends``: of the logs that it names, as they were."""

    reply: Reply
    ends: Mapping[Followed, int]


class LeaderLink:
    """``cuts`` is a nursery that outlives connections; ``catch_up`` None: all are in sync, or near.
    ``change_over``: see ``Intake``."""

    def __init__(
        self,
        node: "Node",
        leader_id: str,
        catch_up: CatchUp | None,
        cuts: trio.Nursery,
        rng: Random,
        *,
        change_over: Callable[[Partition], None],
    ) -> None:
        self.leader_id = leader_id
        self._node = node
        self._bytes_max = BYTES_MAX if catch_up is None else catch_up.step_bytes(BYTES_MAX)
        self._cuts = cuts
        self._rng = rng
        self._set = FollowedSet(leader_id, node.timers, rng, news=self._tell)
        self._intake = Intake(node, self._set, catch_up, cuts, change_over=change_over)
        self._epoch = 0  # the broker epoch that requests carry
        self._told_deaf = False
        self._news = trio.Event()

    @property
    def followed(self) -> Mapping[PartitionId, Followed]:
        """What it copies."""
        return self._set.by_place

    def assign(self, wanted: Mapping[PartitionId, Partition]) -> None:
        """Copy exactly these from now on."""
        self._set.assign(wanted)

    def add(self, partition: Partition) -> None:
        """Copy this one, too."""
        self._set.add(partition)

    def ask_again(self, where: PartitionId) -> None:
        """Ask for it with the next request, whether there is news of it or not."""
        self._set.name(self._set.by_place[where])

    def cut_soon(self, one: Followed, work: Callable[[], None], *, committed: bool = False) -> None:
        """Let ``work`` remove the end of a log: see ``Intake.cut_soon``."""
        self._intake.cut_soon(one, work, committed=committed)

    async def run(self) -> None:
        """Keep a connection while there is something to be copied, until cancelled. T093."""
        again_s = AGAIN_MIN_S
        while True:
            record = self._node.views.view.brokers.get(self.leader_id)
            peer, channel = None, None
            if record is not None and self.followed:
                peer = record.at(self._node.config.cluster.peer_listener)
                if peer is None:
                    self._tell_deaf(self._node.config.cluster.peer_listener)
            if peer is None:
                await self._wait(WAIT_S)
                continue
            with suppress(TailraceError):  # which is told where it is raised
                channel = await self._node.peers.dial(peer)
            if channel is not None and await self._connected(channel):
                again_s = AGAIN_MIN_S
            await trio.sleep(again_s * (0.5 + self._rng.random()))
            again_s = min(again_s * 2, AGAIN_MAX_S)

    # ── one connection ───────────────────────────────────────────────────────────────────────

    async def _connected(self, channel: Channel) -> bool:
        """Copy over it until it ends; whether anything was answered."""
        answered = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.read)
                answered = await self._copy(channel)
                nursery.cancel_scope.cancel()
        finally:
            channel.close()
        return answered

    async def _copy(self, channel: Channel) -> bool:
        owed: deque[Asked] = deque()
        sequence, answers, heard_at = -1, 0, trio.current_time()
        while self.followed:
            if sequence < 0:
                sequence = self._begin_anew()
            elif self._epoch != self._node.broker_epoch:
                break  # what was told counts no more (R6)
            if not owed or (self._set.names and len(owed) < FETCHES_OWED_MAX):
                with trio.move_on_after(ANSWER_S) as sending:
                    owed.append(await self._send(channel, sequence))
                    sequence += 1
                if sending.cancelled_caught:
                    break
            if not owed[0].reply.arrived:
                left_s = heard_at + WAIT_S + ANSWER_S - trio.current_time()
                if left_s > 0 and await self._wait(left_s):
                    continue
                break  # a connection that is silent for so long is dead
            try:
                response, body = self._next(owed.popleft())
            except Lost:
                break
            except TailraceError as error:
                log.warning("leader %s answers: %s", self.leader_id, error, extra=_REFUSED)
                break
            assert isinstance(response, FetchResponse)
            answers += 1
            await self._intake.take(response, body)
            heard_at = trio.current_time()
            if not response.results and not self._set.names and not owed:
                await trio.sleep(SOON_S)  # it has nothing, and does not wait: it is stopping
        return answers > 0

    def _begin_anew(self) -> int:
        """The next request is the first one: name everything that does not rest."""
        self._epoch = self._node.broker_epoch
        for one in self.followed.values():
            one.begin_anew()
            self._set.names[one] = None
        return 0

    async def _send(self, channel: Channel, sequence: int) -> Asked:
        names = list(self._set.names)[:PARTITIONS_PER_REQUEST_MAX]
        for one in names:
            del self._set.names[one]
        asked = {
            one: self._ask(one)
            for one in names
            if not self._set.passed_by(one) and not self._repairs(one)
        }
        for one in asked:
            one.unanswered += 1
        request = FetchRequest(
            *(round(WAIT_S * 1000), 1, self._bytes_max, 0, self._node.broker_id, self._epoch),
            *(tuple(asked.values()), None, sequence),
        )
        ends = {one: named.offset for one, named in asked.items()}
        return Asked(await channel.send(request, self._tell), ends)

    def _next(self, asked: Asked) -> tuple[object, memoryview]:
        """The answer to a request, and to those before it. Lost, TailraceError."""
        answer = asked.reply.take()
        for one, end in asked.ends.items():
            one.unanswered -= 1
            one.asked_from = end
        return answer

    def _repairs(self, one: Followed) -> bool:
        """Give up a damaged range and what follows, to copy it again, once the cluster does not
        count on this copy any more (R25). Until then it says that it holds less: see ``_ask``."""
        partition = one.partition
        holes = partition.log.quarantined
        if not holes or self._node.broker_id in election.candidates(partition.leadership):
            return False
        self.cut_soon(one, partial(partition.log.cut_back, holes[0].first_offset), committed=True)
        return True

    def _ask(self, one: Followed) -> FetchPartition:
        partition, told = one.partition, one.partition.following
        log_, compacts = partition.log, partition.config.compacts
        holes = log_.quarantined
        sound = holes[0].first_offset if holes else log_.end  # damage is held by nobody (R25)
        unsynced = log_.flushed < log_.end and partition.config.durability == "fsync"
        if unsynced and not one.telling:
            one.telling = True
            self._cuts.start_soon(self._ask_when_flushed, one)
        return FetchPartition(
            *(partition.topic_id, partition.number, log_.end, PARTITION_BYTES, one.epoch),
            last_fetched_epoch=log_.last_epoch,
            flushed_end=min(log_.flushed, sound),
            high_watermark=-1 if one.fresh else told.high_watermark,
            cleaned=self._node.cleaner.clean_offset(partition) if compacts else -1,
        )

    async def _ask_when_flushed(self, one: Followed) -> None:
        """Another link brought it, and whoever waits there for its sync does not tell. T093."""
        await self._intake.flushed({one.partition: one.partition.log.end})
        one.telling = False
        self._set.name(one)

    def _tell_deaf(self, listener: str) -> None:
        """It cannot be asked where brokers are asked here."""
        if not self._told_deaf:
            self._told_deaf = True
            log.warning(
                "broker %s has no listener %s, at which others are asked here"
                " (cluster.peer_listener): nothing is copied from it. Give it one, and restart it.",
                *(self.leader_id, listener),
                extra={"event": "peer.unreachable", "code": None, "peer": self.leader_id},
            )

    async def _wait(self, seconds: float) -> bool:
        """For news; False: none came."""
        with trio.move_on_after(seconds):
            await self._news.wait()
        came = self._news.is_set()
        self._news = trio.Event()
        return came

    def _tell(self) -> None:
        self._news.set()


_REFUSED = {"event": "replica.refused", "code": None}
