"""The last steps of a graceful stop: leave the cluster, sync every log, say that it was clean."""

import logging

import trio

from tailrace.broker.flusher import ROUND_PARTITIONS_MAX
from tailrace.broker.node import Node
from tailrace.protocol.errors import MetadataUnavailable
from tailrace.protocol.limits import pieces
from tailrace.storage.directory import DataDirectory

log = logging.getLogger("tailrace.broker.stopping")

LEAVE_S = 2.0  # for the metadata store to take note


async def leave(node: Node, stage: str) -> None:
    """Be no broker of the cluster any more; a store that is away finds that out by itself."""
    try:
        with trio.move_on_after(LEAVE_S):
            await node.session.close()
    except MetadataUnavailable as error:
        extra = {"event": "broker.stopping", "code": error.code, "stage": stage}
        log.warning("%s", error, extra=extra)


async def flush(node: Node) -> None:
    """Sync every log. T093."""
    partitions = [one for one in node.shelf if one.serving]
    for partition in partitions:
        partition.log.settle()
    for some in pieces(partitions, ROUND_PARTITIONS_MAX):
        await node.flusher.flush(some)


async def mark_clean(node: Node, directory: DataDirectory) -> None:
    """After ``flush``, with all logs closed: the next start need not look at them. T093."""
    await node.time.keep_beat(node.world.offload)
    try:
        await node.world.offload.run(directory.mark_clean)
    except OSError as error:
        extra = {"event": "broker.stopping", "code": None, "stage": "release"}
        log.warning(
            "the clean file could not be written, the next start checks the logs: %s",
            error,
            extra=extra,
        )
