"""A process that does heavy work for a broker, one job at a time.

    python -m tailrace.storage.worker

Lines of JSON. In: a job ``{"kind", "job"}``, then ``{"allow": N}`` as often as it asks. Out:
``{"used": N}`` when it has read and written so many bytes as it was allowed and waits for more,
and at the end ``{"done": result}`` or ``{"failed": {...}}``.

- How fast it may go is the broker's to say, by when it allows more: no clock is needed here.
- It ends when its input ends, so that it never outlives the broker for long; a broker that gives a
  job up kills it. What it leaves then is half-made files, in which nobody believes.
- It steps behind everybody else for the processor (``nice``).
"""

import os
import signal
import sys
from typing import BinaryIO

import msgspec

from tailrace.storage.disk import OsDisk
from tailrace.storage.jobs import JOBS, RESULTS, Job, Result, run_job
from tailrace.storage.rewrite import RewriteRefused

NICE = 19  # on two busy cores the p99 of a durable send moved by 1.3, with 10 by 2.6
FIRST_ALLOWED_BYTES = 1024 * 1024
_NOTHING = msgspec.Raw()


class Order(msgspec.Struct):
    """A job to be done."""

    kind: str
    job: msgspec.Raw


class Allowance(msgspec.Struct):
    """So many bytes more."""

    allow: int


class Failure(msgspec.Struct, omit_defaults=True):
    """Why a job was not done: damage in a file, or the system's error."""

    file: str
    reason: str
    position: int = -1
    errno: int = 0

    def error(self) -> RewriteRefused | OSError:
        """As it was raised."""
        if self.errno:
            return OSError(self.errno, self.reason, self.file)
        return RewriteRefused(self.file, self.position, self.reason)


class Reply(msgspec.Struct, omit_defaults=True):
    """One of the three."""

    used: int = 0
    done: msgspec.Raw = _NOTHING
    failed: Failure | None = None

    @property
    def is_last(self) -> bool:
        """Whether the job has come to its end."""
        return self.failed is not None or len(bytes(self.done)) > 0


class Gone(Exception):
    """The broker is not there any more."""


def encode_order(job: Job) -> bytes:
    """A job as a line."""
    order = {"kind": type(job).__name__, "job": job}
    return msgspec.json.encode(order) + b"\n"


def encode_allowance(size_bytes: int) -> bytes:
    """An allowance as a line."""
    return msgspec.json.encode(Allowance(size_bytes)) + b"\n"


def decode_reply(line: bytes) -> Reply:
    """A line of the worker's. Raises ``ValueError`` if it is none."""
    return msgspec.json.decode(line, type=Reply)


def decode_result(job: Job, reply: Reply) -> Result:
    """The result of a job that is done. Raises ``ValueError`` if it is none of that job."""
    result: Result = msgspec.json.decode(reply.done, type=RESULTS[type(job)])
    return result


class Meter:
    """What a job may still read and write; asks for more when that is used up."""

    def __init__(self, source: BinaryIO, target: BinaryIO) -> None:
        self._source = source
        self._target = target
        self._left = FIRST_ALLOWED_BYTES
        self._used = 0

    def __call__(self, size_bytes: int) -> None:
        self._left -= size_bytes
        self._used += size_bytes
        while self._left <= 0:
            say(self._target, Reply(used=self._used))
            self._used = 0
            line = self._source.readline()
            if not line:
                raise Gone
            self._left += msgspec.json.decode(line, type=Allowance).allow


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """Do what comes, until nothing does."""
    disk = OsDisk()
    while line := source.readline():
        order = msgspec.json.decode(line, type=Order)
        job: Job = msgspec.json.decode(order.job, type=JOBS[order.kind])
        try:
            result = run_job(disk, job, Meter(source, target))
        except RewriteRefused as error:
            failure = Failure(error.file, error.reason, error.position)
            say(target, Reply(failed=failure))
        except OSError as error:
            reason = error.strerror or str(error)
            say(target, Reply(failed=Failure(str(error.filename), reason, errno=error.errno or -1)))
        else:
            say(target, Reply(done=msgspec.Raw(msgspec.json.encode(result))))


def say(target: BinaryIO, reply: Reply) -> None:
    """Write one line, now."""
    target.write(msgspec.json.encode(reply) + b"\n")
    target.flush()


def main() -> None:
    """Serve the process that started this one."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are the broker's, which then ends us
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except (Gone, BrokenPipeError):
        sys.exit(1)


if __name__ == "__main__":
    main()
