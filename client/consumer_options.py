"""The arguments of ``Client.consumer``, checked (interfaces 1.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tailrace.client.codecs import CodecSpec, bind
from tailrace.client.fetcher import FetchOptions
from tailrace.client.offsets import time_of
from tailrace.client.partition_buffer import Codecs
from tailrace.client.records import At, TopicPartition
from tailrace.protocol import texts_config
from tailrace.protocol.errors import ConfigError
from tailrace.protocol.messages import READ_COMMITTED, READ_UNCOMMITTED

CALL = "client.consumer()"
ISOLATION = {"read_committed": READ_COMMITTED, "read_uncommitted": READ_UNCOMMITTED}
POLICIES = ("raise", "earliest", "latest")
DECODE_POLICIES = ("raise", "skip", "dead_letter")
OF_GROUPS: dict[str, object] = {
    **{"commit": "after", "commit_interval": 1.0, "session_timeout": 10.0},
    **{"rebalance_timeout": 30.0, "heartbeat": "thread", "instance_id": None},
    "max_processing": None,
}

DecodePolicy = Literal["raise", "skip", "dead_letter"]


@dataclass(frozen=True, slots=True)
class ConsumerOptions:
    """Durations in seconds."""

    topics: tuple[str, ...]
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
    of_groups: dict[str, object],
) -> ConsumerOptions:
    """All arguments together. ConfigError T082 for what cannot be, T086 for groups."""
    if group is not None:
        raise texts_config.argument_later("group", group, call=CALL, release="consumer groups")
    for name, default in OF_GROUPS.items():
        if of_groups[name] != default:
            raise _bad(name, of_groups[name], "left out", "It needs group=, which comes later.")
    _check_places(topics, partitions)
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
