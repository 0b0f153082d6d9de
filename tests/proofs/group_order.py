"""``run(in_flight=64, order="key")`` over a real access log, its members killed and its handlers
failing at random.

Asked for: what comes first of a client address is done first, and never two of one at a time; what
is committed never passes a record that is not done; 20 times the throughput of one at a time.

All members note to one file, by appends of one line, so that the file is the order of things.
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tailrace
from tailrace.bench.processes import BrokerProcess
from tests.proofs.group_member import ROOT

LOG = ROOT / "tests" / "data" / "apache_access.log"
TOPIC, GROUP = "access", "readers"
PARTITIONS = 6
MEMBERS = 3
IN_FLIGHT = 64
SESSION_S = 3.0
FAILING = 0.002  # of the records, each time they are handled
SLOW = 0.01
SLOW_S = 0.2
FAST_S = 0.05  # at most
SPEED_SLEEP_S = 0.005
SPEEDUP_MIN = 20.0
LIMIT_SHARE_MIN = 0.8  # of what the busiest client leaves possible
Order = Literal["key", "none"]
Place = tuple[int, int]  # partition, offset


@dataclass(frozen=True)
class Plan:
    """How much."""

    lines: int = 10_000
    kills: int = 12
    kill_every_s: float = 1.5
    alone: int = 1_000  # records of the run that handles one at a time; 0: no such run
    seconds_max: float = 300.0


def lines_of(count: int) -> list[bytes]:
    """Of the access log, from its beginning on."""
    return LOG.read_bytes().splitlines()[:count]


def client_of(line: bytes) -> bytes:
    return line.partition(b" ")[0]


async def fill(client: tailrace.Client, topic: str, lines: list[bytes]) -> None:
    """One record a line, with the client's address as its key."""
    await client.admin.create_topic(topic, partitions=PARTITIONS)
    async with client.producer() as producer:
        await producer.send_many(topic, lines, keys=[client_of(line) for line in lines])


# ── throughput ───────────────────────────────────────────────────────────────────────────────


async def speed(client: tailrace.Client, in_flight: int, order: Order, count: int) -> float:
    """Records a second, with a handler of 5 ms."""
    enough = asyncio.Event()
    handled = 0

    async def handle(record: tailrace.Record[bytes, bytes]) -> None:
        nonlocal handled
        await asyncio.sleep(SPEED_SLEEP_S)
        handled += 1
        if handled == count:
            enough.set()

    async with client.consumer("speed", group=f"speed-{in_flight}-{order}") as consumer:
        began = time.monotonic()
        running = asyncio.create_task(consumer.run(handle, in_flight=in_flight, order=order))
        await enough.wait()
        elapsed = time.monotonic() - began
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    return count / elapsed


async def compare(client: tailrace.Client, plan: Plan) -> None:
    """Print the speeds; AssertionError if there is too little between them.

    The lines of one client come after each other, so its share of the log is a limit for whoever
    keeps them in order: a twentieth for the busiest one.
    """
    lines = lines_of(plan.lines)
    busiest = max(Counter(map(client_of, lines)).values())
    limit = min(len(lines) / busiest, float(IN_FLIGHT))
    await fill(client, "speed", lines)
    one = await speed(client, 1, "key", min(plan.alone, plan.lines))
    by_key = await speed(client, IN_FLIGHT, "key", plan.lines) / one
    free = await speed(client, IN_FLIGHT, "none", plan.lines) / one
    print(
        f"a handler of 5 ms: {one:,.0f} records/s one at a time; in_flight={IN_FLIGHT}, order='key'"
        f" {by_key:.1f} times that, of {limit:.1f} that this log allows; order='none' {free:.1f}"
    )
    assert by_key >= LIMIT_SHARE_MIN * limit, f"{by_key:.1f} times, of {limit:.1f}"
    assert free >= SPEEDUP_MIN, f"{free:.1f} times without keys"


# ── order, under crashes ─────────────────────────────────────────────────────────────────────


@dataclass
class Story:
    """What the notes say: who began and ended what, in that order."""

    keys: dict[Place, bytes]
    dead: dict[str, int] = field(default_factory=dict[str, int])  # member: notes there were then
    notes: list[tuple[str, str, Place]] = field(default_factory=list[tuple[str, str, Place]])

    def read(self, path: Path) -> None:
        self.notes.clear()
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines(keepends=True):
            if line.endswith("\n"):
                member, what, partition, offset = line.split()
                self.notes.append((member, what, (int(partition), int(offset))))

    def done(self) -> set[Place]:
        return {place for _, what, place in self.notes if what == "done"}

    def faults(self) -> list[str]:
        """Against the order of any key."""
        wrong: list[str] = []
        order: dict[bytes, list[int]] = defaultdict(list)  # of a key, in its partition
        for (_, offset), key in sorted(self.keys.items()):
            order[key].append(offset)
        finished: Counter[bytes] = Counter()  # of a key: how many of its first records are done
        done: set[Place] = set()
        busy: dict[bytes, tuple[str, Place]] = {}
        for at, (member, what, place) in enumerate(self.notes):
            key = self.keys[place]
            if what == "begin":
                other = busy.get(key)
                if other is not None and self.dead.get(other[0], at + 1) > at:
                    wrong.append(f"{place} of {member} began while {other[1]} was at work")
                if any((place[0], o) not in done for o in order[key][: order[key].index(place[1])]):
                    wrong.append(f"{place} began before all before it were done")
                busy[key] = (member, place)
                continue
            busy.pop(key, None)
            if what == "done" and place not in done:
                done.add(place)
                if order[key][finished[key]] != place[1]:
                    wrong.append(f"{place} was done before {order[key][finished[key]]}")
                finished[key] += 1
        return wrong


class Crowd:
    """The members: always so many, whatever becomes of them."""

    def __init__(self, url: str, notes: Path, rng: random.Random) -> None:
        self.started = 0
        self.failed = 0  # ended by an exception of a handler
        self._url = url
        self._notes = notes
        self._rng = rng
        self._living: dict[str, subprocess.Popen[bytes]] = {}

    def fill_up(self, story: Story) -> None:
        """Replace those that are dead."""
        for name, process in list(self._living.items()):
            if process.poll() is not None:
                self._buried(name, story)
                self.failed += 1
        while len(self._living) < MEMBERS:
            name = f"m{self.started}"
            command = [sys.executable, "-m", "tests.proofs.group_order", self._url]
            with self._notes.with_suffix(f".{name}.log").open("wb") as log:
                self._living[name] = subprocess.Popen(
                    [*command, str(self._notes), name], stderr=log, cwd=ROOT
                )
            self.started += 1

    def kill_one(self, story: Story) -> None:
        name = self._rng.choice(list(self._living))
        self._living[name].kill()
        self._living[name].wait()
        self._buried(name, story)

    def end(self) -> None:
        """SIGTERM: ``run`` drains, commits and leaves."""
        for process in self._living.values():
            process.terminate()
        for process in self._living.values():
            process.wait(30)

    def kill_all(self) -> None:
        for process in self._living.values():
            process.kill()
            process.wait()

    def _buried(self, name: str, story: Story) -> None:
        del self._living[name]
        story.read(self._notes)
        story.dead[name] = len(story.notes)


async def crash(client: tailrace.Client, url: str, folder: Path, plan: Plan, seed: int) -> None:
    """Print figures; AssertionError with the first things that are wrong."""
    lines = lines_of(plan.lines)
    await fill(client, TOPIC, lines)
    story = Story(await places(client))
    notes = folder / "notes"
    crowd = Crowd(url, notes, random.Random(seed))
    looks, kills, began = 0, 0, time.monotonic()
    next_kill = began + 2 * plan.kill_every_s
    try:
        while True:
            crowd.fill_up(story)
            await asyncio.sleep(0.1)
            committed = await committed_offsets(client)
            story.read(notes)  # after: what is committed was done before that
            done = story.done()
            looks += 1
            for partition, offset in committed.items():
                missing = [o for o in range(offset) if (partition, o) not in done]
                assert not missing, f"committed {partition}@{offset}, but {missing[:3]} is not done"
            if sum(committed.values()) == len(lines):
                break
            assert time.monotonic() - began < plan.seconds_max, f"{len(done)} of {len(lines)} done"
            if kills < plan.kills and time.monotonic() > next_kill:
                crowd.kill_one(story)
                kills, next_kill = kills + 1, time.monotonic() + plan.kill_every_s
        crowd.end()
    finally:
        crowd.kill_all()
    story.read(notes)
    wrong = story.faults()
    ends = Counter(what for _, what, _ in story.notes)
    print(
        f"{len(lines):,} lines of {len(set(story.keys.values())):,} clients: {kills} x kill -9,"
        f" {crowd.failed} ends by a handler's exception, {ends['failed']} exceptions;"
        f" {ends['done'] - len(lines):,} were done again; {looks} looks at what was committed;"
        f" {time.monotonic() - began:.0f} s"
    )
    assert kills == plan.kills, f"it was over after {kills} kills"
    assert not wrong, f"{len(wrong)} against the order: {wrong[:3]}"


async def places(client: tailrace.Client) -> dict[Place, bytes]:
    """Where each key stands."""
    async with client.consumer(TOPIC, stop_at_end=True) as consumer:
        return {(r.partition, r.offset): r.key or b"" async for r in consumer}


async def committed_offsets(client: tailrace.Client) -> dict[int, int]:
    try:
        lag = await client.admin.group_lag(GROUP)
    except tailrace.NotFound:  # nobody has joined yet
        return {}
    return {one.partition: one.committed or 0 for one in lag.partition_list}


# ── in a member ──────────────────────────────────────────────────────────────────────────────


async def work(url: str, notes: str, name: str) -> None:
    """Until SIGTERM, or until a record has failed three times."""
    rng = random.Random()
    out = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(what: str, record: tailrace.Record[bytes, bytes]) -> None:
        os.write(out, f"{name} {what} {record.partition} {record.offset}\n".encode())

    async def handle(record: tailrace.Record[bytes, bytes]) -> None:
        note("begin", record)
        try:
            await asyncio.sleep(SLOW_S if rng.random() < SLOW else rng.random() * FAST_S)
        except asyncio.CancelledError:  # another handler has failed
            note("cancelled", record)
            raise
        if rng.random() < FAILING:
            note("failed", record)
            raise ValueError("as planned")
        note("done", record)

    policy = tailrace.retry(2, backoff=0.01) if rng.random() < 0.5 else None
    async with (
        tailrace.connect(url, client_id=name) as client,
        client.consumer(TOPIC, group=GROUP, session_timeout=SESSION_S) as consumer,
    ):
        await consumer.run(handle, in_flight=IN_FLIGHT, order="key", on_error=policy)


def prove(folder: Path, plan: Plan, seed: int) -> None:
    """Print figures; AssertionError if something is not as it was asked for."""

    async def both(url: str) -> None:
        async with tailrace.connect(url) as client:
            if plan.alone:
                await compare(client, plan)
            await crash(client, url, folder, plan, seed)

    with BrokerProcess(folder / "data") as broker:
        asyncio.run(both(broker.url))


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
