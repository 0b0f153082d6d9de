"""Kill a real broker at random moments under a producing client, and read everything back.

    python -m tests.proofs.kill --kills 20         SIGKILL, same data directory
    python -m tests.proofs.kill --power-cuts 5     SIGKILL, then only what the disk already had

A power cut is played on an ext4 file system in a loop file: after SIGKILL the backing file is
copied before anything is unmounted, and the broker starts again on the copy. What was written but
never synced exists only in the page cache of the first mount, so the copy does not have it. (A
killed process alone loses no page cache, which is why both runs are needed.)

Passes only if every acknowledged record is read back exactly once, at its offset, unchanged, and
each partition holds the producer's records in the order they were sent.
"""

import argparse
import asyncio
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import tailrace
from tailrace.bench.processes import BrokerProcess

PARTITIONS = 2
TOPIC = "killed"
LOOP_FILE_BYTES = 512 * 1024 * 1024
IN_FLIGHT_MAX = 2_000
DRAIN_SECONDS_MAX = 60.0


@dataclass
class Outcome:
    """What one run saw."""

    acked: dict[tuple[int, int], bytes] = field(default_factory=dict[tuple[int, int], bytes])
    failed: int = 0
    kills: int = 0


class LoopDisk:
    """An ext4 file system in a file, whose power can be cut. Needs root."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.img"
        self.mount_point = folder / "disk"
        self.mount_point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(LOOP_FILE_BYTES)
        run("mkfs.ext4", "-q", str(self.image))
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", str(self.image), str(self.mount_point))

    def unmount(self) -> None:
        run("umount", str(self.mount_point))

    def cut_power(self) -> None:
        """Go on with what the device had at this moment."""
        survivor = self.image.with_suffix(".copy")
        shutil.copyfile(self.image, survivor)
        self.unmount()
        survivor.replace(self.image)
        self.mount()


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


async def produce(url: str, stop: asyncio.Event, outcome: Outcome) -> None:
    """Send numbered records until told to stop, remembering what was acknowledged where."""
    room = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def settle(value: bytes, delivery: tailrace.Delivery) -> None:
        try:
            metadata = await delivery
            outcome.acked[metadata.partition, metadata.offset] = value
        except tailrace.TailraceError:
            outcome.failed += 1
        finally:
            room.release()

    async with tailrace.connect(url, connect_timeout=20) as client:
        async with client.producer(timeout=120) as producer, asyncio.TaskGroup() as tasks:
            number = 0
            while not stop.is_set():
                await room.acquire()
                value = b"%012d %s" % (number, b"x" * (number % 300))
                delivery = await producer.enqueue(TOPIC, value, partition=number % PARTITIONS)
                tasks.create_task(settle(value, delivery))
                number += 1
                if number % 64 == 0:
                    await asyncio.sleep(0.001)


async def read_all(url: str) -> dict[tuple[int, int], bytes]:
    found: dict[tuple[int, int], bytes] = {}
    async with tailrace.connect(url) as client:
        async with client.consumer(TOPIC, stop_at_end=True) as consumer:
            async for record in consumer:
                assert record.value is not None
                assert (record.partition, record.offset) not in found, "an offset came twice"
                found[record.partition, record.offset] = record.value
    return found


def judge(outcome: Outcome, found: dict[tuple[int, int], bytes]) -> None:
    """Exit with what is wrong, if anything is."""
    lost = [at for at, value in outcome.acked.items() if found.get(at) != value]
    assert not lost, f"{len(lost)} acknowledged records lost or changed, first {lost[:3]}"
    assert len(set(found.values())) == len(found), "a record was written twice"
    for partition in range(PARTITIONS):
        at = sorted(key for key in found if key[0] == partition)
        assert [offset for _, offset in at] == list(range(len(at))), "offsets have gaps"
        numbers = [int(found[key][:12]) for key in at]
        assert numbers == sorted(numbers), f"partition {partition} is out of order"


async def rounds(
    broker: BrokerProcess, count: int, disk: LoopDisk | None, rng: random.Random
) -> None:
    outcome = Outcome()
    stop = asyncio.Event()
    async with tailrace.connect(broker.url) as client:
        await client.admin.create_topic(TOPIC, partitions=PARTITIONS)
    producing = asyncio.create_task(produce(broker.url, stop, outcome))
    try:
        for number in range(count):
            acked_before = len(outcome.acked)
            began = time.monotonic()
            while len(outcome.acked) == acked_before and time.monotonic() - began < 30:
                await asyncio.sleep(0.01)
                assert not producing.done(), producing.exception()
            assert len(outcome.acked) > acked_before, "the client did not come back"
            await asyncio.sleep(rng.uniform(0.05, 0.8))
            await asyncio.to_thread(broker.kill)
            if disk is not None:
                await asyncio.to_thread(disk.cut_power)
            await asyncio.to_thread(broker.start)
            outcome.kills += 1
            print(f"  {number + 1}/{count}: {len(outcome.acked):,} acknowledged", flush=True)
    finally:
        stop.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(producing), DRAIN_SECONDS_MAX)
    await producing
    found = await read_all(broker.url)
    judge(outcome, found)
    kind = "kills" if disk is None else "power cuts"
    print(
        f"ok: {outcome.kills} {kind}; {len(outcome.acked):,} acknowledged, all read back once, in"
        f" order, unchanged; {len(found) - len(outcome.acked):,} more were written,"
        f" {outcome.failed:,} sends failed"
    )


def report_recoveries(broker: BrokerProcess) -> None:
    """What recovery said it checked and cut, from the broker's own log."""
    text = broker.stderr_path.read_text(errors="replace")
    lines = [line for line in text.splitlines() if "recover" in line]
    cut = sum(int(number) for number in re.findall(r'"truncated_bytes": ?(\d+)', text))
    print(f"  recovery wrote {len(lines)} lines and cut {cut:,} bytes; the last: {lines[-1:]}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--power-cuts", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    for count, cut in ((options.kills, False), (options.power_cuts, True)):
        if count:
            one_run(count, cut, random.Random(options.seed))


def one_run(count: int, cut: bool, rng: random.Random) -> None:
    """``count`` kills or power cuts of one broker on a fresh directory."""
    folder = Path(tempfile.mkdtemp(prefix="tailrace-kill-"))
    disk = LoopDisk(folder) if cut else None
    data = (disk.mount_point if disk else folder) / "data"
    broker = BrokerProcess(data)
    if disk is not None:
        broker.stderr_path = folder / "broker.stderr"
    try:
        with broker:
            asyncio.run(rounds(broker, count, disk, rng))
        report_recoveries(broker)
    except AssertionError as error:
        sys.exit(f"FAILED: {error}; kept {folder}")
    finally:
        if disk is not None:
            disk.unmount()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
