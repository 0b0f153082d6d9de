"""Errors that no broker of one node makes: planted in a real one, which sends them for real."""

from collections.abc import Generator
from contextlib import contextmanager

from tailrace.broker.world import Fail
from tailrace.protocol.errors import TailraceError, to_wire
from tailrace.testing import Broker
from tailrace.testing.faults import APIS, ApiName, Rule


@contextmanager
def answering(error: TailraceError, api: ApiName) -> Generator[Broker]:
    """A broker that answers requests of that api with ``error``."""
    with Broker() as broker:
        broker._machine.rules.add(Rule(APIS[api], Fail(to_wire(error))))
        yield broker
