"""The cluster as a client knows it: brokers, their connections, topics and who leads them.

Opened through the bootstrap addresses; from then on brokers are reached where they say they are.
Topics are remembered until somebody finds them wrong (``invalidate``), and all of them are asked
for again every few minutes, which also keeps the control connection from falling idle.

Does not: retry what a caller asked for (``leader_request`` is one attempt), except ``topic``.
"""

import copy
import difflib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import anyio

from tailrace.client.channel import Body, Channel, name_of, open_channel
from tailrace.client.link import Kind, Link
from tailrace.client.metrics import instruments
from tailrace.client.net import reason_of
from tailrace.client.options import Address
from tailrace.client.retry import Backoff
from tailrace.client.runtime import Runtime
from tailrace.client.shapes import ClientHealth
from tailrace.protocol import texts_client
from tailrace.protocol.errors import ConnectError, TailraceError, from_wire
from tailrace.protocol.messages import (
    MetadataRequest,
    MetadataResponse,
    Request,
    Response,
    TopicMetadata,
)

REFRESH_S = 300.0
_CONTINUES_WHICH = {
    "connection refused": "refuses connections",
    "timed out": "does not answer",
    "does not resolve": "does not resolve",
}
_log = logging.getLogger("tailrace.client")


class Broker:
    """One broker and its three connections."""

    def __init__(self, runtime: Runtime, cluster: "Cluster", broker_id: str, address: Address):
        self.broker_id = broker_id
        self.address = address
        self.control = Link(runtime, cluster, address)
        self._produce = Link(runtime, cluster, address, self.control)
        self._fetch = Link(runtime, cluster, address, self.control)

    def link(self, kind: Kind) -> Link:
        """The connection of a kind."""
        return {"control": self.control, "produce": self._produce, "fetch": self._fetch}[kind]

    @property
    def links(self) -> tuple[Link, Link, Link]:
        """All three."""
        return self.control, self._produce, self._fetch

    def close(self, reason: str) -> None:
        """For good."""
        for link in self.links:
            link.close(reason)


@dataclass(slots=True)
class _Fetch:
    """One question for a topic that several tasks may wait for."""

    done: anyio.Event
    topic: TopicMetadata | None = None
    error: TailraceError | None = None


class Cluster:
    """See the module. Made by ``Client``; ``open`` first, ``close`` last."""

    def __init__(self, runtime: Runtime) -> None:
        self.failure: TailraceError | None = None
        self.brokers: dict[str, Broker] = {}
        self._runtime = runtime
        self._cluster_id = ""
        self._state: Literal["connecting", "open", "closed"] = "connecting"
        self._topics: dict[str, TopicMetadata] = {}
        self._fetches: dict[tuple[str, bool], _Fetch] = {}
        self._watchers: list[Callable[[], None]] = []
        self._changed = anyio.Event()
        self._outage_began: float | None = None
        self._outage = 0  # number of the outage, so that a timer knows its own
        self._reason: str | None = None
        self._home: Broker | None = None  # whom to ask what anybody can answer

    # ── opening and closing ──────────────────────────────────────────────────────────────────

    @property
    def cluster_id(self) -> str:
        """The cluster's id; empty before ``open``."""
        return self._cluster_id

    async def open(self) -> None:
        """Reach the cluster within ``connect_timeout``, or raise ConnectError T001-T004, T120."""
        options, clock = self._runtime.options, self._runtime.clock
        began = clock.now()
        attempts: list[tuple[Address, str]] = []
        wrong: ConnectError | None = None
        for number, address in enumerate(options.addresses):
            left_s = options.connect_timeout - (clock.now() - began)
            share_s = max(0.0, left_s) / (len(options.addresses) - number)
            try:
                with anyio.fail_after(share_s):
                    channel = await open_channel(self._runtime, address, None, share_s)
                    await self._settle(channel, began)
                return
            except OSError as error:
                attempts.append((address, reason_of(error)))
            except ConnectError as error:
                if error.code == "T003":
                    raise
                wrong = wrong or error
                attempts.append((address, error.message))
        if wrong is not None:
            raise wrong
        raise _unreachable(attempts, clock.now() - began)

    async def _settle(self, channel: Channel, began: float) -> None:
        """Learn the brokers over the bootstrap connection, and go where they say they are."""
        self._cluster_id = channel.hello.cluster_id
        question = MetadataRequest(topics=(), auto_create=False)
        response, _ = await channel.request(question)
        assert isinstance(response, MetadataResponse)
        self._learn(response)
        broker_id = channel.hello.broker_id
        home = self.brokers.get(broker_id)
        if home is None:
            home = Broker(self._runtime, self, broker_id, channel.address)
            self.brokers[broker_id] = home
        if home.address != channel.address:
            bootstrap, channel = channel, await self._advertised(channel, home, began)
            bootstrap.close()
        self._home = home
        self._state = "open"
        home.control.adopt(channel)
        self._runtime.start_soon(self._keep_fresh, channel.hello.idle_ms / 1000)

    async def _advertised(self, bootstrap: Channel, home: Broker, began: float) -> Channel:
        clock = self._runtime.clock
        left_s = self._runtime.options.connect_timeout - (clock.now() - began)
        try:
            return await open_channel(
                self._runtime, home.address, self._cluster_id, max(0.01, left_s * 0.9)
            )
        except OSError as error:
            reason = _CONTINUES_WHICH.get(reason_of(error), f"fails ({reason_of(error)})")
        except ConnectError as error:
            reason = f"fails ({error.message})"
        bootstrap.close()
        raise texts_client.advertised_unreachable(
            str(bootstrap.address),
            broker=home.broker_id,
            advertised=str(home.address),
            reason=reason,
            elapsed_s=clock.now() - began,
        )

    def close(self) -> None:
        """Close every connection; whoever waits is told."""
        self._state = "closed"
        for broker in self.brokers.values():
            broker.close("the client is closed")
        self._tell()

    # ── what is known ────────────────────────────────────────────────────────────────────────

    async def topic(self, name: str, *, auto_create: bool = False) -> TopicMetadata:
        """Where a topic's partitions are; remembered, else asked for within ``request_timeout``.

        Raises TopicNotFound T010, InvalidName T013, RequestTimeout T034 during an outage,
        ConnectError T005 after it. Cancelled: the question goes on, its answer is remembered.
        """
        known = self._topics.get(name)
        if known is not None:
            return known
        fetch = self._fetches.get((name, auto_create))
        if fetch is None:
            fetch = self._fetches[name, auto_create] = _Fetch(anyio.Event())
            self._runtime.start_soon(self._fetch_topic, name, auto_create, fetch)
        await fetch.done.wait()
        if fetch.topic is None:
            assert fetch.error is not None
            raise copy.copy(fetch.error)
        return fetch.topic

    async def refresh(self, *, timeout: float) -> None:
        """Ask again for the brokers and for all topics that are remembered.

        Raises what ``leader_request`` raises. Cancelled: the answer is dropped.
        """
        question = MetadataRequest(topics=tuple(self._topics), auto_create=False)
        response, _ = await self.leader_request(None, question, timeout=timeout)
        assert isinstance(response, MetadataResponse)
        self._learn(response)

    def known(self, name: str) -> TopicMetadata | None:
        """What is remembered of a topic, without asking."""
        return self._topics.get(name)

    def invalidate(self, topic: str) -> None:
        """Forget a topic: the next ``topic`` call asks the cluster."""
        self._topics.pop(topic, None)

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever something was learnt; synchronous, may not fail."""
        self._watchers.append(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        """No longer."""
        self._watchers.remove(changed)

    def health(self) -> ClientHealth:
        """For ``Client.health``."""
        address = str(self._home.address) if self._home else None
        if self._state != "open":
            return ClientHealth(self._state, False, self._reason, address)
        if self.failure is not None:
            return ClientHealth("reconnecting", False, str(self.failure), address)
        if self._outage_began is not None:
            return ClientHealth("reconnecting", False, self._reason, address)
        return ClientHealth("ok", True, None, address)

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    def link(self, broker_id: str, kind: Kind) -> Link | None:
        """The connection of a kind to a broker; None if the broker is not (or no longer) known."""
        broker = self.brokers.get(broker_id)
        return None if broker is None else broker.link(kind)

    async def leader_request(
        self,
        broker_id: str | None,
        message: Request,
        body: Body = (),
        *,
        kind: Kind = "control",
        timeout: float,
    ) -> tuple[Response, memoryview]:
        """One request to one broker (None: to any), its answer and the answer's body.

        Waits for the connection, through an outage if need be, and for the answer: both within
        ``timeout`` seconds, else RequestTimeout T034. Raises what the broker answered, ConnectError
        T001 if the connection broke meanwhile (the request may have been carried out) and T005.
        """
        clock = self._runtime.clock
        began = clock.now()
        channel: Channel | None = None
        with anyio.move_on_after(timeout):
            channel = await self._channel(broker_id, kind)
        waited_s = clock.now() - began
        if channel is None:
            address = self.health().address or "the cluster"
            where = f"{address} ({self._reason})" if self._reason else address
            raise texts_client.request_timeout(name_of(message), address=where, waited_s=waited_s)
        return await channel.request(message, body, timeout=max(0.001, timeout - waited_s))

    async def _channel(self, broker_id: str | None, kind: Kind) -> Channel:
        while True:
            if self.failure is not None:
                raise copy.copy(self.failure)
            if self._state == "closed":
                raise texts_client.already_closed("Client")
            if broker_id is not None:
                link = self.link(broker_id, kind)
                if link is None:
                    raise texts_client.no_broker([(broker_id, "left the cluster")], elapsed_s=0.0)
                return await link.get()
            if (broker := self._reachable()) is not None:
                return await broker.link(kind).get()
            await self._changed.wait()

    def _reachable(self) -> Broker | None:
        """A broker with an open control connection, the same one as long as it lasts."""
        if self._home is None or self._home.control.channel is None:
            up = [b for b in self.brokers.values() if b.control.channel is not None]
            if not up:
                for broker in self.brokers.values():
                    broker.control.wake()
                return None
            self._home = up[0]
        return self._home

    async def _fetch_topic(self, name: str, auto_create: bool, fetch: _Fetch) -> None:
        clock = self._runtime.clock
        ends_at = clock.now() + self._runtime.options.request_timeout
        backoff = Backoff(self._runtime.random)
        try:
            while fetch.topic is None:
                try:
                    left_s = max(0.001, ends_at - clock.now())
                    fetch.topic = await self._ask_topic(name, auto_create, left_s)
                except TailraceError as error:
                    pause_s = backoff.next()
                    lasting = self.failure is not None or not error.retriable
                    if lasting or error.code == "T034" or clock.now() + pause_s > ends_at:
                        fetch.error = error
                        return
                    instruments.retried(error.code)
                    await anyio.sleep(pause_s)
        finally:
            del self._fetches[name, auto_create]
            fetch.done.set()

    async def _ask_topic(self, name: str, auto_create: bool, timeout: float) -> TopicMetadata:
        question = MetadataRequest(topics=(name,), auto_create=auto_create)
        response, _ = await self.leader_request(None, question, timeout=timeout)
        assert isinstance(response, MetadataResponse)
        self._learn(response)
        topic = response.topics[0]
        if topic.error is not None:
            raise from_wire(topic.error)
        return topic

    async def _keep_fresh(self, idle_s: float) -> None:
        period_s = min(REFRESH_S, idle_s / 2) if idle_s else REFRESH_S
        timeout = self._runtime.options.request_timeout
        while True:
            await anyio.sleep(period_s)
            try:
                await self.refresh(timeout=timeout)
            except TailraceError as error:
                _log.debug("metadata not refreshed: %s", error)

    def _learn(self, response: MetadataResponse) -> None:
        now_known: set[str] = set()
        for told in response.brokers:
            now_known.add(told.broker_id)
            address = Address(told.host, told.port)
            known = self.brokers.get(told.broker_id)
            if known is None or known.address != address:
                self.brokers[told.broker_id] = Broker(self._runtime, self, told.broker_id, address)
                if known is not None:
                    known.close("the broker moved")
        if now_known:
            for broker_id in self.brokers.keys() - now_known:
                self.brokers.pop(broker_id).close("the broker left the cluster")
        for topic in response.topics:
            if topic.error is None:
                self._topics[topic.name] = topic
            else:
                self._topics.pop(topic.name, None)
        self._tell()

    # ── outages (link.Watcher) ───────────────────────────────────────────────────────────────

    def link_down(self, link: Link, reason: str) -> None:
        """See ``link.Watcher``."""
        self._reason = reason
        if any(broker.control.channel is not None for broker in self.brokers.values()):
            return
        if self._outage_began is None and self._state == "open":
            self._outage_began = self._runtime.clock.now()
            self._outage += 1
            max_outage = self._runtime.options.max_outage
            if max_outage is not None:
                self._runtime.start_soon(self._end_outage, self._outage, link.address, max_outage)

    def link_up(self, link: Link) -> None:
        """See ``link.Watcher``."""
        self._outage_began = None
        self._reason = None
        self._runtime.events.emit("connected", str(link.address), address=str(link.address))
        self._tell()

    async def _end_outage(self, outage: int, address: Address, max_outage_s: float) -> None:
        await anyio.sleep(max_outage_s)
        if self._outage_began is None or self._outage != outage:
            return
        self.failure = texts_client.outage_over(
            str(address),
            reason=self._reason or "no answer",
            outage_s=self._runtime.clock.now() - self._outage_began,
            max_outage_s=max_outage_s,
        )
        _log.error("%s", self.failure, extra={"event": "client.gave_up", "code": "T005"})
        for broker in self.brokers.values():
            for link in broker.links:
                link.tell_waiters()
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
        for changed in self._watchers:
            changed()


def _unreachable(attempts: list[tuple[Address, str]], elapsed_s: float) -> ConnectError:
    """T002 if only names are the problem, else T001."""
    told = [(str(address), reason) for address, reason in attempts]
    if all(reason == "does not resolve" for _, reason in attempts):
        host = attempts[0][0].host
        similar = difflib.get_close_matches(host, ["localhost"], 1)
        return texts_client.host_unresolved(
            host, elapsed_s=elapsed_s, similar=similar[0] if similar else None, attempts=told
        )
    return texts_client.no_broker(told, elapsed_s=elapsed_s)
