"""One partition of an internal topic as the memory of a part of the broker.

What has to be remembered is appended, at most one batch at a time, and told of once it is durable;
whoever takes the lead reads it again, of each key what was written last. Compaction sees to it that
this does not become more and more.

Invariants:
- it is bound to one epoch of this broker's lead: in another one nothing is written or read (T032);
- a batch is in the log wholly or not at all, so what is written together holds together;
- the next batch begins only when the one before was settled: the log has them in their order, and
  nothing that came later stands there without what came before.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import trio

from tailrace.broker.appender import Appender
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf
from tailrace.broker.world import Offload
from tailrace.protocol import texts
from tailrace.protocol.batch import decode_columns, encode_batch, header_seed
from tailrace.protocol.batch_header import parse_header
from tailrace.protocol.columns import BatchError
from tailrace.protocol.errors import CorruptBatch, TailraceError
from tailrace.protocol.messages import ACKS_ALL
from tailrace.protocol.seams import Clock, FileRange
from tailrace.storage.log import Appended

log = logging.getLogger("tailrace.broker.offsets_log")

READ_BYTES = 262_144  # replayed at once: some milliseconds of a thread

Done = Callable[[TailraceError | None], None]


class OffsetsLog:
    """Appends to one partition and reads it again, while this broker leads it in ``epoch``."""

    def __init__(
        self,
        shelf: Shelf,
        appender: Appender,
        clock: Clock,
        topic_id: bytes,
        number: int,
        epoch: int,
    ) -> None:
        self.number = number
        self.epoch = epoch
        self.busy = False  # an append is under way
        self._idle = trio.Event()  # set when it has ended
        self._shelf = shelf
        self._appender = appender
        self._clock = clock
        self._topic_id = topic_id
        self._seed = header_seed(topic_id, number)

    def append(self, records: Mapping[bytes, bytes | None], done: Done) -> None:
        """Write values by key, as one batch; None: a tombstone.

        ``done`` is called once, perhaps before this returns: with None when they are durable on all
        in-sync replicas, else with what went wrong (T031, T033, T093), and then they are not in the
        log. With T032 another broker leads, and they may be in its log.
        """
        assert not self.busy, "one append at a time"
        assert records, "nothing to append"
        entry = encode_batch(
            self._seed,
            keys=list(records),
            values=list(records.values()),
            timestamps=self._clock.wall_ms(),
        )
        self.busy, self._idle = True, trio.Event()

        def settled(error: TailraceError | None) -> None:
            self.busy = False
            self._idle.set()
            done(error)

        try:
            partition = self.led()
        except TailraceError as error:
            settled(error)
            return
        self._appender.add(partition, memoryview(bytearray(entry)), _Writing(settled), 0)

    def led(self) -> Partition:
        """The partition. T031, T033; T032 if this broker does not lead it in this epoch."""
        partition = led_here(self._shelf, self._topic_id, self.number)
        if partition.leadership.leader_epoch != self.epoch:
            raise partition.not_leader()
        return partition

    async def idle(self) -> None:
        """Return once no append is under way."""
        if self.busy:
            await self._idle.wait()

    async def replay(self, offload: Offload) -> dict[bytes, bytes]:
        """The last value of each key; in chunks, off the event loop. T031, T032, T033.

        Waits until the high watermark is past all that was acknowledged, or may be, by an earlier
        leader (R12) or before by this one. A damaged range is named and passed over: what it held
        counts as never written.
        """
        partition = self.led()
        end = partition.log.end
        while (self.led().replica.shown_high_watermark or 0) < end:
            await _moved(partition)
        values: dict[bytes, bytes] = {}
        offset = partition.log.start
        while offset < self.led().high_watermark:
            try:
                await partition.verify(offset, offload)
                piece = partition.read(offset, READ_BYTES)
                await offload.run(_take_in, piece.ranges, values)
            except CorruptBatch as error:
                log.error("%s", error, extra={"event": "group.records_lost", "code": error.code})
                further = error.details.get("next_offset")
                offset = further if isinstance(further, int) else offset + 1
                continue
            except OSError as error:
                raise partition.unreadable(error) from error
            except BatchError as error:
                reason = f"what it remembers cannot be read: {error}"
                raise texts.partition_offline(
                    partition.topic, self.number, reason=reason
                ) from error
            assert piece.next_offset > offset, "a read below the watermark moves on"
            offset = piece.next_offset
        return values

    @property
    def empty(self) -> bool:
        """Whether nothing was ever written, as far as it can be seen."""
        partition = self._shelf.get(self._topic_id, self.number)
        return partition is not None and partition.serving and partition.log.end == 0


def led_here(shelf: Shelf, topic_id: bytes, number: int) -> Partition:
    """The partition, in which groups live: led here, and not about to be handed over. T031, T033;
    T032 if it is another broker's."""
    partition = shelf.get(topic_id, number)
    if partition is not None and partition.serving:
        if partition.role != "leader" or partition.frozen:
            raise partition.not_leader()
        return partition
    return shelf.serving(topic_id, number)


async def _moved(partition: Partition) -> None:
    """Return when the high watermark has moved, or somebody else leads, or nobody serves it."""
    waker = _Waker()
    partition.park(waker)
    try:
        await waker.woken.wait()
    finally:
        partition.unpark(waker)


class _Waker:
    """Who waits, as the partition sees a reader."""

    def __init__(self) -> None:
        self.woken = trio.Event()

    def wake(self) -> None:
        self.woken.set()


class _Writing:
    """One append, as the partition sees whoever produces; without a deadline."""

    acks = ACKS_ALL
    timeout_s = math.inf
    deadline = math.inf

    def __init__(self, settled: Done) -> None:
        self._settled = settled

    def settle(self, slot: int, written: Appended, log_start: int) -> None:
        self._settled(None)

    def refuse(self, slot: int, error: TailraceError) -> None:
        self._settled(error)


def _take_in(ranges: Sequence[FileRange], values: dict[bytes, bytes]) -> None:
    """Bring ``values`` up to what some batches say."""
    for one in ranges:
        data, position = one.view(), 0
        while position < len(data):
            header = parse_header(data, position)
            columns = decode_columns(data[position : position + header.size_bytes], header)
            for key, value in zip(columns.keys or (), columns.values, strict=False):
                if key is None:
                    continue
                if value is None:
                    values.pop(key, None)
                else:
                    values[key] = value
            position += header.size_bytes
