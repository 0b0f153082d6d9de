"""What one answer of a leader does to the copies here: they grow, verified and flushed, or are cut.

- Before the first batch of an epoch the leader has compared where the logs part, and this one was
  cut there (R1): every first request of an epoch carries the epoch of the last batch.
- An answer to what was asked when the log ended elsewhere is for nobody: another answer came before
  it, over this link or the one before. What is asked next will tell.
- A failed sync ends the broker (R21).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio

from tailrace.broker.catch_up import CatchUp
from tailrace.broker.followed import UNASKED, Followed, FollowedSet
from tailrace.broker.following import cut, follow_cut, lost_committed, take_over
from tailrace.broker.opener import follow_epochs
from tailrace.broker.partition import Partition
from tailrace.protocol.errors import (
    BrokerError,
    OffsetOutOfRange,
    PartitionOffline,
    StorageFull,
    TailraceError,
    from_wire,
)
from tailrace.protocol.messages import FetchResponse, FetchResult
from tailrace.storage.replicating import BeginsBelow, ReplicaPlan, ReplicaRefused

if TYPE_CHECKING:
    from tailrace.broker.node import Node

FULL_S = 5.0  # where there is no room
SOON_S = 0.01  # where somebody else is at it
ASTRAY = ("T010", "T011", "T032", "T045")  # the leader is another one, or another epoch's
NEAR_BYTES = 8 << 20  # copied without ever having all: it catches up again


class Intake:
    """``cuts`` is a nursery that outlives connections; ``catch_up`` None: all are in sync, or near.
    ``change_over`` is told of a copy that this link has left to the leader's other one: it has
    caught up, or was near and fell behind."""

    def __init__(
        self,
        node: "Node",
        followed: FollowedSet,
        catch_up: CatchUp | None,
        cuts: trio.Nursery,
        *,
        change_over: Callable[[Partition], None],
    ) -> None:
        self._node = node
        self._followed = followed
        self._catch_up = catch_up
        self._cuts = cuts
        self._change_over = change_over

    # ── one answer ───────────────────────────────────────────────────────────────────────────

    async def take(self, response: FetchResponse, body: memoryview) -> None:
        """Do what it says; on return what it brought is as durable as it has to be. T093."""
        batches: list[tuple[Followed, memoryview]] = []
        position = 0
        for result in response.results:
            data = body[position : position + result.length]
            position += result.length
            one = self._followed.by_place.get((result.topic_id, result.partition))
            if one is None or one.asked_from == UNASKED or self._followed.passed_by(one):
                continue
            settles = data or result.error is not None or result.diverging_end >= 0
            if settles and one.overtaken:
                self._followed.name_again(one)
            elif result.error is not None:
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
        self._followed.stuck(one, str(error), error.code)

    # ── batches ──────────────────────────────────────────────────────────────────────────────

    async def _append(self, batches: Sequence[tuple[Followed, memoryview]]) -> None:
        """Write what came, and return when it is as durable as it has to be. T093."""
        held: list[Followed] = []
        written: dict[Followed, int] = {}
        if self._catch_up is not None:
            await self._node.flusher.give_way()
        try:
            plans = await self._plan(batches, held)
            await self._begin_epochs(plans)
            await self._node.flusher.idle([one.partition for one in plans])
            for one, (plan, size_bytes) in plans.items():
                if not self._followed.mine(one) or plan.begins_at != one.partition.log.end:
                    self._followed.rest_longer(one)
                    continue
                error = self._write(one, plan, size_bytes)
                if error is None:
                    written[one] = size_bytes
                elif one.current:
                    self._followed.stuck(one, str(error), error.code, FULL_S)
        finally:
            for one in held:
                one.partition.changing.release()
        await self.flushed({one.partition: one.partition.log.end for one in written})
        catch_up, now = self._catch_up, trio.current_time()
        for one, size_bytes in written.items():
            one.partition.advance()
            wait_s = 0.0 if catch_up is None else catch_up.take(size_bytes, now)
            if self._is_out_of_place(one, size_bytes):
                self._followed.leave(one)
                self._change_over(one.partition)
            elif wait_s > 0:
                self._followed.rest(one, wait_s)
            else:
                self._followed.name(one)

    def _is_out_of_place(self, one: Followed, size_bytes: int) -> bool:
        """So much of it was copied: whether its leader's other link is the one for it now."""
        if self._followed.has_all(one):
            one.behind_bytes = 0
            return self._catch_up is not None
        one.behind_bytes += size_bytes
        fell_behind = one.partition.following.near and one.behind_bytes > NEAR_BYTES
        return self._catch_up is None and fell_behind and self._followed.mine(one)

    async def flushed(self, ends: Mapping[Partition, int]) -> None:
        """Return once these logs are durable up to so far, where that is asked for. T093."""
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
                self._followed.rest(one, SOON_S)
                continue
            held.append(one)
            if self._followed.passed_by(one) or not self._followed.mine(one):
                continue  # the leader's other link copies it by now, and has asked from its end on
            try:
                plans[one] = await self._planned(one, data), len(data)
            except ReplicaRefused as error:
                self._followed.stuck(one, str(error), "T035")
            except (StorageFull, PartitionOffline) as error:
                self._followed.stuck(one, str(error), error.code, FULL_S)
            await trio.lowlevel.checkpoint()
        return plans

    async def _planned(self, one: Followed, data: memoryview) -> ReplicaPlan:
        """``ReplicaRefused`` if it does not fit; T031, T033 if it cannot be made to."""
        log_ = one.partition.log
        try:
            return log_.plan_replica(data, leader_epoch=one.epoch)
        except BeginsBelow as found:
            below = found.base_offset
        # The leader has rewritten that stretch, or starts inside of it: all of it is committed
        # there, and comes again with these very bytes.
        await self._cut_below(one, below)
        return log_.plan_replica(data, leader_epoch=one.epoch)

    async def _cut_below(self, one: Followed, offset: int) -> None:
        """``ReplicaRefused`` while others are at its segments; T031, T033. T093."""
        partition, node = one.partition, self._node
        try:
            partition.maintenance.acquire_nowait()
        except trio.WouldBlock:
            raise ReplicaRefused("its segments are being rewritten") from None
        try:
            work = partial(partition.log.cut_back, offset)
            error = await cut(partition, work, node.flusher, node.world.offload)
        finally:
            partition.maintenance.release()
        if not self._followed.mine(one):
            node.replicator.ask_again(partition)
        if error is not None:
            raise error
        follow_cut(partition)

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
            self._followed.stuck(one, str(why), None, FULL_S)

    # ── cutting ──────────────────────────────────────────────────────────────────────────────

    def cut_soon(self, one: Followed, work: Callable[[], None], *, committed: bool = False) -> None:
        """Let ``work`` remove the end of a log. ``committed``: what goes is there with the leader,
        and comes again."""
        one.busy = True
        self._cuts.start_soon(self._cut, one, work, one.partition.log.end, committed)

    async def _cut(
        self, one: Followed, work: Callable[[], None], end: int, committed: bool
    ) -> None:
        """Remove what is not the leader's from a log that ends there, then ask again. T093."""
        partition = one.partition
        async with partition.maintenance, partition.changing:
            if not self._followed.mine(one):
                one.busy = False
                self._followed.rest_longer(one)
                return
            if partition.log.end != end:  # a cut for the leader before was under way: ask anew
                one.busy = False
                self._followed.name(one)
                return
            error = await cut(partition, work, self._node.flusher, self._node.world.offload)
            if error is None and committed:
                follow_cut(partition)
            elif error is None and lost_committed(partition):
                self._node.metrics.data_loss_possible.inc()
        one.busy = False
        if error is not None and self._followed.mine(one):
            self._followed.stuck(one, str(error), error.code, FULL_S)
        else:  # the leader's other link may copy it by now, and have told of a longer log
            self._node.replicator.ask_again(partition)
