"""What the process's memory allocator does with large blocks.

glibc asks the kernel anew for every block of 128 KiB or more, and gives it back when it is freed:
each of its pages is cleared and mapped again each time. A batch of 1 MiB lies in three or four such
blocks on its way out, which took a third of the time for encoding it. Once the program has freed a
larger block, smaller ones come from memory that is kept, up to twice that size of what is free
(M_MMAP_THRESHOLD in ``man mallopt``). Elsewhere than in glibc this does nothing.
"""

LARGE_BYTES = 4 << 20  # batches have 1 MiB, and msgpack doubles its buffer
_done = False


def keep_large_blocks() -> None:
    """Free a block of ``LARGE_BYTES``, once in a process. None of its pages is ever touched."""
    global _done
    if not _done:
        _done = True
        bytes(LARGE_BYTES)
