"""The CPU time of other processes, as the kernel counts it.

A process's own is in clock_gettime(2) by its number, to the nanosecond, also when it has ended and nobody has
waited for it; that of its children that were waited for is in /proc/PID/stat, in ticks, and that of a thread
in /proc/PID/task/TID/schedstat.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

_CHILDREN: Final = slice(13, 15)  # cutime and cstime, counted from the state behind the command's name
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")


def process_cpu_s(pid: int) -> float:
    """Seconds of all threads of a process, those included that have ended.

    Raises:
        OSError: there is no such process.
    """
    return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) makes it


def children_cpu_s(pid: int) -> float:
    """Seconds of the children for whose end a process has waited, and of theirs.

    Raises:
        OSError: there is no such process.
    """
    _, _, fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    return sum(int(ticks) for ticks in fields.split()[_CHILDREN]) / _TICKS_A_SECOND


def thread_cpu_s(pid: int, tid: int) -> float:
    """Seconds of a thread.

    Raises:
        OSError: there is no such thread.
    """
    return int(Path(f"/proc/{pid}/task/{tid}/schedstat").read_text().split()[0]) / 1e9
