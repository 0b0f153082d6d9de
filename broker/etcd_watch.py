"""Watches on etcd: one stream over everything below the prefix, from which all are woken.

A watch is a hint (R17), and none is lost: whoever waits is woken

- by a change below its prefix;
- whenever a stream was opened, as changes before that were not seen;
- every ``POLL_S`` while there is none, and every ``QUIET_S`` while one says nothing: etcd has
  forgotten events before, and a member that hangs says nothing either.

A stream ends when etcd cancels it (what it stood at was compacted; we may not read), when its
member has no leader, when a request finds that the member fails, and in silence. The next one
begins at "now", after a pause that doubles up to ``PAUSE_MAX_S``.
"""

import logging
from collections.abc import AsyncIterator

import httpx2
import trio

from tailrace.broker import etcd_messages
from tailrace.broker.etcd_gateway import CALL_S, Gateway, reason_of
from tailrace.broker.etcd_messages import NotEtcd, Refused, WatchAnswer
from tailrace.protocol.errors import MetadataUnavailable

logger = logging.getLogger("tailrace.broker.etcd")

QUIET_S = 20.0
POLL_S = 5.0
PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 2.0
QUIET = "nothing was heard"
LINE_BYTES_MAX = 64 * 1024 * 1024  # a line has the changes of one transaction, or of a few


class EtcdWatch:
    """A hint that something below ``prefix`` changed."""

    def __init__(self, prefix: bytes, registry: set["EtcdWatch"]) -> None:
        self.prefix = prefix
        self._registry = registry
        self._changed = trio.Event()

    def wake(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    def close(self) -> None:
        self._registry.discard(self)


class Watches:
    """All watches of one store. ``run`` it until ``aclose``."""

    def __init__(self, gateway: Gateway, root: bytes) -> None:
        self._gateway = gateway
        self._question = etcd_messages.watch_all(root, etcd_messages.range_end(root))
        self._watches: set[EtcdWatch] = set()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._url = ""  # of the member whose stream is read
        self._stream = trio.CancelScope()
        self._open = False  # it was said to be there
        self._woken_at = 0.0  # trio's time
        self._why = ""  # the stream ended, where etcd has said so
        gateway.failed = self._leave

    def add(self, prefix: bytes) -> EtcdWatch:
        watch = EtcdWatch(prefix, self._watches)
        self._watches.add(watch)
        return watch

    async def run(self) -> None:
        """Read streams, one after the other, for ever. Raises nothing of etcd's."""
        try:
            with self._scope:
                pause_s, told = PAUSE_FIRST_S, False
                while True:
                    was_open, why = await self._follow()
                    if why != QUIET:
                        self._gateway.leave(self._url)
                        if was_open or not told:
                            _tell(self._url, why)
                            told = True
                    pause_s = PAUSE_FIRST_S if was_open else min(2 * pause_s, PAUSE_MAX_S)
                    if trio.current_time() - self._woken_at >= POLL_S:
                        self._wake_all()
                    await trio.sleep(pause_s)
        finally:
            self._ended.set()

    async def aclose(self) -> None:
        """Return when nothing of it uses the gateway any more. ``run`` must have been started."""
        self._scope.cancel()
        await self._ended.wait()

    # ── one stream ───────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> tuple[bool, str]:
        """Until it ends: whether it was open, and why it ended."""
        self._url, self._open, self._why = self._gateway.url, False, ""
        with trio.CancelScope(deadline=trio.current_time() + CALL_S) as self._stream:
            try:
                async with self._gateway.watch(self._question) as chunks:
                    await self._read(chunks)
            except httpx2.TransportError as error:
                return self._open, reason_of(error)
            except NotEtcd as error:
                return self._open, str(error)
            except Refused as error:
                self._gateway.forget_token()
                return self._open, error.message
            except MetadataUnavailable as error:
                return self._open, error.message
            return self._open, self._why or "etcd closed it"
        return self._open, self._why or (QUIET if self._open else "no answer")

    async def _read(self, chunks: AsyncIterator[bytes]) -> None:
        """Lines, as they come. Once one ends the stream, the cancelled scope ends the reading:
        inside the library, which then leaves nothing half-read."""
        rest = b""
        async for chunk in chunks:
            self._stream.deadline = trio.current_time() + QUIET_S
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line and not self._stream.cancel_called:
                    self._take(line)
            if len(rest) > LINE_BYTES_MAX:
                self._end("a line without an end")

    def _take(self, line: bytes) -> None:
        try:
            answer = etcd_messages.decode_line(line, WatchAnswer)
        except (NotEtcd, Refused) as error:
            self._end(str(error))
            return
        if answer.canceled:
            compacted = f"revision {answer.compact_revision} was compacted"
            self._end(
                answer.cancel_reason or (compacted if answer.compact_revision else "cancelled")
            )
        elif answer.created:
            self._open = True
            self._wake_all()
        for event in answer.events:
            for watch in self._watches:
                if event.kv.key.startswith(watch.prefix):
                    watch.wake()

    def _end(self, why: str) -> None:
        self._why = why
        self._gateway.forget_token()  # a token that has run out reads as "permission denied"
        self._stream.cancel()

    def _leave(self, url: str) -> None:
        """A request found that a member fails: the stream from it may be dead and not know."""
        if url == self._url and not self._stream.cancel_called:
            self._why = "its member does not answer"
            self._stream.cancel()

    def _wake_all(self) -> None:
        self._woken_at = trio.current_time()
        for watch in self._watches:
            watch.wake()


def _tell(url: str, why: str) -> None:
    extra = {"event": "metadata.watch_ended", "alike": url, "url": url}
    logger.info("the watch of %s ended: %s; another one follows", url, why, extra=extra)
