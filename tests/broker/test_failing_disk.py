"""A broker process whose disk really says no: EIO from fdatasync, planted by strace (safety 8)."""

import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.broker.harness import Client, run
from tests.broker.test_process import Broker

pytestmark = pytest.mark.slow

SECONDS_MAX = 20.0


@contextmanager
def failing_sync(pid: int, path: Path, when: int) -> Iterator[None]:
    """The process's ``when``-th fdatasync of a file from now on fails, once."""
    command = ["strace", "-f", "-p", str(pid), "-P", str(path), "-e", "trace=fdatasync"]
    command += ["-e", f"inject=fdatasync:error=EIO:when={when}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        readable, _, _ = select.select([tracer.stderr], [], [], SECONDS_MAX)
        told = os.read(tracer.stderr.fileno(), 65_536).decode() if readable else "nothing"
        try:
            if "attached" not in told:
                pytest.skip(f"strace may not attach here: {told}")
            yield
        finally:
            tracer.terminate()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_failed_sync_is_an_error_to_the_producer_exit_7_and_a_suspect_directory(
    tmp_path: Path,
) -> None:
    arguments = ("-O", "json", "dev", "--port", "0", "--http-port", "0", "--data", "data")
    broker = Broker(tmp_path, *arguments)
    topics: list[bytes] = []

    async def connect(url: str) -> Client:
        host, _, port = url.removeprefix("tailrace://").rpartition(":")
        client = Client(await trio.open_tcp_stream(host, int(port)))
        await client.hello()
        return client

    async def fail(url: str) -> None:
        client = await connect(url)
        topics.append(await client.create("orders"))
        assert (await client.produce(topics[0], [b"kept"])).error is None
        [log] = (tmp_path / "data" / "topics").glob("*/*.log")
        with failing_sync(broker.process.pid, log, when=2):
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
        broker = Broker(tmp_path, *arguments)
        url = broker.ready()["url"]
        assert not (tmp_path / "data" / "suspect").exists()
        run(lambda: read(url))
        assert broker.stop() == 0
    finally:
        broker.close()
