"""Every setting of the broker in one table: key, kind, default, meaning.

Configuration, topic configuration, ``tailrace config`` and docs/configuration.md are all made from
this table; a key that is not in it does not exist. A key or value that comes with a later release
is named here too and refused, never ignored.
"""

from dataclasses import dataclass

from tailrace.broker.kinds import (
    ADDRESS,
    ADDRESS_OR_EMPTY,
    BOOL,
    FREE,
    GIB,
    KIB,
    MIB,
    PREFIX,
    TEXT,
    URLS,
    Kind,
    choice,
    duration,
    is_id,
    ratio,
    size,
    text_of,
    whole,
)
from tailrace.protocol.units import UNLIMITED


@dataclass(frozen=True, slots=True)
class Setting:
    """One key. ``*`` in a key stands for a name the user chooses."""

    key: str
    kind: Kind
    default: str
    doc: str
    dynamic: bool = False  # reread on SIGHUP
    per_topic: bool = False  # may be given for one topic, at any time
    later: str = ""  # what it, or later_values, comes with: refused until that release
    later_values: tuple[str, ...] = ()  # empty with later set: the whole key is refused

    @property
    def exists(self) -> bool:
        """Whether this release takes the key."""
        return not self.later or bool(self.later_values)

    @property
    def name(self) -> str:
        """The key inside its section."""
        return self.key.rpartition(".")[2]


# ── the table ────────────────────────────────────────────────────────────────────────────────

_BROKER = (
    Setting(
        "broker.id",
        text_of("1-64 letters, digits, dots, dashes or underscores", is_id),
        "n1",
        "The broker's name in its cluster. Bound to the data directory at its first start.",
    ),
    Setting("broker.rack", TEXT, "", "Where the broker stands; told to clients."),
    Setting(
        "broker.auto_create",
        BOOL,
        "false",
        "Whether a producer's first request creates a missing topic. tailrace dev: true.",
    ),
    Setting(
        "broker.shutdown_timeout",
        duration(0.0),
        "20s",
        "How long a graceful stop may take; what is left then is skipped and the exit code is 1.",
    ),
)
_LISTENERS = (
    Setting(
        "listeners.*.bind",
        ADDRESS,
        "127.0.0.1:7400",
        "Address to listen on; port 0 takes a free one. The listener `client` always exists; any"
        " other name needs this key.",
    ),
    Setting(
        "listeners.*.advertise",
        ADDRESS_OR_EMPTY,
        "",
        "Address told to clients that came in here; empty: `bind`. Needed if that is 0.0.0.0 or"
        " [::]. Port 0 stands for the port really bound.",
    ),
    Setting(
        "listeners.*.tls",
        BOOL,
        "false",
        "TLS 1.2 or newer with `security.tls_cert`; clients use tailraces://.",
    ),
)
_STORAGE = (
    Setting("storage.data_dir", TEXT, "/var/lib/tailrace", "Where records and metadata are kept."),
    Setting(
        "storage.min_free",
        FREE,
        "5%",
        "Room that must stay free, as a share of the file system or a size. Below it writes get"
        " T031, until 1% more is free.",
    ),
    Setting(
        "storage.max_size",
        size(4 * MIB, or_unlimited=True),
        UNLIMITED,
        "How much all records together may take. Above it topics with on_full = drop_oldest lose"
        " their oldest records; when none are left, writes get T031.",
    ),
    Setting(
        "storage.verify_on_start",
        choice("tail", "full"),
        "tail",
        "After an unclean stop: check what was not known to be synced, or every record.",
    ),
    Setting(
        "storage.sync_interval",
        duration(0.01),
        "1s",
        'How soon topics with durability = "replicated" are synced: a crash of the machine costs'
        " one replica at most so much.",
    ),
    Setting(
        "storage.cleaner_rate",
        size(64 * KIB, or_unlimited=True),
        "64MiB",
        "How much compaction and erasure may read and write in a second, together.",
    ),
)
_TOPIC = (
    Setting("topic.partitions", whole(1, 100_000), "1", "Partitions of a new topic."),
    Setting(
        "topic.replicas",
        whole(1, 9, or_auto=True),
        "auto",
        "Copies of each partition; auto: min(3, brokers).",
    ),
    Setting(
        "topic.min_isr",
        whole(1, 9, or_auto=True),
        "auto",
        "In-sync copies that an acks=all write needs; auto: replicas // 2 + 1.",
        per_topic=True,
    ),
    Setting(
        "topic.durability",
        choice("fsync", "replicated", "os"),
        "fsync",
        "What an ack means. fsync: on disk. replicated: in the memory of every in-sync replica"
        " (needs two or more). os: in the page cache, synced some seconds later; lost in a power"
        " cut before that.",
        per_topic=True,
    ),
    Setting(
        "topic.cleanup",
        choice("delete", "compact", "compact,delete"),
        "delete",
        "What becomes of old records. delete: they go by `retention` and `retention_size`. compact:"
        " only the newest record of each key is kept, for ever. compact,delete: both.",
        per_topic=True,
    ),
    Setting(
        "topic.retention",
        duration(or_forever=True),
        "7d",
        "How long records are kept, by append time, in whole segments.",
        per_topic=True,
    ),
    Setting(
        "topic.retention_size",
        size(1, or_unlimited=True),
        UNLIMITED,
        "How much is kept per partition, in whole segments.",
        per_topic=True,
    ),
    Setting(
        "topic.on_full",
        choice("reject", "drop_oldest"),
        "reject",
        "At `storage.min_free` or `storage.max_size`. reject: writes get T031, what `retention`"
        " promises is kept. drop_oldest: the oldest segments go, to make room for new records.",
        per_topic=True,
    ),
    Setting(
        "topic.segment_size",
        size(4 * KIB, 2 * GIB),
        "128MiB",
        "Size of a segment file, the unit of retention; less where that is more than an eighth of"
        " `retention_size`, or a share of a small disk.",
        per_topic=True,
    ),
    Setting(
        "topic.segment_age",
        duration(),
        "1d",
        "A segment that old is closed; unless set, an eighth of `retention` if that is less.",
        per_topic=True,
    ),
    Setting(
        "topic.max_record",
        size(1, 1 * GIB),
        "1MiB",
        "The largest record, uncompressed. Clients check before they buffer.",
        per_topic=True,
    ),
    Setting(
        "topic.timestamp_ahead_max",
        duration(0.0),
        "1h",
        "Event times further ahead of the broker's clock are refused with T022.",
        per_topic=True,
    ),
    Setting(
        "topic.compaction_lag_max",
        duration(1.0),  # it closes segments: one file per append would be the end of any disk
        "1d",
        "How long a superseded record may stay in a compacted topic before it is cleaned.",
        per_topic=True,
    ),
    Setting(
        "topic.tombstone_retention",
        duration(),
        "7d",
        "How long a tombstone is kept after it was first cleaned: what a consumer that reads from"
        " the start has to come to the end.",
        per_topic=True,
    ),
    Setting(
        "topic.compaction_dirty_ratio",
        ratio(),
        "0.5",
        "A compacted topic is cleaned when that share of its bytes was not yet cleaned; 0: when"
        " anything is.",
        per_topic=True,
    ),
)
_CLUSTER_SECTION = (
    Setting(
        "cluster.metadata",
        choice("embedded", "etcd"),
        "embedded",
        "Where the cluster's metadata lives. embedded: one broker with its own store. etcd: the"
        " etcd of `etcd`, 3.4 or newer; `broker.id` must be given.",
    ),
    Setting(
        "cluster.etcd",
        URLS,
        "",
        "Addresses of etcd's members, http:// or https://. In an environment variable: with commas"
        " between them.",
    ),
    Setting(
        "cluster.prefix",
        PREFIX,
        "/tailrace",
        "Everything in etcd stands below this and a slash; one per cluster.",
    ),
    Setting(
        "cluster.etcd_ca",
        TEXT,
        "",
        "File with the certificates (PEM) that etcd's are signed by; empty: those of the system.",
    ),
    Setting("cluster.etcd_cert", TEXT, "", "File with our certificate for etcd (PEM)."),
    Setting("cluster.etcd_key", TEXT, "", "File with its private key (PEM)."),
    Setting("cluster.etcd_user", TEXT, "", "The user in etcd; empty: none."),
    Setting("cluster.etcd_password_file", TEXT, "", "File with the user's password."),
    Setting(
        "cluster.session_timeout",
        duration(1.0),
        "6s",
        "The broker's lease in etcd: a broker that is not heard of for so long is replaced as a"
        " leader, and one that cannot reach etcd for so long takes no more writes.",
    ),
    Setting(
        "cluster.replica_lag_max",
        duration(0.1),
        "10s",
        "A replica that lacks something for so long leaves the in-sync set: writes stop waiting for"
        " it.",
    ),
    Setting(
        "cluster.peer_listener",
        TEXT,
        "client",
        "The listener at which other brokers reach this one: to fetch, and to ask. The same name at"
        " all brokers.",
    ),
    Setting(
        "cluster.peer_ca",
        TEXT,
        "",
        "File with the certificates (PEM) that those of other brokers are signed by, where their"
        " `peer_listener` has TLS; empty: those of the system. SIGHUP reads the file again, under"
        " the same name too: new connections go by the new one.",
        dynamic=True,
    ),
    Setting(
        "cluster.catch_up_rate",
        size(64 * KIB, or_unlimited=True),
        "32MiB",
        "How much a broker fetches in a second for replicas that are not in sync, all together:"
        " those that are in sync, and clients, come first.",
    ),
)
_GROUP = (
    Setting(
        "group.session_timeout_min",
        duration(),
        "1s",
        "The shortest `session_timeout` a member of a group may ask for; a shorter one gets T082.",
    ),
    Setting("group.session_timeout_max", duration(), "5m", "The longest; a longer one gets T082."),
    Setting(
        "group.assign_delay",
        duration(0.0),
        "200ms",
        "How long the first member of a group waits for others before it is given anything, so that"
        " members started together get their shares at once. tailrace dev: 0ms.",
    ),
    Setting(
        "group.members_max",
        whole(1, 10_000),
        "1000",
        "Members of one group; one more gets T082.",
    ),
    Setting(
        "group.verdict_window",
        duration(1.0),
        "1m",
        "What the verdict of a group looks back on: `stalled` if it had lag throughout and"
        " committed nothing, `warn` if its lag has only grown.",
    ),
)
_LIMITS = (
    Setting("limits.connections", whole(1, 1_000_000), "10000", "Open connections; over it: T123."),
    Setting(
        "limits.connections_per_ip",
        whole(1, 1_000_000),
        "256",
        "Open connections of one address; loopback is exempt.",
    ),
    Setting(
        "limits.request_size",
        size(128 * KIB, 1 * GIB),
        "16MiB",
        "The largest produce request; at least `topic.max_record` + 64KiB.",
    ),
    Setting(
        "limits.fetch_size",
        size(64 * KIB, 1 * GIB),
        "8MiB",
        "The largest fetch answer, but for a single larger batch.",
    ),
    Setting(
        "limits.request_memory",
        size(16 * MIB, or_unlimited=True),
        "512MiB",
        "Memory for all requests in hand; beyond it connections wait to be read.",
    ),
    Setting("limits.partitions_per_topic", whole(1, 100_000), "1000", "Partitions of one topic."),
    Setting(
        "limits.partitions_per_broker", whole(1, 1_000_000), "4000", "Partitions of one broker."
    ),
    Setting(
        "limits.idle_connection",
        duration(1.0),
        "10m",
        "A connection silent for so long is closed.",
    ),
)
_OTHERS = (
    Setting(
        "http.bind",
        ADDRESS_OR_EMPTY,
        "127.0.0.1:7480",
        "Address of the HTTP API, probes and metrics; empty: no HTTP. Port 0 takes a free one.",
    ),
    Setting(
        "http.token_file",
        TEXT,
        "",
        "File with the token that HTTP asks for as `Authorization: Bearer TOKEN`, but for the"
        " probes. Needed off loopback (T085). Read at start.",
    ),
    Setting(
        "security.allow_insecure",
        BOOL,
        "false",
        "true allows plaintext listeners and HTTP without a token off loopback.",
    ),
    Setting(
        "security.tls_cert",
        TEXT,
        "",
        "File with the certificate chain (PEM). SIGHUP reads the file again, under the same name"
        " too: new connections see the new one.",
        dynamic=True,
    ),
    Setting(
        "security.tls_key",
        TEXT,
        "",
        "File with the certificate's private key (PEM).",
        dynamic=True,
    ),
    Setting(
        "security.tls_client_ca",
        TEXT,
        "",
        "Client certificates signed by this are required.",
        later="client certificates",
    ),
    Setting(
        "log.level",
        choice("debug", "info", "warning", "error"),
        "info",
        "What is logged.",
        dynamic=True,
    ),
    Setting(
        "log.format",
        choice("auto", "text", "json"),
        "auto",
        "auto: text on a terminal, else JSON lines. tailrace dev: text.",
    ),
    Setting(
        "metrics.topics_max",
        whole(1, 1_000_000),
        "1000",
        'Topics with series of their own; the rest is summed under topic="__other__".',
    ),
)
SETTINGS: dict[str, Setting] = {
    setting.key: setting
    for setting in (
        *(*_BROKER, *_LISTENERS, *_STORAGE, *_TOPIC),
        *(*_CLUSTER_SECTION, *_GROUP, *_LIMITS, *_OTHERS),
    )
}
LATER_SECTIONS = {
    "auth": "authentication",
    "acl": "access control",
    "quota": "quotas",
    "kafka": "the Kafka listener",
    "console": "the console",
    "streams": "streams",
    "connectors": "connectors",
    "tiered": "tiered storage",
}


def setting_of(key: str) -> Setting | None:
    """The setting a full key belongs to: ``listeners.peer.bind`` to ``listeners.*.bind``."""
    parts = key.split(".")
    if len(parts) == 3 and parts[0] == "listeners" and is_listener_name(parts[1]):
        return SETTINGS.get(f"listeners.*.{parts[2]}")
    return None if "*" in key else SETTINGS.get(key)


def is_listener_name(name: str) -> bool:
    """Lower case, as it must survive an environment variable: letters, digits, dashes."""
    return is_id(name) and name == name.lower() and "." not in name
