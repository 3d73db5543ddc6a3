"""Scenarios of the matrix with data connections (chapter 9): something happens to one of them.

Which pages travel on which connection is the source's own business, and so is the order in which it opens
them. A fault is therefore put on the nth that comes, and at a place that each of them has.
"""

from __future__ import annotations

from typing import Final

from sterna.registry import FrameType
from sterna_interop.faults import HEADER_BYTES, End, MakeFault, Rechunk, Way, at_byte, at_frame, clean, late
from sterna_interop.matrix import BOTH, COMPLETED, PLAIN, ROLLED_BACK, TLS, Scenario, Transport

IN_PAGES: Final = 40_000  # a byte of the first pages of a data connection, behind TLS's handshake and ATTACH

LOST: Final = ("connection_lost", "not_closed", "truncated", "tls_failed")
STILL: Final = ("peer_silent", "peer_stalled", "phase_deadline")


def _scenario(
    number: int,
    title: str,
    clauses: str,
    fault: MakeFault | None,
    *codes: str,
    on: int = 2,
    streams: int = 2,
    transports: tuple[Transport, ...] = BOTH,
    deadline_s: float = 0.0,
) -> Scenario:
    """A row: what happens to the data connection number `on`, and with which codes it may end, if it does."""
    return Scenario(
        id=f"matrix-{number:03}",
        title=title,
        clauses=tuple(clauses.split()),
        transports=transports,
        fault=clean,
        data_fault=None if fault is None else (on, fault),
        ends=ROLLED_BACK if codes else COMPLETED,
        codes=frozenset(codes),
        streams=streams,
        deadline_s=deadline_s,
    )


def _byte(end: End | None = None) -> MakeFault:
    return at_byte(Way.TO_DESTINATION, IN_PAGES, end)


STREAMS: Final[tuple[Scenario, ...]] = (
    _scenario(
        40,
        "two data connections, and nothing in their way",
        "STR-1 STR-2 STR-7 STR-8 STR-9 RND-4 ATT-5 ATT-6",
        None,
    ),
    _scenario(
        41,
        "sixteen data connections, more than there are parts of the guest",
        "STR-2 STR-8 ATT-2",
        None,
        streams=16,
    ),
    _scenario(
        42,
        "one of two data connections is slow: the rounds' ends come before their pages",
        "STR-9 STR-13 RND-4",
        late(0.02),
    ),
    _scenario(
        43, "the same bytes in other pieces on one of two data connections", "FRM-13 HDR-6", Rechunk, on=1
    ),
    _scenario(
        44,
        "one of two data connections is lost in a round, and the others are not",
        "STR-14 CON-62 CON-63",
        _byte(End.RESET),
        *LOST,
    ),
    _scenario(
        45,
        "one of two data connections ends in a round as if it were over",
        "STR-14 CON-69 FRM-10 TLS-21",
        _byte(End.FIN),
        *LOST,
    ),
    _scenario(
        46,
        "one of two data connections is lost before its ATTACHED has come",
        "STR-2 STR-14 CON-62",
        at_frame(FrameType.ATTACHED, End.RESET),
        *LOST,
        transports=PLAIN,
    ),
    _scenario(
        47,
        "nothing passes any more on one of two data connections, from inside a round on",
        "STR-14 CON-74 CON-77",
        _byte(End.SILENCE),
        *STILL,
        on=1,
        deadline_s=1.0,
    ),
    _scenario(
        48,
        "a byte of a page changes on one of two data connections: that chunk is sent again",
        "CON-34 CON-35 RAK-4 MEM-3",
        at_frame(FrameType.PAGES, offset=9000, in_bulk=True),
        transports=PLAIN,
    ),
    _scenario(
        49,
        "a byte of a page table changes on one of two data connections",
        "HDR-10 CON-62",
        at_frame(FrameType.PAGES, offset=HEADER_BYTES + 30),
        "body_checksum",
        transports=PLAIN,
    ),
    _scenario(
        50,
        "a byte inside the TLS records of one of two data connections changes",
        "STR-14 CON-62",
        _byte(),
        *LOST,
        transports=TLS,
    ),
    _scenario(
        51,
        "a byte of ATTACH's token changes: that connection is refused, and its end is the session's",
        "ATT-3 STR-4 STR-14",
        at_frame(FrameType.ATTACH, offset=HEADER_BYTES + 20),
        "body_checksum",
        "bad_token",
        transports=PLAIN,
    ),
)
