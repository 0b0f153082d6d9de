"""Erase one key out of a million records, kill the broker meanwhile, and look for what is left.

    python -m tests.proofs.erase                         one key out of 1,000,000 records
    python -m tests.proofs.erase --kills 5               the same, SIGKILL in the middle, 5 times
    python -m tests.proofs.erase --loop --power-cuts 3   on an ext4 loop device, its power cut

The values of the erased key are random bytes that stand nowhere else. Passes only if, once the
receipt says done, none of them is found in any file below the data directory, every other record
is read back at its offset, unchanged, and the receipt counts what was there.

With ``--loop`` (needs root) the device below the file system is searched too, and what is found
there is told, not judged: blocks of removed files are free, not overwritten.
"""

import argparse
import asyncio
import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tailrace
from tailrace.bench.processes import BrokerProcess
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages_admin import ErasureResponse, GetErasureRequest
from tests.proofs.kill import LoopDisk, run

TOPIC = "people"
KEY = b"alice@example.org"
CALL_RECORDS = 5_000
SEARCH_BYTES = 16 * 1024 * 1024
NEEDLE_BYTES = 24
DONE_SECONDS_MAX = 300.0


@dataclass
class Stored:
    """What the log holds: a digest of key and value for every offset, by partition."""

    records: dict[tuple[int, int], bytes] = field(default_factory=dict[tuple[int, int], bytes])
    secret: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])


def digest(key: bytes | None, value: bytes | None) -> bytes:
    return hashlib.blake2b(b"%r %r" % (key, value), digest_size=8).digest()


async def fill(url: str, count: int, needles: list[bytes], rng: random.Random) -> Stored:
    """Keyed records, uncompressed, with those of one key spread evenly among them."""
    stored = Stored()
    every = count // len(needles)
    async with tailrace.connect(url) as client:
        config = {"segment_size": 16 << 20}
        await client.admin.create_topic(TOPIC, partitions=2, config=config)
        async with client.producer(compression="none") as producer:
            for first in range(0, count, CALL_RECORDS):
                numbers = range(first, min(count, first + CALL_RECORDS))
                keys = [KEY if n % every == every // 2 else b"key-%07d" % n for n in numbers]
                values = [
                    needles[n // every] * 3 if key is KEY else b"%09d %s" % (n, rng.randbytes(40))
                    for n, key in zip(numbers, keys, strict=True)
                ]
                # Half of them by key, half where the key does not belong: both are to be found.
                partition = None if first // CALL_RECORDS % 2 else 0
                told = await producer.send_many(TOPIC, values, keys=keys, partition=partition)
                for key, value, one in zip(keys, values, told, strict=True):
                    place = one.partition, one.offset
                    stored.records[place] = digest(key, value)
                    if key is KEY:
                        stored.secret.add(place)
    return stored


async def read_all(url: str) -> dict[tuple[int, int], bytes]:
    found: dict[tuple[int, int], bytes] = {}
    async with tailrace.connect(url) as client:
        async with client.consumer(TOPIC, stop_at_end=True) as consumer:
            async for batch in consumer.batches(max_records=5_000):
                rows = zip(batch.offsets, batch.keys, batch.values, strict=True)
                for offset, key, value in rows:
                    assert (batch.partition, offset) not in found, "an offset came twice"
                    found[batch.partition, offset] = digest(key, value)
    return found


def pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file, with enough of an overlap that no needle is cut apart."""
    with path.open("rb") as file:
        before = b""
        while data := file.read(SEARCH_BYTES):
            yield before + data
            before = data[-NEEDLE_BYTES + 1 :]


def holding(path: Path, needles: list[bytes]) -> int:
    """How often any of the needles is found in a file."""
    return sum(piece.count(needle) for piece in pieces(path) for needle in needles)


def search(directory: Path, needles: list[bytes]) -> dict[str, int]:
    """The files below a directory that hold any of the needles, and how often."""
    found = {
        str(path.relative_to(directory)): holding(path, needles)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    return {name: count for name, count in found.items() if count}


async def ask(url: str) -> bytes:
    """Have the key erased; the id of the erasure. Does not wait."""
    async with tailrace.connect(url) as client:
        receipt = await client.admin.erase(TOPIC, keys=[KEY], wait=False)
        return bytes.fromhex(receipt.id.replace("-", ""))


async def done(url: str, erasure_id: bytes) -> ErasureResponse:
    """The receipt, once it says so."""
    ends_at = time.monotonic() + DONE_SECONDS_MAX
    async with tailrace.connect(url, connect_timeout=30) as client:
        while time.monotonic() < ends_at:
            request = GetErasureRequest(TOPIC, erasure_id, 5_000)
            try:
                answer, _ = await client.cluster.leader_request(None, request, timeout=10)
            except TailraceError as error:
                if not error.retriable:
                    raise
                continue
            assert isinstance(answer, ErasureResponse)
            if answer.completed_at is not None:
                return answer
    raise AssertionError(f"not done in {DONE_SECONDS_MAX:.0f} s")


def prove(
    broker: BrokerProcess, count: int, kills: int, disk: LoopDisk | None, rng: random.Random
) -> None:
    """One run; AssertionError if anything is wrong."""
    needles = [rng.randbytes(NEEDLE_BYTES) for _ in range(min(20, count // 50))]
    began = time.monotonic()
    stored = asyncio.run(fill(broker.url, count, needles, rng))
    print(f"  {count:,} records, {len(stored.secret)} of them with the key", flush=True)
    print(f"  written in {time.monotonic() - began:.1f} s", flush=True)
    before = search(broker.data_dir, needles)
    assert sum(before.values()) >= 3 * len(stored.secret), "the needles are not to be found at all"
    print(f"  {sum(before.values())} places in {len(before)} files hold bytes of it", flush=True)
    began = time.monotonic()
    erasure_id = asyncio.run(ask(broker.url))
    print(f"  asked; taken on in {(time.monotonic() - began) * 1000:.0f} ms", flush=True)
    for number in range(kills):
        time.sleep(rng.uniform(0.0, 1.5))
        broker.kill()
        if disk is not None:
            disk.cut_power()
        left = sum(search(broker.data_dir, needles).values())
        print(f"  killed, {number + 1} of {kills}: {left} places left", flush=True)
        broker.start()
    receipt = asyncio.run(done(broker.url, erasure_id))
    print(f"  done {time.monotonic() - began:.1f} s after it was asked", flush=True)
    judge(broker, stored, receipt, needles)


def judge(
    broker: BrokerProcess, stored: Stored, receipt: ErasureResponse, needles: list[bytes]
) -> None:
    left = search(broker.data_dir, needles)
    assert not left, f"bytes of the erased values are left in {left}"
    assert receipt.records == len(stored.secret), f"the receipt counts {receipt.records}"
    assert all(replica.done for replica in receipt.replicas)
    expected = {at: it for at, it in stored.records.items() if at not in stored.secret}
    found = asyncio.run(read_all(broker.url))
    assert found == expected, (
        f"{len(expected.keys() - found.keys())} records are missing, "
        f"{len(found.keys() - expected.keys())} are too many, the rest differs"
    )
    print(f"ok: no file holds a byte of it; {len(found):,} others are at their offsets, unchanged")


def tell_device(disk: LoopDisk, needles_seed: int, count: int) -> None:
    """What the device itself still holds, and what is left when free blocks are given back."""
    rng = random.Random(needles_seed)
    needles = [rng.randbytes(NEEDLE_BYTES) for _ in range(min(20, count // 50))]
    os.sync()
    left = holding(disk.image, needles)
    print(f"  the raw device holds {left} places with bytes of it, in free blocks")
    run("fstrim", str(disk.mount_point))
    os.sync()
    print(f"  after fstrim it holds {holding(disk.image, needles)}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--power-cuts", type=int, default=0)
    parser.add_argument("--loop", action="store_true", help="on an ext4 loop device")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    if options.power_cuts and not options.loop:
        parser.error("--power-cuts needs --loop")
    print(f"seed {options.seed}")
    folder = Path(tempfile.mkdtemp(prefix="tailrace-erase-"))
    disk = LoopDisk(folder) if options.loop else None
    broker = BrokerProcess((disk.mount_point if disk else folder) / "data")
    broker.stderr_path = folder / "broker.stderr"
    kills = options.kills or options.power_cuts
    cut = disk if options.power_cuts else None
    try:
        with broker:
            prove(broker, options.records, kills, cut, random.Random(options.seed))
        if disk is not None:
            tell_device(disk, options.seed, options.records)
    except AssertionError as error:
        sys.exit(f"FAILED: {error}; kept {folder}")
    finally:
        if disk is not None:
            disk.unmount()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
