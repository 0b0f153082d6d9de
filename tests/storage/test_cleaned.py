"""How far a log was cleaned, as it is remembered."""

from pathlib import Path

import pytest

from tailrace.storage import cleaned
from tailrace.storage.cleaned import Cleaned
from tailrace.storage.epochs import EpochStart
from tests.storage.logs import QuickDisk

EPOCHS = (EpochStart(6, 0), EpochStart(7, 80))


@pytest.mark.parametrize(
    "value", [Cleaned(epoch=7), Cleaned(90, 40, 123, 456, 7, True), Cleaned(90, 90, epoch=7)]
)
def test_it_is_read_as_it_was_written(tmp_path: Path, value: Cleaned) -> None:
    disk = QuickDisk()
    cleaned.write(disk, str(tmp_path), value)
    assert cleaned.read(disk, str(tmp_path), 90, EPOCHS) == value


def test_without_a_file_nothing_is_clean(tmp_path: Path) -> None:
    assert cleaned.read(QuickDisk(), str(tmp_path), 90, EPOCHS) == Cleaned()


def test_a_damaged_file_says_nothing(tmp_path: Path) -> None:
    disk = QuickDisk()
    cleaned.write(disk, str(tmp_path), Cleaned(90, 90, epoch=7))
    path = tmp_path / "cleaned"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert cleaned.read(disk, str(tmp_path), 90, EPOCHS) == Cleaned()


def test_a_log_that_lost_what_was_clean_is_cleaned_from_its_start(tmp_path: Path) -> None:
    disk = QuickDisk()
    cleaned.write(disk, str(tmp_path), Cleaned(90, 90, epoch=7))
    assert cleaned.read(disk, str(tmp_path), 89, EPOCHS) == Cleaned()


def test_what_was_clean_in_an_epoch_is_so_as_far_as_that_goes(tmp_path: Path) -> None:
    """A log that was cut and goes on with other records is longer than the file says."""
    disk = QuickDisk()
    cleaned.write(disk, str(tmp_path), Cleaned(90, 90, epoch=7))
    longer = (*EPOCHS, EpochStart(9, 95))
    assert cleaned.read(disk, str(tmp_path), 200, longer).below == 90
    cut = (*EPOCHS, EpochStart(9, 85))
    assert cleaned.read(disk, str(tmp_path), 200, cut) == Cleaned()
