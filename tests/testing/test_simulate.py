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

    began = time.process_time()
    assert simulate(main) == 3_600_000
    assert time.process_time() - began < 60, "an hour"


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


@pytest.mark.slow
def test_acknowledged_records_outlive_a_broker_that_lost_power() -> None:
    async def main(sim: Simulation) -> float:
        async with sim.connect() as client, client.producer() as producer:
            await client.admin.create_topic("orders")
            await producer.send("orders", b"a")
            (partition,) = (await client.admin.describe_topic("orders")).partition_list
            assert partition.leader is not None
            began = trio.current_time()
            sim.kill(partition.leader, crash=True)
            await producer.send("orders", b"b")
            took_s = trio.current_time() - began
            await sim.brokers[partition.leader].start()
            await producer.send("orders", b"c")
            async with client.consumer("orders", stop_at_end=True) as consumer:
                assert [record.value async for record in consumer] == [b"a", b"b", b"c"]
        return took_s

    assert simulate(main, brokers=3) < 8.0, "the lease of 6 s, and 2 s"


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


def test_there_are_one_to_nine_brokers() -> None:
    async def main(sim: Simulation) -> None:
        raise AssertionError("not reached")

    with pytest.raises(ValueError, match="brokers=10 is not 1 to 9"):
        simulate(main, brokers=10)
