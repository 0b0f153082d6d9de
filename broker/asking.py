"""Asking other brokers for what only they know: all at once, and none of them for long.

A broker that cannot be reached, or does not answer in ``ASK_S``, is one of which nothing is known:
that is for whoever asked to show. Those that are asked so answer of themselves alone, so nobody is
asked in circles.
"""

import logging
from collections.abc import Mapping
from typing import TypeVar

import trio

from tailrace.broker.cluster_view import ClusterView
from tailrace.broker.members import BrokerRecord
from tailrace.broker.peer import Lost, Peers
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.messages import BrokerAddress, Request, Response

log = logging.getLogger("tailrace.broker.asking")

ASK_S = 1.0
AT_ONCE = 16  # brokers

R = TypeVar("R", bound=Response)


def address_of(broker: BrokerRecord, listener: str) -> BrokerAddress | None:
    """Where one of its listeners is; None: it has no such listener."""
    where = broker.listeners.get(listener)
    if where is None:
        return None
    return BrokerAddress(broker.broker_id, where.host, where.port, broker.rack)


async def ask_broker(
    peers: Peers,
    view: ClusterView,
    listener: str,
    broker_id: str,
    request: Request,
    expected: type[R],
) -> R | None:
    """What one broker answers, or None if it does not; raises the error it answers with."""
    record = view.brokers.get(broker_id)
    where = None if record is None else address_of(record, listener)
    with trio.move_on_after(ASK_S):
        if where is not None:
            try:
                answer, _ = await peers.ask(where, request)
            except (ConnectError, Lost) as error:
                log.debug("broker %s could not be asked: %s", broker_id, error)
            else:
                assert isinstance(answer, expected)
                return answer
    return None


async def ask_brokers(
    peers: Peers,
    view: ClusterView,
    listener: str,
    requests: Mapping[str, Request],
    expected: type[R],
) -> dict[str, R]:
    """What brokers answer, by id; without those that do not. ``listener``: at which of theirs."""
    answers: dict[str, R] = {}
    limit = trio.CapacityLimiter(AT_ONCE)

    async def ask(broker_id: str, where: BrokerAddress, request: Request) -> None:
        async with limit:
            with trio.move_on_after(ASK_S):
                try:
                    answer, _ = await peers.ask(where, request)
                except (TailraceError, Lost) as error:
                    log.debug("broker %s could not be asked: %s", broker_id, error)
                else:
                    assert isinstance(answer, expected)
                    answers[broker_id] = answer

    async with trio.open_nursery() as nursery:
        for broker_id, request in requests.items():
            record = view.brokers.get(broker_id)
            where = None if record is None else address_of(record, listener)
            if where is not None:
                nursery.start_soon(ask, broker_id, where, request)
    return answers
