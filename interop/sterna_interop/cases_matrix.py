"""The scenarios of the matrix: what happens to the connection of two endpoints, and which ends are right.

Cuts and changed bytes are placed by frame where the connection is plain, so that they come where they hurt
whatever an implementation's frames are like; under TLS a byte is counted, and only its phase is certain.
"""

from __future__ import annotations

from typing import Final

from sterna.registry import FrameType
from sterna_interop.cases_following import FOLLOWING
from sterna_interop.cases_streams import STREAMS
from sterna_interop.cases_told import TOLD
from sterna_interop.contract import Outcome
from sterna_interop.faults import HEADER_BYTES, End, Rechunk, Way, at_byte, at_frame, clean, late
from sterna_interop.matrix import BOTH, COMPLETED, PLAIN, ROLLED_BACK, TLS, Scenario

IN_ROUNDS: Final = 300_000  # a byte of the first round, which has three quarters of 1.25 MiB

LOST: Final = frozenset({"connection_lost", "not_closed", "truncated", "tls_failed", "peer_silent"})
SILENT: Final = frozenset({"peer_silent", "peer_stalled", "phase_deadline"})


FAULTS: Final[tuple[Scenario, ...]] = (
    Scenario(
        id="matrix-001",
        title="a migration with nothing in its way",
        clauses=(
            "MEM-11",
            "MEM-14",
            "CON-57",
            "PNG-4",
        ),
        transports=BOTH,
        fault=clean,
        ends=COMPLETED,
    ),
    Scenario(
        id="matrix-002",
        title="every piece of the stream is late",
        clauses=("FRM-13",),
        transports=BOTH,
        fault=late(0.01),
        ends=COMPLETED,
    ),
    Scenario(
        id="matrix-003",
        title="the same bytes in other pieces, the first ones singly",
        clauses=("FRM-13",),
        transports=BOTH,
        fault=Rechunk,
        ends=COMPLETED,
    ),
    Scenario(
        id="matrix-004",
        title="the connection is lost inside the source's first bytes",
        clauses=(
            "CON-62",
            "CON-63",
            "PRE-7",
        ),
        transports=BOTH,
        fault=at_byte(Way.TO_DESTINATION, 7, End.RESET),
        ends=ROLLED_BACK,
        codes=LOST,
    ),
    Scenario(
        id="matrix-005",
        title="the connection is lost inside the destination's first answer",
        clauses=(
            "CON-62",
            "CON-63",
        ),
        transports=BOTH,
        fault=at_byte(Way.TO_SOURCE, 60, End.RESET),
        ends=ROLLED_BACK,
        codes=LOST,
    ),
    Scenario(
        id="matrix-006",
        title="the connection is lost inside the first round",
        clauses=(
            "CON-62",
            "CON-63",
            "CON-69",
        ),
        transports=BOTH,
        fault=at_byte(Way.TO_DESTINATION, IN_ROUNDS, End.RESET),
        ends=ROLLED_BACK,
        codes=LOST,
    ),
    Scenario(
        id="matrix-007",
        title="the stream ends inside the first round as if it were over",
        clauses=(
            "FRM-10",
            "CON-69",
        ),
        transports=PLAIN,
        fault=at_byte(Way.TO_DESTINATION, IN_ROUNDS, End.FIN),
        ends=ROLLED_BACK,
        codes=frozenset({"truncated"}),
    ),
    Scenario(
        id="matrix-039",
        title="the stream ends inside the first round as if it were over, without the close_notify of TLS",
        clauses=(
            "TLS-21",
            "CON-69",
        ),
        transports=TLS,
        fault=at_byte(Way.TO_DESTINATION, IN_ROUNDS, End.FIN),
        ends=ROLLED_BACK,
        codes=frozenset({"not_closed"}),
    ),
    Scenario(
        id="matrix-008",
        title="nothing passes any more from inside the first round on",
        clauses=(
            "CON-75",
            "CON-77",
        ),
        transports=BOTH,
        fault=at_byte(Way.TO_DESTINATION, IN_ROUNDS, End.SILENCE),
        ends=ROLLED_BACK,
        codes=SILENT,
        deadline_s=1.0,
    ),
    Scenario(
        id="matrix-009",
        title="the destination loses the connection inside the first round, and the source is not told",
        clauses=(
            "CON-62",
            "CON-75",
            "CON-77",
        ),
        transports=BOTH,
        fault=at_byte(Way.TO_DESTINATION, IN_ROUNDS, End.HALF),
        ends=ROLLED_BACK,
        codes=SILENT | LOST,
        deadline_s=1.0,
    ),
    Scenario(
        id="matrix-010",
        title="a byte inside the TLS records of the first round changes",
        clauses=(
            "CON-69",
            "CON-62",
        ),
        transports=TLS,
        fault=at_byte(Way.TO_DESTINATION, IN_ROUNDS),
        ends=ROLLED_BACK,
        codes=LOST,
    ),
    Scenario(
        id="matrix-011",
        title="a byte of the TLS handshake changes",
        clauses=("CON-62",),
        transports=TLS,
        fault=at_byte(Way.TO_SOURCE, 60),
        ends=ROLLED_BACK,
        codes=LOST,
    ),
    Scenario(
        id="matrix-012",
        title="a byte of a page changes while the guest runs: that chunk is rejected and sent again",
        clauses=(
            "CON-34",
            "CON-35",
            "RAK-4",
            "MEM-3",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.PAGES, offset=9000, in_bulk=True),
        ends=COMPLETED,
    ),
    Scenario(
        id="matrix-013",
        title="a byte of a page changes in the blackout",
        clauses=(
            "CON-47",
            "MEM-4",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.PAGES, offset=9000, in_bulk=True, armed_by=FrameType.READY),
        ends=ROLLED_BACK,
        codes=frozenset({"page_hash"}),
    ),
    Scenario(
        id="matrix-014",
        title="a byte of a page table changes",
        clauses=("HDR-10",),
        transports=PLAIN,
        fault=at_frame(FrameType.PAGES, offset=HEADER_BYTES + 30),
        ends=ROLLED_BACK,
        codes=frozenset({"body_checksum"}),
    ),
    Scenario(
        id="matrix-015",
        title="a byte of a header changes",
        clauses=("HDR-2",),
        transports=PLAIN,
        fault=at_frame(FrameType.ROUND_END, offset=8),
        ends=ROLLED_BACK,
        codes=frozenset({"header_checksum"}),
    ),
    Scenario(
        id="matrix-016",
        title="a byte of the state changes",
        clauses=("HDR-10",),
        transports=PLAIN,
        fault=at_frame(FrameType.STATE, offset=HEADER_BYTES + 50),
        ends=ROLLED_BACK,
        codes=frozenset({"body_checksum"}),
    ),
    Scenario(
        id="matrix-017",
        title="a byte of a ROUND_ACK changes",
        clauses=(
            "HDR-10",
            "CON-62",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.ROUND_ACK, offset=HEADER_BYTES),
        ends=ROLLED_BACK,
        codes=frozenset({"body_checksum"}),
    ),
    Scenario(
        id="matrix-018",
        title="the connection is lost before the first ROUND_ACK",
        clauses=(
            "CON-62",
            "CON-63",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.ROUND_ACK, End.RESET),
        ends=ROLLED_BACK,
        codes=LOST,
    ),
    Scenario(
        id="matrix-019",
        title="the connection is lost between SWITCHOVER and READY",
        clauses=(
            "CON-39",
            "CON-62",
            "CON-63",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.READY, End.RESET),
        ends=ROLLED_BACK,
        codes=LOST,
    ),
    Scenario(
        id="matrix-020",
        title="the connection is lost in the blackout, before SEAL",
        clauses=(
            "CON-62",
            "CON-63",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.SEAL, End.RESET),
        ends=ROLLED_BACK,
        codes=LOST,
    ),
    Scenario(
        id="matrix-021",
        title="the connection is lost between SEAL and LOADED",
        clauses=(
            "CON-62",
            "CON-63",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.LOADED, End.RESET),
        ends=ROLLED_BACK,
        codes=LOST,
    ),
    Scenario(
        id="matrix-022",
        title="HANDOVER is lost on its way: the source cannot know, and stays paused",
        clauses=(
            "ONE-20",
            "CON-63",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.HANDOVER, End.RESET),
        ends=frozenset({(Outcome.UNDECIDED, Outcome.ROLLED_BACK)}),
        codes=LOST,
    ),
    Scenario(
        id="matrix-023",
        title="a byte of HANDOVER changes: no permission has come, and the source cannot know",
        clauses=(
            "HDR-10",
            "ONE-20",
            "CON-63",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.HANDOVER, offset=HEADER_BYTES),
        ends=frozenset({(Outcome.UNDECIDED, Outcome.ROLLED_BACK)}),
        codes=frozenset({"body_checksum"}),
    ),
    Scenario(
        id="matrix-024",
        title="the connection is lost between HANDOVER and RUNNING: the guest runs at the destination",
        clauses=(
            "ONE-20",
            "ONE-30",
            "CON-64",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.RUNNING, End.RESET),
        ends=frozenset({(Outcome.UNDECIDED, Outcome.MOVED)}),
        codes=LOST,
    ),
    Scenario(
        id="matrix-025",
        title="the connection is lost after RUNNING, before COMPLETE",
        clauses=(
            "CON-64",
            "CMP-2",
            "ONE-38",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.COMPLETE, End.RESET),
        ends=frozenset({(Outcome.MOVED, Outcome.MOVED)}),
        codes=LOST,
    ),
    Scenario(
        id="matrix-026",
        title="the connection is lost after COMPLETE, before RELEASE",
        clauses=(
            "CON-64",
            "CON-70",
        ),
        transports=PLAIN,
        fault=at_frame(FrameType.RELEASE, End.RESET),
        ends=frozenset({(Outcome.COMPLETED, Outcome.MOVED), (Outcome.MOVED, Outcome.MOVED)}),
    ),
    Scenario(
        id="matrix-027",
        title="the connection is lost behind the source's BYE",
        clauses=("CON-70",),
        transports=PLAIN,
        fault=at_frame(FrameType.BYE, End.RESET, after=True),
        ends=COMPLETED,
    ),
)

SCENARIOS: Final[tuple[Scenario, ...]] = (*FAULTS, *TOLD, *STREAMS, *FOLLOWING)
