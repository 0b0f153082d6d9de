"""The text of every error that a broker and its storage can raise, one function each.

Split by who raises: the SDK's and the CLI's own are in ``texts_client.py``, those of settings in
``texts_config.py``, those of frames in ``texts_wire.py``, those of a broker's directory and its
files in ``texts_storage.py``. Each returns the error, ready to raise.
Rules: who, what, where, with numbers; one concrete next step as hint; ASCII except for user data,
of which control characters are escaped, as texts end up on terminals and in logs.
"""

from collections.abc import Sequence
from typing import Literal

from tailrace.protocol import errors
from tailrace.protocol.units import (
    format_count as count,
    format_seconds,
    format_size,
    size_setting_above,
)

_SHOWN_MAX = 1_000
_NEVER_WRITTEN = "nothing was written"


def shown(text: str) -> str:
    """User data as it may stand in a text: printable, and not endless."""
    if len(text) > _SHOWN_MAX:
        text = text[:_SHOWN_MAX] + "..."
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )


def partition_name(topic: str, partition: int | None = None) -> str:
    """``orders[2]``; just the topic while no partition is known."""
    return shown(topic) if partition is None else f"{shown(topic)}[{partition}]"


def record_name(topic: str, partition: int, offset: int) -> str:
    """``orders[2]@881``."""
    return f"{partition_name(topic, partition)}@{offset}"


def error_summary(error: BaseException) -> str:
    """An error inside another one's text: code and message, no hint."""
    if isinstance(error, errors.TailraceError):
        return f"{error.code}: {error.message}"
    return shown(f"{type(error).__name__}: {error}".removesuffix(": "))


# ── names, topics, groups ────────────────────────────────────────────────────────────────────


def topic_not_found(
    name: str, *, similar: Sequence[str] = (), auto_create_off: bool = False
) -> errors.TopicNotFound:
    """T010. ``auto_create_off``: a producer asked, and the broker may not create."""
    reason = " (auto-create is off)" if auto_create_off else ""
    hint = f"Create it: tailrace topic create {shown(name)}"
    if similar:
        hint = f"Similar: {', '.join(map(shown, similar))}. {hint}"
    return errors.TopicNotFound(
        *("T010", f"topic '{shown(name)}' does not exist{reason}", hint),
        name=name,
        similar=list(similar),
    )


def partition_not_found(topic: str, partition: int, *, partitions: int) -> errors.PartitionNotFound:
    """T011. ``partitions``: how many partitions the topic has."""
    has = "1 partition" if partitions == 1 else f"{count(partitions)} partitions"
    return errors.PartitionNotFound(
        "T011",
        f"{partition_name(topic, partition)} does not exist: topic '{shown(topic)}' has {has}",
        f"Look: tailrace topic describe {shown(topic)}",
        name=partition_name(topic, partition),
    )


def topic_id_not_found(topic_id: bytes, *, broker: str) -> errors.TopicNotFound:
    """T010 by id: the topic was deleted (or made again under its name) since the client looked."""
    return errors.TopicNotFound(
        "T010",
        f"topic id {topic_id.hex()} does not exist on broker {shown(broker)}",
        "The topic was deleted or recreated: tailrace topic list",
        name=topic_id.hex(),
    )


def topic_exists(name: str, *, differs: Sequence[tuple[str, str, str]] = ()) -> errors.TopicExists:
    """T012. ``differs``: (key, value it has, value asked) where exist_ok cannot help."""
    if differs:
        what = ", ".join(
            f"{shown(k)} is {shown(has)}, not {shown(asked)}" for k, has, asked in differs
        )
        hint = f"Keep its values, or: tailrace topic alter {shown(name)} --set KEY=VALUE"
        return errors.TopicExists(
            "T012", f"topic '{shown(name)}' exists, but {what}", hint, name=name
        )
    hint = "Take another name, or pass exist_ok=True (CLI: --if-not-exists)."
    return errors.TopicExists("T012", f"topic '{shown(name)}' exists already", hint, name=name)


def invalid_topic_name(name: str) -> errors.InvalidName:
    """T013: letters, length."""
    return errors.InvalidName(
        "T013",
        f"topic name '{shown(name)}' of {count(len(name))} characters is not allowed",
        "Use 1 to 249 of a-z A-Z 0-9 . _ - and neither '.' nor '..'.",
        name=name,
    )


def reserved_topic_name(name: str) -> errors.InvalidName:
    """T013: a leading ``__``."""
    return errors.InvalidName(
        "T013",
        f"topic name '{shown(name)}' is reserved: '__' begins internal topics",
        "Use a name that does not begin with '__'.",
        name=name,
    )


def twin_topic_name(name: str, *, twin: str) -> errors.InvalidName:
    """T013: equal to an existing one but for case or ``.`` against ``_``."""
    return errors.InvalidName(
        "T013",
        f"topic name '{shown(name)}' differs from topic '{shown(twin)}' only by case or by . and _",
        f"Use topic '{shown(twin)}', or a clearly different name.",
        name=name,
        twin=twin,
    )


def invalid_id(
    kind: Literal["client id", "group", "member id", "instance id", "broker id"], name: str
) -> errors.InvalidName:
    """T013 for what is not a topic."""
    allowed = (
        "1 to 64 of a-z A-Z 0-9 . _ -" if kind == "broker id" else "1 to 255 printable characters"
    )
    return errors.InvalidName(
        "T013",
        f"{kind} '{shown(name)}' of {count(len(name))} characters is not allowed",
        f"Use {allowed}.",
        name=name,
    )


# ── producing ────────────────────────────────────────────────────────────────────────────────


def timestamp_ahead(
    topic: str, partition: int | None, *, timestamp: int, limit: int, ahead_max_s: float
) -> errors.InvalidTimestamp:
    """T022. ``timestamp`` and ``limit`` in ms since the epoch; the limit is the largest allowed."""
    ahead_s = (timestamp - limit) / 1000 + ahead_max_s
    return errors.InvalidTimestamp(
        "T022",
        f"timestamp {timestamp} for {partition_name(topic, partition)} is "
        f"{format_seconds(ahead_s)} s ahead of the broker, timestamp_ahead_max is "
        f"{format_seconds(ahead_max_s)} s; {_NEVER_WRITTEN}",
        "Send milliseconds since the epoch, and check the clock (NTP).",
        **{"topic": topic, "partition": partition, "timestamp": timestamp, "limit": limit},
    )


def timestamp_negative(
    topic: str, partition: int | None, *, timestamp: int
) -> errors.InvalidTimestamp:
    """T022 for a time before 1970 (or -1, which some systems use for "none")."""
    return errors.InvalidTimestamp(
        "T022",
        f"timestamp {timestamp} for {partition_name(topic, partition)} is below 0; "
        f"{_NEVER_WRITTEN}",
        "Send milliseconds since the epoch, or timestamp=None for now.",
        **{"topic": topic, "partition": partition, "timestamp": timestamp},
    )


def record_too_large(
    topic: str, partition: int | None = None, *, size: int, limit: int
) -> errors.RecordTooLarge:
    """T021. Sizes in bytes, uncompressed."""
    name = shown(topic)
    return errors.RecordTooLarge(
        "T021",
        f"record of {format_size(size)} exceeds max_record {format_size(limit)} of topic '{name}'",
        "Store the blob elsewhere, or: "
        f"tailrace topic alter {name} --set max_record={size_setting_above(size)}",
        **{"topic": topic, "partition": partition, "size": size, "limit": limit},
    )


def batch_refused(topic: str, partition: int | None, *, reason: str) -> errors.BatchRefused:
    """T028. ``reason``: what the broker found, e.g. "payload checksum does not match"."""
    return errors.BatchRefused(
        "T028",
        f"batch for {partition_name(topic, partition)} refused: {reason}; {_NEVER_WRITTEN}",
        "The client encodes it wrongly or the bytes were damaged on the way: check its version.",
        **{"topic": topic, "partition": partition, "reason": reason},
    )


def commit_timeout(
    topic: str, partition: int, *, offset: int, waited_s: float
) -> errors.RequestTimeout:
    """T034 by the broker: written, but not durable within the time the producer gave."""
    return errors.RequestTimeout(
        "T034",
        f"{record_name(topic, partition, offset)} is written but was not committed in "
        f"{format_seconds(waited_s)} s",
        "Look at the broker's disk: fsync_duration_seconds.",
        **{"topic": topic, "partition": partition, "maybe_written": True},
    )


def append_timeout(topic: str, partition: int, *, waited_s: float) -> errors.RequestTimeout:
    """T034 by the broker: not even written, as a sync of what came before takes so long."""
    return errors.RequestTimeout(
        "T034",
        f"{partition_name(topic, partition)} waits for its disk: nothing was written in "
        f"{format_seconds(waited_s)} s",
        "Look at the broker's disk: fsync_duration_seconds.",
        **{"topic": topic, "partition": partition, "maybe_written": False},
    )


def not_enough_replicas(
    topic: str,
    partition: int,
    *,
    have: int,
    need: int,
    missing: Sequence[tuple[str, str]],
    waited_s: float,
) -> errors.NotEnoughReplicas:
    """T030. ``missing``: (broker, why it is not in sync), at least one."""
    why = ", ".join(f"{shown(broker)} {shown(reason)}" for broker, reason in missing)
    return errors.NotEnoughReplicas(
        "T030",
        f"{partition_name(topic, partition)} has {have} in-sync of min_isr {need} ({why}); "
        f"nothing was written in {format_seconds(waited_s)} s",
        f"Bring {shown(missing[0][0])} back: tailrace cluster health",
        **{"topic": topic, "partition": partition, "have": have, "need": need},
    )


def storage_full(
    topic: str,
    partition: int | None,
    *,
    broker: str,
    has: str,
    limit: str,
    retry_after_s: float,
) -> errors.StorageFull:
    """T031. Either "2.7 GiB free" and "min_free 5%", or "9 GiB used" and "max_size 8 GiB"."""
    return errors.StorageFull(
        "T031",
        f"broker {shown(broker)} is read-only: {has}, {limit}",
        f"Free space or shorten retention; retry after {format_seconds(retry_after_s)} s.",
        **{"topic": topic, "partition": partition, "broker": broker, "retry_after": retry_after_s},
    )


def out_of_order_sequence(
    topic: str, partition: int, *, producer_id: int, epoch: int, sequence: int, expected: int
) -> errors.OutOfOrderSequence:
    """T038: a batch in front of this one is missing."""
    return errors.OutOfOrderSequence(
        "T038",
        f"producer {producer_id} epoch {epoch} sent sequence {count(sequence)} to "
        f"{partition_name(topic, partition)}, expected {count(expected)}; {_NEVER_WRITTEN}",
        "Send the batches before it first.",
        **{"topic": topic, "partition": partition, "sequence": sequence, "expected": expected},
    )


def unknown_producer(
    topic: str, partition: int, *, producer_id: int, epoch: int
) -> errors.UnknownProducer:
    """T039: it cannot be told whether this is a duplicate."""
    return errors.UnknownProducer(
        "T039",
        f"producer {producer_id} epoch {epoch} is unknown to {partition_name(topic, partition)}; "
        f"{_NEVER_WRITTEN}",
        "Take a new producer id.",
        **{"topic": topic, "partition": partition, "producer_id": producer_id},
    )


# ── leaders and offsets ──────────────────────────────────────────────────────────────────────


def not_leader(
    topic: str, partition: int, *, broker: str, leader: str | None = None
) -> errors.NotLeader:
    """T032. ``broker``: who answers."""
    known = f"broker {shown(leader)} does" if leader else "the leader is not known"
    return errors.NotLeader(
        "T032",
        f"broker {shown(broker)} does not lead {partition_name(topic, partition)}, {known}",
        "Ask for the metadata again.",
        **{"topic": topic, "partition": partition, "leader": leader},
    )


def partition_offline(topic: str, partition: int, *, reason: str) -> errors.PartitionOffline:
    """T033. ``reason``: "no in-sync replica is up (n2, n3)"."""
    return errors.PartitionOffline(
        "T033",
        f"{partition_name(topic, partition)} is offline: {reason}",
        f"Look: tailrace explain {shown(topic)}:{partition}",
        **{"topic": topic, "partition": partition},
    )


def files_left(topic: str, partition: int, *, reason: str) -> errors.PartitionOffline:
    """T033. The topic is deleted, or the copy is elsewhere now; its directory is still here."""
    return errors.PartitionOffline(
        "T033",
        f"{partition_name(topic, partition)} is no longer kept here, but files of it could not be "
        f"removed for good yet: {reason}",
        "Make room, or look at the disk; the broker tries it again by itself.",
        **{"topic": topic, "partition": partition},
    )


def epoch_fenced(topic: str, partition: int, *, yours: int, current: int) -> errors.EpochFenced:
    """T045. Leader epochs."""
    return errors.EpochFenced(
        "T045",
        f"{partition_name(topic, partition)} is in leader epoch {current}, the request names "
        f"{yours}",
        "Ask for the metadata again.",
        **{"topic": topic, "partition": partition, "yours": yours, "current": current},
    )


def offset_not_available(topic: str, partition: int, *, epoch: int) -> errors.OffsetNotAvailable:
    """T037."""
    return errors.OffsetNotAvailable(
        "T037",
        f"the leader of {partition_name(topic, partition)} in epoch {epoch} does not know yet "
        "what is committed",
        "Ask again.",
        **{"topic": topic, "partition": partition, "epoch": epoch},
    )


def offset_out_of_range(
    topic: str, partition: int, *, requested: int, start: int, end: int, group: str | None = None
) -> errors.OffsetOutOfRange:
    """T041 for an offset a reader asked for: below ``start`` (the log start) or above ``end``."""
    edge = f"starts at {count(start)}" if requested < start else f"ends at {count(end)}"
    message = f"asked for {count(requested)}, but {partition_name(topic, partition)} {edge}"
    details = {"requested": requested, "start": start, "end": end}
    return _out_of_range(message, group, topic=topic, partition=partition, **details)


def position_out_of_range(
    topic: str, partition: int, *, requested: int, start: int, end: int
) -> errors.OffsetOutOfRange:
    """T041 for records that are to go: there is no consumer whose policy could help."""
    asked = offset_out_of_range(topic, partition, requested=requested, start=start, end=end)
    hint = f"Look: tailrace topic describe {shown(topic)}"
    return errors.OffsetOutOfRange("T041", asked.message, hint, **asked.details)


def committed_out_of_range(
    topic: str,
    partition: int,
    *,
    group: str,
    requested: int,
    start: int,
    end: int,
    retention: str,
) -> errors.OffsetOutOfRange:
    """T041 for a committed offset whose records expired. ``retention`` as it is set: "7d"."""
    message = (
        f"committed {count(requested)}, but {partition_name(topic, partition)} starts at "
        f"{count(start)}: {count(start - requested)} records expired (retention {retention})"
    )
    details = {"requested": requested, "start": start, "end": end}
    return _out_of_range(message, group, topic=topic, partition=partition, **details)


def _out_of_range(message: str, group: str | None, **details: object) -> errors.OffsetOutOfRange:
    reset = f", or: tailrace group reset {shown(group)} --to start" if group else ""
    hint = f"Set on_out_of_range='earliest'{reset}"
    return errors.OffsetOutOfRange("T041", message, hint, **details)


def corrupt_batch(
    topic: str,
    partition: int,
    *,
    offset: int,
    broker: str,
    reason: str,
    next_offset: int | None = None,
) -> errors.CorruptBatch:
    """T035. ``next_offset``: the first readable record behind the damage, if known."""
    further = "" if next_offset is None else f"; readable again from {count(next_offset)}"
    return errors.CorruptBatch(
        "T035",
        f"{record_name(topic, partition, offset)} is corrupt on broker {shown(broker)}: "
        f"{shown(reason)}{further}",
        "On that broker: tailrace segment verify DIR; or seek past it.",
        **{"topic": topic, "partition": partition, "offset": offset, "broker": broker},
        next_offset=next_offset,
    )


# ── the metadata store, and time ─────────────────────────────────────────────────────────────


def metadata_unreachable(
    url: str, *, down_s: float, lease_remaining_s: float
) -> errors.MetadataUnavailable:
    """T100 for a store across the network, while the broker's lease runs down."""
    return errors.MetadataUnavailable(
        "T100",
        f"metadata store {shown(url)} unreachable for {format_seconds(down_s)} s; the lease ends "
        f"in {format_seconds(lease_remaining_s)} s, then writes stop",
        "Check etcd.",
        url=url,
    )


def metadata_unavailable(url: str, reason: str) -> errors.MetadataUnavailable:
    """T100 for one request that failed. ``url``: of the store, or the path of the embedded one."""
    return errors.MetadataUnavailable(
        "T100",
        f"metadata store {shown(url)} failed: {shown(reason)}",
        "Check its disk or network: tailrace doctor",
        url=url,
    )


def metadata_failed(path: str, *, reason: str) -> errors.MetadataUnavailable:
    """T100 for the embedded store: its file cannot be read or written."""
    return errors.MetadataUnavailable(
        "T100",
        f"metadata store {shown(path)} failed: {shown(reason)}",
        "Check the disk and the owner of that file.",
        url=path,
    )


def clock_skew(*, skew_s: float, other: str) -> errors.Notice:
    """T110. ``skew_s`` > 0: our clock is ahead of the other broker's."""
    side = "ahead of" if skew_s > 0 else "behind"
    return errors.Notice(
        "T110",
        f"broker clock is {format_seconds(abs(skew_s))} s {side} {shown(other)}",
        "Check NTP: retention and windows will be wrong.",
    )
