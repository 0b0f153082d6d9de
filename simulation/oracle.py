"""Watches one broker from outside: its bytes on the network against the bytes on its disk.

The oracle decodes nothing but what everybody can see, and shares no state with the broker:

- S1: when a success for acks=all is handed to the network, every byte of the batch must be in the
  durable image of the disk, under a durable name, as the producer encoded it;
- S11: the high watermark shown to clients never falls: on one connection, and below what anybody
  was shown before he asked (answers on two connections may overtake each other); S12: no batch at
  or above it is delivered;
- S32: what a restart recovers is a prefix of what was written and holds all that was durable;
- S10, S15 in the log itself: offsets without gaps, each producer's sequences without repeats.

In a cluster each broker has an oracle of its own. They share what was shown to clients (S11 holds
over elections), a ``ClusterJudge`` hears of every promise, and what no promise covers may be lost
at a start: a follower cuts off what its leader does not have.

Records may be gone by the time of an acknowledgement: a retry that comes after its answer was lost
is answered as the first try was, though the record has expired or its topic was deleted meanwhile;
and an answer for several partitions waits for the last of them. So a batch that is not there now
must have been durable in a segment file which lost its name since (``Removed``), for S1 and for S32
alike. Whether it was right to remove it is for S2, S26, S29, S30 and those who judge them; when log
starts rose is kept for them (``log_starts``).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import trio
from xxhash import xxh3_64_intdigest

from tailrace.protocol.batch import header_seed, parse_header
from tailrace.protocol.codec import decode_message
from tailrace.protocol.frame import PREAMBLE, FrameLimits, FrameReader
from tailrace.protocol.messages import (
    ACKS_ALL,
    Api,
    FetchRequest,
    FetchResponse,
    ProduceRequest,
    ProduceResponse,
)
from tailrace.simulation.checkers import Violation
from tailrace.simulation.cluster_judge import ClusterJudge
from tailrace.simulation.content import Content
from tailrace.simulation.disk import Folder, Platter
from tailrace.simulation.log_files import (
    PAYLOAD_AT,
    Logs,
    PartitionKey,
    Removed,
    Rot,
    batches,
    logs,
)
from tailrace.simulation.net import Connection
from tailrace.storage.directory import partition_name

Shown = dict[PartitionKey, int]  # high watermarks

LIMITS = FrameLimits(frame=lambda api: 1 << 30, head=1 << 24)


@dataclass
class Stream:
    """One direction of one connection, cut into frames."""

    reader: FrameReader = field(default_factory=lambda: FrameReader(LIMITS))
    preamble_left: int = len(PREAMBLE)

    def feed(self, data: bytes) -> None:
        skipped = min(self.preamble_left, len(data))
        self.preamble_left -= skipped
        self.reader.feed(data[skipped:])


@dataclass
class Dialogue:
    """Both directions, and the requests not yet answered."""

    requests: Stream = field(default_factory=Stream)
    answers: Stream = field(default_factory=Stream)
    asked: dict[int, float] = field(default_factory=dict[int, float])  # when
    following: set[int] = field(default_factory=set[int])  # fetches of another broker
    near: set[int] = field(default_factory=set[int])  # fetches that name a rack
    produced: dict[int, list[tuple[PartitionKey, bytes]]] = field(
        default_factory=dict[int, list[tuple[PartitionKey, bytes]]]
    )
    fetching: dict[int, Shown] = field(
        default_factory=dict[int, dict[PartitionKey, int]]
    )  # when it was asked
    shown: Shown = field(default_factory=dict[PartitionKey, int])  # on this connection


@dataclass
class Scan:
    """Where the batches of one segment file stand, as far as it was looked at."""

    path: str
    content: Content
    seed: int
    rot: Rot
    position: int = 0
    places: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])

    def place(self, base_offset: int) -> tuple[int, int] | None:
        """Position and size of the batch with that base offset."""
        if base_offset not in self.places:
            self._go_on()
        return self.places.get(base_offset)

    def _go_on(self) -> None:
        for position, header in batches(
            self.path, self.content, self.seed, self.rot, self.position
        ):
            self.places[header.base_offset] = position, header.size_bytes
            self.position = position + header.size_bytes


class Oracle:
    """See the module. ``violations`` grows as the broker goes wrong."""

    def __init__(
        self,
        name: str,
        platter: Platter,
        data_dir: str,
        judge: ClusterJudge | None = None,
        shown: Shown | None = None,
        lease_ends: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.violations: list[Violation] = []
        self.acked_batches = 0
        self.delivered_batches = 0
        self.rot: Rot = []
        self.log_starts: list[tuple[float, PartitionKey, int]] = []  # when each was first shown
        self._name = name
        self._platter = platter
        self._topics = f"{data_dir}/topics"
        self._dialogues: dict[int, Dialogue] = {}
        self._scans: dict[str, Scan] = {}
        self._judge = judge
        self._lease_ends = lease_ends
        self._high_watermarks: Shown = {} if shown is None else shown
        self._starts: dict[PartitionKey, int] = {}
        self._asked_at = 0.0  # what is being answered
        self._left: tuple[Logs, Logs] | None = None  # by the last process: written, durable
        self._removed = Removed(platter, self._topics, self.rot)

    def tap(self, connection: Connection, to_client: bool, data: bytes) -> None:
        """For ``SimNet.taps``: called for every piece when it is handed to the network."""
        if connection.server.name != self._name:
            return
        dialogue = self._dialogues.setdefault(connection.number, Dialogue())
        if not to_client:
            dialogue.requests.feed(data)
            while (frame := dialogue.requests.reader.next()) is not None:
                if self._judge is not None:
                    dialogue.asked[frame.correlation_id] = trio.current_time()
                if frame.api == Api.PRODUCE:
                    request = decode_message(ProduceRequest, frame.head)
                    self._see_produce(dialogue, frame.correlation_id, request, frame.body)
                elif frame.api == Api.FETCH:
                    self._see_fetch(dialogue, frame.correlation_id, frame.head)
            return
        dialogue.answers.feed(data)
        while (frame := dialogue.answers.reader.next()) is not None:
            asked_at = dialogue.asked.pop(frame.correlation_id, 0.0)
            if frame.api == Api.PRODUCE:
                self._asked_at = asked_at
                produced = dialogue.produced.pop(frame.correlation_id, [])
                self._check_acks(produced, decode_message(ProduceResponse, frame.head))
            elif frame.api == Api.FETCH and frame.correlation_id in dialogue.following:
                dialogue.following.discard(frame.correlation_id)
            elif frame.api == Api.FETCH:
                near = frame.correlation_id in dialogue.near
                dialogue.near.discard(frame.correlation_id)
                self._asked_at = 0.0 if near else asked_at
                before = dialogue.fetching.pop(frame.correlation_id, {})
                response = decode_message(FetchResponse, frame.head)
                self._check_fetch(dialogue, before, response, frame.body)

    def process_ended(self) -> None:
        """Call it when a broker is dead, before anything happens to its disk."""
        if self._left is None:  # else it died before it served: the one before it counts
            durable = self._logs(self._platter.crashed(lambda options: 0))
            self._left = self._logs(self._platter), durable

    def process_serves(self) -> None:
        """Call it when a broker has recovered: checks S32 against what the last one left."""
        if self._left is None:
            return
        written, durable = self._left
        self._left = None
        now = logs(self._platter, self._topics, self.rot, over_gaps=True)
        self._removed.forget_cut(now)
        for key, old in written.items():
            recovered = set(now.get(key, []))
            safe = [e for e in durable.get(key, []) if self._is_lost(key, e, recovered)]
            if self._judge is not None:
                end = self._judge.true_end(key)
                safe = [e for e in safe if parse_header(e).next_offset <= end]
            if safe:
                at = parse_header(safe[0]).base_offset
                self._violated("S32", f"{_name(key)}@{at}: {len(safe)} durable batches are lost")
            lost = [at for at, e in enumerate(old) if self._is_lost(key, e, recovered)]
            if lost and recovered.intersection(old[lost[0] :]):
                self._violated("S32", f"{_name(key)}: batches behind a lost one came back")

    def forget(self) -> None:
        """The disk is about to be exchanged: what it held will not come back."""
        self._left = None
        self._scans.clear()

    def check_logs(self) -> None:
        """S10 and S15 in the log files as they are now."""
        for key, entries in self._logs(self._platter).items():
            next_offset: int | None = None
            sequences: dict[tuple[int, int], int] = {}
            for entry in entries:
                header = parse_header(entry)
                if next_offset is not None and header.base_offset != next_offset:
                    self._violated("S10", f"{_name(key)}: {header.base_offset} after {next_offset}")
                next_offset = header.next_offset
                if header.producer_id >= 0:
                    producer = header.producer_id, header.producer_epoch
                    expected = sequences.get(producer, 0)
                    if header.base_sequence != expected:
                        self._violated(
                            "S15",
                            f"{_name(key)}@{header.base_offset}: producer {producer} has "
                            f"sequence {header.base_sequence}, expected {expected}",
                        )
                    sequences[producer] = header.last_sequence + 1

    def damage(self, path: str, position: int, mask: int) -> None:
        """Flip bits of a file, now. The oracle goes on to see what stood there before."""
        self._platter.content(path).flip(position, mask)
        self.rot.append((path, position, mask))

    def _logs(self, platter: Platter) -> "Logs":
        return logs(platter, self._topics, self.rot)

    def _is_lost(self, key: PartitionKey, entry: bytes, recovered: set[bytes]) -> bool:
        """Neither there after a restart nor removed by somebody."""
        if entry in recovered:
            return False
        offset = parse_header(entry).base_offset
        return not self._removed.held(key, offset, entry[PAYLOAD_AT:])

    def _see_fetch(self, dialogue: Dialogue, correlation_id: int, head: bytes) -> None:
        if self._judge is not None:
            request = decode_message(FetchRequest, head)
            if request.replica_id is not None:
                dialogue.following.add(correlation_id)
                return
            if request.rack is not None:  # a follower may answer, who knows less than others
                dialogue.near.add(correlation_id)
                dialogue.fetching[correlation_id] = {}
                return
        dialogue.fetching[correlation_id] = dict(self._high_watermarks)

    def _see_produce(
        self, dialogue: Dialogue, correlation_id: int, request: ProduceRequest, body: memoryview
    ) -> None:
        if request.acks != ACKS_ALL:
            return
        batches: list[tuple[PartitionKey, bytes]] = []
        at = 0
        for part in request.partitions:
            batch = bytes(body[at + PAYLOAD_AT : at + part.length])
            batches.append(((part.topic_id, part.partition), batch))
            at += part.length
        dialogue.produced[correlation_id] = batches

    def _check_acks(
        self, produced: list[tuple[PartitionKey, bytes]], response: ProduceResponse
    ) -> None:
        for (key, payload), result in zip(produced, response.results, strict=True):
            if result.error is None:
                self.acked_batches += 1
                self._check_lease(key, "acked")
                if self._judge is not None:
                    records = 1 + int.from_bytes(payload[2:6])  # the last offset's delta
                    end, check = result.base_offset + records, xxh3_64_intdigest(payload)
                    self._judge.acked(self._name, key, result.base_offset, end, check)
                    continue
                wrong = self._not_durable(key, result.base_offset, payload)
                if wrong and not self._removed.held(key, result.base_offset, payload):
                    self._violated("S1", f"{_name(key)}@{result.base_offset} acked: {wrong}")

    def _not_durable(self, key: PartitionKey, offset: int, payload: bytes) -> str | None:
        """What is missing for that batch to survive a power cut now; None if nothing is."""
        path = f"{self._topics}/{partition_name(*key)}"
        folder = self._platter.find(path)
        if not isinstance(folder, Folder):
            return "its partition has no directory"
        bases = [int(name[:-4]) for name in folder.entries if name.endswith(".log")]
        base = max((base for base in bases if base <= offset), default=None)
        if base is None:
            return "no segment holds it"
        path = f"{path}/{base:020}.log"
        content = self._platter.content(path)
        if self._platter.durable_content(path) is not content:
            return f"the name {path} is not durable"
        place = self._place(path, content, key, offset)
        if place is None:
            return "it is not in the file"
        position, size = place
        if content.durable(position + PAYLOAD_AT, size - PAYLOAD_AT) != payload:
            return f"its bytes at {position} are not durable (or not the producer's)"
        return None

    def _place(
        self, path: str, content: Content, key: PartitionKey, offset: int
    ) -> tuple[int, int] | None:
        scan = self._scans.get(path)
        place = scan.place(offset) if scan is not None and scan.content is content else None
        if place is not None:
            header = content.read(32, place[0])
            if int.from_bytes(header[24:32], "big") == offset:
                return place
        # Not seen yet, or the file was cut and written anew since: look from its beginning.
        scan = self._scans[path] = Scan(path, content, header_seed(*key), self.rot)
        return scan.place(offset)

    def _check_fetch(
        self, dialogue: Dialogue, before: Shown, response: FetchResponse, body: memoryview
    ) -> None:
        at = 0
        for result in response.results:
            key = result.topic_id, result.partition
            if result.error is None:
                self._check_lease(key, "gave records")
                shown = max(before.get(key, 0), dialogue.shown.get(key, 0))
                if result.high_watermark < shown:
                    what = f"{_name(key)}: {result.high_watermark} after {shown} was shown"
                    self._violated("S11", what)
                newest = max(self._high_watermarks.get(key, 0), result.high_watermark)
                dialogue.shown[key] = max(shown, result.high_watermark)
                self._high_watermarks[key] = newest
                if self._judge is not None:
                    self._judge.promised(self._name, key, result.high_watermark, "showed")
                if result.log_start > self._starts.get(key, 0):
                    self._starts[key] = result.log_start
                    self.log_starts.append((trio.current_time(), key, result.log_start))
            end = at + result.length
            while at < end:
                header = parse_header(body, at)
                self.delivered_batches += 1
                if header.next_offset > result.high_watermark:
                    what = f"{_name(key)}@{header.base_offset} reaches beyond the high watermark"
                    self._violated("S12", what)
                at += header.size_bytes

    def _check_lease(self, key: PartitionKey, what: str) -> None:
        """R14: who was asked when its lease was over, and has none since, refuses."""
        ended_at = self._lease_ends()
        if self._asked_at > ended_at:
            text = f"{_name(key)}: {self._name} {what}, asked at {self._asked_at:.1f} s"
            self._violated("R14", f"{text}, with a lease that was over at {ended_at:.1f} s")

    def _violated(self, invariant: str, what: str) -> None:
        self.violations.append(Violation(invariant, what))


def _name(key: PartitionKey) -> str:
    return f"{key[0].hex()[:8]}[{key[1]}]"
