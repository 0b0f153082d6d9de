"""Fetch sessions: what a consumer has named stands until it is told of it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tailrace.broker import fetch
from tailrace.broker.server import Server
from tailrace.broker.session import Session
from tailrace.protocol import texts
from tailrace.protocol.errors import ConnectError
from tailrace.protocol.messages import FetchPartition, FetchRequest, FetchResponse
from tests.broker.harness import Client, batch, connected, run, serving

LONG_MS = 20_000


class Consumer:
    """One session of a connection, and the topic it reads."""

    def __init__(self, client: Client, topic_id: bytes, number: int = 1) -> None:
        self.topic_id = topic_id
        self.sequence = 0
        self._client = client
        self._number = number

    async def send(
        self, *places: tuple[int, int], wait_ms: int = LONG_MS, bytes_max: int = 1 << 20
    ) -> int:
        """Name some partitions, with the offsets wanted."""
        wanted = tuple(
            FetchPartition(self.topic_id, number, offset, 1 << 20, -1, -1, -1)
            for number, offset in places
        )
        request = FetchRequest(
            *(wait_ms, 1, bytes_max, 0, None, -1, wanted),
            sequence=self.sequence,
            session=self._number,
        )
        self.sequence += 1
        return await self._client.send(request)

    async def told(self, number: int) -> list[tuple[int, int]]:
        """What an answer tells of: partitions, and how many bytes of each (an error: its code)."""
        answer = await self._client.wait(number)
        assert isinstance(answer.message, FetchResponse)
        results = answer.message.results
        assert sum(one.length for one in results) == len(answer.body)
        return [(one.partition, -one.error.code if one.error else one.length) for one in results]

    async def ask(
        self, *places: tuple[int, int], wait_ms: int = LONG_MS, bytes_max: int = 1 << 20
    ) -> list[tuple[int, int]]:
        return await self.told(await self.send(*places, wait_ms=wait_ms, bytes_max=bytes_max))


class Place:
    """A broker, a topic of four partitions, somebody who writes and somebody who reads."""

    def __init__(self, server: Server, writer: Client, reader: Client, topic_id: bytes) -> None:
        self.server = server
        self.writer = writer
        self.reader = reader
        self.topic_id = topic_id
        self.size = len(batch(topic_id, [b"a"]))

    def consumer(self, number: int = 1) -> Consumer:
        return Consumer(self.reader, self.topic_id, number)

    async def write(self, *partitions: int) -> None:
        for partition in partitions:
            assert (await self.writer.produce(self.topic_id, [b"a"], partition)).error is None

    def parked(self) -> list[int]:
        """Readers at each partition."""
        assert self.server.gateway is not None
        shelf = self.server.gateway.node.shelf
        partitions = [shelf.get(self.topic_id, number) for number in range(4)]
        return [0 if one is None else len(one._readers) for one in partitions]


@asynccontextmanager
async def standing(path: Path) -> AsyncIterator[Place]:
    async with (
        serving(path) as (server, ready),
        connected(ready) as writer,
        connected(ready) as reader,
    ):
        yield Place(server, writer, reader, await writer.create("orders", partitions=4))


ALL: Sequence[tuple[int, int]] = [(number, 0) for number in range(4)]


def test_what_was_named_once_stands_and_only_news_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer, size = place.consumer(), place.size
            first = await consumer.send(*ALL)
            await place.write(2)
            assert await consumer.told(first) == [(2, size)]
            second = await consumer.send((2, 1))
            await place.write(0)
            assert await consumer.told(second) == [(0, size)]
            third = await consumer.send()  # of 0 no more is wanted for now
            await place.write(0, 2)
            assert await consumer.told(third) == [(2, size)]

    run(main)


def test_the_next_request_ends_the_one_that_waits_and_all_stands(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            first, second = await consumer.send((0, 0)), await consumer.send((1, 0))
            third = await consumer.send()
            assert await consumer.told(first) == []
            assert await consumer.told(second) == []
            await place.write(0)
            assert await consumer.told(third) == [(0, place.size)]

    run(main)


def test_a_wait_that_ends_without_news_tells_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            assert await consumer.ask(*ALL, wait_ms=20) == []
            assert await consumer.ask(wait_ms=20) == []
            await place.write(3)
            assert await consumer.ask() == [(3, place.size)]

    run(main)


def test_who_does_not_wait_is_told_of_all_that_it_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            await place.write(1)
            told = await consumer.ask((0, 0), (1, 0), wait_ms=0)
            assert told == [(0, 0), (1, place.size)]
            await place.write(0)
            assert await consumer.ask(wait_ms=20) == []  # nothing of it stands

    run(main)


def test_what_comes_between_two_requests_is_told_with_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer, size = place.consumer(), place.size
            assert await consumer.ask(*ALL, wait_ms=20) == []
            await place.write(3, 1)
            assert sorted(await consumer.ask()) == [(1, size), (3, size)]

    run(main)


def test_what_does_not_fit_into_an_answer_comes_with_the_next(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer, told = place.consumer(), list[tuple[int, int]]()
            await place.write(0, 1, 2, 3)
            told += await consumer.ask(*ALL, bytes_max=1)
            assert told == [(0, place.size)]  # in the order they were named
            for _ in range(3):
                told += await consumer.ask(bytes_max=1)
            assert sorted(told) == [(number, place.size) for number in range(4)]

    run(main)


def test_named_again_it_is_wanted_from_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            await place.write(0, 0)
            first = await consumer.send((0, 2))
            assert await consumer.ask((0, 0)) == [(0, 2 * place.size)]
            assert await consumer.told(first) == []
            assert place.parked() == [0, 0, 0, 0]

    run(main)


def test_sequence_0_begins_anew_and_without_partitions_ends_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            first = await consumer.send(*ALL)
            consumer.sequence = 0
            second = await consumer.send((1, 0))
            assert await consumer.told(first) == []
            await place.write(0)
            await place.write(1)
            assert await consumer.told(second) == [(1, place.size)]
            third = await consumer.send((2, 0))
            consumer.sequence = 0
            assert await consumer.ask(wait_ms=0) == []
            assert await consumer.told(third) == []
            assert place.parked() == [0, 0, 0, 0]

    run(main)


def test_session_goes_on_for_as_long_as_its_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            assert await consumer.ask((0, 0), wait_ms=20) == []
            consumer.sequence = 1 << 31  # after a week or a year
            await place.write(0)
            assert await consumer.ask() == [(0, place.size)]

    run(main)


def test_sessions_of_one_connection_know_nothing_of_each_other(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            one, other = place.consumer(1), place.consumer(2)
            first, second = await one.send((0, 0), (1, 0)), await other.send((1, 0))
            await place.write(1)
            assert await one.told(first) == await other.told(second) == [(1, place.size)]
            await place.write(0)
            assert await other.ask(wait_ms=20) == []
            assert await one.ask() == [(0, place.size)]

    run(main)


def test_partition_that_is_gone_is_told_also_where_it_was_not_named_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            waits = await consumer.send((0, 0))
            await place.writer.delete("orders")
            assert await consumer.told(waits) == [(0, -10)]
            assert await consumer.ask(wait_ms=20) == []

    run(main)


def test_without_a_lease_all_that_stands_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            assert await consumer.ask((0, 0), (1, 0), wait_ms=20) == []

            def check(session: Session) -> None:
                raise texts.metadata_unavailable("etcd", "planted")

            monkeypatch.setattr(Session, "valid", lambda session: False)
            monkeypatch.setattr(Session, "check", check)
            assert await consumer.ask((2, 0)) == [(0, -100), (1, -100), (2, -100)]

    run(main)


def test_who_has_too_much_standing_is_told_of_what_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "FETCH_STANDING_MAX", 2)

    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            assert await consumer.ask((0, 0), (1, 0), wait_ms=20) == []
            assert await consumer.ask((2, 0), (3, 0), wait_ms=20) == [(2, 0), (3, 0)]
            assert await consumer.ask(wait_ms=20) == []
            await place.write(3, 0)
            assert await consumer.ask(wait_ms=20) == [(0, place.size)]

    run(main)


def test_one_session_too_many_is_a_request_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "FETCH_SESSIONS_MAX", 2)

    async def main() -> None:
        async with standing(tmp_path) as place:
            for number in (1, 2):
                assert await place.consumer(number).ask((0, 0), wait_ms=20) == []
            third = place.consumer(3)
            assert await third.ask((0, 0), (1, 0), wait_ms=20) == [(0, 0), (1, 0)]
            waits = await third.send((0, 0), (1, 0))
            await place.write(1)
            assert await third.told(waits) == [(0, 0), (1, place.size)]

    run(main)


def test_sessions_that_hold_nothing_make_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "FETCH_SESSIONS_MAX", 2)

    async def main() -> None:
        async with standing(tmp_path) as place:
            await place.write(0)
            for number in range(1, 6):
                assert await place.consumer(number).ask((0, 0)) == [(0, place.size)]
            sixth = place.consumer(6)
            assert await sixth.ask((0, 1), (1, 0), wait_ms=20) == []
            await place.write(1)
            assert await sixth.ask() == [(1, place.size)]

    run(main)


def test_an_answer_tells_of_some_at_a_time_and_the_rest_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "RESULTS_MAX", 3)

    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            assert await consumer.ask(*ALL, wait_ms=20) == []
            await place.writer.delete("orders")
            told = [await consumer.ask(wait_ms=0), await consumer.ask()]
            assert [len(one) for one in told] == [3, 1]
            assert sorted(told[0] + told[1]) == [(number, -10) for number in range(4)]

    run(main)


def test_quiet_partitions_are_left_alone_beside_one_that_always_has_more(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            consumer = place.consumer()
            await place.write(*[0] * 5)
            assert await consumer.ask(*ALL, bytes_max=1) == [(0, place.size)]
            for offset in range(1, 5):
                assert await consumer.ask((0, offset), bytes_max=1) == [(0, place.size)]
                assert place.parked() == [0, 1, 1, 1]
            await place.write(2, 2)  # with no request in hand once is enough
            assert place.parked() == [0, 1, 0, 1]
            assert await consumer.ask() == [(2, 2 * place.size)]

    run(main)


def test_followers_and_consumers_do_not_share_a_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with standing(tmp_path) as place:
            waits = await place.consumer().send((0, 0))
            follower = FetchRequest(LONG_MS, 1, 1 << 20, 0, "n2", 4, ())
            with pytest.raises(ConnectError, match="T121"):
                await place.reader.ask(follower, FetchResponse)
            assert waits not in place.reader.answers
        async with standing(tmp_path / "other") as place:
            await place.reader.send(follower)
            with pytest.raises(ConnectError, match="T121"):
                await place.consumer().ask((0, 0))

    run(main)


def test_what_a_closed_connection_had_asked_for_is_forgotten(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as writer:
            topic_id = await writer.create("orders", partitions=4)
            async with connected(ready) as reader:
                place = Place(server, writer, reader, topic_id)
                await place.consumer(1).ask(*ALL, wait_ms=20)
                await place.consumer(2).send(*ALL)
                while place.parked() != [2, 2, 2, 2]:
                    await trio.lowlevel.checkpoint()
            while place.parked() != [0, 0, 0, 0]:
                await trio.lowlevel.checkpoint()
            await place.write(0, 1)

    run(main)


def test_news_of_others_does_not_wait_for_a_segment_to_be_verified(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", partitions=4)
            for _ in range(12):  # three segments
                await client.produce(topic_id, [bytes(250_000)])
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            await client.produce(topic_id, [b"a"], 1)  # what was there before is yet to be verified
            consumer = Consumer(client, topic_id)
            assert await consumer.ask((0, 0), (1, 0)) == [(1, len(batch(topic_id, [b"a"])))]
            [(number, length)] = await consumer.ask()
            assert (number, length > 750_000) == (0, True)

    run(main)


def test_segment_is_verified_also_beside_one_that_always_has_news(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", partitions=4)
            for _ in range(12):  # three segments
                await client.produce(topic_id, [bytes(250_000)])
        async with (
            serving(tmp_path) as (_, ready),
            connected(ready) as writer,
            connected(ready) as reader,
        ):
            consumer, told = Consumer(reader, topic_id), set[int]()
            await writer.produce(topic_id, [b"a"], 1)
            waits = await consumer.send((0, 0), (1, 0))
            for offset in range(1, 200):
                await writer.produce(topic_id, [b"a"], 1)  # before the next request, each time
                told |= {number for number, _ in await consumer.told(waits)}
                if 0 in told:
                    break
                waits = await consumer.send((1, offset))
            assert told == {0, 1}

    run(main)


def test_segment_is_verified_while_the_next_request_comes(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders", partitions=4)
            for _ in range(12):  # three segments
                await client.produce(topic_id, [bytes(250_000)])
        async with serving(tmp_path) as (_, ready), connected(ready) as client:
            consumer = Consumer(client, topic_id)
            sent = [await consumer.send((0, 0)), await consumer.send((1, 0))]
            sent += [await consumer.send((number, 0)) for number in (2, 3)]
            with trio.move_on_after(10):
                told = [await consumer.told(number) for number in sent[:-1]]
                if not any(told):
                    told.append(await consumer.told(sent[-1]))
            assert [[number for number, _ in one] for one in told if one] == [[0]]

    run(main)
