"""Pages of large blocks, kept while a job runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from slimline.core.heap import keep_heap, usual_heap

PAGES = 48 * 2**20 // 4096  # of a block above what glibc ever keeps
SCRIPT = """
import json, resource, torch
from slimline.core.heap import as_deployed, kept_heap

def take():
    torch.empty(48 * 2**20, dtype=torch.uint8).fill_(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        take()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / 4096

usual = faults()
with kept_heap():
    for _ in range(20):  # holes between small objects are a bit too small at first
        take()
    kept = faults()
    with as_deployed():
        take()
    for _ in range(20):
        take()
    again = faults()
print(json.dumps([usual, kept, again, faults()]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the kernel's page faults")
def test_a_block_that_is_taken_again_has_its_pages_already() -> None:
    """In a process of its own: what others left free in a heap is taken before anything is asked for."""
    if not keep_heap():
        pytest.skip("this C library has no such settings")
    usual_heap()
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    usual, kept, again, after = json.loads(done.stdout)
    assert kept < 0.1 * PAGES and again < 0.1 * PAGES
    assert usual > 3 * PAGES and after > PAGES, "each time anew, or nearly"


HOLES = """
import json, torch
from slimline.core import heap

heap.keep_heap()
blocks = [torch.ones(2**20, dtype=torch.uint8) for _ in range(400)]
del blocks[:-1]  # the last one holds the top of the heap
held = [heap._held()]
for heap.MUCH in (1.0, 0.0):
    heap.give_back()
    held.append(heap._held())
print(json.dumps(held))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what the process holds")
def test_holes_go_back_where_the_process_holds_much() -> None:
    if not keep_heap():
        pytest.skip("this C library has no such settings")
    usual_heap()
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    before, little, much = json.loads(done.stdout)
    freed = 300 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert before - little < freed / 10 and little - much > freed
