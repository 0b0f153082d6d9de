"""What a follower does to its copy of a partition: takes over batches, cuts off what diverges.

Whoever calls holds ``partition.changing``, so that nobody begins to lead meanwhile.
"""

import logging
from collections.abc import Callable

from tailrace.broker.flusher import Flusher
from tailrace.broker.partition import Partition
from tailrace.broker.world import Offload
from tailrace.protocol import texts
from tailrace.protocol.errors import BrokerError, TailraceError
from tailrace.storage.disk import NO_ROOM
from tailrace.storage.replicating import ReplicaPlan
from tailrace.storage.truncate import NotCut

log = logging.getLogger("tailrace.broker.following")


def take_over(partition: Partition, plan: ReplicaPlan, size_bytes: int) -> TailraceError | None:
    """Write a leader's batches, as planned; what kept that from being done.

    Without room (T031) the log is as it was; after any other error the partition is offline.
    BrokerError T093 if the log can no more be trusted.
    """
    segments = partition.log.segment_count
    try:
        partition.log.append_replica(plan)
    except OSError as error:
        if error.errno in NO_ROOM:
            return partition.room.ran_out(partition, error)
        return _fail(partition, error)
    if partition.log.segment_count > segments:
        partition.tell_rolled()
        partition.room.rolled(partition)
    partition.unsynced_batches += plan.batches
    partition.ahead.appended(size_bytes)
    partition.room.appended(size_bytes)
    return None


async def cut(
    partition: Partition, work: Callable[[], None], flusher: Flusher, offload: Offload
) -> TailraceError | None:
    """Let ``work`` remove the end of the log, in a thread; what kept that from being done. The
    caller holds ``maintenance``, too.

    Without room to begin (T031) the log is as it was; after any other error the partition is
    offline: what its log is by now is for the next start to find out. BrokerError T093 if a sync
    fails, and then the broker was told.
    """
    end = partition.log.end
    partition.cutting = True
    try:
        await flusher.forget([partition])
        await offload.run(work)
    except NotCut as error:
        return partition.room.ran_out(partition, error)
    except OSError as error:
        return _fail(partition, error)
    except BrokerError as error:
        flusher.broke(error)
        raise
    finally:
        partition.cutting = False
        flusher.look_again()
    log.warning(
        "%s[%d]: cut from %d to %d, to follow %s",
        *(partition.topic, partition.number, end, partition.log.end),
        partition.leadership.leader,
        extra={
            **{"event": "partition.truncated", "code": None, **partition.where},
            **{"old_end": end, "log_end": partition.log.end},
        },
    )
    return None


def lost_committed(partition: Partition) -> bool:
    """Let the high watermark follow a log that was cut below it; whether it was.

    Then the leader was elected although it lacked what was committed: by an operator (S3, S13).
    """
    known, end = partition.high_watermark, partition.log.end
    if end >= known:
        return False
    log.error(
        "%s[%d]: offsets %d to %d were committed, and leader %s does not have them",
        *(partition.topic, partition.number, end, known - 1, partition.leadership.leader),
        extra={
            **{"event": "data-loss-possible", "code": None, **partition.where},
            **{"old_end": known, "new_end": end},
            "alike": f"{partition.topic}:{partition.number}",
        },
    )
    follow_cut(partition)
    return True


def follow_cut(partition: Partition) -> None:
    """Let the high watermark follow a log that was cut below it."""
    known = partition.high_watermark
    partition.replica.high_watermark = min(known, partition.log.end)


def _fail(partition: Partition, error: OSError) -> TailraceError:
    offline = texts.partition_offline(partition.topic, partition.number, reason=str(error))
    partition.fail(offline)
    return offline
