"""Opening many logs at once: what each needs to have synced is synced for all of them together.

One log by itself costs half a dozen syncs to open, and a sync costs the disk the same whether it
is for one file or for hundreds. So the steps are for a whole group: ``survey`` and ``recover`` (in
several threads, some logs each), ``settle``, then ``Unopened.log`` in the event loop; and later
``begin_epochs``. A log that cannot be opened has an ``error`` and is passed over by what follows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from tailrace.protocol.batch import header_seed
from tailrace.storage import checkpoint, recovery
from tailrace.storage.append import LogConfig
from tailrace.storage.disk import Disk, File
from tailrace.storage.epochs import EpochHistory, encode_epochs
from tailrace.storage.log import Log
from tailrace.storage.recovery import Recovery
from tailrace.storage.report import Progress


class Unopened:
    """One log on its way from a directory to a ``Log``. For the arguments see ``Log.open``."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        *,
        topic_id: bytes,
        partition: int,
        config: LogConfig,
        clean: bool,
        verify: Literal["tail", "full"],
        suspect: bool,
        topic: str,
        broker: str,
    ) -> None:
        self.error: OSError | None = None
        self._disk = disk
        self._path = path
        self._name = (topic, partition)
        self._broker = broker
        self._config = config
        self._seed = header_seed(topic_id, partition)
        self.recovery = Recovery(
            disk,
            path,
            name=self._name,
            seed=self._seed,
            segment_bytes=config.segment_bytes,
            interval=config.index_interval_bytes,
            clean=clean,
            suspect=suspect,
            verify=verify,
        )

    @property
    def progress(self) -> Progress:
        return self.recovery.progress

    def log(self, now_ms: int) -> Log:
        """The log, once it is settled."""
        assert self.error is None, "it could not be opened"
        found = self.recovery.recovered()
        found.producers.expire(now_ms)
        return Log(
            self._disk,
            self._path,
            name=self._name,
            broker=self._broker,
            seed=self._seed,
            config=self._config,
            recovered=found,
        )

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step, unless one failed before."""
        if self.error is None:
            try:
                step()
            except OSError as error:
                self.error = error


def survey(logs: Iterable[Unopened]) -> None:
    """Find out how much there is to be read: ``Unopened.progress``. In a thread."""
    for one in logs:
        one.attempt(one.recovery.survey)


def recover(logs: Iterable[Unopened]) -> None:
    """Recover them, one after another; nothing needs to be durable on return. In a thread."""
    for one in logs:
        one.attempt(one.recovery.run)


def settle(disk: Disk, logs: Sequence[Unopened]) -> None:
    """Make what was recovered durable. In a thread. If that fails, it fails for all of them."""
    done = [one for one in logs if one.error is None]
    try:
        recovery.settle(disk, [one.recovery for one in done])
    except OSError as error:
        for one in done:
            one.error = error


def begin_epochs(disk: Disk, epochs: Mapping[Log, int]) -> dict[Log, OSError]:
    """A leader epoch begins at the end of each of these logs, durably (R8); where that failed.

    To be called in a thread while nobody else uses the logs.
    """
    failed: dict[Log, OSError] = {}
    begun: dict[Log, EpochHistory] = {}
    staged: dict[str, File] = {}
    for log, epoch in epochs.items():
        history = EpochHistory(log.epochs)
        if not history.begin(epoch, log.end):
            continue
        path = f"{log.path}/epochs"
        try:
            staged[path] = checkpoint.stage(disk, path, encode_epochs(history))
        except OSError as error:
            failed[log] = error
        else:
            begun[log] = history
    try:
        _publish(disk, staged)
    except OSError as error:
        return {**failed, **dict.fromkeys(begun, error)}
    for log, history in begun.items():
        log.epochs_begun(history)
    return failed


def _publish(disk: Disk, staged: Mapping[str, File]) -> None:
    if not staged:
        return
    try:
        disk.sync_together(list(staged.values()), [])
    finally:
        for file in staged.values():
            file.close()
    for path in staged:
        checkpoint.publish(disk, path)
    disk.sync_together([], sorted({checkpoint.parent(path) for path in staged}))
