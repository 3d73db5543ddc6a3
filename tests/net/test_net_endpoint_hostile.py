"""Peers that send anything at all, and links that damage what passes: one coded end, in bounded time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
import trio
from endpoint_support import PARAMETERS, Migration, SourceGuest, Told, frames, welcome
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.abc import Clock
from trio.testing import MockClock

from sterna.core.events import Outcome, Result
from sterna.core.negotiate import offer
from sterna.errors import TransportError
from sterna.guest.simulated import SimulatedDestinationGuest
from sterna.limits import PREFACE_BYTES, Limits
from sterna.net.destination import Destination
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.registry import ErrorCode, FrameType, Mode
from sterna.wire import encode_preface, unchecked
from sterna.wire.records import NO_RUNNER, Abort, Accept, Bye, FeatureOffer, Hello, Ping, Ready, Refuse

HTTP = b"GET / HTTP/1.1\r\nHost: sterna\r\n\r\n"
TLS = bytes.fromhex("16030100c0010000bc0303") + bytes(200)
# The longest that anybody is waited for here: a handshake's deadline, the look again, flushing and closing.
BOUND_S = 20.0


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    """Every test takes it: pytest-trio looks for a clock among a test's arguments only."""
    return autojump_clock


def in_virtual_time(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """For Hypothesis, which wants a function that is not async."""
    trio.run(main, clock=MockClock(autojump_threshold=0))


def hello(**changes: object) -> Hello:
    offers = tuple(FeatureOffer(each.id, each.required, each.parameter) for each in offer())
    fields: dict[str, object] = {
        "mode": Mode.OPEN,
        "versions": (welcome().version,),
        "features": offers,
        "limits": Limits().to_wire(),
        "guest": b"g" * 16,
        "epoch": 0,
        "runner": NO_RUNNER,
    }
    return Hello(**{**fields, **changes})  # type: ignore[arg-type]


class Scripted:
    """One endpoint, and a peer that says what it is told and listens."""

    def __init__(self, side: str) -> None:
        self.near, self.peer = memory_transport_pair(latency_s=0.001)
        options = Options(clock=trio.current_time, grease=False)
        self.guest = SourceGuest(PARAMETERS)
        self.room = SimulatedDestinationGuest()
        self.endpoint: Source | Destination = (
            Source(self.guest, self.near, options=options)
            if side == "source"
            else Destination(lambda _: self.room, self.near, options=options)
        )
        self.told = Told()

    async def run(self, said: bytes, *, then: str = "wait") -> Result:
        """Say it, and then wait for the endpoint to end, end properly, or abort."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.endpoint.run)
            nursery.start_soon(self.told.listen, self.peer)
            if said:
                with suppress(TransportError):
                    await self.peer.send([said])
            if then == "end":
                self.peer._outgoing.end(None)
            elif then == "abort":
                self.peer._outgoing.end(ErrorCode.CONNECTION_LOST)
        assert trio.current_time() - began < BOUND_S
        result = self.endpoint.result
        assert result is not None
        assert result.outcome is Outcome.ROLLED_BACK
        assert self.guest.running
        assert not self.room.has_run
        assert self.near.closed
        return result

    def check_told(self, result: Result) -> None:
        """[CON-65] [CON-66]: the peer reads the same code."""
        last = self.told.last
        assert isinstance(last, Abort | Refuse)
        assert last.code == result.code


SIDES = pytest.mark.parametrize("side", ["source", "destination"])


@SIDES
@pytest.mark.parametrize(
    ("said", "code"),
    [
        (HTTP, ErrorCode.HTTP_ON_PLAIN),
        (TLS, ErrorCode.TLS_ON_PLAIN),
        (b"SSH-2.0-OpenSSH_9.9\r\n", ErrorCode.BAD_MAGIC),
        (bytes(1000), ErrorCode.BAD_MAGIC),
        (encode_preface().replace(b"\r\n", b"\n") + b"1", ErrorCode.TEXT_MODE_DAMAGE),
        (encode_preface() + bytes(32), ErrorCode.HEADER_CHECKSUM),
        (frames(unchecked.frame(0x8FFF)), ErrorCode.UNKNOWN_CRITICAL),
        (frames(unchecked.frame(FrameType.PING, b"123")), ErrorCode.MALFORMED),
        (frames(unchecked.frame(FrameType.PING, bytes(8), sequence=7)), ErrorCode.BAD_SEQUENCE),
        (frames(unchecked.frame(FrameType.PING, body_bytes=1 << 31)), ErrorCode.LIMIT_CONTROL),
        (frames(*[unchecked.frame(0x0FFF, sequence=n) for n in range(300)]), ErrorCode.LIMIT_RATE),
        (frames(Bye()), ErrorCode.UNEXPECTED_FRAME),
    ],
)
async def test_wrong_bytes_from_the_start(
    virtual_time: Clock, side: str, said: bytes, code: ErrorCode
) -> None:
    scripted = Scripted(side)
    result = await scripted.run(said)
    assert (result.code, result.by_peer) == (code, False)
    scripted.check_told(result)


@SIDES
@pytest.mark.parametrize("then", ["wait", "end", "abort"])
@pytest.mark.parametrize("count", [0, 1, PREFACE_BYTES, PREFACE_BYTES + 1, PREFACE_BYTES + 40])
async def test_a_peer_that_says_little(virtual_time: Clock, side: str, count: int, then: str) -> None:
    said = frames(hello() if side == "destination" else welcome())[:count]
    scripted = Scripted(side)
    result = await scripted.run(said, then=then)
    inside = count not in {0, PREFACE_BYTES}
    expected = {
        "wait": {ErrorCode.PHASE_DEADLINE},
        "end": {ErrorCode.TRUNCATED if inside else ErrorCode.CONNECTION_LOST},
        "abort": {ErrorCode.CONNECTION_LOST},
    }
    assert result.code in expected[then]
    if then == "wait":
        scripted.check_told(result)


async def test_no_common_version(virtual_time: Clock) -> None:
    scripted = Scripted("destination")
    result = await scripted.run(frames(hello(versions=(99 << 16,))))
    assert result.code is ErrorCode.NO_COMMON_VERSION
    assert isinstance(scripted.told.last, Refuse)
    scripted.check_told(result)


async def test_another_preface_version_is_no_reason(virtual_time: Clock) -> None:
    """It only says what its sender knows; HELLO decides [PRE-6]."""
    scripted = Scripted("destination")
    result = await scripted.run(unchecked.preface(major=99) + frames(hello())[PREFACE_BYTES:])
    assert result.code is ErrorCode.PEER_SILENT  # after a WELCOME


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([unchecked.frame(0x8FFF, sequence=1)], ErrorCode.UNKNOWN_CRITICAL),
        ([Ready(1)], ErrorCode.UNEXPECTED_FRAME),
        ([hello()], ErrorCode.WRONG_DIRECTION),
        ([Accept(0)], ErrorCode.BAD_VALUE),
        ([Ping(number) for number in range(40)], None),
        ([Refuse(0x0402, 9, ("memory",), "full")], ErrorCode.FULL),
        ([Abort(0x7777, 0)], ErrorCode.INTERNAL),
    ],
)
async def test_a_destination_that_misbehaves_after_welcome(
    virtual_time: Clock, said: list[Any], code: ErrorCode | None
) -> None:
    scripted = Scripted("source")
    result = await scripted.run(frames(welcome(), *said))
    if code is not None:
        assert result.code is code
    if not result.by_peer:
        scripted.check_told(result)


@SIDES
@settings(max_examples=60)
@given(data=st.data())
def test_any_bytes_end_in_one_code(side: str, data: st.DataObject) -> None:
    """[coded-refusal] Whatever comes, in whatever pieces."""
    start = data.draw(
        st.sampled_from((b"", encode_preface(), frames(welcome() if side == "source" else hello())))
    )
    said = start + data.draw(st.binary(max_size=200))
    then = data.draw(st.sampled_from(("wait", "end", "abort")))

    async def main() -> None:
        scripted = Scripted(side)
        result = await scripted.run(said, then=then)
        assert result.code is not None
        if then == "wait":
            scripted.check_told(result)

    in_virtual_time(main)


# ---- a link that damages ----


class Relay:
    """Between two endpoints: passes bytes on, in pieces of `piece`, and changes one byte on the way."""

    def __init__(self, direction: int, offset: int, mask: int, piece: int) -> None:
        self.near, first = memory_transport_pair()
        second, self.far = memory_transport_pair()
        self.sides: list[tuple[MemoryTransport, MemoryTransport]] = [(first, second), (second, first)]
        self._direction = direction
        self._offset = offset
        self._mask = mask
        self._piece = piece

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for direction in (0, 1):
                nursery.start_soon(self._pass_on, direction)

    async def _pass_on(self, direction: int) -> None:
        taken, given = self.sides[direction]
        buffer, passed = memoryview(bytearray(self._piece)), 0
        try:
            while count := await taken.receive_into(buffer):
                if direction == self._direction and 0 <= self._offset - passed < count:
                    buffer[self._offset - passed] ^= self._mask
                passed += count
                await given.send([bytes(buffer[:count])])
            given._outgoing.end(None)
        except (TransportError, trio.ClosedResourceError):
            for end in (taken, given):
                end.abort()


async def damaged(direction: int, offset: int, mask: int, piece: int) -> Migration:
    relay = Relay(direction, offset, mask, piece)
    quiet = {"grease": False}
    migration = Migration(
        ends=(relay.near, relay.far), source_options=quiet, destination_options=quiet, tick_s=0.1
    )
    await migration.run(relay.run)
    return migration


@settings(max_examples=40)
@given(
    direction=st.integers(0, 1),
    place=st.floats(0, 1),
    edge=st.booleans(),
    mask=st.integers(1, 255),
    piece=st.sampled_from((1000, 4096, 100_000)),
)
def test_damage_on_the_way_costs_pages_or_the_session_never_the_guest(
    direction: int, place: float, edge: bool, mask: int, piece: int
) -> None:
    """Checksums of header and body, hashes of pages, and the two digests leave no byte unwatched."""
    length = 3000 if edge or direction else 280_000

    async def main() -> None:
        migration = await damaged(direction, int(place * length), mask, piece)
        if Outcome.COMPLETED in migration.outcomes:
            assert migration.guest.image == migration.room.image

    in_virtual_time(main)
