"""The topics of the cluster as groups see them: names, ids, numbers of partitions (pure)."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class TopicShape(NamedTuple):
    """What a group has to know of a topic."""

    topic_id: bytes
    partitions: int


class TopicShapes:
    """All live topics at one time. Never changed, so that all groups share one."""

    def __init__(self, by_name: Mapping[str, TopicShape]) -> None:
        self.by_name = by_name
        self.names = {shape.topic_id: name for name, shape in by_name.items()}  # by id

    def of(self, names: Iterable[str]) -> dict[str, TopicShape]:
        """Those of ``names`` that exist."""
        return {name: self.by_name[name] for name in sorted(names) if name in self.by_name}

    def exists(self, topic_id: bytes, partition: int) -> bool:
        name = self.names.get(topic_id)
        return name is not None and partition < self.by_name[name].partitions
