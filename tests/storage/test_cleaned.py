"""How far a log was cleaned, as it is remembered."""

from pathlib import Path

import pytest

from tailrace.storage import cleaned
from tailrace.storage.cleaned import Cleaned
from tests.storage.logs import QuickDisk


@pytest.mark.parametrize("value", [Cleaned(), Cleaned(90, 40, 123, 456), Cleaned(90, 90)])
def test_it_is_read_as_it_was_written(tmp_path: Path, value: Cleaned) -> None:
    disk = QuickDisk()
    cleaned.write(disk, str(tmp_path), value)
    assert cleaned.read(disk, str(tmp_path), 90) == value


def test_without_a_file_nothing_is_clean(tmp_path: Path) -> None:
    assert cleaned.read(QuickDisk(), str(tmp_path), 90) == Cleaned()


def test_a_damaged_file_says_nothing(tmp_path: Path) -> None:
    disk = QuickDisk()
    cleaned.write(disk, str(tmp_path), Cleaned(90, 90))
    path = tmp_path / "cleaned"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert cleaned.read(disk, str(tmp_path), 90) == Cleaned()


def test_a_log_that_lost_what_was_clean_is_cleaned_from_its_start(tmp_path: Path) -> None:
    disk = QuickDisk()
    cleaned.write(disk, str(tmp_path), Cleaned(90, 90))
    assert cleaned.read(disk, str(tmp_path), 89) == Cleaned()
