"""A consumer outlives its broker: it waits, goes on by offset, and says so meanwhile."""

import logging
import re

import anyio
import pytest

import tailrace
from tailrace.protocol.errors import RequestTimeout
from tailrace.testing import Broker
from tests.client.world import Run


@pytest.mark.parametrize("crash", [False, True])
def test_reading_goes_on_after_a_restart(
    run: Run, caplog: pytest.LogCaptureFixture, crash: bool
) -> None:
    caplog.set_level(logging.WARNING, "tailrace.client")
    with Broker() as broker:
        broker.create_topic("orders", 2)
        broker.seed("orders", [b"%d" % n for n in range(100)], partitions=2)

        async def main() -> None:
            async with tailrace.connect(broker.url) as client, client.producer() as producer:
                async with client.consumer("orders") as consumer:
                    found: list[bytes | None] = []
                    async for record in consumer:
                        found.append(record.value)
                        if len(found) == 50:
                            await anyio.to_thread.run_sync(lambda: broker.restart(crash=crash))
                            await producer.send("orders", b"100")
                        if len(found) == 101:
                            break
                    assert sorted(int(v or b"") for v in found) == list(range(101))
                    assert consumer.health().state == "ok"

        run(main)
    assert "reconnecting 127.0.0.1:" in caplog.text
    over = [r for r in caplog.records if getattr(r, "event", "") == "client.reconnected"]
    assert 1 <= len(over) <= 2, "this client, and perhaps the one that seeded, each once"
    told = r"reconnected to 127\.0\.0\.1:\d+ after [\d.,]+ s, (1 attempt|\d+ attempts)"
    assert all(re.fullmatch(told, record.getMessage()) for record in over)


def test_time_without_an_answer_is_told_in_short(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with Broker() as broker:

        async def main() -> None:
            async with tailrace.connect(broker.url, request_timeout=0.12345) as client:
                with broker.faults.black_hole():
                    with pytest.raises(RequestTimeout, match=r"in 0\.1 s"):
                        await client.admin.list_groups()

        run(main)
    assert "(no answer in 0.1 s), attempt 1" in caplog.text


def test_health_tells_of_an_outage(run: Run) -> None:
    with Broker() as broker:
        broker.create_topic("orders")
        broker.seed("orders", [b"a"])

        async def main() -> None:
            async with tailrace.connect(broker.url) as client:
                async with client.consumer("orders") as consumer:
                    records = consumer.__aiter__()
                    await records.__anext__()
                    assert consumer.health().state == "ok"
                    await anyio.to_thread.run_sync(broker.stop)
                    with anyio.move_on_after(0.2):
                        await records.__anext__()
                    health = consumer.health()
                    assert (health.state, health.healthy) == ("reconnecting", False)
                    assert health.reason

        run(main)
