"""Members of a group die, come and leave under a steady producer.

Asked for: the partitions of one that was killed go on elsewhere within 1.5 session timeouts, those
of one that leaves within 300 ms; the others never pause for more than 200 ms; every record is
processed, and again only what lay behind the last commit of one that was killed.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tailrace
from tailrace.bench.processes import BrokerProcess
from tests.proofs.group_member import Job, MemberProcess, Mode, Note
from tests.proofs.steady import Steady

TOPIC, GROUP = "orders", "billing"
FLOW_SECONDS_MAX = 30.0
WATCHED_SESSIONS = 1.5  # after a kill
DRAIN_SECONDS_MAX = 120.0


@dataclass(frozen=True)
class Plan:
    """How long and how much."""

    records: int = 200_000  # 0: until all has happened
    partitions: int = 12
    per_tick: int = 3  # of each partition, each 20 ms
    session_timeout: float = 3.0
    calm_s: float = 5.0  # before and after each event
    again: bool = True  # others join, and a second one leaves
    pause_ms_max: float = 200.0  # of partitions that stay
    handover_ms_max: float = 300.0  # of one that leaves
    sessions_max: float = 1.5  # until those of one that was killed go on


@dataclass(frozen=True)
class Event:
    """Something that happened to one member."""

    what: str
    name: str
    at_ms: float
    until_ms: float
    deadline_ms: float | None  # for its partitions to go on elsewhere


class Failover:
    """One run."""

    def __init__(self, url: str, folder: Path, plan: Plan, stack: ExitStack) -> None:
        self.plan = plan
        self.members: dict[str, MemberProcess] = {}
        self.events: list[Event] = []
        self.committed: dict[int, int] = {}  # of the partitions of who was killed, at that moment
        self._url = url
        self._folder = folder
        self._stack = stack

    async def run(self) -> None:
        plan = self.plan
        async with tailrace.connect(self._url) as client:
            await client.admin.create_topic(TOPIC, partitions=plan.partitions)
            count = plan.records or sys.maxsize
            producer = Steady(self._url, TOPIC, plan.partitions, plan.per_tick, count)
            modes: dict[str, Mode] = {"a": "iterate", "b": "run", "c": "iterate"}
            await asyncio.gather(*(self._join(name, mode) for name, mode in modes.items()))
            sending = asyncio.create_task(producer.run())
            await self._flow()
            calm_ms = time.time() * 1000
            await asyncio.sleep(plan.calm_s)
            self.events.append(Event("nothing", "", calm_ms, time.time() * 1000, None))
            await self._kill("a", client)
            if plan.again:
                await self._come("d", "run")
            await self._leave("b", "SIGTERM of run()")
            if plan.again:
                await self._come("e", "iterate")
                await self._leave("c", "leaving async with")
            assert not sending.done(), "the producer ended before it all had happened"
            if not plan.records:
                producer.stop.set()
            await sending
            assert producer.sent >= plan.records
            await self._drain(client)
        self.report(producer.sent)

    # ── what happens ─────────────────────────────────────────────────────────────────────────

    async def _join(self, name: str, mode: Mode) -> None:
        timeout = self.plan.session_timeout
        job = Job(self._url, TOPIC, GROUP, name, str(self._folder), mode, timeout)
        self.members[name] = self._stack.enter_context(MemberProcess(job))
        await asyncio.to_thread(self.members[name].wait_ready)

    async def _flow(self) -> None:
        """Until something of each partition was processed."""
        deadline = time.monotonic() + FLOW_SECONDS_MAX
        while len({n.partition for m in self.members.values() for n in m.notes()}) < (
            self.plan.partitions
        ):
            assert time.monotonic() < deadline, "not every partition is read"
            await asyncio.sleep(0.1)

    async def _come(self, name: str, mode: Mode) -> None:
        began = time.time() * 1000
        await self._join(name, mode)
        await asyncio.sleep(self.plan.calm_s)
        self.events.append(Event("joining", name, began, time.time() * 1000, None))

    async def _kill(self, name: str, client: tailrace.Client) -> None:
        at_ms = self.members[name].kill()
        lag = await client.admin.group_lag(GROUP)
        assert time.time() * 1000 - at_ms < self.plan.session_timeout * 500, "asked too late"
        self.committed = {one.partition: one.committed or 0 for one in lag.partition_list}
        limit_ms = self.plan.sessions_max * self.plan.session_timeout * 1000
        await asyncio.sleep(WATCHED_SESSIONS * self.plan.session_timeout + self.plan.calm_s)
        self.events.append(Event("kill -9", name, at_ms, time.time() * 1000, limit_ms))

    async def _leave(self, name: str, what: str) -> None:
        at_ms = await asyncio.to_thread(self.members[name].leave)
        await asyncio.sleep(self.plan.calm_s)
        limit_ms = self.plan.handover_ms_max
        self.events.append(Event(what, name, at_ms, time.time() * 1000, limit_ms))

    async def _drain(self, client: tailrace.Client) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS_MAX
        while (await client.admin.group_lag(GROUP)).lag_records:
            assert time.monotonic() < deadline, "the group does not catch up"
            await asyncio.sleep(0.2)
        for member in self.members.values():
            if member.alive:
                await asyncio.to_thread(member.leave)

    # ── what is found ────────────────────────────────────────────────────────────────────────

    def report(self, sent: int) -> None:
        """Print the figures; AssertionError with all that is wrong."""
        notes = {name: member.notes() for name, member in self.members.items()}
        wrong: list[str] = []
        for event in self.events:
            wrong += self._judge(event, notes)
        wrong += self._judge_records(notes, sent)
        assert not wrong, "; ".join(wrong)

    def _judge(self, event: Event, notes: dict[str, list[Note]]) -> list[str]:
        wrong: list[str] = []
        print(f"{event.what} {event.name}".rstrip())
        mine = owned(notes.get(event.name, []), event.at_ms)
        others = [note for name, of in notes.items() if name != event.name for note in of]
        if event.deadline_ms is not None:
            late = {p: first_after(others, p, event.at_ms) - event.at_ms for p in mine}
            worst = max(late.values())
            print(
                f"  {len(mine)} partitions go on elsewhere after"
                f" {min(late.values()):,.0f} to {worst:,.0f} ms (at most {event.deadline_ms:,.0f})"
            )
            if worst > event.deadline_ms:
                wrong.append(f"{event.what}: {worst:,.0f} ms")
        calm: list[list[Note]] = []
        for name, of in notes.items():
            if name != event.name:
                calm += steady_partitions(of, event.at_ms, event.until_ms)
        assert calm, f"{event.what}: nobody kept a partition"
        gap = max(gap_ms([note.at_ms for note in of]) for of in calm)
        made = max(gap_ms([float(note.append_ms) for note in of]) for of in calm)
        pause = max(pause_ms(of) for of in calm)
        print(
            f"  {len(calm)} others: at most {gap:,.0f} ms between two records, where the"
            f" producer had {made:,.0f}; a record that was there waited {pause:,.0f} ms at most"
        )
        if pause > self.plan.pause_ms_max and event.name:
            wrong.append(f"{event.what}: others paused for {pause:,.0f} ms")
        return wrong

    def _judge_records(self, notes: dict[str, list[Note]], sent: int) -> list[str]:
        wrong: list[str] = []
        times = Counter((note.partition, note.offset) for of in notes.values() for note in of)
        if len(times) != sent:
            wrong.append(f"{sent - len(times):,} of {sent:,} records were not processed")
        twice = {place for place, count in times.items() if count > 1}
        killed = Counter((note.partition, note.offset) for note in notes["a"])
        behind = {place for place in killed if place[1] >= self.committed[place[0]]}
        strange = twice - behind
        print(
            f"{sent:,} records sent, each processed at least once; {len(twice):,} twice, all behind"
            f" the last commit of the member that was killed"
        )
        if strange or max(times.values(), default=0) > 2:
            wrong.append(f"{len(strange):,} were processed again, first {sorted(strange)[:3]}")
        return wrong


def owned(notes: Sequence[Note], at_ms: float) -> set[int]:
    """The partitions that it processed in the second before."""
    return {note.partition for note in notes if at_ms - 1000 <= note.at_ms}


def first_after(notes: Sequence[Note], partition: int, at_ms: float) -> float:
    """When the next record of a partition was processed by one of these; infinite if never."""
    return min(
        (note.at_ms for note in notes if note.partition == partition and note.at_ms > at_ms),
        default=float("inf"),
    )


def steady_partitions(notes: Sequence[Note], from_ms: float, until_ms: float) -> list[list[Note]]:
    """By partition, what a member processed between two moments, of what it had at both; with the
    record before and the one behind, as there may be none between."""
    before = {n.partition for n in notes if from_ms - 1000 <= n.at_ms < from_ms}
    after = {n.partition for n in notes if until_ms - 1000 <= n.at_ms < until_ms + 1000}
    found: list[list[Note]] = []
    for number in before & after:
        mine = [note for note in notes if note.partition == number]
        earlier = [note for note in mine if note.at_ms < from_ms]
        later = [note for note in mine if note.at_ms > until_ms]
        within = [note for note in mine if from_ms <= note.at_ms <= until_ms]
        found.append([*earlier[-1:], *within, *later[:1]])
    return found


def gap_ms(times: Sequence[float]) -> float:
    """The largest between two that follow each other."""
    return max((b - a for a, b in pairwise(times)), default=float("inf"))


def pause_ms(notes: Sequence[Note]) -> float:
    """How long nothing was processed at most while there was something to be."""
    waits = (b.at_ms - max(a.at_ms, b.append_ms) for a, b in pairwise(notes))
    return max(waits, default=float("inf"))


def prove(folder: Path, plan: Plan) -> None:
    """Print figures; AssertionError if something is not as it was asked for."""
    with BrokerProcess(folder / "data") as broker, ExitStack() as stack:
        asyncio.run(Failover(broker.url, folder, plan, stack).run())
