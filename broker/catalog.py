"""Topics and who leads their partitions, as values: what the metadata store says, decoded (pure).

- A topic's key in the store is its *folded* name (lower case, ``.`` as ``_``), so that refusing
  twins is one compare of a transaction.
- A topic id is unique for ever; a deleted name that is used again is another topic (S30).
- Of a deleted topic a ``Deletion`` is left until every broker that may hold copies has removed
  them; it alone entitles a broker to remove directories (R26).
- The catalog is replaced by rules, never patched by whim: ``with_topic``, ``without_topic``.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from uuid import UUID

from tailrace.protocol import texts
from tailrace.protocol.routing import even_ranges

TOPICS = "topics/"
PARTITIONS = "partitions/"
DELETED = "deleted/"
INTERNAL_PREFIX = "__"

_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_SIMILAR_MAX = 3

State = Literal["live", "deleting"]


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    """What never changes about a partition, but by a split or a move."""

    key_first: int  # the range of xxh3-64(key) it owns, inclusive
    key_last: int
    replicas: tuple[str, ...]  # broker ids as wanted, the preferred leader first


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic, as ``topics/{folded name}`` has it."""

    name: str
    topic_id: bytes  # 16 bytes
    config: Mapping[str, str]  # only what was given for this topic, canonical texts
    partitions: tuple[PartitionRecord, ...]
    replicas: int | None  # as asked; None is "auto"
    state: State = "live"
    revision: int = 0  # of its key; 0 while it is not stored

    @property
    def key(self) -> str:
        return TOPICS + folded(self.name)

    @property
    def internal(self) -> bool:
        return self.name.startswith(INTERNAL_PREFIX)

    def copies(self, number: int) -> int:
        """How many of a partition are wanted."""
        return len(self.partitions[number].replicas)

    def to_json(self) -> bytes:
        return _dump(
            {
                "name": self.name,
                "topic_id": str(UUID(bytes=self.topic_id)),
                "config": dict(self.config),
                "replicas": "auto" if self.replicas is None else self.replicas,
                "state": self.state,
                "partitions": [
                    {
                        "keys": [f"{one.key_first:016x}", f"{one.key_last:016x}"],
                        "replicas": one.replicas,
                    }
                    for one in self.partitions
                ],
            }
        )

    @classmethod
    def from_json(cls, value: bytes, revision: int) -> "Topic":
        document: Any = json.loads(value)
        replicas = document["replicas"]
        return cls(
            name=document["name"],
            topic_id=UUID(document["topic_id"]).bytes,
            config=document["config"],
            partitions=tuple(
                PartitionRecord(int(first, 16), int(last, 16), tuple(one["replicas"]))
                for one in document["partitions"]
                for first, last in [one["keys"]]
            ),
            replicas=None if replicas == "auto" else replicas,
            state=document["state"],
            revision=revision,
        )


Held = tuple[int, int, bool]  # a log's last epoch and its end, and whether it is undamaged


@dataclass(frozen=True, slots=True)
class Doubted:
    """A broker that held what was acknowledged until it restarted without a clean stop (R7)."""

    broker_id: str
    held: Held | None = None  # once it has told, while nobody leads

    def to_json(self) -> list[object]:
        return [self.broker_id, self.held]

    @classmethod
    def from_json(cls, document: Any) -> "Doubted":
        broker_id, held = document
        return cls(broker_id, None if held is None else (held[0], held[1], held[2]))


@dataclass(frozen=True, slots=True)
class Leadership:
    """Who leads one partition, as ``partitions/{topic id}/{partition}`` has it.

    A new topic's partitions have a leader in epoch 0: nothing was ever written, and a directory
    that is missing is no loss. Their leader makes it epoch 1 when it has a log; until then another
    one may be named (``election.placed_anew``).
    """

    leader: str | None
    leader_epoch: int  # rises by one with each election (S9); 0: nobody has led yet
    isr: tuple[str, ...]
    elr: tuple[str, ...] = ()  # left the ISR below its minimum, yet hold all that counts (R9)
    replicas: tuple[str, ...] = ()  # who holds a copy now, or fills one: wanted ones and leftovers
    revision: int = 0
    doubted: tuple[Doubted, ...] = ()  # until there is a leader at work: count for nothing else

    def elected(self, broker_id: str) -> "Leadership":
        """The same partition, led by this broker in a new epoch."""
        return replace(self, leader=broker_id, leader_epoch=self.leader_epoch + 1)

    def to_json(self) -> bytes:
        return _dump(
            {
                "leader": self.leader,
                "leader_epoch": self.leader_epoch,
                "isr": self.isr,
                "elr": self.elr,
                "replicas": self.replicas,
                "doubted": [one.to_json() for one in self.doubted],
            }
        )

    @classmethod
    def from_json(cls, value: bytes, revision: int) -> "Leadership":
        document: Any = json.loads(value)
        return cls(
            document["leader"],
            document["leader_epoch"],
            tuple(document["isr"]),
            tuple(document["elr"]),
            tuple(document.get("replicas", document["isr"])),
            revision,
            tuple(map(Doubted.from_json, document.get("doubted", ()))),
        )


@dataclass(frozen=True, slots=True)
class Deletion:
    """What is left of a deleted topic, as ``deleted/{topic id}`` has it."""

    topic_id: bytes
    name: str
    partitions: int
    pending: tuple[str, ...]  # brokers that may still hold copies
    revision: int = 0

    @property
    def key(self) -> str:
        return DELETED + self.topic_id.hex()

    @property
    def where(self) -> list[tuple[bytes, int]]:
        """Its partitions."""
        return [(self.topic_id, number) for number in range(self.partitions)]

    def to_json(self) -> bytes:
        return _dump({"name": self.name, "partitions": self.partitions, "pending": self.pending})

    @classmethod
    def from_json(cls, key: str, value: bytes, revision: int) -> "Deletion":
        document: Any = json.loads(value)
        topic_id = bytes.fromhex(key.removeprefix(DELETED))
        pending = tuple(document["pending"])
        return cls(topic_id, document["name"], document["partitions"], pending, revision)


def partition_key(topic_id: bytes, partition: int) -> str:
    return f"{PARTITIONS}{topic_id.hex()}/{partition}"


def parse_partition_key(key: str) -> tuple[bytes, int]:
    topic_id, _, partition = key.removeprefix(PARTITIONS).partition("/")
    return bytes.fromhex(topic_id), int(partition)


def new_topic(
    name: str,
    topic_id: bytes,
    *,
    placement: Sequence[tuple[str, ...]],
    replicas: int | None,
    config: Mapping[str, str],
) -> Topic:
    """A topic with even key ranges; ``placement``: the brokers of each partition."""
    records = tuple(
        PartitionRecord(first, last, brokers)
        for (first, last), brokers in zip(even_ranges(len(placement)), placement, strict=True)
    )
    return Topic(name, topic_id, dict(config), records, replicas)


def folded(name: str) -> str:
    """What twins have in common."""
    return name.lower().replace(".", "_")


def check_name(name: str) -> None:
    """Raise InvalidName T013 for a name no user may give to a topic."""
    if not _NAME.fullmatch(name) or name in (".", ".."):
        raise texts.invalid_topic_name(name)
    check_not_internal(name)


def check_not_internal(name: str) -> None:
    """Raise InvalidName T013 for a topic of the broker's own: its records are nobody else's."""
    if name.startswith(INTERNAL_PREFIX):
        raise texts.reserved_topic_name(name)


@dataclass(frozen=True, slots=True)
class Catalog:
    """All topics. Invariant: the three maps hold the same topics."""

    by_name: Mapping[str, Topic] = field(default_factory=dict[str, Topic])
    by_id: Mapping[bytes, Topic] = field(default_factory=dict[bytes, Topic])
    by_folded: Mapping[str, Topic] = field(default_factory=dict[str, Topic])

    @classmethod
    def of(cls, topics: Iterable[Topic]) -> "Catalog":
        by_name = {topic.name: topic for topic in topics}
        return cls(
            by_name,
            {topic.topic_id: topic for topic in by_name.values()},
            {folded(topic.name): topic for topic in by_name.values()},
        )

    def with_topic(self, topic: Topic) -> "Catalog":
        """Add a topic, or replace the one of the same name."""
        return Catalog.of((*self._others(topic.name), topic))

    def without_topic(self, topic: Topic) -> "Catalog":
        return Catalog.of(self._others(topic.name))

    def find(self, name: str) -> Topic | None:
        """The live topic of that name."""
        topic = self.by_name.get(name)
        return topic if topic is not None and topic.state == "live" else None

    def names(self, *, internal: bool = False) -> list[str]:
        """Names of live topics, sorted."""
        return sorted(
            topic.name
            for topic in self.by_name.values()
            if topic.state == "live" and (internal or not topic.internal)
        )

    def similar(self, name: str) -> list[str]:
        """Names somebody who typed ``name`` may have meant, the nearest first."""
        return difflib.get_close_matches(name, self.names(), n=_SIMILAR_MAX)

    def check_free(self, name: str) -> None:
        """Raise InvalidName T013 if a topic's name is a twin of this one."""
        twin = self.by_folded.get(folded(name))
        if twin is not None and twin.name != name:
            raise texts.twin_topic_name(name, twin=twin.name)

    def partition_count(self) -> int:
        return sum(len(topic.partitions) for topic in self.by_name.values())

    def _others(self, name: str) -> list[Topic]:
        return [topic for topic in self.by_name.values() if topic.name != name]


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
