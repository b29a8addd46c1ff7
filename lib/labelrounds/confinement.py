"""Take from a process that reads untrusted files what it does not need: memory, time, files, the network.

What Linux lacks is left out: limits are everywhere, Landlock is from 5.13 on (TCP from 6.7, signals from 6.12) where
the distribution switches it on. Nothing taken here comes back.
"""

import ctypes
import os
import resource
import struct
from contextlib import suppress
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_NO_NEW_PRIVILEGES = 38
# What Landlock's versions, from the first on, know of besides reading: running programs, writing, making and removing.
_OTHERS = (0b1_1111_1111_0011, 1 << 13, 1 << 14, 0, 1 << 15)
_MAKE_AND_WRITE = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 14


def limit_resources(memory_bytes: int) -> None:
    """Limit what this process may allocate from now on, and the size of each file it writes; let it leave no dump.

    Its memory would be full of a patient's image, and a dump of it stays on the disk. Where memory runs out, it is this
    process that the kernel shall end.
    """
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, limit in (
        (resource.RLIMIT_AS, used + memory_bytes),
        (resource.RLIMIT_FSIZE, memory_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def limit_processor_time(seconds: float) -> None:
    """Let the kernel end this process after so many more seconds on the processor."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = int(spent.ru_utime + spent.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def confine_to(folder: Path) -> int:
    """Take away what Landlock can: files are written in ``folder`` alone, no program is started, no TCP used.

    Returns:
        The version of Landlock, 0 where there is none.
    """
    library = ctypes.CDLL(None, use_errno=True)
    version = max(0, library.syscall(_CREATE_RULESET, None, 0, 1))
    if not version or library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        return 0
    handled = sum(_OTHERS[:version])
    ruleset = struct.pack("3Q", handled, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = library.syscall(_CREATE_RULESET, ruleset, size, 0)
    place = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    rule = struct.pack("=Qi", handled & _MAKE_AND_WRITE, place)
    try:
        if library.syscall(_ADD_RULE, rules, 1, rule, 0) or library.syscall(_RESTRICT_SELF, rules, 0):
            return 0
    finally:
        os.close(place)
        os.close(rules)
    return version
