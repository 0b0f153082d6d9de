"""A broker process whose disk really says no: EIO from a sync, planted by strace."""

import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tailrace.protocol.errors import BrokerError
from tests.broker.brokers import Broker
from tests.broker.harness import Client, run
from tests.proofs.strace import Injection, TracedBroker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("strace") is None and not os.environ.get("CI"), reason="needs strace"
    ),
]

SECONDS_MAX = 20.0
ARGUMENTS = ("-O", "json", "dev", "--port", "0", "--http-port", "0", "--data", "data")


@contextmanager
def failing_sync(pid: int, call: str, when: int, path: Path | None = None) -> Iterator[None]:
    """The ``when``-th sync by a thread of the process from now on fails, once; of that file."""
    command = ["strace", "-f", "-p", str(pid), "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:error=EIO:when={when}"]
    if path is not None:
        command += ["-P", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        readable, _, _ = select.select([tracer.stderr], [], [], SECONDS_MAX)
        told = os.read(tracer.stderr.fileno(), 65_536).decode() if readable else "nothing"
        try:
            if "attached" not in told:
                assert not os.environ.get("CI"), told  # there it must
                pytest.skip(f"strace may not attach here: {told}")
            yield
        finally:
            tracer.terminate()


async def connect(url: str) -> Client:
    host, _, port = url.removeprefix("tailrace://").rpartition(":")
    client = Client(await trio.open_tcp_stream(host, int(port)))
    await client.hello()
    return client


def test_a_failed_sync_is_an_error_to_the_producer_exit_7_and_a_suspect_directory(
    tmp_path: Path,
) -> None:
    broker = Broker(tmp_path, *ARGUMENTS)
    topics: list[bytes] = []

    async def fail(url: str) -> None:
        client = await connect(url)
        topics.append(await client.create("orders"))
        assert (await client.produce(topics[0], [b"kept"])).error is None
        [log] = (tmp_path / "data" / "topics").glob("*/*.log")
        with failing_sync(broker.process.pid, "fdatasync", 2, log):
            assert (await client.produce(topics[0], [b"kept too"])).error is None
            refused = await client.produce(topics[0], [b"lost or not"])
            assert refused.error is not None
            assert refused.error.code == 93
            assert await trio.to_thread.run_sync(broker.wait) == 7
        await client.stream.aclose()

    async def read(url: str) -> None:
        client = await connect(url)
        answer, body = await client.fetch(topics[0])
        assert answer.results[0].high_watermark >= 2
        assert b"kept too" in bytes(body)
        assert (await client.produce(topics[0], [b"on"])).error is None
        await client.stream.aclose()

    try:
        url = broker.ready()["url"]
        run(lambda: fail(url))
        assert (tmp_path / "data" / "suspect").exists()
        assert "T093" in broker.stderr()
        broker.close()
        broker = Broker(tmp_path, *ARGUMENTS)
        url = broker.ready()["url"]
        assert not (tmp_path / "data" / "suspect").exists()
        run(lambda: read(url))
        assert broker.stop() == 0
    finally:
        broker.close()


@pytest.mark.parametrize("what", ["create", "delete"])
def test_a_failed_sync_as_topics_come_and_go_is_exit_7_too(tmp_path: Path, what: str) -> None:
    broker = Broker(tmp_path, *ARGUMENTS)

    async def fail(url: str) -> None:
        client = await connect(url)
        await client.create("orders")
        call, path = ("syncfs", None) if what == "create" else ("fsync", tmp_path / "data/topics")
        with failing_sync(broker.process.pid, call, 1, path):
            with pytest.raises(BrokerError, match="T093"):
                await (client.create("more") if what == "create" else client.delete("orders"))
            assert await trio.to_thread.run_sync(broker.wait) == 7
        await client.stream.aclose()

    try:
        url = broker.ready()["url"]
        run(lambda: fail(url))
        assert (tmp_path / "data" / "suspect").exists()
        broker.close()
        broker = Broker(tmp_path, *ARGUMENTS)
        broker.ready()
        assert not (tmp_path / "data" / "suspect").exists()
        assert broker.stop() == 0
    finally:
        broker.close()


def test_a_start_whose_sync_fails_says_why_and_what_to_do_and_the_next_one_serves(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"

    async def fill(url: str) -> None:
        client = await connect(url)
        assert (await client.produce(await client.create("orders"), [b"kept"])).error is None
        await client.stream.aclose()

    broker = TracedBroker(data, watched=False)
    try:
        assert broker.ready()
        run(lambda: fill(broker.url))
    finally:
        broker.end()  # as kill -9: what it leaves is not clean
    broker = TracedBroker(data, Injection("syncfs", 1, "error=EIO"))
    try:
        assert not broker.ready()
        assert broker.wait() == 7
    finally:
        broker.end()
    told = broker.stderr()
    last = json.loads(told.splitlines()[-1])["error"]
    assert last["code"] == "T093"
    assert "Input/output error" in last["message"]
    assert "start again" in last["hint"]
    assert (data / "suspect").exists()
    broker = TracedBroker(data, watched=False)
    try:
        assert broker.ready()
        assert not (data / "suspect").exists()
        broker.stop()
        assert broker.wait() == 0
    finally:
        broker.end()
