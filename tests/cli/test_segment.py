"""``tailrace segment``: what the files hold, beside a running broker."""

import hashlib
from pathlib import Path

import pytest

from tailrace.testing import Broker
from tests.cli.conftest import Cli


def files(folder: Path) -> dict[str, str]:
    """Name and digest of every file."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def log(broker: Broker) -> tuple[str, Path]:
    """A topic with two batches, and its log file."""
    topic = broker.name("filed")
    broker.create_topic(topic)
    broker.seed(topic, [b"a", b'{"n":1}', b"\xff"], keys=[b"k", None, b""])
    broker.seed(topic, [b"last"])
    detail = broker.client().admin.describe_topic(topic)
    assert broker.data_dir is not None
    name = f"{detail.topic_id.replace('-', '')}-0"
    (path,) = (broker.data_dir / "topics" / name).glob("*.log")
    return detail.topic_id, path


def test_list_beside_a_running_broker(offline: Cli, broker: Broker, log: tuple[str, Path]) -> None:
    topic_id, path = log
    before = files(path.parent)
    (info,) = offline("segment", "list", str(path.parent), "-O", "json").json()["segments"]
    assert info["topic_id"] == topic_id
    assert (info["partition"], info["base_offset"], info["next_offset"]) == (0, 0, 4)
    assert (info["batches"], info["records"], info["sealed"]) == (2, 4, False)
    assert info["first_append_time"] <= info["last_append_time"]
    text = offline("segment", "list", str(path.parent)).out.decode()
    assert text.splitlines()[0].split()[:4] == ["FILE", "OFFSETS", "BATCHES", "RECORDS"]
    assert text.splitlines()[1].split()[1:4] == ["0-3", "2", "4"]
    assert files(path.parent) == before
    listed = offline("segment", "ls", str(broker.data_dir), "-O", "ndjson").lines()
    assert info in [{**one, "file": info["file"]} for one in listed]


def test_dump_shows_batches_and_records(offline: Cli, log: tuple[str, Path]) -> None:
    topic_id, path = log
    first, second = offline("segment", "dump", str(path), "-O", "json").json()["batches"]
    assert (first["position"], first["base_offset"], first["last_offset"]) == (0, 0, 2)
    assert (second["position"], second["records"]) == (first["size_bytes"], 1)
    assert first["format"] == "columns"
    assert first["checksum_ok"] is first["header_ok"] is True
    assert "record_list" not in first
    lines = offline("segment", "dump", str(path), "--records", "-O", "ndjson").lines()
    records = lines[0]["record_list"]
    assert [record["value"] for record in records] == ["a", {"n": 1}, "/w=="]
    assert [record["key"] for record in records] == ["k", None, ""]
    assert {record["topic"] for record in records} == {topic_id}
    text = offline("segment", "dump", str(path), "--records").out.decode().splitlines()
    assert text[0].split()[:4] == ["POSITION", "SIZE", "OFFSETS", "RECORDS"]
    assert text[1].split()[2:5] == ["0-2", "3", "1"]
    assert text[2:5] == ["  @0  k  a", '  @1  -  {"n":1}', "  @2    /w=="]


def test_verify_says_ok_or_where_the_damage_is(
    offline: Cli, log: tuple[str, Path], tmp_path: Path
) -> None:
    _, path = log
    result = offline("segment", "verify", str(path))
    assert result.code == 0
    assert result.out.decode().splitlines()[-1] == "1 file, 0 corrupt"
    copy = tmp_path / path.parent.name / path.name
    copy.parent.mkdir()
    for file in path.parent.iterdir():
        (copy.parent / file.name).write_bytes(file.read_bytes())
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    copy.write_bytes(data)
    result = offline("segment", "verify", str(copy.parent))
    assert result.code == 6
    assert "CORRUPT" in result.out.decode()
    assert "T094 at byte 0: " in result.out.decode()
    document = offline("segment", "verify", str(path), str(copy), "-O", "json").json()
    assert document["ok"] is False
    assert [file["ok"] for file in document["files"]] == [True, False]
    error = document["files"][1]["error"]
    assert (error["position"], error["code"]) == (0, "T094")


def test_dump_of_a_damaged_file_goes_on_behind_it_and_exits_with_6(
    offline: Cli, log: tuple[str, Path], tmp_path: Path
) -> None:
    _, path = log
    copy = tmp_path / path.parent.name / path.name
    copy.parent.mkdir()
    for file in path.parent.iterdir():
        (copy.parent / file.name).write_bytes(file.read_bytes())
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # of the append time: the header check fails
    copy.write_bytes(data)
    result = offline("segment", "dump", str(copy))
    assert result.code == 6
    bad, sound = result.out.decode().splitlines()[1:]
    assert bad.split()[2:7] == ["0-2", "-", "-", "-", "-"]
    assert bad.endswith("BAD: the header check does not match")
    assert sound.split()[2:4] == ["3", "1"]
    assert sound.endswith("ok")
    listed = offline("segment", "dump", str(copy), "-O", "ndjson")
    assert listed.code == 6
    assert [line["header_ok"] for line in listed.lines()] == [False, True]


def test_a_torn_tail_is_ok(offline: Cli, log: tuple[str, Path], tmp_path: Path) -> None:
    _, path = log
    copy = tmp_path / path.parent.name / path.name  # without its flushed mark
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes().rstrip(b"\0")[:-2])
    result = offline("segment", "verify", str(copy), "-O", "json")
    assert result.code == 0
    (report,) = result.json()["files"]
    assert (report["ok"], report["batches"], report["records"]) == (True, 1, 3)
    assert report["torn_bytes"] > 0


def test_index_of_a_log_without_one(offline: Cli, log: tuple[str, Path]) -> None:
    _, path = log
    (entry,) = offline("segment", "index", str(path), "-O", "ndjson").lines()
    assert (entry["offset"], entry["position"]) == (0, 0)
    assert offline("segment", "index", str(path)).out.startswith(b"OFFSET  POSITION  APPEND TIME\n")


@pytest.mark.parametrize("command", ["list", "dump", "verify", "index"])
def test_what_is_no_log_is_refused(offline: Cli, tmp_path: Path, command: str) -> None:
    missing = offline("segment", command, f"{tmp_path}/missing")
    assert (missing.code, missing.out) == (2, b"")
    other = tmp_path / "other.log"
    other.write_bytes(b"x")
    result = offline("segment", command, str(other))
    assert result.code in (1, 2)
    assert re_error(result.err)


def re_error(text: str) -> bool:
    return text.startswith(("error: T062: ", "error: T082: "))


def test_a_directory_without_logs(offline: Cli, tmp_path: Path) -> None:
    assert offline("segment", "verify", str(tmp_path)).code == 2
    assert offline("segment", "list", str(tmp_path), "-O", "ndjson").out == b""
