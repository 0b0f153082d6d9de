"""What an erasure does about disks that fail and segments that nobody can read."""

import errno
from pathlib import Path

import pytest
import trio

from tailrace.protocol.errors import BrokerError
from tailrace.storage.disk import OsDisk
from tests.broker.erasing import SECRET, Place, erase, fill
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
