"""The log on disk: segments, indexes, recovery, producer sequences. Synchronous, real files."""
