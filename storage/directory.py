"""The data directory of one broker: whose it is, who uses it, how it was left.

    LOCK              flocked by the process that uses it: "pid role broker_id"     (T090)
    meta.json         format, cluster_id, broker_id, directory_id                   (T091, T092)
    clean             exists only between a graceful stop and the next start        (R7)
    suspect           a sync failed: nothing unsynced may be believed               (R21)
    clock             when the broker was last seen alive: see heartbeat.py         (R20)
    ballast           room kept back for a full disk                                (R28)
    metadata.sqlite   the embedded metadata store (the broker's)
    topics/<topic id, 32 hex digits>-<partition>/

Directories are named by topic id, never by a string of a client.
"""

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from tailrace.protocol import texts_storage
from tailrace.protocol.errors import BrokerError
from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk, Lock

FORMAT = 1
META_BYTES_MAX = 64 * 1024
_TOUCHED = ".touched"
_PARTITION = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,9})")


def partition_name(topic_id: bytes, partition: int) -> str:
    """The name of a partition's directory."""
    return f"{topic_id.hex()}-{partition}"


def parse_partition_name(name: str) -> tuple[bytes, int] | None:
    """Topic id and partition, or None if the name is not one of ours."""
    found = _PARTITION.fullmatch(name)
    return (bytes.fromhex(found[1]), int(found[2])) if found else None


@dataclass(frozen=True, slots=True)
class Meta:
    """``meta.json``: whose directory this is."""

    format: int
    cluster_id: str
    broker_id: str
    directory_id: str  # another one holds nothing of what was in this (R7)


class DataDirectory:
    """An open, locked data directory. Made by ``open``, given back by ``release``."""

    def __init__(
        self, disk: Disk, path: str, lock: Lock, meta: Meta, *, clean: bool, suspect: bool
    ) -> None:
        self._disk = disk
        self._lock = lock
        self.path = path
        self.cluster_id = meta.cluster_id
        self.broker_id = meta.broker_id
        self.directory_id = meta.directory_id
        self.was_clean = clean  # the last user stopped gracefully, after flushing everything
        self.was_suspect = suspect  # the last user saw a sync fail

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: str,
        *,
        broker_id: str,
        cluster_id: str | None,
        new_cluster_id: str,
        new_directory_id: str,
        role: str,
        pid: int,
    ) -> "DataDirectory":
        """Lock the directory and check whose it is; make it if there is none.

        ``cluster_id`` None: whatever the directory says, ``new_cluster_id`` for a new one.
        ``new_directory_id`` is for one that has none.
        Raises BrokerError T090 (in use), T091 (another broker's), T092 (a newer format, or
        none of ours), T093 (a sync failed; it is marked suspect), and ``OSError``.
        """
        path = path.rstrip("/")
        _make_directories(disk, path)
        lock = _take(disk, path, f"{pid} {role} {broker_id}\n")
        try:
            meta = _read_meta(disk, path)
            if meta is None:
                meta = Meta(FORMAT, cluster_id or new_cluster_id, broker_id, "")
            if (broker_id, cluster_id or meta.cluster_id) != (meta.broker_id, meta.cluster_id):
                raise texts_storage.directory_foreign(
                    path,
                    broker=meta.broker_id,
                    cluster=meta.cluster_id,
                    configured_broker=broker_id,
                    configured_cluster=cluster_id or meta.cluster_id,
                )
            if not meta.directory_id:
                meta = replace(meta, directory_id=new_directory_id)
                data = json.dumps(asdict(meta)).encode() + b"\n"
                checkpoint.replace(disk, f"{path}/meta.json", data)
            disk.make_directory(f"{path}/topics")
            suspect = disk.exists(f"{path}/suspect")
            clean = disk.exists(f"{path}/clean") and not suspect
            disk.remove(f"{path}/clean")
            with checkpoint.syncing(path):
                disk.sync_directory(path)
        except BaseException as error:
            if isinstance(error, BrokerError) and error.code == "T093":
                with suppress(OSError, BrokerError):
                    _mark_suspect(disk, path)
            lock.release()
            raise
        return cls(disk, path, lock, meta, clean=clean, suspect=suspect)

    @property
    def metadata_path(self) -> str:
        """Where the embedded metadata store lives."""
        return f"{self.path}/metadata.sqlite"

    @property
    def clock_path(self) -> str:
        """The ``clock`` file (``storage.heartbeat``)."""
        return f"{self.path}/clock"

    def mark_clean(self) -> None:
        """Everything is flushed and closed: the next start may skip the recovery scan (R7)."""
        checkpoint.write(self._disk, f"{self.path}/clean", f"{self.broker_id}\n".encode())

    def mark_suspect(self) -> None:
        """A sync failed. Stays until ``clear_suspect``. Raises ``OSError``, BrokerError T093."""
        _mark_suspect(self._disk, self.path)

    def sync_names_anew(self) -> None:
        """Make the names of the partitions durable, of which the kernel may claim that they are
        although their sync failed: a change makes it write them. ``OSError``, BrokerError T093.

        In the directories of the partitions, and in that of ``suspect``, names change anyway.
        """
        path = f"{self.path}/topics"
        self._disk.open(f"{path}/{_TOUCHED}", create=True).close()
        self._disk.remove(f"{path}/{_TOUCHED}")
        with checkpoint.syncing(path):
            self._disk.sync_directory(path)

    def clear_suspect(self) -> None:
        """Everything was opened as ``suspect``, so written and synced anew. ``OSError``, T093."""
        self._disk.remove(f"{self.path}/suspect")
        with checkpoint.syncing(self.path):
            self._disk.sync_directory(self.path)
        self.was_suspect = False

    def partition_path(self, topic_id: bytes, partition: int) -> str:
        """The directory of a partition, which need not exist (``Log.open`` makes it)."""
        return f"{self.path}/topics/{partition_name(topic_id, partition)}"

    def partitions(self) -> list[tuple[bytes, int]]:
        """Topic id and partition of every directory there is. Other names are left alone."""
        names = map(parse_partition_name, self._disk.list(f"{self.path}/topics"))
        return [found for found in names if found is not None]

    def remove_partition(self, topic_id: bytes, partition: int) -> None:
        """Remove a partition's directory; its log must not be in use.

        For good only after ``sync_removals``. Raises ``OSError``.
        """
        self._disk.remove_directory(self.partition_path(topic_id, partition))

    def sync_removals(self) -> None:
        """What was removed stays so. ``OSError``, BrokerError T093 if the sync fails."""
        topics = f"{self.path}/topics"
        with checkpoint.syncing(topics):
            self._disk.sync_directory(topics)

    def release(self) -> None:
        """Give up the lock."""
        self._lock.release()


def _make_directories(disk: Disk, path: str) -> None:
    """Make the directory and those above it; durable also where a crash interrupted this."""
    if disk.exists(f"{path}/meta.json"):
        return
    missing: list[str] = []
    while path and not disk.exists(path):
        missing.append(path)
        path = checkpoint.parent(path)
    for directory in [path, *reversed(missing)]:
        disk.make_directory(directory or "/")
        above = checkpoint.parent(directory) or "/"
        with checkpoint.syncing(above):
            disk.sync_directory(above)


def _mark_suspect(disk: Disk, path: str) -> None:
    disk.open(f"{path}/suspect", create=True).close()  # empty: it needs no sync itself
    with checkpoint.syncing(path):
        disk.sync_directory(path)


def _take(disk: Disk, path: str, content: str) -> Lock:
    try:
        return disk.lock(f"{path}/LOCK", content)
    except BlockingIOError:
        owner = _read_all(disk, f"{path}/LOCK").decode(errors="replace").split()
        pid, role, broker = owner if len(owner) == 3 and owner[0].isdigit() else ("0", "?", "?")
        raise texts_storage.directory_locked(path, pid=int(pid), role=role, broker=broker) from None


def _read_meta(disk: Disk, path: str) -> Meta | None:
    name = f"{path}/meta.json"
    if not disk.exists(name):
        return None
    try:
        fields: dict[str, Any] = json.loads(_read_all(disk, name))
        meta = Meta(
            *(fields["format"], str(fields["cluster_id"]), str(fields["broker_id"])),
            str(fields.get("directory_id", "")),
        )
    except (ValueError, KeyError, TypeError):
        raise texts_storage.directory_format(path, found="unreadable", newest=FORMAT) from None
    if meta.format != FORMAT:
        raise texts_storage.directory_format(path, found=meta.format, newest=FORMAT)
    return meta


def _read_all(disk: Disk, path: str) -> bytes:
    file = disk.open(path)
    try:
        return file.read(min(file.size(), META_BYTES_MAX), 0)
    finally:
        file.close()
