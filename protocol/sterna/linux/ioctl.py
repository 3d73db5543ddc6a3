"""Building ioctl request numbers, as <asm-generic/ioctl.h> does."""

from __future__ import annotations

_WRITE = 1
_READ = 2


def _request(direction: int, kind: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | kind << 8 | number


def io(kind: int, number: int) -> int:
    """A request without an argument structure."""
    return _request(0, kind, number, 0)


def ior(kind: int, number: int, size: int) -> int:
    """A request whose structure the kernel writes."""
    return _request(_READ, kind, number, size)


def iow(kind: int, number: int, size: int) -> int:
    """A request whose structure the kernel reads."""
    return _request(_WRITE, kind, number, size)


def iowr(kind: int, number: int, size: int) -> int:
    """A request whose structure the kernel reads and writes."""
    return _request(_READ | _WRITE, kind, number, size)
