"""Scenarios of the matrix in which pages follow the guest, and come early (13.3).

Whatever happens to the demand connection ends it alone: the session completes, and the guest is whole. Groups
are slow in nearly all of them, so that pages do come early. The relay knows the demand connection by its
number, which it does not see under TLS.
"""

from __future__ import annotations

from typing import Final

from sterna.registry import FrameType
from sterna_interop.contract import Outcome
from sterna_interop.faults import HEADER_BYTES, End, MakeFault, Rechunk, Way, at_byte, at_frame, clean, late
from sterna_interop.matrix import BOTH, COMPLETED, PLAIN, Ends, Scenario, Transport

SLOW: Final = late(0.02)  # every piece of what is on data connections
IN_FOURTH: Final = 4 * 4096  # a byte of what the source says on the demand connection: the fourth page's


def _scenario(
    number: int,
    title: str,
    clauses: str,
    demand: MakeFault,
    *,
    fault: MakeFault = clean,
    groups: MakeFault = SLOW,
    ends: Ends = COMPLETED,
    transports: tuple[Transport, ...] = PLAIN,
    deadline_s: float = 0.0,
    chooses: bool = False,
) -> Scenario:
    """A row: what happens to the demand connection."""
    return Scenario(
        id=f"matrix-{number:03}",
        title=title,
        clauses=tuple(clauses.split()),
        transports=transports,
        fault=fault,
        streams=1,
        follows=True,
        chooses=chooses,
        data_fault=(1, groups),
        demand_fault=demand,
        ends=ends,
        deadline_s=deadline_s,
    )


FOLLOWING: Final[tuple[Scenario, ...]] = (
    _scenario(
        52,
        "pages come early, and nothing is in their way",
        "PCY-7 PCY-26 PCY-27 PCY-28 PCY-31 PCY-32 PCY-34",
        clean,
        groups=clean,
        transports=BOTH,
    ),
    _scenario(
        53,
        "groups are late, so that a guest gets on by early pages",
        "PCY-28 PCY-31 PCY-32 PCY-33",
        clean,
    ),
    _scenario(
        54,
        "what passes on the demand connection is late: pages come early and with their groups at once",
        "PCY-31 PCY-32 PCY-33",
        late(0.01),
        groups=clean,
    ),
    _scenario(
        55,
        "the same bytes in other pieces on the demand connection, the first ones singly",
        "FRM-13 PCY-27",
        Rechunk,
    ),
    _scenario(
        56,
        "the demand connection is lost inside a page, and the others are not",
        "PCY-30 PCY-34 PCY-9",
        at_byte(Way.TO_DESTINATION, IN_FOURTH, End.RESET),
    ),
    _scenario(
        57,
        "the demand connection ends inside a page as if it were over",
        "PCY-30 PCY-34 PCY-9",
        at_byte(Way.TO_DESTINATION, IN_FOURTH, End.FIN),
    ),
    _scenario(
        58,
        "the demand connection ends inside a request",
        "PCY-30 PCY-9",
        at_byte(Way.TO_SOURCE, 300, End.FIN),
    ),
    _scenario(
        59,
        "nothing passes any more on the demand connection, from inside a page on",
        "PCY-30 PCY-13",
        at_byte(Way.TO_DESTINATION, IN_FOURTH, End.SILENCE),
    ),
    _scenario(
        60,
        "the destination loses the demand connection, and the source is not told",
        "PCY-30 PCY-9",
        at_byte(Way.TO_DESTINATION, IN_FOURTH, End.HALF),
    ),
    _scenario(
        61,
        "a byte of an early page changes: it is not the guest's, and comes with its group",
        "PCY-34 PCY-30",
        at_frame(FrameType.PAGES, offset=1000, in_bulk=True),
    ),
    _scenario(
        62,
        "a byte of a request for an early page changes",
        "HDR-10 PCY-30",
        at_frame(FrameType.PAGE_REQUEST, offset=HEADER_BYTES + 8),
    ),
    _scenario(
        63,
        "the demand connection is closed before its ATTACH has come",
        "PCY-30 PCY-26",
        at_frame(FrameType.ATTACH, End.RESET),
    ),
    _scenario(
        64,
        "the demand connection is closed before its ATTACHED has come",
        "PCY-30 PCY-26",
        at_frame(FrameType.ATTACHED, End.FIN),
    ),
    _scenario(
        65,
        "the control connection is lost while pages come early, and the demand connection goes with it",
        "PCY-30 CON-64 RES-13",
        clean,
        fault=at_frame(FrameType.PING, End.RESET, armed_by=FrameType.RUNNING),
        groups=late(0.1),
        ends=COMPLETED | {(Outcome.MOVED, Outcome.MOVED)},
        deadline_s=1.0,
    ),
    _scenario(
        66,
        "the source chooses: rounds, and behind them what they have left, by bitmap and early",
        "PCY-1 PCY-2 PCY-3 PCY-26 PCY-31 PCY-32",
        clean,
        chooses=True,
    ),
)
