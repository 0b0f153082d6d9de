"""What ``__offsets`` holds of a group, as bytes (pure).

Keys: the group's name (which holds no NUL), NUL, then ``g`` for its state, or ``o``, the topic id
and the partition (u32) for one committed offset. Values are msgpack arrays that begin with a
version; a value of another version is refused, never guessed at. No value: it is gone.

    state   [1, generation, epochs, known, subscribed, subscriptions, members, holdings]
            known: [[topic id, partitions], …]       subscribed: [topic name, …]
            subscriptions: [[place in subscribed, …], …], each different one once
            members: [[id, instance id, client id, host, version, place in subscriptions,
                       session timeout ms, rebalance timeout ms, epoch, joined, away,
                       displaced ids], …]
            holdings: [[topic id, partitions, places in members, since, withdrawn], …], the last
                       four are columns
    offset  [1, offset, leader epoch, timestamp, append time, committed at, metadata]
"""

import math
import struct
from typing import Any, NamedTuple

from tailrace.broker.assignment import Partition
from tailrace.broker.group import Group
from tailrace.broker.group_members import Member, Who
from tailrace.broker.group_offsets import Committed
from tailrace.broker.group_ownership import Holding
from tailrace.protocol.packing import pack, unpack

STATE_VERSION = 1
OFFSET_VERSION = 1

_STATE = b"\x00g"
_OFFSET = b"\x00o"
_PLACE = struct.Struct(">16sI")
_ITEMS_MAX = 1_000_000


class RecordError(ValueError):
    """A record is none of this release's: damaged, or from a newer one."""


class RecordKey(NamedTuple):
    """What a record is about."""

    group: str
    partition: Partition | None  # of a committed offset; None: the state of the group


def state_key(group: str) -> bytes:
    return group.encode() + _STATE


def offset_key(group: str, partition: Partition) -> bytes:
    return group.encode() + _OFFSET + _PLACE.pack(*partition)


def read_key(key: bytes) -> RecordKey:
    """Raises ``RecordError``."""
    name, _, rest = key.partition(b"\x00")
    try:
        if rest == _STATE[1:]:
            return RecordKey(name.decode(), None)
        if rest[:1] == _OFFSET[1:]:
            topic_id, number = _PLACE.unpack(rest[1:])
            return RecordKey(name.decode(), (topic_id, number))
    except (struct.error, UnicodeDecodeError) as error:
        raise RecordError(f"key {key!r}: {error}") from error
    raise RecordError(f"key {key!r} is of no kind that this release knows")


def offset_value(committed: Committed) -> bytes:
    return pack(
        [
            OFFSET_VERSION,
            committed.offset,
            committed.leader_epoch,
            committed.timestamp,
            committed.append_time,
            committed.committed_at,
            committed.metadata,
        ]
    )


def read_offset(value: bytes) -> Committed:
    """Raises ``RecordError``."""
    fields = _fields(value, OFFSET_VERSION, "offset")
    try:
        return Committed(*fields)
    except TypeError as error:
        raise RecordError(f"offset of {len(fields)} fields") from error


def state_value(group: Group) -> bytes:
    """The state as it is now: what ``group.changes`` counts."""
    members = sorted(group.members, key=lambda member: member.member_id)
    places = {member.member_id: place for place, member in enumerate(members)}
    names = sorted(group.balance.subscribed)
    place_of = {name: place for place, name in enumerate(names)}
    subscriptions = sorted({member.topics for member in members})
    subscription_of = {topics: place for place, topics in enumerate(subscriptions)}
    columns: dict[bytes, tuple[list[int], list[int], list[int], list[int]]] = {}
    for (topic_id, number), holding in sorted(group.ownership.holdings.items()):
        column = columns.setdefault(topic_id, ([], [], [], []))
        row = (number, places[holding.owner], holding.since, holding.withdrawn)
        for cells, cell in zip(column, row, strict=True):
            cells.append(cell)
    return pack(
        [
            STATE_VERSION,
            group.generation,
            group.balance.epochs,
            [list(one) for one in sorted(group.balance.known.items())],
            names,
            [[place_of[name] for name in topics] for topics in subscriptions],
            [_member_row(member, subscription_of[member.topics]) for member in members],
            [[topic_id, *column] for topic_id, column in columns.items()],
        ]
    )


def restore(group: Group, value: bytes, now: float) -> None:
    """Fill a new group with a stored state; every session begins at ``now``.

    Call ``group.reloaded`` once all of its records were read. Raises ``RecordError``.
    """
    fields = _fields(value, STATE_VERSION, "state")
    try:
        generation, epochs, known, names, places, rows, columns = fields
        subscriptions = [tuple(names[place] for place in some) for some in places]
        members: list[Member] = [_member(row, subscriptions) for row in rows]
        holdings = [one for row in columns for one in _holdings(members, row, now)]
        group.balance.generation, group.balance.epochs = generation, epochs
        group.balance.known, group.balance.subscribed = dict(known), set(names)
    except (ValueError, TypeError, IndexError) as error:
        raise RecordError(f"state of group '{group.name}': {error}") from error
    for member in members:
        member.heard(now)
        group.members.add(member)
    for key, holding in holdings:
        group.ownership.restore(key, holding)


def _member_row(member: Member, subscription: int) -> list[object]:
    return [
        member.member_id,
        member.instance_id,
        *member.who,
        subscription,
        member.session_timeout_ms,
        member.rebalance_timeout_ms,
        member.epoch,
        member.joined,
        member.away,
        list(member.displaced),
    ]


def _member(row: Any, subscriptions: list[tuple[str, ...]]) -> Member:
    member_id, instance_id, client_id, host, version, subscription, *rest = row
    session_ms, rebalance_ms, epoch, joined, away, displaced = rest
    return Member(
        member_id=member_id,
        instance_id=instance_id,
        who=Who(client_id, host, version),
        topics=subscriptions[int(subscription)],
        session_timeout_ms=session_ms,
        rebalance_timeout_ms=rebalance_ms,
        epoch=epoch,
        joined=joined,
        away=away,
        displaced=tuple(displaced),
    )


def _holdings(members: list[Member], row: Any, now: float) -> list[tuple[Partition, Holding]]:
    """Of one topic. What is being withdrawn has all of its time again."""
    holdings: list[tuple[Partition, Holding]] = []
    topic_id: bytes
    columns: list[list[int]]
    topic_id, *columns = row
    numbers, places, sinces, withdrawals = columns
    for number, place, since, withdrawn in zip(numbers, places, sinces, withdrawals, strict=True):
        owner = members[place]
        late = now + owner.rebalance_timeout_ms / 1000 if withdrawn else math.inf
        holdings.append(((topic_id, number), Holding(owner.member_id, since, withdrawn, late)))
    return holdings


def _fields(value: bytes, version: int, kind: str) -> list[Any]:
    """What follows the version."""
    try:
        found: Any = unpack(value, items_max=_ITEMS_MAX)
    except ValueError as error:
        raise RecordError(f"{kind}: {error}") from error
    match found:
        case [present, *fields] if present == version:
            return fields
        case [present, *_]:
            raise RecordError(f"{kind} of version {present!r}, this release knows {version}")
        case _:
            raise RecordError(f"{kind} without a version")
