"""What can go wrong, or only oddly, with data connections (chapter 9), at either side.

Most of it is legal: connections know no order among each other, and a stranger's ATTACH is nothing to the
session that it is for. Such a row has no code, and the migration is to be whole. The stranger is refused on
its own connection; `peer_lanes.attempt` sees to that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from sterna.registry import GREASE_FIRST, Phase
from sterna.wire import Abort, Attach, Attached, Ping, Region, Round, RoundAck, RoundEnd, unchecked
from sterna_interop import peer_acts as do
from sterna_interop.case import Wire
from sterna_interop.contract import Order, Role
from sterna_interop.misbehaviours import (
    DOS,
    ENDLESS_S,
    LOST,
    E,
    F,
    Misbehaviour,
    Rows,
    misbehaviour,
)
from sterna_interop.misbehaviours_source import a_page
from sterna_interop.peer import Peer
from sterna_interop.peer_destination import SESSION, TOKEN
from sterna_interop.peer_image import Image
from sterna_interop.peer_lanes import HANG_UP, LanePlan, attempt
from sterna_interop.peer_steps import Act, Call, End, Moment, Place, Raw, Say, Step, Wait

_ROUND: Final = Place(F.ROUND)
_AGAIN: Final = Place(F.ROUND, 2)
_END: Final = Place(F.ROUND_END)
_PAGES: Final = Place(F.PAGES)
_LATE: Final = Place(F.PAGES, 2)
_WRONG: Final = (E.BAD_TOKEN, E.UNEXPECTED_FRAME)  # an ATTACH at the wrong time: STR-4, or CON-3
_TWO: Final = LanePlan()
_PAGE_BYTES: Final = 4096
_WAIT_S: Final = 1.0  # what an endpoint is told about waiting; several connections take their time
# ABORT on a data connection has ended that one; that the session ends is said on the control connection.
_TOLD_THERE: Final[dict[str, object]] = {"by_peer": None, "mute": True}


def _on(place: Place, act: Act, lane: int = 2, **more: object) -> LanePlan:
    """The act is that of a data connection."""
    return LanePlan(lane=lane, place=place, act=act, **more)  # type: ignore[arg-type]


def of_streams() -> tuple[Misbehaviour, ...]:
    """What a source does with its data connections."""
    return tuple(each for table in (_attempts(), _orders(), _losses(), _frames()) for each in table)


def of_granted_streams() -> tuple[Misbehaviour, ...]:
    """What a destination does with those that it has asked for."""
    return tuple(each for table in (_grants(), _answers()) for each in table)


def _attempts() -> Rows:
    """Connections that have to be refused, while the session goes on."""

    def row(head: str, place: Place, /, *steps: Step, **more: object) -> Misbehaviour:
        return misbehaviour(Role.SOURCE, head, place, do.before(*steps), **{"lanes": _TWO} | more)

    token = attempt(E.BAD_TOKEN, generation=1, token=TOKEN)
    session = attempt(E.BAD_TOKEN, generation=1, session=SESSION)
    replaced = LanePlan(replaced=2)
    return [
        row(
            "stream-001 stream-wrong-token: attaches with another token [ATT-3 STR-4]", _ROUND, token, **LOST
        ),
        row("stream-002 stream-session: attaches to another session [ATT-3 STR-4]", _ROUND, session),
        row(
            "stream-003 stream-twice: attaches a connection that is attached already [STR-5]",
            *(_ROUND, attempt(E.BAD_TOKEN)),
        ),
        row(
            "stream-004 stream-old: attaches a connection that was replaced [STR-5 STR-12]",
            *(Place(F.ROUND_END, 2), attempt(E.BAD_TOKEN), attempt(E.BAD_TOKEN, generation=1)),
            lanes=replaced,
        ),
        row(
            "stream-005 stream-too-many: attaches more connections than were granted [ATT-2 STR-4]",
            *(_ROUND, attempt(E.BAD_VALUE, index=2)),
            **DOS,
        ),
        row(
            "stream-007 stream-early: attaches before there is a guest [STR-2 STR-4]",
            *(Place(F.GUEST), attempt(*_WRONG)),
        ),
        row(
            "stream-008 stream-in-round: replaces a connection in the middle of a round [STR-4 STR-12]",
            *(_END, attempt(*_WRONG, generation=1)),
        ),
        row(
            "stream-009 stream-after-running: attaches when the guest runs, and has its pages [STR-4 STR-15]",
            *(Place(F.RELEASE), attempt(*_WRONG, generation=1)),
        ),
        row(
            "stream-010 stream-after-release: attaches when all is over [STR-4]",
            *(Place(F.BYE), attempt(*_WRONG, generation=1)),
        ),
        row(
            "stream-011 stream-stranger: attaches with another certificate than the session's [STR-4 TLS-15]",
            *(_ROUND, attempt(generation=1, wire=Wire.STRANGER)),
            wire=Wire.TLS,
            **LOST,
        ),
        row(
            "stream-012 stream-plain: attaches without TLS [TLS-3 TLS-4]",
            *(_ROUND, attempt(generation=1, wire=Wire.NAKED)),
            wire=Wire.TLS,
            **LOST,
        ),
        row(
            "stream-013 stream-other-header: attaches under another number than its index [HDR-5]",
            *(_ROUND, attempt(E.BAD_HEADER, generation=1, stream=2)),
        ),
    ]


def _orders() -> Rows:
    """What may come in any order, does."""

    def row(head: str, lanes: LanePlan, /, **more: object) -> Misbehaviour:
        return misbehaviour(Role.SOURCE, head, None, None, lanes=lanes, **more)

    skipped = do.before(_raw(2, GREASE_FIRST, b"skip me"))
    return [
        row("stream-020 stream-honest: has two data connections [STR-1 STR-2 STR-8 ATT-4 ATT-6]", _TWO),
        row("stream-021 stream-sixteen: has sixteen data connections [STR-2 ATT-2]", LanePlan(count=16)),
        row(
            "stream-022 stream-end-first: ends rounds before their pages [STR-9 RND-4]",
            LanePlan(ends_first=True),
        ),
        row(
            "stream-023 stream-pages-first: sends pages before their rounds [STR-13]",
            LanePlan(pages_first=True),
            **LOST,
        ),
        row(
            "stream-024 stream-turns: binds pages to other connections at each barrier [STR-7 STR-10]",
            LanePlan(turns=True),
            **LOST,
        ),
        row(
            "stream-025 stream-replaced: replaces a connection at a barrier [STR-5 STR-6 STR-12 ATT-4]",
            LanePlan(replaced=2),
        ),
        row(
            "stream-026 stream-late: stops for a second on one connection, beside a fast one [STR-9 STR-14]",
            _on(_LATE, do.before(Wait(1.0)), ends_first=True),
        ),
        row(
            "stream-027 stream-skipped: has frames to be skipped on a data connection [STR-3 FRM-7 ATT-4]",
            _on(_PAGES, skipped),
        ),
        misbehaviour(
            Role.SOURCE,
            "stream-028 stream-ends-after-loaded: closes a data connection that nobody needs [STR-14]",
            *(Place(F.HANDOVER), do.before(HANG_UP)),
            lanes=_TWO,
        ),
    ]


def _losses() -> Rows:
    """A data connection that is lost is the session's loss."""

    def row(head: str, place: Place, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        return misbehaviour(Role.SOURCE, head, None, None, *codes, lanes=_on(place, act), **more)

    return [
        row(
            "stream-040 stream-cut: loses one data connection in a round [STR-14 CON-63]",
            *(_LATE, do.instead(End.RESET), E.CONNECTION_LOST),
            mute=True,
        ),
        row(
            "stream-041 stream-ends: ends one data connection properly in a round [STR-14 CON-69]",
            *(_LATE, do.instead(End.PROPER), E.CONNECTION_LOST),
            mute=True,
        ),
        row(
            "stream-042 stream-ends-in-frame: ends one data connection inside PAGES [STR-14 FRM-10]",
            *(_LATE, do.part(0.5, End.PROPER), E.TRUNCATED),
            mute=True,
        ),
        row(
            "stream-043 stream-still: never goes on with one data connection [CON-74 RND-4]",
            *(_LATE, do.instead(Wait(ENDLESS_S)), E.PHASE_DEADLINE),
            deadline_s=_WAIT_S,
            **DOS,
        ),
        row(
            "stream-044 stream-aborts: says ABORT on a data connection [STR-3 CON-63]",
            *(_LATE, do.instead(Say(Abort(E.CANCELLED, Phase.ROUNDS, text="enough"), stream=2))),
            E.CANCELLED,
            **_TOLD_THERE,
        ),
    ]


def _frames() -> Rows:
    """Frames that are wrong there."""
    bad = E.UNEXPECTED_FRAME

    def row(head: str, place: Place, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        return misbehaviour(Role.SOURCE, head, None, None, *codes, lanes=_on(place, act), **more)

    def control(head: str, place: Place, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        return misbehaviour(Role.SOURCE, head, place, act, *codes, lanes=_TWO, **more)

    def ends(change: Callable[[tuple[tuple[int, int], ...]], tuple[tuple[int, int], ...]]) -> Act:
        return do.alter(RoundEnd, lambda end: replace(end, last_sequences=change(end.last_sequences)))

    def again(moment: Moment) -> list[Step]:
        page = do.honest(moment)
        return [page, page]

    more = ends(lambda rows: (*rows[:-1], (rows[-1][0], rows[-1][1] + 1)))
    less = ends(lambda rows: (*rows[:-1], (rows[-1][0], rows[-1][1] - 1)))
    return [
        row("stream-060 stream-ping: says PING on a data connection [STR-3]", _PAGES, _says(Ping(1)), bad),
        row(
            "stream-061 stream-round-end: ends a round on a data connection [STR-3]",
            *(_LATE, _says(RoundEnd(1, 1, 0, 0)), bad),
        ),
        row(
            "stream-062 stream-round: begins a round on a data connection [STR-3]",
            *(_PAGES, _says(Round(1, 1, 1)), bad),
        ),
        row(
            "stream-063 stream-attach-again: says ATTACH in the middle of a data connection [ATT-1]",
            *(_PAGES, _says(Attach(SESSION, TOKEN, 1, 1)), bad),
        ),
        row(
            "stream-064 stream-other-lane: numbers a frame of one data connection as another's [HDR-5]",
            *(_PAGES, lambda moment: [replace(do.honest(moment), stream=1)], E.BAD_HEADER),
        ),
        row(
            "stream-065 stream-as-control: numbers a frame of a data connection as the control's [HDR-5]",
            *(_PAGES, lambda moment: [replace(do.honest(moment), stream=0)], E.BAD_HEADER),
        ),
        row(
            "stream-066 stream-gap: leaves out a number on a data connection [HDR-6]",
            *(_LATE, do.numbered(1), E.BAD_SEQUENCE),
            **LOST,
        ),
        row(
            "stream-067 stream-pages-twice: sends pages twice in a round [CON-27]",
            *(_PAGES, again, E.COUNT_MISMATCH),
            **DOS,
        ),
        row(
            "stream-068 stream-damage: damages a page table on a data connection [HDR-10]",
            *(_LATE, do.patch(40, b"\x55", repair=False), E.BODY_CHECKSUM),
        ),
        control(
            "stream-069 stream-control-as-data: numbers a control frame as a data connection's [HDR-5]",
            *(_END, lambda moment: [replace(do.honest(moment), stream=1)], E.BAD_HEADER),
        ),
        control(
            "stream-070 stream-pages-on-control: sends PAGES on the control connection [STR-1]",
            *(_END, do.before(Say(a_page(1, 1))), bad),
        ),
        control(
            "stream-071 stream-states-none: does not say which frames were the last [STR-8]",
            *(_END, ends(lambda _: ()), E.COUNT_MISMATCH),
            **LOST,
        ),
        control(
            "stream-072 stream-states-control: says that pages have come on stream 0 [STR-8 STR-9]",
            *(_END, ends(lambda rows: ((0, 1), *rows)), E.COUNT_MISMATCH),
        ),
        control(
            "stream-073 stream-states-less: states a frame before the last one [STR-8]",
            *(_END, less, E.COUNT_MISMATCH),
            **LOST,
        ),
        control(
            "stream-074 stream-states-more: states a frame that never comes [RND-4 CON-74]",
            *(_END, more, E.PHASE_DEADLINE),
            deadline_s=_WAIT_S,
            **DOS,
        ),
        control(
            "stream-075 stream-two-at-once: sends a page while it comes in on another connection [STR-18]",
            *(_ROUND, do.after(Call(_two_at_once)), bad),
            **LOST,
        ),
    ]


async def _two_at_once(peer: Peer) -> None:
    """A page that stops in its midst on the second connection, and comes whole on the first [STR-7]."""
    page = Image([Region(1, 0, _PAGE_BYTES)]).whole(1, 1, [(1, 0)])
    first, second = peer.lanes
    whole = Say(page.table, page.bulk, second.stream)
    await second.step(Raw(lambda number: whole.encode(number)[: -_PAGE_BYTES // 2], 0, is_last=True))
    await first.step(Wait(_WAIT_S))  # connections know no order, so it has to have come
    await first.say(page.table, page.bulk)


def _says(record: Ping | Round | RoundEnd | RoundAck | Attach) -> Act:
    """A frame of the second data connection, and then what is honest."""
    return do.before(Say(record, stream=2))


def _raw(stream: int, frame_type: int, body: bytes) -> Raw:
    return Raw(lambda number: unchecked.frame(frame_type, body, stream=stream, sequence=number))


_ATTACHED: Final = Place(F.ATTACHED)
_HEARD: Final = Place(F.PAGES, 2, heard=True)
_ORDER: Final = Order(rounds=2)


def _grants() -> Rows:
    """How many there are."""

    def row(head: str, granted: int, *codes: E) -> Misbehaviour:
        return misbehaviour(Role.DESTINATION, head, None, None, *codes, lanes=LanePlan(granted=granted))

    return [
        row("stream-101 stream-honest: takes two data connections [STR-1 STR-2 STR-8 ATT-1 ATT-5]", 2),
        row("stream-102 stream-fewer: takes fewer data connections than were offered [ACC-3 STR-2]", 1),
        row("stream-103 stream-none: takes no data connection of those that were offered [ACC-3 STR-1]", 0),
        misbehaviour(
            Role.DESTINATION,
            "stream-104 stream-more: asks for more data connections than were offered [ACC-3]",
            *(Place(F.ACCEPT), do.change(data_streams=3), E.NOT_SELECTED),
            lanes=LanePlan(),
        ),
        misbehaviour(
            Role.DESTINATION,
            "stream-105 stream-seventeen: asks for seventeen data connections [ACC-2]",
            *(Place(F.ACCEPT), do.change(data_streams=17), E.BAD_VALUE, E.NOT_SELECTED),
            lanes=LanePlan(),
        ),
    ]


def _answers() -> Rows:
    """What comes back on them."""

    def row(head: str, place: Place, act: Act, /, *codes: E, **more: object) -> Misbehaviour:
        lanes = LanePlan(place=place, act=act)
        return misbehaviour(Role.DESTINATION, head, None, None, *codes, lanes=lanes, order=_ORDER, **more)

    def says(moment: Moment, record: Ping | RoundAck | Abort) -> list[Step]:
        return [*moment.honest, Say(record, stream=moment.peer.stream)]

    refused = Abort(E.BAD_TOKEN, Phase.STREAMS, text="no")
    return [
        row(
            "stream-110 attached-other-index: answers ATTACH with another index [ATT-6]",
            *(_ATTACHED, do.alter(Attached, lambda one: replace(one, index=1 - one.index)), E.BAD_VALUE),
        ),
        row(
            "stream-111 attached-generation: answers ATTACH with another generation [ATT-6]",
            *(_ATTACHED, do.change(generation=1), E.BAD_VALUE),
        ),
        row(
            "stream-112 attached-far: has applied frames that were never sent [ATT-6]",
            *(_ATTACHED, do.change(last_sequence=5), E.BAD_VALUE),
            **LOST,
        ),
        row(
            "stream-113 attached-twice: answers ATTACH twice [STR-3]",
            *(_ATTACHED, do.twice(), E.UNEXPECTED_FRAME),
        ),
        row(
            "stream-114 attached-never: does not answer ATTACH [STR-2 CON-74]",
            *(_ATTACHED, do.instead(Wait(ENDLESS_S)), E.PHASE_DEADLINE),
            deadline_s=_WAIT_S,
            **DOS,
        ),
        row(
            "stream-115 attach-refused: refuses an ATTACH [STR-4 CON-62]",
            *(_ATTACHED, lambda moment: [Say(refused, stream=moment.peer.stream)], E.BAD_TOKEN),
            **_TOLD_THERE,
        ),
        row(
            "stream-116 stream-ack: says ROUND_ACK on a data connection [STR-3]",
            *(_HEARD, partial(says, record=RoundAck(1, 1, 0, 0)), E.UNEXPECTED_FRAME),
        ),
        row(
            "stream-117 stream-ping: says PING on a data connection [STR-3]",
            *(_HEARD, partial(says, record=Ping(1)), E.UNEXPECTED_FRAME),
        ),
        row(
            "stream-118 stream-cut: loses one data connection in a round [STR-14 CON-62]",
            *(_HEARD, do.after(End.RESET), E.CONNECTION_LOST),
            mute=True,
        ),
        row(
            "stream-119 stream-ends: ends one data connection properly in a round [STR-14 CON-69]",
            *(_HEARD, do.after(End.PROPER), E.CONNECTION_LOST),
            mute=True,
        ),
        row(
            "stream-120 stream-aborts: says ABORT on a data connection in a round [STR-3 CON-62]",
            *(_HEARD, partial(says, record=Abort(E.CANCELLED, Phase.ROUNDS, text="enough")), E.CANCELLED),
            **_TOLD_THERE,
        ),
        misbehaviour(
            Role.DESTINATION,
            "stream-121 stream-ends-after-loaded: closes a data connection that nobody needs [STR-14]",
            *(Place(F.RUNNING), do.before(HANG_UP)),
            lanes=_TWO,
        ),
    ]
