"""The faces of ``Broker`` and ``Cluster`` on one that is not ours: ``pytest --tailrace-url``."""

from typing import NoReturn

import pytest

from tailrace.testing.blocking import outside_loops
from tailrace.testing.broker import Broker
from tailrace.testing.cluster import Cluster, ClusterFaults
from tailrace.testing.faults import Faults
from tailrace.testing.records import Records


class RemoteBroker(Broker):
    """Topics, records and groups work; whatever needs the process skips the test."""

    def __init__(self, url: str) -> None:
        Records.__init__(self, url)
        self.data_dir = None
        self.http_url = None

    @property
    def faults(self) -> Faults:
        _skip("faults")

    def start(self) -> None:
        _skip("start()")

    def stop(self) -> None:
        """Only close the clients made here."""
        self.close_clients()

    def restart(self, *, keep_data: bool = True, crash: bool = False) -> None:
        _skip("restart()")

    def advance(
        self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0
    ) -> None:
        _skip("advance()")

    def expire_member(self, group: str, member_id: str) -> None:
        _skip("expire_member()")

    def events(self, last: int = 20) -> list[dict[str, object]]:
        _skip("events()")


class RemoteCluster(RemoteBroker, Cluster):
    """Topics, records, groups and ``leader`` work."""

    def __init__(self, url: str) -> None:
        RemoteBroker.__init__(self, url)
        self.members = {}

    @property
    def faults(self) -> ClusterFaults:
        _skip("faults")

    @property
    def brokers(self) -> dict[str, Broker]:
        _skip("brokers")

    @outside_loops
    def leader(self, topic: str, partition: int) -> str:
        """As the cluster says; AssertionError if nobody leads it."""
        leader = self._admin.describe_topic(topic).partition_list[partition].leader
        assert leader is not None, f"{topic}[{partition}] has no leader"
        return leader

    def kill(self, broker: str) -> None:
        _skip("kill()")

    def kill_leader(self, topic: str, partition: int) -> str:
        _skip("kill_leader()")


def _skip(what: str) -> NoReturn:
    pytest.skip(f"{what} needs a broker of the test's own; --tailrace-url gives a cluster")
