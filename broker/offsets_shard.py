"""The groups in one partition of ``__offsets``, and what of them is still to be written.

Whatever is decided between two writes goes together: one batch, one sync for all of it.

Invariants:
- a commit, reset or deletion is an ``Entry``; entries are written in the order of their decisions,
  and a group's state never before an entry that was decided earlier;
- an entry is answered by ``done`` once, when it is durable or when it failed; one that failed takes
  with it all that were decided after it, as they were decided on top of it;
- the state of a group is written until it is: nobody is told of it before;
- a shard lives for one epoch of this broker's lead: with the lead goes all of it, and whoever waits
  is told to look for the coordinator anew (T032). The next epoch begins with what the log says.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from tailrace.broker.group_record import state_key, state_value
from tailrace.broker.hosted_group import HostedGroup
from tailrace.broker.offsets_log import Done, OffsetsLog
from tailrace.broker.timers import Timers
from tailrace.protocol.errors import TailraceError

log = logging.getLogger("tailrace.broker.offsets_shard")

BATCH_BYTES = 1_048_576  # then a batch takes no more entries; the last one may be larger
STATES_BYTES = 1_048_576  # as much again is for states: commits without end keep none waiting
BATCH_RECORDS = 5_000
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
RECORD_BYTES = 16  # of a record beside key and value, about
NOT_LEADER = "T032"


@dataclass(eq=False, slots=True)
class Entry:
    """Records that were decided on together, at most 1,000."""

    records: Mapping[bytes, bytes | None]
    done: Done
    lasting: bool = False  # it is tried until it is written; ``done`` is never told of an error


class Shard:
    """``wake`` asks for a call of ``write`` soon; ``flush`` sends the answers that were made."""

    def __init__(
        self,
        log: OffsetsLog,
        timers: Timers,
        *,
        wake: Callable[[], None],
        flush: Callable[[], None],
    ) -> None:
        self.log = log
        self.groups: dict[str, HostedGroup] = {}
        self.loaded = False
        self.refusal: TailraceError | None = None  # why it could not be loaded yet
        self.gone: TailraceError | None = None  # this broker leads it no more
        self._timers = timers
        self._wake = wake
        self._flush = flush
        self._entries: deque[Entry] = deque()
        self._submitted = 0  # entries, ever
        self._changed: dict[HostedGroup, int] = {}  # how many had been submitted by then
        self._failure: TailraceError | None = None  # of the last write, until the next may begin
        self._retry_s = RETRY_FIRST_S

    def submit(self, entry: Entry) -> None:
        """Write it, or refuse it at once while nothing can be written."""
        if self.gone is not None:
            _refuse(entry, self.gone)
        elif self._failure is not None and not entry.lasting:
            entry.done(self._failure)
        elif not entry.records and not self._entries and not self.log.busy:
            entry.done(None)  # nothing is under way that it would have to wait for
        else:
            self._entries.append(entry)
            self._submitted += 1
            self._wake()

    def changed(self, hosted: HostedGroup) -> None:
        """Its state has to be written."""
        if self.gone is not None:
            return
        self._changed[hosted] = self._submitted
        if self._failure is not None:
            hosted.stuck = self._failure
        self._wake()

    def forget(self, hosted: HostedGroup) -> None:
        """It is deleted: what of it was still to be written is not."""
        self.groups.pop(hosted.group.name, None)
        self._changed.pop(hosted, None)

    def drop(self, error: TailraceError) -> None:
        """Another broker leads: let go of everything; who waits gets the error (T032)."""
        if self.gone is not None:
            return
        self.gone, self.loaded = error, False
        entries, self._entries = self._entries, deque()
        self._changed.clear()
        for entry in entries:
            _refuse(entry, error)
        groups, self.groups = self.groups, {}
        for hosted in groups.values():
            hosted.drop(error)

    def write(self) -> None:
        """Begin to write what there is, unless a write is under way or must wait."""
        if self.log.busy or self._failure is not None or self.gone is not None:
            return
        records: dict[bytes, bytes | None] = {}
        size_bytes = 0
        entries: list[Entry] = []
        while self._entries and size_bytes < BATCH_BYTES and len(records) < BATCH_RECORDS:
            entry = self._entries.popleft()
            entries.append(entry)
            records.update(entry.records)
            size_bytes += sum(map(_size_bytes, entry.records.items()))
        states: list[tuple[HostedGroup, int]] = []
        full_bytes = size_bytes + STATES_BYTES
        taken = self._submitted - len(self._entries)
        for hosted in [one for one, before in self._changed.items() if before <= taken]:
            if size_bytes >= full_bytes or len(records) >= 2 * BATCH_RECORDS:
                break
            del self._changed[hosted]
            if hosted.leaving:
                continue  # its tombstones are on their way; if they fail, it is here again
            states.append((hosted, hosted.group.changes))
            key, value = state_key(hosted.group.name), state_value(hosted.group)
            records[key] = value
            size_bytes += _size_bytes((key, value))
        if records:
            self.log.append(records, partial(self._settled, entries, states))
        elif entries:
            self._settled(entries, states, None)

    def _settled(
        self,
        entries: Sequence[Entry],
        states: Sequence[tuple[HostedGroup, int]],
        error: TailraceError | None,
    ) -> None:
        """The write came to its end."""
        if error is not None and (self.gone is not None or error.code == NOT_LEADER):
            for entry in entries:
                _refuse(entry, error)
            self.drop(error)
            self._flush()
            return
        if error is not None:
            self._failed(entries, states, error)
            return
        if self._retry_s > RETRY_FIRST_S:
            log.info(
                "groups in __offsets[%d] are written again",
                self.log.number,
                extra={"event": "group.write_failed", "code": None},
            )
            self._retry_s = RETRY_FIRST_S
        for entry in entries:
            entry.done(None)
        for hosted, changes in states:
            if self.gone is None:
                hosted.written(changes)
        if self._entries or self._changed:
            self._wake()

    def _failed(
        self,
        entries: Sequence[Entry],
        states: Sequence[tuple[HostedGroup, int]],
        error: TailraceError,
    ) -> None:
        if self._retry_s == RETRY_FIRST_S:
            log.error(
                "groups in __offsets[%d] cannot be written, trying again: %s",
                *(self.log.number, error),
                extra={"event": "group.write_failed", "code": error.code},
            )
        self._failure = error
        self._timers.at(trio.current_time() + self._retry_s, self._try_again)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
        queued, self._entries = [*entries, *self._entries], deque()
        self._entries.extend(entry for entry in queued if entry.lasting)
        for entry in queued:
            if not entry.lasting:
                entry.done(error)
        for hosted, _ in states:
            self._changed.setdefault(hosted, self._submitted)
        for hosted in list(self._changed):
            hosted.not_written(error)
        self._flush()

    def _try_again(self) -> None:
        self._failure = None
        self._wake()


def _refuse(entry: Entry, error: TailraceError) -> None:
    """A lasting one is left to whoever leads now: it finds the same to be done."""
    if not entry.lasting:
        entry.done(error)


def _size_bytes(record: tuple[bytes, bytes | None]) -> int:
    key, value = record
    return RECORD_BYTES + len(key) + len(value or b"")
