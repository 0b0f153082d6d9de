"""One file of a stopped broker is damaged, and the broker started on it (S33).

    python -m tests.proofs.damage --cases 200

The files: segments, indexes, producer snapshots, epochs, marks, ``meta.json``, SQLite's. The kinds
of damage: a flipped bit, a file cut short, a page of zeros, a page as it was earlier, a page of
another file, two files swapped, a file lost. Whatever it was: no wrong byte is served; what is
served and what is said to be damaged (T035) are together all that was acknowledged; only batches
that the damage touched are said to be damaged; appending goes on behind the old end. A broker that
cannot start says why; one that lost what its metadata store knew names the directories whose topic
it does not know, and leaves them alone.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from tailrace.protocol.batch import BatchHeader, header_seed, scan_one
from tailrace.protocol.errors import TailraceError
from tailrace.storage.directory import parse_partition_name
from tests.broker.harness import Client
from tests.proofs.session import PARTITIONS, Ledger, Place, connected, end_of, records_in, session
from tests.proofs.strace import TracedBroker

PAGE = 4096
SESSIONS = 5
KILLED = -9
TOGETHER = 2
KINDS = ("flip", "cut", "zeros", "stale", "misdirected", "swap", "lose")
CORRUPT = 35
REFUSES_TO_START = ("T09", "T10")  # the directory or the metadata store is not what it should be


@dataclass(frozen=True)
class Damage:
    """What was done to which bytes of which files."""

    kind: str
    files: tuple[str, ...]  # relative to the data directory
    position: int = 0
    end: int = 1 << 62

    def __str__(self) -> str:
        return f"{self.kind} of {' and '.join(self.files)} [{self.position}, {self.end})"


@dataclass
class Original:
    """A data directory, as it was at two moments, and what was acknowledged in it."""

    folder: Path
    earlier: Path
    ledger: Ledger
    crashed: bool  # killed, not stopped

    def batches(self, damage: Damage) -> set[Place]:
        """The offsets of all batches that the damage touches."""
        found: set[Place] = set()
        for name in damage.files:
            key = parse_partition_name(Path(name).parent.name)
            if key is None or not name.endswith(".log"):
                continue
            data = (self.folder / name).read_bytes()
            for position, header in batches(data, header_seed(*key)):
                if position < damage.end and position + header.size_bytes > damage.position:
                    offsets = range(header.base_offset, header.next_offset)
                    found |= {(key[1], offset) for offset in offsets}
        return found


def batches(data: bytes, seed: int) -> Iterator[tuple[int, BatchHeader]]:
    position, view = 0, memoryview(data)
    while isinstance(header := scan_one(view, position, seed), BatchHeader):
        yield position, header
        position += header.size_bytes


def prepare(folder: Path, *, crashed: bool) -> Original:
    """Fill a directory by a few sessions, the last one stopped or killed."""
    ledger, data = Ledger(), folder / "data"
    for number in range(SESSIONS):
        broker = TracedBroker(data, watched=False)
        assert broker.ready(), broker.last_words()
        assert trio.run(session, broker.url, ledger)
        if crashed and number == SESSIONS - 1:
            broker.end()
        else:
            broker.stop()
            assert broker.wait() == 0, broker.last_words()
        if number == SESSIONS - 2:
            shutil.copytree(data, folder / "earlier")
    return Original(data, folder / "earlier", ledger, crashed)


def files_of(folder: Path) -> list[str]:
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    kept = [name for name in names if name not in ("LOCK", "ballast")]
    return sorted(kept, key=lambda name: name.rpartition("-")[2])  # topic ids are by chance


def plan(original: Original, kind: str, rng: Random) -> Damage:
    """Some damage of a kind; segments are hit more often than the many small files."""
    names = [name for name in files_of(original.folder) if size_of(original, name)]
    logs = [name for name in names if name.endswith(".log")]
    if kind == "swap":
        first = rng.choice(names)
        suffix = Path(first).suffix or Path(first).name
        same = [name for name in names if name != first and name.endswith(suffix)]
        return Damage(kind, (first, rng.choice(same or logs)))
    name = rng.choice(logs if rng.random() < 0.6 else names)
    size = size_of(original, name)
    if kind == "lose":
        return Damage(kind, (name,))
    position = rng.randrange(size)
    if kind == "flip":
        return Damage(kind, (name,), position, position + 1)
    if kind == "cut":
        return Damage(kind, (name,), position)
    page = position // PAGE * PAGE
    if kind == "misdirected":
        return Damage(kind, (name,), page, page + PAGE)
    return Damage(kind, (name,), page, min(size, page + PAGE))


def size_of(original: Original, name: str) -> int:
    """Up to the last byte that is not zero."""
    return len((original.folder / name).read_bytes().rstrip(b"\0"))


def inflict(original: Original, damage: Damage, data: Path, rng: Random) -> None:
    """Damage a copy."""
    path = data / damage.files[0]
    content = bytearray(path.read_bytes())
    span = slice(damage.position, damage.end)
    if damage.kind == "flip":
        content[damage.position] ^= 1 << rng.randrange(8)
    elif damage.kind == "cut":
        del content[damage.position :]
    elif damage.kind == "zeros":
        content[span] = bytes(len(content[span]))
    elif damage.kind == "stale":
        old = original.earlier / damage.files[0]
        before = old.read_bytes()[span] if old.exists() else b""
        content[span] = before.ljust(len(content[span]), b"\0")
    elif damage.kind == "misdirected":
        others = [name for name in files_of(original.folder) if name.endswith(".log")]
        other = (original.folder / rng.choice(others)).read_bytes()
        content[span] = other[: damage.end - damage.position]
    elif damage.kind == "swap":
        other_path = data / damage.files[1]
        other_content = other_path.read_bytes()
        other_path.write_bytes(content)
        content = bytearray(other_content)
    if damage.kind == "lose":
        path.unlink()
    else:
        path.write_bytes(content)


@dataclass
class Result:
    """What a sweep found."""

    kinds: Counter[str] = field(default_factory=Counter[str])
    outcomes: Counter[str] = field(default_factory=Counter[str])
    lost: int = 0  # records said to be damaged
    failures: list[str] = field(default_factory=list[str])


def run_case(original: Original, number: int, folder: Path) -> tuple[Damage, str, int]:
    """Damage, start, read: how it came out, and how many records are said to be damaged."""
    rng = Random(number)
    damage = plan(original, KINDS[number % len(KINDS)], rng)
    data = folder / f"case{number}"
    shutil.copytree(original.folder, data)
    inflict(original, damage, data, rng)
    broker = TracedBroker(data, watched=False)
    try:
        if not broker.ready():
            code, words = broker.wait(), broker.stderr()
            assert code in (1, 7), f"{damage}: exit code {code}: {broker.last_words()}"
            assert "Traceback" not in words, f"{damage}: {broker.last_words()}"
            assert any(each in words for each in REFUSES_TO_START), f"{damage}: {words}"
            assert "/topics/" not in f"/{damage.files[0]}", f"{damage}: {broker.last_words()}"
            outcome, lost = "refused to start", 0
        else:
            told = trio.run(judge, broker.url, original, damage)
            broker.stop()
            assert broker.wait() == 0, f"{damage}: {broker.last_words()}"
            assert "Traceback" not in broker.stderr(), f"{damage}: {broker.last_words()}"
            if told is None:
                assert damage.files[0].startswith("metadata.sqlite"), f"{damage}: no such topic"
                assert broker.logged("recovery.unknown_directory"), f"{damage}: topics are gone"
            lost = told or 0
            outcome = "topics unknown" if told is None else "named" if told else "harmless"
    except (AssertionError, trio.TooSlowError, TailraceError) as error:
        raise AssertionError(f"case {number}, {damage}: {error}") from error
    finally:
        broker.end()
    shutil.rmtree(data)
    return damage, outcome, lost


async def judge(url: str, original: Original, damage: Damage) -> int | None:
    """Hold what is served against what was acknowledged; how many records are said to be lost.

    None: the broker knows of no such topic.
    """
    acked = {place: ack.value for place, ack in original.ledger.acked.items()}
    with trio.fail_after(20):
        async with connected(url) as client:
            topics = [t for t in (await client.metadata()).topics if t.name == "kept"]
            if not topics:
                return None
            [topic] = topics
            found, lost = dict[Place, bytes](), set[Place]()
            for partition in range(PARTITIONS):
                await read_around(client, topic.topic_id, partition, found, lost)
            wrong = [place for place, value in found.items() if acked.get(place) != value]
            assert not wrong, f"wrong bytes are served at {wrong[:3]}"
            missing = acked.keys() - found.keys() - lost
            assert not missing, f"not served, and nobody says why: {sorted(missing)[:3]}"
            sound = lost - original.batches(damage)
            assert not sound, f"called damaged, but is not: {sorted(sound)[:5]}"
            for partition in range(PARTITIONS):
                end = max(offset for number, offset in acked if number == partition) + 1
                result = await client.produce(topic.topic_id, [b"on"], partition)
                assert result.error is None, result.error
                assert result.base_offset >= end, f"offset {result.base_offset} used again (S10)"
    return len(lost & acked.keys())


async def read_around(
    client: Client, topic: bytes, partition: int, found: dict[Place, bytes], lost: set[Place]
) -> None:
    """Everything of a partition, stepping over what is said to be damaged."""
    at = 0
    while True:
        answer, body = await client.fetch(topic, at, partition)
        error = answer.results[0].error
        if error is not None:
            assert error.code == CORRUPT, error
            go_on = error.details["next_offset"]
            assert isinstance(go_on, int)
            assert go_on > at
            lost |= {(partition, offset) for offset in range(at, go_on)}
            at = go_on
            continue
        if not body:
            return
        records = records_in(bytes(body))
        found.update({(partition, offset): value for offset, value in records})
        at = end_of(bytes(body))


def sweep(cases: int, folder: Path, first: int = 0) -> Result:
    """So many cases, half of them on a directory that was not closed gracefully."""
    originals: list[Original] = []
    for crashed in (False, True):
        below = folder / ("crashed" if crashed else "stopped")
        below.mkdir()
        originals.append(prepare(below, crashed=crashed))
    result = Result()

    def one(number: int) -> None:
        try:
            damage, outcome, lost = run_case(originals[number // len(KINDS) % 2], number, folder)
        except AssertionError as error:
            result.failures.append(str(error))
            return
        result.kinds[damage.kind] += 1
        result.outcomes[outcome] += 1
        result.lost += lost

    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(one, range(first, first + cases)))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.damage")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="of the cases, by number")
    options = parser.parse_args()
    folder, began = Path(tempfile.mkdtemp(prefix="tailrace-damage-")), time.monotonic()
    result = sweep(options.cases, folder, options.first)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result.kinds.items()))
    outcomes = ", ".join(f"{count} {one}" for one, count in sorted(result.outcomes.items()))
    print(
        f"{options.cases} files damaged ({kinds}): {outcomes}; {result.lost:,} records said to be"
        f" damaged, no wrong byte served; {time.monotonic() - began:.0f} s"
    )
    for failure in result.failures:
        print(f"  FAILED {failure}")
    if not result.failures:
        shutil.rmtree(folder)
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
