"""Bytes to values and back: frames, messages, batches, errors. No sockets, files or clock."""
