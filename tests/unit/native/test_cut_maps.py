"""Mapped files that are cut short: in a process of its own, for what is set is set for the whole process."""

import subprocess
import sys

PROGRAM = """
import mmap, os, tempfile
from nydusd.native import survive_cut_maps
told = os.eventfd(0, os.EFD_NONBLOCK)
survive_cut_maps(told)
with tempfile.TemporaryFile() as file:
    file.truncate(3 * mmap.PAGESIZE)
    mapped = mmap.mmap(file.fileno(), 0)
    mapped[:] = b"x" * len(mapped)
    file.truncate(mmap.PAGESIZE)
    assert mapped[0] == ord("x")
    assert mapped[mmap.PAGESIZE :] == bytes(2 * mmap.PAGESIZE)
    assert os.eventfd_read(told) == 2
print("alive")
"""


def test_pages_behind_the_new_end_of_a_mapped_file_are_zeros_and_are_counted():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=60)
    assert (done.stdout, done.returncode) == (b"alive\n", 0), done.stderr
