"""Memory at hand: a part stays taken, the rest is given back."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailrace.bench import touch

MIB = 1 << 20


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    touch.release_memory()


def taken_bytes(folder: Path) -> list[int]:
    """Sizes of the files without a name that this process has open in a folder."""
    found = list[int]()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith(f"{folder}/"):
                found.append(os.fstat(int(name)).st_size)
        except OSError:  # the one that was listing
            continue
    return found


def test_a_seventh_of_what_was_asked_for_stays_taken_besides(tmp_path: Path) -> None:
    touch.touch_memory(tmp_path, 14 * MIB)
    assert taken_bytes(tmp_path) == [2 * MIB]
    assert not list(tmp_path.iterdir())


def test_what_was_taken_before_is_given_back_by_the_next_call(tmp_path: Path) -> None:
    touch.touch_memory(tmp_path, 14 * MIB)
    touch.touch_memory(tmp_path, 7 * MIB)
    assert taken_bytes(tmp_path) == [MIB]
    touch.release_memory()
    assert taken_bytes(tmp_path) == []


def test_no_more_than_half_of_what_is_available_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touch, "available_bytes", lambda: 32 * MIB)
    touch.touch_memory(tmp_path, 1 << 40)
    assert taken_bytes(tmp_path) == [2 * MIB]


def test_a_disk_is_touched_without_a_trace(tmp_path: Path) -> None:
    touch.touch_disk(tmp_path, 3 * MIB)
    assert not list(tmp_path.iterdir())
    assert taken_bytes(tmp_path) == []
