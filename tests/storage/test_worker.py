"""The worker's conversation: a job, allowances, a result; and how failures travel."""

import errno
import io
import subprocess
import sys
from pathlib import Path

import pytest

from tailrace.storage import worker
from tailrace.storage.erasing import EraseJob
from tailrace.storage.rewrite import RewriteRefused, SegmentSource
from tailrace.storage.survey import Survey, SurveyJob
from tailrace.storage.worker import (
    Failure,
    Gone,
    Meter,
    Reply,
    decode_reply,
    decode_result,
    encode_allowance,
    encode_order,
    serve,
)


def job(directory: Path, *sources: SegmentSource) -> SurveyJob:
    return SurveyJob(
        str(directory),
        sources,
        seed=1,
        clean_below=0,
        whole_below=0,
        now_ms=0,
        hash_seed=1,
    )


def replies(*lines: bytes) -> list[Reply]:
    said = io.BytesIO()
    serve(io.BytesIO(b"".join(lines)), said)
    return [decode_reply(line) for line in said.getvalue().splitlines()]


def test_a_job_is_done_and_its_result_comes_back(tmp_path: Path) -> None:
    nothing = job(tmp_path)
    (reply,) = replies(encode_order(nothing))
    assert decode_result(nothing, reply) == Survey(f"{tmp_path}/compaction-marks.tmp", (), 0, 0)


def test_an_error_of_the_system_arrives_as_it_was_raised(tmp_path: Path) -> None:
    missing = SegmentSource(f"{tmp_path}/0.log", 0, 5, 100)
    first, second = replies(encode_order(job(tmp_path, missing)), encode_order(job(tmp_path)))
    assert first.failed is not None
    error = first.failed.error()
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.filename) == (errno.ENOENT, f"{tmp_path}/0.log")
    assert second.is_last, "the worker goes on"


def test_damage_arrives_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(bytes(200))
    (reply,) = replies(encode_order(job(tmp_path, SegmentSource(str(path), 0, 5, 200))))
    assert reply.failed is not None
    error = reply.failed.error()
    assert isinstance(error, RewriteRefused)
    assert (error.file, error.position) == (str(path), 0)


def test_jobs_of_other_kinds_travel_too(tmp_path: Path) -> None:
    source = SegmentSource(f"{tmp_path}/0.log", 0, 5, 100)
    erasing = EraseJob(str(tmp_path), source, True, 1, 0, (), 4096)
    (reply,) = replies(encode_order(erasing))
    assert reply.failed is not None


def test_whoever_used_up_the_allowance_waits_for_the_next() -> None:
    said = io.BytesIO()
    meter = Meter(io.BytesIO(encode_allowance(10) + encode_allowance(100)), said)
    meter(worker.FIRST_ALLOWED_BYTES - 1)
    assert said.getvalue() == b""
    meter(20)
    asked = [decode_reply(line) for line in said.getvalue().splitlines()]
    assert [one.used for one in asked] == [worker.FIRST_ALLOWED_BYTES + 19, 0]
    with pytest.raises(Gone):
        meter(1000)


def test_failures_are_told_apart() -> None:
    assert isinstance(Failure("f", "full", errno=errno.ENOSPC).error(), OSError)
    assert isinstance(Failure("f", "bad", 7).error(), RewriteRefused)


@pytest.mark.slow
def test_the_process_ends_with_its_input(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "tailrace.storage.worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode_order(job(tmp_path)))
        process.stdin.flush()
        assert decode_reply(process.stdout.readline()).is_last
        process.stdin.close()
        assert process.wait(10) == 0
