"""Erasures over crashes: the broker dies at a disk operation of one, and the machine with it.

Whatever the crash leaves, the next start finishes the erasure: nothing of it is found in any file,
also if the power fails right after the receipt, and everything else is where it was.
"""

import json
from dataclasses import dataclass

import pytest
import trio

from tailrace.broker.erasure import ERASURES
from tailrace.client.client import Client
from tailrace.protocol.errors import ConnectError
from tailrace.protocol.messages_admin import ErasureResponse, GetErasureRequest
from tailrace.simulation.disk import Folder, Inode
from tailrace.simulation.run import SimCluster, run_cluster
from tailrace.simulation.world import Settings, SimNode

SETTINGS: Settings = {
    "broker.auto_create": True,
    "topic.segment_size": "16KiB",
    "topic.max_record": "8KiB",
}
SECRET = b"alice has a secret"
BATCHES = 8
RECORDS = 5  # of a batch; the third is Alice's
EVERYTHING = BATCHES * RECORDS
POINTS = range(0, 90, 3)  # disk operations after the request was taken on; it is through by then


@dataclass
class Outcome:
    """How a run went."""

    died: bool
    records: int


async def fill(client: Client) -> None:
    async with client.producer(compression="none") as producer:
        for batch in range(BATCHES):
            values = [b"%02d " % (batch * RECORDS + n) + bytes(1_500) for n in range(RECORDS)]
            values[2] = SECRET
            keys = [b"bob", b"bob", b"alice", None, b"carol"]
            await producer.send_many("people", values, keys=keys)


async def receipt(client: Client, erasure_id: bytes) -> ErasureResponse:
    request = GetErasureRequest("people", erasure_id, 5_000)
    for _ in range(20):
        try:
            answer, _ = await client.cluster.leader_request(None, request, timeout=30.0)
        except ConnectError:  # the connection it was sent on died with the machine
            continue
        assert isinstance(answer, ErasureResponse)
        if answer.completed_at is not None:
            return answer
    raise AssertionError("not done in 100 s")


async def read(client: Client) -> list[tuple[int, bytes | None]]:
    async with client.consumer("people", stop_at_end=True) as consumer:
        return [(one.offset, one.value[:2] if one.value else None) async for one in consumer]


def holding(node: SimNode) -> list[str]:
    """Files of the machine in which the secret stands."""

    def walk(folder: Folder, path: str) -> list[str]:
        found: list[str] = []
        for name, entry in folder.entries.items():
            if isinstance(entry, Folder):
                found += walk(entry, f"{path}/{name}")
            elif SECRET in whole(entry):
                found.append(f"{path}/{name}")
        return found

    return walk(node.platter.root, "")


def completed(node: SimNode) -> bool:
    """Whether the one erasure is, by the metadata store."""
    stored = (entry for key, entry in node.keep.entries.items() if key.startswith(ERASURES))
    return all(json.loads(entry.value)["completed_at"] is not None for entry in stored)


def whole(inode: Inode) -> bytes:
    return inode.content.read(inode.content.high, 0)


async def erase_and_crash(cluster: SimCluster, point: int | None) -> Outcome:
    node = cluster.nodes["n1"]
    async with cluster.client() as client:
        await fill(client)
        before = await read(client)
        assert len(before) == EVERYTHING
        assert holding(node)
        asked = await client.admin.erase("people", keys=[b"alice"], wait=False)
        assert node.life is not None
        if point is not None:
            node.life.dies_at_step = node.life.steps + point
        with trio.move_on_after(20):
            while node.running and not completed(node):  # noqa: ASYNC110 a death is no event
                await trio.sleep(0.001)
        node.life.dies_at_step = None
        died = not node.running
        if died:
            node.power_cut()
            await node.start()
            assert node.failure is None
        done = await receipt(client, bytes.fromhex(asked.id.replace("-", "")))
        assert holding(node) == []
        node.power_cut()
        assert holding(node) == []
        await node.start()
        left = [(offset, value) for offset, value in before if offset % RECORDS != 2]
        assert await read(client) == left
        assert holding(node) == []
        return Outcome(died, done.records)
    raise AssertionError("unreachable")


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_operation_of_an_erasure_is_made_good(point: int) -> None:
    async def main(cluster: SimCluster) -> Outcome:
        return await erase_and_crash(cluster, point)

    outcome = run_cluster(main, seed=point, settings=SETTINGS).value
    assert outcome.records == BATCHES


def test_crash_points_cover_an_erasure_from_end_to_end() -> None:
    async def main(cluster: SimCluster) -> tuple[bool, bool]:
        node = cluster.nodes["n1"]
        async with cluster.client() as client:
            await fill(client)
            assert node.life is not None
            first = node.life.steps
            await client.admin.erase("people", keys=[b"alice"])
            return node.life.steps - first > POINTS.step, node.life.steps - first <= POINTS.stop
        raise AssertionError("unreachable")

    assert run_cluster(main, seed=0, settings=SETTINGS).value == (True, True)
