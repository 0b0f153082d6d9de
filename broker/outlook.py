"""What the forecasts of loss (forecast.py) have to know of logs: their segments, their growth."""

from collections.abc import Iterator
from typing import NamedTuple

from tailrace.broker.catalog import Catalog
from tailrace.broker.clock import Timekeeper
from tailrace.broker.config import TopicConfig
from tailrace.broker.forecast import Aged, Keeping, Pressure, margin_s
from tailrace.broker.lag import STEPS
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf, log_config
from tailrace.broker.world import World
from tailrace.storage.retention import SegmentFacts

PRESSURE_EVERY_S = 1.0  # worked out anew, at most, while somebody asks


class _Ends(NamedTuple):
    """Where every log ended at some time."""

    at: float
    ends: dict[Partition, int]


class Outlook:
    """Asked by the watcher. ``look`` is called each second."""

    def __init__(self, world: World, shelf: Shelf, time: Timekeeper, *, window_s: float) -> None:
        self._world = world
        self._shelf = shelf
        self._time = time
        self._step_s = window_s / STEPS
        self._before: _Ends | None = None  # one to two steps ago
        self._last: _Ends | None = None
        self._pressure: tuple[float, Pressure] | None = None
        self._counted: tuple[Catalog, int] | None = None  # its partitions

    def look(self, now: float) -> None:
        """Remember where logs end, if any topic may be dropped from when room is short."""
        if self._last is not None and now - self._last.at < self._step_s:
            return
        if not any(may_drop(one) for one in self._shelf):
            self._before = self._last = None
            return
        self._before = self._last
        self._last = _Ends(now, {one: one.log.end for one in self._shelf})

    def margin_s(
        self, partition: Partition, position: int, rate: float, write_rate: float, now: float
    ) -> float | None:
        """Seconds until a group at ``position`` loses unread records; None: never."""
        config, log = partition.config, partition.log
        if not config.deletes:
            return None
        size = config.retention_size_bytes
        pressure = self._pressure_now(now) if may_drop(partition) else None
        keeping = Keeping(
            retention_s=float("inf") if config.retention_ms is None else config.retention_ms / 1000,
            retention_bytes=size,
            segment_age_s=config.segment_age_ms / 1000,
            segment_bytes=self._segment_bytes(config),
            write_rate=write_rate,
            growth_rate=write_rate * offset_bytes(partition),
        )
        held_bytes = 0
        if size is not None:
            held_bytes = sum(one.size_bytes for one in log.segments_since(position))
        return margin_s(
            *(position, rate, self._aged(log.segments_since(position)), keeping),
            end=partition.high_watermark,
            held_bytes=held_bytes,
            pressure=pressure,
        )

    def _segment_bytes(self, config: TopicConfig) -> int:
        """As the next segment of a log will have it."""
        catalog = self._shelf.catalog
        if self._counted is None or self._counted[0] is not catalog:
            self._counted = catalog, catalog.partition_count()
        return log_config(
            config,
            capacity_bytes=self._shelf.space.capacity_bytes,
            partitions=self._counted[1],
        ).segment_bytes

    def _aged(self, segments: Iterator[SegmentFacts]) -> Iterator[Aged]:
        return (
            Aged(one, self._age_s(one.first_append_time), self._age_s(one.last_append_time))
            for one in segments
        )

    def _age_s(self, stamp_ms: int | None) -> float:
        """By the clock that retention goes by. One that lies ahead ages from now on, about; what
        is damaged as a whole has no age: it is kept as long as what follows it."""
        return 0.0 if stamp_ms is None else max(0, self._time.age_ms(stamp_ms)) / 1000

    def _pressure_now(self, now: float) -> Pressure:
        if self._pressure is None or now - self._pressure[0] >= PRESSURE_EVERY_S:
            self._pressure = now, self._work_out(now)
        return self._pressure[1]

    def _work_out(self, now: float) -> Pressure:
        space = self._shelf.space
        droppable = [
            (self._age_s(one.last_append_time), one.size_bytes)
            for partition in self._shelf
            if may_drop(partition)
            for one in partition.log.segments()
            if one.sealed
        ]
        return Pressure(
            droppable,
            room_bytes=space.room_bytes,
            high_bytes=space.high_bytes,
            growth_rate=self._growth_rate(now),
        )

    def _growth_rate(self, now: float) -> float:
        """Bytes per second of all logs that have not come to their full size yet: from the others
        retention takes as much as is written."""
        since = self._before or self._last
        if since is None or now <= since.at:
            return 0.0
        grown_bytes = 0.0
        for partition in self._shelf:
            grown = partition.log.end - since.ends.get(partition, partition.log.end)
            if grown > 0 and not self._full(partition):
                grown_bytes += grown * offset_bytes(partition)
        return grown_bytes / (now - since.at)

    def _full(self, partition: Partition) -> bool:
        """Whether retention has begun to take away what expires."""
        config = partition.config
        if not config.deletes:
            return False
        size = config.retention_size_bytes
        if size is not None and partition.log.size_bytes >= size:
            return True
        if config.retention_ms is None:
            return False
        first = next(partition.log.segments_since(partition.log.start)).first_append_time
        return self._age_s(first) * 1000 >= config.retention_ms


def may_drop(partition: Partition) -> bool:
    """Whether its oldest segments may go for want of room."""
    return partition.config.on_full == "drop_oldest" and partition.config.deletes


def offset_bytes(partition: Partition) -> float:
    """How many bytes an offset takes on the disk, on average of what was written last."""
    log = partition.log
    newest = [one for one in log.segments_since(log.end - 1) if one.next_offset > one.base_offset]
    if not newest:
        return 0.0
    return newest[-1].size_bytes / (newest[-1].next_offset - newest[-1].base_offset)
