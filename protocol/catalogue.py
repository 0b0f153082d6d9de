"""What every code means and how to mend it: ``tailrace explain CODE`` and docs/errors.md.

The example of an entry is made by the very function that makes the error, so that it cannot go
stale. Codes reserved for later releases are absent. Client-side codes: ``catalogue_client.py``.
"""

from dataclasses import dataclass

from tailrace.protocol import (
    texts,
    texts_config,
    texts_group,
    texts_http,
    texts_storage,
    texts_wire,
)
from tailrace.protocol.catalogue_client import CLIENT_ROWS
from tailrace.protocol.errors import RETRIABLE, Notice, TailraceError


@dataclass(frozen=True, slots=True)
class Entry:
    """One code."""

    code: str
    class_name: str  # of the exception; "warning" for what is only logged or warned
    retriable: bool
    cause: str
    fix: str
    example: str  # as the error prints itself


_BROKER_ROWS: tuple[tuple[TailraceError | Notice, str, str], ...] = (
    (
        texts_http.unexpected("n1"),
        "A bug of the broker ended this one request over HTTP; whether it took effect is not "
        "known. The broker goes on.",
        "Look at the broker's log: event http.request_failed or http.tail_failed has the "
        "traceback. Report it, with what was asked for.",
    ),
    (
        texts_wire.other_protocol("127.0.0.1:7400", found="TLS"),
        "The peer speaks another protocol: TLS is on at one side only, or the port belongs to "
        "HTTP, Kafka or something else.",
        "Use tailraces:// for a listener with tls = true, and the port of listeners.client "
        "(7400), not the one of http.bind (7480).",
    ),
    (
        texts.topic_not_found("ordrs", similar=["orders"]),
        "No topic has that name. Only a producer's request may create one, and only where "
        "broker.auto_create is on.",
        "Correct the name, or create the topic: tailrace topic create NAME",
    ),
    (
        texts.partition_not_found("orders", 9, partitions=3),
        "The topic exists but has fewer partitions; they count from 0.",
        "Use a partition that exists: tailrace topic describe NAME",
    ),
    (
        texts.topic_exists("orders", differs=[("partitions", "3", "6")]),
        "The name is taken, or exist_ok was given but a value given with it differs.",
        "Take another name, or describe the topic and pass its own values.",
    ),
    (
        texts.twin_topic_name("Orders", twin="orders"),
        "The name has other characters than a-z A-Z 0-9 . _ -, is too long or reserved ('__'), or "
        "equals an existing one but for case or '.' and '_', which metrics cannot tell apart.",
        "Use 1 to 249 of the allowed characters, clearly different from existing topics.",
    ),
    (
        texts.record_too_large("images", size=3_500_000, limit=1_048_576),
        "Key, value and headers together, uncompressed, exceed the topic's max_record.",
        "Store the blob elsewhere and send a reference, or raise max_record of the topic (and "
        "limits.request_size with it).",
    ),
    (
        texts.timestamp_ahead(
            *("orders", 2), timestamp=1763780400000, limit=1763693600000, ahead_max_s=3600
        ),
        "A record's event time is further ahead of the broker's clock than "
        "timestamp_ahead_max, or below 0. Seconds or microseconds sent as milliseconds look so.",
        "Send milliseconds since the epoch; check NTP on the producer; or raise "
        "timestamp_ahead_max of the topic.",
    ),
    (
        texts.batch_refused("orders", 2, reason="payload checksum does not match"),
        "The broker found a batch malformed or damaged before it wrote anything.",
        "Damage on the way is found here and nothing is lost: send again. If it repeats, the "
        "client's encoder is wrong: compare with docs/log_format.md and the vectors.",
    ),
    (
        texts.not_enough_replicas(
            *("orders", 2), have=1, need=2, missing=[("n3", "is offline for 14 s")], waited_s=5
        ),
        "Fewer replicas are in sync than min_isr asks for, so an acknowledgement would promise "
        "too much.",
        "Bring the named broker back; writing goes on by itself.",
    ),
    (
        texts.storage_full(
            *("orders", 2),
            broker="n1",
            has="2.7 GiB free",
            limit="min_free 5%",
            retry_after_s=10,
        ),
        "The broker's disk has less free space than storage.min_free, a quota of its user is used "
        "up, or its records take more than storage.max_size: it serves reads only, until 1 % more "
        "is free. The SDK goes on by itself.",
        "Free space, add disk, or shorten retention: tailrace topic alter NAME --set retention=1d. "
        "A topic with on_full=drop_oldest gives up its oldest records instead.",
    ),
    (
        texts.not_leader("orders", 2, broker="n1", leader="n2"),
        "The leadership moved and the client has not seen it yet.",
        "Nothing to do: every client asks for the metadata again and retries.",
    ),
    (
        texts.partition_offline("orders", 2, reason="no in-sync replica is up (n2, n3)"),
        "Nobody may lead the partition: no broker that has all of its acknowledged records is up, "
        "or its files are missing or cannot be read or written. Or a topic is deleted, and files "
        "of it cannot be removed yet. The text says which.",
        "Start the named broker, or mend its disk or restore the directory and start it again: "
        "tailrace cluster health",
    ),
    (
        texts.corrupt_batch(
            *("orders", 2), offset=881, broker="n1", reason="payload checksum", next_offset=900
        ),
        "Stored bytes are damaged (a flipped bit, a lost write). They are never served; the rest "
        "of the topic stays readable.",
        "Verify the files (tailrace segment verify DIR), restore the partition from a replica or "
        "a backup, or seek past the damage.",
    ),
    (
        texts_group.coordinator_loading("billing", broker="n1"),
        "The group's coordinator has just started and replays its offsets; or a change of the "
        "group cannot be written down, as the disk is full, and nobody may be told of it before.",
        "Nothing to do: clients ask again. If it stays, look at the broker's disk.",
    ),
    (
        texts.offset_not_available("orders", 2, epoch=7),
        "A new leader must first learn what is committed before it may show an end.",
        "Nothing to do: clients ask again.",
    ),
    (
        texts.out_of_order_sequence(
            *("orders", 2), producer_id=17, epoch=0, sequence=1200, expected=1000
        ),
        "A producer's batch arrived before the one in front of it; writing it would lose order.",
        "Nothing to do: the client sends the earlier batches again first.",
    ),
    (
        texts.unknown_producer("orders", 2, producer_id=17, epoch=0),
        "The partition has forgotten this producer id (long idle, or its state was lost).",
        "Nothing to do: the client takes a new id and says so in its log.",
    ),
    (
        texts.offset_out_of_range("orders", 2, requested=120, start=5000, end=9000),
        "The offset was deleted by retention or delete-records, or lies behind the log's end.",
        "Decide what shall happen: on_out_of_range='earliest' or 'latest', seek, or a longer "
        "retention if the consumer was only slow.",
    ),
    (
        texts_group.group_fenced("billing", "billing-a", reason="its session timed out after 10 s"),
        "The coordinator no longer counts this member: it was silent for session_timeout, or "
        "another one took its instance_id. In answer to a commit: the partition went to another.",
        "The consumer rejoins by itself, unless its instance_id was taken: give each process one "
        "of its own. If it repeats, look for a process that is paused or overloaded.",
    ),
    (
        texts_group.group_not_found("biling", similar=["billing"]),
        "No consumer has ever committed or joined under that group name.",
        "Correct the name: tailrace group list",
    ),
    (
        texts_group.group_not_empty("billing", members=["billing-a", "billing-b"]),
        "Offsets cannot be reset and a group cannot be deleted while it has members.",
        "Stop its consumers first.",
    ),
    (
        texts.epoch_fenced("orders", 2, yours=6, current=7),
        "The request comes from the time of an earlier leader.",
        "Nothing to do: clients ask for the metadata again.",
    ),
    (
        texts_config.setting_unknown("tailrace.toml:12", "storage.datadir", similar="data_dir"),
        "A key of a file, of --set or of a topic, an environment variable TAILRACE_*__* or a URL "
        "option is not one of ours, or belongs to a later release.",
        "Correct or remove it. All there are: tailrace config show",
    ),
    (
        texts_config.min_isr_above_replicas(source="tailrace.toml:20", min_isr=3, replicas=2),
        "min_isr asks for more replicas than the topic has.",
        "Lower min_isr or raise replicas; 'auto' fits always.",
    ),
    (
        texts_config.setting_invalid(
            "TAILRACE_TOPIC__RETENTION", "topic.retention", value="'7 days'", wanted="a duration"
        ),
        "A setting, an option of a command or an argument of the SDK is not of its kind, out of "
        "its bounds, or contradicts another one; or a file of settings, a certificate or a token "
        "cannot be read.",
        "The text says what is expected. For settings: tailrace config explain KEY",
    ),
    (
        texts_config.replicated_alone(source="--set topic.durability"),
        "durability 'replicated' acknowledges from the memory of several replicas; with one "
        "replica a power cut would lose acknowledged records.",
        "Use durability = 'fsync', or more replicas.",
    ),
    (
        texts_config.insecure_bind(
            "listeners.client", "0.0.0.0:7400", without="TLS", key="listeners.client.tls"
        ),
        "A listener off loopback would be open to everyone on the network.",
        "Set tls (for HTTP: http.token_file), bind 127.0.0.1, or say security.allow_insecure = "
        "true where the network itself is trusted.",
    ),
    (
        texts_storage.directory_locked("/var/lib/tailrace", pid=812, role="serve", broker="n1"),
        "Another process works with the data directory.",
        "Stop that process, or give this one a directory of its own.",
    ),
    (
        texts_storage.directory_foreign(
            "/var/lib/tailrace",
            **{"broker": "n2", "cluster": "9f3c", "configured_broker": "n1"},
            configured_cluster="9f3c",
        ),
        "The data directory was written by another broker or belongs to another cluster.",
        "Correct broker.id or storage.data_dir. Never edit meta.json.",
    ),
    (
        texts_storage.directory_format("/var/lib/tailrace", found=3, newest=1),
        "The data directory was written by a newer release, or is not one of ours.",
        "Upgrade tailrace, or use another storage.data_dir.",
    ),
    (
        texts_storage.sync_failed("/var/lib/tailrace", reason="Input/output error"),
        "The disk failed to store what was written. After that the kernel may have dropped it, so "
        "a retry could lie: the process ends with exit code 7 instead.",
        "Check the disk and its cables (dmesg, smartctl), then start again: what was not synced is "
        "checked and written anew. While the disk fails, so does the start, and loses nothing.",
    ),
    (
        texts_storage.corruption_found(
            "topics/0f1e-0/00000000000000000000.log",
            position=65_536,
            reason="payload checksum",
            first_offset=881,
            next_offset=900,
        ),
        "Recovery or an offline tool found damage below the durable end of a log. It is named and "
        "set aside, never cut away or served.",
        "Restore the file from a replica or a backup.",
    ),
    (
        texts.metadata_unreachable("http://etcd:2379", down_s=4, lease_remaining_s=2),
        "The broker cannot reach its metadata store, or cannot read or write the embedded one. "
        "Across a network its lease runs down meanwhile; when that ends it must stop writing, as "
        "another one may lead.",
        "Check etcd, or the disk and the owner of the embedded store's file. What is under way is "
        "tried again; a broker that did not start has to be started again.",
    ),
    (
        texts.clock_skew(skew_s=3.2, other="n2"),
        "The clock of a broker jumped, or differs from another broker's. Append times, and what "
        "is sought by time, jump with it; retention waits for a day before it believes a step "
        "forward.",
        "Run NTP on every broker.",
    ),
    (
        texts_wire.version_mismatch(
            client="0.1.0", client_range=(1, 1), broker="1.2.0", broker_range=(2, 3)
        ),
        "Client and broker have no version of the protocol in common.",
        "Install the client that fits the broker, or upgrade the broker.",
    ),
    (
        texts_wire.malformed_frame("header or head does not match its checksum"),
        "The bytes do not follow docs/wire_format.md, or ask for more at once than it allows: "
        "damaged on the way, or a bug in a client.",
        "Reconnect. If it repeats, compare the client with the vectors in tests/vectors.",
    ),
    (
        texts_wire.unsupported_api(12, 1),
        "The request, or its version, is not one this peer serves.",
        "Ask only what the answer to Hello lists; upgrade the older side.",
    ),
    (
        texts_wire.connection_limit("connections_per_ip", limit=256),
        "The broker has as many connections, or HTTP requests at once, as it may.",
        "Close idle clients (one client per process is enough), or raise the limit.",
    ),
    (
        texts_wire.frame_too_large("frame of api 2", size=20_000_000, limit=16_777_216),
        "A frame is larger than its api allows; it was refused before it was read.",
        "Use smaller batches (batch_bytes), or raise limits.request_size.",
    ),
)


def _entry(example: TailraceError | Notice, cause: str, fix: str) -> Entry:
    warned = isinstance(example, Notice)
    name = "warning" if warned else type(example).__name__
    code = example.code
    return Entry(code, name, code in RETRIABLE, cause, fix, str(example))


CATALOGUE: dict[str, Entry] = {
    row[0].code: _entry(*row)
    for row in sorted((*_BROKER_ROWS, *CLIENT_ROWS), key=lambda row: row[0].code)
}


def page() -> str:
    """docs/errors.md, whole."""
    lines = [
        "# Errors",
        "",
        "Every error is a subclass of `tailrace.TailraceError` with `code`, `message`, `hint`,",
        "`retriable` and `details`; it prints as `CODE: message. hint`. `tailrace explain CODE`",
        "shows the same text as this page, which is made from it. Retriable means: the same call",
        "may succeed later (the SDK has already retried until its timeout). A `warning` is logged",
        "or warned, never raised.",
    ]
    for entry in CATALOGUE.values():
        retriable = ", retriable" if entry.retriable else ""
        lines += ["", f"## {entry.code}", "", f"`{entry.class_name}`{retriable}. {entry.cause}", ""]
        lines += [f"**Fix:** {entry.fix}", "", "```", entry.example, "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
