"""Faults of one broker, as context managers: what they do ends with the ``with`` block.

``Faults`` is the public face, the same for a live broker and for a simulated one; what it needs
of either is ``FaultTarget``. Faults may be nested and combined.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from tailrace.broker.world import Delay, Drop, Fail, Fault, Hold
from tailrace.protocol.catalogue import CATALOGUE
from tailrace.protocol.messages import Api, WireError

ApiName = Literal["produce", "fetch", "metadata", "commit", "group", "admin"]

APIS: dict[str, frozenset[Api]] = {
    "produce": frozenset({Api.PRODUCE}),
    "fetch": frozenset({Api.FETCH}),
    "metadata": frozenset({Api.METADATA}),
    "admin": frozenset(
        {
            Api.CREATE_TOPIC,
            Api.DELETE_TOPIC,
            Api.ALTER_TOPIC,
            Api.DESCRIBE_TOPICS,
            Api.DESCRIBE_CLUSTER,
            Api.DELETE_RECORDS,
            Api.ERASE,
            Api.GET_ERASURE,
            Api.LIST_GROUPS,
            Api.DESCRIBE_GROUP,
            Api.RESET_OFFSETS,
            Api.DELETE_GROUP,
            Api.ELECT_LEADERS,
            Api.REASSIGN,
            Api.DRAIN_BROKER,
            Api.DESCRIBE_MOVES,
        }
    ),
    "commit": frozenset({Api.COMMIT_OFFSETS}),
    "group": frozenset({Api.FIND_COORDINATOR, Api.HEARTBEAT, Api.FETCH_OFFSETS}),
}
EVERY = frozenset(Api) - {Api.ERROR}


@dataclass(eq=False)
class Rule:
    """What becomes of requests of some apis; ``times`` None: of all of them."""

    apis: frozenset[Api]
    fault: Fault
    times: int | None = None


class Rules:
    """The planned faults of one broker: its world's ``faults``. The newest rule wins."""

    def __init__(self) -> None:
        self._rules: tuple[Rule, ...] = ()  # replaced as a whole: another thread reads it

    def __call__(self, api: Api) -> Fault | None:
        for rule in self._rules:
            if api in rule.apis and rule.times != 0:
                if rule.times is not None:
                    rule.times -= 1
                return rule.fault
        return None

    def add(self, rule: Rule) -> None:
        self._rules = (rule, *self._rules)

    def remove(self, rule: Rule) -> None:
        self._rules = tuple(each for each in self._rules if each is not rule)


class FaultTarget(Protocol):
    """What a broker that can have faults offers. Each call takes effect before it returns."""

    rules: Rules

    def refuse(self, on: bool) -> None:
        """Nobody listens at its address; open connections go on."""
        ...

    def drop_all(self) -> None:
        """Close every open connection."""
        ...

    def fill_disk(self, on: bool) -> None:
        """Not a byte more fits on its disk."""
        ...

    def slow_disk(self, seconds: float) -> None:
        """Every sync takes so much longer; 0: no more."""
        ...

    def pause(self, on: bool) -> None:
        """The process stands still, as under SIGSTOP."""
        ...


class Faults:
    """The faults one broker can have."""

    def __init__(self, target: FaultTarget) -> None:
        self._target = target

    @contextmanager
    def refuse_connections(self) -> Generator[None]:
        """New connections are refused; those that are open go on."""
        self._target.refuse(True)
        try:
            yield
        finally:
            self._target.refuse(False)

    @contextmanager
    def drop_connections(self, api: ApiName | None = None) -> Generator[None]:
        """A request of that api closes its connection and has no effect; with None all do, and
        the connections that are open now are closed at once."""
        with self._rule(Rule(_apis(api), Drop())):
            if api is None:
                self._target.drop_all()
            yield

    @contextmanager
    def black_hole(self) -> Generator[None]:
        """Connections are accepted, requests are read, nothing is ever answered.

        At the end every connection is closed, or clients would wait for what was swallowed.
        """
        with self._rule(Rule(EVERY, Hold())):
            yield
        self._target.drop_all()

    def delay(self, seconds: float, api: ApiName | None = None) -> AbstractContextManager[None]:
        """Requests of that api are taken up only after so long."""
        return self._rule(Rule(_apis(api), Delay(seconds)))

    def error(
        self, code: str, api: ApiName | None = None, times: int | None = None
    ) -> AbstractContextManager[None]:
        """Requests of that api fail with that error ("T031") and have no effect; ``times``: only
        the first so many. A client may retry: ``times=1`` of a retriable error is not seen by it.
        """
        if code not in CATALOGUE:
            raise ValueError(f"{code!r} is no error code; they are listed in docs/errors.md")
        wire = WireError(int(code[1:]), f"injected by a test: {CATALOGUE[code].class_name}", "", {})
        return self._rule(Rule(_apis(api) - {Api.HELLO}, Fail(wire), times))

    @contextmanager
    def disk_full(self) -> Generator[None]:
        """Writes are refused with T031 until there is room again."""
        self._target.fill_disk(True)
        try:
            yield
        finally:
            self._target.fill_disk(False)

    @contextmanager
    def slow_disk(self, seconds: float) -> Generator[None]:
        """Every sync takes ``seconds`` longer, and so does every durable ack."""
        self._target.slow_disk(seconds)
        try:
            yield
        finally:
            self._target.slow_disk(0)

    @contextmanager
    def pause(self) -> Generator[None]:
        """The broker stands still: accepts, reads and answers nothing."""
        self._target.pause(True)
        try:
            yield
        finally:
            self._target.pause(False)

    @contextmanager
    def _rule(self, rule: Rule) -> Generator[None]:
        self._target.rules.add(rule)
        try:
            yield
        finally:
            self._target.rules.remove(rule)


def _apis(name: ApiName | None) -> frozenset[Api]:
    if name is None:
        return EVERY
    if name not in APIS:
        raise ValueError(f"unknown api {name!r}; one of {', '.join(get_args(ApiName))}, or None")
    return APIS[name]
