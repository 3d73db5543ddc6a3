"""What of this process' descriptors a test leaves open: those count that were not there before it.

A count before and a count behind prove nothing. What earlier tests have left as garbage, or for a thread to
close, may go in between: the count falls by itself, and hides or fakes a leak.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator


def descriptors() -> frozenset[tuple[str, str]]:
    """Number and target of each that is open; that of the listing itself is closed already."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return frozenset(found)


@contextlib.contextmanager
def nothing_stays_open() -> Iterator[None]:
    """Fails where a descriptor is open behind it that was not before.

    Garbage is collected before, so that a number cannot be given again to one that looks the same. Behind it
    nothing is collected: what only a reference of a cycle holds is open still.
    """
    gc.collect()
    before = descriptors()
    yield
    left = descriptors() - before
    assert not left, f"left open: {sorted(left)}"
