"""What the tests of rewriting share: logs with keys, verdicts, all steps of a swap at once."""

from collections.abc import Iterable, Sequence

from tailrace.protocol.batch import BatchHeader, Columns, decode_columns, encode_batch, parse_header
from tailrace.storage.disk import Disk
from tailrace.storage.log import Appended, Log
from tailrace.storage.rewrite import Kept, Rewritten, SegmentSource, offsets_of, rewrite
from tests.storage.logs import SEED


class Without:
    """The verdict that these offsets go."""

    def __init__(self, gone: Iterable[int], horizon: int | None = None) -> None:
        self.gone = set(gone)
        self.horizon = horizon
        self.asked: list[int] = []

    def __call__(
        self, header: BatchHeader, columns: Columns, offsets: Sequence[int]
    ) -> Kept | None:
        self.asked.append(header.base_offset)
        keep = [at for at, offset in enumerate(offsets) if offset not in self.gone]
        return Kept(keep, self.horizon)


def put(log: Log, count: int, *, epoch: int = 1, now_ms: int | None = None) -> None:
    """Append one batch of ``count`` records; each value tells its offset."""
    values: list[bytes | None] = [b"%d" % (log.end + at) for at in range(count)]
    data = encode_batch(SEED, values=values, keys=list(values), timestamps=1000 + log.end)
    time = 1000 + log.end if now_ms is None else now_ms
    [result] = log.append([memoryview(bytearray(data))], leader_epoch=epoch, now_ms=time)
    assert isinstance(result, Appended)


def settled(log: Log) -> None:
    """Seal what there is; flushed, indexed and covered, so that it may be rewritten."""
    log.roll()
    log.sync()
    log.sync()


def make(
    disk: Disk, log: Log, gone: Iterable[int], sources: Sequence[SegmentSource] | None = None
) -> Rewritten:
    """Rewrite all that may be, or these neighbours, without some offsets."""
    return rewrite(
        disk,
        log.path,
        log.rewritable(log.end) if sources is None else sources,
        SEED,
        Without(gone),
        index_interval=100,
        pace=lambda _: None,
    )


def swap(disk: Disk, log: Log, gone: Iterable[int]) -> None:
    """Every step of putting rewritten segments in the place of all there are."""
    job = log.swap(make(disk, log, gone))
    job.publish()
    log.replace(job)
    job.finish()
    log.replaced(job)


def records(log: Log, bytes_max: int = 200) -> dict[int, bytes | None]:
    """Every value that a reader gets, by offset; read slice by slice from the start."""
    found: dict[int, bytes | None] = {}
    at = log.start
    while at < log.end:
        part = log.read(at, bytes_max, log.end)
        assert part.first_offset <= at < part.next_offset
        data = b"".join(bytes(piece.view()) for piece in part.ranges)
        expected = part.first_offset
        while data:
            header = parse_header(data)
            assert header.base_offset == expected, "the chain is dense"
            expected = header.next_offset
            columns = decode_columns(data, header)
            pairs = zip(offsets_of(header, columns), columns.values, strict=True)
            found.update((offset, value) for offset, value in pairs if offset >= log.start)
            data = data[header.size_bytes :]
        assert expected == part.next_offset
        at = part.next_offset
    return found
