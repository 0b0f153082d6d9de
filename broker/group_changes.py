"""What is written of a group because somebody asked: commits, resets, deletions.

Each decides at once, writes what it decided, and is answered when that is durable. Until then
nothing of it shows: what failed did not happen.
"""

from collections.abc import Iterable, Mapping, Sequence

from tailrace.broker.assignment import Partition
from tailrace.broker.call import Call
from tailrace.broker.group import Group
from tailrace.broker.group_offsets import Writes
from tailrace.broker.group_record import offset_key, offset_value, state_key
from tailrace.broker.hosted_group import HostedGroup
from tailrace.broker.metrics import Metrics
from tailrace.broker.offsets_log import Done
from tailrace.broker.offsets_shard import Entry, Shard
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import CommitOffsetsRequest

TOMBSTONES_MAX = 1_000  # in one entry


def commit(
    shard: Shard,
    hosted: HostedGroup,
    call: Call,
    request: CommitOffsetsRequest,
    now_ms: int,
    metrics: Metrics,
) -> None:
    """Answer ``call`` once it is durable, and what was decided before. T044."""
    group = hosted.group
    writes = group.check_commit(request, now_ms)

    def done(error: TailraceError | None) -> None:
        if error is not None:
            group.failed()
            if group.void:  # its very first commit: it never was
                shard.groups.pop(group.name, None)
            call.fail(error)
            return
        group.applied(writes.puts)
        if writes.puts:
            metrics.group(group.name).commits.inc(len(writes.puts))
        code = next((f"T{one.code:03}" for one in writes.errors.values()), "ok")
        call.answer(group.commit_response(request, writes), code=code)

    if writes.puts:
        shard.groups.setdefault(group.name, hosted)
    shard.submit(Entry(_records(group, writes), done))


def reset(
    shard: Shard,
    hosted: HostedGroup,
    targets: Mapping[Partition, int],
    now_ms: int,
    done: Done,
) -> None:
    """Put offsets where an admin wants them. T044."""
    group = hosted.group
    writes = group.check_reset(targets, now_ms)

    def written(error: TailraceError | None) -> None:
        if error is None:
            group.applied(writes.puts)
        else:
            group.failed()
        done(error)

    shard.submit(Entry(_records(group, writes), written))


def delete(shard: Shard, hosted: HostedGroup, metrics: Metrics, done: Done) -> None:
    """Forget a group and all that it has committed. T044.

    What was decided before goes to the log first; the tombstones are of all that is there then.
    """
    group = hosted.group
    group.check_empty()
    hosted.leaving = True

    def settled(error: TailraceError | None) -> None:
        if error is None:
            _bury(shard, [*_keys(group, group.offsets), state_key(group.name)], buried)
        else:
            buried(error)

    def buried(error: TailraceError | None) -> None:
        hosted.leaving = False
        if error is None:
            shard.forget(hosted)
            hosted.forget()
            metrics.forget_group(group.name)
        elif group.dirty:
            shard.changed(hosted)
        done(error)

    shard.submit(Entry({}, settled))


def bury_offsets(shard: Shard, group: Group, partitions: Sequence[Partition]) -> None:
    """What was committed of topics that are gone is not read again, sooner or later."""
    for some in _tombstones(_keys(group, partitions)):
        shard.submit(Entry(some, _ignore, lasting=True))


def _bury(shard: Shard, keys: Sequence[bytes], done: Done) -> None:
    """Write tombstones; the last ones report for all of them."""
    *others, last = _tombstones(keys)
    for some in others:
        shard.submit(Entry(some, _ignore))
    shard.submit(Entry(last, done))


def _tombstones(keys: Sequence[bytes]) -> list[dict[bytes, bytes | None]]:
    """Of each entry."""
    starts = range(0, len(keys), TOMBSTONES_MAX)
    return [dict.fromkeys(keys[at : at + TOMBSTONES_MAX]) for at in starts]


def _keys(group: Group, partitions: Iterable[Partition]) -> list[bytes]:
    return [offset_key(group.name, one) for one in partitions]


def _records(group: Group, writes: Writes) -> dict[bytes, bytes | None]:
    return {offset_key(group.name, key): offset_value(one) for key, one in writes.puts.items()}


def _ignore(error: TailraceError | None) -> None:
    """Nobody waits for it."""
