"""Known bugs of replication; ``planted.py`` says what for."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import trio

from tailrace.broker.catalog import Leadership, partition_key
from tailrace.broker.cluster_view import PartitionId
from tailrace.broker.isr_keeper import IsrKeeper
from tailrace.broker.leader_link import LeaderLink
from tailrace.broker.members import BROKERS
from tailrace.broker.metadata import Entry
from tailrace.broker.partition import Partition
from tailrace.broker.registry import Conflict, Registry
from tailrace.broker.replica import Follower, IsrChange, Replica
from tailrace.broker.session import Session
from tailrace.protocol.batch import BadBatch, BatchHeader, EndOfLog, scan_one
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.storage import replicating
from tailrace.storage.epochs import EpochStart

Patches = Sequence[Any]


def truncates_to_watermark() -> Patches:
    """Whoever follows a new leader first cuts off what it does not know to be committed (R1,
    KIP-101)."""
    assign = LeaderLink.assign

    def hasty(self: Any, wanted: Mapping[PartitionId, Partition]) -> None:
        known = set(self.followed.values())
        assign(self, wanted)
        for one in self.followed.values():
            partition = one.partition
            if one not in known and partition.high_watermark < partition.log.end:
                work = partial(partition.log.cut_back, partition.high_watermark)
                self.cut_soon(one, work)

    return [patch.object(LeaderLink, "assign", hasty)]


def fetch_epoch_not_checked() -> Patches:
    """A follower may fetch in any epoch, whatever its log ends with, and counts (R1, R2)."""
    admit = Partition.admit

    def trusting(self: Partition, broker_id: str, broker_epoch: int, leader_epoch: int) -> None:
        admit(self, broker_id, broker_epoch, self.leadership.leader_epoch)

    def alike(self: Partition, last_epoch: int, offset: int) -> None:
        return None

    return [
        patch.object(Partition, "admit", trusting),
        patch.object(Partition, "divergence", alike),
    ]


def ack_on_isr() -> Patches:
    """What was proposed and may be stored by now does not count (R4)."""

    def nothing(self: Replica) -> Sequence[Leadership]:
        return ()

    return [patch.object(Replica, "_proposed", nothing)]


def joins_below_epoch_start() -> Patches:
    """Into the ISR comes who is at the high watermark, wherever the epoch began (R5)."""
    isr_change, lasting = Replica.isr_change, Replica._lasting

    def hasty(self: Replica, *given: Any) -> IsrChange | None:
        start, self.epoch_start = self.epoch_start, 0
        try:
            return isr_change(self, *given)
        finally:
            self.epoch_start = start

    def near(self: Replica, follower: Follower, since: float) -> bool:
        return lasting(self, follower, since) or follower.counted >= self.high_watermark

    return [
        patch.object(Replica, "isr_change", hasty),
        patch.object(Replica, "_lasting", near),
    ]


def joins_by_old_broker_epoch() -> Patches:
    """Nobody compares which registration of a broker it was that had caught up (R6)."""
    alter = Registry.alter

    async def forgetful(
        self: Registry,
        changed: Mapping[PartitionId, Leadership],
        also: Sequence[tuple[str, int]] = (),
    ) -> dict[PartitionId, Leadership]:
        others = [one for one in also if not one[0].startswith(BROKERS)]
        return await alter(self, changed, others)

    return [patch.object(Registry, "alter", forgetful)]


def alter_isr_without_cas() -> Patches:
    """A changed ISR is stored whatever is stored there by now."""

    async def blind(
        self: Any,
        changed: Mapping[PartitionId, Leadership],
        also: Sequence[tuple[str, int]] = (),
    ) -> dict[PartitionId, Leadership]:
        puts = {partition_key(*where): one.to_json() for where, one in changed.items()}
        revision = await self.store.txn(list(also), puts)
        if revision is None:
            raise Conflict
        stored = {where: replace(one, revision=revision) for where, one in changed.items()}
        self.stored(stored)
        return stored

    return [patch.object(Registry, "alter", blind)]


def leads_after_lease() -> Patches:
    """A broker serves whatever became of its lease (R14)."""
    return [
        patch.object(Session, "valid", lambda self: True),
        patch.object(Session, "check", lambda self: None),
    ]


def follower_does_not_verify() -> Patches:
    """A follower takes what came for what was sent (R24)."""

    def trusting(data: memoryview, position: int, seed: int) -> BatchHeader | EndOfLog | BadBatch:
        found = scan_one(data, position, seed)
        if isinstance(found, BadBatch) and found.reason == "payload" and found.header is not None:
            return found.header
        return found

    return [patch.object(replicating, "scan_one", trusting)]


def watermark_falls() -> Patches:
    """A new leader shows the high watermark it knows, though an earlier one may have shown more."""

    def rash(self: Replica) -> int:
        return self.high_watermark

    return [patch.object(Replica, "shown_high_watermark", property(rash))]


def lost_reply_is_a_refusal() -> Patches:
    """A change whose answer was lost is sent again; where it was applied, that is refused, and
    taken for the end of it (R16)."""
    alter = Registry.alter

    async def again(
        self: Registry,
        changed: Mapping[PartitionId, Leadership],
        also: Sequence[tuple[str, int]] = (),
    ) -> dict[PartitionId, Leadership]:
        try:
            return await alter(self, changed, also)
        except MetadataUnavailable:
            return await alter(self, changed, also)

    async def over(self: IsrKeeper, partition: Partition, change: IsrChange) -> None:
        await trio.lowlevel.checkpoint()
        if partition.role == "leader":
            partition.refuse_change(change)

    return [patch.object(Registry, "alter", again), patch.object(IsrKeeper, "_refused", over)]


def tombstones_by_time_alone() -> Patches:
    """Deletions are forgotten when their time is over, whoever has not heard of them yet (R39)."""

    def everywhere(self: Replica, own: int) -> int:
        return own

    return [patch.object(Replica, "cleaned_min", everywhere)]


def epoch_written_late() -> Patches:
    """A leader knows its epochs from their first batch on; asked for one that it does not know it
    answers where it is committed, not where its log ends (R8, KAFKA-7415)."""
    divergence = Partition.divergence

    def late(self: Partition, last_epoch: int, offset: int) -> EpochStart | None:
        known = [one.epoch for one in self.log.epochs if one.start_offset < self.log.end]
        if known and last_epoch > known[-1]:
            return EpochStart(known[-1], self.high_watermark)
        return divergence(self, last_epoch, offset)

    return [patch.object(Partition, "divergence", late)]


def watch_trusted() -> Patches:
    """What woke a broker is taken for all that has changed: the newest change (R17)."""
    entries = Registry.entries

    async def newest(self: Registry, prefix: str, since: int = 0) -> Sequence[Entry]:
        found = await entries(self, prefix, since)
        last = max((one.revision for one in found), default=0)
        return [one for one in found if not since or one.revision == last]

    return [patch.object(Registry, "entries", newest)]
