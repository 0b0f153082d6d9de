"""Bytes to values and back: frames, messages, record batches, errors. No sockets, files or clock."""
