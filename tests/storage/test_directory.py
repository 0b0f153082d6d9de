"""The data directory: one user at a time, and only its own."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from tailrace.protocol.errors import BrokerError
from tailrace.storage.directory import DataDirectory, parse_partition_name, partition_name
from tailrace.storage.disk import OsDisk

TOPIC_ID = bytes(range(16))


def opened(
    path: Path, *, broker: str = "n1", cluster: str | None = None, disk: OsDisk | None = None
) -> DataDirectory:
    return DataDirectory.open(
        disk or OsDisk(),
        str(path),
        broker_id=broker,
        cluster_id=cluster,
        new_cluster_id="fresh",
        new_directory_id="first",
        role="serve",
        pid=4711,
    )


def test_new_directory_is_private_and_says_whose_it_is(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data"
    directory = opened(path)
    assert (directory.cluster_id, directory.broker_id) == ("fresh", "n1")
    assert not directory.was_clean
    assert not directory.was_suspect
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for name in ("LOCK", "meta.json"):
        assert stat.S_IMODE((path / name).stat().st_mode) == 0o600
    assert json.loads((path / "meta.json").read_text()) == {
        "format": 1,
        "cluster_id": "fresh",
        "broker_id": "n1",
        "directory_id": "first",
    }
    assert (path / "LOCK").read_text() == "4711 serve n1\n"
    directory.release()


def test_second_user_is_told_who_the_first_is(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(BrokerError) as caught:
        opened(tmp_path)
    assert caught.value.code == "T090"
    assert "pid 4711 (serve, broker n1)" in str(caught.value)
    first.release()
    opened(tmp_path).release()


@pytest.mark.parametrize(("broker", "cluster"), [("n2", None), ("n1", "other")])
def test_directory_of_another_broker_is_refused_and_unlocked(
    tmp_path: Path, broker: str, cluster: str | None
) -> None:
    opened(tmp_path).release()
    with pytest.raises(BrokerError) as caught:
        opened(tmp_path, broker=broker, cluster=cluster)
    assert caught.value.code == "T091"
    opened(tmp_path, cluster="fresh").release()


@pytest.mark.parametrize(
    "content",
    ['{"format": 2, "cluster_id": "c", "broker_id": "n1"}', "", "[]", '{"format": 1}', "\xff{"],
)
def test_newer_or_unreadable_format_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(BrokerError) as caught:
        opened(tmp_path)
    assert caught.value.code == "T092"


def test_clean_mark_holds_for_one_start_only(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    directory.mark_clean()
    directory.release()
    directory = opened(tmp_path)
    assert directory.was_clean
    directory.release()
    directory = opened(tmp_path)
    assert not directory.was_clean
    directory.release()


def test_suspect_directory_is_not_clean_until_cleared(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    directory.mark_clean()
    directory.mark_suspect()
    directory.release()
    directory = opened(tmp_path)
    assert (directory.was_clean, directory.was_suspect) == (False, True)
    directory.clear_suspect()
    assert not directory.was_suspect
    directory.release()
    directory = opened(tmp_path)
    assert not directory.was_suspect
    directory.release()


class FailingDisk(OsDisk):
    """The sync of a directory with number ``fails_at`` fails, counted from 1."""

    def __init__(self, fails_at: int) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.syncs = 0

    def sync_directory(self, path: str) -> None:
        self.syncs += 1
        if self.syncs == self.fails_at:
            raise OSError(errno.EIO, "planted", path)


def test_a_failed_sync_at_the_start_is_final_and_remembered(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    directory.mark_clean()
    directory.release()
    with pytest.raises(BrokerError, match="T093"):
        opened(tmp_path, disk=FailingDisk(1))
    directory = opened(tmp_path)
    assert (directory.was_clean, directory.was_suspect) == (False, True)
    directory.release()


def test_names_of_partitions_are_synced_anew_by_a_change(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    topics = tmp_path / "topics"
    os.utime(topics, ns=(0, 0))
    directory.sync_names_anew()
    assert topics.stat().st_mtime_ns > 0
    assert list(topics.iterdir()) == []
    directory.release()


def test_partitions_are_removed_for_good_or_the_process_ends(tmp_path: Path) -> None:
    disk = FailingDisk(0)
    directory = opened(tmp_path, disk=disk)
    disk.fails_at = disk.syncs + 1
    directory.remove_partition(TOPIC_ID, 0)
    with pytest.raises(BrokerError, match="T093"):
        directory.sync_removals()
    disk.fails_at = disk.syncs + 1
    with pytest.raises(BrokerError, match="T093"):
        directory.clear_suspect()
    directory.release()


def test_partitions_are_named_by_topic_id(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    disk = OsDisk()
    for partition in (0, 12):
        disk.make_directory(directory.partition_path(TOPIC_ID, partition))
    (tmp_path / "topics" / "lost+found").mkdir()
    assert directory.partitions() == [(TOPIC_ID, 0), (TOPIC_ID, 12)]
    directory.remove_partition(TOPIC_ID, 12)
    directory.remove_partition(TOPIC_ID, 12)
    assert directory.partitions() == [(TOPIC_ID, 0)]
    directory.release()


@pytest.mark.parametrize("name", ["x", "00-1", f"{TOPIC_ID.hex()}-01", f"{TOPIC_ID.hex()}--1", ""])
def test_other_names_are_no_partitions(name: str) -> None:
    assert parse_partition_name(name) is None
    assert parse_partition_name(partition_name(TOPIC_ID, 7)) == (TOPIC_ID, 7)
