"""Columns given to ``send_many``, checked, and cut into pieces that fit into batches. Pure."""

from collections.abc import Iterator, Sequence
from operator import add, itemgetter
from typing import Any, NamedTuple, cast

from tailrace.client.accumulator import RECORD_OVERHEAD_BYTES, Lane, TopicRoute
from tailrace.protocol import texts
from tailrace.protocol.batch import RECORDS_MAX, RecordHeaders
from tailrace.protocol.columns import TIMESTAMP_MAX

HEADER_OVERHEAD_BYTES = 8
GUESSES_MAX = 4  # of how many records fit, each less wrong; then half of them

Column = list[bytes | None]


def checked_headers(headers: RecordHeaders) -> tuple[tuple[str, bytes | None], ...]:
    """A copy that nobody changes any more; TypeError unless they are (text, bytes or None)."""
    if not headers:
        return ()
    copied = tuple((name, value) for name, value in headers)
    for name, value in copied:
        if type(name) is not str or not (value is None or type(value) is bytes):
            raise TypeError(f"a header is (str, bytes or None), not ({name!r}, {value!r})")
    return copied


def headers_size(headers: RecordHeaders) -> int:
    """Bytes they take, overhead included; UnicodeEncodeError for a name that is no UTF-8."""
    if not headers:
        return 0
    return sum(
        len(name.encode()) + len(value or b"") + HEADER_OVERHEAD_BYTES for name, value in headers
    )


def check_timestamp(topic: str, partition: int | None, timestamp: int) -> None:
    """TypeError unless it is an int, InvalidTimestamp T022 below 0."""
    if type(timestamp) is not int:
        raise TypeError(f"timestamp is an int of ms since the epoch, not {timestamp!r}")
    if timestamp < 0:
        raise texts.timestamp_negative(topic, partition, timestamp=timestamp)
    if timestamp > TIMESTAMP_MAX:
        raise texts.timestamp_ahead(
            topic, partition, timestamp=timestamp, limit=TIMESTAMP_MAX, ahead_max_s=0.0
        )


class Slice(NamedTuple):
    """Records that go into one batch together."""

    places: Sequence[int]
    size: int  # overhead included


class Outgoing:
    """Columns of equal length, encoded."""

    def __init__(
        self,
        values: Column,
        keys: Column | None,
        timestamps: Sequence[int],
        headers: list[tuple[tuple[str, bytes | None], ...]] | None,
    ) -> None:
        self.values = values
        self.keys = keys
        self.timestamps = timestamps
        self.headers = headers
        sizes = _lengths(values)
        if keys is not None:
            sizes = list(map(add, sizes, _lengths(keys)))
        if headers is not None:
            sizes = list(map(add, sizes, map(headers_size, headers)))
        self.sizes = sizes  # without overhead

    def __len__(self) -> int:
        return len(self.values)

    def larger_than(self, limit: int) -> list[int]:
        """The places of records of more than ``limit`` bytes."""
        if not self.sizes or max(self.sizes) <= limit:
            return []
        return [place for place, size in enumerate(self.sizes) if size > limit]

    def groups(
        self, route: TopicRoute, partition: int | None, places: Sequence[int]
    ) -> list[tuple[Lane | None, Sequence[int]]]:
        """Which lane takes which places; lane None: wherever keyless records go just then.

        Raises PartitionNotFound T011.
        """
        if partition is not None or self.keys is None:
            return [(None if partition is None else route.lane(partition, None), places)]
        by_lane: dict[Lane | None, list[int]] = {}
        keys = self.keys
        keyed = [place for place in places if keys[place] is not None]
        routed = route.router.route_many(cast("list[bytes]", _pick(keys, keyed)))
        for place, number in zip(keyed, routed, strict=True):
            by_lane.setdefault(route.lanes[number], []).append(place)
        if not keyed:
            return [(None, places)]
        if len(keyed) < len(places):
            # All into one partition, among the keyed ones of it in the order they came (C2).
            keyless = [place for place in places if keys[place] is None]
            by_lane[route.sticky] = sorted((*by_lane.get(route.sticky, ()), *keyless))
        if len(by_lane) == 1:
            return [(next(iter(by_lane)), places)]
        return list(by_lane.items())

    def cut(self, places: Sequence[int], bytes_max: int) -> Iterator[Slice]:
        """Slices of at most ``bytes_max`` and 10,000 records; a larger record goes alone."""
        sizes = cast("list[int]", _pick(self.sizes, places))
        total = sum(sizes) + len(sizes) * RECORD_OVERHEAD_BYTES
        if total <= bytes_max and len(sizes) <= RECORDS_MAX:
            if sizes:
                yield Slice(places, total)
            return
        start, mean = 0, total / len(sizes)
        while start < len(sizes):
            count = int(min(bytes_max / mean, RECORDS_MAX, len(sizes) - start))
            count, size = _fitting(sizes, start, count, bytes_max)
            yield Slice(places[start : start + count], size)
            start += count

    def values_of(self, places: Sequence[int]) -> Column:
        """The values at those places."""
        return _pick(self.values, places)

    def keys_of(self, places: Sequence[int]) -> Column | None:
        """The keys at those places."""
        return None if self.keys is None else _pick(self.keys, places)

    def timestamps_of(self, places: Sequence[int]) -> list[int]:
        """The timestamps at those places."""
        return _pick(self.timestamps, places)

    def headers_of(self, places: Sequence[int]) -> list[RecordHeaders] | None:
        """The headers at those places."""
        return None if self.headers is None else _pick(self.headers, places)


def _fitting(sizes: list[int], start: int, count: int, bytes_max: int) -> tuple[int, int]:
    """How many from ``start`` on go together, ``count`` or fewer, and their size; one at least.

    Guessed by their mean, as a sum is a tenth of what a running one costs. Fewer may be told than
    would fit, by half at most.
    """
    guesses = 0
    while True:
        count = max(count, 1)
        size = sum(sizes[start : start + count]) + count * RECORD_OVERHEAD_BYTES
        if size <= bytes_max or count == 1:
            return count, size
        guesses += 1
        less = min(count * bytes_max // size, count - 1)
        count = less if guesses <= GUESSES_MAX else count // 2


def _lengths(column: Column) -> list[int]:
    try:
        return list(map(len, cast("list[bytes]", column)))
    except TypeError:  # there is a None among them
        return [0 if data is None else len(data) for data in column]


def _pick(column: Sequence[Any], places: Sequence[int]) -> list[Any]:
    """The elements at the places, by one call into C where there is more than one."""
    if isinstance(places, range):
        part = column[places.start : places.stop]
        return part if isinstance(part, list) else list(part)
    if len(places) < 2:
        return [column[place] for place in places]
    return list(itemgetter(*places)(column))
