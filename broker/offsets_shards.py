"""Which partitions of ``__offsets`` this broker leads, each with the groups that live in it.

A group belongs to the partition that owns the hash of its name; whoever leads that partition
coordinates the group. With the lead a shard begins: it is loaded from the log, and until then its
groups answer T036. With the lead it ends, and whoever waits there looks for the coordinator anew
(T032). A lead that was lost and taken again is another epoch, and another shard.

Nobody has to tell in time that the lead was lost: every look-up asks the partition itself.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator

import trio

from tailrace.broker.appender import Appender
from tailrace.broker.bell import Bell
from tailrace.broker.catalog import Topic
from tailrace.broker.group_record import RecordError
from tailrace.broker.hosted_group import HostedGroup
from tailrace.broker.offsets_log import OffsetsLog, led_here
from tailrace.broker.offsets_shard import NOT_LEADER, Shard
from tailrace.broker.partition import Partition
from tailrace.broker.shelf import Shelf
from tailrace.broker.timers import Timers
from tailrace.protocol import texts
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.routing import Router
from tailrace.protocol.seams import Clock

log = logging.getLogger("tailrace.broker.offsets_shards")

LOAD_AGAIN_S = 1.0


class Shards:
    """``load`` reads one again; raises ``TailraceError``, ``RecordError``."""

    def __init__(
        self,
        shelf: Shelf,
        appender: Appender,
        clock: Clock,
        timers: Timers,
        *,
        load: Callable[[Shard], Awaitable[None]],
        wake: Callable[[], None],
        flush: Callable[[], None],
    ) -> None:
        self._shelf = shelf
        self._appender = appender
        self._clock = clock
        self._timers = timers
        self._load = load
        self._wake = wake
        self._flush = flush
        self._topic: Topic | None = None
        self._router: Router | None = None
        self._led: dict[int, Shard] = {}
        self._busy: dict[int, OffsetsLog] = {}  # of shards that ended, and still write
        self._bell = Bell()  # there is something to be loaded
        self._waiting: list[Shard] = []  # to be loaded

    @property
    def topic(self) -> Topic | None:
        """The topic itself; None: there is none yet."""
        return self._topic

    def open(self, topic: Topic) -> None:
        """There is a topic now, or another one than before."""
        if self._topic is not None and self._topic.topic_id != topic.topic_id:
            self.close()
        if self._topic is None:
            self._topic = topic
            self._router = Router([one.key_first for one in topic.partitions])
            self.follow()

    def close(self) -> None:
        """It is gone: who made it could not make it whole, and took it back."""
        assert self._topic is not None, "there was one"
        for number, shard in list(self._led.items()):
            gone = texts.partition_offline(self._topic.name, number, reason="its topic is gone")
            self._end(number, shard, gone)
        self._topic = self._router = None

    def __iter__(self) -> Iterator[Shard]:
        """Those that are led here, loaded or not."""
        return iter(list(self._led.values()))

    def groups(self) -> Iterator[HostedGroup]:
        """Every group that is loaded."""
        return (hosted for shard in self for hosted in shard.groups.values())

    def number(self, group: str) -> int:
        """The partition that has a group."""
        assert self._router is not None, "there is no topic yet"
        return self._router.partition(group.encode())

    def of(self, group: str) -> Shard:
        """Where a group lives, loaded or not. T032 if that is another broker; T031, T033."""
        return self._look(self.number(group))

    def held(self, group: str) -> HostedGroup | None:
        """The group, if it is here and loaded; for whoever asks in passing."""
        shard = None if self._router is None else self._led.get(self.number(group))
        return None if shard is None else shard.groups.get(group)

    def follow(self) -> list[TailraceError]:
        """Leads came and went: begin what began, end what ended.

        Returns why some of those that are led here cannot be had.
        """
        refused: list[TailraceError] = []
        if self._topic is not None:
            for number in range(len(self._topic.partitions)):
                try:
                    self._look(number)
                except TailraceError as error:
                    if error.code != NOT_LEADER:
                        refused.append(error)
            self._flush()
        return refused

    def _look(self, number: int) -> Shard:
        """The shard of a partition as it is led now."""
        assert self._topic is not None
        shard = self._led.get(number)
        try:
            partition = led_here(self._shelf, self._topic.topic_id, number)
        except TailraceError as error:
            if error.code == NOT_LEADER and shard is not None:
                self._end(number, shard, error)
            raise
        if shard is not None and shard.log.epoch != partition.leadership.leader_epoch:
            self._end(number, shard, partition.not_leader())
            shard = None
        return shard or self._begin(number, partition)

    def _begin(self, number: int, partition: Partition) -> Shard:
        one = OffsetsLog(
            *(self._shelf, self._appender, self._clock),
            *(partition.topic_id, number, partition.leadership.leader_epoch),
        )
        shard = Shard(one, self._timers, wake=self._wake, flush=self._flush)
        shard.loaded = one.empty and number not in self._busy
        self._led[number] = shard
        if not shard.loaded:
            self._waiting.append(shard)
            self._bell.ring()
        return shard

    def _end(self, number: int, shard: Shard, error: TailraceError) -> None:
        del self._led[number]
        if shard.log.busy:
            self._busy[number] = shard.log
        count = len(shard.groups)
        shard.drop(error)
        if count:
            log.info(
                "%d groups of __offsets[%d] are coordinated elsewhere",
                *(count, number),
                extra={"event": "group.moved", "code": None},
            )

    # ── loading ──────────────────────────────────────────────────────────────────────────────

    async def run_loading(self) -> None:
        """Load what is led and not loaded, for ever."""
        async with trio.open_nursery() as nursery:  # a task for each partition at most
            while True:
                await self._bell.wait()
                waiting, self._waiting = self._waiting, []
                for shard in waiting:
                    nursery.start_soon(self._keep_loading, shard)

    async def _keep_loading(self, shard: Shard) -> None:
        while not shard.loaded and shard.gone is None:
            await self._try_load(shard)
            if not shard.loaded and shard.gone is None:
                await trio.sleep(LOAD_AGAIN_S)

    async def _try_load(self, shard: Shard) -> None:
        number = shard.log.number
        try:
            if (busy := self._busy.get(number)) is not None:
                await busy.idle()  # else what it is about to write would be missed
                self._busy.pop(number, None)
            await self._load(shard)
        except (TailraceError, RecordError) as error:
            if isinstance(error, RecordError):
                assert self._topic is not None
                error = texts.partition_offline(self._topic.name, number, reason=str(error))
            if error.code == NOT_LEADER:
                if self._led.get(number) is shard:
                    self._end(number, shard, error)
                return
            if shard.refusal is None:
                log.error(
                    "the groups in __offsets[%d] cannot be loaded, trying again: %s",
                    *(number, error),
                    extra={"event": "group.load_failed", "code": error.code},
                )
            shard.refusal = error
