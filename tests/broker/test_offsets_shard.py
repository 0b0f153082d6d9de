"""What one partition of ``__offsets`` writes, and in which order; the log is a list."""

from collections.abc import Mapping

from tailrace.broker import group_changes as changes
from tailrace.broker.group import Group
from tailrace.broker.group_members import GroupSettings
from tailrace.broker.group_offsets import Committed
from tailrace.broker.group_record import state_key
from tailrace.broker.hosted_group import HostedGroup
from tailrace.broker.metrics import Metrics
from tailrace.broker.offsets_log import Done, OffsetsLog
from tailrace.broker.offsets_shard import BATCH_RECORDS, Entry, Shard
from tailrace.broker.timers import Timers
from tailrace.protocol import texts
from tailrace.protocol.errors import TailraceError
from tests.broker.grouping import HELLO, request, shapes, who


class Paper(OffsetsLog):
    """A log in memory. ``settle`` ends the append under way."""

    def __init__(self) -> None:
        self.number = 0
        self.busy = False
        self.batches: list[Mapping[bytes, bytes | None]] = []
        self._done: Done | None = None

    def append(self, records: Mapping[bytes, bytes | None], done: Done) -> None:
        assert not self.busy
        self.busy, self._done = True, done
        self.batches.append(records)

    def settle(self, error: TailraceError | None = None) -> None:
        done, self._done, self.busy = self._done, None, False
        assert done is not None
        done(error)


class Stage:
    """A shard with one group, ``app``, that has no members any more."""

    def __init__(self) -> None:
        self.log, timers = Paper(), Timers()
        self.metrics = Metrics(version="0", topics_max=9, clock=lambda: 0.0)
        self.shard = Shard(self.log, timers, wake=lambda: None, flush=lambda: None)
        self.hosted = HostedGroup(
            Group("app", GroupSettings("b1", assign_delay_s=0), shapes()),
            broker_id="b1",
            timers=timers,
            metrics=self.metrics,
            changed=self.shard.changed,
            awake=lambda now: None,
            flush=lambda: None,
        )
        self.shard.groups["app"] = self.hosted
        group = self.hosted.group
        group.heartbeat(0.0, request("ann"), who("ann"))
        group.applied({(HELLO, 0): Committed(5, 1, -1, -1, -1, "")})
        group.leave(0.0, "ann")
        self.hosted.look()

    def delete(self) -> list[TailraceError | None]:
        told: list[TailraceError | None] = []
        changes.delete(self.shard, self.hosted, self.metrics, told.append)
        return told

    def drain(self) -> None:
        """Write until there is nothing to be written."""
        for _ in range(5):
            self.shard.write()
            if self.log.busy:
                self.log.settle()


def test_a_group_that_is_deleted_is_not_written_again_behind_a_full_batch() -> None:
    stage = Stage()
    told = stage.delete()
    others: dict[bytes, bytes | None] = {b"%d" % number: b"" for number in range(BATCH_RECORDS)}
    stage.shard.submit(Entry(others, lambda error: None))
    stage.drain()
    assert told == [None]
    key = state_key("app")
    assert [batch[key] for batch in stage.log.batches if key in batch] == [None]


def test_commits_without_end_do_not_keep_the_state_of_a_group_from_being_written() -> None:
    stage = Stage()
    more: dict[bytes, bytes | None] = {b"%d" % number: b"" for number in range(BATCH_RECORDS)}
    stage.shard.submit(Entry(more, lambda error: None))
    stage.hosted.group.heartbeat(1.0, request("ann"), who("ann"))
    stage.hosted.look()
    for _ in range(2):
        stage.shard.submit(Entry(more, lambda error: None))
        stage.shard.write()
        stage.log.settle()
    assert [state_key("app") in batch for batch in stage.log.batches] == [True, False]


def test_a_state_is_not_written_before_what_was_decided_earlier() -> None:
    stage = Stage()
    stage.drain()
    more: dict[bytes, bytes | None] = {b"%d" % number: b"" for number in range(BATCH_RECORDS)}
    for _ in range(2):
        stage.shard.submit(Entry(more, lambda error: None))
    stage.hosted.group.heartbeat(1.0, request("ann"), who("ann"))
    stage.hosted.look()
    before = len(stage.log.batches)
    stage.drain()
    written = [state_key("app") in batch for batch in stage.log.batches[before:]]
    assert written == [False, True]


# ── the lead is lost ─────────────────────────────────────────────────────────────────────────


def lost() -> TailraceError:
    return texts.not_leader("__offsets", 0, broker="b1", leader="b2")


def test_with_the_lead_everything_that_waits_is_told_to_look_elsewhere() -> None:
    stage = Stage()
    told: list[TailraceError | None] = []
    stage.shard.submit(Entry({b"a": b"1"}, told.append))
    stage.shard.write()
    stage.shard.submit(Entry({b"b": b"2"}, told.append))
    stage.shard.submit(Entry({b"c": None}, told.append, lasting=True))
    stage.log.settle(lost())
    assert [error and error.code for error in told] == ["T032", "T032"]
    assert not stage.shard.groups
    stage.shard.submit(Entry({b"d": b"3"}, told.append))
    stage.shard.write()
    assert told[-1] is not None
    assert not stage.log.busy
    assert len(stage.log.batches) == 1


def test_what_was_durable_before_the_lead_was_lost_is_acknowledged() -> None:
    stage = Stage()
    told: list[TailraceError | None] = []
    stage.shard.submit(Entry({b"a": b"1"}, told.append))
    stage.shard.write()
    stage.shard.drop(lost())
    stage.log.settle()
    assert told == [None]


def test_a_deletion_under_way_when_the_lead_goes_is_told_so_once() -> None:
    stage = Stage()
    stage.drain()
    told = stage.delete()
    stage.shard.write()
    stage.shard.drop(lost())
    if stage.log.busy:
        stage.log.settle(lost())
    assert [error and error.code for error in told] == ["T032"]
