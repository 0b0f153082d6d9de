"""The end of a client with several consumers and producers: together, and with one exception."""

import math
from contextlib import suppress

import anyio
import pytest

from tailrace.client.client import Client
from tailrace.protocol.errors import ConnectError
from tailrace.protocol.messages import FindCoordinatorRequest
from tests.client.world import Run, World


class Party:
    """Consumers or producers of which none closes before all of them have begun to."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.begun = 0
        self.all_began = anyio.Event()
        self.ended = 0

    def members(self, client: Client, **failures: Exception) -> "list[Closing]":
        return [Closing(client, self, failures.get(f"of_{n}")) for n in range(self.size)]


class Closing:
    """One of them."""

    def __init__(self, client: Client, party: Party, failure: Exception | None) -> None:
        self._client = client
        self._party = party
        self._failure = failure

    async def aclose(self) -> None:
        party = self._party
        party.begun += 1
        if party.begun == party.size:
            party.all_began.set()
        try:
            await party.all_began.wait()
            if self._failure is not None:
                raise self._failure
        finally:
            party.ended += 1
            self._client.detach(self)


def test_consumers_close_at_the_same_time_and_then_the_producers(run: Run, world: World) -> None:
    async def main() -> None:
        consumers, producers = Party(3), Party(3)
        with anyio.fail_after(1):
            async with world.client() as client:
                for one in producers.members(client):
                    client.attach_producer(one)
                for one in consumers.members(client):
                    client.attach_consumer(one)
        assert (consumers.ended, producers.ended) == (3, 3)

    run(main)


def test_producers_wait_for_the_consumers(run: Run, world: World) -> None:
    """What a consumer writes while it closes goes through a producer."""

    async def main() -> None:
        consumers, producers = Party(2), Party(1)
        async with world.client() as client, anyio.create_task_group() as tasks:
            client.attach_producer(producers.members(client)[0])
            client.attach_consumer(consumers.members(client)[0])
            tasks.start_soon(client.aclose)
            await anyio.wait_all_tasks_blocked()
            assert (consumers.begun, producers.begun) == (1, 0)
            consumers.all_began.set()
        assert (consumers.ended, producers.ended) == (1, 1)

    run(main)


def test_first_one_of_several_failures_is_raised_and_the_others_are_its_notes(
    run: Run, world: World
) -> None:
    async def main() -> None:
        consumers, producers = Party(3), Party(1)
        failures: dict[str, Exception] = {"of_1": ZeroDivisionError("one"), "of_2": KeyError("two")}
        client = await world.client().__aenter__()
        for one in consumers.members(client, **failures):
            client.attach_consumer(one)
        for one in producers.members(client, of_0=OSError("three")):
            client.attach_producer(one)
        with pytest.raises(ZeroDivisionError) as caught:
            await client.__aexit__(None, None, None)
        assert caught.value.__notes__ == [
            "also failed: KeyError: 'two'",
            "also failed: OSError: three",
        ]

    run(main)


def test_cancellation_reaches_all_of_them_and_leaves_as_it_came(run: Run, world: World) -> None:
    async def main() -> None:
        consumers, producers = Party(3), Party(2)
        with anyio.move_on_after(math.inf) as scope:
            async with world.client() as client, anyio.create_task_group() as tasks:
                for one in consumers.members(client)[1:]:
                    client.attach_consumer(one)
                for one in producers.members(client)[1:]:
                    client.attach_producer(one)

                async def cancel() -> None:
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()

                tasks.start_soon(cancel)
                await client.aclose()
        assert scope.cancelled_caught
        assert (consumers.ended, producers.ended) == (2, 1)

    run(main)


def test_dial_that_fails_unforeseen_ends_the_client_and_is_not_repeated_meanwhile(
    run: Run, world: World
) -> None:
    async def main() -> None:
        async with world.client() as client:
            (broker_id,) = client.cluster.brokers
            before.append(world.broker.dialled)
            world.broker.refusing = RuntimeError("no more threads")
            for connection in list(world.broker.connections):
                connection.break_off()
            with anyio.move_on_after(0.05, shield=True):  # as a last commit is
                question = FindCoordinatorRequest("g")
                for _ in range(2):  # the first one finds out that the connection is gone
                    with suppress(ConnectError):
                        await client.cluster.leader_request(broker_id, question, timeout=1.0)

    before: list[int] = []
    with pytest.raises(RuntimeError, match="no more threads") as raised:
        run(main)
    assert world.broker.dialled == before[0] + 1
    assert not hasattr(raised.value, "__notes__")
