"""Asking a destination who owns a guest: a connection of its own, one HELLO and one VERDICT [ONE-60]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

from sterna.core.events import Outcome, Request
from sterna.core.source import SourceConfig, SourceMachine
from sterna.errors import GuestError, TransportError
from sterna.memory.pages import RegionPages
from sterna.memory.regions import RegionTable
from sterna.net.options import Options
from sterna.net.pump import Pump
from sterna.net.transport import Transport
from sterna.registry import ErrorCode
from sterna.wire.records import NO_RUNNER, Guest, Runner, Verdict

_NOBODY: Final = Guest("", 0, 1, 0, ())
_NO_MEMORY: Final[Mapping[int, memoryview]] = {}


async def ask_who_owns(
    transport: Transport,
    *,
    guest: bytes,
    epoch: int,
    session: bytes,
    token: bytes,
    runner: Runner = NO_RUNNER,
    options: Options | None = None,
) -> Verdict:
    """What the destination at the other end of `transport` says; the transport is closed in any case.

    Args:
        transport: to the destination of the session, authenticated as its source.
        guest: its id.
        epoch: n, which the session's HELLO showed.
        session: its id.
        token: its token.
        runner: which the session's HELLO showed, if that is known.
        options: limits, deadlines, clock and agent are used.

    Raises:
        SternaError: it does not answer, or refuses.
    """
    options = options or Options()
    config = SourceConfig(
        agent=options.agent,
        limits=options.limits,
        deadlines=options.deadlines,
        guest=_NOBODY,
        guest_id=guest,
        epoch=epoch,
        runner=runner,
    )
    machine = SourceMachine(config, RegionPages(RegionTable(()), _NO_MEMORY), options.clock())
    machine.ask(session, token, options.clock())
    try:
        pump = Pump(machine, transport, _nothing, on_event=options.on_event, clock=options.clock)
        result = await pump.drive()
    finally:
        transport.abort()
    if result.outcome is Outcome.ANSWERED and result.verdict is not None:
        return result.verdict
    raise result.error or TransportError(ErrorCode.UNDECIDED, "the destination has not answered")


async def _nothing(request: Request) -> NoReturn:
    raise GuestError(f"{type(request).__name__}: a question touches no guest")
