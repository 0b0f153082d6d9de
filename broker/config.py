"""The broker's configuration: typed, frozen, with every value's source still at hand.

``load`` is the one way in: file, environment and options become values (``config_values``), the
values are checked together (``config_check``) and become a ``Config``, whose fields are parsed:
durations in seconds or ms, sizes in bytes, addresses as host and port.

Names of fields are those of the keys, with their unit behind.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tailrace.broker.config_check import check
from tailrace.broker.config_values import (
    Given,
    Plain,
    Source,
    Value,
    read_environment,
    read_file,
    read_mapping,
    resolve,
)
from tailrace.broker.kinds import Address, Free
from tailrace.protocol.errors import ConfigError

Durability = Literal["fsync", "replicated", "os"]
Cleanup = Literal["delete", "compact", "compact,delete"]
OnFull = Literal["reject", "drop_oldest"]
FILES = ("tailrace.toml", "/etc/tailrace/tailrace.toml")  # looked for in this order


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """[broker]"""

    id: str
    rack: str
    auto_create: bool
    shutdown_timeout_s: float


@dataclass(frozen=True, slots=True)
class ListenerConfig:
    """[listeners.NAME]"""

    name: str
    bind: Address
    advertise: Address | None  # None: what was bound; its port 0: the port that was bound
    tls: bool


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """[storage]"""

    data_dir: str
    min_free: Free
    verify_on_start: Literal["tail", "full"]
    cleaner_rate_bytes: int | None = None  # per second; None: unlimited
    max_size_bytes: int | None = None  # of all records; None: unlimited
    sync_interval_s: float = 1.0  # of topics with durability "replicated"


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """[topic], or the effective settings of one topic."""

    partitions: int
    replicas: int | None  # None: auto
    min_isr: int | None  # None: auto
    durability: Durability
    cleanup: Cleanup
    retention_ms: int | None  # None: for ever
    retention_size_bytes: int | None  # per partition; None: unlimited
    segment_size_bytes: int
    segment_age_ms: int
    max_record_bytes: int
    timestamp_ahead_max_ms: int
    compaction_lag_max_ms: int = 86_400_000
    tombstone_retention_ms: int = 7 * 86_400_000
    compaction_dirty_ratio: float = 0.5  # 0 to 1
    on_full: OnFull = "reject"

    @property
    def compacts(self) -> bool:
        """Whether superseded records go."""
        return self.cleanup != "delete"

    @property
    def deletes(self) -> bool:
        """Whether ``retention_ms`` and ``retention_size_bytes`` hold."""
        return self.cleanup != "compact"


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """[cluster]"""

    # shared: brokers of one process have an embedded store together (``tailrace dev --brokers``)
    metadata: Literal["embedded", "etcd", "shared"] = "embedded"
    etcd: tuple[str, ...] = ()  # all http:// or all https://; not empty with metadata "etcd"
    prefix: str = "/tailrace"
    etcd_ca: str = ""
    etcd_cert: str = ""
    etcd_key: str = ""
    etcd_user: str = ""
    etcd_password_file: str = ""
    session_timeout_s: float = 6.0
    replica_lag_max_s: float = 10.0
    peer_listener: str = "client"
    peer_ca: str = ""
    catch_up_rate_bytes: int | None = None  # per second; None: unlimited


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """[group]"""

    session_timeout_min_ms: int
    session_timeout_max_ms: int
    assign_delay_s: float
    members_max: int
    verdict_window_s: float


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """[limits]"""

    connections: int
    connections_per_ip: int
    request_size_bytes: int
    fetch_size_bytes: int
    request_memory_bytes: int | None
    partitions_per_topic: int
    partitions_per_broker: int
    idle_connection_s: float


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """[http]"""

    bind: Address | None  # None: no HTTP
    token_file: str  # empty: no token is asked for


@dataclass(frozen=True, slots=True)
class SecurityConfig:
    """[security]"""

    allow_insecure: bool
    tls_cert: str
    tls_key: str


@dataclass(frozen=True, slots=True)
class LoggingConfig:
    """[log]"""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "text", "json"]


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """[metrics]"""

    topics_max: int


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration of one broker."""

    broker: BrokerConfig
    listeners: tuple[ListenerConfig, ...]  # sorted by name
    storage: StorageConfig
    topic: TopicConfig
    cluster: ClusterConfig
    group: GroupConfig
    limits: LimitsConfig
    http: HttpConfig
    security: SecurityConfig
    log: LoggingConfig
    metrics: MetricsConfig
    # Every key of this release, with text, default and source.
    values: Mapping[str, Value] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a configuration is read from; kept, so that SIGHUP can read it again.

    ``defaults`` stand in for those of the table, ``options`` are the command line's.
    """

    file: Path | None = None
    environ: Mapping[str, str] | None = None
    options: tuple[Given, ...] = ()
    defaults: Mapping[str, str] | None = None


def load(sources: Sources) -> Config:
    """The configuration; raises the first error found, ConfigError T080-T086."""
    config, errors = examine(sources)
    if config is None:
        raise errors[0]
    return config


def examine(sources: Sources) -> tuple[Config | None, list[ConfigError]]:
    """The configuration, or else every error in it."""
    try:
        given = [] if sources.file is None else read_file(sources.file)
    except ConfigError as error:
        return None, [error]
    given += read_environment(sources.environ or {})
    values, errors = resolve((*given, *sources.options), sources.defaults or {})
    # A key that was refused stands at its default: what it contradicts then is no finding.
    errors = errors or check(values)
    return (None if errors else build(values)), errors


def from_mapping(
    settings: Mapping[str, Plain], *, defaults: Mapping[str, str] | None = None
) -> Config:
    """A configuration made by Python code (tests): ``{"topic.retention": 60}`` is 60 s."""
    options = tuple(read_mapping(settings, "config"))
    return load(Sources(options=options, defaults=defaults))


def find_file(explicit: str | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: ``-c``, else $TAILRACE_CONFIG, else the first that exists, else none."""
    if named := explicit or environ.get("TAILRACE_CONFIG"):
        return Path(named)
    return next((path for path in map(Path, FILES) if _is_there(path)), None)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # so it is named, with the reason, not passed over


def changed_keys(old: Config, new: Config) -> Iterable[str]:
    """Keys whose effective value differs, sorted."""
    keys = old.values.keys() | new.values.keys()
    return sorted(
        key
        for key in keys
        if key not in old.values
        or key not in new.values
        or old.values[key].text != new.values[key].text
    )


# ── building ─────────────────────────────────────────────────────────────────────────────────


def build(values: Mapping[str, Value]) -> Config:
    """Checked values as a Config."""

    def get(key: str) -> Any:
        return values[key].parsed

    return Config(
        broker=BrokerConfig(
            id=get("broker.id"),
            rack=get("broker.rack"),
            auto_create=get("broker.auto_create"),
            shutdown_timeout_s=get("broker.shutdown_timeout"),
        ),
        listeners=_build_listeners(values),
        storage=StorageConfig(
            data_dir=get("storage.data_dir"),
            min_free=get("storage.min_free"),
            verify_on_start=get("storage.verify_on_start"),
            cleaner_rate_bytes=get("storage.cleaner_rate"),
            max_size_bytes=get("storage.max_size"),
            sync_interval_s=get("storage.sync_interval"),
        ),
        topic=build_topic(
            {k.removeprefix("topic."): v for k, v in values.items() if k.startswith("topic.")}
        ),
        cluster=ClusterConfig(
            metadata=get("cluster.metadata"),
            etcd=get("cluster.etcd"),
            prefix=get("cluster.prefix"),
            etcd_ca=get("cluster.etcd_ca"),
            etcd_cert=get("cluster.etcd_cert"),
            etcd_key=get("cluster.etcd_key"),
            etcd_user=get("cluster.etcd_user"),
            etcd_password_file=get("cluster.etcd_password_file"),
            session_timeout_s=get("cluster.session_timeout"),
            replica_lag_max_s=get("cluster.replica_lag_max"),
            peer_listener=get("cluster.peer_listener"),
            peer_ca=get("cluster.peer_ca"),
            catch_up_rate_bytes=get("cluster.catch_up_rate"),
        ),
        group=GroupConfig(
            session_timeout_min_ms=round(get("group.session_timeout_min") * 1000),
            session_timeout_max_ms=round(get("group.session_timeout_max") * 1000),
            assign_delay_s=get("group.assign_delay"),
            members_max=get("group.members_max"),
            verdict_window_s=get("group.verdict_window"),
        ),
        limits=LimitsConfig(
            connections=get("limits.connections"),
            connections_per_ip=get("limits.connections_per_ip"),
            request_size_bytes=get("limits.request_size"),
            fetch_size_bytes=get("limits.fetch_size"),
            request_memory_bytes=get("limits.request_memory"),
            partitions_per_topic=get("limits.partitions_per_topic"),
            partitions_per_broker=get("limits.partitions_per_broker"),
            idle_connection_s=get("limits.idle_connection"),
        ),
        http=HttpConfig(bind=get("http.bind"), token_file=get("http.token_file")),
        security=SecurityConfig(
            allow_insecure=get("security.allow_insecure"),
            tls_cert=get("security.tls_cert"),
            tls_key=get("security.tls_key"),
        ),
        log=LoggingConfig(level=get("log.level"), format=get("log.format")),
        metrics=MetricsConfig(topics_max=get("metrics.topics_max")),
        values=values,
    )


def _build_listeners(values: Mapping[str, Value]) -> tuple[ListenerConfig, ...]:
    names = sorted({key.split(".")[1] for key in values if key.startswith("listeners.")})
    return tuple(
        ListenerConfig(
            name=name,
            bind=values[f"listeners.{name}.bind"].parsed,
            advertise=values[f"listeners.{name}.advertise"].parsed,
            tls=values[f"listeners.{name}.tls"].parsed,
        )
        for name in names
    )


def build_topic(topic: Mapping[str, Value]) -> TopicConfig:
    """The settings of one topic, by name without section."""
    retention_ms = _ms_or_none(topic["retention"].parsed)
    cleanup: Cleanup = topic["cleanup"].parsed
    lag_max_ms = round(topic["compaction_lag_max"].parsed * 1000)
    age = topic["segment_age"]
    age_ms = round(age.parsed * 1000)
    if age.source == "default" and retention_ms is not None and cleanup != "compact":
        # A segment goes as a whole: one that spans the retention would keep records twice as long.
        age_ms = max(1, min(age_ms, retention_ms // 8))
    if cleanup != "delete":
        age_ms = min(age_ms, lag_max_ms)  # only a closed segment can be compacted
    return TopicConfig(
        partitions=topic["partitions"].parsed,
        replicas=topic["replicas"].parsed,
        min_isr=topic["min_isr"].parsed,
        durability=topic["durability"].parsed,
        cleanup=cleanup,
        retention_ms=retention_ms,
        retention_size_bytes=topic["retention_size"].parsed,
        segment_size_bytes=topic["segment_size"].parsed,
        segment_age_ms=age_ms,
        max_record_bytes=topic["max_record"].parsed,
        timestamp_ahead_max_ms=round(topic["timestamp_ahead_max"].parsed * 1000),
        compaction_lag_max_ms=lag_max_ms,
        tombstone_retention_ms=round(topic["tombstone_retention"].parsed * 1000),
        compaction_dirty_ratio=topic["compaction_dirty_ratio"].parsed,
        on_full=topic["on_full"].parsed,
    )


def _ms_or_none(seconds: float) -> int | None:
    return None if seconds == math.inf else round(seconds * 1000)


__all__ = [
    "Address",
    "BrokerConfig",
    "Config",
    "Free",
    "Given",
    "GroupConfig",
    "HttpConfig",
    "LimitsConfig",
    "ListenerConfig",
    "LoggingConfig",
    "MetricsConfig",
    "SecurityConfig",
    "Source",
    "Sources",
    "StorageConfig",
    "TopicConfig",
    "Value",
    "changed_keys",
    "examine",
    "find_file",
    "from_mapping",
    "load",
]
