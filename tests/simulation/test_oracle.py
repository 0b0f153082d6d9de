"""The oracle sees an ack that came too early, a lost batch, a watermark that falls; not more."""

from tailrace.protocol.batch import encode_batch, header_seed
from tailrace.protocol.codec import encode_message
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.frame import PREAMBLE, encode_frame
from tailrace.protocol.messages import (
    Api,
    FetchResponse,
    FetchResult,
    ProducePartition,
    ProduceRequest,
    ProduceResponse,
    ProduceResult,
)
from tailrace.simulation.disk import Platter, SimDisk
from tailrace.simulation.life import Life
from tailrace.simulation.link import Link, Pipe
from tailrace.simulation.net import Connection
from tailrace.simulation.oracle import Oracle
from tailrace.storage.directory import partition_name
from tailrace.storage.log import Appended, Log, LogConfig

TOPIC_ID = bytes(range(16))


class Broker:
    """A log and the oracle that watches it; requests and answers are made by hand."""

    def __init__(self) -> None:
        self.platter = Platter()
        self.oracle = Oracle("n1", self.platter, "/data")
        self._disk = SimDisk(self.platter, Life("n1"))
        for path in ("/data", "/data/topics"):
            self._disk.make_directory(path)
            self._disk.sync_directory(path.rpartition("/")[0] or "/")
        self.connection = connection()
        self.correlation_id = 0
        self.oracle.tap(self.connection, False, PREAMBLE)
        self.oracle.tap(self.connection, True, PREAMBLE)
        self.open()

    def open(self) -> None:
        self.log = Log.open(
            self._disk,
            f"/data/topics/{partition_name(TOPIC_ID, 3)}",
            topic_id=TOPIC_ID,
            partition=3,
            config=LogConfig(segment_bytes=4096),
            now_ms=2000,
            clean=False,
        )

    def produce(
        self, value: bytes, *, sync: bool = True, store: bool = True, offset: int = 0
    ) -> None:
        """``store=False``: only answered, as if it stood at ``offset``."""
        entry = batch(value)
        request = ProduceRequest(-1, 1000, (ProducePartition(TOPIC_ID, 3, len(entry)),))
        self.say(Api.PRODUCE, encode_message(request), bytes(entry), to_client=False)
        if store:
            [made] = self.append(value)
            assert isinstance(made, Appended)
            offset = made.base_offset
            if sync:
                self.log.sync()
        answer = ProduceResponse((ProduceResult(None, offset, 1000, 0),))
        self.say(Api.PRODUCE, encode_message(answer), b"", to_client=True)

    def append(self, value: bytes) -> list[Appended | TailraceError]:
        """Written, not synced; nobody is answered."""
        return self.log.append([memoryview(batch(value))], leader_epoch=0, now_ms=1000)

    def delete_topic(self) -> None:
        self._disk.remove_directory(self.log.path)
        self._disk.sync_directory("/data/topics")

    def remove_segment(self, base_offset: int) -> None:
        self._disk.remove(f"{self.log.path}/{base_offset:020}.log")

    def show_watermark(self, offset: int) -> None:
        result = FetchResult(TOPIC_ID, 3, None, 0, offset, offset, offset, 0)
        self.say(Api.FETCH, encode_message(FetchResponse((result,))), b"", to_client=True)

    def say(self, api: Api, head: bytes, body: bytes, *, to_client: bool) -> None:
        frame = encode_frame(api, 1, self.correlation_id, head, len(body)) + body
        for at in range(0, len(frame), 7):
            self.oracle.tap(self.connection, to_client, frame[at : at + 7])

    def found(self) -> list[str]:
        return [violation.invariant for violation in self.oracle.violations]


def batch(value: bytes) -> bytearray:
    seed = header_seed(TOPIC_ID, 3)
    return bytearray(encode_batch(seed, values=[value], keys=None, timestamps=1000, headers=None))


def connection() -> Connection:
    from random import Random

    link = Link(Random(0), delay_min=0.0, delay_mean=1.0)
    return Connection(1, Life("c1"), Life("n1"), Pipe(link), Pipe(link))


def test_a_durable_ack_is_fine() -> None:
    broker = Broker()
    for size in (10, 3000, 3000, 10):
        broker.produce(b"x" * size)
    assert broker.found() == []
    assert broker.oracle.acked_batches == 4


def test_an_ack_before_the_sync_is_found() -> None:
    broker = Broker()
    broker.produce(b"a", sync=False)
    assert broker.found() == ["S1"]


def test_an_ack_for_nothing_is_found() -> None:
    broker = Broker()
    broker.produce(b"a")
    broker.produce(b"b", store=False)
    assert broker.found() == ["S1"]


def test_a_watermark_that_falls_is_found() -> None:
    broker = Broker()
    for offset in (3, 5, 5, 4):
        broker.show_watermark(offset)
    assert broker.found() == ["S11"]


def test_a_recovery_that_loses_what_was_durable_is_found() -> None:
    broker = Broker()
    for value in (b"a", b"b", b"c"):
        broker.produce(value)
    broker.oracle.process_ended()
    broker.open()
    broker.oracle.process_serves()
    assert broker.found() == []
    broker.oracle.process_ended()
    broker.log.truncate_to(2)
    broker.oracle.process_serves()
    assert broker.found() == ["S32"]


def test_damage_on_purpose_is_no_loss() -> None:
    broker = Broker()
    for value in (b"a", b"b", b"c"):
        broker.produce(value)
    broker.oracle.process_ended()
    path = f"/data/topics/{partition_name(TOPIC_ID, 3)}/{0:020}.log"
    broker.oracle.damage(path, 60, 1)
    broker.open()
    verify = broker.log.verify_pending(0)
    assert verify is not None
    verify()
    assert broker.log.quarantined
    broker.oracle.process_serves()
    broker.produce(b"d")
    assert broker.found() == []


def test_a_retry_of_what_was_removed_since_is_no_loss() -> None:
    broker = Broker()
    for number in range(3):
        broker.produce(b"%d" % number * 3000)
    assert broker.log.drop_before(1) == 1
    broker.produce(b"0" * 3000, store=False)
    assert broker.found() == []
    broker.produce(b"other" * 600, store=False)
    assert broker.found() == ["S1"], "that never was at offset 0"


def test_a_retry_that_comes_after_its_topic_was_deleted_is_no_loss() -> None:
    broker = Broker()
    broker.produce(b"a")
    broker.delete_topic()
    broker.produce(b"a", store=False)
    assert broker.found() == []


def test_a_write_into_a_directory_that_is_gone_is_found() -> None:
    broker = Broker()
    broker.produce(b"a")
    broker.delete_topic()
    broker.produce(b"b")
    assert broker.found() == ["S1"]


def test_an_ack_before_the_sync_is_found_though_its_file_was_removed() -> None:
    broker = Broker()
    broker.produce(b"a")
    [made] = broker.append(b"b")
    assert isinstance(made, Appended)
    broker.delete_topic()
    broker.produce(b"b", store=False, offset=made.base_offset)
    assert broker.found() == ["S1"]


def test_what_was_removed_on_purpose_is_not_missed_after_a_restart() -> None:
    broker = Broker()
    for number in range(3):
        broker.produce(b"%d" % number * 3000)
    broker.log.drop_before(1)
    broker.oracle.process_ended()
    broker.open()
    broker.oracle.process_serves()
    assert broker.found() == []


def test_a_removed_segment_that_comes_back_without_the_one_behind_it_is_no_loss() -> None:
    broker = Broker()
    for number in range(4):
        broker.produce(b"%d" % number * 3000)
    broker.oracle.process_ended()
    broker.remove_segment(1)
    broker.oracle.process_serves()
    assert broker.found() == []


def test_a_segment_that_recovery_cuts_is_not_removed_on_purpose() -> None:
    broker = Broker()
    for number in range(3):
        broker.produce(b"%d" % number * 3000)
    broker.oracle.process_ended()
    broker.log.truncate_to(1)
    broker.oracle.process_serves()
    assert broker.found() == ["S32"]
    broker.produce(b"2" * 3000, store=False, offset=2)
    assert broker.found() == ["S32", "S1"]
