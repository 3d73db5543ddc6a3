"""Endpoint cases in one process: Sterna's endpoints on the other end of a pipe in memory, in virtual time."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import pytest
import trio
from trio.testing import MockClock

from sterna.net.destination import Destination
from sterna.net.hosting import LocalHost
from sterna.net.kept import Sessions
from sterna.net.memory import memory_transport_pair
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.tcp import TcpTransport
from sterna.net.transport import Transport
from sterna.wire.records import Runner
from sterna_interop import shim
from sterna_interop.case import Case, Line, NotStrict, NotTried, Unexpected, Wire, completed
from sterna_interop.cases_misbehaving import case_of
from sterna_interop.contract import Params, Report, Role
from sterna_interop.matrix import judge_side
from sterna_interop.misbehaviours import Misbehaviour
from sterna_interop.shim_guest import RoomForGuest, ScriptedSource

# The longest wait of an endpoint here is its time for a round, and it looks twice.
BOUND_S = 70.0

Pair: TypeAlias = Callable[[], tuple[Transport, Transport]]


@dataclass
class Played:
    """What came of a case: how the endpoint ended, and what was wrong with it, if anything."""

    report: Report | None = None
    wrong: Unexpected | None = None
    strict: bool = True
    untried: str = ""
    seconds: float = 0.0


def params_of(case: Case) -> Params:
    return Params(
        case=case.id,
        role=case.role,
        connect="memory:0",
        token=bytes(8),
        guest=case.guest,
        epoch=case.epoch,
        order=case.order,
        limits=case.limits,
        deadline_s=case.deadline_s,
        streams=case.streams,
        unverified=case.unverified,
        follows=case.follows,
        chooses=case.chooses,
    )


class Calls:
    """Further connections: those that the endpoint makes, and those that it takes."""

    def __init__(self, nursery: trio.Nursery, pair: Pair) -> None:
        self._nursery = nursery
        self._pair = pair
        self._send, self._receive = trio.open_memory_channel[Transport](16)
        self.take: Callable[[Transport], Awaitable[object]] | None = None

    async def dial(self) -> Transport:
        """By the endpoint."""
        near, far = self._pair()
        await self._send.send(far)
        return near

    async def another(self, _wire: Wire | None) -> Line:
        """By the kit."""
        if self.take is None:
            return Line(await self._receive.receive(), another=self.another)
        near, far = self._pair()
        self._nursery.start_soon(self.take, near)
        return Line(far, another=self.another)


async def endpoint(params: Params, transport: Transport, calls: Calls) -> Report:
    """What the shim does once the connection stands; without dice, so that a run can be repeated."""
    with closing(shim.room_for(params)) as room:
        return await _endpoint(params, transport, calls, room)


async def _endpoint(params: Params, transport: Transport, calls: Calls, room: RoomForGuest) -> Report:
    rounds = shim.Rounds(params)
    options: Options = replace(shim.options(params, rounds), clock=trio.current_time, grease=False)
    source = ScriptedSource(params.guest)
    if params.role is Role.SOURCE:
        runner = Runner(params.runner_host, params.runner)
        rounds.endpoint = Source(
            source,
            transport,
            epoch=params.epoch,
            runner=runner,
            options=options,
            reconnect=calls.dial if params.streams else None,
        )
    else:
        host, sessions = LocalHost("interop-destination"), Sessions() if params.streams else None

        def taken(transport: Transport) -> Destination:
            return Destination(lambda _: room, transport, host=host, options=options, sessions=sessions)

        calls.take = lambda other: taken(other).run()
        rounds.endpoint = taken(transport)
    guest = source if params.role is Role.SOURCE else room
    return shim.report(params, await rounds.endpoint.run(), guest, rounds.counted)


async def play(case: Case, pair: Pair = memory_transport_pair) -> Played:
    """A case, as the runner plays and judges it, over connections that `pair` makes."""
    played, params = Played(), params_of(case)
    near, far = pair()
    began = trio.current_time()

    async def run(calls: Calls) -> None:
        played.report = await endpoint(params, near, calls)

    with trio.move_on_after(BOUND_S) as whole:
        async with trio.open_nursery() as nursery:
            calls = Calls(nursery, pair)
            nursery.start_soon(run, calls)
            line = Line(far, another=calls.another)
            try:
                await case.play(line, params)
            except NotStrict:
                played.strict = False
            except NotTried as reason:
                played.untried = str(reason)
            except Unexpected as wrong:
                played.wrong = wrong
            await line.end()
    played.seconds = trio.current_time() - began
    if whole.cancelled_caught:
        played.wrong = played.wrong or Unexpected("an end", "none in time")
    if played.wrong is None:
        judge(case, played)
    return played


def judge(case: Case, played: Played) -> None:
    """The shim's report against what the case expects."""
    report = played.report
    assert report is not None
    expect = completed(case.role) if played.untried else case.expect
    wrong = expect.mismatch(report)
    if wrong is not None and any(ends.mismatch(report) is None for ends, _ in case.tolerated):
        played.strict, wrong = False, None
    played.wrong = wrong or judge_side(case.role, case.guest, report, memory=expect.memory)


def played(case: Case) -> Played:
    """Play it in virtual time."""
    assert case.wire is Wire.PLAIN
    return trio.run(play, case, clock=MockClock(autojump_threshold=0))


def tcp_transport_pair() -> tuple[Transport, Transport]:
    """Over sockets, which a process can be given."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    for each in (here, there):
        each.setblocking(False)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return TcpTransport(here), TcpTransport(there)


def played_over_sockets(case: Case) -> Played:
    """Play it in real time."""
    assert case.wire is Wire.PLAIN
    return trio.run(play, case, tcp_transport_pair)


def check(case: Case, how: Callable[[Case], Played] = played) -> None:
    """Sterna passes it, strictly."""
    came = how(case)
    assert came.wrong is None, f"{case.id}: {came.wrong}; {came.report}"
    assert came.strict
    assert not came.untried


def rows(table: Iterable[Misbehaviour]) -> Any:
    """Parametrize by the rows of a table."""
    every = list(table)
    return pytest.mark.parametrize("row", every, ids=[f"{row.case}-{row.name}" for row in every])


def check_row(row: Misbehaviour) -> None:
    """Sterna answers a misbehaviour as it must."""
    check(case_of(row))
