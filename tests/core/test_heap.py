"""Pages of large blocks, kept while a job runs."""

from __future__ import annotations

import resource
import sys

import pytest
import torch

from slimline.core.heap import as_deployed, keep_heap, kept_heap, usual_heap

BLOCK = 48 * 2**20  # above what glibc ever keeps


@pytest.fixture(autouse=True)
def _glibc() -> None:
    if not keep_heap():
        pytest.skip("this C library has no such settings")
    usual_heap()


def faults() -> int:
    """Pages that the kernel had to hand out while a large block is taken and given back four times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(BLOCK, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(sys.platform != "linux", reason="counts the kernel's page faults")
def test_a_block_that_is_taken_again_has_its_pages_already() -> None:
    pages = BLOCK // resource.getpagesize()
    usual = faults()
    with kept_heap():
        torch.empty(BLOCK, dtype=torch.uint8).fill_(1)
        kept = faults()
        with as_deployed():
            deployed = faults()
        torch.empty(BLOCK, dtype=torch.uint8).fill_(1)
        again = faults()
    after = faults()
    assert kept < 0.1 * pages and again < 0.1 * pages
    assert min(usual, deployed, after) > 2 * pages, "each time anew"
