"""Endpoint cases in which nobody does anything wrong: what an endpoint has to be able to do, and to bear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from sterna.registry import MAGIC, ErrorCode, Feature, FrameType, RegionKind, Transfer
from sterna.wire import FeatureOffer, Ping, Region, unchecked
from sterna_interop import peer_acts as do
from sterna_interop.case import Case, Level, Line, Play, Severity, Unexpected, Wire, completed, rolled_back
from sterna_interop.contract import Do, Order, Params, Role
from sterna_interop.guest import GuestSpec, SectionSpec, Write
from sterna_interop.peer_play import Script
from sterna_interop.peer_steps import Manner, Place, Say, Wait

_PAGE: Final = 1 << 12
_SMALL: Final = GuestSpec(
    regions=(Region(1, 0, 2 * _PAGE),), sections=(SectionSpec(33),), writes=((Write(1, 1, 1),),)
)
_SCATTERED: Final = GuestSpec(
    regions=tuple(Region(7 * number, number << 32, _PAGE) for number in range(1, 65)),
    writes=(tuple(Write(7 * number, 0, 1) for number in range(1, 65, 5)),),
)
_GRANULES: Final = tuple(
    GuestSpec(
        regions=(Region(1, 0, 1 << 20, log2), Region(2, 1 << 32, 1 << 18)),
        writes=((Write(1, 0, 3), Write(2, 5, 9)),),
    )
    for log2 in (13, 16)
)
_ZEROS: Final = GuestSpec(zero_one_in=1, writes=())
_NO_ZEROS: Final = GuestSpec(zero_one_in=0)
_LONG_NAME: Final = GuestSpec(name="é" * 127 + "x")  # 255 bytes, and fewer characters
_SECTIONS: Final = GuestSpec(
    sections=(SectionSpec(0), SectionSpec(200_000, instance=1), *(SectionSpec(9, vcpu=v) for v in range(60))),
    vcpus=60,
    state_bytes=1 << 20,
)
_BESIDE: Final = GuestSpec(
    regions=(
        Region(1, 0, 1 << 16),
        Region(2, 1 << 32, 1 << 16, kind=RegionKind.DEVICE, transfer=Transfer.SHARED),
        Region(5, 1 << 33, 1 << 16, kind=RegionKind.ROM),
    ),
    writes=((Write(1, 0, 3),),),
)
_TINY: Final = {"control_bytes": 1 << 16, "bulk_bytes": _PAGE, "batch_runs": 1, "regions": 2}
_PROGRESS: Final[Mapping[Role, Mapping[str, object]]] = {
    Role.SOURCE: {
        "features": (FeatureOffer(Feature.ENCODING_ZERO), FeatureOffer(Feature.PROGRESS, parameter=20))
    },
    Role.DESTINATION: {"features": (Feature.ENCODING_ZERO, Feature.PROGRESS)},
}
# What the honest peer checks on the way, and the report afterwards.
_WHOLE: Final = {
    Role.SOURCE: "CON-44 CON-50 CON-57 PNG-4 MEM-16 STR-10 VRS-1 CON-2",
    Role.DESTINATION: "CON-44 CON-57 PNG-4 HEL-7 CON-13 CON-48 MEM-12 CMP-5 STR-1 VRS-1 CON-2",
}
_LATE: Final = {Role.SOURCE: FrameType.GUEST, Role.DESTINATION: FrameType.READY}


def _clean(
    number: int,
    peer: Role,
    title: str,
    clauses: str,
    *,
    plan: Mapping[str, object] | None = None,
    manner: Manner | None = None,
    **more: object,
) -> Case:
    """A whole migration; the numbers of cases in which the source is tested begin at 101."""
    number += 100 if peer is Role.DESTINATION else 0
    script = Script(role=peer, plan=dict(plan or {}), manner=manner or Manner(), completes=True)
    return Case(
        id=f"honest-{number:03}",
        title=title,
        clauses=tuple(clauses.split()),
        role=peer.other,
        play=script,
        expect=completed(peer.other),
        **more,  # type: ignore[arg-type]
    )


def _of_both(peer: Role) -> tuple[Case, ...]:
    """What is the same whoever is tested."""
    tiny = replace(Manner().limits, **_TINY)
    return (
        _clean(
            1, peer, "A whole migration", "CON-44 CON-50 CON-57 PNG-4 MEM-16", severity=Severity.DATA_LOSS
        ),
        _clean(
            2, peer, "A frame to be skipped before every other", "FRM-7 FRM-9", manner=Manner(grease=True)
        ),
        _clean(3, peer, "Bytes come one at a time", "FRM-13", manner=Manner(piece_bytes=1), guest=_SMALL),
        _clean(4, peer, "Bytes come in pieces of 61", "FRM-13", manner=Manner(piece_bytes=61), guest=_SMALL),
        _clean(5, peer, "A PING before every frame", "PNG-1 CON-1 CON-6", manner=Manner(pings=True)),
        _clean(6, peer, "PROGRESS is selected", "PRG-1 PRG-2 CON-80 NEG-8", plan=_PROGRESS[peer]),
        _clean(7, peer, "A guest of 64 regions", "GST-2 GST-3 MEM-13", guest=_SCATTERED),
        _clean(8, peer, "Pages of 8 KiB beside such of 4", "GST-4 MEM-1", guest=_GRANULES[0]),
        _clean(9, peer, "Pages of 64 KiB beside such of 4", "GST-4 MEM-1", guest=_GRANULES[1]),
        _clean(10, peer, "A guest of nothing but zeros", "MEM-6 CON-18", guest=_ZEROS),
        _clean(11, peer, "A guest without a page of zeros", "MEM-6", guest=_NO_ZEROS),
        _clean(12, peer, "A name of 255 bytes, not all of them ASCII", "TXT-1 TXT-4", guest=_LONG_NAME),
        _clean(
            *(13, peer, "Sections of no byte, of many bytes, and one for each of 60 vCPUs"),
            *("STA-3 STA-4 STA-5 MEM-18",),
            guest=_SECTIONS,
        ),
        _clean(14, peer, "Shared memory between copied regions", "GST-8 PGS-3 MEM-13", guest=_BESIDE),
        _clean(
            *(15, peer, "The smallest limits that a peer may have", "LIM-6 LIM-7 HDR-9 PGS-5 PGS-21"),
            manner=Manner(limits=tiny),
            limits=_TINY,
            guest=_SMALL,
        ),
        _clean(16, peer, "A guest that is not written to", "CON-45", guest=GuestSpec(writes=())),
        _burst(peer),
        _heartbeat(peer),
        _preface(peer),
        _over_tls(peer),
    )


def _burst(peer: Role) -> Case:
    pings = [Say(Ping(0xB0000000 + number)) for number in range(16)]
    script = Script(role=peer, place=Place(_LATE[peer]), act=do.before(*pings), completes=True)
    return replace(_clean(17, peer, "Sixteen PINGs at once", "PNG-1 CON-79"), play=script)


def _heartbeat(peer: Role) -> Case:
    script = Script(
        role=peer,
        manner=Manner(heartbeat_s=60.0),  # or the endpoint would have PINGs of ours to answer
        place=Place(_LATE[peer]),
        act=do.before(Wait(2.5)),
        hears=FrameType.PING,
        completes=True,
    )
    case = _clean(
        18, peer, "A peer that needs 2.5 seconds hears PING meanwhile", "CON-76", level=Level.SHOULD
    )
    return replace(case, play=script)


async def _expect_preface(line: Line, told: Params) -> None:
    """[PRE-1] The endpoint's preface comes though we are silent."""
    del told
    data = b""
    while len(data) < len(MAGIC) and (more := await line.receive()):
        data += more
    if not data.startswith(MAGIC):
        raise Unexpected("a preface", f"{data[: len(MAGIC)]!r}")


def _preface(peer: Role) -> Case:
    number = 19 if peer is Role.SOURCE else 119
    return Case(
        id=f"honest-{number:03}",
        title="The endpoint sends its preface without waiting for ours",
        clauses=("PRE-1",),
        role=peer.other,
        play=_expect_preface,
        expect=rolled_back("connection_lost", role=peer.other),
    )


def _over_tls(peer: Role) -> Case:
    return replace(
        _clean(20, peer, "A whole migration over TLS", "TLS-4 TLS-5 TLS-8 TLS-20 VRS-8"), wire=Wire.TLS
    )


# ---- what belongs to a role ----


def _destination_tested() -> tuple[Case, ...]:
    peer = Role.SOURCE
    return (
        _clean(21, peer, "A switchover without any round before it", "CON-37 CON-45", plan={"rounds": 0}),
        _clean(22, peer, "Nine rounds, most of them without a page", "CON-20 CON-27", plan={"rounds": 9}),
        _clean(
            *(23, peer, "Twice not ready, then ready", "CON-22 CON-23 CON-38 CON-42"),
            plan={"not_ready": 2},
            order=Order(Do.NOT_READY, times=2),
        ),
    )


def _source_tested() -> tuple[Case, ...]:
    peer = Role.DESTINATION
    return (
        _clean(
            *(21, peer, "Rejected pages are sent again", "RAK-4 CON-34 MEM-9"),
            plan={"rejects": 120},
            order=Order(rounds=2),
            severity=Severity.DATA_LOSS,
        ),
        _clean(22, peer, "Four rounds are wished for", "CON-20 CON-26 CON-27", order=Order(rounds=4)),
        _clean(23, peer, "Twice not ready, then ready", "CON-22 CON-42", plan={"not_ready": 2}),
        _clean(24, peer, "Zero pages are not selected", "NEG-7 NEG-11 PGS-9", plan={"features": ()}),
        _cancelled(25, "Cancelled before the first round", Order(Do.CANCEL)),
        _cancelled(26, "Cancelled after a round", Order(Do.CANCEL, round=1, rounds=3)),
    )


def _cancelled(number: int, title: str, order: Order) -> Case:
    return Case(
        id=f"honest-1{number}",
        title=title,
        clauses=("CON-71", "CON-62"),
        role=Role.SOURCE,
        play=Script(role=Role.DESTINATION, answers=frozenset({ErrorCode.CANCELLED})),
        expect=rolled_back("cancelled", role=Role.SOURCE),
        order=order,
        severity=Severity.SPLIT_BRAIN,
    )


# ---- TLS ----


async def _say_nothing(line: Line, told: Params) -> None:
    """The endpoint has to see for itself whom it has before it."""
    del told
    await line.until_end()


async def _speak_plain(line: Line, told: Params) -> None:
    """What is no TLS record, where TLS is due."""
    del told
    await line.send(unchecked.preface())
    await line.until_end()


def _tls(tested: Role) -> tuple[Case, ...]:
    def case(number: int, title: str, clauses: str, wire: Wire, play: Play, *codes: str) -> Case:
        number += 100 if tested is Role.SOURCE else 0
        also = rolled_back("tls_failed", role=tested, by_peer=None)
        return Case(
            id=f"tls-{number:03}",
            title=title,
            clauses=tuple(clauses.split()),
            role=tested,
            play=play,
            expect=rolled_back(*codes, role=tested, by_peer=None),
            tolerated=((also, "the TLS library has not told more"),),
            wire=wire,
            severity=Severity.SPLIT_BRAIN,
        )

    stranger = "The peer has a certificate of the right authority, and another identity"
    return (
        case(1, stranger, "TLS-15 TLS-16", Wire.STRANGER, _say_nothing, "peer_not_listed"),
        case(2, "The peer speaks no TLS", "TLS-9 TLS-3", Wire.NAKED, _speak_plain, "plain_on_tls"),
        case(
            3,
            "The peer speaks TLS, and another protocol in it",
            "TLS-8",
            Wire.OTHER_ALPN,
            _say_nothing,
            "wrong_alpn",
        ),
    )


HONEST: Final = (
    *_of_both(Role.SOURCE),
    *_destination_tested(),
    *_of_both(Role.DESTINATION),
    *_source_tested(),
)
TLS: Final = (*_tls(Role.DESTINATION), *_tls(Role.SOURCE))
