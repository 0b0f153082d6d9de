"""What clients and the coordinator of groups say to each other, cut out of the simulated network.

Each message is told to an ``Observer`` as what it is: sent by a client, arrived at a broker (what
has not arrived cannot have been taken into account), answered by a broker. Nothing is asked of
either side.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import trio

from tailrace.protocol.codec import decode_message
from tailrace.protocol.frame import HEADER_BYTES, PREAMBLE, FrameLimits, FrameReader
from tailrace.protocol.messages import (
    REQUESTS,
    RESPONSES,
    Api,
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    ErrorResponse,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    ResetOffsetsRequest,
    ResetOffsetsResponse,
)
from tailrace.simulation.net import Connection, SimNet

LIMITS = FrameLimits(frame=lambda api: 1 << 30, head=1 << 24)
WATCHED = (Api.HEARTBEAT, Api.COMMIT_OFFSETS, Api.FETCH_OFFSETS, Api.RESET_OFFSETS)

Asked = HeartbeatRequest | CommitOffsetsRequest | FetchOffsetsRequest | ResetOffsetsRequest
Answer = (
    HeartbeatResponse
    | CommitOffsetsResponse
    | FetchOffsetsResponse
    | ResetOffsetsResponse
    | ErrorResponse
)


Key = tuple[bytes, int]  # topic id, partition


@dataclass(frozen=True)
class Seen:
    """What an observer knew of a group at some moment."""

    floors: Mapping[Key, int]  # acked or shown
    owners: Mapping[Key, tuple[str, int]]  # member id and assignment epoch, as they were told


@dataclass(eq=False)
class Question:
    """A request and who asked. ``seen`` is the observer's, when it arrived."""

    client: str  # host name, one per process
    message: Asked
    seen: Seen | None = None


class Observer(Protocol):
    """Times are seconds of virtual time."""

    def sent(self, now: float, question: Question) -> None:
        """A client handed it to the network."""
        ...

    def arrived(self, now: float, question: Question) -> None:
        """A broker received all of it."""
        ...

    def answered(self, now: float, question: Question, answer: Answer) -> None:
        """A broker handed the answer to the network."""
        ...


@dataclass
class _Dialogue:
    """Of one connection."""

    requests: FrameReader = field(default_factory=lambda: FrameReader(LIMITS))
    answers: FrameReader = field(default_factory=lambda: FrameReader(LIMITS))
    sent_bytes: int = 0
    answered_bytes: int = 0
    framed_bytes: int = len(PREAMBLE)  # up to the end of the last request
    arrived_bytes: int = 0
    under_way: deque[tuple[int, Question]] = field(
        default_factory=deque[tuple[int, Question]]
    )  # not arrived; with the position of their ends
    open: dict[int, tuple[Api, Question]] = field(
        default_factory=dict[int, tuple[Api, Question]]
    )  # by correlation id


class GroupTap:
    """Listens from the moment it is made."""

    def __init__(self, net: SimNet, observer: Observer) -> None:
        self._observer = observer
        self._dialogues: dict[int, _Dialogue] = {}
        net.taps.append(self._on_sent)
        net.arrivals.append(self._on_arrived)

    def _on_sent(self, connection: Connection, to_client: bool, data: bytes) -> None:
        dialogue = self._dialogues.setdefault(connection.number, _Dialogue())
        if to_client:
            dialogue.answers.feed(_past_preamble(data, dialogue.answered_bytes))
            dialogue.answered_bytes += len(data)
            self._take_answers(dialogue)
        else:
            dialogue.requests.feed(_past_preamble(data, dialogue.sent_bytes))
            dialogue.sent_bytes += len(data)
            self._take_requests(dialogue, connection.client.name)

    def _take_requests(self, dialogue: _Dialogue, client: str) -> None:
        while (frame := dialogue.requests.next()) is not None:
            dialogue.framed_bytes += HEADER_BYTES + len(frame.head) + len(frame.body)
            if frame.api not in WATCHED:
                continue
            api = Api(frame.api)
            message = decode_message(REQUESTS[api], frame.head)
            assert isinstance(message, Asked)
            question = Question(client, message)
            dialogue.open[frame.correlation_id] = api, question
            dialogue.under_way.append((dialogue.framed_bytes, question))
            self._observer.sent(trio.current_time(), question)

    def _take_answers(self, dialogue: _Dialogue) -> None:
        while (frame := dialogue.answers.next()) is not None:
            api, question = dialogue.open.pop(frame.correlation_id, (None, None))
            if api is None or question is None:
                continue
            kind = ErrorResponse if frame.api == Api.ERROR else RESPONSES[api]
            message = decode_message(kind, frame.head)
            assert isinstance(message, Answer)
            self._observer.answered(trio.current_time(), question, message)

    def _on_arrived(self, connection: Connection, to_client: bool, data: bytes) -> None:
        if to_client:
            return
        dialogue = self._dialogues[connection.number]
        dialogue.arrived_bytes += len(data)
        while dialogue.under_way and dialogue.under_way[0][0] <= dialogue.arrived_bytes:
            _, question = dialogue.under_way.popleft()
            self._observer.arrived(trio.current_time(), question)


def _past_preamble(data: bytes, before: int) -> bytes:
    return data[max(0, len(PREAMBLE) - before) :]
