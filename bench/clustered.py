"""What three copies cost on one machine (P9): three brokers and an etcd share its processors.

    python -m tailrace.bench.clustered

Without an ``etcd`` on PATH it says so on stderr, and tells nothing. Paths: ``replicas-1`` and
``replicas-3`` (``send_many`` of 100 B records into three partitions, durability fsync, min_isr 2),
in turn, a second and more of each, and ``replicas-1-p50``, ``-p99``, ``replicas-3-p50``, ``-p99``
(single durable sends at 100/s, from their intended times). Processes are not pinned: there are more
of them than roles.
"""

from functools import partial

import anyio

from tailrace.bench.cluster import cluster, etcd_binary
from tailrace.bench.replicated import COPIES, measure
from tailrace.bench.touch import touch_disk, touch_memory
from tailrace.bench.workbench import Workbench, parser, say, workbench
from tailrace.bench.workload import Workload, percentiles

SIZE_BYTES = 100
RECORDS = 6_000_000  # a second and more, also without copies
PARTITIONS = 3
CALL_RECORDS = 10_000
TOUCH_BYTES = 4 * RECORDS * SIZE_BYTES  # what three copies take, with their headers and a rest


def tell(bench: Workbench, copies: int, rate: float, latencies: list[float]) -> None:
    path = f"replicas-{copies}"
    bench.tell(path, rate, "records/s", size_bytes=SIZE_BYTES, durable=True)
    found = percentiles(latencies)
    for share in ("p50", "p99"):
        bench.tell(f"{path}-{share}", found[share], "ms", size_bytes=SIZE_BYTES, durable=True)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--turns", type=int, default=2, help="of each number of copies")
    given = made.parse_args()
    if etcd_binary() is None:
        say("replicas: left out, there is no etcd on PATH (Debian: etcd-server)")
        return
    workload = Workload("produce", RECORDS, SIZE_BYTES, CALL_RECORDS, PARTITIONS, 1, "all")
    with workbench(given) as bench:
        touch = partial(touch_memory, bench.folder, TOUCH_BYTES)
        touch_disk(bench.folder, TOUCH_BYTES)
        with cluster(bench.folder) as url:
            for _ in range(given.turns):
                for copies in COPIES:
                    rate, latencies = anyio.run(
                        measure, url, workload, copies, bench.seconds, touch
                    )
                    tell(bench, copies, rate, latencies)


if __name__ == "__main__":
    main()
