"""The cluster as a client knows it: brokers, their connections, topics and who leads them.

Opened through the bootstrap addresses; from then on brokers are reached where they say they are.
Topics are remembered until somebody finds them wrong (``invalidate``), and all of them are asked
for again every few minutes, which also keeps the control connection from falling idle.

Where there are several brokers, one that is gone costs nobody else a request: what any can answer
is asked of another (``asking.py``), what only one can answer is an error (T001) as soon as that one
is known to be unreachable, so that the caller finds out who has taken over. While a broker owes an
answer the others are asked about it (``look_again``): if it has left, it is disconnected. When none
is left the given addresses are tried again: brokers may be there that nobody has named.

Does not: retry what a caller asked for (``leader_request`` is one attempt), except ``topic``.
"""

import copy
import logging
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import anyio

from tailrace.client import bootstrap
from tailrace.client.asking import Asking
from tailrace.client.brokers import DOUBTED_S, Broker, Brokers
from tailrace.client.channel import Body, Channel, name_of
from tailrace.client.link import DIAL_S, Kind, Link
from tailrace.client.metrics import instruments
from tailrace.client.options import Address
from tailrace.client.retry import DOUBTFUL, Backoff
from tailrace.client.runtime import Runtime
from tailrace.client.shapes import ClientHealth
from tailrace.client.topic_news import LeaderEpochs, came_to_lead
from tailrace.protocol import texts_client
from tailrace.protocol.errors import TailraceError, from_wire
from tailrace.protocol.limits import TOPICS_PER_REQUEST_MAX, pieces
from tailrace.protocol.messages import (
    MetadataRequest,
    MetadataResponse,
    Request,
    Response,
    TopicMetadata,
)

REFRESH_S = 300.0
SLOW_S = 1.0  # a broker that owes an answer for so long may be gone: others are asked
_log = logging.getLogger("tailrace.client")


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
        self._known = Brokers(runtime, self)
        self._runtime = runtime
        self._cluster_id = ""
        self._state: Literal["connecting", "open", "closed"] = "connecting"
        self._topics: dict[str, TopicMetadata] = {}
        self._told: dict[str, tuple[str, float]] = {}  # who told of a topic last, and when
        self._epochs = LeaderEpochs()
        self._askings: list[Asking] = []
        self._looking = False
        self._fetches: dict[tuple[str, bool], _Fetch] = {}
        self._watchers: list[Callable[[], None]] = []
        self._changed = anyio.Event()
        self._outage_began: float | None = None
        self._outage = 0  # number of the outage, so that a timer knows its own
        self._reason: str | None = None

    # ── opening and closing ──────────────────────────────────────────────────────────────────

    @property
    def cluster_id(self) -> str:
        """The cluster's id; empty before ``open``."""
        return self._cluster_id

    @property
    def brokers(self) -> dict[str, Broker]:
        """Those that are known, by id; for any thread."""
        return self._known.by_id

    @property
    def several(self) -> bool:
        """Whether somebody else may take over from a broker that is gone."""
        return len(self.brokers) > 1

    async def open(self) -> None:
        """Reach the cluster within ``connect_timeout``, or raise ConnectError T001-T004, T120."""
        channel = await bootstrap.reach(self._runtime, self._known, self._learn)
        self._cluster_id = channel.hello.cluster_id
        self._state = "open"
        assert self._known.home is not None
        self._known.home.control.adopt(channel)
        self._runtime.start_soon(self._keep_fresh, channel.hello.idle_ms / 1000)

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

        ``timeout`` in seconds, for each 1,000 topics. Raises what ``leader_request`` raises.
        Cancelled: the answers to come are dropped.
        """
        for names in list(pieces(tuple(self._topics), TOPICS_PER_REQUEST_MAX)) or [()]:
            question = MetadataRequest(topics=tuple(names), auto_create=False)
            self._learn(*await self._ask_metadata(question, timeout))

    def doubt(self, broker_id: str) -> None:
        """It did not answer, or not as one that knows how things are: others are asked first."""
        self._known.doubt(broker_id)

    def look_again(self, broker_id: str) -> None:
        """A broker owes an answer: see, in the background, what others say of the cluster."""
        self._known.doubt(broker_id)
        if not self._looking and self.several and self._state == "open":
            self._looking = True
            self._runtime.start_soon(self._look_again)

    async def _look_again(self) -> None:
        try:
            await self.refresh(timeout=self._runtime.options.request_timeout)
        except TailraceError as error:
            _log.debug("metadata not refreshed: %s", error)
        finally:
            self._looking = False

    def reachable(self, broker_id: str) -> bool:
        """Whether nothing is known against asking it."""
        link = self.link(broker_id, "control")
        return link is not None and not link.troubled

    def known(self, name: str) -> TopicMetadata | None:
        """What is remembered of a topic, without asking."""
        return self._topics.get(name)

    def invalidate(self, topic: str) -> None:
        """Forget a topic: the next ``topic`` call asks the cluster."""
        self._topics.pop(topic, None)

    def misled(self, topic: str) -> None:
        """What is remembered of a topic led nowhere: forget it, and ask another than who said so.

        See ``disbelieve``.
        """
        self.disbelieve(*self._told.pop(topic, ("", -math.inf)))
        self.invalidate(topic)

    def disbelieve(self, told_by: str, at: float) -> None:
        """What a broker said at ``at`` ("": the only one) led nowhere.

        It is doubted, unless that was long ago: what has become wrong since does not speak against
        who said it.
        """
        if told_by and self._runtime.clock.now() < at + DOUBTED_S:
            self.doubt(told_by)

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever something was learnt; synchronous, may not fail."""
        self._watchers.append(changed)

    def unwatch(self, changed: Callable[[], None]) -> None:
        """No longer."""
        self._watchers.remove(changed)

    def health(self) -> ClientHealth:
        """For ``Client.health``."""
        home = self._known.home
        address = None if home is None else str(home.address)
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

    async def channel(self, broker_id: str, kind: Kind) -> Channel:
        """An open connection to one broker.

        ConnectError T001 if it has left the cluster or, while others are known, cannot be reached;
        else this waits through the outage. T005. Cancelled: the dialling goes on.
        """
        link = self.link(broker_id, kind)
        if link is None:
            raise texts_client.no_broker([(broker_id, "left the cluster")], elapsed_s=0.0)
        try:
            return await link.get(patient=len(self.brokers) < 2)
        except TailraceError:
            self.doubt(broker_id)
            raise

    async def ask_any(self, message: Request, *, timeout: float) -> Response:
        """What any broker answers to a question that changes nothing.

        Raises what it answered, RequestTimeout T034 if nobody answers in ``timeout`` seconds,
        ConnectError T001 if the connections broke meanwhile, T005. Cancelled: nothing is changed.
        """
        return (await self.ask_somebody(message, timeout=timeout))[0]

    async def ask_somebody(self, message: Request, *, timeout: float) -> tuple[Response, str]:
        """``ask_any``, and which broker answered, for ``disbelieve``."""
        if not self.several:
            response, _ = await self.leader_request(None, message, timeout=timeout)
            return response, ""
        self._check()
        asking = Asking(self._runtime, self._known, message)
        self._askings.append(asking)
        try:
            return await asking.ask(timeout), asking.answered_by
        except TailraceError:
            self._check()
            raise
        finally:
            self._askings.remove(asking)

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

        Waits for the connection, as ``channel`` does (None: through an outage), and for the answer:
        both within ``timeout`` seconds, else RequestTimeout T034. Raises what the broker answered,
        ConnectError T001 if it cannot be reached or the connection broke meanwhile (the request may
        have been carried out) and T005.
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
        asked = channel.hello.broker_id
        try:
            with self.owing(asked):
                return await channel.request(message, body, timeout=max(0.001, timeout - waited_s))
        except TailraceError as error:
            if error.code in DOUBTFUL:
                self.doubt(asked)
            raise

    @contextmanager
    def owing(self, broker_id: str, wait_s: float = 0.0) -> Generator[None]:
        """While a broker owes an answer, which it may hold back for ``wait_s`` seconds."""
        if len(self.brokers) < 2:
            yield
            return
        done = anyio.Event()
        self._runtime.start_soon(self._watch_answer, broker_id, wait_s + SLOW_S, done)
        try:
            yield
        finally:
            done.set()

    async def _watch_answer(self, broker_id: str, patience_s: float, done: anyio.Event) -> None:
        """Look again at the cluster when the answer is late, and as long as it is."""
        while not done.is_set() and self._state == "open":
            with anyio.move_on_after(patience_s):
                await done.wait()
            if not done.is_set():
                self.look_again(broker_id)
                patience_s = SLOW_S

    async def _channel(self, broker_id: str | None, kind: Kind) -> Channel:
        while True:
            self._check()
            if broker_id is not None:
                return await self.channel(broker_id, kind)
            broker = self._known.reachable()
            doubted = broker is not None and self._known.doubted(broker)
            if doubted or broker is None:
                self._known.wake()
            if broker is not None and not (doubted and self._known.others_may_come()):
                return await broker.link(kind).get()
            with anyio.move_on_after(math.inf if broker is None else DIAL_S):
                await self._changed.wait()
                continue
            if broker is not None and broker.up:
                return await broker.link(kind).get()

    def _check(self) -> None:
        if self.failure is not None:
            raise copy.copy(self.failure)
        if self._state == "closed":
            raise texts_client.already_closed("Client")

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
        question = MetadataRequest(topics=(name,), auto_create=False)
        if not auto_create:
            response, told_by = await self._ask_metadata(question, timeout)
        elif len(self.brokers) < 2 or await self._is_missing(question, timeout):
            question = MetadataRequest(topics=(name,), auto_create=True)  # asked of one broker only
            made, _ = await self.leader_request(None, question, timeout=timeout)
            assert isinstance(made, MetadataResponse)
            response, told_by = made, ""
        else:
            return self._topics[name]
        self._learn(response, told_by)
        topic = response.topics[0]
        if topic.error is not None:
            raise from_wire(topic.error)
        return self._topics[name]

    async def _is_missing(self, question: MetadataRequest, timeout: float) -> bool:
        response, told_by = await self._ask_metadata(question, timeout)
        self._learn(response, told_by)
        error = response.topics[0].error
        if error is not None and from_wire(error).code != "T010":
            raise from_wire(error)
        return error is not None

    async def _ask_metadata(
        self, question: MetadataRequest, timeout: float
    ) -> tuple[MetadataResponse, str]:
        response, told_by = await self.ask_somebody(question, timeout=timeout)
        assert isinstance(response, MetadataResponse)
        return response, told_by

    async def _keep_fresh(self, idle_s: float) -> None:
        period_s = min(REFRESH_S, idle_s / 2) if idle_s else REFRESH_S
        timeout = self._runtime.options.request_timeout
        while True:
            await anyio.sleep(period_s)
            try:
                await self.refresh(timeout=timeout)
            except TailraceError as error:
                _log.debug("metadata not refreshed: %s", error)

    def _learn(self, response: MetadataResponse, told_by: str = "") -> None:
        now = self._runtime.clock.now()
        at_work: set[str] = set()
        for topic in response.topics:
            if topic.error is None:
                before = self._epochs.known(topic)
                newest = self._topics[topic.name] = self._epochs.newest(topic)
                at_work |= came_to_lead(before, newest)
                self._told[topic.name] = told_by, now
                if newest is not topic and told_by:
                    self.doubt(told_by)  # others have told us newer things already
            else:
                self._topics.pop(topic.name, None)
                self._told.pop(topic.name, None)
                self._epochs.forget(topic.name)
        # Without topics it is what was found when nobody could be reached: a beginning anew.
        self._known.learn(response.brokers, self._leading if response.topics else set)
        self._known.at_work(at_work)
        self._tell()

    def _leading(self) -> set[str]:
        """Who leads something that is remembered."""
        found = {one.leader for topic in self._topics.values() for one in topic.partitions}
        return {leader for leader in found if leader is not None}

    # ── outages (link.Watcher) ───────────────────────────────────────────────────────────────

    def link_down(self, link: Link, reason: str) -> None:
        """See ``link.Watcher``."""
        if any(broker.up for broker in self.brokers.values()):
            return
        self._reason = reason
        self._known.wake()
        if self._outage_began is None and self._state == "open":
            self._outage_began = self._runtime.clock.now()
            self._outage += 1
            max_outage = self._runtime.options.max_outage
            if max_outage is not None:
                self._runtime.start_soon(self._end_outage, self._outage, link.address, max_outage)
            self._runtime.start_soon(self._bootstrap_again, self._outage)

    def link_up(self, link: Link) -> None:
        """See ``link.Watcher``."""
        self._outage_began = None
        self._reason = None
        self._runtime.events.emit("connected", str(link.address), address=str(link.address))
        self._tell()

    async def _bootstrap_again(self, outage: int) -> None:
        """Ask at the given addresses that are nobody's whom we know, until the outage is over."""
        backoff = Backoff(self._runtime.random)
        while self._outage == outage and self._outage_began is not None and self.failure is None:
            known = {broker.address for broker in self.brokers.values()}
            strange = [one for one in self._runtime.options.addresses if one not in known]
            if not strange or self._state != "open":
                return
            await anyio.sleep(backoff.next())
            for address in strange:
                try:
                    told = await bootstrap.look_up(self._runtime, address, self._cluster_id)
                except (OSError, TailraceError) as error:
                    _log.debug("no broker found at %s: %s", address, error)
                else:
                    self._learn(told)
                    self._known.wake()

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
        for asking in self._askings:
            asking.poke()
        for changed in list(self._watchers):
            changed()
