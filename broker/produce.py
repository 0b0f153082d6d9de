"""Produce: batches gathered for their partitions, one answer when all of them are settled.

- ``acks=all`` (-1): a batch is settled when the high watermark has passed it: durable, by the
  topic's durability (S1). ``acks=1``: when it is written. ``acks=0``: never answered; what goes
  wrong is logged, as nobody else would hear of it.
- The broker verifies a batch and stores its bytes; it never opens the columns.
"""

import logging

from tailrace.broker.call import Call
from tailrace.broker.limits import PARTITIONS_PER_REQUEST_MAX, check_count
from tailrace.broker.node import Node
from tailrace.protocol import texts, texts_wire
from tailrace.protocol.errors import TailraceError, to_wire
from tailrace.protocol.messages import ACKS_ALL, ProduceRequest, ProduceResponse, ProduceResult
from tailrace.storage.log import Appended

log = logging.getLogger("tailrace.broker.produce")

ACKS = (ACKS_ALL, 0, 1)


class Produce:
    """One produce request in hand. Invariant: ``_open`` slots have no result yet."""

    __slots__ = ("_call", "_code", "_open", "_results", "acks", "deadline", "timeout_s")

    def __init__(self, call: Call, request: ProduceRequest) -> None:
        self.acks = request.acks
        self.timeout_s = request.timeout_ms / 1000
        self.deadline = call.began + self.timeout_s
        self._call = call
        self._code = "ok"  # or the first error's
        self._open = len(request.partitions)
        self._results: list[ProduceResult | None] = [None] * self._open

    def settle(self, slot: int, written: Appended, log_start: int) -> None:
        self._put(slot, ProduceResult(None, written.base_offset, written.append_time, log_start))

    def refuse(self, slot: int, error: TailraceError) -> None:
        if self.acks == 0:
            log.warning(
                "batch with acks=0 from %s was not written: %s",
                self._call.who,
                error,
                extra={"event": "produce.refused", "code": error.code},
            )
        if self._code == "ok":
            self._code = error.code
        self._put(slot, ProduceResult(to_wire(error), -1, -1, -1))

    def _put(self, slot: int, result: ProduceResult) -> None:
        assert self._results[slot] is None, "a slot is settled once"
        self._results[slot] = result
        self._open -= 1
        if self._open == 0:
            results = tuple(result for result in self._results if result is not None)
            self._call.answer(ProduceResponse(results), code=self._code)


def produce(node: Node, call: Call, request: ProduceRequest) -> None:
    """Gather every batch; the answer follows once all are settled."""
    if request.acks not in ACKS:
        raise texts_wire.malformed_frame(f"acks {request.acks} is none of -1, 0 and 1")
    check_count(len(request.partitions), PARTITIONS_PER_REQUEST_MAX, of="batches")
    call.silent = request.acks == 0
    if not request.partitions:
        call.answer(ProduceResponse(()))
        return
    producing = Produce(call, request)
    body, position = call.take_body(), 0
    for slot, wanted in enumerate(request.partitions):
        entry = body[position : position + wanted.length]
        position += wanted.length
        try:
            partition = node.shelf.find(wanted.topic_id, wanted.partition)
            if not node.session.valid():  # the lead may be somebody else's by now (R14)
                node.session.check()
            if partition.internal:
                raise texts.reserved_topic_name(partition.topic)
            node.shelf.check_room(partition)
        except TailraceError as error:
            producing.refuse(slot, error)
            continue
        if request.acks != ACKS_ALL:
            partition.metrics.weak_acks(request.acks).inc()
        node.appender.add(partition, entry, producing, slot)
