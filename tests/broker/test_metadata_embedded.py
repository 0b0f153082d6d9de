"""The embedded store keeps the contract, and what it committed survives reopening."""

import random
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tailrace.broker.metadata import MetadataStore
from tailrace.broker.metadata_embedded import EmbeddedStore
from tailrace.broker.threads import ThreadOffload
from tailrace.protocol.errors import MetadataUnavailable
from tests.broker.metadata_contract import MetadataContract, closing
from tests.hand_clock import HandClock


class TestEmbeddedStore(MetadataContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = str(tmp_path / "metadata.sqlite")
        self.hand_clock = HandClock()

    def open(self) -> AbstractAsyncContextManager[MetadataStore]:
        return opened(self.path, self.hand_clock)

    async def pass_seconds(self, seconds: float) -> None:
        self.hand_clock.seconds += seconds


@asynccontextmanager
async def opened(path: str, clock: HandClock) -> AsyncIterator[MetadataStore]:
    async with closing(await EmbeddedStore.open(path, ThreadOffload(), clock)) as store:
        yield store


def test_entries_and_revisions_survive_reopening_but_leased_keys_do_not(tmp_path: Path) -> None:
    path = str(tmp_path / "metadata.sqlite")

    async def main() -> None:
        async with opened(path, HandClock()) as store:
            first = await store.txn([], {"kept": b"1"})
            await store.txn([], {"leased": b""}, lease=await store.grant(60))
        async with opened(path, HandClock()) as store:
            entries = await store.list("")
            assert [(entry.key, entry.revision) for entry in entries] == [("kept", first)]
            later = await store.txn([], {"more": b""})
            assert later is not None
            assert first is not None
            assert later > first + 1

    trio.run(main)


def test_a_file_that_is_no_database_is_a_typed_error(tmp_path: Path) -> None:
    path = tmp_path / "metadata.sqlite"
    path.write_bytes(random.Random(1).randbytes(4096))

    async def main() -> None:
        with pytest.raises(MetadataUnavailable) as raised:
            await EmbeddedStore.open(str(path), ThreadOffload(), HandClock())
        assert str(path) in str(raised.value)

    trio.run(main)


def test_a_full_disk_is_a_typed_error_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect

    def small(path: str, *, isolation_level: None, check_same_thread: bool) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(
            path, isolation_level=isolation_level, check_same_thread=check_same_thread
        )
        database.execute("PRAGMA max_page_count = 40")
        return database

    monkeypatch.setattr(sqlite3, "connect", small)

    async def main() -> None:
        async with opened(str(tmp_path / "metadata.sqlite"), HandClock()) as store:
            written: list[str] = []

            async def write() -> None:
                for number in range(40):
                    await store.txn([], {f"key {number:02}": bytes(8_000)})
                    written.append(f"key {number:02}")

            with pytest.raises(MetadataUnavailable, match="disk is full"):
                await write()
            assert [one.key for one in await store.list("")] == written
            await store.txn([], {}, [written[0]])
            await store.txn([], {"again": bytes(4_000)})
            assert len(await store.list("")) == len(written)

    trio.run(main)
