"""Copying partitions that one other broker leads, over one connection.

One answer after another: verify and append, flush, ask for more and tell by that what is on the
disk. What is in sync flushes with the next round. A request names the partitions of which something
has changed; the leader remembers the others (``copying``). A request that finds something new to
name while the one before waits is sent beside it: the leader then answers that one at once.

- Before the first batch of an epoch the leader has compared where the logs part, and this one was
  cut there (R1): every first request of an epoch carries the epoch of the last batch.
- A partition that cannot go on (its leader does not lead, the disk is full, bytes do not fit) rests
  for a while; the others go on. A failed sync ends the broker (R21).
- Replicas that are not in sync have a link of their own, with a ``CatchUp``: they are slowed down
  and flushed apart, to spare those that are.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING

import trio

from tailrace.broker import election
from tailrace.broker.asking import address_of
from tailrace.broker.catch_up import CatchUp
from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.following import cut, follow_cut, lost_committed, take_over
from tailrace.broker.limits import PARTITIONS_PER_REQUEST_MAX
from tailrace.broker.opener import follow_epochs
from tailrace.broker.partition import Partition
from tailrace.broker.peer import Channel, Lost, Reply, dial
from tailrace.protocol.errors import (
    BrokerError,
    OffsetOutOfRange,
    StorageFull,
    TailraceError,
    from_wire,
)
from tailrace.protocol.messages import FetchPartition, FetchRequest, FetchResponse, FetchResult
from tailrace.storage.replicating import BeginsBelow, ReplicaPlan, ReplicaRefused

if TYPE_CHECKING:
    from tailrace.broker.node import Node

log = logging.getLogger("tailrace.broker.leader_link")

WAIT_S = 5.0  # of a request for news
ANSWER_S = 10.0  # beyond that the connection counts as dead
PARTITION_BYTES, BYTES_MAX = 1 << 20, 8 << 20  # of one answer
AGAIN_MIN_S, AGAIN_MAX_S = 0.05, 1.0  # between connections
REST_MIN_S, REST_MAX_S = 0.05, 2.0  # of a partition that cannot go on; longer each time
TOLD_AFTER = 5  # of these, which a change of the leader may take
FULL_S = 5.0  # where there is no room
SOON_S = 0.01  # where somebody else is at it
ASTRAY = ("T010", "T011", "T032", "T045")  # the leader is another one, or another epoch's


class Followed:
    """One partition in one epoch of its leader."""

    __slots__ = ("busy", "epoch", "failures", "fresh", "leader_end", "partition", "telling")

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.epoch = partition.leadership.leader_epoch
        self.busy = False  # it is being cut
        self.fresh = True  # the leader has told nothing yet on this connection
        self.failures = 0  # since it last went on
        self.leader_end = -1
        self.telling = False  # it is asked for again after a sync

    @property
    def where(self) -> PartitionId:
        return self.partition.topic_id, self.partition.number

    @property
    def current(self) -> bool:
        """Whether it is still to be copied in this epoch."""
        partition = self.partition
        follows = partition.role == "follower" and partition.serving
        return follows and partition.leadership.leader_epoch == self.epoch


class LeaderLink:
    """``cuts`` is a nursery that outlives connections; ``catch_up`` None: all are in sync, or near.
    ``arrived`` is told of one that has caught up, which this link need not copy any more.
    Invariant: of what is in ``_names`` the leader has to be asked anew."""

    def __init__(
        self,
        node: "Node",
        leader_id: str,
        catch_up: CatchUp | None,
        cuts: trio.Nursery,
        rng: Random,
        *,
        arrived: Callable[[Partition], None],
    ) -> None:
        self.leader_id = leader_id
        self._node = node
        self._catch_up = catch_up
        self._bytes_max = BYTES_MAX if catch_up is None else catch_up.step_bytes(BYTES_MAX)
        self._cuts = cuts
        self._rng = rng
        self._arrived = arrived
        self.followed: dict[PartitionId, Followed] = {}
        self._names: dict[Followed, None] = {}
        self._epoch = 0  # the broker epoch that requests carry
        self._news = trio.Event()

    def assign(self, wanted: Mapping[PartitionId, Partition]) -> None:
        """Copy exactly these from now on."""
        for where, known in list(self.followed.items()):
            if where not in wanted or not known.current:
                self._leave(known)
            elif known.partition.log.quarantined:
                self._name(known)  # the cluster may count on it no more, so that it can be repaired
        for where, partition in wanted.items():
            if where not in self.followed:
                self.add(partition)

    def add(self, partition: Partition) -> None:
        """Copy this one, too."""
        one = Followed(partition)
        self.followed[one.where] = one
        self._name(one)

    def _leave(self, one: Followed) -> None:
        del self.followed[one.where]
        self._names.pop(one, None)

    async def run(self) -> None:
        """Keep a connection while there is something to be copied, until cancelled. T093."""
        again_s = AGAIN_MIN_S
        while True:
            record = self._node.views.view.brokers.get(self.leader_id)
            where = None
            if record is not None and self.followed:
                where = address_of(record, self._node.config.cluster.peer_listener)
            if where is None:
                await self._wait(WAIT_S)
                continue
            node = self._node
            try:
                channel = await dial(node.world.net, node.broker_id, node.cluster_id, where)
            except TailraceError as error:
                log.debug("leader %s cannot be reached: %s", self.leader_id, error)
            else:
                if await self._connected(channel):
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
        owed: deque[Reply] = deque()
        sequence, answers, heard_at = -1, 0, trio.current_time()
        while self.followed:
            if sequence < 0:
                sequence = self._begin_anew()
            elif self._epoch != self._node.broker_epoch:
                break  # what was told counts no more (R6)
            if not owed or (self._names and len(owed) < 3):
                with trio.move_on_after(ANSWER_S) as sending:
                    owed.append(await channel.send(self._request(sequence), self._tell))
                    sequence += 1
                if sending.cancelled_caught:
                    break
            if not owed[0].arrived:
                left_s = heard_at + WAIT_S + ANSWER_S - trio.current_time()
                if left_s > 0 and await self._wait(left_s):
                    continue
                break  # a connection that is silent for so long is dead
            try:
                response, body = owed.popleft().take()
            except Lost:
                break
            except TailraceError as error:
                log.warning("leader %s answers: %s", self.leader_id, error, extra=_REFUSED)
                break
            assert isinstance(response, FetchResponse)
            answers += 1
            await self._take(response, body)
            heard_at = trio.current_time()
            if not response.results and not self._names and not owed:
                await trio.sleep(SOON_S)  # it has nothing, and does not wait: it is stopping
        return answers > 0

    def _begin_anew(self) -> int:
        """The next request is the first one: name everything that does not rest."""
        self._epoch = self._node.broker_epoch
        for one in self.followed.values():
            one.fresh = True
            self._names[one] = None
        return 0

    def _request(self, sequence: int) -> FetchRequest:
        names = list(self._names)[:PARTITIONS_PER_REQUEST_MAX]
        for one in names:
            del self._names[one]
        asked = [
            self._ask(one) for one in names if not self._passed_by(one) and not self._repairs(one)
        ]
        return FetchRequest(
            *(round(WAIT_S * 1000), 1, self._bytes_max, 0, self._node.broker_id, self._epoch),
            *(tuple(asked), None, sequence),
        )

    def _mine(self, one: Followed) -> bool:
        """Whether it is this link that copies it still, in this epoch."""
        return one.current and self.followed.get(one.where) is one

    def _has_all(self, one: Followed) -> bool:
        """Whether it holds all that its leader had when it last told, and follows it still."""
        partition = one.partition
        led = partition.leadership.leader == self.leader_id
        return led and self._mine(one) and partition.log.end >= one.leader_end

    def _passed_by(self, one: Followed) -> bool:
        """Nothing is done about it for now: it is being cut, and named after that; or this broker
        is about to do something else with it, and if that comes to nothing it is named, too."""
        if not one.busy and not one.current:
            self._rest_longer(one)
        return one.busy or not one.current

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
        await self._flushed({one.partition: one.partition.log.end})
        one.telling = False
        self._name(one)

    async def _wait(self, seconds: float) -> bool:
        """For news; False: none came."""
        with trio.move_on_after(seconds):
            await self._news.wait()
        came = self._news.is_set()
        self._news = trio.Event()
        return came

    def _tell(self) -> None:
        self._news.set()

    def _name(self, one: Followed) -> None:
        """Ask for it with the next request."""
        if self.followed.get(one.where) is one:
            self._names[one] = None
            self._tell()

    def _rest_longer(self, one: Followed, least_s: float = 0.0) -> None:
        """Longer than the last time, unless it went on since."""
        one.failures += 1
        seconds = min(REST_MAX_S, REST_MIN_S * 2 ** min(one.failures, 10))
        self._rest(one, max(least_s, seconds * (0.5 + self._rng.random() / 2)))

    def _rest(self, one: Followed, seconds: float) -> None:
        self._node.timers.at(trio.current_time() + seconds, partial(self._name, one))

    # ── one answer ───────────────────────────────────────────────────────────────────────────

    async def _take(self, response: FetchResponse, body: memoryview) -> None:
        batches: list[tuple[Followed, memoryview]] = []
        position = 0
        for result in response.results:
            data = body[position : position + result.length]
            position += result.length
            one = self.followed.get((result.topic_id, result.partition))
            if one is None or self._passed_by(one):
                continue
            if result.error is not None:
                self._refused(one, from_wire(result.error))
            elif result.diverging_end >= 0:
                log_ = one.partition.log
                where = result.diverging_epoch, result.diverging_end
                self.cut_soon(one, partial(log_.truncate_for, *where))
            else:
                self._learn(one, result)
                if data:
                    batches.append((one, data))
        if batches:
            await self._append(batches)
        self._node.outbox.flush()  # consumers that wait here were answered

    def _learn(self, one: Followed, result: FetchResult) -> None:
        partition, told = one.partition, one.partition.following
        one.fresh, one.failures, one.leader_end = False, 0, result.log_end
        told.high_watermark = max(told.high_watermark, result.high_watermark)
        told.log_start = max(told.log_start, result.log_start)
        if told.log_start > partition.log.start:
            self._node.shelf.on_start_told(partition)
        if partition.config.compacts:
            self._node.cleaner.told(partition, one.epoch, result.cleaned_min)
        partition.advance()

    def _refused(self, one: Followed, error: TailraceError) -> None:
        partition = one.partition
        if isinstance(error, OffsetOutOfRange) and not (
            error.start <= partition.log.end <= error.end
        ):
            self.cut_soon(one, partial(partition.log.reset_to, error.start))
            return
        if error.code in ASTRAY:
            self._node.views.refresh()
        self._stuck(one, str(error), error.code)

    def _stuck(self, one: Followed, why: str, code: str | None, rest_s: float = 0.0) -> None:
        """It cannot go on, and is tried again; told once, if that lasts, until it can."""
        partition = one.partition
        self._rest_longer(one, rest_s)
        if one.failures == TOLD_AFTER:
            log.warning(
                "%s[%d] cannot be copied from %s for now: %s",
                *(partition.topic, partition.number, self.leader_id, why),
                extra={"event": "replica.stuck", "code": code, **partition.where},
            )

    # ── batches ──────────────────────────────────────────────────────────────────────────────

    async def _append(self, batches: Sequence[tuple[Followed, memoryview]]) -> None:
        """Write what came, and return when it is as durable as it has to be. T093."""
        held: list[Followed] = []
        written: dict[Followed, int] = {}
        try:
            plans = await self._plan(batches, held)
            await self._begin_epochs(plans)
            await self._node.flusher.idle([one.partition for one in plans])
            for one, (plan, size_bytes) in plans.items():
                if not self._mine(one) or plan.begins_at != one.partition.log.end:
                    self._rest_longer(one)
                    continue
                error = self._write(one, plan, size_bytes)
                if error is None:
                    written[one] = size_bytes
                elif one.current:
                    self._stuck(one, str(error), error.code, FULL_S)
        finally:
            for one in held:
                one.partition.changing.release()
        await self._flushed({one.partition: one.partition.log.end for one in written})
        catch_up, now = self._catch_up, trio.current_time()
        for one, size_bytes in written.items():
            one.partition.advance()
            wait_s = 0.0 if catch_up is None else catch_up.take(size_bytes, now)
            if catch_up is not None and self._has_all(one):
                self._leave(one)
                self._arrived(one.partition)
            elif wait_s > 0:
                self._rest(one, wait_s)
            else:
                self._name(one)

    async def _flushed(self, ends: Mapping[Partition, int]) -> None:
        flusher = self._node.flusher
        await (flusher.flushed if self._catch_up is None else flusher.flushed_apart)(ends)

    def _write(self, one: Followed, plan: ReplicaPlan, size_bytes: int) -> TailraceError | None:
        """T093 through the flusher, so that the broker ends whoever called."""
        try:
            self._node.shelf.check_room(one.partition)
            return take_over(one.partition, plan, size_bytes)
        except StorageFull as error:
            return error
        except BrokerError as error:
            self._node.flusher.broke(error)
            raise

    async def _plan(
        self, batches: Sequence[tuple[Followed, memoryview]], held: list[Followed]
    ) -> dict[Followed, tuple[ReplicaPlan, int]]:
        """What each of them is to become; ``held``: those whose ``changing`` was taken."""
        plans: dict[Followed, tuple[ReplicaPlan, int]] = {}
        for one, data in batches:
            try:
                one.partition.changing.acquire_nowait()
            except trio.WouldBlock:
                self._rest(one, SOON_S)
                continue
            held.append(one)
            if self._passed_by(one):
                continue
            try:
                plans[one] = await self._planned(one, data), len(data)
            except ReplicaRefused as error:
                self._stuck(one, str(error), "T035")
            await trio.lowlevel.checkpoint()
        return plans

    async def _planned(self, one: Followed, data: memoryview) -> ReplicaPlan:
        """``ReplicaRefused`` if it does not fit."""
        log_ = one.partition.log
        try:
            return log_.plan_replica(data, leader_epoch=one.epoch)
        except BeginsBelow as below:
            # The leader has rewritten that stretch, or starts inside of it: all of it is committed
            # there, and comes again with these very bytes.
            work = partial(log_.cut_back, below.base_offset)
            try:
                one.partition.maintenance.acquire_nowait()
            except trio.WouldBlock:
                raise ReplicaRefused("its segments are being rewritten") from None
            try:
                await cut(one.partition, work, self._node.flusher, self._node.world.offload)
            finally:
                one.partition.maintenance.release()
            follow_cut(one.partition)
            return log_.plan_replica(data, leader_epoch=one.epoch)

    async def _begin_epochs(self, plans: dict[Followed, tuple[ReplicaPlan, int]]) -> None:
        """Durably, before a batch of theirs is there (R8). T093."""
        begun = {
            one.partition.log: (one, plan.epochs)
            for one, (plan, _) in plans.items()
            if plan.epochs is not None
        }
        if not begun:
            return
        histories = {log_: epochs for log_, (_, epochs) in begun.items()}
        try:
            failed = await follow_epochs(self._node.world, histories)
        except BrokerError as error:
            self._node.flusher.broke(error)
            raise
        for log_, why in failed.items():
            one = begun[log_][0]
            del plans[one]
            self._stuck(one, str(why), None, FULL_S)

    # ── cutting ──────────────────────────────────────────────────────────────────────────────

    def cut_soon(self, one: Followed, work: Callable[[], None], *, committed: bool = False) -> None:
        """``committed``: what goes is there with the leader, and comes again."""
        one.busy = True
        self._cuts.start_soon(self._cut, one, work, one.partition.log.end, committed)

    async def _cut(
        self, one: Followed, work: Callable[[], None], end: int, committed: bool
    ) -> None:
        """Remove what is not the leader's from a log that ends there, then ask again. T093."""
        partition = one.partition
        async with partition.maintenance, partition.changing:
            if not self._mine(one):
                one.busy = False
                self._rest_longer(one)
                return
            if partition.log.end != end:  # a cut for the leader before was under way: ask anew
                one.busy = False
                self._name(one)
                return
            await cut(partition, work, self._node.flusher, self._node.world.offload)
            if committed:
                follow_cut(partition)
            elif lost_committed(partition):
                self._node.metrics.data_loss_possible.inc()
        one.busy = False
        self._name(one)


_REFUSED = {"event": "replica.refused", "code": None}
