"""``simulate``: hours in a moment, and the same course for the same seed."""

import time

import pytest
import trio

from tailrace.protocol.errors import SendTimeout
from tailrace.testing import Simulation, simulate


def test_time_is_virtual() -> None:
    async def main(sim: Simulation) -> int:
        before = sim.now_ms()
        await trio.sleep(3600)
        return sim.now_ms() - before

    began = time.perf_counter()
    assert simulate(main) == 3_600_000
    assert time.perf_counter() - began < 5


def test_records_survive_a_kill_and_a_power_cut() -> None:
    async def main(sim: Simulation) -> list[bytes | None]:
        async with sim.connect() as client:
            async with client.producer() as producer:
                await producer.send("orders", b"a")
                sim.kill("n1")
                await sim.brokers["n1"].start()
                await producer.send("orders", b"b")
                sim.kill("n1", crash=True)
                await sim.brokers["n1"].start()
            async with client.consumer("orders", stop_at_end=True) as consumer:
                return [record.value async for record in consumer]

    for seed in range(3):
        assert simulate(main, seed=seed) == [b"a", b"b"]


def test_seeds_decide() -> None:
    async def main(sim: Simulation) -> float:
        async with sim.connect() as client, client.producer() as producer:
            await producer.send("orders", b"a")
        return trio.current_time()

    assert simulate(main, seed=1) == simulate(main, seed=1) != simulate(main, seed=2)


def test_faults_have_effect_on_virtual_time() -> None:
    async def main(sim: Simulation) -> None:
        async with sim.connect() as client, client.producer(timeout=20.0) as producer:
            await producer.send("orders", b"a")
            for fault in (
                sim.faults.black_hole(),
                sim.faults.pause(),
                sim.faults.drop_connections("produce"),
            ):
                with fault, pytest.raises(SendTimeout):
                    await producer.send("orders", b"lost?")
            began = trio.current_time()
            with sim.faults.slow_disk(3.0):
                await producer.send("orders", b"slow")
            assert trio.current_time() - began >= 3.0

    simulate(main)


def test_what_main_raises_leaves_as_it_is() -> None:
    async def main(sim: Simulation) -> None:
        async with sim.connect():
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        simulate(main)


def test_more_than_one_broker_comes_later() -> None:
    async def main(sim: Simulation) -> None:
        raise AssertionError("not reached")

    with pytest.raises(ValueError, match="clusters"):
        simulate(main, brokers=3)
