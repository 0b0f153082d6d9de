"""The coordinator of consumer groups, as this broker runs it.

A group belongs to the partition of ``__offsets`` that owns the hash of its name; whoever leads that
partition coordinates the group. Here that is always this broker.
"""

from tailrace.broker.catalog import Topic
from tailrace.broker.config import Config
from tailrace.broker.topics import Topics
from tailrace.protocol import texts
from tailrace.protocol.routing import Router

OFFSETS = "__offsets"
OFFSETS_PARTITIONS = 16
NAME_BYTES_MAX = 255


def check_group(name: str) -> None:
    """Raise T013 for a name no group may have."""
    if not 1 <= len(name.encode()) <= NAME_BYTES_MAX or not name.isprintable():
        raise texts.invalid_id("group", name)


class Coordinator:
    def __init__(self, config: Config, topics: Topics) -> None:
        self._config = config
        self._topics = topics

    async def find(self, group: str) -> int:
        """The partition of ``__offsets`` that holds a group; the topic is made at its first use
        (D18). T013 T031 T100."""
        check_group(group)
        return partition_of(await self._topics.internal(OFFSETS, OFFSETS_PARTITIONS), group)


def partition_of(offsets: Topic, group: str) -> int:
    """The partition that owns the hash of a group's name."""
    return Router([one.key_first for one in offsets.partitions]).partition(group.encode())
