"""Scenarios of the matrix in which nothing happens to the connection: it is what both are told that differs.

Orders, limits and guests that one implementation alone would hardly get wrong, and two may read differently.
"""

from __future__ import annotations

from typing import Final

from sterna.registry import Transfer
from sterna.wire.records import Region
from sterna_interop.contract import Do, Order, Role
from sterna_interop.faults import clean
from sterna_interop.guest import GuestSpec, SectionSpec, Write
from sterna_interop.matrix import BOTH, COMPLETED, PLAIN, ROLLED_BACK, Scenario

TOLD: Final[tuple[Scenario, ...]] = (
    Scenario(
        id="matrix-028",
        title="the source is told to cancel before the first round",
        clauses=("CON-71", "CON-62"),
        transports=BOTH,
        fault=clean,
        orders={Role.SOURCE: Order(Do.CANCEL)},
        ends=ROLLED_BACK,
        codes=frozenset({"cancelled"}),
    ),
    Scenario(
        id="matrix-029",
        title="the source is told to cancel after a round",
        clauses=("CON-71", "CON-62"),
        transports=PLAIN,
        fault=clean,
        orders={Role.SOURCE: Order(Do.CANCEL, round=1)},
        ends=ROLLED_BACK,
        codes=frozenset({"cancelled"}),
    ),
    Scenario(
        id="matrix-030",
        title="the destination refuses the guest for want of memory",
        clauses=("CON-11", "CON-15", "CON-62"),
        transports=BOTH,
        fault=clean,
        orders={Role.DESTINATION: Order(Do.REFUSE, code="full")},
        ends=ROLLED_BACK,
        codes=frozenset({"full"}),
    ),
    Scenario(
        id="matrix-031",
        title="the destination is not ready twice, and then it is",
        clauses=("CON-22", "CON-38", "CON-42"),
        transports=PLAIN,
        fault=clean,
        orders={Role.DESTINATION: Order(Do.NOT_READY, times=2)},
        ends=COMPLETED,
    ),
    Scenario(
        id="matrix-032",
        title="the destination's guest does not accept its state",
        clauses=("CON-51", "CON-62", "CON-63"),
        transports=PLAIN,
        fault=clean,
        orders={Role.DESTINATION: Order(Do.REJECT_STATE)},
        ends=ROLLED_BACK,
        codes=frozenset({"state_rejected"}),
    ),
    Scenario(
        id="matrix-033",
        title="the destination takes one page and one run at a time, and state in pieces",
        clauses=("LIM-6", "PGS-5", "PGS-21", "HDR-7", "HDR-9"),
        transports=BOTH,
        fault=clean,
        limits={Role.DESTINATION: {"control_bytes": 1 << 16, "bulk_bytes": 1 << 12, "batch_runs": 1}},
        guest=GuestSpec(state_bytes=1 << 20, sections=(SectionSpec(200_000), SectionSpec(0, instance=1))),
        ends=COMPLETED,
    ),
    Scenario(
        id="matrix-034",
        title="the guest does not fit what the destination takes",
        clauses=("LIM-6", "GST-9"),
        transports=PLAIN,
        fault=clean,
        limits={Role.DESTINATION: {"memory_bytes": 1 << 20}},
        ends=ROLLED_BACK,
        codes=frozenset({"limit_mismatch", "limit_memory"}),
    ),
    Scenario(
        id="matrix-035",
        title="large granules, where a chunk is one page or four",
        clauses=("MEM-1", "MEM-6", "PGS-10"),
        transports=PLAIN,
        fault=clean,
        guest=GuestSpec(
            regions=(Region(1, 0, 1 << 20, 16), Region(2, 1 << 32, 1 << 20, 14)),
            writes=((Write(1, 3, 5), Write(2, 0, 63)), (Write(2, 7, 1),)),
        ),
        ends=COMPLETED,
    ),
    Scenario(
        id="matrix-036",
        title="many regions of one page each, not in the order of their ids",
        clauses=("MEM-13", "GST-2"),
        transports=PLAIN,
        fault=clean,
        guest=GuestSpec(
            regions=tuple(Region(1000 - number, number << 32, 4096) for number in range(64)),
            writes=tuple((Write(1000 - number, 0, 1),) for number in range(0, 64, 9)),
        ),
        ends=COMPLETED,
    ),
    Scenario(
        id="matrix-037",
        title="a guest of zeros that nobody writes to, and a region that stays where it is",
        clauses=("MEM-8", "MEM-11", "CON-45"),
        transports=PLAIN,
        fault=clean,
        guest=GuestSpec(
            regions=(Region(1, 0, 1 << 20), Region(2, 1 << 32, 1 << 16, transfer=Transfer.SHARED)),
            zero_one_in=1,
            writes=(),
            sections=(),
        ),
        ends=COMPLETED,
    ),
    Scenario(
        id="matrix-038",
        title="the last epochs that there are",
        clauses=("HEL-8", "RUN-1", "CMP-4"),
        transports=PLAIN,
        fault=clean,
        epoch=(1 << 64) - 3,
        ends=COMPLETED,
    ),
)
