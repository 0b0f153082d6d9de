"""``Cluster``: real brokers for tests, each in a thread of its own, with one metadata store.

They replicate to each other over real sockets. Whatever works on a ``Broker`` works on the cluster
as a whole; each of ``brokers`` can be stopped, killed, broken and started again by itself.
"""

import time
import uuid
from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from tailrace.broker.catalog import Leadership, partition_key
from tailrace.client.records import ConfigValue
from tailrace.protocol import texts
from tailrace.testing.blocking import outside_loops
from tailrace.testing.broker import EVENTS_SHOWN, Broker
from tailrace.testing.faults import ApiName, Faults
from tailrace.testing.groups import Groups
from tailrace.testing.machine import Among
from tailrace.testing.process import Process
from tailrace.testing.records import POLL_S
from tailrace.testing.shared_store import URL, SharedKeep
from tailrace.testing.wires import Wiring

BROKERS = 3
SETTLED_S = 10.0  # until every broker knows all others, and until a partition has a leader
SESSION_TIMEOUT = "2s"  # a broker that was killed is replaced so much later


class Member(Broker):
    """One broker of a ``Cluster``. Its ``url`` is its own; the cluster's names all of them."""

    def __init__(
        self,
        broker_id: str,
        keep: SharedKeep,
        wiring: Wiring,
        *,
        data_dir: Path | None,
        config: Mapping[str, ConfigValue],
        http: bool,
    ) -> None:
        self.broker_id = broker_id
        self._wiring = wiring
        settings: dict[str, ConfigValue] = {
            "broker.id": broker_id,
            "cluster.metadata": "etcd",
            "cluster.etcd": URL,
            "cluster.session_timeout": SESSION_TIMEOUT,
            **config,
        }
        self._set_up(data_dir, settings, http=http, among=Among(broker_id, keep, wiring))
        self.start()

    def start(self) -> None:
        """Serve (again), with the data that is there; nothing happens if it does already."""
        super().start()
        for _, port in self._listeners.values():
            self._wiring.ports[port] = self.broker_id

    @property
    def running(self) -> bool:
        """Whether it has a process."""
        return self._process is not None and self._process.alive

    def kill(self) -> None:
        """Like SIGKILL: nothing more is written or said; what was written stays."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def power_cut(self) -> None:
        """As after ``kill``, and what was not synced is gone, too."""
        self.kill()
        self._machine.lose_unsynced()


class ClusterFaults(Faults):
    """The faults of a broker, on all of them at once, and those that only a cluster has."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster

    @contextmanager
    def partition(self, *sides: Collection[str]) -> Generator[None]:
        """Nothing passes between brokers of different sides; who is on none reaches all.

        Clients reach everybody. "metadata" on a side puts the metadata store there.
        """
        known = {*self._cluster.brokers, "metadata"}
        if strange := {name for side in sides for name in side} - known:
            raise ValueError(f"no such broker: {', '.join(sorted(strange))}")
        cut = self._cluster.wiring.cut(sides)
        try:
            yield
        finally:
            self._cluster.wiring.mend(cut)

    @contextmanager
    def metadata_down(self) -> Generator[None]:
        """The metadata store answers nobody. Leases go on when it is back."""
        self._cluster.keep.down = True
        try:
            yield
        finally:
            self._cluster.keep.come_back()

    @contextmanager
    def refuse_connections(self) -> Generator[None]:
        with ExitStack() as all_of_them:
            for faults in self._each():
                all_of_them.enter_context(faults.refuse_connections())
            yield

    @contextmanager
    def drop_connections(self, api: ApiName | None = None) -> Generator[None]:
        with ExitStack() as all_of_them:
            for faults in self._each():
                all_of_them.enter_context(faults.drop_connections(api))
            yield

    @contextmanager
    def black_hole(self) -> Generator[None]:
        with ExitStack() as all_of_them:
            for faults in self._each():
                all_of_them.enter_context(faults.black_hole())
            yield

    @contextmanager
    def delay(self, seconds: float, api: ApiName | None = None) -> Generator[None]:
        with ExitStack() as all_of_them:
            for faults in self._each():
                all_of_them.enter_context(faults.delay(seconds, api))
            yield

    @contextmanager
    def error(
        self, code: str, api: ApiName | None = None, times: int | None = None
    ) -> Generator[None]:
        """``times``: at each broker."""
        with ExitStack() as all_of_them:
            for faults in self._each():
                all_of_them.enter_context(faults.error(code, api, times))
            yield

    @contextmanager
    def disk_full(self) -> Generator[None]:
        with ExitStack() as all_of_them:
            for faults in self._each():
                all_of_them.enter_context(faults.disk_full())
            yield

    @contextmanager
    def slow_disk(self, seconds: float) -> Generator[None]:
        with ExitStack() as all_of_them:
            for faults in self._each():
                all_of_them.enter_context(faults.slow_disk(seconds))
            yield

    @contextmanager
    def pause(self) -> Generator[None]:
        with ExitStack() as all_of_them:
            for faults in self._each():
                all_of_them.enter_context(faults.pause())
            yield

    def _each(self) -> list[Faults]:
        return [one.faults for one in self._cluster.members.values() if one.running]


class Cluster(Broker):
    """Brokers n1, n2 ... that serve from the construction until ``stop``.

    ``data_dir`` None: the logs are in memory; else each has a directory of its name in there.
    ``config`` is that of every broker. Topics have min(3, brokers) replicas unless told otherwise.
    """

    def __init__(
        self,
        brokers: int = BROKERS,
        *,
        data_dir: Path | None = None,
        config: Mapping[str, ConfigValue] | None = None,
        http: bool = False,
    ) -> None:
        if not 1 <= brokers <= 9:
            raise ValueError(f"brokers={brokers} is not 1 to 9")
        Groups.__init__(self, "")
        self.data_dir = data_dir
        self.http_url = None
        self.keep = SharedKeep()
        self.wiring = Wiring()
        self._cluster_faults = ClusterFaults(self)
        self.members: dict[str, Member] = {}
        try:
            for broker_id in (f"n{number}" for number in range(1, brokers + 1)):
                if data_dir is not None:
                    (data_dir / broker_id).mkdir(exist_ok=True)
                self.members[broker_id] = Member(
                    broker_id,
                    self.keep,
                    self.wiring,
                    data_dir=None if data_dir is None else data_dir / broker_id,
                    config=config or {},
                    http=http,
                )
            self._settle()
        except BaseException:
            for member in self.members.values():
                member.kill()
            raise
        self.url = _url_of(self.members.values())
        self.http_url = next(iter(self.members.values())).http_url

    def __enter__(self) -> "Cluster":
        self.start()
        return self

    @property
    def faults(self) -> ClusterFaults:
        """What can go wrong with all brokers at once, and between them."""
        return self._cluster_faults

    @property
    def brokers(self) -> dict[str, Broker]:
        """Each of them, by id."""
        return dict(self.members)

    # ── one broker of it ─────────────────────────────────────────────────────────────────────

    @outside_loops
    def leader(self, topic: str, partition: int) -> str:
        """The id of the broker that leads a partition; waited for while nobody does.

        As the metadata store has it, so also while some brokers are cut off from it.
        TopicNotFound T010, PartitionNotFound T011; AssertionError after 10 s without a leader.
        """
        described = self._admin.describe_topic(topic)
        if not 0 <= partition < described.partitions:
            raise texts.partition_not_found(topic, partition, partitions=described.partitions)
        key = partition_key(uuid.UUID(described.topic_id).bytes, partition)
        deadline = time.monotonic() + SETTLED_S
        while True:
            stored = self.keep.get(key)
            if stored is not None:
                leader = Leadership.from_json(stored.value, stored.revision).leader
                if leader is not None and self.members[leader].running:
                    return leader
            if time.monotonic() >= deadline:
                told = self._last_events()
                raise AssertionError("\n".join([f"{topic}[{partition}] has no leader", *told]))
            time.sleep(POLL_S)

    def kill(self, broker: str) -> None:
        """End one like SIGKILL; back, with its data, by ``brokers[broker].start()``.

        Others take over when its lease has ended, 2 s later unless ``config`` has another
        ``cluster.session_timeout``.
        """
        self.members[broker].kill()

    def kill_leader(self, topic: str, partition: int) -> str:
        """``kill`` whoever leads a partition, and say who that was."""
        leader = self.leader(topic, partition)
        self.kill(leader)
        return leader

    # ── all of them ──────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Start those that do not run."""
        for member in self.members.values():
            member.start()
        self._settle()

    def stop(self) -> None:
        """Close the clients made here, then stop all gracefully; data stays for ``start``."""
        self.close_clients()
        for member in self.members.values():
            member.stop()

    def restart(self, *, keep_data: bool = True, crash: bool = False) -> None:
        """Stop all, start all, on the same ports, clients left as they are.

        ``crash``: like a power cut of all of them; ``keep_data=False``: with empty disks, and
        nothing is known of any topic.
        """
        if not keep_data:
            raise ValueError("keep_data=False is for one broker: brokers[name].restart(...)")
        for member in self.members.values() if crash else ():
            member.kill()
        for member in self.members.values():
            member.power_cut() if crash else member.stop()
        self.start()

    def advance(
        self, *, seconds: float = 0, minutes: float = 0, hours: float = 0, days: float = 0
    ) -> None:
        """Move the wall clocks of all; see ``Broker.advance``."""
        for member in self.members.values():
            member.advance(seconds=seconds, minutes=minutes, hours=hours, days=days)

    @outside_loops
    def expire_member(self, group: str, member_id: str) -> None:
        """As ``Broker.expire_member``, at the group's coordinator."""
        coordinator = self._admin.describe_group(group).coordinator
        self.members[coordinator].expire_member(group, member_id)

    def events(self, last: int = EVENTS_SHOWN) -> list[dict[str, object]]:
        """The newest log lines of all brokers that run, oldest first."""
        running = [member for member in self.members.values() if member.running]
        found = [event for member in running for event in member.events(last)]
        found.sort(key=lambda event: cast("int", event["time"]))
        return found[-last:] if last > 0 else []

    @property
    def process(self) -> Process:
        raise AttributeError("a cluster has a process per broker: brokers[name]")

    def _settle(self) -> None:
        """Until every broker knows all others."""
        ids = set(self.members)
        deadline = time.monotonic() + SETTLED_S
        for member in self.members.values():
            while not ids <= member.process.known_brokers():
                assert time.monotonic() < deadline, f"{member.broker_id} does not know all others"
                time.sleep(POLL_S / 4)

    def _last_events(self) -> list[str]:
        events = self.events()
        return [f"last {len(events)} events:", *(f"  {event}" for event in events)]


def _url_of(members: Collection[Member]) -> str:
    return "tailrace://" + ",".join(member.url.removeprefix("tailrace://") for member in members)
