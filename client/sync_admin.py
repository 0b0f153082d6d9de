"""The part of ``tailrace.sync``'s admin that moves leaders and copies between brokers."""

from collections.abc import Sequence

from tailrace.client.portal import Portal
from tailrace.protocol.shapes import TopicPartition
from tailrace.protocol.shapes_cluster import DrainStatus, LeaderChange, ReplicaMove


class ClusterAdmin:
    """Mixed into ``Admin``; see ``tailrace.Admin``."""

    _portal: Portal

    def elect_leaders(
        self,
        partitions: Sequence[TopicPartition] = (),
        *,
        topics: Sequence[str] = (),
        unclean: bool = False,
        dry_run: bool = False,
        confirmed: Sequence[LeaderChange] | None = None,
    ) -> list[LeaderChange]:
        """Give partitions to their preferred leaders; ``unclean``: to whoever is up, with loss."""
        return self._portal.call(
            self._portal.client.admin.elect_leaders,
            partitions,
            topics=topics,
            unclean=unclean,
            dry_run=dry_run,
            confirmed=confirmed,
        )

    def reassign(
        self,
        partitions: Sequence[TopicPartition] = (),
        *,
        topics: Sequence[str] = (),
        brokers: Sequence[str] | None = None,
        replicas: int | None = None,
        cancel: bool = False,
        dry_run: bool = False,
    ) -> list[ReplicaMove]:
        """Put copies on other brokers: on ``brokers``, the preferred leader first, or spread."""
        return self._portal.call(
            self._portal.client.admin.reassign,
            partitions,
            topics=topics,
            brokers=brokers,
            replicas=replicas,
            cancel=cancel,
            dry_run=dry_run,
        )

    def drain_broker(
        self, broker: str, *, cancel: bool = False, dry_run: bool = False
    ) -> DrainStatus:
        """Take everything off a broker for good, or no longer; how far that is."""
        return self._portal.call(
            self._portal.client.admin.drain_broker, broker, cancel=cancel, dry_run=dry_run
        )

    def list_moves(self) -> list[ReplicaMove]:
        """Partitions whose copies are not yet where they shall be."""
        return self._portal.call(self._portal.client.admin.list_moves)
