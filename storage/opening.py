"""Opening many logs at once: what each needs to have synced is synced for all of them together.

One log by itself costs half a dozen syncs to open. So the steps are for a group: ``survey`` and
``recover`` (in several threads, some logs each), the steps of settling, then ``Unopened.log`` in
the event loop; and later ``stage_epochs``, the steps of settling, ``Beginning.done``. A log for
which a step failed has an ``error`` and is passed over by what follows. If the error is a sync that
failed (BrokerError T093), none of them may be used any more, and the process ends (R21).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from tailrace.protocol.batch import header_seed
from tailrace.protocol.errors import BrokerError
from tailrace.storage import settling
from tailrace.storage.append import LogConfig
from tailrace.storage.disk import Disk
from tailrace.storage.epochs import EpochHistory, encode_epochs
from tailrace.storage.log import Log
from tailrace.storage.recovery import Recovery
from tailrace.storage.report import Progress
from tailrace.storage.settling import Unsettled


class Candidate:
    """A log that takes part in a group."""

    def __init__(self, disk: Disk, unsettled: Unsettled) -> None:
        self.error: OSError | BrokerError | None = None
        self.unsettled = unsettled
        self.disk = disk

    def publish(self) -> None:
        settling.publish(self.disk, self.unsettled)

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step, unless one failed before."""
        if self.error is None:
            try:
                step()
            except (OSError, BrokerError) as error:
                self.error = error


class Unopened(Candidate):
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
        super().__init__(disk, self.recovery.unsettled)

    @property
    def progress(self) -> Progress:
        return self.recovery.progress

    def log(self, now_ms: int) -> Log:
        """The log, once it is settled."""
        assert self.error is None, "it could not be opened"
        found = self.recovery.recovered()
        found.producers.expire(now_ms)
        return Log(
            self.disk,
            self._path,
            name=self._name,
            broker=self._broker,
            seed=self._seed,
            config=self._config,
            recovered=found,
        )


class Beginning(Candidate):
    """A log is to have these epochs, before a batch of the last one (R8). Nobody else changes the
    log meanwhile."""

    def __init__(self, disk: Disk, log: Log, epochs: EpochHistory) -> None:
        super().__init__(disk, Unsettled())
        self._log = log
        self._epochs = epochs

    @classmethod
    def leading(cls, disk: Disk, log: Log, epoch: int) -> "Beginning":
        """This broker's own epoch as the leader begins at the end of the log."""
        epochs = EpochHistory(log.epochs)
        epochs.begin(epoch, log.end)
        return cls(disk, log, epochs)

    def stage(self) -> None:
        if self._epochs.entries != self._log.epochs:
            path = f"{self._log.path}/epochs"
            self.unsettled.stage(self.disk, path, encode_epochs(self._epochs))

    def done(self) -> None:
        """It is settled."""
        assert self.error is None
        self._log.epochs_begun(self._epochs)


def survey(logs: Iterable[Unopened]) -> None:
    """Find out how much there is to be read: ``Unopened.progress``. In a thread."""
    for one in logs:
        one.attempt(one.recovery.survey)


def recover(logs: Iterable[Unopened]) -> None:
    """Recover them, one after another; nothing needs to be durable on return. In a thread."""
    for one in logs:
        one.attempt(one.recovery.run)


def stage_epochs(beginnings: Iterable[Beginning]) -> None:
    """Write what is to be settled. In a thread."""
    for one in beginnings:
        one.attempt(one.stage)


def failed_sync(group: Iterable[Candidate]) -> BrokerError | None:
    """T093, if it befell one of them."""
    errors = (one.error for one in group)
    return next((error for error in errors if isinstance(error, BrokerError)), None)


def sync_contents(group: Sequence[Candidate]) -> None:
    """The first step of settling. In a thread. If it fails, it fails for all of them."""
    _together(group, settling.sync_contents)


def publish(group: Iterable[Candidate]) -> None:
    """The second step. In a thread."""
    for one in group:
        one.attempt(one.publish)


def sync_names(group: Sequence[Candidate]) -> None:
    """The third step; see the first."""
    _together(group, settling.sync_names)


def settle(group: Sequence[Candidate]) -> None:
    """All steps of settling, here and now."""
    sync_contents(group)
    publish(group)
    sync_names(group)


def begin_epochs(disk: Disk, epochs: Mapping[Log, int]) -> dict[Log, OSError]:
    """Begin leader epochs, here and now; where that failed. BrokerError T093."""
    group = {log: Beginning.leading(disk, log, epoch) for log, epoch in epochs.items()}
    stage_epochs(group.values())
    settle(list(group.values()))
    return end_epochs(group)


def end_epochs(group: Mapping[Log, Beginning]) -> dict[Log, OSError]:
    """They are settled: let their logs know. Where it failed. BrokerError T093."""
    broken = failed_sync(group.values())
    if broken is not None:
        raise broken
    failed: dict[Log, OSError] = {}
    for log, one in group.items():
        if isinstance(one.error, OSError):
            failed[log] = one.error
        else:
            one.done()
    return failed


def _together(
    group: Sequence[Candidate], step: Callable[[Disk, Sequence[Unsettled]], None]
) -> None:
    left = [one for one in group if one.error is None]
    try:
        if left:
            step(left[0].disk, [one.unsettled for one in left])
    except (OSError, BrokerError) as error:
        for one in left:
            one.error = error
