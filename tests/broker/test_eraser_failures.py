"""What an erasure does about disks that fail and segments that nobody can read."""

import errno
from pathlib import Path

import pytest
import trio
import trio.testing

from tailrace.broker.eraser import RETRY_FIRST_S
from tailrace.broker.erasures import Erasures
from tailrace.broker.server import Server
from tailrace.protocol import texts
from tailrace.protocol.errors import BrokerError
from tailrace.storage.disk import OsDisk
from tailrace.storage.erasing import EraseJob
from tailrace.storage.maintenance import SwapJob
from tailrace.storage.rewrite import RewriteRefused
from tests.broker.erasing import SECRET, Place, delete_records, erase, fill, receipt, until
from tests.broker.harness import run


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_failed_sync_of_what_was_swept_away_ends_the_broker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: OsDisk, path: str) -> None:
        raise OSError(errno.EIO, "planted", path)

    async def meet() -> None:
        async with place.broker() as (_, _, client):
            await fill(client, await client.create("orders"))
            [log] = {one.parent for one in (place.path / "data").rglob("*.log")}
            (log / f"{0:020}-{66:020}.swap.tmp").write_bytes(SECRET)
            monkeypatch.setattr(OsDisk, "sync_directory", fail)
            await erase(client, keys=[b"nobody"], wait=False)
            await trio.sleep_forever()

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as raised:
            await meet()
        assert raised.group_contains(BrokerError, match="T093")

    run(main)


def looked_through(place: Place) -> list[int]:
    """Base offsets of the segments that were read since the last call."""
    jobs, place.heavy.jobs = place.heavy.jobs, []
    return [job.source.base_offset for job in jobs if isinstance(job, EraseJob)]


def test_another_try_reads_only_what_is_left(place: Place) -> None:
    async def main() -> None:
        async with place.broker() as (server, _, client):
            topic_id = await client.create("orders")
            await fill(client, topic_id)
            second = sorted((place.path / "data").rglob("*.log"))[1]
            with second.open("r+b") as file:
                file.seek(25_000)
                file.write(b"!")
            await erase(client, keys=[b"alice"], wait=False)
            await until(lambda: place.holding(SECRET) == [second.name])
            await until(lambda: waits(server))
            assert len(looked_through(place)) >= 4
            server.clean_now()
            await erase(client, "orders", records=[(0, 100)], number=2)
            assert len(looked_through(place)) >= 3, "the second erasure has to look for itself"
            await until(lambda: waits(server))
            for _ in range(3):
                place.heavy.jobs.clear()
                server.clean_now()
                await until(lambda: waits(server))
                assert set(looked_through(place)) <= {int(second.stem)}
            await delete_records(client, {0: 66})  # takes the damage along
            assert (await receipt(client, "orders", 1, 20_000)).completed_at is not None
            assert set(looked_through(place)) <= {33, 66}

    def waits(server: Server) -> bool:
        assert server._eraser is not None
        return all(one.at > trio.current_time() for one in server._eraser._retries.values())

    run(main)


def test_a_try_that_failed_goes_on_where_it_was(place: Place) -> None:
    async def main() -> None:
        async with place.broker(held=True) as (_, _, client):
            await fill(client, await client.create("orders"))
            await erase(client, keys=[b"alice"], wait=False)
            with trio.fail_after(5):
                await place.heavy.asked.wait()
            place.heavy.failing = {3: OSError(errno.ENOSPC, "planted")}
            place.heavy.go()
            assert (await receipt(client, "orders", 1, 20_000)).records == 24
            assert looked_through(place)[:4] == [0, 33, 66, 66]
            assert place.holding(SECRET) == []

    run(main)


def test_a_new_segment_that_is_refused_is_made_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, refused = SwapJob.publish, list[str]()

    def refuse_once(self: SwapJob) -> None:
        if not refused:
            self.discard()
            refused.append("planted")
            raise RewriteRefused("half-made.swap.tmp", 0, "planted")
        publish(self)

    async def main() -> None:
        async with place.broker() as (_, _, client):
            await fill(client, await client.create("orders"))
            monkeypatch.setattr(SwapJob, "publish", refuse_once)
            assert (await erase(client, keys=[b"alice"])).records == 24
            assert (refused, place.holding(SECRET)) == (["planted"], [])

    run(main)


def test_once_a_try_that_failed_has_nothing_left_to_do_the_eraser_rests(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, refused = Erasures.flush, list[str]()

    async def fail_once(self: Erasures) -> None:
        if not refused and not self.all_stored:
            refused.append("planted")
            raise texts.metadata_unavailable("sim://store", "planted")
        await flush(self)

    async def main() -> None:
        async with place.broker() as (server, _, client):
            await fill(client, await client.create("orders"))
            monkeypatch.setattr(Erasures, "flush", fail_once)
            assert (await erase(client, keys=[b"alice"])).records == 24
            assert (refused, server._eraser is not None) == (["planted"], True)
            await trio.sleep(RETRY_FIRST_S + 0.05)  # it is due again
            with trio.fail_after(10):
                await trio.testing.wait_all_tasks_blocked()

    run(main)
