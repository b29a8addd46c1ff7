"""Freed memory is kept for what comes next, and given back when asked."""

import subprocess
import sys

import pytest

from labelrounds import heap

# Fifty activations of 40 MB, one after the other: in a process of its own, as the setting is a process's.
ACTIVATIONS = """
import psutil, resource, sys, torch
from labelrounds import heap
if sys.argv[1] == "keep":
    heap.keep_freed()
megabytes = lambda: psutil.Process().memory_info().rss / 1e6
torch.ones(1)
before, faults = megabytes(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.ones(10_000_000)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
kept = megabytes() - before
heap.give_back()
print(faults, round(kept), round(megabytes() - before))
"""

pytestmark = pytest.mark.skipif(heap._library() is None, reason="the C library of this machine is not glibc")


def measured(how: str) -> tuple[int, int, int]:
    done = subprocess.run([sys.executable, "-c", ACTIVATIONS, how], capture_output=True, text=True, check=True)
    faults, kept, left = map(int, done.stdout.split())
    return faults, kept, left


def test_memory_is_paid_for_once_and_given_back():
    taken_anew, given_back_at_once, _ = measured("as it comes")
    taken_once, kept, left = measured("keep")
    assert taken_once < taken_anew / 3
    assert given_back_at_once < 20 and kept >= 35 and left < 20
