"""Erasures on a real broker: what leaves the files, what stays, what survives."""

from pathlib import Path

import pytest
import trio

from tailrace.broker.world import WorkerLost
from tailrace.protocol.errors import (
    ConnectError,
    OffsetOutOfRange,
    PartitionNotFound,
    TopicNotFound,
)
from tailrace.protocol.messages import (
    DescribeClusterRequest,
    DescribeClusterResponse,
    ErasureResponse,
    GetErasureRequest,
)
from tests.broker.erasing import (
    SECRET,
    Place,
    but,
    delete_records,
    erase,
    fill,
    read,
    receipt,
    send,
)
from tests.broker.harness import connected, run


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ── keys ─────────────────────────────────────────────────────────────────────────────────────


def test_no_byte_of_an_erased_key_is_left_and_everything_else_is_where_it_was(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders", 2)
            await fill(client, topic_id)
            await send(client, topic_id, [(b"bob", b"b"), (b"alice", SECRET)], partition=1)
            before = await read(client, topic_id)
            assert len(place.holding(SECRET)) > 2
            done = await erase(client, keys=[b"alice"])
            assert done.completed_at is not None
            assert done.completed_at >= done.requested_at
            assert done.records == 24 + 1
            assert [(one.broker_id, one.done) for one in done.replicas] == [("n1", True)]
            assert place.holding(SECRET) == []
            assert place.holding(b"alice") == []
            assert await read(client, topic_id) == but(before, lambda one: one[1] == b"alice")
            assert await read(client, topic_id, partition=1) == [(0, b"bob", b"b")]

    run(main)


def test_what_is_sent_after_the_request_stays(place: Place) -> None:
    async def main() -> None:
        async with place.broker(held=True) as (_, _, client):
            topic_id = await client.create("orders")
            await send(client, topic_id, [(b"alice", b"before")])
            await erase(client, keys=[b"alice"], wait=False)
            assert await send(client, topic_id, [(b"alice", b"after"), (b"bob", b"")]) == 1
            place.heavy.go()
            assert (await receipt(client, "orders", 1, 20_000)).records == 1
            assert await read(client, topic_id) == [(1, b"alice", b"after"), (2, b"bob", b"")]
            assert place.holding(b"before") == []
            assert await send(client, topic_id, [(b"alice", b"again")]) == 3

    run(main)


def test_an_unknown_key_is_done_with_no_record_and_nothing_is_rewritten(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders", 2)
            await fill(client, topic_id)
            files = sorted(one.name for one in (place.path / "data").rglob("*.log"))
            done = await erase(client, keys=[b"carol"])
            assert (done.records, done.completed_at is None) == (0, False)
            assert sorted(one.name for one in (place.path / "data").rglob("*.log")) == files
            await client.create("nobody")
            empty = await erase(client, "nobody", keys=[b"k"], number=2)
            assert (empty.records, empty.completed_at is None) == (0, False)

    run(main)


def test_asking_twice_under_one_id_erases_once(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders")
            await send(client, topic_id, [(b"alice", SECRET)])
            first = await erase(client, keys=[b"alice"])
            await send(client, topic_id, [(b"alice", b"new")])
            assert await erase(client, keys=[b"alice"]) == first
            with pytest.raises(ConnectError, match="other keys or records"):
                await erase(client, keys=[b"bob"])
            assert await read(client, topic_id) == [(1, b"alice", b"new")]

    run(main)


def test_erasures_that_wait_go_through_the_topic_together(place: Place) -> None:
    async def main() -> None:
        async with place.broker(held=True) as (_, _, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id)
            await erase(client, keys=[b"carol"], number=9, wait=False)
            with trio.fail_after(5):
                await place.heavy.asked.wait()
            for number in range(1, 9):
                await erase(client, records=[(0, number)], number=number, wait=False)
            await erase(client, keys=[b"alice", b"bob"], number=10, wait=False)
            place.heavy.go()
            for number in range(1, 9):
                assert (await receipt(client, "orders", number, 20_000)).records == 1
            assert (await receipt(client, "orders", 10, 20_000)).records == 120
            # One round for the first, one for all others: its segments are read once each.
            assert len(place.heavy.jobs) <= 11
            assert await read(client, topic_id) == [
                (offset, None, bytes(20_000)) for offset in range(10, 132, 11)
            ]

    run(main)


def test_a_topic_that_is_never_synced_is_erased_from_as_well(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders", durability="os")
            await fill(client, topic_id)
            assert (await erase(client, keys=[b"alice"])).records == 24
            assert place.holding(SECRET) == []

    run(main)


# ── single records ───────────────────────────────────────────────────────────────────────────


def test_single_records_leave_gaps(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders", 2)
            await fill(client, topic_id)
            await send(client, topic_id, [(None, b"x"), (None, b"y")], partition=1)
            before = await read(client, topic_id)
            gone = {0, 5, 131}
            done = await erase(client, records=[*((0, offset) for offset in gone), (1, 1)])
            assert done.records == 4
            assert await read(client, topic_id) == but(before, lambda one: one[0] in gone)
            assert await read(client, topic_id, partition=1) == [(0, None, b"x")]
            again = await erase(client, records=[(0, 5)], number=2)
            assert (again.records, again.completed_at is None) == (0, False)

    run(main)


def test_what_does_not_exist_is_refused(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, ready, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id, batches=1)
            with pytest.raises(TopicNotFound, match="T010"):
                await erase(client, "refunds", keys=[b"k"])
            with pytest.raises(TopicNotFound, match="has no erasure"):
                await receipt(client, "orders", 77)
            with pytest.raises(PartitionNotFound, match="T011"):
                await erase(client, records=[(1, 0)])
            with pytest.raises(OffsetOutOfRange, match=r"T041.*ends at 11"):
                await erase(client, records=[(0, 0), (0, 11)])
            await delete_records(client, {0: 3})
            with pytest.raises(OffsetOutOfRange, match=r"T041.*starts at 3"):
                await erase(client, records=[(0, 2)])
            for keys, number in (([], 1), ([b"%d" % n for n in range(1_001)], 1)):
                async with connected(ready) as other:
                    with pytest.raises(ConnectError, match="T121"):
                        await erase(other, keys=keys, number=number)

    run(main)


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────


def test_a_restart_in_the_middle_finishes_it(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, _, client):
            topic_id = await client.create("orders", 2)
            for partition in range(2):
                await fill(client, topic_id, partition)
            before = await read(client, topic_id)
            place.heavy.held = True
            await erase(client, keys=[b"alice"], wait=False)
            with trio.fail_after(5):
                await place.heavy.asked.wait()
            server.kill()
        assert place.holding(SECRET) != []
        async with place.broker() as (_, _, client):
            done = await receipt(client, "orders", 1, 20_000)
            assert (done.records, done.completed_at is None) == (48, False)
            assert place.holding(SECRET) == []
            assert await read(client, topic_id) == but(before, lambda one: one[1] == b"alice")
        async with place.broker() as (_, _, client):
            assert await receipt(client, "orders", 1) == done

    run(main)


def test_what_was_counted_before_a_crash_is_not_counted_again(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, _, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id)
            place.heavy.failures = [WorkerLost("first"), WorkerLost("second")]
            place.heavy.hold_at = 5  # two that fail, two segments done, one that is not
            await erase(client, keys=[b"alice"], wait=False)
            with trio.fail_after(5):
                await place.heavy.asked.wait()
            assert 0 < (await receipt(client, "orders", 1)).records < 24
            server.kill()
        async with place.broker() as (_, _, client):
            assert (await receipt(client, "orders", 1, 20_000)).records == 24

    run(main)


def test_failures_are_tried_again(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, _, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id)
            place.heavy.failures = [OSError(28, "No space left on device")]
            await erase(client, keys=[b"alice"], wait=False)
            with trio.fail_after(5):
                await place.heavy.asked.wait()
            assert (await receipt(client, "orders", 1)).completed_at is None
            read_pending = server.metrics.erasures_pending.read
            assert read_pending is not None
            assert read_pending() == {(): 1}
            assert (await receipt(client, "orders", 1, 20_000)).records == 24
            assert read_pending() == {(): 0}
            assert place.holding(SECRET) == []

    run(main)


def test_what_a_lost_worker_left_half_made_is_gone_when_it_is_done(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id)
            [log] = {one.parent for one in (place.path / "data").rglob("*.log")}
            left = log / f"{0:020}-{33:020}.swap.tmp"
            left.write_bytes(SECRET)
            await erase(client, keys=[b"alice"])
            assert not left.exists()
            assert place.holding(SECRET) == []

    run(main)


def test_a_damaged_segment_that_may_hold_the_key_keeps_the_receipt_open(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id)
        first = min((place.path / "data").rglob("*.log"))
        data = bytearray(first.read_bytes())
        data[25_000] ^= 1
        first.write_bytes(data)
        async with place.broker() as (_, _, client):
            await erase(client, keys=[b"alice"], number=1, wait=False)
            done = await erase(client, records=[(0, 100)], number=2)
            assert (done.records, done.completed_at is None) == (1, False)
            pending = await receipt(client, "orders", 1)
            assert pending.completed_at is None
            assert f"erasing in orders[0] waits for 0.25 s: {first.name} is dam" in caplog.text
            assert place.holding(SECRET) == [first.name]
            await delete_records(client, {0: 60})  # takes the damage along
            assert (await receipt(client, "orders", 1, 20_000)).completed_at is not None
            assert place.holding(SECRET) == []

    run(main)


def test_damage_that_an_erasure_finds_is_served_to_nobody(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (_, _, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id)
            with min((place.path / "data").rglob("*.log")).open("r+b") as file:
                file.seek(300)
                file.write(b"!")
            await erase(client, keys=[b"alice"], wait=False)
            with trio.fail_after(10):
                while (found := (await client.fetch(topic_id))[0].results[0]).error is None:
                    await trio.lowlevel.checkpoint()
            assert found.error.code == 35
            assert found.error.details["next_offset"] == 11

    run(main)


def test_what_fails_for_longer_is_a_problem_of_the_cluster(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, _, client):
            topic_id = await client.create("orders")
            await send(client, topic_id, [(b"alice", SECRET)])
            place.heavy.failures = [WorkerLost(f"gone, {number}") for number in range(20)]
            await erase(client, keys=[b"alice"], wait=False)
            request = DescribeClusterRequest()
            for _ in range(1_000):
                server.clean_now()
                answer, _ = await client.ask(request, DescribeClusterResponse)
                if answer.problems:
                    break
            assert answer.problems[0].startswith("erasing in orders[0] waits: gone, ")
            place.heavy.failures.clear()
            server.clean_now()
            assert (await receipt(client, "orders", 1, 20_000)).records == 1
            answer, _ = await client.ask(request, DescribeClusterResponse)
            assert answer.problems == ()

    run(main)


def test_a_compacted_topic_is_erased_from_as_well(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, _, client):
            topic_id = await client.create("orders", cleanup="compact")
            for _ in range(4):
                await fill(client, topic_id, batches=6)
            await server.clean()
            before = await read(client, topic_id)
            assert 0 < [one[1] for one in before].count(b"alice") < 12
            assert (await erase(client, keys=[b"alice"])).records > 0
            assert place.holding(SECRET) == []
            assert await read(client, topic_id) == but(before, lambda one: one[1] == b"alice")
            await server.clean()
            assert place.holding(SECRET) == []

    run(main)


def test_a_deleted_topic_ends_its_erasures(place: Place) -> None:
    async def main() -> None:
        async with place.broker(held=True) as (_, ready, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id)
            await erase(client, keys=[b"alice"], wait=False)
            with trio.fail_after(5):
                await place.heavy.asked.wait()

            async def wait() -> None:
                async with connected(ready) as other:
                    with pytest.raises(TopicNotFound, match="T010"):
                        await receipt(other, "orders", 1, 20_000)

            async def delete() -> None:
                async with connected(ready) as other:
                    await other.delete("orders")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                nursery.start_soon(delete)
                await trio.sleep(0.05)
                place.heavy.go()
            assert place.holding(SECRET) == []
            assert await client.create("orders") != topic_id
            with pytest.raises(TopicNotFound):
                await receipt(client, "orders", 1)

    run(main)


def test_a_broker_that_stops_keeps_nobody_waiting(place: Place) -> None:
    async def main() -> None:
        async with place.broker(held=True) as (server, _, client):
            topic_id = await client.create("orders")
            await send(client, topic_id, [(b"alice", SECRET)])
            await erase(client, keys=[b"alice"], wait=False)
            request = GetErasureRequest("orders", (1).to_bytes(16), 30_000)
            waiting = await client.send(request)
            with trio.fail_after(5):
                await place.heavy.asked.wait()
                server.stop()
                answer = (await client.wait(waiting)).message
            assert isinstance(answer, ErasureResponse)
            assert answer.completed_at is None
        async with place.broker() as (_, _, client):
            assert (await receipt(client, "orders", 1, 20_000)).records == 1

    run(main)
