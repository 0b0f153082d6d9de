"""``make bench-guard``: has the code become slower? By instructions, which no neighbour disturbs.

    python -m tailrace.bench.guard BASELINE [--update] [--tolerance 3]

Counts, with callgrind, the instructions of the pieces of work in ``micro`` and compares each
with the baseline, a file of JSON that belongs to one machine's Python and libraries. Exit code 0:
none takes more than it may; 1: one does; 2: it could not be compared. ``--update`` writes the
baseline anew, and it is committed with whatever moved it. Instructions are not time: what waits
for memory or the kernel more often is not seen here.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

TOLERANCE = 3.0  # percent; runs of the same code differ by 0.2, those of ``decode`` by 1
LIBRARIES = ("anyio", "lz4", "msgpack", "trio", "xxhash")
SECONDS_MAX = 280.0
OK, MOVED, UNKNOWN = 0, 1, 2
_TRIGGER = re.compile(r"^desc: Trigger: dump (\w+):(\d+)$", re.MULTILINE)
_TOTALS = re.compile(r"^totals: (\d+)$", re.MULTILINE)

Counts = Mapping[str, int]  # instructions of one operation, by the name of the work


@dataclass(frozen=True)
class Baseline:
    """What was counted, and with what."""

    made_with: Mapping[str, str]
    instructions: Counts

    def dumps(self) -> str:
        document = {"made_with": self.made_with, "instructions": self.instructions}
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def loads(cls, text: str) -> "Baseline":
        """ValueError if it is none."""
        try:
            found = json.loads(text)
            return cls(dict(found["made_with"]), dict(found["instructions"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no baseline: {error!r}") from error


def counts_of(dumps: Sequence[str]) -> dict[str, int]:
    """Of one operation each, from callgrind's dumps; dumps that nobody asked for are left out."""
    found: dict[str, int] = {}
    for text in dumps:
        trigger, totals = _TRIGGER.search(text), _TOTALS.search(text)
        if trigger is not None and totals is not None:
            found[trigger[1]] = int(totals[1]) // int(trigger[2])
    return found


def compare(before: Counts, now: Counts, tolerance: float) -> tuple[list[str], list[str]]:
    """A line for each piece of work, and which of them take more than they may (in percent)."""
    lines, moved = list[str](), list[str]()
    for name in sorted({*before, *now}):
        if name not in before or name not in now:
            lines.append(f"{name:9} {'new' if name in now else 'gone'}: update the baseline")
            moved.append(name)
            continue
        change = 100 * (now[name] / before[name] - 1)
        said = "" if abs(change) <= tolerance else "  SLOWER" if change > 0 else "  faster: update?"
        if change > tolerance:
            moved.append(name)
        lines.append(f"{name:9} {before[name]:12,} -> {now[name]:12,}  {change:+6.1f} %{said}")
    return lines, moved


def made_with() -> dict[str, str]:
    """What else an instruction count depends on."""
    of_machine = {"machine": platform.machine(), "python": platform.python_version()}
    return {**of_machine, **{name: version(name) for name in LIBRARIES}}


def count() -> dict[str, int]:
    """Run the work under callgrind; RuntimeError if that fails."""
    with tempfile.TemporaryDirectory(prefix="tailrace-guard-") as folder:
        command = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"]
        command += [f"--callgrind-out-file={folder}/out", sys.executable]
        command += ["-m", "tailrace.bench.micro"]
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, env=environ, timeout=SECONDS_MAX)
        if done.returncode:
            raise RuntimeError(f"the work failed under valgrind, exit code {done.returncode}")
        return counts_of([path.read_text() for path in Path(folder).iterdir()])


def main() -> int:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("baseline", type=Path)
    made.add_argument("--update", action="store_true", help="write the baseline anew")
    made.add_argument("--tolerance", type=float, default=TOLERANCE, help="percent")
    given = made.parse_args()
    if shutil.which("callgrind_control") is None:
        print("needs valgrind: apt-get install valgrind", file=sys.stderr)
        return UNKNOWN
    before = None
    if not given.update:
        before = Baseline.loads(given.baseline.read_text())
        if before.made_with != made_with():
            print(f"the baseline was made with {dict(before.made_with)}", file=sys.stderr)
            print(f"and this is {made_with()}: use --update on the commit before", file=sys.stderr)
            return UNKNOWN
    now = count()
    if before is None:
        given.baseline.write_text(Baseline(made_with(), now).dumps())
    lines, moved = compare(before.instructions if before else now, now, given.tolerance)
    print("instructions of one operation\n" + "\n".join(lines))
    if moved:
        print(f"more than {given.tolerance:g} % up: {', '.join(moved)}")
    return MOVED if moved else OK


if __name__ == "__main__":
    sys.exit(main())
