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
from tailrace.broker.members import Peer
from tailrace.broker.peer import Lost, Peers
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.messages import Request, Response

log = logging.getLogger("tailrace.broker.asking")

ASK_S = 1.0
AT_ONCE = 16  # brokers

R = TypeVar("R", bound=Response)


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
    peer = None if record is None else record.at(listener)
    with trio.move_on_after(ASK_S):
        if peer is not None:
            try:
                answer, _ = await peers.ask(peer, request)
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

    async def ask(peer: Peer, request: Request) -> None:
        async with limit:
            with trio.move_on_after(ASK_S):
                try:
                    answer, _ = await peers.ask(peer, request)
                except (TailraceError, Lost) as error:
                    log.debug("broker %s could not be asked: %s", peer.broker_id, error)
                else:
                    assert isinstance(answer, expected)
                    answers[peer.broker_id] = answer

    async with trio.open_nursery() as nursery:
        for broker_id, request in requests.items():
            record = view.brokers.get(broker_id)
            peer = None if record is None else record.at(listener)
            if peer is not None:
                nursery.start_soon(ask, peer, request)
    return answers
