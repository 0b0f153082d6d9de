"""A witness of a disk knows every batch of a log, whatever is done to its files."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tailrace.protocol.batch import encode_batch, header_seed, patch
from tailrace.simulation.disk import Platter, SimDisk, SimFile
from tailrace.simulation.life import Life
from tailrace.simulation.log_files import PartitionKey
from tailrace.simulation.replica_logs import Entry, LogWitness

KEY = (b"\x01" * 16, 3)
SEED = header_seed(*KEY)
FOLDER = f"/data/topics/{KEY[0].hex()}-{KEY[1]}"


@dataclass
class Heard:
    """What the witness told."""

    appended_: list[tuple[int, int | None]] = field(default_factory=list[tuple[int, int | None]])
    gone: list[int] = field(default_factory=list[int])
    disks: int = 0

    def appended(self, node: str, key: PartitionKey, entry: Entry, before: Entry | None) -> None:
        self.appended_.append((entry.base, None if before is None else before.base))

    def cut(self, node: str, key: PartitionKey, gone: Sequence[Entry]) -> None:
        self.gone += [entry.base for entry in gone]

    def other_disk(self, node: str) -> None:
        self.disks += 1


class Machine:
    def __init__(self) -> None:
        self.platter = Platter()
        self.heard = Heard()
        self.witness = LogWitness("n1", self.platter, "/data", self.heard)
        self.disk = SimDisk(self.platter, Life("n1"))
        for path in ("/data", "/data/topics", FOLDER):
            self.disk.make_directory(path)

    def segment(self, base: int) -> SimFile:
        file = self.disk.open(f"{FOLDER}/{base:020}.log", create=True)
        file.resize(8192)
        return file

    @property
    def log(self) -> list[tuple[int, int]]:
        return [(entry.base, entry.epoch) for entry in self.witness.log(KEY).entries]

    def sync(self, file: SimFile) -> None:
        self.disk.sync([file])
        for path in ("/", "/data", "/data/topics", FOLDER):
            self.disk.sync_directory(path)


def batch(base: int, epoch: int = 1, value: bytes = b"v") -> bytes:
    """Of two records."""
    entry = bytearray(encode_batch(SEED, values=[value, value], timestamps=1))
    patch(entry, seed=SEED, base_offset=base, leader_epoch=epoch, append_time=1)
    return bytes(entry)


SIZE = len(batch(0))


def test_gathered_writes_are_seen_batch_by_batch() -> None:
    machine = Machine()
    file = machine.segment(0)
    file.write([batch(0), batch(2)], 0)
    file.write([bytes(4096)], 3 * SIZE)  # zeros ahead
    file.write([batch(4)], 2 * SIZE)
    assert machine.log == [(0, 1), (2, 1), (4, 1)]
    assert machine.heard.appended_ == [(0, None), (2, 0), (4, 2)]
    assert machine.heard.gone == []
    found = machine.witness.log(KEY).find(3)
    assert found is not None
    assert (found.base, found.next) == (2, 4)
    assert [one.base for one in machine.witness.log(KEY).between(2, 5)] == [2, 4]


def test_what_is_cut_is_told_and_what_is_written_again_is_not() -> None:
    machine = Machine()
    file = machine.segment(0)
    file.write([batch(0), batch(2), batch(4)], 0)
    file.write([batch(2), batch(4)], SIZE)
    assert machine.heard.gone == []
    assert len(machine.heard.appended_) == 3
    file.write([bytes(SIZE)], 2 * SIZE)
    assert machine.heard.gone == [4]
    file.write([batch(2, epoch=2)], SIZE)
    assert machine.heard.gone == [4]
    assert machine.log == [(0, 1), (2, 2)]
    file.resize(SIZE)
    assert machine.heard.gone == [4, 2]


def test_removed_files_count_as_cut_only_at_the_end() -> None:
    machine = Machine()
    for base in (0, 2, 4):
        machine.segment(base).write([batch(base)], 0)
    machine.disk.remove(f"{FOLDER}/{0:020}.log")
    assert (machine.log, machine.heard.gone) == ([(2, 1), (4, 1)], [])
    machine.disk.remove(f"{FOLDER}/{4:020}.log")
    assert (machine.log, machine.heard.gone) == ([(2, 1)], [4])


def test_a_file_that_takes_the_place_of_others_is_read() -> None:
    machine = Machine()
    machine.segment(0).write([batch(0), batch(2)], 0)
    machine.disk.open(f"{FOLDER}/new", create=True).write([batch(0, value=b"w"), batch(2)], 0)
    machine.disk.rename(f"{FOLDER}/new", f"{FOLDER}/{0:020}.log")
    assert machine.log == [(0, 1), (2, 1)]
    assert machine.heard.gone == []


def test_durable_is_what_a_power_cut_leaves() -> None:
    machine = Machine()
    file = machine.segment(0)
    file.write([batch(0)], 0)
    [first] = machine.witness.log(KEY).entries
    assert not machine.witness.is_durable(first)
    machine.sync(file)
    file.write([batch(2)], SIZE)
    assert [machine.witness.is_durable(one) for one in machine.witness.log(KEY).entries] == [
        True,
        False,
    ]
    machine.platter.power_cut(lambda options: 0)
    assert machine.log == [(0, 1)]
    assert machine.heard.disks == 1
    machine.platter.wipe()
    assert machine.log == []
