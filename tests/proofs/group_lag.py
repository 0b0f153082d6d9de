"""What ``group lag`` says, beside what producer and consumer know; and the loss forecast.

A producer of a known rate and a consumer that is slower and commits by itself: at each look the lag
must be what was sent and is not committed, within 10 %, and the age of the oldest of those within
0.5 s. Then a group on a topic with 60 s of retention stops reading: every forecast from then on
names a moment, and when OffsetOutOfRange begins they are compared with it (5 s).
"""

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import tailrace
from tailrace.bench.processes import BrokerProcess
from tests.proofs.steady import TICK_S, Steady

PARTITIONS = 2
RECORDS_OFF_MAX = 0.1
SECONDS_OFF_MAX = 0.5
FORECAST_OFF_S_MAX = 5.0
BEHIND_MIN_S = 1.0  # before, a tenth of the lag is less than a commit
PROBE_S = 0.1


@dataclass(frozen=True)
class Plan:
    """How long, and how fast."""

    seconds: float = 30.0
    per_tick: int = 10  # sent to each partition: 1,000 records a second
    read_per_s: float = 500.0  # of all partitions
    commit_every: int = 50
    window_s: float = 10.0  # of rate and verdict
    retention_s: float = 60.0  # 0: no forecast
    read_s: float = 15.0  # before it stops


@dataclass
class Found:
    """The worst that was seen."""

    looks: int = 0
    records_off: float = 0.0  # a share
    seconds_off: float = 0.0
    rate_off: float = 0.0  # a share
    most: int = 0
    verdicts: set[str] = field(default_factory=set[str])


class Reader:
    """A consumer that reads at a rate, and commits so that it knows what is committed."""

    def __init__(self, consumer: "tailrace.Consumer[bytes, bytes]", plan: Plan) -> None:
        self.committed: dict[int, int] = {}
        self._consumer = consumer
        self._plan = plan

    async def run(self, seconds: float) -> None:
        began = time.monotonic()
        count = 0
        positions: dict[tailrace.TopicPartition, int] = {}
        async for record in self._consumer:
            positions[tailrace.TopicPartition(record.topic, record.partition)] = record.offset + 1
            count += 1
            if count % self._plan.commit_every == 0:
                await self._consumer.commit(positions)
                self.committed.update((at.partition, to) for at, to in positions.items())
                if time.monotonic() >= began + seconds:
                    return
            due = began + count / self._plan.read_per_s
            if due > time.monotonic():
                await asyncio.sleep(due - time.monotonic())


async def compare(client: tailrace.Client, url: str, plan: Plan) -> None:
    """Print how far what is said is from what is so; AssertionError if too far."""
    await client.admin.create_topic("orders", partitions=PARTITIONS)
    producer = Steady(url, "orders", PARTITIONS, plan.per_tick, sys.maxsize)
    found = Found()
    async with client.consumer("orders", group="slow", commit="manual") as consumer:
        reader = Reader(consumer, plan)
        sending = asyncio.create_task(producer.run())
        reading = asyncio.create_task(reader.run(plan.seconds))
        began = time.monotonic()
        while not reading.done():
            await asyncio.sleep(0.25)
            steady = time.monotonic() > began + plan.window_s + 2
            await look(client, producer, reader, found, plan.read_per_s if steady else None)
        await reading
        producer.stop.set()
        await sending
    print(
        f"{producer.rate_per_s:,.0f} records/s written, {plan.read_per_s:,.0f} read, {found.looks}"
        f" looks up to a lag of {found.most:,}: off by at most {100 * found.records_off:.1f} % of"
        f" the records, {found.seconds_off:.2f} s, {100 * found.rate_off:.0f} % of the rate;"
        f" verdicts: {', '.join(sorted(found.verdicts))}"
    )
    assert found.looks, "it was never far enough behind"
    assert found.records_off <= RECORDS_OFF_MAX
    assert found.seconds_off <= SECONDS_OFF_MAX
    assert found.rate_off <= RECORDS_OFF_MAX


async def look(
    client: tailrace.Client,
    producer: Steady,
    reader: Reader,
    found: Found,
    read_per_s: float | None,
) -> None:
    """One, where the answer may be of any moment between the question and its arrival."""
    asked_ms, before = time.time() * 1000, dict(reader.committed)
    sent_before = {number: len(sent) for number, sent in producer.sent_ms.items()}
    said = await client.admin.group_lag("slow")
    told_ms, after = time.time() * 1000, reader.committed
    for one in said.partition_list:
        number = one.partition
        sent = producer.sent_ms[number]
        if number not in before or asked_ms - sent[before[number]] < BEHIND_MIN_S * 1000:
            return
        most = len(sent) - before[number]
        least = sent_before[number] - after[number]
        oldest_s = (told_ms - sent[before[number]]) / 1000
        newest_s = (asked_ms - sent[after[number]]) / 1000
        assert one.lag_seconds is not None
        found.records_off = max(
            *(found.records_off, (one.lag_records - most) / most),
            (least - one.lag_records) / least,
        )
        found.seconds_off = max(
            *(found.seconds_off, one.lag_seconds - oldest_s, newest_s - one.lag_seconds)
        )
    found.looks += 1
    found.most = max(found.most, said.lag_records)
    if read_per_s is not None:
        rate = sum(one.rate_per_s for one in said.partition_list)
        found.rate_off = max(found.rate_off, abs(rate - read_per_s) / read_per_s)
        found.verdicts.add(said.verdict)


# ── the loss forecast ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Forecast:
    """Said at a moment."""

    at: float
    loss_at: float
    verdict: str


async def foresee(client: tailrace.Client, url: str, plan: Plan) -> None:
    """Print how far the forecasts were from what came; AssertionError if too far."""
    await client.admin.create_topic(
        "brief", partitions=1, config={"retention": f"{plan.retention_s:g}s"}
    )
    producer = Steady(url, "brief", 1, plan.per_tick, sys.maxsize)
    sending = asyncio.create_task(producer.run())
    async with client.consumer("brief", group="stopped", commit="manual") as consumer:
        reader = Reader(consumer, plan)
        await reader.run(plan.read_s)
        stopped_at = time.monotonic()
        lost = asyncio.create_task(out_of_range(client, reader.committed[0]))
        forecasts: list[Forecast] = []
        while not lost.done():
            await asyncio.sleep(0.5)
            at = time.monotonic()
            said = await client.admin.group_lag("stopped")
            (one,) = said.partition_list
            if one.margin_seconds is not None:
                forecasts.append(Forecast(at, at + one.margin_seconds, one.verdict))
        lost_at = await lost
    producer.stop.set()
    await sending
    report(forecasts, stopped_at, lost_at, plan)


async def out_of_range(client: tailrace.Client, offset: int) -> float:
    """When reading at an offset begins to raise OffsetOutOfRange."""
    at = tailrace.TopicPartition("brief", 0)
    async with client.consumer(partitions=[at]) as consumer:
        with suppress(tailrace.OffsetOutOfRange):
            while True:
                await consumer.seek(at, offset)
                await anext(consumer.__aiter__())
                await asyncio.sleep(PROBE_S)
    return time.monotonic()


def report(forecasts: list[Forecast], stopped_at: float, lost_at: float, plan: Plan) -> None:
    """See ``foresee``."""
    made = [one for one in forecasts if stopped_at < one.at < lost_at]
    stalled = [one for one in made if one.verdict == "stalled"]
    assert stalled, "it was never called stalled"
    off = [one.loss_at - lost_at for one in stalled]
    before = [one.loss_at - lost_at for one in made if one.verdict != "stalled"]
    print(
        f"a group that stopped, with a retention of {plan.retention_s:g} s: OffsetOutOfRange"
        f" {lost_at - stopped_at:.1f} s later. STALLED after {stalled[0].at - stopped_at:.1f} s;"
        f" {len(off)} forecasts from then on were off by {min(off):+.1f} to {max(off):+.1f} s"
        f" ({len(before)} before it was called so: {min(before):+.1f} to {max(before):+.1f} s)"
    )
    assert max(map(abs, off)) <= FORECAST_OFF_S_MAX, "the forecast is wrong"


async def run(url: str, plan: Plan) -> None:
    async with tailrace.connect(url) as client:
        await compare(client, url, plan)
        if plan.retention_s:
            await foresee(client, url, plan)


def prove(folder: Path, plan: Plan) -> None:
    """Print figures; AssertionError if something is not as it was asked for."""
    assert plan.per_tick / TICK_S * PARTITIONS > plan.read_per_s
    settings = {"group.verdict_window": f"{plan.window_s:g}s"}
    with BrokerProcess(folder / "data", settings=settings) as broker:
        asyncio.run(run(broker.url, plan))
