"""How a broker comes into its cluster: the store, its id, what it no longer counts for.

In this order, before anything is opened, so that nobody counts on what is not there:

1. the store answers (``open_store``), and says which cluster it is;
2. no other broker has this one's id (``wait_for_id``);
3. what a lost or replaced directory held, and what an unclean stop may have cost, is taken back
   from every in-sync set (``forget_lost``, R7).
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Literal
from urllib.parse import urlsplit

import trio

from tailrace.broker import election
from tailrace.broker.catalog import Leadership
from tailrace.broker.cluster_view import ClusterView, PartitionId
from tailrace.broker.config import Config, Durability
from tailrace.broker.kinds import Address
from tailrace.broker.members import BrokerRecord, IdTaken, PeerAddress
from tailrace.broker.metadata import MetadataStore
from tailrace.broker.node import Node
from tailrace.broker.registry import Conflict, Registry
from tailrace.broker.world import World
from tailrace.protocol import texts_config, texts_storage
from tailrace.protocol.errors import ConfigError, MetadataUnavailable
from tailrace.protocol.version import VERSION
from tailrace.storage.directory import DataDirectory

log = logging.getLogger("tailrace.broker.joining")

PATIENCE_S = 30.0  # with a store that does not answer, before the start fails
AGAIN_S = 0.5


def clustered(config: Config) -> bool:
    """Whether other brokers may be there, too."""
    return config.cluster.metadata != "embedded"


def store_of(config: Config) -> str:
    """Where the metadata is, for people."""
    return ",".join(config.cluster.etcd) or config.storage.data_dir


async def open_store(world: World, config: Config, nursery: trio.Nursery) -> MetadataStore:
    """The metadata store; T100 if it does not answer for ``PATIENCE_S``, T082."""
    until = trio.current_time() + (PATIENCE_S if clustered(config) else 0.0)
    while True:
        try:
            return await world.open_metadata(config.storage.data_dir, nursery)
        except MetadataUnavailable as error:
            if trio.current_time() >= until:
                raise
            log.warning(
                "waiting for the metadata store: %s",
                error,
                extra={"event": "metadata.unreachable", "code": error.code},
            )
        await trio.sleep(AGAIN_S)


def record_of(
    config: Config,
    addresses: Mapping[str, tuple[str, int]],
    *,
    http: str | None,
    directory: DataDirectory,
    since: int,
) -> BrokerRecord:
    """What others are told of this broker. ``addresses``: by listener, as advertised."""
    tls = {one.name: one.tls for one in config.listeners}
    return BrokerRecord(
        broker_id=config.broker.id,
        listeners={
            name: PeerAddress(host, port, tls[name]) for name, (host, port) in addresses.items()
        },
        http=http and _reached(http, addresses["client"][0]),
        rack=config.broker.rack or None,
        version=VERSION,
        since=since,
        directory=directory.directory_id,
    )


def _reached(http: str, host: str) -> str:
    """The URL as others reach it: where HTTP is bound to all addresses, at this host."""
    url = urlsplit(http)
    bound = Address(url.hostname or "", url.port or 0)
    return f"http://{Address(host, bound.port)}" if bound.is_wildcard else http


async def wait_for_id(registry: Registry, config: Config, directory: DataDirectory) -> None:
    """Return when nobody with another data directory is registered as this broker. T082, T100.

    Whoever was, and died, is gone after its session timeout.
    """
    until = trio.current_time() + 2 * config.cluster.session_timeout_s
    while (other := await registry.registered(config.broker.id)) is not None:
        if other.directory == directory.directory_id:
            return  # an earlier process of this broker: the directory is locked by this one
        if trio.current_time() >= until:
            raise id_taken(config, other)
        await trio.sleep(AGAIN_S)


async def register(node: Node, record: BrokerRecord) -> None:
    """Be one of the brokers. T100 if the store does not answer for ``PATIENCE_S``, T082."""
    until = trio.current_time() + (PATIENCE_S if clustered(node.config) else 0.0)
    while True:
        try:
            await node.session.register(record)
        except IdTaken as error:
            raise id_taken(node.config, error.other) from error
        except (MetadataUnavailable, Conflict):
            if trio.current_time() >= until:
                raise
            await trio.sleep(AGAIN_S)
        else:
            return


def id_taken(config: Config, other: BrokerRecord) -> ConfigError:
    """T082: two brokers have one id."""
    return texts_config.settings_contradict(
        "broker.id",
        origin=config.values["broker.id"].origin,
        problem=f"broker {other.broker_id} runs at {other.where}, with another data directory",
        hint="Give each broker an id of its own.",
    )


def check_cluster(directory: DataDirectory, cluster_id: str) -> None:
    """Raise T091 if the embedded store is that of another cluster than its directory."""
    if directory.cluster_id != cluster_id:
        raise texts_storage.directory_foreign(
            directory.path,
            broker=directory.broker_id,
            cluster=directory.cluster_id,
            configured_broker=directory.broker_id,
            configured_cluster=cluster_id,
        )


async def forget_lost(node: Node, directory: DataDirectory) -> None:
    """Leave every ISR and ELR for which this directory does not hold what is counted on (R7).

    T100; nothing is opened before that succeeded.
    """
    registry, views, broker_id = node.registry, node.views, node.broker_id
    known = await registry.directory()
    why: Literal["other", "unclean", ""] = "" if directory.was_clean else "unclean"
    if known != directory.directory_id:
        why = "other"
    durability: dict[bytes, Durability] = {
        topic_id: node.topics.config_of(one).durability
        for topic_id, one in views.view.catalog.by_id.items()
    }
    while lost := dict(_lost(views.view, broker_id, why, durability)):
        log.warning(
            "broker %s leaves the in-sync sets of %d partitions: %s",
            *(broker_id, len(lost)),
            "it has another data directory than before"
            if why == "other"
            else "it was not stopped cleanly, and their durability is 'replicated'",
            extra={"event": "broker.left_isr", "code": None, "partitions": len(lost)},
        )
        await registry.change(lost)
        await views.read()
    if known != directory.directory_id:
        await registry.put_directory(directory.directory_id)
    for where, one in views.view.leaderships.items():
        unsynced = why == "unclean" and durability.get(where[0]) == "replicated"
        if unsynced and one.leader_epoch and broker_id in election.candidates(one):
            _tell_last(views.view.catalog.by_id[where[0]].name, where[1], broker_id)
            node.metrics.data_loss_possible.inc()


def _lost(
    view: ClusterView,
    broker_id: str,
    why: Literal["other", "unclean", ""],
    durability: Mapping[bytes, Durability],
) -> Iterator[tuple[PartitionId, Leadership]]:
    for where, one in view.leaderships.items():
        left = None
        if why == "other":
            left = election.wiped(one, broker_id)
        elif why and durability.get(where[0]) == "replicated":
            left = election.restarted_unclean(one, broker_id)
        if left is not None:
            yield where, left


def _tell_last(topic: str, number: int, broker_id: str) -> None:
    """The last copy of a partition that acknowledges before it syncs was not stopped cleanly."""
    log.error(
        "%s[%d]: broker %s has the last copy, and was not stopped cleanly: acknowledged records"
        " may be lost",
        *(topic, number, broker_id),
        extra={
            **{"event": "data-loss-possible", "code": None, "topic": topic, "partition": number},
            "alike": f"{topic}:{number}",
        },
    )
