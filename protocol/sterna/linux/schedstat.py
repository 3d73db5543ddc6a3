"""How long a thread has run, and how long it could have but waited for a processor (proc(5), schedstat)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_SCHEDSTAT: Final = Path("/proc/thread-self/schedstat")


def thread_ns() -> tuple[int, int]:
    """Nanoseconds that the calling thread has run, and has waited; zeros if the kernel does not tell."""
    try:
        ran, waited, _ = map(int, _SCHEDSTAT.read_text().split())
    except (OSError, ValueError):
        return 0, 0
    return ran, waited
