"""A question over a connection of its own: HELLO{verdict}, one answer, and the end."""

from __future__ import annotations

import pytest
import trio
from trio.abc import Clock

from sterna.core.events import Outcome, Result
from sterna.errors import PeerAborted, RecordError, SternaError
from sterna.net.destination import Destination
from sterna.net.hosting import LocalHost
from sterna.net.memory import MemoryTransport, memory_transport_pair
from sterna.net.options import Options
from sterna.net.question import ask_who_owns
from sterna.registry import ErrorCode, Mode, Owner
from sterna.wire.records import Hello, Runner, Verdict

GUEST, SESSION, TOKEN = b"g" * 16, b"s" * 16, b"t" * 32
OTHERS = Runner("there", b"r" * 16)


class Knowing(LocalHost):
    """Knows one session."""

    def __init__(self, answer: Verdict | SternaError) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[Hello] = []

    async def verdict(self, hello: Hello) -> Verdict:
        self.asked.append(hello)
        if isinstance(self.answer, SternaError):
            raise self.answer
        return self.answer


async def ask(host: Knowing) -> tuple[Verdict, Result]:
    near, far = memory_transport_pair()
    ended: list[Result] = []

    async def serve(transport: MemoryTransport) -> None:
        destination = Destination(lambda _: pytest.fail("a room"), transport, host=host)
        ended.append(await destination.run())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, far)
        options = Options(clock=trio.current_time)
        verdict = await ask_who_owns(
            near, guest=GUEST, epoch=4, session=SESSION, token=TOKEN, options=options
        )
    return verdict, ended[0]


async def test_a_question_is_answered_once_and_both_close(autojump_clock: Clock) -> None:
    """[ONE-60] [ONE-15] Session and token are all that is shown of it."""
    said = Verdict(Owner.SOURCE, 4, OTHERS, handed_back=True)
    host = Knowing(said)
    verdict, there = await ask(host)
    assert verdict == said
    assert there.outcome is Outcome.ANSWERED
    (asked,) = host.asked
    assert (asked.mode, asked.guest, asked.epoch) == (Mode.VERDICT, GUEST, 4)
    assert (asked.session, asked.token) == (SESSION, TOKEN)


async def test_who_cannot_tell_refuses(autojump_clock: Clock) -> None:
    """[ONE-60] The code says why, and nothing more."""
    with pytest.RaisesGroup(pytest.RaisesExc(PeerAborted)) as caught:
        await ask(Knowing(RecordError("process 17 has it", ErrorCode.BUSY)))
    refused = caught.value.exceptions[0]
    assert isinstance(refused, PeerAborted)
    assert refused.code is ErrorCode.BUSY
    assert "17" not in refused.text


async def test_a_connection_that_ends_is_no_answer(autojump_clock: Clock) -> None:
    near, far = memory_transport_pair()
    far.abort()
    with pytest.raises(SternaError) as caught:
        await ask_who_owns(near, guest=GUEST, epoch=4, session=SESSION, token=TOKEN)
    assert caught.value.code in {ErrorCode.CONNECTION_LOST, ErrorCode.NOT_CLOSED}
