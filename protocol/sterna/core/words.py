"""Numbers as people read them: in verdicts, progress and tables.

Sizes are binary (memory is), rates decimal (links are). Machines read the plain numbers of `--json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_RATES: Final = ("B/s", "kB/s", "MB/s", "GB/s", "TB/s")


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    step = 0
    # Compared after rounding, or 1023.7 MiB would read "1024 MiB".
    while round(value) >= base and step < len(units) - 1:
        value /= base
        step += 1
    digits = f"{value:.0f}" if value >= 100 or step == 0 else f"{value:.1f}".removesuffix(".0")
    return f"{digits} {units[step]}"


def size_text(size_bytes: float) -> str:
    """A size, for example ``12.4 MiB``."""
    return _scaled(size_bytes, 1024, _SIZES)


def rate_text(rate_bytes_s: float) -> str:
    """A rate, for example ``2.1 GB/s``."""
    return _scaled(rate_bytes_s, 1000, _RATES)


def duration_text(seconds: float) -> str:
    """A duration, for example ``850 µs``, ``9 ms``, ``1.3 s``, ``12 min``."""
    if seconds < 0.00095:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.95:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def count_text(count: int, what: str) -> str:
    """So many of something whose plural ends in s, for example ``1 page``, ``2 pages``."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def times_text(count: int) -> str:
    """How often something was, for example ``once``, ``3 times``."""
    return "once" if count == 1 else f"{count} times"


def share_text(share: float) -> str:
    """A share of something, for example ``30 %``."""
    return f"{share * 100:.0f} %"
