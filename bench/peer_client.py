"""One client process: ``python -m tailrace.bench.peer_client JOB``, run by the peers' own Python.

Its answer is the last line on stdout; a receiver says ``ready`` before it.
"""

import sys

from tailrace.bench.peer_catalogue import ACTIONS
from tailrace.bench.peer_job import dump_done, load_job


def main() -> None:
    job = load_job(sys.argv[1])
    action = ACTIONS[job.system][job.action]
    if job.action.startswith("consume"):
        action(job)  # the first reading finds memory untouched and code cold
    print(dump_done(action(job)), flush=True)


if __name__ == "__main__":
    main()
