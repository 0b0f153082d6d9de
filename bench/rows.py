"""The targets P1 to P15 (docs/performance.md) as a table, and what figures make of them. Pure.

A row picks one of tailrace's figures and holds it against a number, or its ratio to another figure
of the same round: a limit of the machine, tailrace itself, or the best of some peers in that round,
by whichever of its ways was the fastest then.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from tailrace.bench.results import Measured

Sense = Literal["at least", "at most"]
SIGNS: dict[Sense, str] = {"at least": "≥", "at most": "≤"}
ByRound = Mapping[int, float]
NO_PEERS = {"tailrace", "machine"}
MOCK = "librdkafka-mock"  # a bound for a broker, not one
WAYS: Mapping[str, Collection[str]] = {  # a peer does it as it does it best: in batches or not
    "produce": ("produce", "produce-each"),
    "consume-batches": ("consume-batches", "consume-each"),
}


@dataclass(frozen=True)
class Pick:
    """Which figures: all of a path, of one size, whose note begins so."""

    path: str
    size_bytes: int | None = None
    note: str = ""
    system: str = "tailrace"

    def matches(self, one: Measured) -> bool:
        return (
            one.path == self.path
            and one.system == self.system
            and self.size_bytes in (None, one.size_bytes)
            and one.note.startswith(self.note)
        )


@dataclass(frozen=True)
class Peers:
    """The best of other systems in each round, of the same size and note."""

    path: str = ""  # by this one alone; empty: the same, and their other ways to do it
    only: Collection[str] = ()  # these; empty: all real ones
    without: Collection[str] = ()
    durable: bool = False  # only figures that were synced

    @property
    def named(self) -> str:
        """As the table has it. What holds beside the best of them holds beside every other."""
        rest = "every other peer" if self.without else "the best peer"
        whom = " or ".join(self.only) or rest
        return f"{whom} that syncs" if self.durable else whom

    def picks(self, one: Measured, ours: Pick) -> bool:
        wanted = one.system in self.only if self.only else one.system not in {*NO_PEERS, MOCK}
        return (
            wanted
            and one.system not in self.without
            and one.path in ((self.path,) if self.path else WAYS.get(ours.path, (ours.path,)))
            and ours.size_bytes in (None, one.size_bytes)
            and one.note.startswith(ours.note)
            and (one.durable is True or not self.durable)
        )


@dataclass(frozen=True)
class Row:
    """One target."""

    name: str  # P1
    what: str
    ours: Pick
    sense: Sense
    limit: float | None  # None: nothing is asked for
    against: Pick | Peers | None = None  # the ratio to it counts, not the figure

    @property
    def target(self) -> str:
        """What the ratio is of, and how large it should be; as it is shown."""
        if self.limit is None or self.against is None:
            return ""
        whom = self.against.path if isinstance(self.against, Pick) else self.against.named
        return f"{SIGNS[self.sense]} {self.limit:g} times {whom}"


@dataclass(frozen=True)
class Judged:
    """A row with what was measured; ``ratios`` by round, where it has something to stand beside."""

    row: Row
    unit: str
    values: ByRound
    ratios: ByRound | None
    best: Mapping[int, str] = field(default_factory=dict[int, str])  # the peer of each round

    @property
    def beside(self) -> str:
        """The peers that were the best ones, most often first."""
        counted = Counter(name for number, name in self.best.items() if number in self.counted)
        return ", ".join(sorted(counted, key=lambda name: (-counted[name], name)))

    @property
    def counted(self) -> ByRound:
        """What the target speaks of."""
        return self.values if self.ratios is None else self.ratios

    @property
    def reached(self) -> bool | None:
        """By the median; None: not measured, or nothing is asked for."""
        if not self.counted or self.row.limit is None:
            return None
        return self._holds(median(self.counted.values()), self.row.limit)

    @property
    def rounds_reached(self) -> int:
        limit = self.row.limit
        if limit is None:
            return 0
        return sum(self._holds(value, limit) for value in self.counted.values())

    def _holds(self, value: float, limit: float) -> bool:
        return value >= limit if self.row.sense == "at least" else value <= limit


def by_round(figures: Sequence[Measured]) -> dict[int, float]:
    """The median of each round's figures."""
    return {
        number: median(one.value for one in figures if one.round == number)
        for number in sorted({one.round for one in figures})
    }


def judge(row: Row, figures: Sequence[Measured]) -> Judged:
    """What the figures make of a row."""
    found = [one for one in figures if row.ours.matches(one)]
    values, unit = by_round(found), found[0].unit if found else ""
    if row.against is None:
        return Judged(row, unit, values, None)
    others, best = beside(row.ours, row.sense, row.against, figures)
    ratios = {number: values[number] / others[number] for number in values if others.get(number)}
    return Judged(row, unit, values, ratios, best)


def beside(
    ours: Pick, sense: Sense, against: Pick | Peers, figures: Sequence[Measured]
) -> tuple[ByRound, Mapping[int, str]]:
    """What a figure stands beside, by round; of several peers the one that was best in that round,
    by its best way and setting, and its name. A round in which one of them is missing has none: it
    might have been the best."""
    if isinstance(against, Pick):
        return by_round([one for one in figures if against.matches(one)]), {}
    found = [one for one in figures if against.picks(one, ours)]
    kinds = {(one.system, one.path, one.durable) for one in found}
    rates: dict[int, list[tuple[float, str]]] = {}
    for kind in kinds:
        of_kind = [one for one in found if (one.system, one.path, one.durable) == kind]
        for number, rate in by_round(of_kind).items():
            rates.setdefault(number, []).append((rate, kind[0]))
    choose = max if sense == "at least" else min
    best = {
        number: choose(each) for number, each in sorted(rates.items()) if len(each) == len(kinds)
    }
    return (
        {number: rate for number, (rate, _) in best.items()},
        {number: name for number, (_, name) in best.items()},
    )


def _throughput() -> list[Row]:
    each = Peers("produce-each", ("kafka", MOCK))  # confluent-kafka's ``produce``
    return [
        Row("P1", "produce, `send_many`", Pick("produce", 100), "at least", 10, Peers()),
        *(
            Row("P2", f"produce, `{call}`", Pick(path, 100), "at least", 3, each)
            for call, path in (
                ("enqueue_nowait", "produce-each-nowait"),
                ("enqueue", "produce-each"),
            )
        ),
        Row("P3", "consume, `batches()`", Pick("consume-batches", 100), "at least", 10, Peers()),
        Row(
            *("P4", "consume, `async for`", Pick("consume-each", 100), "at least", 2),
            Peers("consume-batches", ("kafka",)),
        ),
        Row("P5", "produce 1 KiB", Pick("produce", 1024), "at least", 5, Peers()),
        Row("P5", "consume 1 KiB", Pick("consume-batches", 1024), "at least", 4, Peers()),
    ]


def _latency() -> list[Row]:
    rows: list[Row] = []
    for rate in ("500/s", "1000/s"):
        for path in ("ack-latency", "deliver-latency"):
            what = "ack" if path == "ack-latency" else "publish to deliver"
            for share in ("p50", "p99"):
                ours = Pick(f"{path}-{share}", 100, rate)
                name = f"{what} {share} at {rate}"
                if share == "p50":
                    rows.append(Row("P6", name, ours, "at most", 0.7))
                redis = Peers(only=("redis",), durable=True)
                rows.append(Row("P6", name, ours, "at most", 1, redis))
                rest = Peers(without=("redis",), durable=True)
                rows.append(Row("P6", name, ours, "at most", 0.6, rest))
    return rows


def _broker() -> list[Row]:
    loopback = Pick("loopback", system="machine")
    return [
        Row("P7", "100 connections, a send at a time", Pick("sends@100"), "at least", 20_000),
        Row("P8", "256 KiB batches in, os", Pick("raw-in"), "at least", 2e9),
        Row("P8", "256 KiB batches in, os", Pick("raw-in"), "at least", 0.6, loopback),
        Row("P8", "256 KiB batches out, hot", Pick("raw-out"), "at least", 2.8e9),
        Row("P8", "256 KiB batches out, hot", Pick("raw-out"), "at least", 0.6, loopback),
        Row("P9", "3 replicas", Pick("replicas-3"), "at least", 0.3, Pick("replicas-1")),
        Row("P10", "out to 10 consumers, hot", Pick("raw-out-10"), "at least", 2e9),
        Row(
            *("P10", "broker CPU per GB, 10 consumers", Pick("fanout-cpu-10"), "at most", 1.1),
            Pick("fanout-cpu-1"),
        ),
        Row(
            *("P11", "live p99 beside a cold read", Pick("live-p99-beside-cold"), "at most", 2),
            Pick("live-p99"),
        ),
        Row(
            *("P11", "cold read", Pick("cold-read"), "at least", 0.5),
            Pick("disk-read", system="machine"),
        ),
    ]


def _costs() -> list[Row]:
    partitions, log = Pick("cpu-partitions-1"), Pick("cpu-log-small")
    return [
        Row("P12", "`dev` ready", Pick("ready"), "at most", 0.5),
        Row("P12", "RSS idle", Pick("rss-idle"), "at most", 50),
        Row("P12", "RSS with 1,000 partitions", Pick("rss-partitions"), "at most", 100),
        Row("P12", "an idle connection", Pick("connection"), "at most", 20),
        Row("P13", "idle, 1,000 waiting consumers", Pick("idle-cpu"), "at most", 1),
        Row(
            *("P14", "broker CPU per record, 1,000 partitions", Pick("cpu-partitions-1000")),
            *("at most", 1.3, partitions),
        ),
        Row(
            *("P14", "the same, 96 batches under way", Pick("cpu-partitions-1000@96")),
            *("at most", 1.3, Pick("cpu-partitions-1@96")),
        ),
        Row("P14", "broker CPU per record, large log", Pick("cpu-log-large"), "at most", 1.3, log),
        Row("P15", "compaction, 1 KiB", Pick("compaction", 1024), "at least", 300e6),
        Row("P15", "compaction, 100 B", Pick("compaction", 100), "at least", 100e6),
        Row("P15", "recovery scan", Pick("recovery-scan"), "at least", 1e9),
    ]


ROWS = (*_throughput(), *_latency(), *_broker(), *_costs())
