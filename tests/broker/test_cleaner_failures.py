"""What compaction does about damage and disks that fail."""

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tailrace.broker import cleaner as cleaner_module
from tailrace.protocol.errors import BrokerError
from tailrace.storage.disk import File, OsDisk
from tailrace.storage.rewrite import RewriteRefused
from tests.broker.compacting import EAGER, SLOW, Place, fill, runs, status
from tests.broker.harness import run


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_damaged_segment_is_left_out_and_the_rest_is_cleaned(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaner_module, "RETRY_FIRST_S", 0.0)

    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **SLOW)
            await fill(client, topic_id, batches=16)
            second = place.files("*.log")[1]
            data = bytearray(second.read_bytes())
            data[200] ^= 1
            with second.open("r+b") as file:
                file.write(data)
            await server.clean()
            assert status(server).state == "failed"
            assert f"{second} byte 0" in (status(server).last_error or "")
            served = (await client.fetch(topic_id, offset=int(second.stem)))[0].results[0]
            assert served.error is not None
            assert served.error.code == 35  # no reader gets it, either (R25)
            await server.clean()
            shown = status(server)
            assert shown.state == "idle"
            assert f"left out: {second} byte 0" in shown.reason
            assert runs(server, "ok") == 1

    run(main)


def test_what_is_known_of_damage_ends_with_the_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaner_module, "RETRY_FIRST_S", 0.0)

    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **SLOW)
            await fill(client, topic_id, batches=16)
            first = place.files("*.log")[0]
            place.heavy.failures.append(RewriteRefused(str(first), 0, "planted"))
            await server.clean()
            await fill(client, topic_id, batches=4)
            assert f"left out: {first} byte 0: planted" in status(server).reason
            assert server._node is not None
            (partition,) = server._node.shelf
            partition.log.set_start(3)  # as retention does, or delete_records
            await server.clean()
            assert "left out" not in status(server).reason

    run(main)


def test_a_half_made_segment_that_is_refused_is_made_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleaner_module, "RETRY_FIRST_S", 0.0)

    async def main() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **SLOW)
            await fill(client, topic_id)
            made = place.files("*.log")[0].with_name(f"{0:020}-{9:020}.swap.tmp")
            place.heavy.failures.append(RewriteRefused(str(made), 0, "planted"))
            await server.clean()
            assert (status(server).state, status(server).last_error) == (
                *("failed", f"{made} byte 0: planted"),
            )
            assert "left out" not in status(server).reason
            assert server._node is not None
            (partition,) = server._node.shelf
            assert partition.log.verify_pending(0) is None, "the log is not doubted"
            await server.clean()
            assert (status(server).state, runs(server, "ok")) == ("idle", 1)

    run(main)


def test_a_failed_sync_of_how_far_it_came_ends_the_broker(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(self: OsDisk, files: Sequence[File]) -> None:
        if any(file.path.endswith("/cleaned.tmp") for file in files):
            raise OSError(errno.EIO, "planted")

    async def meet() -> None:
        async with place.broker() as (server, client):
            topic_id = await client.create("orders", 1, **EAGER)
            await fill(client, topic_id)
            monkeypatch.setattr(OsDisk, "sync", sync)
            await server.clean()
            await trio.sleep_forever()

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as raised:
            await meet()
        assert raised.group_contains(BrokerError, match="T093")
        assert (place.path / "data" / "suspect").exists()

    run(main)
