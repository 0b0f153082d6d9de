"""When partitions were without a leader: each broker is asked ten times a second whether it leads.

A partition has a leader while some broker says of itself that it leads, in no older epoch than was
heard of before. So a leader that is killed, paused or cut off from the clients is none, without a
word about who was hit; one that is cut off from its followers is one, though it takes nothing.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import NamedTuple

from tailrace.protocol.connection import ClientConnection
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import MetadataRequest, MetadataResponse

ASK_EVERY_S = 0.1
ANSWER_S_MAX = 1.0
GAP_S = 0.25  # shorter ones are the pace of asking
READ_BYTES = 64 << 10
Gap = tuple[int, float, float]  # partition, from when (time.monotonic), how long


class Claim(NamedTuple):
    """A broker says that it leads."""

    partition: int
    epoch: int


class Leaders:
    """Gaps between claims. A partition counts from its first claim on."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []
        self._newest: dict[int, tuple[int, float]] = {}  # by partition: epoch, and heard when

    @property
    def led(self) -> set[int]:
        """The partitions that had one at any time."""
        return set(self._newest)

    def hear(self, at: float, claims: Iterable[Claim]) -> None:
        for partition, epoch in claims:
            newest, last = self._newest.get(partition, (epoch, at))
            if epoch < newest:  # it has not heard yet that another one leads
                continue
            self._note(partition, last, at)
            self._newest[partition] = epoch, at

    def end(self, at: float) -> None:
        """A gap that lasts is one, too."""
        for partition, (_, last) in self._newest.items():
            self._note(partition, last, at)

    def _note(self, partition: int, last: float, at: float) -> None:
        if at - last > GAP_S:
            self.gaps.append((partition, last, at - last))


async def watch(url: str, topic: str, leaders: Leaders) -> None:
    """Ask every broker of ``url`` until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        for address in url.removeprefix("tailrace://").split(","):
            tasks.create_task(_ask_again(address, topic, leaders))


async def _ask_again(address: str, topic: str, leaders: Leaders) -> None:
    """One that does not answer, or says no, is asked anew on another connection."""
    while True:
        try:
            await _ask(address, topic, leaders)
        except (OSError, TailraceError):
            await asyncio.sleep(ASK_EVERY_S)


async def _ask(address: str, topic: str, leaders: Leaders) -> None:
    """Over one connection, until that fails."""
    host, port = address.rsplit(":", 1)
    async with asyncio.timeout(ANSWER_S_MAX):
        reader, writer = await asyncio.open_connection(host, int(port))
    try:
        line = ClientConnection("leader-watch", "tailrace/proof")
        writer.write(line.open())
        while line.hello is None:
            await _read(line, reader)
        while True:
            writer.write(line.request(MetadataRequest((topic,), False))[1])
            answer = await _read(line, reader)
            leaders.hear(time.monotonic(), _claims(answer, line.hello.broker_id))
            await asyncio.sleep(ASK_EVERY_S)
    finally:
        writer.close()


async def _read(line: ClientConnection, reader: asyncio.StreamReader) -> object:
    """The next answer."""
    async with asyncio.timeout(ANSWER_S_MAX):
        while data := await reader.read(READ_BYTES):
            for answer in line.feed(data):
                return answer.message
    raise ConnectionResetError


def _claims(answer: object, broker: str) -> Iterable[Claim]:
    if not isinstance(answer, MetadataResponse):
        return []
    return [
        Claim(one.partition, one.leader_epoch)
        for topic in answer.topics
        for one in topic.partitions
        if one.leader == broker
    ]
