"""Checkpoint files: whole and checked, or not there at all."""

import errno
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from tailrace.protocol.errors import BrokerError
from tailrace.storage import checkpoint
from tailrace.storage.checkpoint import Kind, replace
from tailrace.storage.disk import OsDisk
from tests.storage.logs import FullDisk


def decoded(data: bytes, kind: Kind = Kind.START) -> bytes | None:
    body = checkpoint.decode(kind, data)
    return None if body is None else bytes(body)


def stored(disk: OsDisk, path: str) -> bytes | None:
    body = checkpoint.read(disk, path, Kind.START)
    return None if body is None else bytes(body)


@given(body=st.binary(max_size=200))
def test_what_is_written_is_read(body: bytes) -> None:
    assert decoded(checkpoint.encode(Kind.EPOCHS, body), Kind.EPOCHS) == body


def test_any_flipped_bit_cut_or_extension_is_noticed() -> None:
    data = checkpoint.encode(Kind.START, b"body")
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            assert decoded(bytes(changed)) is None
        assert decoded(data[:position]) is None
    assert decoded(data + b"\0") is None


def test_file_of_another_kind_is_not_believed() -> None:
    assert decoded(checkpoint.encode(Kind.EPOCHS, b"")) is None


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    disk, path = OsDisk(), f"{tmp_path}/start"
    assert stored(disk, path) is None
    for body in (b"first and longer", b"second"):
        checkpoint.write(disk, path, checkpoint.encode(Kind.START, body))
        assert stored(disk, path) == body
    assert [file.name for file in tmp_path.iterdir()] == ["start"]


def test_longer_file_left_by_a_crash_does_not_show_through(tmp_path: Path) -> None:
    (tmp_path / "start.tmp").write_bytes(b"x" * 1000)
    path = f"{tmp_path}/start"
    checkpoint.write(OsDisk(), path, checkpoint.encode(Kind.START, b"short"))
    assert stored(OsDisk(), path) == b"short"


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    disk, path = FullDisk(), f"{tmp_path}/start"
    checkpoint.write(disk, path, checkpoint.encode(Kind.START, b"old"))
    disk.bytes_left = 5
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(disk, path, checkpoint.encode(Kind.START, b"new"))
    assert stored(disk, path) == b"old"


@pytest.mark.parametrize(
    ("step", "caught"),
    [("stage", OSError), ("sync", BrokerError), ("publish", OSError), ("sync_names", BrokerError)],
)
def test_what_may_be_tried_again_is_told_from_a_failed_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, caught: type[Exception]
) -> None:
    def fail(self: OsDisk, *args: object, **options: object) -> None:
        raise OSError(errno.EIO, "planted")

    methods = {"stage": "open", "sync": "sync", "publish": "rename", "sync_names": "sync_directory"}
    monkeypatch.setattr(OsDisk, methods[step], fail)
    with pytest.raises(caught, match="planted"):
        replace(OsDisk(), f"{tmp_path}/start", b"new")
