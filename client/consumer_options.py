"""The arguments of ``Client.consumer``, checked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from tailrace.client.codecs import CodecSpec, bind
from tailrace.client.fetcher import FetchOptions
from tailrace.client.offsets import time_of
from tailrace.client.partition_buffer import Codecs
from tailrace.client.records import At
from tailrace.protocol import texts, texts_config
from tailrace.protocol.errors import ConfigError
from tailrace.protocol.messages import READ_COMMITTED, READ_UNCOMMITTED
from tailrace.protocol.shapes import TopicPartition

CALL = "client.consumer()"
ISOLATION = {"read_committed": READ_COMMITTED, "read_uncommitted": READ_UNCOMMITTED}
POLICIES = ("raise", "earliest", "latest")
DECODE_POLICIES = ("raise", "skip", "dead_letter")
OF_GROUPS: dict[str, object] = {
    **{"commit": "after", "commit_interval": 1.0, "session_timeout": 10.0},
    **{"rebalance_timeout": 30.0, "heartbeat": "thread", "instance_id": None},
    "max_processing": None,
}

NAME_LENGTH_MAX = 255  # of groups and instance ids
WIRE_S_MAX = 2_000_000.0  # as ms they travel in 31 bits

DecodePolicy = Literal["raise", "skip", "dead_letter"]


class OfGroups(TypedDict):
    """The arguments that need ``group=``, as they were given."""

    commit: Literal["after", "manual"]
    commit_interval: float
    session_timeout: float
    rebalance_timeout: float
    heartbeat: Literal["thread", "task"]
    instance_id: str | None
    max_processing: float | None


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """What a member of a group was asked for; durations in seconds."""

    name: str
    commit: Literal["after", "manual"]
    commit_interval: float  # 0: before the next record
    session_timeout: float
    rebalance_timeout: float
    heartbeat: Literal["thread", "task"]
    instance_id: str | None
    max_processing: float | None


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """Durations in seconds."""

    topics: tuple[str, ...]
    group: GroupOptions | None
    partitions: tuple[TopicPartition, ...] | None  # fixed; None: all of the topics
    start: At
    codecs: Codecs
    fetch: FetchOptions
    on_decode_error: DecodePolicy
    dead_letter: str | None
    prefetch_bytes: int
    idle_timeout: float | None
    stop_at_end: bool
    close_timeout: float


def check_options(
    topics: Sequence[str],
    *,
    group: str | None,
    partitions: Sequence[TopicPartition] | None,
    start: At,
    key: CodecSpec[Any],
    value: CodecSpec[Any],
    isolation: str,
    on_out_of_range: Literal["raise", "earliest", "latest"],
    on_decode_error: DecodePolicy,
    dead_letter: str | None,
    prefetch_bytes: int,
    fetch_wait: float,
    idle_timeout: float | None,
    stop_at_end: bool,
    close_timeout: float,
    of_groups: OfGroups,
) -> ConsumerOptions:
    """All arguments together. ConfigError T082 for what cannot be, T013 for names."""
    _check_places(topics, partitions)
    options_of_group = _group(group, of_groups, partitions)
    time_of(start, call=CALL, key="start")
    _one_of("isolation", isolation, tuple(ISOLATION))
    _one_of("on_out_of_range", on_out_of_range, POLICIES)
    _one_of("on_decode_error", on_decode_error, DECODE_POLICIES)
    if (on_decode_error == "dead_letter") != (dead_letter is not None):
        hint = "Give both on_decode_error='dead_letter' and dead_letter='topic', or neither."
        wanted = "a topic exactly if on_decode_error is 'dead_letter'"
        raise _bad("dead_letter", dead_letter, wanted, hint)
    if isinstance(prefetch_bytes, bool) or prefetch_bytes < 1:
        raise _bad("prefetch_bytes", prefetch_bytes, "at least 1", "Example: 16 * 2**20")
    _seconds("fetch_wait", fetch_wait, 30.0)
    _seconds("close_timeout", close_timeout, math.inf)
    if idle_timeout is not None:
        _seconds("idle_timeout", idle_timeout, math.inf)
    return ConsumerOptions(
        topics=tuple(dict.fromkeys(topics)),
        group=options_of_group,
        partitions=None if partitions is None else tuple(dict.fromkeys(partitions)),
        start=start,
        codecs=Codecs(bind(key, part="key", call=CALL), bind(value, part="value", call=CALL)),
        fetch=FetchOptions(ISOLATION[isolation], fetch_wait, on_out_of_range),
        on_decode_error=on_decode_error,
        dead_letter=dead_letter,
        prefetch_bytes=prefetch_bytes,
        idle_timeout=idle_timeout,
        stop_at_end=stop_at_end,
        close_timeout=close_timeout,
    )


def _check_places(topics: Sequence[str], partitions: Sequence[TopicPartition] | None) -> None:
    hint = "Use client.consumer('orders'), or partitions=[TopicPartition('orders', 0)]."
    if partitions is None:
        if not topics:
            raise _bad("topics", (), "at least one", hint)
        return
    if topics:
        raise _bad("partitions", "...", "left out where topics are given", hint)
    if not partitions:
        raise _bad("partitions", [], "at least one", hint)


def _group(
    name: str | None, given: OfGroups, partitions: Sequence[TopicPartition] | None
) -> GroupOptions | None:
    if name is None:
        for key, value in given.items():
            if value != OF_GROUPS[key]:
                raise _bad(key, value, "left out", "It needs group='name'.")
        return None
    if partitions is not None:
        hint = "A group is told by the broker what to read: give topics instead."
        raise _bad("partitions", "...", "left out where a group is given", hint)
    _check_name("group", name)
    if given["instance_id"] is not None:
        _check_name("instance id", given["instance_id"])
    _one_of("commit", given["commit"], ("after", "manual"))
    _one_of("heartbeat", given["heartbeat"], ("thread", "task"))
    interval = given["commit_interval"]
    if isinstance(interval, bool) or not 0 <= interval < math.inf:
        hint = "Example: 1.0; 0 commits before the next record."
        raise _bad("commit_interval", interval, "seconds, 0 or more", hint)
    _seconds("session_timeout", given["session_timeout"], WIRE_S_MAX)
    _seconds("rebalance_timeout", given["rebalance_timeout"], WIRE_S_MAX)
    if given["max_processing"] is not None:
        _seconds("max_processing", given["max_processing"], math.inf)
    return GroupOptions(name=name, **given)


def _check_name(what: Literal["group", "instance id"], name: str) -> None:
    if not 1 <= len(name) <= NAME_LENGTH_MAX or not name.isprintable():
        raise texts.invalid_id(what, name)


def _one_of(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        shown = ", ".join(repr(one) for one in allowed)
        raise _bad(key, value, f"one of {shown}", "Look: help(client.consumer)")


def _seconds(key: str, value: float, largest: float) -> None:
    if isinstance(value, bool) or not 0 < value <= largest:
        most = "" if math.isinf(largest) else f" up to {largest:g}"
        raise _bad(key, value, f"a number of seconds above 0{most}", "Example: 5.0")


def _bad(key: str, value: object, expected: str, hint: str) -> ConfigError:
    return texts_config.bad_argument(key, value, call=CALL, expected=expected, hint=hint)
