"""``client.admin``: topics, consumer groups, and what the cluster looks like.

Each call asks any broker, waits out an outage and tries again until ``request_timeout``, then
raises RequestTimeout T034 or the last error. A try whose answer got lost may have been carried
out; the next one then finds the topic made or gone as asked, and that counts as success.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

import anyio

from tailrace.client import erasing, grouping
from tailrace.client.admin_cluster import ClusterAdmin
from tailrace.client.coordinator import find_coordinator
from tailrace.client.metrics import instruments
from tailrace.client.offsets import list_offsets
from tailrace.client.records import At, ConfigValue
from tailrace.client.retry import Backoff
from tailrace.protocol import shaping
from tailrace.protocol.config_items import config_changes, config_items
from tailrace.protocol.errors import GroupNotFound, TailraceError, TopicExists, TopicNotFound
from tailrace.protocol.messages import (
    DeleteGroupRequest,
    DeleteGroupResponse,
    DescribeGroupRequest,
    DescribeGroupResponse,
    ListGroupsRequest,
    ListGroupsResponse,
    Request,
    ResetOffsetsRequest,
    ResetOffsetsResponse,
    Response,
)
from tailrace.protocol.messages_admin import (
    AlterTopicRequest,
    CreateTopicRequest,
    DeleteRecordsResponse,
    DeleteTopicRequest,
    DeleteTopicResponse,
    DescribeClusterRequest,
    DescribeClusterResponse,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    ErasureResponse,
    GetErasureRequest,
    TopicResponse,
)
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

if TYPE_CHECKING:
    from tailrace.client.client import Client

R = TypeVar("R", bound=Response)


class Admin(ClusterAdmin):
    """Made by ``client.admin``.

    Every call raises UsageError T053-T055 for misuse, ConnectError T005 after ``max_outage``.
    Cancelled, a change may still take effect.
    """

    def __init__(self, client: "Client") -> None:
        self._client = client

    async def create_topic(
        self,
        name: str,
        *,
        partitions: int | None = None,
        replicas: int | None = None,
        config: Mapping[str, ConfigValue] | None = None,
        exist_ok: bool = False,
    ) -> TopicDetail:
        """Create a topic and return it, ready for use.

        None leaves a count to the broker's ``[topic]`` settings; the keys of ``config`` are
        theirs too, its numbers are seconds or bytes. With ``exist_ok`` an existing topic is
        returned.

        Raises TopicExists T012 (with ``exist_ok`` only if a value given here differs),
        InvalidName T013, ConfigError T080-T083.
        """
        items = config_items(config or {})
        request = CreateTopicRequest(name, partitions, replicas, items, exist_ok)
        try:
            response = await self._ask(request, TopicResponse, repeated=TopicExists)
        except _Repeated:
            request = CreateTopicRequest(name, partitions, replicas, items, True)
            response = await self._ask(request, TopicResponse)
        self._client.cluster.invalidate(name)
        return shaping.topic_detail(response.topic)

    async def delete_topic(self, name: str, *, missing_ok: bool = False) -> None:
        """Delete a topic and its records. The name may be used again at once.

        Raises TopicNotFound T010 unless ``missing_ok``; PartitionOffline T033 where the topic is
        gone, but not yet all of its files: the broker goes on removing them by itself.
        """
        try:
            request = DeleteTopicRequest(name)
            await self._ask(request, DeleteTopicResponse, repeated=TopicNotFound, lasting=("T033",))
        except _Repeated:
            pass
        except TopicNotFound:
            if not missing_ok:
                raise
        finally:
            self._client.cluster.invalidate(name)

    async def list_topics(self, *, internal: bool = False) -> list[TopicInfo]:
        """All topics, sorted by name; ``internal``: those whose names begin with ``__`` too."""
        response = await self._ask(DescribeTopicsRequest(None, internal), DescribeTopicsResponse)
        return sorted(
            (shaping.topic_info(topic) for topic in response.topics), key=lambda t: t.name
        )

    async def describe_topic(self, name: str) -> TopicDetail:
        """One topic with its settings and partitions. Raises TopicNotFound T010."""
        response = await self._ask(DescribeTopicsRequest((name,), True), DescribeTopicsResponse)
        return shaping.topic_detail(response.topics[0])

    async def alter_topic(
        self, name: str, *, config: Mapping[str, ConfigValue | None]
    ) -> TopicDetail:
        """Change settings, all of them or none; None takes a setting back to its default.

        Raises TopicNotFound T010, ConfigError T080-T083.
        """
        request = AlterTopicRequest(name, config_changes(config))
        response = await self._ask(request, TopicResponse)
        self._client.cluster.invalidate(name)
        return shaping.topic_detail(response.topic)

    async def delete_records(
        self, topic: str, before: Mapping[int, int | Literal["end"]]
    ) -> dict[int, int]:
        """Remove all records below an offset, by partition; ``"end"``: all there are by now.

        Returns where the logs begin then. They are out of every reader's reach at once; their
        bytes leave the disk soon after. Nothing changes if any partition is refused (T010, T011,
        T041); after another error some may have changed, and asking again is safe.

        Raises TopicNotFound T010, PartitionNotFound T011, PartitionOffline T033,
        OffsetOutOfRange T041 for an offset behind the end; one below the log start is no change.
        """
        request = erasing.delete_records_request(topic, before)
        ends = [TopicPartition(topic, at) for at, offset in before.items() if offset == "end"]
        if ends:  # a second try must not remove what was sent after the first
            found = await list_offsets(self._client, ends, "latest")
            known = {at.partition: offset for at, offset in found.items()}
            request = erasing.delete_records_request(topic, {**before, **known})
        response = await self._ask(request, DeleteRecordsResponse)
        return {one.partition: one.offset for one in response.partitions}

    async def erase(
        self,
        topic: str,
        *,
        keys: Sequence[bytes] = (),
        records: Sequence[tuple[int, int]] = (),
        wait: bool = True,
        timeout: float = 60.0,
    ) -> ErasureReceipt:
        """Erase every record with one of ``keys``, and those at (partition, offset).

        What stands in the topic by now is covered, what is sent afterwards is not. Once
        ``completed_at`` is set no broker delivers any of it again and no file of one holds it;
        the offsets stay gaps. With ``wait=False``, or when ``timeout`` seconds pass,
        ``completed_at`` is None and the broker goes on, also after a restart.

        Raises TopicNotFound T010 (also where the topic is deleted meanwhile, and its bytes with
        it), PartitionNotFound T011, PartitionOffline T033, RequestTimeout T034 where too many
        erasures wait, OffsetOutOfRange T041 for a record outside the log. An unknown key is none:
        ``records`` is 0 then. Cancelled: the broker goes on.
        """
        clock = self._client.clock
        ends_at = clock.now() + timeout
        erasure_id = uuid.UUID(int=self._client.random.getrandbits(128), version=4).bytes
        request = erasing.erase_request(erasure_id, topic, keys, records)
        response = await self._ask(request, ErasureResponse)
        while wait and response.completed_at is None and (left_s := ends_at - clock.now()) > 0:
            try:
                response = await self._wait_erased(topic, erasure_id, left_s)
            except TailraceError as error:
                if not error.retriable or error.code == "T005":
                    raise
        return shaping.erasure_receipt(response)

    async def _wait_erased(self, topic: str, erasure_id: bytes, left_s: float) -> ErasureResponse:
        """The receipt when it is complete, or after a while; an outage is the caller's to bear."""
        wait_s = min(left_s, self._client.options.request_timeout / 2)
        request = GetErasureRequest(topic, erasure_id, int(wait_s * 1000))
        return await self._ask(request, ErasureResponse)

    async def list_groups(self) -> list[GroupInfo]:
        """All consumer groups, sorted by name."""
        response = await self._ask(ListGroupsRequest(), ListGroupsResponse)
        return sorted((shaping.group_info(one) for one in response.groups), key=lambda g: g.name)

    async def describe_group(self, name: str) -> GroupDetail:
        """One group with its members and partitions. Raises GroupNotFound T043."""
        return shaping.group_detail(await self.group(name))

    async def group_lag(self, name: str) -> GroupLag:
        """How far behind a group is, when it has caught up, when it loses records.

        Raises GroupNotFound T043.
        """
        return shaping.group_lag(await self.group(name))

    async def reset_group(
        self,
        name: str,
        *,
        to: At | int | timedelta | Mapping[TopicPartition, int],
        topics: Sequence[str] | None = None,
        partitions: Sequence[TopicPartition] | None = None,
        dry_run: bool = False,
    ) -> list[OffsetChange]:
        """Move a group's committed offsets: all of them or none. Returns what changed.

        ``to``: a place or time for every partition, a ``timedelta`` for so long ago, an offset for
        exactly one partition, or one each. Times are append times: the first record from then on,
        the end if there is none. None given, it is about all partitions that the group reads.
        ``dry_run``: everything is checked, nothing is changed.

        Raises GroupNotFound T043, GroupNotEmpty T044 while there are members, OffsetOutOfRange T041
        for an offset outside its log (nothing is clamped), TopicNotFound T010, PartitionNotFound
        T011, ConfigError T082 for what cannot be.
        """
        client = self._client
        group = await self.group(name)
        found = await grouping.find_partitions(client, group, to, topics, partitions)
        if not found:
            return []
        wanted = await grouping.targets(client, await grouping.find_offsets(client, found, to))
        request = ResetOffsetsRequest(name, wanted, dry_run)
        response = await self._ask(request, ResetOffsetsResponse, group=name)
        return await grouping.changes(client, response.moves)

    async def delete_group(self, name: str, *, missing_ok: bool = False) -> None:
        """Forget a group and what it has committed.

        Raises GroupNotFound T043 unless ``missing_ok``, GroupNotEmpty T044 while it has members.
        """
        request = DeleteGroupRequest(name)
        try:
            await self._ask(request, DeleteGroupResponse, repeated=GroupNotFound, group=name)
        except _Repeated:
            pass
        except GroupNotFound:
            if not missing_ok:
                raise

    async def group(self, name: str) -> DescribeGroupResponse:
        """What the broker says of a group, for whoever shows it. Raises GroupNotFound T043."""
        return await self._ask(DescribeGroupRequest(name), DescribeGroupResponse, group=name)

    async def describe_cluster(self) -> ClusterInfo:
        """Brokers, their health, and what is wrong if anything is."""
        response = await self._ask(DescribeClusterRequest(), DescribeClusterResponse)
        return shaping.cluster_info(response)

    async def _ask(
        self,
        request: Request,
        expected: type[R],
        *,
        repeated: type[TailraceError] | None = None,
        lasting: Collection[str] = (),
        group: str | None = None,
    ) -> R:
        """Try until ``request_timeout``: any broker, or the coordinator of ``group``.

        ``repeated``: the error that means "done already" where an earlier try's answer was lost;
        it is raised as ``_Repeated`` then. ``lasting``: codes that are told at once although they
        pass, as another try would find done what they tell of.
        """
        client = self._client
        client.check()
        backoff = Backoff(client.random)
        ends_at = client.clock.now() + client.options.request_timeout
        uncertain = astray = False
        while True:
            try:
                broker_id = None
                if group and astray:
                    left_s = max(0.001, ends_at - client.clock.now())
                    broker_id = await find_coordinator(client, group, timeout=left_s)
                left_s = max(0.001, ends_at - client.clock.now())
                response, _ = await client.cluster.leader_request(
                    broker_id, request, timeout=left_s
                )
                assert isinstance(response, expected)
                return response
            except TailraceError as error:
                pause_s = backoff.next()
                astray = error.code == "T032"  # who was asked does not coordinate the group
                if uncertain and repeated is not None and isinstance(error, repeated):
                    raise _Repeated from error
                final = not error.retriable or error.code in ("T005", "T034", *lasting)
                if final or client.clock.now() + pause_s >= ends_at:
                    raise
                uncertain = uncertain or error.code == "T001"
                instruments.retried(error.code)
                await anyio.sleep(pause_s)


class _Repeated(Exception):
    """A second try found done what the first one asked."""
