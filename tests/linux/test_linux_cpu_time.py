"""The CPU time of processes: ours, one that has ended, and one that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from sterna.linux.cpu_time import children_cpu_s, process_cpu_s, thread_cpu_s

NOBODY = (1 << 22) + 1  # more than the kernel ever gives
BUSY = "import time\nwhile time.process_time() < 0.2: pass"


def test_of_a_process_also_when_it_has_ended() -> None:
    assert 0 < process_cpu_s(os.getpid()) <= time.process_time()
    before = children_cpu_s(os.getpid())
    process = subprocess.Popen([sys.executable, "-S", "-c", BUSY])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_cpu_s(process.pid) >= 0.2
    assert children_cpu_s(os.getpid()) == before
    process.wait()
    assert children_cpu_s(os.getpid()) - before >= 0.15  # in ticks
    for ask in (process_cpu_s, children_cpu_s):
        with pytest.raises(OSError, match=r"."):
            ask(NOBODY)


def test_of_a_thread() -> None:
    pid = os.getpid()
    while time.thread_time() < 0.05:
        pass
    assert 0.02 <= thread_cpu_s(pid, pid) <= time.process_time()
    with pytest.raises(OSError, match=r"."):
        thread_cpu_s(pid, NOBODY)
