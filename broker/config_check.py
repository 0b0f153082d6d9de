"""What settings must keep to together: T081, T082, T083 and the loopback rule T085.

Pure: the effective values in, the errors out, in the order a reader would mend them.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tailrace.broker.config_values import Value
from tailrace.broker.kinds import KIB, Address, parse_address
from tailrace.protocol import texts_config as texts
from tailrace.protocol.errors import ConfigError
from tailrace.protocol.units import format_size

REPLICAS_AUTO = 3  # or as many as there are brokers
FRAME_RESERVE_BYTES = 64 * KIB  # what a produce request needs beside its largest record


def check(values: Mapping[str, Value]) -> list[ConfigError]:
    """Everything that is wrong between the values of one configuration."""
    listeners = sorted({key.split(".")[1] for key in values if key.startswith("listeners.")})
    return [
        *_check_listeners(values, listeners),
        *_check_tls_files(values, listeners),
        *_check_loopback(values, listeners),
        *_check_sessions(values),
        *_check_etcd(values),
        *_check_peer_listener(values, listeners),
        *check_topic(
            {key.removeprefix("topic."): v for key, v in values.items() if key[:6] == "topic."},
            request_size_bytes=values["limits.request_size"].parsed,
            brokers=1 if values["cluster.metadata"].parsed == "embedded" else None,
        ),
    ]


def check_topic(
    topic: Mapping[str, Value], *, request_size_bytes: int, brokers: int | None
) -> Iterator[ConfigError]:
    """The rules for one topic's settings (by name, without section), or for the defaults.

    ``brokers``: that could hold it; None: not known, or it is there already.
    """
    replicas = topic["replicas"]
    if brokers is not None and replicas.parsed is not None and replicas.parsed > brokers:
        yield texts.settings_contradict(
            replicas.key,
            origin=replicas.origin,
            problem=f"replicas {replicas.parsed} > brokers {brokers}",
            hint=f'Set replicas = "auto", or at most {brokers}.'
            if brokers > 1
            else 'Set replicas = "auto", or 1.',
        )
    copies: int = replicas.parsed or min(REPLICAS_AUTO, brokers or REPLICAS_AUTO)
    min_isr = topic["min_isr"]
    if min_isr.parsed is not None and min_isr.parsed > copies:
        yield texts.min_isr_above_replicas(
            source=_written(min_isr, replicas), min_isr=min_isr.parsed, replicas=copies
        )
    if topic["durability"].parsed == "replicated" and copies == 1:
        yield texts.replicated_alone(source=topic["durability"].origin)
    if topic["cleanup"].parsed == "compact" and topic["on_full"].parsed == "drop_oldest":
        yield texts.compacted_dropping(source=_written(topic["on_full"], topic["cleanup"]))
    record = topic["max_record"]
    if record.parsed + FRAME_RESERVE_BYTES > request_size_bytes:
        yield texts.settings_contradict(
            record.key,
            origin=record.origin,
            problem=f"max_record {format_size(record.parsed)} + {format_size(FRAME_RESERVE_BYTES)}"
            f" > limits.request_size {format_size(request_size_bytes)}",
            hint="Lower max_record or raise limits.request_size.",
        )


def _check_sessions(values: Mapping[str, Value]) -> Iterator[ConfigError]:
    low, high = values["group.session_timeout_min"], values["group.session_timeout_max"]
    if low.parsed > high.parsed:
        yield texts.settings_contradict(
            low.key,
            origin=_written(low, high),
            problem=f"session_timeout_min {low.text} > session_timeout_max {high.text}",
            hint="Lower session_timeout_min or raise session_timeout_max.",
        )


def _check_peer_listener(
    values: Mapping[str, Value], names: Iterable[str]
) -> Iterator[ConfigError]:
    peer = values["cluster.peer_listener"]
    if peer.parsed not in names:
        yield texts.settings_contradict(
            peer.key,
            origin=peer.origin,
            problem=f"there is no listener '{peer.parsed}'",
            hint=f'Set listeners.{peer.parsed}.bind, or peer_listener = "client".',
        )


def _check_etcd(values: Mapping[str, Value]) -> Iterator[ConfigError]:
    cluster = {key[8:]: value for key, value in values.items() if key.startswith("cluster.")}
    given = [value for name, value in cluster.items() if name[:4] == "etcd" and value.parsed]
    if cluster["metadata"].parsed != "etcd":
        for one in given[:1]:
            yield texts.settings_contradict(
                one.key,
                origin=one.origin,
                problem=f"{one.key} is given, and metadata is {cluster['metadata'].text}",
                hint='Set cluster.metadata = "etcd", or remove it.',
            )
        return
    broker_id, origin = values["broker.id"], cluster["metadata"].origin
    if broker_id.source == "default":
        yield texts.settings_contradict(
            broker_id.key,
            origin=origin,
            problem="metadata etcd needs broker.id",
            hint="Give each broker of the cluster a name of its own.",
        )
    urls: Value = cluster["etcd"]
    if not urls.parsed:
        yield texts.settings_contradict(
            urls.key,
            origin=origin,
            problem="metadata etcd needs cluster.etcd",
            hint='Set cluster.etcd = ["http://127.0.0.1:2379"], with every member.',
        )
        return
    yield from _check_etcd_tls(cluster)
    for first, second in (("etcd_cert", "etcd_key"), ("etcd_user", "etcd_password_file")):
        if bool(cluster[first].parsed) != bool(cluster[second].parsed):
            there, missing = (first, second) if cluster[first].parsed else (second, first)
            yield texts.settings_contradict(
                cluster[missing].key,
                origin=cluster[there].origin,
                problem=f"{there} needs {missing}",
                hint=f"Set cluster.{missing}, or remove cluster.{there}.",
            )
    yield from _check_etcd_password(cluster, values["security.allow_insecure"])


def _check_etcd_tls(cluster: Mapping[str, Value]) -> Iterator[ConfigError]:
    plain = [url for url in cluster["etcd"].parsed if url.startswith("http:")]
    secure = len(plain) < len(cluster["etcd"].parsed)
    wants = [name for name in ("etcd_ca", "etcd_cert", "etcd_key") if cluster[name].parsed]
    if plain and (secure or wants):
        yield texts.settings_contradict(
            cluster["etcd"].key,
            origin=cluster["etcd"].origin,
            problem=f"{plain[0]} is without TLS, and "
            + (f"{wants[0]} is given" if wants else "others are https://"),
            hint="Write all of them as https://, or none, and then without etcd_ca and etcd_cert.",
        )


def _check_etcd_password(cluster: Mapping[str, Value], insecure: Value) -> Iterator[ConfigError]:
    if not cluster["etcd_user"].parsed or insecure.parsed:
        return
    for url in cluster["etcd"].parsed:
        scheme, _, address = url.partition("://")
        if scheme == "http" and not parse_address(address).is_loopback:
            yield texts.settings_contradict(
                cluster["etcd"].key,
                origin=cluster["etcd"].origin,
                problem=f"a password would go to {url} in the clear",
                hint="Use https://, or set security.allow_insecure = true.",
            )
            return


def _written(*values: Value) -> str:
    """The origin of the first that somebody wrote."""
    return next((v.origin for v in values if v.source != "default"), values[0].origin)


def _check_listeners(values: Mapping[str, Value], names: Iterable[str]) -> Iterator[ConfigError]:
    bound: dict[Address, str] = {}
    if values["http.bind"].parsed is not None:
        bound[values["http.bind"].parsed] = "http"
    for name in names:
        section = f"listeners.{name}"
        bind, advertise = values[f"{section}.bind"], values[f"{section}.advertise"]
        if name != "client" and bind.source == "default":
            yield texts.settings_contradict(
                bind.key,
                origin=_written(advertise, values[f"{section}.tls"]),
                problem=f"listener '{name}' has no bind",
                hint=f'Set {bind.key} = "127.0.0.1:7401".',
            )
            continue
        address: Address = bind.parsed
        if address.is_wildcard and advertise.parsed is None:
            yield texts.settings_contradict(
                advertise.key,
                origin=bind.origin,
                problem=f"listener '{name}' binds {address}, which clients cannot be told",
                hint=f"Set {advertise.key} to a name or address that clients reach.",
            )
        if advertise.parsed is not None and advertise.parsed.is_wildcard:
            yield texts.setting_invalid(
                advertise.origin,
                advertise.key,
                value=repr(advertise.text),
                wanted="an address that clients can reach",
            )
        if address.port and address in bound:
            yield texts.settings_contradict(
                bind.key,
                origin=bind.origin,
                problem=f"'{name}' and '{bound[address]}' both bind {address}",
                hint="Give each a port of its own.",
            )
        bound[address] = name


def _check_tls_files(values: Mapping[str, Value], names: Iterable[str]) -> Iterator[ConfigError]:
    cert, key = values["security.tls_cert"], values["security.tls_key"]
    wanted = [name for name in names if values[f"listeners.{name}.tls"].parsed]
    if (wanted or cert.parsed or key.parsed) and not (cert.parsed and key.parsed):
        missing = key if cert.parsed else cert
        source = values[f"listeners.{wanted[0]}.tls"].origin if wanted else _written(cert, key)
        yield texts.settings_contradict(
            missing.key,
            origin=source,
            problem=f"TLS needs {missing.key}",
            hint="Set security.tls_cert and security.tls_key.",
        )


def _check_loopback(values: Mapping[str, Value], names: Iterable[str]) -> Iterator[ConfigError]:
    if values["security.allow_insecure"].parsed:
        return
    for name in names:
        bind, tls = values[f"listeners.{name}.bind"], values[f"listeners.{name}.tls"]
        if not tls.parsed and not bind.parsed.is_loopback:
            yield texts.insecure_bind(
                f"listeners.{name}", bind.text, without="TLS", key=tls.key, source=bind.origin
            )
    http: Any = values["http.bind"]
    if http.parsed is not None and not http.parsed.is_loopback:
        token = values["http.token_file"]
        if not token.parsed:
            yield texts.insecure_bind(
                "http", http.text, without="a token", key=token.key, source=http.origin
            )
