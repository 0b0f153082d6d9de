"""When a record was appended, told at a glance: for lag and forecasts, not for readers.

It may be asked often and from the event loop. So nothing is verified first (a damaged header that
looks sound gives a wrong time, and nothing worse), no more than a few batches are stepped over, and
what is not in memory is not read: then the index gives a time that is a little too early, and
``warm`` is the work for a thread after which a second glance is exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tailrace.storage.segment import Quarantine, Segment

STEPS_MAX = 256  # about as many µs
WARM_BYTES = 8192  # two stretches of the index: the batch in question lies within, or begins there


@dataclass(frozen=True, slots=True)
class Glance:
    """The append time of the first record at or above an offset, in ms."""

    append_time: int
    exact: bool  # else: it is that, or later
    warm: Callable[[], object] | None = None  # to be run in a thread, to look again; ``OSError``


def glance(segment: Segment, holes: Sequence[Quarantine], offset: int) -> Glance:
    """Look for an offset of this segment that is in no hole. Raises ``OSError``."""
    near = segment.index.at_offset(offset)
    position, base = (near.position, near.offset) if near else (0, segment.base_offset)
    time = near.append_time if near else segment.first_append_time
    for hole in holes:
        if base < hole.next_offset <= offset and hole.file == segment.path:
            position, base = hole.end, hole.next_offset
    file, length = segment.file, min(WARM_BYTES, segment.size_bytes - position)
    if segment.sealed and length > 0 and not file.cached(position, length):
        return Glance(time, exact=False, warm=lambda: file.read(length, position))
    view = file.view(0, segment.size_bytes)
    for _ in range(STEPS_MAX):
        step = segment.glimpse(view, position)
        if step is None or step.base_offset != base:
            break
        time, position, base = step.append_time, step.end, step.next_offset
        if offset < step.next_offset and step.records:
            return Glance(time, exact=True)
    return Glance(time, exact=False)
