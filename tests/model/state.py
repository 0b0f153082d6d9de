"""A cluster of three brokers with one partition as a value, for a search of all its states.

The product's own rules run in it: ``broker/replica.py``, ``broker/election.py``, and the epoch
history of ``storage/epochs.py``. A state is never changed: an action (``actions.py``) makes another
one, and shares with it what it did not touch.

Two states are the same if they can do the same from then on: revisions count only by whether they
are the store's present one, times not at all.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

from tailrace.broker.catalog import Leadership
from tailrace.broker.config import Durability
from tailrace.broker.replica import Follower, IsrChange, Replica
from tailrace.storage.epochs import EpochHistory, EpochStart

BROKERS = ("a", "b", "c")
INDEX = {name: number for number, name in enumerate(BROKERS)}


class Copy(Replica):
    """A broker's copy, which can be copied and compared."""

    def fork(self) -> "Copy":
        kind = type(self)
        other = kind.__new__(kind)
        for name in Replica.__slots__:
            setattr(other, name, getattr(self, name))
        if self.leading:
            other.followers = {name: fork_follower(one) for name, one in self.followers.items()}
            counting = {id(one) for one in self._counting}
            other._counting = tuple(
                other.followers[name] for name, one in self.followers.items() if id(one) in counting
            )
        return other

    def key(self) -> Hashable:
        if not self.leading:
            return self.high_watermark
        return (
            *(self.high_watermark, self.epoch_start, self._own, self.min_isr, self.durability),
            *(content(self.leadership), content(self._pending), *map(content, self._doubtful)),
            *((one.end, one.flushed, one.broker_epoch) for one in self.followers.values()),
            *(one.caught_up_at for one in self.followers.values()),
        )

    @property
    def committing(self) -> bool:
        """Whether its watermark may rise at all."""
        return self.leading and not self._halted


def fork_follower(one: Follower) -> Follower:
    return Follower(
        *(one.broker_epoch, one.end, one.flushed, one.counted, one.cleaned),
        *(one.fetched_at, one.caught_up_at, one.leader_end),
    )


def content(one: Leadership | None) -> Hashable:
    """A leadership without its revision, and without the order of its sets."""
    if one is None:
        return None
    sets = (frozenset(one.isr), frozenset(one.elr), frozenset(one.doubted))
    return (one.leader, one.leader_epoch, *sets, one.replicas)


class Record(NamedTuple):
    epoch: int
    number: int  # unique


@dataclass(frozen=True, slots=True)
class Rules:
    """What is searched, and with which bug planted. Bounds are totals over one run.

    By default nothing goes wrong.
    """

    records: int = 1
    epochs: int = 2
    crashes: int = 0  # of processes; what is not flushed is lost, or not
    wipes: int = 0  # disks lost in a crash
    expiries: int = 0  # leases that end while their broker lives
    late: int = 0  # fetches that arrive late
    doubts: int = 0  # changes of the ISR of which the leader does not hear
    changes: int = 0  # of the ISR by leaders
    moves: int = 0  # leaders changed for no need
    isr: str = "abc"  # at first; a leads
    min_isr: int = 2
    losses: int = 0  # copies that are of no use, while their broker goes on
    targets: int = 0  # that an operator gives
    lowered: int = 0  # min_isr may be lowered by one; each hears of it when it looks
    kills: int = 0  # of processes, of which nothing is lost, though with "replicated" nobody knows
    durability: Durability = "fsync"
    slow_flush: bool = False  # followers may be found between writing and flushing
    copy: Callable[[Durability, int], Copy] = Copy
    bug: str = ""  # planted in what is modelled here

    def budget(self) -> "Budget":
        return Budget(
            *(self.records, self.crashes, self.wipes, self.expiries, self.late),
            *(self.doubts, self.changes, self.moves, self.losses, self.targets, self.lowered),
            self.kills,
        )


class Budget(NamedTuple):
    """What may still happen."""

    records: int
    crashes: int
    wipes: int
    expiries: int
    late: int
    doubts: int
    changes: int
    moves: int
    losses: int
    targets: int
    lowered: int
    kills: int


class Node:
    """One broker."""

    __slots__ = (
        *("_key", "broker_epoch", "epochs", "flushed", "hurt", "known", "life", "log", "name"),
        *("replica", "up"),
    )

    def __init__(self, name: str, replica: Copy) -> None:
        self.name = name
        self.up = True
        self.life = 0
        self.log: tuple[Record, ...] = ()
        self.flushed = 0
        self.epochs: tuple[EpochStart, ...] = ()
        self.broker_epoch = 1
        self.known: tuple[str | None, int] = (None, 0)  # leader and epoch it goes by
        self.hurt = False  # it lost what it counted for, and the store does not know yet
        self.replica = replica
        self._key: Hashable = None

    def fork(self) -> "Node":
        other = Node.__new__(Node)
        other.name, other.up, other.life = self.name, self.up, self.life
        other.log, other.flushed, other.epochs = self.log, self.flushed, self.epochs
        other.broker_epoch, other.known, other.hurt = self.broker_epoch, self.known, self.hurt
        other.replica = self.replica.fork()
        other._key = None
        return other

    @property
    def history(self) -> EpochHistory:
        return EpochHistory(self.epochs)

    @property
    def leads(self) -> bool:
        return self.up and self.replica.leading

    def durable(self, durability: Durability) -> tuple[Record, ...]:
        """What it counts for."""
        return self.log[: self.flushed] if durability == "fsync" else self.log

    def key(self) -> Hashable:
        if self._key is None:
            self._key = (
                *(self.up, self.life, self.log, self.flushed, self.epochs, self.broker_epoch),
                *(self.known, self.hurt, self.replica.leading, self.replica.key()),
            )
        return self._key


class Change(NamedTuple):
    """A change of the ISR on its way to the store, or its answer on its way back."""

    leader: str
    life: int
    change: IsrChange
    stored: Leadership | None = None
    refused: bool = False
    awaited: bool = True  # the leader will hear of it

    def key(self, revision: int) -> Hashable:
        """``revision``: the store's present one."""
        proposed = self.change.leadership
        return (
            *(self.leader, self.life, content(proposed), *self.change.added.items()),
            *(self.refused, self.awaited, proposed.revision == revision),
            self.stored and self.stored.revision == revision,
        )


class Fetch(NamedTuple):
    """A follower's fetch on its way."""

    follower: str
    broker_epoch: int
    leader_epoch: int
    last_epoch: int
    offset: int
    flushed: int


class State:
    """Everything, with what an outsider remembers: what was acknowledged, shown, and written."""

    __slots__ = (
        *("acked", "budget", "changes", "fetches", "meta", "need", "nodes", "registered"),
        *("shown", "target", "writers"),
    )

    def __init__(self, rules: Rules) -> None:
        first = Leadership("a", 1, tuple(rules.isr), (), BROKERS, revision=1)
        self.meta = first
        self.target = first.replicas  # as an operator wants them
        self.need = rules.min_isr  # the topic's min_isr
        self.registered: tuple[int, ...] = (1, 1, 1)  # broker epochs; 0: its lease ended
        self.changes: tuple[Change, ...] = ()
        self.fetches: tuple[Fetch, ...] = ()
        self.budget = rules.budget()
        self.acked: tuple[Record, ...] = ()
        self.shown = 0  # the largest watermark a client was shown
        self.writers: frozenset[tuple[int, str, int]] = frozenset()  # epoch, broker, its life
        self.nodes = tuple(Node(name, rules.copy(rules.durability, 0)) for name in BROKERS)

    def fork(self) -> "State":
        other = State.__new__(State)
        other.meta, other.need, other.registered = self.meta, self.need, self.registered
        other.target = self.target
        other.changes, other.fetches, other.budget = self.changes, self.fetches, self.budget
        other.acked, other.shown, other.writers = self.acked, self.shown, self.writers
        other.nodes = self.nodes
        return other

    def node(self, name: str) -> Node:
        return self.nodes[INDEX[name]]

    def own(self, name: str) -> Node:
        """A node of this state's own, to be changed."""
        number = INDEX[name]
        fresh = self.nodes[number].fork()
        self.nodes = (*self.nodes[:number], fresh, *self.nodes[number + 1 :])
        return fresh

    def alive(self, name: str) -> bool:
        return self.registered[INDEX[name]] > 0

    def register(self, name: str, epoch: int) -> None:
        number = INDEX[name]
        self.registered = (*self.registered[:number], epoch, *self.registered[number + 1 :])

    def key(self) -> Hashable:
        revision = self.meta.revision
        return (
            *(content(self.meta), self.target, self.need, self.registered, self.budget, self.acked),
            *(self.shown, self.writers, self.fetches),
            *(one.key(revision) for one in self.changes),
            *(
                (node.key(), node.leads and node.replica.leadership.revision == revision)
                for node in self.nodes
            ),
        )
