"""The texts that only the SDK and the CLI raise, log or warn; rules as in ``texts.py``."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tailrace.protocol import errors
from tailrace.protocol.texts import error_summary, partition_name, record_name, shown
from tailrace.protocol.units import format_count as count, format_seconds, format_size

Attempts = Sequence[tuple[str, str]]  # (address, reason)
_SILENT = "Check the address, and whether a firewall or the network drops what is sent there."

# ── connecting ───────────────────────────────────────────────────────────────────────────────


def no_broker(attempts: Attempts, *, elapsed_s: float, hint: str = "") -> errors.ConnectError:
    """T001: every address was tried, none answered. ``hint``: another one than clients get."""
    tried = ", ".join(f"{shown(address)} ({shown(reason)})" for address, reason in attempts)
    silent = bool(attempts) and all(reason == "timed out" for _, reason in attempts)
    return errors.ConnectError(
        "T001",
        f"no broker reachable in {format_seconds(elapsed_s)} s: {tried}",
        hint or (_SILENT if silent else "Nothing listens there. Start one: tailrace dev"),
        attempts=list(attempts),
        elapsed=elapsed_s,
    )


def host_unresolved(
    host: str, *, elapsed_s: float, similar: str | None = None, attempts: Attempts = ()
) -> errors.ConnectError:
    """T002. ``similar``: a host name that looks meant, e.g. "localhost"."""
    return errors.ConnectError(
        "T002",
        f"no broker reachable in {format_seconds(elapsed_s)} s: {shown(host)} does not resolve",
        f"Did you mean {shown(similar)}?" if similar else "Check the host name.",
        attempts=list(attempts),
        elapsed=elapsed_s,
    )


def advertised_unreachable(
    address: str,
    *,
    broker: str,
    advertised: str,
    reason: str,
    listener: str = "client",
    elapsed_s: float = 0.0,
) -> errors.ConnectError:
    """T003. ``reason`` continues "which …": "does not resolve", "refuses connections"."""
    return errors.ConnectError(
        "T003",
        f"bootstrap {shown(address)} works, but broker {shown(broker)} advertises "
        f"{shown(advertised)}, which {shown(reason)} from here",
        f"Set listeners.{shown(listener)}.advertise on {shown(broker)}, or connect from inside "
        "its network.",
        attempts=[(advertised, reason)],
        elapsed=elapsed_s,
    )


def no_heart(group: str, *, address: str, reason: str) -> errors.ConnectError:
    """T001: this process lacks what heartbeats take. ``reason``: "too many open files"."""
    return errors.ConnectError(
        "T001",
        f"group {shown(group)!r} cannot be joined: {shown(reason)}",
        "Raise the limit of this process (ulimit -n: files, ulimit -u: threads).",
        attempts=[(address, reason)],
        elapsed=0.0,
    )


def outage_over(
    address: str, *, reason: str, outage_s: float, max_outage_s: float, attempts: Attempts = ()
) -> errors.ConnectError:
    """T005: reconnecting went on for ``max_outage``."""
    return errors.ConnectError(
        "T005",
        f"no broker reachable for {format_seconds(outage_s)} s, max_outage is "
        f"{format_seconds(max_outage_s)} s; last: {shown(address)} ({shown(reason)})",
        "Look: tailrace cluster health. To wait for ever: max_outage=None",
        attempts=list(attempts) or [(address, reason)],
        elapsed=outage_s,
    )


def not_authorised(address: str, *, reason: str) -> errors.AuthError:
    """T006. ``reason``: "no token given", "wrong token"."""
    return errors.AuthError(
        "T006",
        f"{shown(address)} refused the request: {reason}",
        "Send the header Authorization: Bearer TOKEN with the token of http.token_file.",
        address=address,
    )


def request_timeout(what: str, *, address: str, waited_s: float) -> errors.RequestTimeout:
    """T034. ``what``: "metadata", "create topic 'orders'"."""
    return errors.RequestTimeout(
        "T034",
        f"{what} got no answer from {shown(address)} in {format_seconds(waited_s)} s",
        "Look: tailrace cluster health, or raise request_timeout (CLI: --timeout).",
        what=what,
        address=address,
        elapsed=waited_s,
    )


# ── producing ────────────────────────────────────────────────────────────────────────────────


def send_timeout(
    topic: str,
    partition: int | None,
    *,
    elapsed_s: float,
    attempts: int,
    last_error: errors.TailraceError | None,
    maybe_written: bool,
) -> errors.SendTimeout:
    """T020. ``partition`` is None if the topic's partitions never became known."""
    last = "no answer" if last_error is None else error_summary(last_error)
    end = "the record may have been written" if maybe_written else "nothing was written"
    target = shown(topic) if partition is None else f"{shown(topic)}:{partition}"
    return errors.SendTimeout(
        "T020",
        f"{partition_name(topic, partition)} not acknowledged in {format_seconds(elapsed_s)} s "
        f"after {count(attempts)} attempts; last: {last}; {end}",
        f"Look: tailrace explain {target}",
        **{"topic": topic, "partition": partition, "maybe_written": maybe_written},
        **{"attempts": attempts, "elapsed": elapsed_s, "last_error": last_error},
    )


def buffer_full(
    topic: str, partition: int | None = None, *, size: int, buffered: int, limit: int
) -> errors.BufferFull:
    """T023. ``size``: of the record; ``buffered``, ``limit``: of the producer; all in bytes."""
    return errors.BufferFull(
        "T023",
        f"no room for {format_size(size)} for {partition_name(topic, partition)}: "
        f"{format_size(buffered)} of buffer_bytes {format_size(limit)} are waiting; nothing was "
        "written",
        "Use await enqueue(...), which waits for room, or raise buffer_bytes.",
        **{"topic": topic, "partition": partition, "buffered_bytes": buffered},
    )


def send_many_failed(
    topic: str,
    partition: int | None,
    *,
    failures: Mapping[int, errors.TailraceError],
    metadata: Sequence[Any],
    maybe_written: bool,
) -> errors.SendManyError:
    """T024. ``metadata``: RecordMetadata or None, in input order; at least one failure."""
    first = min(failures)
    return errors.SendManyError(
        "T024",
        f"{count(len(failures))} of {count(len(metadata))} records for "
        f"{partition_name(topic, partition)} failed; first: index {count(first)}, "
        f"{error_summary(failures[first])}",
        "Send those in failures again.",
        **{"topic": topic, "partition": partition, "maybe_written": maybe_written},
        failures=dict(failures),
        metadata=list(metadata),
    )


def flush_failed(*, failed: int, first: errors.TailraceError) -> errors.FlushError:
    """T025. ``first``: of the failures that nobody awaited."""
    records = "1 record" if failed == 1 else f"{count(failed)} records"
    known = first if isinstance(first, errors.ProduceError) else None
    return errors.FlushError(
        "T025",
        f"{records} enqueued since the last flush failed; first: {error_summary(first)}",
        "Await each Delivery to learn which.",
        topic=known.topic if known else "",
        partition=known.partition if known else None,
        maybe_written=known.maybe_written if known else False,
        failed=failed,
        first=first,
    )


def close_timeout(*, undelivered: int, waited_s: float, maybe_written: bool) -> errors.CloseTimeout:
    """T026."""
    records = "1 record" if undelivered == 1 else f"{count(undelivered)} records"
    return errors.CloseTimeout(
        "T026",
        f"producer closed with {records} not delivered after {format_seconds(waited_s)} s",
        "Raise close_timeout, or await flush() before closing.",
        undelivered=undelivered,
        maybe_written=maybe_written,
    )


# ── misuse ───────────────────────────────────────────────────────────────────────────────────


def loop_blocked(*, blocked_s: float, file: str, line: int, function: str) -> errors.Notice:
    """T050."""
    return errors.Notice(
        "T050",
        f"handler blocked the event loop {format_seconds(blocked_s)} s in {file}:{line} "
        f"{function}()",
        "Use await or anyio.to_thread.run_sync(...).",
    )


def never_closed(*, file: str, line: int, undelivered: int) -> errors.Notice:
    """T051. ``file``, ``line``: where the producer was made."""
    return errors.Notice(
        "T051",
        f"Producer created at {file}:{line} was never closed; {count(undelivered)} records not "
        "delivered",
        "Use: async with client.producer() as p",
    )


def sync_inside_loop(loop: Literal["trio", "asyncio"]) -> errors.UsageError:
    """T052."""
    return errors.UsageError(
        "T052", f"tailrace.sync used inside a running {loop} loop", "Use tailrace.connect()."
    )


def forked(*, created_pid: int, pid: int) -> errors.ForkedClientError:
    """T053."""
    return errors.ForkedClientError(
        "T053",
        f"created in pid {created_pid}, used in pid {pid}",
        "Create it after the fork (gunicorn post_fork, celery worker_process_init).",
        created_pid=created_pid,
        pid=pid,
    )


def wrong_thread(what: str, *, kind: Literal["thread", "event loop"]) -> errors.UsageError:
    """T054. ``what``: "Client", "Producer", "Consumer"."""
    return errors.UsageError(
        "T054",
        f"{what} was created in another {kind} than it is used in",
        "Make one per event loop, or use tailrace.sync, whose objects are thread-safe.",
    )


def already_closed(what: str) -> errors.UsageError:
    """T055. ``what``: "Client", "Producer", "Consumer"."""
    return errors.UsageError(
        "T055", f"{what} is closed", f"Use it inside its async with, or make a new {what}."
    )


def not_open(what: str) -> errors.UsageError:
    """T055 before ``__aenter__``."""
    return errors.UsageError(
        "T055", f"{what} is not open yet", "Use: async with tailrace.connect() as client"
    )


def second_reader(*, first: str, second: str) -> errors.UsageError:
    """T055. Ways to read a consumer: "async for", "batches()", "partitions()", "run()"."""
    return errors.UsageError(
        "T055",
        f"consumer is already read by {first}, {second} cannot read it too",
        "Make a second consumer.",
    )


def partitions_again() -> errors.UsageError:
    """T055: a second reader would take records that the first one's streams wait for."""
    return errors.UsageError(
        "T055",
        "consumer is already read by partitions() of an earlier call",
        "Keep what that call returned: a loop over it can be entered again.",
    )


def no_group(what: str) -> errors.UsageError:
    """T055. ``what``: "commit()", "committed()"."""
    return errors.UsageError(
        "T055",
        f"{what} needs a group, this consumer has none",
        "Use: client.consumer(..., group='name')",
    )


def not_assigned(topic: str, partition: int) -> errors.UsageError:
    """T055 for position, seek, pause or resume of a partition the consumer does not read."""
    return errors.UsageError(
        "T055",
        f"{partition_name(topic, partition)} is not assigned to this consumer",
        "Look: consumer.assignment",
    )


# ── codecs and input ─────────────────────────────────────────────────────────────────────────


def not_decodable(
    topic: str, partition: int, offset: int, *, codec: str, raw: bytes, guess: str
) -> errors.DecodeError:
    """T060. ``guess``: what the bytes look like: "json", "msgpack", "str" or "bytes"."""
    return errors.DecodeError(
        "T060",
        f"{record_name(topic, partition, offset)} is not {codec} (starts {raw[:8].hex()}, looks "
        f"like {guess})",
        f"Raw: tailrace cat {shown(topic)}:{partition}:{offset} --decode hex. "
        f"Set value='{guess}' or on_decode_error='dead_letter'.",
        **{"topic": topic, "partition": partition, "offset": offset, "raw": raw},
    )


def not_encodable(
    topic: str, *, part: Literal["key", "value"], codec: str, type_name: str, reason: str = ""
) -> errors.EncodeError:
    """T061. ``codec``: what the producer was given for this part."""
    why = f": {shown(reason)}" if reason else ""
    return errors.EncodeError(
        "T061",
        f"{part} of type {type_name} for topic '{shown(topic)}' cannot be encoded as {codec}{why}",
        f"Pass what {codec} takes, or another {part}= to client.producer().",
        topic=topic,
    )


# ── groups and positions ─────────────────────────────────────────────────────────────────────
