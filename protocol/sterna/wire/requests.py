"""Requests for pages, the other hot path: the same rules as `schema.PAGE_REQUEST`, with struct.

A guest waits for the answer, and Construct takes longer over these 24 bytes than the kernel to move them.
What is read or written here is certainly right; of everything else the schema tells what is wrong, and a
test holds the two against each other.
"""

from __future__ import annotations

import struct
from typing import Final

from sterna.wire.integrity import Buffer
from sterna.wire.page_rules import PAGE_SPACE
from sterna.wire.records import PageRequest
from sterna.wire.rules import Bounds

_LAYOUT: Final = struct.Struct("<IB3sQQ")
_RESERVED: Final = bytes(3)


def parse(body: Buffer, bounds: Bounds) -> PageRequest | None:
    """The request in a body that obeys every rule; None is no verdict."""
    if len(body) != _LAYOUT.size:
        return None
    region, urgent, reserved, first, count = _LAYOUT.unpack(body)
    if urgent > 1 or reserved != _RESERVED:
        return None
    request = PageRequest(region, first, count, urgent == 1)
    return request if _surely_right(request, bounds) else None


def build(request: PageRequest, bounds: Bounds) -> bytes | None:
    """The body of a request that obeys every rule; None is no verdict."""
    if request.urgent not in {False, True} or not _surely_right(request, bounds):
        return None
    try:
        return _LAYOUT.pack(request.region, request.urgent, _RESERVED, request.first, request.count)
    except struct.error:
        return None


def _surely_right(request: PageRequest, bounds: Bounds) -> bool:
    """FRM-17 and FRM-18."""
    end = request.first + request.count
    if not request.count or end > PAGE_SPACE:
        return False
    if bounds.regions is None:
        return True
    region = bounds.regions.get(request.region)
    return region is not None and end <= region.pages
