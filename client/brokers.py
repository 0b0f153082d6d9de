"""The brokers that a client knows, and which of them to ask what any of them can answer.

One of them is *home*: it is asked first, as long as it answers. A broker that did not is doubted
for a while: the others come first, as what it knows of the cluster may be old, too.
"""

import math
from collections.abc import Callable, Iterator, Set

from tailrace.client.link import Kind, Link, Watcher
from tailrace.client.options import Address
from tailrace.client.runtime import Runtime
from tailrace.protocol.messages import BrokerAddress

DOUBTED_S = 10.0


class Broker:
    """One broker and its three connections."""

    def __init__(self, runtime: Runtime, watcher: Watcher, broker_id: str, address: Address):
        self.broker_id = broker_id
        self.address = address
        self.late = False  # it was waited for once, in vain: not again while it is dialled
        self.control = Link(runtime, watcher, address)
        self._produce = Link(runtime, watcher, address, self.control)
        self._fetch = Link(runtime, watcher, address, self.control)

    def link(self, kind: Kind) -> Link:
        """The connection of a kind."""
        return {"control": self.control, "produce": self._produce, "fetch": self._fetch}[kind]

    @property
    def up(self) -> bool:
        """Whether it can be asked right now."""
        return self.control.channel is not None

    @property
    def links(self) -> tuple[Link, Link, Link]:
        """All three."""
        return self.control, self._produce, self._fetch

    def close(self, reason: str) -> None:
        """For good."""
        for link in self.links:
            link.close(reason)


class Brokers:
    """See the module. ``by_id`` is read by other threads, too."""

    def __init__(self, runtime: Runtime, watcher: Watcher) -> None:
        self.by_id: dict[str, Broker] = {}
        self.home: Broker | None = None
        self._runtime = runtime
        self._watcher = watcher
        self._doubted: dict[str, float] = {}  # since when

    def add(self, broker_id: str, address: Address) -> Broker:
        """One that nobody has named yet."""
        broker = self.by_id[broker_id] = Broker(self._runtime, self._watcher, broker_id, address)
        return broker

    def learn(
        self, told: tuple[BrokerAddress, ...], leading: Callable[[], set[str]] = set[str]
    ) -> None:
        """What a broker says; whoever it does not name has left. An empty answer says nothing.

        ``leading``: who leads as far as is known. They stay: a list without them is an old one, and
        they are let go with the news that somebody else leads, or nobody.
        """
        for one in told:
            address = Address(one.host, one.port)
            known = self.by_id.get(one.broker_id)
            if known is None or known.address != address:
                moved = self.add(one.broker_id, address)
                if known is not None:
                    self.home = moved if self.home is known else self.home
                    known.close("the broker moved")
        missing = self.by_id.keys() - {one.broker_id for one in told}
        if told and missing:
            for broker_id in sorted(missing - leading()):
                self.by_id.pop(broker_id).close("the broker left the cluster")

    def doubt(self, broker_id: str) -> None:
        """It did not answer, or not as one that knows how things are."""
        self._doubted.pop(broker_id, None)
        self._doubted[broker_id] = self._runtime.clock.now()

    def trust(self, broker_id: str) -> None:
        """It has answered."""
        self._doubted.pop(broker_id, None)

    def doubted(self, broker: Broker) -> bool:
        """Whether that is so, and not long ago."""
        since = self._doubted.get(broker.broker_id, -math.inf)
        return self._runtime.clock.now() < since + DOUBTED_S

    def others_may_come(self) -> bool:
        """Whether somebody who is not doubted is not connected, and nothing speaks against it."""
        return any(
            not (broker.up or broker.late or broker.control.troubled or self.doubted(broker))
            for broker in self.by_id.values()
        )

    def in_turn(self) -> Iterator[Broker]:
        """All of them, whom to ask first first."""
        places = {name: place for place, name in enumerate(self.by_id)}

        def rank(broker: Broker) -> tuple[float, bool, int]:
            name = broker.broker_id
            since = self._doubted[name] if self.doubted(broker) else -math.inf
            return since, broker is not self.home, places[name]

        return iter(sorted(self.by_id.values(), key=rank))

    def reachable(self) -> Broker | None:
        """The first in turn with an open connection; it is home from then on."""
        found = next((broker for broker in self.in_turn() if broker.up), None)
        if found is not None:
            self.home = found
        return found

    def at_work(self, broker_ids: Set[str]) -> None:
        """News of some: those that could not be reached are dialled soon, see ``Link.hurry``."""
        for name in broker_ids & self.by_id.keys():
            for link in self.by_id[name].links:
                link.hurry()

    def wake(self) -> None:
        """Dial those that are not connected."""
        for broker in self.by_id.values():
            broker.control.wake()
