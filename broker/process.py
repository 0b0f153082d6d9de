"""One broker as a process: signals, the service manager, logs, the exit code.

    SIGTERM, SIGINT   stop gracefully; a second one, or shutdown_timeout, forces the end (exit 1)
    SIGHUP            read the dynamic settings and the certificates again, name every other key
                      that changed
    SIGUSR1           log the task tree and what every connection is waiting for

Forced means at once: what waits for the disk in a thread cannot be cancelled, so a broker that is
still there FORCED_S after it was told to drop everything leaves without it.

The broker itself is ``server.py``; here is only what makes it a good daemon. Exit codes: 0 a
graceful stop, 1 failed to start or forced, 2 configuration, 7 storage failure.
"""

import errno
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from types import FrameType

import trio

from tailrace.broker.config import Config, Sources, build, changed_keys, examine
from tailrace.broker.groups import first_of
from tailrace.broker.health import few
from tailrace.broker.logs import LEVELS, LogHandler, configure, set_level
from tailrace.broker.sdnotify import Notifier
from tailrace.broker.server import Ready, Server
from tailrace.broker.system import system_world
from tailrace.protocol.console import EXIT_FAILED, EXIT_STORAGE, EXIT_USAGE, exit_code
from tailrace.protocol.errors import ConfigError, TailraceError

logger = logging.getLogger("tailrace.broker.process")

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
PULSE_S = 0.5  # how often the event loop is felt
FORCED_S = 3.0  # for what is left of a broker that was told to end at once
READY_EVERY_S = 0.05  # how often a broker that serves looks whether /readyz says so too
SHOWN_MAX = 1_000  # tasks, and open requests, in one line of the log
# Objects that came and did not go until the garbage collector looks at the newest, and how often it
# does until it looks further. With Python's 700, requests in hand of 100 connections were looked at
# every 20 ms, 4 % of the processor time; all there is is not gone through for nothing every second.
GARBAGE_FROM = (5_000, 10, 200)
EXIT_CODES = frozenset((EXIT_FAILED, EXIT_USAGE, EXIT_STORAGE))
MAY_PASS = (
    *(errno.EADDRINUSE, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE),
    *(errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.EINTR, errno.EIO),
)


def run(config: Config, sources: Sources, announce: Callable[[Ready], None]) -> int:
    """Run a broker until it is told to stop; the exit code. Raises what kept it from starting.

    ``announce`` is called once, when the broker is ready.
    """
    os.umask(0o077)  # whatever we make is for us alone, SQLite's files too
    handler = configure(level=config.log.level, format=config.log.format, broker=config.broker.id)
    process = Process(config, sources, announce, handler)
    try:
        return trio.run(process.main)
    except BaseExceptionGroup as group:
        # The nursery's wrapping is no news to anybody (C10).
        error = first_of(group)
        raise error from error.__cause__
    finally:
        process.notifier.close()
        handler.close()


def failure_code(error: TailraceError) -> int:
    """The exit code of a broker that could not start or go on."""
    code = exit_code(error)
    if code == EXIT_USAGE and _may_pass(error.__cause__):
        return EXIT_FAILED
    return code if code in EXIT_CODES else EXIT_FAILED


def _may_pass(cause: BaseException | None) -> bool:
    """Whether what kept a setting from being used is worth another try: somebody has the address,
    and may go away; there was no room, no descriptor, no answer."""
    if isinstance(cause, socket.gaierror):
        return cause.errno in (socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM)
    if isinstance(cause, ssl.SSLError):  # its numbers are OpenSSL's
        return False
    return isinstance(cause, OSError) and cause.errno in MAY_PASS


class Process:
    """The tasks around one server."""

    def __init__(
        self,
        config: Config,
        sources: Sources,
        announce: Callable[[Ready], None],
        handler: LogHandler,
    ) -> None:
        self.notifier = Notifier(os.environ)
        self._config = config
        self._sources = sources
        self._announce = announce
        self._handler = handler
        self._server = Server(system_world(config.cluster), config)
        self._reading = trio.Lock()  # one SIGHUP after another
        self._ready = False
        self._stopping = False
        self._forced = False

    async def main(self) -> int:
        """Run the server until it ends; the exit code."""
        with trio.open_signal_receiver(*SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed, signals, nursery)
                nursery.start_soon(self._pulse)
                await self._serve()
                nursery.cancel_scope.cancel()
        return EXIT_FAILED if self._forced else 0

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            try:
                ready = await nursery.start(self._server.run)
            except RuntimeError:
                if self._stopping:
                    return  # ended before it was ready, so that it never said that it is
                raise
            self._ready = True
            gc.set_threshold(*GARBAGE_FROM)
            gc.freeze()  # most of it stays: to go through it again and again takes 0.1 s each time
            self._announce(ready)
            nursery.start_soon(self._tell_ready, ready)

    async def _tell_ready(self, ready: Ready) -> None:
        """To the service manager: when /readyz is first 200."""
        while self._server.health.status == "fail":
            if self._stopping:
                return
            await trio.sleep(READY_EVERY_S)
        self.notifier.ready(f"serving {ready.url}")

    # ── signals ──────────────────────────────────────────────────────────────────────────────

    async def _heed(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                nursery.start_soon(self._reload)
            elif number == signal.SIGUSR1:
                self._describe()
            elif self._stopping:
                self._force(f"second signal {signal.Signals(number).name}", nursery)
            else:
                self._stopping = True
                self.notifier.stopping()
                nursery.start_soon(self._watch_stop, nursery)
                self._server.stop()

    async def _watch_stop(self, nursery: trio.Nursery) -> None:
        await trio.sleep(self._config.broker.shutdown_timeout_s)
        text = self._config.values["broker.shutdown_timeout"].text
        self._force(f"shutdown_timeout {text}", nursery)

    def _force(self, why: str, nursery: trio.Nursery) -> None:
        if self._forced:
            return
        self._forced = True
        stage, left = self._server.stage, few(self._server.open_requests(), SHOWN_MAX)
        extra = {"event": "broker.forced", "reason": why, "stage": stage, "requests": left}
        logger.error("stopping at once: %s; the rest is skipped", why, extra=extra)
        nursery.start_soon(self._leave)
        self._server.kill()

    async def _leave(self) -> None:
        """End the process although a thread of it does not: cancelled if all of it has ended."""
        await trio.sleep(FORCED_S)
        extra = {"event": "broker.forced", "reason": "a thread does not end"}
        logger.error("leaving: a thread has waited for the system for too long", extra=extra)
        self._handler.close()
        os._exit(EXIT_FAILED)

    async def _reload(self) -> None:
        """Read the configuration again, apply what may change, name what may not."""
        async with self._reading:
            # Left behind at the end: a file system that hangs must not keep the process.
            config, errors = await trio.to_thread.run_sync(
                examine, self._sources, abandon_on_cancel=True
            )
            for error in errors:
                self._refused(error)
            if config is not None:
                await self._apply(config)

    async def _apply(self, config: Config) -> None:
        changed = {key: config.values.get(key) for key in changed_keys(self._config, config)}
        taken = {k: v for k, v in changed.items() if v is not None and v.setting.dynamic}
        for key, value in changed.items():
            if key in taken:
                continue
            where = "gone" if value is None else f"now {value.text!r} in {value.origin}"
            extra = {"event": "config.needs_restart", "key": key, "alike": key}
            logger.warning("%s changed (%s) and keeps its old value", key, where, extra=extra)
        try:
            # Also where no setting has changed: certificates are renewed under their old names.
            await self._server.renew_credentials(build({**self._config.values, **taken}))
        except ConfigError as error:
            self._refused(error)
            taken = {k: v for k, v in taken.items() if not k.startswith(("security.", "cluster."))}
        before, self._config = self._config, build({**self._config.values, **taken})
        self._server.config = self._config
        levels = before.log.level, self._config.log.level
        set_level(min(levels, key=LEVELS.__getitem__))  # a level that hides the line is told too
        extra = {"event": "config.reread", "applied": ", ".join(taken)}
        logger.info("configuration reread", extra=extra)
        set_level(self._config.log.level)

    def _refused(self, error: ConfigError) -> None:
        extra = {"event": "config.refused", "code": error.code, "alike": str(error)}
        logger.error("not applied, the old value stays: %s", error, extra=extra)

    def _describe(self) -> None:
        root = trio.lowlevel.current_root_task()
        assert root is not None, "not inside trio"
        extra = {
            "event": "broker.tasks",
            "tasks": few(list(task_tree(root)), SHOWN_MAX),
            "requests": few(self._server.open_requests(), SHOWN_MAX),
        }
        logger.info("task tree and open requests", extra=extra)

    # ── the pulse ────────────────────────────────────────────────────────────────────────────

    async def _pulse(self) -> None:
        """Feel how late the event loop is, and tell whoever waits for a sign of life."""
        metrics, watchdog_s = self._server.metrics, self.notifier.watchdog_s
        metrics.tasks.read = lambda: {(): trio.lowlevel.current_statistics().tasks_living}
        interval = PULSE_S if watchdog_s is None else min(PULSE_S, watchdog_s)
        told = -float("inf")
        self.notifier.status("starting")
        while True:
            due = trio.current_time() + interval
            await trio.sleep_until(due)
            now = trio.current_time()
            metrics.event_loop_lag.observe(max(0.0, now - due))
            self._handler.flush_suppressed()
            if watchdog_s is not None and now - told >= watchdog_s - interval / 2:
                self.notifier.watchdog()
                told = now
            if not self._ready and not self._stopping:
                self.notifier.status(self._progress())

    def _progress(self) -> str:
        health = self._server.health
        done, total = health.partitions_done, health.partitions_total
        return f"recovering: {health.progress:.0%}, {done:,} of {total:,} partitions open"


def task_tree(task: trio.lowlevel.Task, depth: int = 0) -> Iterator[str]:
    """Every task under one, indented, with the line it waits in."""
    yield f"{'  ' * depth}{task.name}  {_waits_in(task)}"
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda one: one.name):
            yield from task_tree(child, depth + 1)


def _waits_in(task: trio.lowlevel.Task) -> str:
    """The innermost line of our own, or the innermost at all."""
    own = last = ""
    for frame, line in task.iter_await_frames():
        last = _place(frame, line)
        if "tailrace" in frame.f_globals.get("__name__", ""):
            own = last
    return own or last


def _place(frame: FrameType, line: int) -> str:
    return f"{frame.f_globals.get('__name__', '?')}:{line} {frame.f_code.co_name}"
