"""What counts as time without a leader, by what brokers say of themselves."""

import asyncio
from collections.abc import Iterable

from tailrace.testing import Broker
from tests.proofs.leader_watch import Claim, Leaders, watch

SECONDS_MAX = 20.0


def gaps(*claims: tuple[float, int, int], ended: float = 0.0) -> list[tuple[int, float, float]]:
    """Of claims at a time, for a partition, in an epoch."""
    leaders = Leaders()
    for at, partition, epoch in claims:
        leaders.hear(at, [Claim(partition, epoch)])
    if ended:
        leaders.end(ended)
    return [(partition, at, round(length, 3)) for partition, at, length in leaders.gaps]


def test_a_partition_is_without_a_leader_between_claims_that_are_far_apart() -> None:
    assert not gaps((1.0, 0, 1), (1.1, 0, 1), (1.3, 0, 1), ended=1.4)
    assert gaps((1.0, 0, 1), (1.1, 0, 1), (6.1, 0, 2)) == [(0, 1.1, 5.0)]
    assert gaps((1.0, 0, 1), (1.0, 1, 1), (1.2, 1, 1), (2.0, 0, 2)) == [(0, 1.0, 1.0)]


def test_who_led_before_is_no_leader_any_more() -> None:
    assert gaps((1.0, 0, 2), (1.2, 0, 1), (1.4, 0, 1), (1.6, 0, 2)) == [(0, 1.0, 0.6)]


def test_nobody_until_the_end_counts() -> None:
    assert gaps((1.0, 0, 1), ended=4.0) == [(0, 1.0, 3.0)]


def test_a_broker_says_what_it_leads() -> None:
    class Heard(Leaders):
        def __init__(self) -> None:
            super().__init__()
            self.both = asyncio.Event()

        def hear(self, at: float, claims: Iterable[Claim]) -> None:
            super().hear(at, claims)
            if self.led == {0, 1}:
                self.both.set()

    async def main(url: str) -> None:
        leaders = Heard()
        watching = asyncio.create_task(watch(url, "orders", leaders))
        async with asyncio.timeout(SECONDS_MAX):
            await leaders.both.wait()
        watching.cancel()

    with Broker() as broker:
        broker.create_topic("orders", partitions=2)
        asyncio.run(main(broker.url))
