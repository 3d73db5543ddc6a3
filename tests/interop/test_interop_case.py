"""What a case expects, and the line that it plays on."""

from __future__ import annotations

import pytest
import trio

from sterna.errors import TransportError
from sterna.net.memory import memory_transport_pair
from sterna_interop.case import Ends, Line, Unexpected, completed, rolled_back
from sterna_interop.contract import GuestState, Outcome, Report, Role


@pytest.mark.parametrize(
    ("ends", "report", "difference"),
    [
        (completed(Role.SOURCE), Report(outcome=Outcome.COMPLETED, guest=GuestState.NONE), ""),
        (
            completed(Role.SOURCE),
            Report(outcome=Outcome.COMPLETED, guest=GuestState.RUNNING),
            "expected guest none, got guest running",
        ),
        (
            rolled_back("bad_magic", "truncated", role=Role.SOURCE),
            Report(outcome=Outcome.ROLLED_BACK, guest=GuestState.RUNNING, code="internal"),
            "expected code bad_magic or truncated, got code internal",
        ),
        (
            completed(Role.DESTINATION),
            Report(outcome=Outcome.COMPLETED, guest=GuestState.RUNNING, code="internal"),
            "expected code none, got code internal",
        ),
        (
            rolled_back("full", role=Role.DESTINATION, by_peer=True),
            Report(outcome=Outcome.ROLLED_BACK, guest=GuestState.NONE, code="full"),
            "expected by_peer True, got by_peer False",
        ),
        (
            rolled_back(role=Role.DESTINATION),
            Report(outcome=Outcome.UNDECIDED, guest=GuestState.NONE),
            "expected outcome rolled_back, got outcome undecided",
        ),
        (Ends(), Report(outcome=Outcome.UNDECIDED, guest=GuestState.PAUSED), ""),
    ],
)
def test_ends(ends: Ends, report: Report, difference: str) -> None:
    assert str(ends.mismatch(report) or "") == difference


async def test_a_line_sends_and_receives_and_tells() -> None:
    near, far = memory_transport_pair()
    told: list[tuple[bool, bytes]] = []
    line = Line(near, lambda ours, data: told.append((ours, data)))
    other = Line(far)
    await line.send(b"ab", b"c")
    assert await other.receive() == b"abc"
    await other.send(b"xyz")
    assert await line.receive() == b"xyz"
    assert told == [(True, b"abc"), (False, b"xyz")]
    assert (line.sent, line.received) == (3, 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.end)
        assert await line.receive() == b""
        await line.end()


async def test_a_cut_line_is_lost_and_until_end_keeps_what_came() -> None:
    near, far = memory_transport_pair()
    line, other = Line(near), Line(far)
    await other.send(b"last words")
    other.cut()
    assert await line.until_end() in {b"last words", b""}
    with pytest.raises(TransportError):
        await line.receive()


def test_unexpected_reads_as_a_sentence() -> None:
    assert str(Unexpected("ABORT bad_magic", "WELCOME")) == "expected ABORT bad_magic, got WELCOME"
