"""What the chains of faults have in common: several steps that chance alone seldom puts together.

A share of the seeds has a chain, by a chance of its own: the others go as they would without it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from random import Random
from typing import ClassVar

from tailrace.simulation.run import SimCluster
from tailrace.simulation.world import Common, SimNode


class Chain(ABC):
    """One strike after the other. Whoever looks after the brokers starts them again."""

    NAME: ClassVar[str]  # in the trace and among the faults
    SHARE: ClassVar[float]  # of the seeds

    def __init__(
        self, cluster: SimCluster, rng: Random, rests: dict[str, float], struck: dict[str, int]
    ) -> None:
        """``rests``: how long a broker that is down stays so; ``struck`` counts the strikes."""
        assert cluster.common is not None
        self.on = rng.random() < self.SHARE
        self._common: Common = cluster.common
        self._nodes: Mapping[str, SimNode] = cluster.nodes
        self._trace = cluster.trace
        self._rng = rng
        self._rests = rests
        self._struck = struck

    @abstractmethod
    async def run(self) -> None:
        """Until cancelled; what is broken then is healed by ``ClusterChaos.heal``."""

    def _note(self) -> None:
        self._trace.note(self.NAME)
        self._struck[self.NAME] = self._struck.get(self.NAME, 0) + 1
