"""Tails over HTTP against a real broker: ``python -m tests.proofs.http_tail``.

- a tail that is cut off again and again at random places, also inside of an event, under a
  producer, resumes by its last id: every record once, in the order of its partition;
- slow readers are told exactly what they missed, and the broker's memory stays flat meanwhile;
- readers that never read, and bodies made to take memory, cost it no more than a stated budget.

Memory is the broker process's resident set, beside what it was after a warm-up of the same kind.
"""

import random
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import trio

from tailrace.bench.processes import BrokerProcess
from tests.broker.browsing import Browser
from tests.broker.harness import Client
from tests.broker.tailing import Event, Reader, tailing

PARTITIONS = 3
LOOK_S = 0.05
WRITE_S = 0.02  # between two batches of 200 kB: some 8 MB/s, far more than slow readers take


@dataclass(frozen=True)
class Plan:
    """How much of each. Sizes in bytes."""

    cuts: int = 500
    batches: int = 3_000
    slow_readers: int = 10
    slow_seconds: float = 20.0
    silent_readers: int = 100
    silent_seconds: float = 5.0
    large_batches: int = 10
    bombs: int = 8
    growth_max: int = 32 * 1024 * 1024
    seed: int = 1


@dataclass
class Found:
    """What was measured."""

    records: int = 0
    cuts: int = 0
    seen: int = 0
    dropped: int = 0
    slow_growth: int = 0
    bomb_growth: int = 0
    silent_growth: int = 0


def prove(folder: Path, plan: Plan) -> Found:
    """Raises AssertionError where something of the above does not hold."""
    found = Found()
    with BrokerProcess(folder / "data") as broker:

        async def main() -> None:
            await cut_off(broker, plan, found)
            await read_slowly(broker, plan, found)
            await attack(broker, plan, found)

        trio.run(main)
    return found


def resident_bytes(pid: int) -> int:
    """Without files that are mapped: those pages are the system's, who takes them back."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    anonymous = next(line for line in lines if line.startswith("RssAnon:"))
    return int(anonymous.split()[1]) * 1024


class Watch:
    """The largest resident set while it runs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.before = self.most = resident_bytes(pid)

    async def run(self) -> None:
        while True:
            self.most = max(self.most, resident_bytes(self.pid))
            await trio.sleep(LOOK_S)

    @property
    def growth(self) -> int:
        return self.most - self.before


def browser_of(broker: BrokerProcess) -> Browser:
    return Browser(broker.http_url)


async def client_of(broker: BrokerProcess) -> Client:
    client = Client(await trio.open_tcp_stream("127.0.0.1", broker.port), "proof")
    await client.hello()
    return client


# ── cut off ──────────────────────────────────────────────────────────────────────────────────


async def cut_off(broker: BrokerProcess, plan: Plan, found: Found) -> None:
    rng, reader = random.Random(plan.seed), Reader()
    browser, client = browser_of(broker), await client_of(broker)
    topic_id = await client.create("cut", PARTITIONS)
    path, events = "/api/v1/topics/cut/tail?from=start", list[Event]()

    async def produce() -> None:
        for number in range(plan.batches):
            values = [b"%d %d " % (number, n) + b"x" * rng.randrange(300) for n in range(10)]
            await client.produce(topic_id, values, partition=rng.randrange(PARTITIONS))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(produce)
        for _ in range(plan.cuts):
            left = rng.randrange(1, 30_000)
            async with tailing(browser.host, browser.port, path, reader) as tail:
                while left > 0 and not tail.ended:
                    before = reader.received_bytes
                    with trio.move_on_after(0.05):
                        await tail.receive(min(left, rng.randrange(1, 5_000)))
                    left -= max(1_000, reader.received_bytes - before)
                events += tail.events()
            found.cuts += 1
    ends = [
        (await client.fetch(topic_id, 0, part))[0].results[0].high_watermark
        for part in range(PARTITIONS)
    ]
    found.records = sum(ends)
    assert found.records == plan.batches * 10
    async with tailing(browser.host, browser.port, path, reader) as tail:
        while len(events) < found.records:
            event = await tail.next()
            assert event is not None, "the tail ended"
            events.append(event)
    for part, end in enumerate(ends):
        mine = [event.data["offset"] for event in events if event.data["partition"] == part]
        assert mine == list(range(end)), f"partition {part}"
    await trio.aclose_forcefully(client.stream)


# ── read slowly ──────────────────────────────────────────────────────────────────────────────


async def read_slowly(broker: BrokerProcess, plan: Plan, found: Found) -> None:
    browser, client = browser_of(broker), await client_of(broker)
    topic_id = await client.create("slow")
    written = 0
    for _ in range(20):  # the same work once, so that what it takes for ever is taken
        await client.produce(topic_id, [b"x" * 1_000] * 200)
        written += 200
    path = "/api/v1/topics/slow/tail"
    readers = [Reader() for _ in range(plan.slow_readers)]
    ended = trio.Event()
    begun = [trio.Event() for _ in readers]

    async def read(reader: Reader, joined: trio.Event) -> None:
        """A little at a time; when the producer is through, the rest."""
        seen = dropped = 0
        arguments = (browser.host, browser.port, path, reader)
        async with tailing(*arguments, buffer_bytes=4_096) as tail:
            while not reader.last_id:
                await tail.receive(1_000)
            first = int(reader.last_id.partition(":")[2])
            joined.set()
            while not ended.is_set() or seen + dropped < written - first:
                if ended.is_set():  # what waits in the system's buffers goes through a wider pipe
                    tail.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 1 << 20)
                    await tail.receive(1 << 16)
                else:
                    await trio.sleep(0.02)
                    await tail.receive(2_000)
                for event in tail.events():
                    seen += event.kind == "record"
                    dropped += event.data["records"] if event.kind == "dropped" else 0
        assert seen + dropped == written - first, "every record was seen, or counted as missed"
        found.seen += seen
        found.dropped += dropped

    async with watched(broker, plan) as watch:
        async with trio.open_nursery() as nursery:
            for reader, joined in zip(readers, begun, strict=True):
                nursery.start_soon(read, reader, joined)
            for joined in begun:
                await joined.wait()
            until = trio.current_time() + plan.slow_seconds
            while trio.current_time() < until:
                await client.produce(topic_id, [b"x" * 1_000] * 200)
                written += 200
                await trio.sleep(WRITE_S)
            ended.set()
            # A last one wakes readers that have taken everything, and wait.
            await client.produce(topic_id, [b"end"])
            written += 1
    found.slow_growth = watch.growth
    await trio.aclose_forcefully(client.stream)


# ── attack ───────────────────────────────────────────────────────────────────────────────────


def bombs() -> Sequence[tuple[str, bytes]]:
    """Bodies that take far more memory than their bytes where they are parsed as a whole."""
    json, lines = "application/json", "application/x-ndjson"
    mib = 1 << 20
    return (
        (json, b'{"records":[{"value":[' + b"[]," * (2 * mib) + b"[]]}]}"),
        (json, b'{"records":[' + b"1," * (3 * mib) + b"1]}"),
        (json, b'{"records":[{"value":"' + b"\\u0041" * mib + b'"}]}'),
        (json, b'{"records":' + b"[" * (7 * mib)),
        (lines, b'{"value":[' + b"{}," * (2 * mib) + b"{}]}"),
        (lines, b"[" * (7 * mib)),
        (lines, b"{}\n" * (2 * mib)),
        (lines, b'{"value":"\xf0\x9f\x98\x80' + b"x" * (7 * mib) + b'"}'),
    )


async def attack(broker: BrokerProcess, plan: Plan, found: Found) -> None:
    browser, client = browser_of(broker), await client_of(broker)
    topic_id = await client.create("attacked")
    for _ in range(plan.large_batches):
        await client.produce(topic_id, [b"x" * 100] * 10_000)
    good = b'{"value":"%s"}\n' % (b"x" * 700) * 9_000
    given = {"content-type": "application/x-ndjson"}
    path = "/api/v1/topics/attacked"
    for _ in range(3):
        assert (await browser.ask("POST", f"{path}/records", good, **given)).status == 200
    async with watched(broker, plan) as watch:
        for kind, body in bombs()[: plan.bombs]:
            answer = await browser.ask("POST", f"{path}/records", body, **{"content-type": kind})
            assert answer.status in (400, 413), (body[:40], answer.status)
    found.bomb_growth = watch.growth
    async with watched(broker, plan) as watch, trio.open_nursery() as silent:
        for _ in range(plan.silent_readers):
            silent.start_soon(never_read, browser, f"{path}/tail?from=start")
        await trio.sleep(plan.silent_seconds)
        assert (await browser.get("/livez")).status == 200
        silent.cancel_scope.cancel()
    found.silent_growth = watch.growth
    await trio.aclose_forcefully(client.stream)


@asynccontextmanager
async def watched(broker: BrokerProcess, plan: Plan) -> AsyncIterator[Watch]:
    """AssertionError if its memory grows by more than is allowed."""
    watch = Watch(broker.pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        yield watch
        nursery.cancel_scope.cancel()
    assert watch.growth <= plan.growth_max, f"{watch.growth:,} bytes more"


async def never_read(browser: Browser, path: str) -> None:
    async with tailing(browser.host, browser.port, path, buffer_bytes=4_096):
        await trio.sleep_forever()


@click.command()
@click.option("--cuts", default=Plan.cuts, show_default=True)
@click.option("--seconds", default=Plan.slow_seconds, show_default=True, help="Of slow reading.")
@click.option("--seed", default=Plan.seed, show_default=True)
def main(cuts: int, seconds: float, seed: int) -> None:
    """Prove it, and say what was measured."""
    plan = Plan(cuts=cuts, batches=cuts * 6, slow_seconds=seconds, seed=seed)
    with tempfile.TemporaryDirectory(prefix="tailrace-proof-") as folder:
        found = prove(Path(folder), plan)
    print(f"{found.records:,} records over {found.cuts:,} cuts: each once, in order")
    print(f"{plan.slow_readers} slow readers saw {found.seen:,} and missed {found.dropped:,}")
    print(f"memory: {found.slow_growth >> 10:,} KiB more beside slow readers,")
    print(f"        {found.bomb_growth >> 10:,} KiB more by bodies made for that,")
    print(f"        {found.silent_growth >> 10:,} KiB more by {plan.silent_readers} silent readers")


if __name__ == "__main__":
    main()
