"""What goes wrong in a scenario. A seed chooses which kinds there are, and when each strikes."""

from collections.abc import Awaitable, Callable, Sequence
from random import Random

import trio

from tailrace.protocol.batch import BatchHeader, header_seed
from tailrace.simulation.disk import Folder, Inode, SimDisk
from tailrace.simulation.history import History
from tailrace.simulation.life import Life
from tailrace.simulation.log_files import batches
from tailrace.simulation.run import SimCluster
from tailrace.simulation.world import DATA_DIR, SimNode
from tailrace.storage.directory import parse_partition_name
from tailrace.storage.marks import read_mark

Damaged = tuple[int, int]  # partition, offset


class Chaos:
    """Sets off faults on a cluster of one node."""

    def __init__(
        self, cluster: SimCluster, history: History, rng: Random, without: Sequence[str] = ()
    ) -> None:
        self.cluster = cluster
        self.history = history
        [self.node] = cluster.nodes.values()
        self.rng = rng
        self.crashes = 0
        self.damaged: set[Damaged] = set()
        self.struck: dict[str, int] = {}
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "reset": self._reset,
            "break": self._break,
            "cut": self._cut,
            "clog": self._clog,
            "kill": self._kill,
            "power": self._power,
            "rot": self._rot,
            "stall": self._stall,
            "sync": self._fail_sync,
            "full": self._fill,
            "meta": self._lose_replies,
            "outage": self._lose_metadata,
            "pause": self._pause,
            "clock": self._step_clock,
        }
        kinds = {kind: strike for kind, strike in kinds.items() if kind not in without}
        # A swarm: half of the kinds, another half for each seed.
        self.kinds = {kind: strike for kind, strike in kinds.items() if rng.random() < 0.5}

    async def until(self, end: float) -> None:
        """Let faults strike until that moment of virtual time, then heal everything."""
        while trio.current_time() < end:
            await trio.sleep(self.rng.expovariate(1.5))
            if not self.node.running:
                await self.node.start()
            if self.kinds:
                kind = self.rng.choice(list(self.kinds))
                self.cluster.trace.note(kind)
                self.struck[kind] = self.struck.get(kind, 0) + 1
                await self.kinds[kind]()
        await self.heal()

    async def heal(self) -> None:
        """No fault any more, and the broker serves."""
        self.cluster.net.heal()
        self.node.pace.stall = 0.0
        self.node.keep.lost_replies = 0.0
        self.node.keep.down = False
        self.node.clock.skew_ms = 0
        self.node.platter.full = False
        self.node.platter.failing_syncs = 0
        if "sync" in self.struck:  # a broker that a failed sync ends may not be at its end yet
            self.node.kill()
        while not self.node.running or self.node.ready is None:
            if self.node.running:  # it is starting
                await trio.sleep(0.05)
            else:
                await self.node.start()

    async def _reset(self) -> None:
        self.cluster.net.reset_some(self.rng.choice((0.3, 1.0)))

    async def _break(self) -> None:
        self.cluster.net.reset_share = self.rng.uniform(0.05, 0.4)

    async def _cut(self) -> None:
        net = self.cluster.net
        for link in [each for each in net.links() if self.rng.random() < 0.5]:
            link.cut = True
        await trio.sleep(self.rng.expovariate(0.5))
        for link in net.links():
            link.cut = False

    async def _clog(self) -> None:
        for link in self.cluster.net.links():
            link.clogged_until = trio.current_time() + self.rng.expovariate(1.0)

    async def _kill(self) -> None:
        await self._crash(self.node.kill)

    async def _power(self) -> None:
        await self._crash(self.node.power_cut)

    async def _rot(self) -> None:
        """Decay is noticed before power fails: both at once may lose what was acked (R25: the
        flushed mark is not synced)."""
        self.crashes += 1
        self.node.kill()
        self._flip()
        while not self.node.running:
            await self.node.start()

    async def _stall(self) -> None:
        self.node.pace.stall = self.rng.uniform(0.1, 2.0)
        await trio.sleep(self.rng.expovariate(1.0))
        self.node.pace.stall = 0.0

    async def _fail_sync(self) -> None:
        self.node.platter.failing_syncs = 1
        await trio.sleep(self.rng.random())
        self.node.platter.failing_syncs = 0

    async def _fill(self) -> None:
        self.node.platter.full = True
        await trio.sleep(self.rng.expovariate(1.0))
        self.node.platter.full = False

    async def _lose_replies(self) -> None:
        self.node.keep.lost_replies = 0.5
        await trio.sleep(self.rng.expovariate(1.0))
        self.node.keep.lost_replies = 0.0

    async def _lose_metadata(self) -> None:
        self.node.keep.down = True
        await trio.sleep(self.rng.expovariate(0.5))
        self.node.keep.down = False

    async def _pause(self) -> None:
        """The process stands still, as far as others see: nothing comes in, out or on the disk."""
        seconds = self.rng.uniform(0.5, 4.0)
        for link in self.cluster.net.links():
            link.clogged_until = trio.current_time() + seconds
        self.node.pace.stall = seconds
        await trio.sleep(seconds)
        self.node.pace.stall = 0.0

    async def _step_clock(self) -> None:
        """The wall clock is wrong from now on, also over restarts; mostly it is ahead."""
        minutes = self.rng.choice((-30, 0, 1, 50, 24 * 60, 40 * 24 * 60))
        self.node.clock.skew_ms = minutes * 60_000

    async def _crash(self, die: Callable[[], None]) -> None:
        """The broker dies, sometimes again while it recovers, and comes back."""
        for _ in range(self.rng.choice((1, 1, 2))):
            self.crashes += 1
            die()
            await trio.sleep(self.rng.expovariate(2.0))
            with trio.move_on_after(self.rng.choice((0.002, 0.02, 5.0))):
                await self.node.start()
        if not self.node.running:
            await self.node.start()

    def _flip(self) -> None:
        """Flip a bit of a batch below the flushed mark: corruption, no torn tail (R25).

        Only of one that was acked: a retry of the others would be written again, behind later
        ones, because the broker cannot read any more that it has them.
        """
        acked = {(send.partition, send.offset) for send in self.history.acked}
        found = [
            (path, at, header, partition)
            for path, at, header, partition in flushed_batches(self.node)
            if all((partition, o) in acked for o in range(header.base_offset, header.next_offset))
        ]
        if not found:
            return
        path, at, header, partition = self.rng.choice(found)
        offsets = {(partition, o) for o in range(header.base_offset, header.next_offset)}
        if offsets & self.damaged:
            return
        self.damaged |= offsets
        bit = self.rng.randrange(header.size_bytes * 8)
        self.node.oracle.damage(path, at + bit // 8, 1 << bit % 8)


def flushed_batches(node: SimNode) -> list[tuple[str, int, BatchHeader, int]]:
    """File, position, header and partition of every batch that the broker knows to be durable."""
    found: list[tuple[str, int, BatchHeader, int]] = []
    disk = SimDisk(node.platter, Life("observer"))
    topics = f"{DATA_DIR}/topics"
    for name in disk.list(topics):
        key, folder = parse_partition_name(name), node.platter.find(f"{topics}/{name}")
        mark = read_mark(disk, f"{topics}/{name}")
        if key is None or mark is None or not isinstance(folder, Folder):
            continue
        for file, inode in sorted(folder.entries.items()):
            if file.endswith(".log") and isinstance(inode, Inode):
                path = f"{topics}/{name}/{file}"
                for at, header in batches(path, inode.content, header_seed(*key), node.oracle.rot):
                    if header.next_offset <= mark.offset:
                        found.append((path, at, header, key[1]))
    return found
