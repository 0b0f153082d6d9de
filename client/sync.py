"""``tailrace.sync``: the SDK for code without an event loop.

Same names, arguments, results and errors as ``tailrace``, without ``await``: ``with``, ``for`` and
``close()`` stand for ``async with``, ``async for`` and ``aclose()``. The objects may be shared by
threads. Ctrl-C interrupts any call; inside a running event loop every call raises UsageError T052.

A client left open flushes its producers for up to two seconds when the interpreter exits.
"""

import ssl
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Literal, Self

from tailrace.client import client as async_client
from tailrace.client.events import EventName, Hook
from tailrace.client.portal import Portal, close_after
from tailrace.client.records import At, ConfigValue
from tailrace.client.shapes import ClientHealth
from tailrace.client.sync_admin import ClusterAdmin
from tailrace.client.sync_consumer import Consumer, PartitionStream
from tailrace.client.sync_opening import Opening
from tailrace.client.sync_producer import Delivery, Producer
from tailrace.protocol.shapes import (
    ClusterInfo,
    ErasureReceipt,
    GroupDetail,
    GroupInfo,
    GroupLag,
    OffsetChange,
    TopicDetail,
    TopicInfo,
    TopicPartition,
)

__all__ = ["Admin", "Client", "Consumer", "Delivery", "PartitionStream", "Producer", "connect"]


def connect(
    url: str | Sequence[str] | None = None,
    *,
    client_id: str | None = None,
    tls: bool | ssl.SSLContext | None = None,
    connect_timeout: float = 5.0,
    request_timeout: float = 10.0,
    max_outage: float | None = None,
    close_timeout: float = 10.0,
    rack: str | None = None,
) -> "Client":
    """A client of the cluster at ``url``; it connects at ``with``. See ``tailrace.connect``."""
    inner = async_client.connect(
        url,
        client_id=client_id,
        tls=tls,
        connect_timeout=connect_timeout,
        request_timeout=request_timeout,
        max_outage=max_outage,
        close_timeout=close_timeout,
        rack=rack,
    )
    return Client(Portal(inner))


class Client(Opening):
    """Use as ``with tailrace.sync.connect() as client``; see ``tailrace.Client``."""

    def __init__(self, portal: Portal) -> None:
        super().__init__(portal)
        self._admin = Admin(portal)

    def __enter__(self) -> Self:
        """Connect; raises ConnectError T001-T004, T120."""
        self._portal.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        close_after(self._portal.close, exc)

    def close(self) -> None:
        """Close consumers, flush producers, disconnect; safe to call again.

        Raises CloseTimeout T026 or FlushError T025 for what was not delivered.
        """
        self._portal.close()

    @property
    def admin(self) -> "Admin":
        """Topics, and what the cluster looks like."""
        return self._admin

    @property
    def cluster_id(self) -> str:
        """The id of the cluster; UsageError T055 before ``with``."""
        return self._portal.run(lambda: self._portal.client.cluster_id)

    def health(self) -> ClientHealth:
        """Whether a broker can be reached right now; never fails."""
        return self._portal.client.health()

    def on(self, event: EventName, hook: Hook) -> None:
        """Call ``hook`` at each such event, in the background thread: it should be quick."""
        self._portal.client.on(event, hook)


class Admin(ClusterAdmin):
    """Made by ``client.admin``; see ``tailrace.Admin``."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    def create_topic(
        self,
        name: str,
        *,
        partitions: int | None = None,
        replicas: int | None = None,
        config: Mapping[str, ConfigValue] | None = None,
        exist_ok: bool = False,
    ) -> TopicDetail:
        """Create a topic and return it; TopicExists T012, InvalidName T013, ConfigError T08x."""
        return self._portal.call(
            self._portal.client.admin.create_topic,
            name,
            partitions=partitions,
            replicas=replicas,
            config=config,
            exist_ok=exist_ok,
        )

    def delete_topic(self, name: str, *, missing_ok: bool = False) -> None:
        """Delete a topic and its records; TopicNotFound T010 unless ``missing_ok``.

        PartitionOffline T033: the topic is gone, but not yet all of its files.
        """
        self._portal.call(self._portal.client.admin.delete_topic, name, missing_ok=missing_ok)

    def list_topics(self, *, internal: bool = False) -> list[TopicInfo]:
        """All topics, sorted by name."""
        return self._portal.call(self._portal.client.admin.list_topics, internal=internal)

    def describe_topic(self, name: str) -> TopicDetail:
        """One topic; TopicNotFound T010."""
        return self._portal.call(self._portal.client.admin.describe_topic, name)

    def alter_topic(self, name: str, *, config: Mapping[str, ConfigValue | None]) -> TopicDetail:
        """Change settings, all or none; None is the default again."""
        return self._portal.call(self._portal.client.admin.alter_topic, name, config=config)

    def delete_records(
        self, topic: str, before: Mapping[int, int | Literal["end"]]
    ) -> dict[int, int]:
        """Remove all records below an offset, by partition; where the logs begin then."""
        return self._portal.call(self._portal.client.admin.delete_records, topic, before)

    def erase(
        self,
        topic: str,
        *,
        keys: Sequence[bytes] = (),
        records: Sequence[tuple[int, int]] = (),
        wait: bool = True,
        timeout: float = 60.0,
    ) -> ErasureReceipt:
        """Erase every record with one of ``keys``, and those at (partition, offset), for good."""
        return self._portal.call(
            self._portal.client.admin.erase,
            topic,
            keys=keys,
            records=records,
            wait=wait,
            timeout=timeout,
        )

    def list_groups(self) -> list[GroupInfo]:
        """All consumer groups, sorted by name."""
        return self._portal.call(self._portal.client.admin.list_groups)

    def describe_group(self, name: str) -> GroupDetail:
        """One group; GroupNotFound T043."""
        return self._portal.call(self._portal.client.admin.describe_group, name)

    def group_lag(self, name: str) -> GroupLag:
        """How far behind a group is; GroupNotFound T043."""
        return self._portal.call(self._portal.client.admin.group_lag, name)

    def reset_group(
        self,
        name: str,
        *,
        to: At | int | timedelta | Mapping[TopicPartition, int],
        topics: Sequence[str] | None = None,
        partitions: Sequence[TopicPartition] | None = None,
        dry_run: bool = False,
    ) -> list[OffsetChange]:
        """Move a group's committed offsets, all or none; T041, T043, T044 while it has members."""
        return self._portal.call(
            self._portal.client.admin.reset_group,
            name,
            to=to,
            topics=topics,
            partitions=partitions,
            dry_run=dry_run,
        )

    def delete_group(self, name: str, *, missing_ok: bool = False) -> None:
        """Forget a group and what it has committed; T043 unless ``missing_ok``, T044."""
        self._portal.call(self._portal.client.admin.delete_group, name, missing_ok=missing_ok)

    def describe_cluster(self) -> ClusterInfo:
        """Brokers, their health, and what is wrong if anything is."""
        return self._portal.call(self._portal.client.admin.describe_cluster)
