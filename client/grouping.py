"""Where a reset of a group goes: what ``client.admin`` asks for, and what it did."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tailrace.client.offsets import list_offsets, partition_of, time_of
from tailrace.client.records import At
from tailrace.protocol import shaping, texts_config
from tailrace.protocol.errors import ConfigError
from tailrace.protocol.messages import (
    DescribeGroupResponse,
    OffsetMove,
    OffsetTarget,
)
from tailrace.protocol.shapes import (
    OffsetChange,
    TopicPartition,
)

if TYPE_CHECKING:
    from tailrace.client.client import Client

To = At | int | timedelta | Mapping[TopicPartition, int]
CALL = "admin.reset_group()"


async def find_partitions(
    client: "Client",
    group: DescribeGroupResponse,
    to: To,
    topics: Sequence[str] | None,
    partitions: Sequence[TopicPartition] | None,
) -> list[TopicPartition]:
    """The partitions a reset is about: those named, else all that the group reads.

    Raises ConfigError T082 where it is said twice, TopicNotFound T010, PartitionNotFound T011.
    """
    if isinstance(to, Mapping):
        if topics is not None or partitions is not None:
            expected = "None where to names the partitions"
            raise _refused("topics or partitions", topics or partitions, expected)
        partitions = list(to)
    elif topics is not None and partitions is not None:
        raise _refused("topics", topics, "None where partitions are given")
    if topics is None and partitions is None:
        partitions = [TopicPartition(one.topic, one.partition) for one in group.partitions]
    named = dict.fromkeys(topics or [at.topic for at in partitions or ()])
    for topic in named:
        client.cluster.invalidate(topic)  # what is remembered may be another topic of that name
    if partitions is not None:
        for at in partitions:
            partition_of(await client.cluster.topic(at.topic), at.partition)
        return list(dict.fromkeys(partitions))
    found: list[TopicPartition] = []
    for topic in named:
        metadata = await client.cluster.topic(topic)
        found += [TopicPartition(topic, one.partition) for one in metadata.partitions]
    return found


async def find_offsets(
    client: "Client", partitions: Sequence[TopicPartition], to: To
) -> dict[TopicPartition, int]:
    """The offset of each partition that ``to`` stands for. Raises ConfigError T082."""
    if isinstance(to, Mapping):
        return {at: _offset(to[at], f"to[{at.topic}[{at.partition}]]") for at in partitions}
    if isinstance(to, int):
        if len(partitions) != 1:
            expected = f"a mapping of offsets, with {len(partitions)} partitions"
            raise _refused("to", to, expected)
        return {partitions[0]: _offset(to, "to")}
    if isinstance(to, timedelta):
        if to < timedelta():
            raise _refused("to", to, "a time ago: no less than 0")
        to = datetime.fromtimestamp(client.clock.wall_ms() / 1000, UTC) - to
    time_ms = time_of(to, call=CALL, key="to")
    return await list_offsets(client, partitions, time_ms)


async def targets(
    client: "Client", offsets: Mapping[TopicPartition, int]
) -> tuple[OffsetTarget, ...]:
    """As the broker takes them: by topic id."""
    found: list[OffsetTarget] = []
    for at, offset in offsets.items():
        metadata = await client.cluster.topic(at.topic)
        found.append(OffsetTarget(metadata.topic_id, at.partition, offset))
    return tuple(found)


async def changes(client: "Client", moves: Sequence[OffsetMove]) -> list[OffsetChange]:
    """What a reset did or would do."""
    partitions = [TopicPartition(move.topic, move.partition) for move in moves]
    starts = await list_offsets(client, partitions, "earliest") if partitions else {}
    return shaping.offset_changes(moves, [starts[at] for at in partitions])


def _offset(offset: object, key: str) -> int:
    if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
        raise _refused(key, offset, "an offset >= 0")
    return offset


def _refused(key: str, value: object, expected: str) -> ConfigError:
    hint = "Example: to='earliest', to=timedelta(hours=2), to={TopicPartition('orders', 0): 17}"
    return texts_config.bad_argument(key, value, call=CALL, expected=expected, hint=hint)
