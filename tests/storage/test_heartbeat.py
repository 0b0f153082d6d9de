"""The ``clock`` file: small, fixed, and never believed when it is damaged."""

import errno

import pytest

from tailrace.protocol.errors import BrokerError
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life
from tailrace.storage.heartbeat import DOUBTS_MAX, Beat, Doubt, encode, read, write

PATH = "/clock"


def disk() -> SimDisk:
    return SimDisk(Platter(), Life("test"))


def test_what_was_written_is_read_in_one_length() -> None:
    here = disk()
    beats = [
        Beat(1_700_000_000_000, ()),
        Beat(5, (Doubt(1, 2),)),
        Beat(7, tuple(Doubt(n, -n) for n in range(DOUBTS_MAX))),
    ]
    for beat in beats:
        write(here, PATH, beat)
        assert read(here, PATH) == beat
    assert len({len(encode(beat)) for beat in beats}) == 1
    assert len(encode(beats[0])) < 512  # a sector


def test_a_missing_or_damaged_file_is_none() -> None:
    here = disk()
    assert read(here, PATH) is None
    whole = encode(Beat(1_700_000_000_000, (Doubt(60_000, 5),)))
    for at in range(len(whole)):
        file = here.open(PATH, create=True)
        file.write([whole], 0)
        file.write([bytes([whole[at] ^ 1])], at)
        assert read(here, PATH) is None
    file = here.open(PATH)
    file.resize(10)
    assert read(here, PATH) is None


def test_a_power_cut_leaves_the_first_beat_or_a_later_one() -> None:
    platter = Platter()
    here = SimDisk(platter, Life("test"))
    first, later = Beat(5, ()), Beat(7, (Doubt(1, 2),))
    write(here, PATH, first)
    write(here, PATH, later)
    assert read(SimDisk(platter.crashed(lambda options: 0), Life("next")), PATH) == first
    assert read(SimDisk(platter.crashed(lambda options: 1), Life("next")), PATH) == later


def test_a_first_beat_whose_sync_fails_is_nothing_to_go_on_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: SimDisk, path: str) -> None:
        raise OSError(errno.EIO, "planted", path)

    here = disk()
    monkeypatch.setattr(SimDisk, "sync_directory", fail)
    with pytest.raises(BrokerError, match="T093"):
        write(here, PATH, Beat(5, ()))
