"""A process of its own is asked: what the allocator keeps is a matter of the whole process."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from tailrace.client.memory import keep_large_blocks

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_large_blocks()
for _ in range(5):
    [bytearray(1 << 20) for _ in range(4)]
before = faults()
for _ in range(25):
    [bytearray(1 << 20) for _ in range(4)]
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has it")
def test_large_blocks_are_used_again_without_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)
    assert int(done.stdout) < 2_560, "a tenth of the pages"
