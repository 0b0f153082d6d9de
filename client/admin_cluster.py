"""The part of ``client.admin`` that moves leaders and copies between brokers."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from tailrace.protocol import shaping_cluster
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import (
    DescribeMovesRequest,
    DescribeMovesResponse,
    DrainBrokerRequest,
    DrainBrokerResponse,
    ElectLeadersRequest,
    ElectLeadersResponse,
    PartitionRange,
    ReassignRequest,
    ReassignResponse,
    Request,
    Response,
)
from tailrace.protocol.shapes import TopicPartition
from tailrace.protocol.shapes_cluster import DrainStatus, LeaderChange, ReplicaMove

R = TypeVar("R", bound=Response)


class ClusterAdmin:
    """Mixed into ``Admin``. Any broker does all of it; asking again is safe."""

    async def elect_leaders(
        self,
        partitions: Sequence[TopicPartition] = (),
        *,
        topics: Sequence[str] = (),
        unclean: bool = False,
        dry_run: bool = False,
        confirmed: Sequence[LeaderChange] | None = None,
    ) -> list[LeaderChange]:
        """Give partitions back to their preferred leaders; named neither: all of the cluster.

        ``unclean``: partitions that nobody leads get a leader that is up, whatever it lacks. What
        was acknowledged beyond its ``log_end`` is lost; ``missing`` says who may have it. They
        have to be named. ``dry_run``: say what would be done. ``confirmed``: what a dry run
        returned, and somebody said yes to; what would be another election by now is not held.

        Returns those that were not as they shall be; one that stays so has an ``error``. Raises
        TopicNotFound T010, PartitionNotFound T011.
        """
        named = _ranges(partitions, topics)
        if unclean and not named:
            raise ValueError("an unclean election is of partitions or topics that are named")
        yes = None if confirmed is None else shaping_cluster.confirmations(confirmed)
        request = ElectLeadersRequest(named, unclean, dry_run, yes)
        response = await self._ask(request, ElectLeadersResponse)
        return shaping_cluster.leader_changes(response.moves)

    async def reassign(
        self,
        partitions: Sequence[TopicPartition] = (),
        *,
        topics: Sequence[str] = (),
        brokers: Sequence[str] | None = None,
        replicas: int | None = None,
        cancel: bool = False,
        dry_run: bool = False,
    ) -> list[ReplicaMove]:
        """Put copies on other brokers: on ``brokers``, the preferred leader first, or spread.

        Spread over all brokers that take copies, ``replicas`` of each partition (None: as many as
        there are), and what can stay where it is does. ``cancel``: stay with the copies that are
        complete. Returns what is changed; copies are made in the background, see ``list_moves``.

        Raises TopicNotFound T010, PartitionNotFound T011, ConfigError T081 for fewer copies than
        ``min_isr``, T082 for brokers that are none, are drained, or are too few, and for a growth
        that is cancelled in part; PartitionOffline T033 where no copy is complete to stay with.
        """
        named = None if brokers is None else tuple(brokers)
        request = ReassignRequest(_ranges(partitions, topics), named, replicas, cancel, dry_run)
        response = await self._ask(request, ReassignResponse)
        return shaping_cluster.replica_moves(response.moves)

    async def drain_broker(
        self, broker: str, *, cancel: bool = False, dry_run: bool = False
    ) -> DrainStatus:
        """Take everything off a broker for good, or no longer (``cancel``).

        Returns how far that is; asked again, how far it is by then. It is ``done`` when the broker
        holds nothing: then it can be stopped and forgotten. Raises ConfigError T082 for a broker
        that nobody knows.
        """
        request = DrainBrokerRequest(broker, cancel, dry_run)
        return shaping_cluster.drain_status(await self._ask(request, DrainBrokerResponse))

    async def list_moves(self) -> list[ReplicaMove]:
        """Partitions whose copies are not yet where they shall be, by topic and partition."""
        response = await self._ask(DescribeMovesRequest(), DescribeMovesResponse)
        return shaping_cluster.replica_moves(response.moves)

    @abstractmethod
    async def _ask(
        self,
        request: Request,
        expected: type[R],
        *,
        repeated: type[TailraceError] | None = None,
        group: str | None = None,
    ) -> R: ...


def _ranges(
    partitions: Sequence[TopicPartition], topics: Sequence[str]
) -> tuple[PartitionRange, ...]:
    return (
        *(PartitionRange(*at) for at in partitions),
        *(PartitionRange(topic, None) for topic in topics),
    )
