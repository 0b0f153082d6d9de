"""Many groups and members on one broker, a tenth of which is replaced each minute.

Members are bare protocol over few connections: each always has one heartbeat under way, as the SDK
has. Half of those that go say goodbye, the others fall silent and are thrown out. Asked for: nobody
who is heard of is ever thrown out; heartbeats are answered in time; the broker's memory stays flat.

Measured are answers that are due at once (joining, leaving, releasing, and a heartbeat that asks
not to be held), and how late an answer comes to one that was held for all of its time. What this
process itself is late by is part of both, and is said beside them.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from tailrace.bench.processes import BrokerProcess
from tailrace.protocol.errors import GroupFenced, TailraceError
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    HeartbeatResponse,
    Request,
)
from tests.broker.harness import Client
from tests.broker.members import Member, committing

TOPICS, PARTITIONS = 10, 8
CONNECTIONS = 240  # a broker takes 16 requests of each at once, and one waits for every member
SESSION_MS = 10_000
HELD_MS = SESSION_MS // 3
AT_ONCE_SHARE = 0.05  # of the heartbeats: not to be held
GROWTH_MAX = 0.03  # of the resident memory, over the second half
LOOK_S = 1.0
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Plan:
    """How many, and for how long."""

    groups: int = 500
    members: int = 2_000
    churn_per_min: float = 0.1
    commits_per_s: float = 100.0
    seconds: float = 600.0
    look_at_memory: bool = True
    p99_ms_max: float = 100.0


class Line:
    """One connection; each answer goes to whoever asked."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._asked: dict[int, Callable[[object], None]] = {}
        self._out = bytearray()
        self._wake = trio.Event()

    def ask(self, message: Request, answered: Callable[[object], None]) -> None:
        number, data = self.client.protocol.request(message)
        self._asked[number] = answered
        self._out += data
        self._wake.set()

    async def write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            data, self._out = bytes(self._out), bytearray()
            await self.client.stream.send_all(data)

    async def read(self) -> None:
        while True:
            await self.client.receive()
            answers, self.client.answers = self.client.answers, {}
            for answer in answers.values():
                self._asked.pop(answer.correlation_id)(answer.message)


@dataclass
class Figures:
    """What was measured, in ms."""

    at_once: list[float] = field(default_factory=list[float])
    late: list[float] = field(default_factory=list[float])  # of those held to the end
    commits: list[float] = field(default_factory=list[float])
    own: list[float] = field(default_factory=list[float])  # how late this process is itself
    memory: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    missed: list[str] = field(default_factory=list[str])
    joined: int = 0
    left: int = 0
    silent: int = 0


class One:
    """A member that is there until it goes."""

    def __init__(self, crowd: "Crowd", line: Line, member: Member) -> None:
        self.member = member
        self.gone = False
        self._crowd = crowd
        self._line = line
        self._offset = 0
        self._owned: set[tuple[bytes, int]] = set()  # when it was heard of last

    def beat(self) -> None:
        """The next heartbeat; its answer sends the one after."""
        first = self.member.told is None
        changed = self._owned != set(self.member.owned)
        self._owned = set(self.member.owned)
        held = not (first or changed or self._crowd.rng.random() < AT_ONCE_SHARE)
        sent_at = time.monotonic()

        def answered(message: object) -> None:
            took_ms = (time.monotonic() - sent_at) * 1000
            if self.gone:
                return
            if isinstance(message, GroupFenced):
                self._crowd.figures.missed.append(f"{self.member.member_id}: {message}")
                return
            assert isinstance(message, HeartbeatResponse), message
            if not held:
                self._crowd.figures.at_once.append(took_ms)
            elif took_ms >= HELD_MS:
                self._crowd.figures.late.append(took_ms - HELD_MS)
            self.member.take(message)
            self.beat()

        self._line.ask(self.member.request(wait_ms=HELD_MS if held else 0), answered)

    def leave(self) -> None:
        self.gone = True
        sent_at = time.monotonic()

        def answered(message: object) -> None:
            assert isinstance(message, HeartbeatResponse), message
            self._crowd.figures.at_once.append((time.monotonic() - sent_at) * 1000)

        self._line.ask(replace(self.member.request(), member_epoch=-1), answered)

    def commit(self) -> None:
        if not self.member.owned:
            return
        self._offset += 1
        partitions = [committing(*at, self._offset, since) for at, since in self._held()]
        request = CommitOffsetsRequest(self.member.group, self.member.member_id, tuple(partitions))
        sent_at = time.monotonic()

        def answered(message: object) -> None:
            assert not isinstance(message, TailraceError), message
            self._crowd.figures.commits.append((time.monotonic() - sent_at) * 1000)

        self._line.ask(request, answered)

    def _held(self) -> list[tuple[tuple[bytes, int], int]]:
        return sorted(self.member.owned.items())


class Crowd:
    """All of them."""

    def __init__(self, plan: Plan, lines: list[Line], pid: int, seed: int) -> None:
        self.plan = plan
        self.rng = random.Random(seed)
        self.figures = Figures()
        self._lines = lines
        self._pid = pid
        self._members: list[One] = []

    async def run(self) -> None:
        """Join within half a minute, then let them come and go."""
        plan = self.plan
        for number in range(plan.members):
            self._join(number % plan.groups)
            await trio.sleep(min(30.0, plan.seconds / 4) / plan.members)
        began = trio.current_time()
        ends_at, look_at = began + plan.seconds, began
        gone_per_s = plan.members * plan.churn_per_min / 60
        next_gone, next_commit = began, began
        while (now := trio.current_time()) < ends_at:
            while next_gone <= now:
                self._replace_one()
                next_gone += 1 / gone_per_s
            while next_commit <= now:
                self.rng.choice(self._members).commit()
                next_commit += 1 / plan.commits_per_s
            if look_at <= now:
                self.figures.memory.append((now - began, resident_bytes(self._pid)))
                look_at += LOOK_S
            due = min(next_gone, next_commit, look_at)
            await trio.sleep_until(due)
            self.figures.own.append((trio.current_time() - due) * 1000)

    def _join(self, group: int) -> None:
        number = self.figures.joined
        line = self._lines[number % len(self._lines)]
        member = Member(
            *(line.client, f"member-{number}", f"group-{group}", (f"topic-{group % TOPICS}",)),
            session_timeout_ms=SESSION_MS,
        )
        self._members.append(One(self, line, member))
        self._members[-1].beat()
        self.figures.joined += 1

    def _replace_one(self) -> None:
        at = self.rng.randrange(len(self._members))
        one, self._members[at] = self._members[at], self._members[-1]
        self._members.pop()
        if self.rng.random() < 0.5:
            one.leave()
            self.figures.left += 1
        else:
            one.gone = True  # its heartbeat is answered, and that is the last that is heard of it
            self.figures.silent += 1
        self._join(int(one.member.group.partition("-")[2]))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def shown(name: str, values: list[float]) -> str:
    if not values:
        return f"{name}: none"
    values = sorted(values)
    p50, p99 = (values[int(len(values) * share)] for share in (0.5, 0.99))
    return (
        f"{name}: {len(values):,}, p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {values[-1]:.0f} ms"
    )


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)] if values else 0.0


def report(plan: Plan, found: Figures) -> None:
    """Print the figures; AssertionError with what is wrong."""
    print(
        f"{plan.groups} groups, {plan.members:,} members for {plan.seconds:.0f} s:"
        f" {found.joined:,} joined, {found.left} left, {found.silent} fell silent;"
        f" {len(found.missed)} sessions of others were missed"
    )
    print(f"  {shown('answers due at once', found.at_once)}")
    print(f"  {shown('lateness of held ones', found.late)}")
    print(f"  {shown('commits', found.commits)}")
    print(f"  {shown('this process itself was late', found.own)}")
    half = [size for at, size in found.memory if at >= plan.seconds / 2]
    tenth = max(1, len(half) // 5)
    before, after = (sum(part) / tenth for part in (half[:tenth], half[-tenth:]))
    first = found.memory[0][1]
    print(
        f"  resident memory of the broker: {first / 1e6:.1f} MB when all had joined,"
        f" {before / 1e6:.1f} MB in the middle, {after / 1e6:.1f} MB at the end"
    )
    assert not found.missed, found.missed[:3]
    for values in (found.at_once, found.late):
        assert p99(values) < plan.p99_ms_max, f"p99 {p99(values):.0f} ms"
    if plan.look_at_memory:
        assert after < before * (1 + GROWTH_MAX), "its memory grows"


async def churn(url: str, pid: int, plan: Plan, seed: int) -> None:
    """Print the figures; AssertionError with what is wrong."""
    host, _, port = url.removeprefix("tailrace://").rpartition(":")
    lines: list[Line] = []
    for number in range(CONNECTIONS):
        client = Client(await trio.open_tcp_stream(host, int(port)), f"line-{number}")
        await client.hello()
        lines.append(Line(client))
    for number in range(TOPICS):
        await lines[0].client.create(f"topic-{number}", PARTITIONS)
    # As every client does first; when it is answered, all partitions of the groups' topic are led.
    await lines[0].client.ask(FindCoordinatorRequest("first"), FindCoordinatorResponse)
    crowd = Crowd(plan, lines, pid, seed)
    async with trio.open_nursery() as nursery:
        for line in lines:
            nursery.start_soon(line.read)
            nursery.start_soon(line.write)
        await crowd.run()
        nursery.cancel_scope.cancel()
    for line in lines:
        await trio.aclose_forcefully(line.client.stream)
    report(plan, crowd.figures)


def prove(folder: Path, plan: Plan, seed: int) -> None:
    """Print figures; AssertionError if something is not as it was asked for."""
    with BrokerProcess(folder / "data") as broker:
        trio.run(churn, broker.url, broker.pid, plan, seed)
