"""The daemon: connections, partitions, group commit, metadata. Runs on trio."""
