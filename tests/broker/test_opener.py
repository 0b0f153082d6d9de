"""Many partitions are opened together: one set of syncs, told as it goes, each with its own end."""

import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
import trio
from trio.testing import MockClock

from tailrace.broker.health import Health
from tailrace.broker.opener import TELL_EVERY_S, begin_epochs, open_logs, tell_recovered
from tailrace.broker.system import system_world
from tailrace.broker.world import World
from tailrace.protocol.errors import BrokerError
from tailrace.storage.disk import File, OsDisk, OsFile
from tailrace.storage.log import Log, LogConfig
from tailrace.storage.opening import Unopened
from tailrace.storage.report import RecoveryReport
from tests.storage.logs import TOPIC_ID, batch

P = ParamSpec("P")
T = TypeVar("T")

COUNT = 30
SEEDED = 3  # logs.batch is for this partition


class CountingDisk(OsDisk):
    """Real files; syncs are counted, and fail when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs = 0
        self.failing = False
        self.full = ""  # no file below this path can be made

    def open(self, path: str, *, create: bool = False) -> OsFile:
        if create and self.full and path.startswith(self.full):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return super().open(path, create=create)

    def sync(self, files: Sequence[File]) -> None:
        self.syncs += 1
        if self.failing:
            raise OSError(errno.EIO, "Input/output error")

    def sync_directory(self, path: str) -> None:
        self.syncs += 1

    def sync_together(self, files: Sequence[File], directories: Sequence[str]) -> None:
        self.sync(files)


def unopened(disk: OsDisk, path: Path, number: int) -> Unopened:
    return Unopened(
        disk,
        f"{path}/{number}",
        topic_id=TOPIC_ID,
        partition=number,
        config=LogConfig(segment_bytes=4096),
        clean=False,
        verify="tail",
        suspect=False,
        topic="orders",
        broker="n1",
    )


def open_all(disk: OsDisk, logs: Sequence[Unopened], health: Health | None = None) -> list[Log]:
    """What could be opened, as the broker does it."""
    opened: list[Unopened] = []

    async def main() -> None:
        world = world_on(disk)
        await open_logs(world, health or Health(), logs, opened.extend)

    trio.run(main)
    assert opened == list(logs)
    return [one.log(0) for one in opened if one.error is None]


def world_on(disk: OsDisk) -> World:
    return replace(system_world(), disk=disk)


def begin_all(disk: OsDisk, epochs: dict[Log, int]) -> dict[Log, OSError]:
    return trio.run(begin_epochs, world_on(disk), epochs)


class SlowThreads:
    """Work is done on the spot, after a while."""

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        await trio.sleep(TELL_EVERY_S)
        return work(*args, **kwargs)

    def dedicated(self, name: str) -> "SlowThreads":
        return self


def test_many_logs_share_a_few_syncs(tmp_path: Path) -> None:
    disk = CountingDisk()
    logs = open_all(disk, [unopened(disk, tmp_path, number) for number in range(COUNT)])
    assert disk.syncs <= 4
    assert begin_all(disk, dict.fromkeys(logs, 1)) == {}
    assert [log.epochs[-1].epoch for log in logs] == [1] * COUNT
    assert disk.syncs <= 8
    logs[SEEDED].append([batch(b"a")], leader_epoch=1, now_ms=1)
    for log in logs:
        log.close(clean=False)
    disk.syncs = 0
    again = open_all(disk, [unopened(disk, tmp_path, number) for number in range(COUNT)])
    assert [log.end for log in again] == [int(number == SEEDED) for number in range(COUNT)]
    assert [log.epochs[-1].epoch for log in again] == [1] * COUNT
    assert disk.syncs <= 4


def test_a_log_that_cannot_be_opened_does_not_keep_the_others(tmp_path: Path) -> None:
    disk = CountingDisk()
    disk.full = f"{tmp_path}/7/"
    logs = [unopened(disk, tmp_path, number) for number in range(COUNT)]
    assert len(open_all(disk, logs)) == COUNT - 1
    assert isinstance(logs[7].error, OSError)


def test_an_epoch_that_finds_no_room_fails_for_its_log_alone(tmp_path: Path) -> None:
    disk = CountingDisk()
    logs = open_all(disk, [unopened(disk, tmp_path, number) for number in range(3)])
    disk.full = f"{tmp_path}/1/"
    failed = begin_all(disk, dict.fromkeys(logs, 1))
    assert list(failed) == [logs[1]]
    assert [len(log.epochs) for log in logs] == [1, 0, 1]


def test_a_sync_that_fails_is_final_for_all_that_shared_it(tmp_path: Path) -> None:
    disk = CountingDisk()
    disk.failing = True
    logs = [unopened(disk, tmp_path, number) for number in range(3)]
    with pytest.raises(BrokerError, match="T093"):
        open_all(disk, logs)
    assert all(isinstance(one.error, BrokerError) for one in logs)
    disk.failing = False
    opened = open_all(disk, [unopened(disk, tmp_path, number) for number in range(3)])
    disk.failing = True
    with pytest.raises(BrokerError, match="T093"):
        begin_all(disk, dict.fromkeys(opened, 1))
    assert [len(log.epochs) for log in opened] == [0, 0, 0]


def test_progress_is_told_while_it_takes_long_and_at_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    disk, health = CountingDisk(), Health(partitions_total=3)
    logs = [unopened(disk, tmp_path, number) for number in range(3)]

    async def main() -> None:
        world = replace(world_on(disk), offload=SlowThreads())
        await open_logs(world, health, logs, lambda some: None)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "recovering: 0 of 3 partitions, 0 B of 0 B read"
    caplog.clear()
    report = RecoveryReport(batches=2, scanned_bytes=2048, adopted_bytes=1 << 30, truncated_bytes=7)
    tell_recovered([report], seconds=1.5, clean=False)
    [record] = caplog.records
    assert record.getMessage() == (
        "recovered 1 partition in 1.50 s: 2 KiB in 2 batches checked, 1 GiB adopted, 7 bytes cut"
    )
    assert vars(record)["scanned_bytes"] == 2048
