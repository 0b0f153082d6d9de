"""The simulated disk does what the real one does, and forgets what was not synced."""

import errno
from pathlib import Path
from random import Random

import pytest

from tailrace.simulation.chance import every_world, random_pick
from tailrace.simulation.content import PAGE, SECTOR
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life, NodeDead
from tailrace.storage.disk import Disk, OsDisk


def drop(options: int) -> int:
    """A power cut that keeps nothing unsynced."""
    return 0


def keep(options: int) -> int:
    """One that keeps everything."""
    return min(1, options - 1)


class Machine:
    """A platter and the process that uses it."""

    def __init__(self, platter: Platter | None = None) -> None:
        self.platter = platter or Platter()
        self.life = Life("n1")
        self.disk = SimDisk(self.platter, self.life)

    def write(self, path: str, data: bytes, position: int = 0) -> None:
        self.disk.open(path, create=True).write([data], position)

    def write_durably(self, path: str, data: bytes) -> None:
        self.write(path, data)
        self.disk.sync([self.disk.open(path)])
        self.disk.sync_directory(path.rpartition("/")[0] or "/")

    def after(self, *outcomes: int) -> "dict[str, bytes]":
        """What a power cut leaves, by name, if its questions are answered so."""
        answers = iter(outcomes)
        return contents(self.platter.crashed(lambda options: next(answers)))


def contents(platter: Platter) -> dict[str, bytes]:
    disk = SimDisk(platter, Life("reader"))
    files = [name for name in disk.list("/") if name != "folder"]
    return {name: disk.open("/" + name).read(1 << 20, 0) for name in files}


@pytest.fixture(params=["real", "simulated"])
def disk_and_root(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Disk, str]:
    return (OsDisk(), str(tmp_path)) if request.param == "real" else (Machine().disk, "")


def test_files_behave_like_the_systems_files(disk_and_root: tuple[Disk, str]) -> None:
    disk, root = disk_and_root
    with pytest.raises(FileNotFoundError):
        disk.open(f"{root}/a")
    file = disk.open(f"{root}/a", create=True)
    file.resize(10_000)
    file.write([b"hello ", bytearray(b"wo"), memoryview(b"rld")], 5_000)
    assert (file.size(), file.read(11, 5_000)) == (10_000, b"hello world")
    assert file.read(8, 9_996) == bytes(4)
    view = file.view(4_999, 13)
    assert bytes(view) == b"\0hello world\0"
    file.write([b"J"], 5_000)
    assert bytes(view[1:6]) == b"Jello", "a view sees what is written later"
    assert disk.open(f"{root}/a").read(5, 5_000) == b"Jello"
    disk.sync([file])
    disk.rename(f"{root}/a", f"{root}/b")
    assert (disk.exists(f"{root}/a"), disk.list(root or "/")) == (False, ["b"])
    file.write([b"still open"], 0)
    disk.remove(f"{root}/b")
    disk.remove(f"{root}/b")
    assert file.read(10, 0) == b"still open"
    assert bytes(view[1:6]) == b"Jello"


def test_directories_behave_like_the_systems(disk_and_root: tuple[Disk, str]) -> None:
    disk, root = disk_and_root
    disk.make_directory(f"{root}/d")
    disk.make_directory(f"{root}/d")
    disk.make_directory(f"{root}/d/e")
    with pytest.raises(FileNotFoundError):
        disk.make_directory(f"{root}/x/y")
    disk.open(f"{root}/d/e/f", create=True)
    disk.sync_directory(f"{root}/d/e")
    assert disk.list(f"{root}/d") == ["e"]
    disk.remove_directory(f"{root}/d")
    disk.remove_directory(f"{root}/d")
    assert disk.list(f"{root}/d") == []
    free, total = disk.usage(root or "/")
    assert 0 < free <= total


def test_a_cut_file_reads_as_zeros_where_it_grows_again(disk_and_root: tuple[Disk, str]) -> None:
    disk, root = disk_and_root
    file = disk.open(f"{root}/a", create=True)
    file.write([b"x" * 9_000], 0)
    file.resize(100)
    file.resize(9_000)
    assert file.read(9_000, 0) == b"x" * 100 + bytes(8_900)


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    machine = Machine()
    machine.disk.lock("/LOCK", "n1")
    other = SimDisk(machine.platter, Life("other"))
    with pytest.raises(BlockingIOError):
        other.lock("/LOCK", "n2")
    machine.life.dead = True
    other.lock("/LOCK", "n2").release()
    other.lock("/LOCK", "n3")


def test_what_was_not_synced_is_gone_after_a_power_cut() -> None:
    machine = Machine()
    machine.write_durably("/a", b"old" + bytes(2 * PAGE))
    machine.write("/a", b"new")
    machine.write("/b", b"no name on the disk")
    machine.disk.sync([machine.disk.open("/b")])
    assert contents(machine.platter.crashed(drop)) == {"a": b"old" + bytes(2 * PAGE)}
    assert contents(machine.platter.crashed(keep))["a"] == b"new" + bytes(2 * PAGE)
    assert contents(machine.platter.crashed(keep))["b"] == b"no name on the disk"


def test_the_plain_form_keeps_nothing_unsynced() -> None:
    machine = Machine(Platter(ordered=False))
    machine.write_durably("/a", b"old")
    machine.write("/a", b"new and longer")
    assert contents(machine.platter.crashed(keep)) == {"a": b"old"}


def test_a_write_survives_whole_torn_or_as_zeros() -> None:
    machine = Machine()
    machine.write_durably("/a", b"s")
    data = b"abc" * PAGE
    machine.write("/a", data)
    outcomes = set(every_world(lambda pick: contents(machine.platter.crashed(pick))["a"]))
    assert {b"s", data, b"s" + bytes(len(data) - 1)} <= outcomes
    assert data[:SECTOR] in outcomes
    assert data[:PAGE] + bytes(PAGE) + data[2 * PAGE :] in outcomes
    assert len(outcomes) == 1 + 1 + 1 + 23 + 8 - 4  # dropped, kept, zeros, sectors, pages - same


def test_writes_are_kept_independently() -> None:
    machine = Machine()
    machine.write_durably("/a", b"....")
    machine.write("/a", b"12", 0)
    machine.write("/a", b"34", 2)
    outcomes = set(every_world(lambda pick: contents(machine.platter.crashed(pick))["a"]))
    assert outcomes == {b"....", b"12..", b"..34", b"1234"}


def test_names_are_kept_independently_of_data() -> None:
    machine = Machine()
    machine.write_durably("/a", b"old")
    machine.write("/t", b"new")
    machine.disk.sync([machine.disk.open("/t")])
    machine.disk.rename("/t", "/a")
    outcomes = list(every_world(lambda pick: contents(machine.platter.crashed(pick))))
    assert {"a": b"old"} in outcomes
    assert {"a": b"old", "t": b"new"} in outcomes
    assert {"a": b"new"} in outcomes
    assert len(outcomes) == 4


def test_a_lost_directory_takes_its_files_along() -> None:
    machine = Machine()
    machine.disk.make_directory("/folder")
    machine.write_durably("/folder/a", b"x")
    assert SimDisk(machine.platter.crashed(drop), Life("r")).list("/") == []
    machine.disk.sync_directory("/")
    left = SimDisk(machine.platter.crashed(drop), Life("r"))
    assert left.open("/folder/a").read(9, 0) == b"x"


def test_a_failed_sync_leaves_clean_pages_that_are_not_on_the_disk() -> None:
    machine = Machine()
    machine.write_durably("/a", b"old")
    machine.write("/a", b"new")
    machine.platter.failing_syncs = 1
    file = machine.disk.open("/a")
    with pytest.raises(OSError, match="Input/output") as failure:
        machine.disk.sync([file])
    assert failure.value.errno == errno.EIO
    machine.disk.sync([file])  # "succeeds"
    assert file.read(3, 0) == b"new"
    assert contents(machine.platter.crashed(keep)) == {"a": b"old"}
    machine.write("/a", b"rewritten")
    machine.disk.sync([file])
    assert contents(machine.platter.crashed(drop)) == {"a": b"rewritten"}


def test_a_failed_sync_of_a_directory_leaves_names_that_only_a_change_writes() -> None:
    machine = Machine()
    for fail in (machine.disk.sync_directory, lambda path: machine.disk.sync_together([], [path])):
        machine.write("/a", b"x")
        machine.disk.sync([machine.disk.open("/a")])
        machine.platter.failing_syncs = 1
        with pytest.raises(OSError, match="Input/output"):
            fail("/")
        machine.disk.sync_directory("/")  # "succeeds"
        assert contents(machine.platter.crashed(keep)) == {}
        machine.write("/b", b"")
        machine.disk.remove("/b")
        machine.disk.sync_directory("/")
        assert contents(machine.platter.crashed(drop)) == {"a": b"x"}
        machine.disk.remove("/a")
        machine.disk.sync_directory("/")


def test_a_full_disk_takes_what_fits_and_says_so() -> None:
    machine = Machine(Platter(total_bytes=2 * PAGE))
    file = machine.disk.open("/a", create=True)
    file.resize(100 * PAGE)  # sparse: costs nothing
    with pytest.raises(OSError, match="No space") as failure:
        file.write([b"x" * 3 * PAGE], 0)
    assert failure.value.errno == errno.ENOSPC
    assert file.read(3 * PAGE, 0) == b"x" * 2 * PAGE + bytes(PAGE)
    assert machine.disk.usage("/") == (0, 2 * PAGE)
    machine.disk.remove("/a")
    machine.write("/b", b"room again")


def test_a_dead_process_changes_nothing() -> None:
    machine = Machine()
    machine.write_durably("/a", b"x")
    file = machine.disk.open("/a")
    machine.life.dies_at_step = machine.life.steps + 1
    file.write([b"y"], 0)
    with pytest.raises(NodeDead):
        file.write([b"z"], 0)
    with pytest.raises(NodeDead):
        machine.disk.sync([file])
    with pytest.raises(NodeDead):
        machine.disk.list("/")
    assert contents(machine.platter) == {"a": b"y"}


def test_durable_bytes_are_those_a_power_cut_would_leave() -> None:
    rng = Random(5)
    machine = Machine()
    file = machine.disk.open("/a", create=True)
    machine.disk.sync_directory("/")
    for _ in range(300):
        step = rng.randrange(12)
        if step == 0:
            machine.disk.sync([file])
        elif step == 1:
            file.resize(rng.randrange(5 * PAGE))
        else:
            file.write([rng.randbytes(rng.randrange(1, 2 * PAGE))], rng.randrange(4 * PAGE))
        content = machine.platter.durable_content("/a")
        assert content is not None
        dropped = contents(machine.platter.crashed(drop))["a"]
        assert content.durable(0, 1 << 20) == dropped
        kept = contents(machine.platter.crashed(keep))["a"]
        assert kept == file.read(1 << 20, 0)
        machine.platter.crashed(random_pick(rng))


def test_a_sparse_segment_costs_what_was_written() -> None:
    machine = Machine(Platter(ordered=False))
    for number in range(200):
        file = machine.disk.open(f"/{number}", create=True)
        file.resize(128 << 20)
        file.write([b"x" * 100], 0)
    assert machine.platter.used_bytes == 200 * PAGE


def test_bit_rot_reaches_cache_and_disk() -> None:
    machine = Machine()
    machine.write_durably("/a", b"abc")
    machine.write("/a", b"x", 2)
    machine.platter.content("/a").flip(0, 2)
    assert machine.disk.open("/a").read(3, 0) == b"cbx"
    assert contents(machine.platter.crashed(drop)) == {"a": b"cbc"}


def test_disks_that_hold_the_same_have_the_same_digest() -> None:
    one, other = Machine(), Machine()
    for machine in (one, other):
        machine.disk.make_directory("/folder")
        machine.write("/folder/a", b"abc")
    other.write("/folder/a", b"c", 2)
    assert one.platter.digest() == other.platter.digest()
    differs = {one.platter.digest()}
    for change in ("/folder/a", "/folder/b", "/a"):
        other.write(change, b"x")
        differs.add(other.platter.digest())
    other.disk.open("/a").resize(5)
    differs.add(other.platter.digest())
    assert len(differs) == 5
