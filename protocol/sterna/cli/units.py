"""Parameter types of the commands, above all sizes, rates and durations: ``256MiB``, ``50MiB/s``, ``300ms``.

The unit is always written, without a space, as the standards spell it: a number alone would mean bytes to
one reader and mebibytes to the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Annotated, Final, Literal, TypeVar

from cyclopts import Parameter, Token

from sterna.limits import CHUNK_BYTES, DOWNTIME_LEAST_S, DOWNTIME_MOST_S, STREAMS_MAX

T = TypeVar("T")

_SIZE_UNITS: Final = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_DURATION_UNITS: Final = {"us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1), "min": Decimal(60)}

# 19 digits are more than any size needs, and keep a hostile number from costing time.
_QUANTITY: Final = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)([A-Za-z]*)", re.ASCII)
SIZE_MAX: Final = 1 << 60
DURATION_MAX_S: Final = 86400.0


def _quantity(text: str, units: Sequence[str], example: str) -> tuple[Decimal, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a number with a unit: write for example {example}")
    number, unit = match.groups()
    if unit in units:
        return Decimal(number), unit
    if not unit:
        raise ValueError(f"{text!r} has no unit: write for example {example}")
    alike = [known for known in units if known.lower() == unit.lower()]
    hint = f"did you mean {number}{alike[0]}?" if alike else f"the units are {', '.join(units)}"
    raise ValueError(f"{unit[:40]!r} is not a unit here: {hint}")


def parse_streams(text: str) -> int | None:
    """A number of data connections, None for ``auto``.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    if text == "auto":
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 3 or int(text) > STREAMS_MAX:
        raise ValueError(f"{text[:40]!r} is no number of data connections: write auto, or 0 to {STREAMS_MAX}")
    return int(text)


def format_streams(count: int | None) -> str:
    """As `parse_streams` reads it."""
    return "auto" if count is None else str(count)


def parse_size(text: str) -> int:
    """Bytes, from for example ``256MiB`` or ``1.5GiB``.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    number, unit = _quantity(text, tuple(_SIZE_UNITS), "256MiB")
    size_bytes = number * _SIZE_UNITS[unit]
    if size_bytes != int(size_bytes):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    if size_bytes > SIZE_MAX:
        raise ValueError(f"{text!r} is more than {format_size(SIZE_MAX)}")
    return int(size_bytes)


def parse_rate(text: str) -> int:
    """Bytes a second, from for example ``50MiB/s``.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    size, slash, per = text.partition("/")
    if slash + per != "/s":
        raise ValueError(f"{text[:40]!r} is not a rate: write for example 50MiB/s")
    return parse_size(size)


def parse_duration(text: str) -> float:
    """Seconds, from for example ``300ms``, ``1.5s``, ``2min``.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    number, unit = _quantity(text, tuple(_DURATION_UNITS), "300ms")
    seconds = float(number * _DURATION_UNITS[unit])
    if seconds > DURATION_MAX_S:
        raise ValueError(f"{text!r} is more than a day")
    return seconds


def parse_cap(text: str) -> int:
    """Bytes a second to which a link is held; a chunk at least.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    rate_bytes_s = parse_rate(text)
    if rate_bytes_s < CHUNK_BYTES:
        raise ValueError(f"{text!r} is slower than any migration is: {format_rate(CHUNK_BYTES)} is the least")
    return rate_bytes_s


def parse_downtime(text: str) -> float:
    """Seconds for which a guest may stand still.

    Raises:
        ValueError: what is wrong, and what to write instead.
    """
    seconds = parse_duration(text)
    if not DOWNTIME_LEAST_S <= seconds <= DOWNTIME_MOST_S:
        span = " to ".join(map(format_duration, (DOWNTIME_LEAST_S, DOWNTIME_MOST_S)))
        raise ValueError(f"{text!r} is no time to aim at: it is from {span}")
    return seconds


def format_size(size_bytes: int) -> str:
    """The shortest text that `parse_size` reads as exactly `size_bytes`; core.words has approximations."""
    exact = [(size_bytes // factor, unit) for unit, factor in _SIZE_UNITS.items() if size_bytes % factor == 0]
    number, unit = min(exact)
    return f"{number}{unit}" if size_bytes else "0B"


def format_rate(rate_bytes_s: int) -> str:
    """The shortest text that `parse_rate` reads as exactly `rate_bytes_s`."""
    return f"{format_size(rate_bytes_s)}/s"


def format_duration(seconds: float) -> str:
    """A text that `parse_duration` reads as `seconds`, to the microsecond."""
    microseconds = round(seconds * 1e6)
    for unit, factor in (("min", 60_000_000), ("s", 1_000_000), ("ms", 1000)):
        if microseconds and microseconds % factor == 0:
            return f"{microseconds // factor}{unit}"
    return f"{microseconds}us"


def _parameter(parse: Callable[[str], T], show: Callable[[T], str], metavar: str) -> Parameter:
    def convert(_type: object, tokens: Sequence[Token]) -> T:
        return parse(tokens[0].value)

    return Parameter(converter=convert, metavar=metavar, show_default=show)


Size = Annotated[int, _parameter(parse_size, format_size, "SIZE")]
Rate = Annotated[int, _parameter(parse_rate, format_rate, "RATE")]
Cap = Annotated[int, _parameter(parse_cap, format_rate, "RATE")]
Duration = Annotated[float, _parameter(parse_duration, format_duration, "TIME")]
Downtime = Annotated[float, _parameter(parse_downtime, format_duration, "TIME")]
Streams = Annotated[int | None, _parameter(parse_streams, format_streams, "N")]
Packing = Literal["off", "auto", "always"]  # the values of `sterna.net.options.Compress`
Json = Annotated[bool, Parameter(negative=(), show_default=False, help="one JSON object on stdout.")]
