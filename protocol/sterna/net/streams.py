"""How many data connections a migration needs.

They do not make this implementation faster by themselves: one task at a time runs in a process, whatever
connection it is for, and the measured cost of a gibibyte is the same (interop/MECHANISMS.md). They help where
one connection is held up while others are not. Over a link of long delay that is its window: a kernel lets so
many bytes of a connection be under way and no more. And while pages follow a guest, it is the push.

The number is fixed for a session when it is accepted [STR-1]. So it is chosen by what is measured before, the
round trip of the connection that is there, and not by what the rounds show.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

# What more connections are to fill: a link of 10 Gbit/s.
WORTH_BYTES_S: Final = 1.25e9
# More than any such link needs that spans a continent. Each costs a handshake.
AUTO_MAX: Final = 8

_SEND_MEMORY: Final = Path("/proc/sys/net/ipv4/tcp_wmem")
_LINUX_DEFAULT_BYTES: Final = 4 << 20


def window_bytes(source: Path = _SEND_MEMORY) -> int:
    """How many bytes of one connection the kernel lets be under way at most."""
    try:
        return max(int(source.read_text().split()[2]), 1)
    except (OSError, ValueError, IndexError):
        return _LINUX_DEFAULT_BYTES


def enough_streams(
    rtt_s: float | None,
    *,
    pages_may_follow: bool,
    cap_bytes_s: float | None = None,
    window: int | None = None,
) -> int:
    """As many data connections as it takes.

    Args:
        rtt_s: round trip of the link, None if it is not known.
        pages_may_follow: pages may be sent after the guest runs at the destination.
        cap_bytes_s: no more than that is to be filled, however fast the link is; None for no cap.
        window: of one connection; by default the kernel's.
    """
    rate_bytes_s = min(WORTH_BYTES_S, cap_bytes_s or math.inf)
    needed = math.ceil((rtt_s or 0.0) * rate_bytes_s / (window or window_bytes()))
    if needed > 1:
        return min(needed, AUTO_MAX)
    return 1 if pages_may_follow else 0
