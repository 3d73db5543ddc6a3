"""One attack of each class, at every place where an endpoint waits for its peer: what embedders run holds.

The other files attack the machines, which decide. Here the same is done to `sterna.Source` and
`sterna.Destination` over a link in memory: the pump, the last words and the closing are part of it, and the
memory of the whole process is measured from the attack on.

Published bugs of this class: Cloud Hypervisor said nothing of an error to its peer, and ended by assertion;
the others are with their classes.

[CON-65] [CON-66] [CON-67] [CON-68] [CON-69] [FRM-11] [FRM-14] [SEC-6] [TLS-20]
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from withstand_judge import judge
from withstand_siege import Siege, arrivals, besiege
from withstand_support import ROLES, recording

from sterna.core.tables import DestinationState, SourceState
from sterna.registry import ErrorCode, FrameType, Phase
from sterna.wire import records as r
from sterna.wire import unchecked

F, C = FrameType, ErrorCode
U32 = (1 << 32) - 1

PLACES = [(role, number) for role in ROLES for number in range(len(arrivals(role)))]
places = pytest.mark.parametrize(
    ("role", "number"),
    PLACES,
    ids=[f"{role}-{arrivals(role)[n].name}-{F(recording()[role][n].frame).name}" for role, n in PLACES],
)


async def bad_checksum(siege: Siege) -> None:
    raw = bytearray(siege.again(recording()[siege.role][0]))
    raw[31] ^= 1
    await siege.say(bytes(raw))


async def four_gigabytes(siege: Siege) -> None:
    await siege.say(siege.frame(F.PING, body_bytes=U32))


async def damaged_body(siege: Siege) -> None:
    await siege.say(siege.frame(F.PING, bytes(8), body_crc=1))


async def unknown_and_critical(siege: Siege) -> None:
    await siege.say(siege.frame(0x8FFF))


async def wrong_number(siege: Siege) -> None:
    await siege.say(siege.frame(F.PING, bytes(8), sequence=U32))


async def own_frame(siege: Siege) -> None:
    frame = F.PAGE_REQUEST if siege.role == "destination" else F.RELEASE
    body = unchecked.body(r.PageRequest(0, 0, 1) if siege.role == "destination" else r.Release(6))
    await siege.say(siege.frame(frame, body))


async def trailing(siege: Siege) -> None:
    await siege.say(siege.frame(F.PING, bytes(9)))


async def bad_text(siege: Siege) -> None:
    abort = unchecked.body(r.Abort(1, Phase.ANY, text=b"\xc0\xae"))  # type: ignore[arg-type]
    await siege.say(siege.frame(F.ABORT, abort))


async def flood(siege: Siege) -> None:
    frames = [siege.frame(0x7F00 + n % 256, b"grease") for n in range(300)]
    await siege.say(b"".join(frames))


async def reset(siege: Siege) -> None:
    siege.peer._outgoing.end(C.CONNECTION_LOST)


async def ragged(siege: Siege) -> None:
    siege.peer.end_ragged()


async def half_a_header(siege: Siege) -> None:
    await siege.say(siege.frame(F.PING, bytes(8))[:17])
    siege.peer._outgoing.end(None)


# Code, clause where there is one, and whether the peer can still be told.
ATTACKS: dict[str, tuple[Callable[[Siege], Awaitable[None]], ErrorCode, str | None, bool]] = {
    "header checksum": (bad_checksum, C.HEADER_CHECKSUM, "HDR-2", True),
    "four gigabytes": (four_gigabytes, C.LIMIT_CONTROL, None, True),
    "body checksum": (damaged_body, C.BODY_CHECKSUM, "HDR-10", True),
    "unknown and critical": (unknown_and_critical, C.UNKNOWN_CRITICAL, "FRM-6", True),
    "wrong number": (wrong_number, C.BAD_SEQUENCE, "HDR-6", True),
    "a frame of the other role": (own_frame, C.WRONG_DIRECTION, "CON-4", True),
    "trailing bytes": (trailing, C.TRAILING_BYTES, "FRM-2", True),
    "bad text": (bad_text, C.BAD_TEXT, "TXT-2", True),
    "flood": (flood, C.LIMIT_RATE, "FRM-8", True),
    "reset": (reset, C.CONNECTION_LOST, None, False),
    "an end without its exchange": (ragged, C.NOT_CLOSED, None, False),
    "an end inside a header": (half_a_header, C.TRUNCATED, "FRM-10", False),
}


@places
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack(role: str, number: int, name: str) -> None:
    """[CON-65] [FRM-14] One end, told to the peer if it can be; the guest is where it belongs."""
    attack, code, clause, told = ATTACKS[name]

    async def script(siege: Siege) -> None:
        await attack(siege)
        await trio.sleep_forever()

    siege, _ = besiege(role, number, script, measured=True)
    judge(siege, code, clause=clause, told=told)  # type: ignore[arg-type]
    assert siege.seconds < 5
    assert siege.growth_bytes < 512 * 1024


@places
def test_the_peer_ends_it(role: str, number: int) -> None:
    """[CON-68] ABORT is not answered, and its words are the peer's."""

    async def script(siege: Siege) -> None:
        words = unchecked.body(r.Abort(C.CANCELLED, Phase.ANY, text="enough"))
        await siege.say(siege.frame(F.ABORT, words))
        siege.peer._outgoing.end(None)
        await trio.sleep_forever()

    siege, _ = besiege(role, number, script, measured=True)
    judge(siege, C.CANCELLED, told=False, by_peer=True)  # type: ignore[arg-type]
    assert siege.seconds < 5


def test_every_class_of_error_is_among_the_places() -> None:
    """From the handshake to behind the commit, at both sides."""
    assert {SourceState.GREETING, SourceState.HANDED_OVER, SourceState.CLOSING} <= set(arrivals("source"))
    assert {DestinationState.IDLE, DestinationState.LOADED, DestinationState.RELEASED} <= set(
        arrivals("destination")
    )
