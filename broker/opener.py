"""Opening many logs, and beginning epochs in them: in several threads, synced together.

``/startupz`` and a line in the log every few seconds show progress by bytes, as it is the bytes
behind the flushed marks that take the time. How many there are is surveyed first.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import trio

from tailrace.broker.health import Health
from tailrace.broker.world import World
from tailrace.protocol.limits import pieces
from tailrace.protocol.units import counted, format_size
from tailrace.storage.epochs import EpochHistory
from tailrace.storage.log import Log
from tailrace.storage.opening import (
    Beginning,
    Candidate,
    Unopened,
    end_epochs,
    failed_sync,
    publish,
    recover,
    stage_epochs,
    survey,
    sync_contents,
    sync_names,
)
from tailrace.storage.report import RecoveryReport

log = logging.getLogger("tailrace.broker.opener")

C = TypeVar("C", bound=Candidate)

THREADS = 4  # logs being recovered at the same time
IN_HAND_MAX = 8  # logs of one thread, one after another
SETTLED_TOGETHER_MAX = 250  # logs that share the syncs; each holds some files open for it
TELL_EVERY_S = 2.0


async def open_logs(
    world: World,
    health: Health,
    logs: Sequence[Unopened],
    opened: Callable[[Sequence[Unopened]], None],
) -> None:
    """Recover all of them; ``opened`` is told of some at a time, as soon as they are durable.

    BrokerError T093 if a sync fails: ``opened`` is not told of those that it was for (R21).
    """
    async with trio.open_nursery() as nursery:
        if not health.recovered:  # else it is no start, but a new topic
            health.recovering.extend(one.progress for one in logs)
            nursery.start_soon(_tell, health)
        await _in_threads(world, survey, logs)
        for some in pieces(logs, SETTLED_TOGETHER_MAX):
            await _in_threads(world, recover, some)
            await _settle(world, some)
            if failed_sync(logs) is not None:
                break
            opened(some)
        nursery.cancel_scope.cancel()
    broken = failed_sync(logs)
    if broken is not None:
        raise broken


async def begin_epochs(world: World, epochs: Mapping[Log, int]) -> dict[Log, OSError]:
    """Leader epochs begin at the ends of these logs, durably (R8); where that failed. T093."""
    return await _begin(
        world, {log: Beginning.leading(world.disk, log, epoch) for log, epoch in epochs.items()}
    )


async def follow_epochs(world: World, epochs: Mapping[Log, EpochHistory]) -> dict[Log, OSError]:
    """The same for followers, before the first batch of an epoch that is not their own."""
    return await _begin(
        world, {log: Beginning(world.disk, log, history) for log, history in epochs.items()}
    )


async def _begin(world: World, group: dict[Log, Beginning]) -> dict[Log, OSError]:
    everyone = list(group.values())
    await _in_threads(world, stage_epochs, everyone)
    await _settle(world, everyone)
    return end_epochs(group)


async def _settle(world: World, group: Sequence[Candidate]) -> None:
    await world.offload.run(sync_contents, group)
    await _in_threads(world, publish, group)
    await world.offload.run(sync_names, group)


async def _in_threads(world: World, work: Callable[[Iterable[C]], None], logs: Sequence[C]) -> None:
    """Do it for all, some at a time."""
    waiting = pieces(logs, IN_HAND_MAX)

    async def worker() -> None:
        for some in waiting:
            await world.offload.run(work, some)

    async with trio.open_nursery() as nursery:
        for _ in range(min(THREADS, len(logs))):
            nursery.start_soon(worker)


async def _tell(health: Health) -> None:
    while True:
        await trio.sleep(TELL_EVERY_S)
        done, total = health.recovery_bytes
        log.info(
            "recovering: %d of %d partitions, %s of %s read",
            *(health.partitions_done, health.partitions_total),
            *(format_size(done), format_size(total)),
            extra={
                **{"event": "broker.recovering", "code": None, "progress": health.progress},
                **{"bytes_done": done, "bytes_total": total},
                "partitions_done": health.partitions_done,
                "partitions_total": health.partitions_total,
            },
        )


def tell_recovered(reports: Sequence[RecoveryReport], *, seconds: float, clean: bool) -> None:
    """The closing line: what was checked, and what not."""
    scanned, adopted, cut = (
        sum(one.scanned_bytes for one in reports),
        sum(one.adopted_bytes for one in reports),
        sum(one.truncated_bytes for one in reports),
    )
    log.info(
        "recovered %s in %.2f s: %s in %d batches checked, %s adopted, %d bytes cut",
        *(counted(len(reports), "partition"), seconds, format_size(scanned)),
        *(sum(one.batches for one in reports), format_size(adopted), cut),
        extra={
            **{"event": "broker.recovered", "code": None, "clean": clean, "seconds": seconds},
            **{"partitions": len(reports), "scanned_bytes": scanned},
            **{"adopted_bytes": adopted, "truncated_bytes": cut},
        },
    )
