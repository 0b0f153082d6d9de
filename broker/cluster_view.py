"""What the metadata store said when it was last read, as one value (pure).

Every decision of a broker is a function of such a view, and every change it leads to is compared
with the revisions in it: a view that is old decides nothing wrong, it only fails to decide.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tailrace.broker.catalog import Catalog, Deletion, Leadership
from tailrace.broker.members import BrokerRecord

PartitionId = tuple[bytes, int]  # topic id, partition


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Brokers, topics and who leads them."""

    brokers: Mapping[str, BrokerRecord] = field(default_factory=dict[str, BrokerRecord])
    draining: frozenset[str] = frozenset()  # about to stop
    drains: frozenset[str] = frozenset()  # an operator wants to be rid of them
    controller: str | None = None
    controller_revision: int = 0
    catalog: Catalog = field(default_factory=Catalog)
    leaderships: Mapping[PartitionId, Leadership] = field(
        default_factory=dict[PartitionId, Leadership]
    )
    deletions: Mapping[bytes, Deletion] = field(default_factory=dict[bytes, Deletion])
    orphans: frozenset[PartitionId] = frozenset()  # keys of partitions without a topic

    def alive(self, broker_id: str) -> bool:
        """Whether it is registered: its lease, a hint of liveness, has not ended (R13)."""
        return broker_id in self.brokers

    def may_lead(self, broker_id: str) -> bool:
        """Whether it should be given leaderships."""
        return self.alive(broker_id) and broker_id not in self.draining | self.drains
