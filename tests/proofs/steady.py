"""A producer of a known rate, which remembers when it sent what."""

import asyncio
import time
from dataclasses import dataclass, field

import tailrace

TICK_S = 0.02


@dataclass
class Steady:
    """Sends until ``count`` records (of all partitions) are sent, or ``stop``."""

    url: str
    topic: str
    partitions: int
    per_tick: int  # records to each partition, every 20 ms
    count: int
    sent_ms: dict[int, list[float]] = field(default_factory=dict[int, list[float]])
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def rate_per_s(self) -> float:
        return self.partitions * self.per_tick / TICK_S

    @property
    def sent(self) -> int:
        return sum(len(of) for of in self.sent_ms.values())

    async def run(self) -> None:
        """Returns when all that was sent is acknowledged, each at the offset of its number."""
        self.sent_ms = {number: [] for number in range(self.partitions)}
        async with (
            tailrace.connect(self.url, client_id="steady") as client,
            client.producer(linger=0.005) as producer,
        ):
            began = time.monotonic()
            tick = 0
            while not self.stop.is_set() and self.sent < self.count:
                await self._send(producer)
                tick += 1
                await asyncio.sleep(max(0.0, began + tick * TICK_S - time.monotonic()))
            await producer.flush()

    async def _send(self, producer: "tailrace.Producer[bytes, bytes]") -> None:
        for number, sent in self.sent_ms.items():
            for _ in range(self.per_tick):
                value = b"%d:%d" % (number, len(sent))
                sent.append(time.time() * 1000)
                await producer.enqueue(self.topic, value, partition=number)
