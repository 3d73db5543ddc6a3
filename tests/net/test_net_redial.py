"""How a source gets its connection back."""

from __future__ import annotations

import pytest
import trio
from trio.abc import Clock

from sterna.errors import ConfigError, TransportError
from sterna.net.memory import memory_transport_pair
from sterna.net.redial import LONGEST_WAIT_S, redial
from sterna.net.transport import Peer
from sterna.registry import ErrorCode

PEER = Peer("memory", "host-d")


class Line:
    """What becomes of each call, in order; the last goes on for ever."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.times: list[float] = []
        self.made = []

    async def dial(self):
        self.times.append(trio.current_time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        near, _ = memory_transport_pair(identities=("host-s", answer))
        self.made.append(near)
        return near


BUSY = TransportError(ErrorCode.CONNECT_FAILED, "nothing listens there")


@pytest.fixture
def virtual_time(autojump_clock: Clock) -> Clock:
    return autojump_clock


async def test_it_dials_until_somebody_answers(virtual_time: Clock) -> None:
    line = Line(BUSY, BUSY, ConfigError("no certificate"), "host-d")
    assert await redial(line.dial, PEER, 60) is line.made[0]
    waits = [b - a for a, b in zip(line.times, line.times[1:], strict=False)]
    assert waits == sorted(waits) == pytest.approx([0.1, 0.2, 0.4])


async def test_it_does_not_dial_for_ever_nor_too_often(virtual_time: Clock) -> None:
    line = Line(BUSY)
    with pytest.raises(TransportError, match="60 s: connect_failed: nothing listens there") as error:
        await redial(line.dial, PEER, 60)
    assert error.value.code is ErrorCode.CONNECTION_LOST
    assert 60 / LONGEST_WAIT_S < len(line.times) < 30


async def test_a_host_that_asks_for_a_pause_has_it(virtual_time: Clock) -> None:
    """[REF-2] And where it asks for more than there is, nobody dials any more."""
    line = Line("host-d")
    started = trio.current_time()
    assert await redial(line.dial, PEER, 60, after_s=5) is line.made[0]
    assert line.times == [started + 5]
    with pytest.raises(TransportError, match="no connection again"):
        await redial(line.dial, PEER, 60, after_s=61)
    assert len(line.times) == 1


async def test_time_that_is_up_already() -> None:
    line = Line(BUSY)
    with pytest.raises(TransportError):
        await redial(line.dial, PEER, -1)


async def test_somebody_else_is_not_taken_for_the_host(virtual_time: Clock) -> None:
    """[SEC-5]"""
    line = Line("host-x", "host-d")
    assert await redial(line.dial, PEER, 60) is line.made[1]
    assert line.made[0].closed
