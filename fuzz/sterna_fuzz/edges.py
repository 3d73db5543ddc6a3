"""Limits, from both sides of the edge: what is as large as a limit is taken, one more is refused.

The limits that an endpoint announces are drawn, so that nothing but the announcement can decide; the limits
of the specification are what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from sterna.errors import RemoteProtocolError
from sterna.limits import BLANK_FACTOR, Limits
from sterna.registry import Encoding, ErrorCode, FrameType, Mode
from sterna.wire import FrameReader, PagesAnnounced, chunk_count, make_runs, unchecked
from sterna.wire.header import VERSION
from sterna.wire.records import (
    NO_RUNNER,
    Disk,
    FeatureChoice,
    FeatureOffer,
    Guest,
    Hello,
    Nic,
    PageRange,
    Pages,
    Record,
    Refuse,
    Region,
    RoundAck,
    State,
    Welcome,
)
from sterna_fuzz.drafts import SEQUENCE, with_field
from sterna_fuzz.target import Words

GRANULE_LOG2: Final = 12
_REGION: Final = Region(7, 0, 1 << 40)
_HELLO: Final = Hello(Mode.OPEN, (VERSION,), (), {}, bytes(16), 0, NO_RUNNER)
_WELCOME: Final = Welcome(VERSION, bytes(range(16)), bytes(32), (), {})
_GUEST: Final = Guest("guest", 0, 1, 0, (Region(0, 0, 4096),))
_STRANGE: Final = 0x7F00  # a type to be skipped

Make = Callable[[int], "Record | list[bytes]"]


@dataclass(frozen=True, slots=True)
class Edge:
    """A limit.

    Attributes:
        make: what is so large: a record, or frames that have no numbers yet.
        code: with which a frame that is too large is refused.
        most: the limit, where the specification sets it; None where it is announced, under the edge's name.
        unit: bytes that one more is.
        instead: with what the largest one that is allowed is refused all the same; None if it is taken.
    """

    make: Make
    code: ErrorCode
    most: int | None = None
    unit: int = 1
    instead: ErrorCode | None = None


def _pages(count: int, encoding: Encoding, *, every: int = 1) -> Pages:
    """A table of so many pages: one run, or with `every` above 1 one run a page."""
    first = [(0, count, encoding)] if every == 1 else [(each * every, 1, encoding) for each in range(count)]
    runs = make_runs(first, GRANULE_LOG2)
    return Pages(1, 1, _REGION.id, runs, np.zeros(chunk_count(runs, GRANULE_LOG2), "<u8"))


def _regions(count: int) -> Guest:
    return replace(_GUEST, regions=tuple(Region(each, each << 20, 4096) for each in range(count)))


def _state(total: int) -> State:
    return State(1, 0, 0, 3, 1, 0, total, 0, last=total == 1, data=b"x")


def _rejected(count: int) -> RoundAck:
    return RoundAck(1, 1, 0, 0, tuple(PageRange(_REGION.id, 2 * each, 1) for each in range(count)))


def _names(count: int) -> list[str]:
    return [f"n{each}" for each in range(count)]


_BAD: Final = ErrorCode.BAD_VALUE
EDGES: Final[Mapping[str, Edge]] = {
    "control_bytes": Edge(lambda n: [unchecked.frame(_STRANGE, bytes(n))], ErrorCode.LIMIT_CONTROL),
    "bulk_bytes": Edge(lambda n: _pages(n >> GRANULE_LOG2, Encoding.RAW), ErrorCode.LIMIT_BULK, unit=4096),
    "bulk_bytes of zeros": Edge(
        lambda n: _pages(BLANK_FACTOR * (n >> GRANULE_LOG2), Encoding.ZERO), ErrorCode.LIMIT_BULK, unit=4096
    ),
    "bulk_bytes of a header": Edge(
        lambda n: [unchecked.frame(FrameType.PAGES, bulk_bytes=n)],
        ErrorCode.LIMIT_BULK,
        instead=ErrorCode.MALFORMED,  # there is no table in it
    ),
    "batch_runs": Edge(lambda n: _pages(n, Encoding.ZERO, every=2), ErrorCode.LIMIT_RUNS),
    "rejected_runs": Edge(_rejected, ErrorCode.LIMIT_REJECTED),
    "regions": Edge(_regions, ErrorCode.LIMIT_REGIONS),
    "memory_bytes": Edge(
        lambda n: replace(_GUEST, regions=(Region(0, 0, n),)), ErrorCode.LIMIT_MEMORY, unit=4096
    ),
    "state_bytes": Edge(lambda n: replace(_GUEST, state_bytes=n), ErrorCode.LIMIT_STATE),
    "state_bytes of a section": Edge(_state, ErrorCode.LIMIT_STATE),
    "versions": Edge(
        lambda n: replace(_HELLO, versions=(VERSION, *range(2 << 16, (2 << 16) + n - 1))), _BAD, 16
    ),
    "features offered": Edge(
        lambda n: replace(_HELLO, features=tuple(FeatureOffer(each, False) for each in range(n))), _BAD, 64
    ),
    "features selected": Edge(
        lambda n: replace(_WELCOME, features=tuple(FeatureChoice(each) for each in range(n))), _BAD, 64
    ),
    "limits": Edge(lambda n: replace(_HELLO, limits={100 + each: 1 for each in range(n)}), _BAD, 64),
    "limits of WELCOME": Edge(
        lambda n: replace(_WELCOME, limits={100 + each: 1 for each in range(n)}), _BAD, 64
    ),
    "items of REFUSE": Edge(lambda n: Refuse(1, 0, tuple(_names(n)), ""), _BAD, 64),
    "CPU features": Edge(lambda n: replace(_GUEST, cpu_features=tuple(_names(n))), _BAD, 1024),
    "NICs": Edge(lambda n: replace(_GUEST, nics=tuple(Nic(each, bytes(6)) for each in _names(n))), _BAD, 64),
    "disks": Edge(
        lambda n: replace(_GUEST, disks=tuple(Disk(each, each, 1) for each in _names(n))), _BAD, 64
    ),
    "skipped frames in a row": Edge(lambda n: [unchecked.frame(_STRANGE)] * n, ErrorCode.LIMIT_RATE, 256),
}
_ANNOUNCED: Final = {
    "bulk_bytes of a header": "bulk_bytes",
    "bulk_bytes of zeros": "bulk_bytes",
    "state_bytes of a section": "state_bytes",
}


def check_edge(name: str, size: int) -> Words:
    """With a limit of `size`, or that of the specification: as much is taken, one more is refused."""
    edge = EDGES[name]
    limits, most = Limits(), edge.most
    if most is None:
        most = (size % 90 + 1) * edge.unit
        if name == "control_bytes":
            most = (1 << 16) + size  # less cannot be announced [LIM-7]
        limits = replace(limits, **{_ANNOUNCED.get(name, name): most})
    taken, refused = _end(edge.make(most), limits), _end(edge.make(most + edge.unit), limits)
    assert (taken and taken.code) is edge.instead, f"{most} are allowed: {taken}"
    assert refused is not None, f"{most + edge.unit} are taken, allowed are {most}"
    assert refused.code is edge.code, f"{refused} instead of {edge.code.name.lower()}"
    return (edge.code.name.lower(),)


def _end(what: Record | list[bytes], limits: Limits) -> RemoteProtocolError | None:
    """The error for a frame, or for frames, of a peer that knows these limits."""
    reader = FrameReader()
    reader.set_limits(limits)
    reader.set_regions({_REGION.id: _REGION})
    if not isinstance(what, list):
        bulk = what.bulk_bytes if isinstance(what, Pages) else 0
        what = [unchecked.frame(what.type, unchecked.body(what), bulk_bytes=bulk)]
    numbered = [with_field(frame, SEQUENCE, number) for number, frame in enumerate(what)]
    reader.receive_data(unchecked.preface() + b"".join(numbered))
    try:
        while (event := reader.next_event()) is not None:
            if isinstance(event, PagesAnnounced) and event.header.bulk_bytes:
                return None  # its bytes need not come
    except RemoteProtocolError as error:
        return error
    return None
