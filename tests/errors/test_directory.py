"""T090-T100 and T110: what a broker or an offline tool meets on its disk, and a wrong clock."""

import errno
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tailrace.protocol.errors import BrokerError, MetadataUnavailable, TailraceError
from tailrace.storage.disk import File, OsDisk
from tailrace.testing import Broker
from tests.broker.harness import connected, run, serving
from tests.broker.test_corruption import CONFIG, VALUES, flip_bit, read, written
from tests.errors.provoking import commands, parse, told
from tests.hand_clock import HandClock


def start_fails(data: Path, **settings: str) -> TailraceError:
    with pytest.raises(TailraceError) as caught:
        Broker(data_dir=data, config={key.replace("__", "."): v for key, v in settings.items()})
    return caught.value


@pytest.mark.provokes("T090")
def test_a_directory_in_use(tmp_path: Path) -> None:
    with Broker(data_dir=tmp_path):
        error = start_fails(tmp_path)
    message = rf"{tmp_path} is locked by pid {os.getpid()} \(broker, broker n1\)"
    told(error, "T090", message)
    assert error.hint == "Stop it, or use another storage.data_dir."


@pytest.mark.provokes("T091")
def test_a_directory_of_another_broker(tmp_path: Path) -> None:
    Broker(data_dir=tmp_path).stop()
    error = start_fails(tmp_path, broker__id="n2")
    told(
        error,
        "T091",
        rf"{tmp_path} belongs to broker n1 of cluster (\S+), the configuration says n2 of \S+",
    )
    assert error.hint == "Refusing to start. Fix broker.id or storage.data_dir."


@pytest.mark.provokes("T092")
def test_a_directory_of_a_newer_release(tmp_path: Path) -> None:
    Broker(data_dir=tmp_path).stop()
    file = tmp_path / "meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    error = start_fails(tmp_path)
    told(error, "T092", rf"{tmp_path} has format 99, this release reads up to \d+")


class LosesSyncs(OsDisk):
    """From some moment on, what is synced does not arrive."""

    broken = False

    def sync_together(self, files: Sequence[File], directories: Sequence[str]) -> None:
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync_together(files, directories)


@pytest.mark.provokes("T093")
def test_a_sync_that_failed(tmp_path: Path) -> None:
    disk = LosesSyncs()

    async def main() -> None:
        async with serving(tmp_path, change=lambda world: replace(world, disk=disk)) as (_, ready):
            async with connected(ready) as client:
                await client.create("orders")
                disk.broken = True
                with pytest.raises(BrokerError) as caught:
                    await client.create("more")
        told(
            caught.value,
            "T093",
            rf"sync of {tmp_path}/\S+ failed: Input/output error; nothing since the last sync was "
            "acknowledged, the directory is marked suspect",
        )

    with pytest.raises(BaseExceptionGroup) as ended:
        run(main)
    assert ended.group_contains(BrokerError, match="T093")


@pytest.mark.provokes("T094")
def test_damage_that_is_found_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Broker(data_dir=tmp_path / "data", config=CONFIG) as broker:
        written(broker)
    path = flip_bit(tmp_path / "data", VALUES[5])
    code, error = refused_verification(capsys, path)
    assert code == 6
    assert error["code"] == "T094"
    with Broker(data_dir=tmp_path / "data", config=CONFIG) as broker:
        with broker.client() as client:
            read(client, 0)
        (told_of, *_) = [event for event in broker.events(1_000) if event.get("code") == "T094"]
    message = str(told_of["message"])
    assert re.fullmatch(
        rf"T094: \S*{path.name} is corrupt at byte [\d,]+: .+; offsets 0 to 19 are not served\. "
        r"Restore the file from a replica or a backup; look: tailrace segment verify \S+",
        message,
    ), message
    for words in commands(message):
        parse(words)


def refused_verification(
    capsys: pytest.CaptureFixture[str], path: Path
) -> tuple[int, dict[str, object]]:
    from tailrace.cli import run as run_command

    capsys.readouterr()
    code = run_command(["segment", "verify", str(path), "-O", "json"])
    (file,) = json.loads(capsys.readouterr().out)["files"]
    return code, file["error"]


@pytest.mark.provokes("T100")
def test_a_metadata_store_that_cannot_be_read(tmp_path: Path) -> None:
    Broker(data_dir=tmp_path).stop()
    store = tmp_path / "metadata.sqlite"
    store.write_bytes(b"no database" * 1_000)
    error = start_fails(tmp_path)
    assert isinstance(error, MetadataUnavailable)
    told(error, "T100", rf"metadata store {store} failed: file is not a database")
    assert error.hint == "Check the disk and the owner of that file."


@pytest.mark.provokes("T110")
@pytest.mark.parametrize(("step_ms", "side"), [(120_000, "ahead of"), (-120_000, "behind")])
def test_a_clock_that_jumps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, step_ms: int, side: str
) -> None:
    caplog.set_level(logging.WARNING)
    clock = HandClock()

    async def main() -> None:
        change = lambda world: replace(world, clock=clock)  # noqa: E731
        async with serving(tmp_path, change=change) as (server, _):
            clock.step_ms = step_ms
            await server.clean()

    run(main)
    found = [record for record in caplog.records if getattr(record, "code", "") == "T110"]
    assert found[0].getMessage() == (
        f"T110: broker clock is 120 s {side} its monotonic clock. Check NTP: retention and "
        "windows will be wrong."
    )
