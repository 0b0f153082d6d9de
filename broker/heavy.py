"""Heavy work, done elsewhere: in a process of its own, or (tests, simulation) through ``Offload``.

A thread would not do in production: Python code that runs for seconds holds the interpreter for
5 ms at a time, and every send that waits meanwhile waits so much longer (R32).

``rate_bytes`` bounds what is read and written per second, together. It is kept here: the worker
asks when it has used up what it was allowed, and is answered when the time for more has come.
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

import trio

from tailrace.broker.world import Offload, Progress, WorkerLost, no_progress
from tailrace.storage.disk import Disk
from tailrace.storage.jobs import Job, Result, run_job
from tailrace.storage.worker import (
    Reply,
    decode_reply,
    decode_result,
    encode_allowance,
    encode_order,
)

COMMAND = (sys.executable, "-m", "tailrace.storage.worker")
IDLE_S = 30.0
END_S = 2.0  # for a worker whose input was closed; then it is killed
ASK_EVERY_S = 0.25  # whether to go on, also while nothing is read or written
ALLOWED_S = 0.1  # so much of a second's rate is allowed at once
ALLOWED_BYTES_MAX = 16 * 1024 * 1024  # also where there is no rate: progress is to be seen
LINE_BYTES_MAX = 256 * 1024 * 1024  # a result names thousands of segments, or holds an index
_CHUNK_BYTES = 256 * 1024


class OffloadHeavy:
    """Through worker threads, or in line where ``offload`` works in line. No rate is kept."""

    def __init__(self, offload: Offload, disk: Disk) -> None:
        self._offload = offload
        self._disk = disk

    async def run(
        self, job: Job, *, rate_bytes: int | None = None, progress: Progress = no_progress
    ) -> Result:
        return await self._offload.run(run_job, self._disk, job, progress)

    async def rest(self) -> None:
        """Nothing is kept that could be ended."""

    async def aclose(self) -> None:
        """Nothing is kept."""


class ProcessHeavy:
    """One child process, started on demand, on the real file system; one job at a time."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._turn = trio.Lock()
        self._worker: _Worker | None = None
        self._used_at = 0.0

    @property
    def pid(self) -> int | None:
        """Of the worker, while there is one."""
        return None if self._worker is None else self._worker.pid

    async def run(
        self, job: Job, *, rate_bytes: int | None = None, progress: Progress = no_progress
    ) -> Result:
        """See ``world.Heavy``."""
        async with self._turn:
            worker = self._worker
            if worker is None or worker.ended:
                worker = self._worker = await _Worker.start(self._command)
            sound = False
            try:
                reply = await worker.do(job, rate_bytes, progress)
                sound = True
            finally:
                self._used_at = trio.current_time()
                if not sound:  # cancelled, or it ended, or it said what nobody understands
                    self._worker = None
                    await worker.end(patience_s=0)
            if reply.failed is not None:
                raise reply.failed.error()
            return decode_result(job, reply)

    async def rest(self) -> None:
        """See ``world.Heavy``."""
        if self._worker is None or self._turn.locked():
            return
        if trio.current_time() - self._used_at >= IDLE_S:
            async with self._turn:
                await self._end(END_S)

    async def aclose(self) -> None:
        """See ``world.Heavy``."""
        await self._end(0)

    async def _end(self, patience_s: float) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.end(patience_s=patience_s)


class _Worker:
    """The process and its two pipes."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid = process.pid
        self._process = process
        self._orders = process.stdin
        self._replies = process.stdout
        self._buffer = bytearray()
        self._searched = 0  # bytes of the buffer in which there is no end of a line

    @classmethod
    async def start(cls, command: Sequence[str]) -> "_Worker":
        """Raises ``WorkerLost`` if it cannot be started."""
        try:
            process = await trio.lowlevel.open_process(
                list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise WorkerLost(f"the worker could not be started: {error}") from error
        return cls(process)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    async def do(self, job: Job, rate_bytes: int | None, progress: Progress) -> Reply:
        """Have a job done; the last reply. Raises ``WorkerLost``, and what ``progress`` does."""
        allowed = ALLOWED_BYTES_MAX
        if rate_bytes is not None:
            allowed = max(1, min(allowed, int(rate_bytes * ALLOWED_S)))
        paid_at = trio.current_time()
        await self._say(encode_order(job))
        while True:
            reply = await self._reply_asking(progress)
            if reply.is_last:
                return reply
            progress(reply.used)
            if rate_bytes is not None:
                paid_at = max(paid_at, trio.current_time() - 1.0) + reply.used / rate_bytes
                while (left_s := paid_at - trio.current_time()) > 0:
                    await trio.sleep(min(left_s, ASK_EVERY_S))
                    progress(0)
            await self._say(encode_allowance(allowed))

    async def end(self, *, patience_s: float) -> None:
        """Close its input, wait for it to end, kill it if it does not. Not to be cancelled."""
        with trio.CancelScope(shield=True):
            await self._orders.aclose()
            with trio.move_on_after(patience_s):
                await self._process.wait()
            if not self.ended:
                self._process.kill()
                await self._process.wait()
            await self._replies.aclose()

    async def _say(self, line: bytes) -> None:
        try:
            await self._orders.send_all(line)
        except trio.BrokenResourceError:
            await self._lost()

    async def _reply_asking(self, progress: Progress) -> Reply:
        """The next reply; meanwhile ``progress``, which may raise to give up, is asked."""
        while True:
            with trio.move_on_after(ASK_EVERY_S):
                return await self._reply()
            progress(0)

    async def _reply(self) -> Reply:
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            if self._searched > LINE_BYTES_MAX:
                raise WorkerLost(f"the worker (pid {self.pid}) sent a line without end")
            data: bytes | bytearray = b""
            with suppress(trio.BrokenResourceError):
                data = await self._replies.receive_some(_CHUNK_BYTES)
            if not data:
                await self._lost()
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        try:
            return decode_reply(line)
        except ValueError as error:
            raise WorkerLost(f"the worker (pid {self.pid}) said: {line[:100]!r}") from error

    async def _lost(self) -> None:
        """It closed its pipes, and is ending."""
        with trio.move_on_after(END_S):
            await self._process.wait()
        code = self._process.returncode
        raise WorkerLost(f"the worker (pid {self.pid}) ended with code {code}")
