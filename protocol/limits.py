"""What one request may name, and how to cut what names more; pure.

A broker refuses more with T121 and closes the connection: nothing that is sent again passes.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

PARTITIONS_PER_REQUEST_MAX = 1_000  # also of batches that are produced
TOPICS_PER_REQUEST_MAX = 1_000

T = TypeVar("T")


def pieces(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Consecutive slices of at most ``most`` items; none where there are none."""
    for first in range(0, len(items), most):
        yield items[first : first + most]
