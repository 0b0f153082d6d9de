"""Nothing a peer sends harms the broker or its other connections.

Every prefix and every single-byte corruption of every request, and the classic bombs, end in a
typed error or a closed connection; tasks, open files and memory are then what they were before.
"""

import json
import os
import random
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import lz4.frame
import msgpack
import pytest
import trio
import zstandard
from xxhash import xxh3_64_intdigest, xxh32_intdigest

from tailrace.broker.server import Ready, Server
from tailrace.protocol.batch import BatchError, decode_columns, header_seed, parse_header
from tailrace.protocol.codec import decode_message, encode_message
from tailrace.protocol.errors import TailraceError, from_wire
from tailrace.protocol.frame import PREAMBLE, Frame, FrameLimits, FrameReader, encode_frame
from tailrace.protocol.messages import (
    REQUESTS,
    Api,
    ErrorResponse,
    MetadataRequest,
    MetadataResponse,
    ProduceResponse,
)
from tests.broker.harness import (
    Client,
    batch,
    connected,
    produce_request,
    request_memory,
    run,
    serving,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "frames"
AT_ONCE = 24
RSS_MAX_BYTES = 32 * 1024 * 1024


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Witness:
    """Another connection, that must be served all the while."""

    def __init__(self, client: Client, topic_id: bytes) -> None:
        self.topic_id = topic_id
        self._client = client
        self._offset = 0

    async def check(self) -> None:
        result = await self._client.produce(self.topic_id, [b"witness"], partition=1)
        assert result.error is None
        assert result.base_offset == self._offset
        answer, body = await self._client.fetch(self.topic_id, self._offset, partition=1)
        assert answer.results[0].length == len(body) > 0
        self._offset += 1


@asynccontextmanager
async def unharmed(tmp_path: Path) -> AsyncIterator[tuple[Ready, Witness]]:
    """A broker that must be as before at the end."""
    async with serving(tmp_path) as (server, ready), connected(ready, "witness") as client:
        witness = Witness(client, await client.create("orders", partitions=2))
        await witness.check()
        for _ in range(3):  # what is allocated once for everybody
            async with connected(ready) as other:
                await other.produce(witness.topic_id, [b"x"])
                await other.fetch(witness.topic_id)
        await quiet(server)
        tasks = trio.lowlevel.current_statistics().tasks_living
        files, rss = open_files(), rss_bytes()
        yield ready, witness
        await witness.check()
        await quiet(server)
        assert trio.lowlevel.current_statistics().tasks_living <= tasks
        assert open_files() <= files
        assert rss_bytes() - rss <= RSS_MAX_BYTES
        assert server.open_requests() == []
        assert request_memory(server) == 0
        assert server.metrics.requests_in_flight.value == 0


async def quiet(server: Server) -> None:
    """Until only the witness is connected, and its fetches are forgotten."""
    with trio.fail_after(10):
        while server.metrics.connections.of("client").value > 1:
            await trio.lowlevel.checkpoint()


async def answers_to(ready: Ready, data: bytes, *, hello: bool = True) -> list[Frame]:
    """Every frame that the broker answers to so many bytes, until it closes."""
    client = Client(await trio.open_tcp_stream(*ready.addresses["client"]), "bad")
    raw = b""
    try:
        with trio.fail_after(10):
            if hello:
                await client.hello()
            await client.stream.send_all(data)
            await client.stream.send_eof()
            while more := await client.stream.receive_some():
                raw += more
    except trio.BrokenResourceError:
        pass  # closed while some of ours was unread
    finally:
        await trio.aclose_forcefully(client.stream)
    reader = FrameReader(FrameLimits(lambda api: 1 << 30, 1 << 30))
    reader.feed(raw.removeprefix(PREAMBLE) if not hello else raw)
    return list(iter(reader.next, None))


def assert_refused(frames: list[Frame]) -> None:
    """Closed without a word, or with a typed error, or a response full of errors."""
    for frame in frames:
        if frame.api == Api.ERROR:
            error = from_wire(decode_message(ErrorResponse, frame.head).error)
            assert type(error) is not TailraceError, "an error of the catalogue"
        else:
            assert frame.api == Api.PRODUCE, f"answered as if nothing were wrong: {frame}"
            results = decode_message(ProduceResponse, frame.head).results
            assert all(result.error is not None for result in results)


async def refuse_all(ready: Ready, witness: Witness, cases: list[bytes], *, hello: bool) -> None:
    """Some at a time, with a witness between."""
    waiting = iter(cases)

    async def work() -> None:
        for data in waiting:
            assert_refused(await answers_to(ready, data, hello=hello))

    async def look() -> None:
        while not done.is_set():
            await witness.check()
            with trio.move_on_after(0.02):
                await done.wait()

    done = trio.Event()
    async with trio.open_nursery() as background:
        background.start_soon(look)
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(work)
        done.set()


def vectors() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(VECTORS.glob("*_request*.json")):
        found[path.stem] = bytes.fromhex(json.loads(path.read_text())["hex"])
    assert len(found) >= len(REQUESTS)
    return found


def prefixes(data: bytes) -> Iterator[bytes]:
    return (data[:length] for length in range(len(data)))


def corruptions(data: bytes, seed: int) -> Iterator[bytes]:
    """One changed byte at every place."""
    rng = random.Random(seed)
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= rng.randrange(1, 256)
        yield bytes(changed)


def own_produce(topic_id: bytes) -> bytes:
    """A request that would succeed: damage to its batch must be found too."""
    entry = batch(topic_id, [b"a", b"b"])
    head = encode_message(produce_request(topic_id, [entry]))
    return encode_frame(Api.PRODUCE, 1, 9, head, len(entry)) + entry


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["prefix", "corruption"])
def test_every_damaged_request_is_refused(tmp_path: Path, damage: str) -> None:
    def damaged(data: bytes) -> list[bytes]:
        return list(prefixes(data) if damage == "prefix" else corruptions(data, seed=1))

    async def main() -> None:
        async with unharmed(tmp_path) as (ready, witness):
            for name, data in vectors().items():
                if name.startswith("hello"):
                    cases = damaged(PREAMBLE + data)
                    await refuse_all(ready, witness, cases, hello=False)
                else:
                    await refuse_all(ready, witness, damaged(data), hello=True)
            await refuse_all(ready, witness, damaged(own_produce(witness.topic_id)), hello=True)
            assert not (await answers_to(ready, b""))

    run(main)


# ── bombs and other classics ─────────────────────────────────────────────────────────────────


def framed(api: int, head: bytes, version: int = 1, length: int | None = None) -> bytes:
    """A frame whose check is right, whatever it holds or claims."""
    size = 16 + len(head) if length is None else length
    covered = struct.pack(">IHHII", size, api, version, 9, len(head))
    return covered + struct.pack(">I", xxh32_intdigest(covered + head)) + head


METADATA, PRODUCE, FETCH = Api.METADATA, Api.PRODUCE, Api.FETCH
NAME = b"\xa6orders"
BAD_FRAMES: dict[str, bytes] = {
    "2 GiB": framed(PRODUCE, b"", length=(1 << 31) - 1),
    "4 GiB": framed(PRODUCE, b"", length=(1 << 32) - 1),
    "length 0": framed(METADATA, b"", length=0),
    "length 1": framed(METADATA, b"", length=1),
    "head longer than frame": struct.pack(">IHHIII", 16, 1, 1, 9, 1 << 30, 0),
    "unknown api": framed(99, b"\x90"),
    "unknown version": framed(METADATA, b"\x92\xc0\xc2", version=7),
    "error as request": framed(Api.ERROR, b"\x90"),
    "second hello": framed(Api.HELLO, b"\x95\x01\x01\xa1c\xa1s\xc0"),
    "array of 2^32-1": framed(METADATA, b"\xdd\xff\xff\xff\xff"),
    "map of 2^32-1": framed(METADATA, b"\xdf\xff\xff\xff\xff"),
    "string of 2^32-1": framed(METADATA, b"\x92\x91\xdb\xff\xff\xff\xff"),
    "depth 2,000": framed(METADATA, b"\x91" * 2_000 + b"\xc0"),
    "depth 60,000": framed(METADATA, b"\x91" * 60_000 + b"\xc0"),
    "ext type": framed(METADATA, b"\x92\xd4\x05\x00\xc2"),
    "invalid UTF-8": framed(METADATA, b"\x92\x91\xa2\xff\xfe\xc2"),
    "float for bool": framed(METADATA, b"\x92\xc0\xcb" + struct.pack(">d", float("nan"))),
    "trailing byte": framed(METADATA, b"\x92\xc0\xc2\xc0"),
    "empty head": framed(METADATA, b""),
    "10,001 topics": framed(
        METADATA, b"\x92\xdc" + struct.pack(">H", 10_001) + NAME * 10_001 + b"\xc2"
    ),
    "9,000 topics": framed(
        METADATA, b"\x92\xdc" + struct.pack(">H", 9_000) + NAME * 9_000 + b"\xc2"
    ),
    "9,000 partitions": framed(
        FETCH,
        msgpack.packb([0, 1, 1, 0, None, -1, [[bytes(16), 0, 0, 1, -1, -1, -1]] * 9_000]),
    ),
    "9,000 batches": framed(
        PRODUCE, msgpack.packb([-1, 1, [[bytes(16), 0, 0]] * 9_000], use_bin_type=True)
    ),
    "a body that is not named": framed(PRODUCE, b"\x93\xff\x01\x90", length=16 + 4 + 9) + bytes(9),
    "a transaction": framed(Api.INIT_PRODUCER_ID, b"\x91\xa1x"),
    "a 64 KiB name": framed(Api.CREATE_TOPIC, msgpack.packb(["x" * 60_000, None, None, [], False])),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_a_bad_frame_is_refused(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with unharmed(tmp_path) as (ready, _):
            frames = await answers_to(ready, BAD_FRAMES[name])
            assert len(frames) == 1, "whoever makes sense so far is told"
            assert_refused(frames)

    run(main)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_a_decompression_bomb_is_stored_as_it_is_and_opened_by_nobody(
    tmp_path: Path, compression: Literal["zstd", "lz4"]
) -> None:
    """The broker never opens the columns; whoever does is safe from them."""
    zeros = bytes(64 << 20)
    if compression == "zstd":
        section, bits = zstandard.compress(zeros), 4
    else:
        section, bits = lz4.frame.compress(zeros), 3

    async def main() -> None:
        async with unharmed(tmp_path) as (ready, witness), connected(ready) as client:
            entry = bomb(witness.topic_id, section, bits)
            answer, _ = await client.ask(
                produce_request(witness.topic_id, [entry]), ProduceResponse, entry
            )
            offset = answer.results[0].base_offset
            assert answer.results[0].error is None
            _, body = await client.fetch(witness.topic_id, offset)
            header = parse_header(body)
            with pytest.raises(BatchError):
                decode_columns(body, header)

    run(main)
    assert len(zeros) > 0


def bomb(topic_id: bytes, section: bytes, bits: int) -> bytes:
    """A batch whose header is right and whose section is not."""
    good = bytearray(batch(topic_id, [b"a"]))
    entry = good[:85] + section
    struct.pack_into(">i", entry, 32, len(entry) - 36)
    struct.pack_into(">h", entry, 45, bits)
    struct.pack_into(">Q", entry, 8, xxh3_64_intdigest(bytes(entry[45:])))
    struct.pack_into(">I", entry, 0, xxh32_intdigest(bytes(entry[4:45]), header_seed(topic_id, 0)))
    return bytes(entry)


def test_a_request_byte_by_byte_is_served(tmp_path: Path) -> None:
    async def main() -> None:
        async with unharmed(tmp_path) as (ready, witness), connected(ready) as client:
            entry = batch(witness.topic_id, [b"slow"])
            number, head = client.protocol.request(
                produce_request(witness.topic_id, [entry]), len(entry)
            )
            for byte in head + entry:
                await client.stream.send_all(bytes([byte]))
            answer = (await client.wait(number)).message
            assert isinstance(answer, ProduceResponse)
            assert answer.results[0].error is None

    run(main)


def test_a_thousand_pipelined_requests_are_all_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with unharmed(tmp_path) as (ready, _), connected(ready) as client:
            numbers: list[int] = []
            data = b""
            for _ in range(1_000):
                number, frame = client.protocol.request(MetadataRequest(("orders",), False))
                numbers.append(number)
                data += frame
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.stream.send_all, data)
                for number in numbers:
                    assert isinstance((await client.wait(number)).message, MetadataResponse)

    run(main)


def test_whoever_hangs_up_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main() -> None:
        async with unharmed(tmp_path) as (ready, witness):
            frame = own_produce(witness.topic_id)
            for length in range(0, len(frame), 7):
                async with connected(ready) as client:
                    await client.stream.send_all(frame[:length])

    run(main)
