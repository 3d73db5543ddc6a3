"""One cell of the matrix: two shims, each with the relay for a peer, and the verdict over both."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import trio

from sterna.errors import ConfigError
from sterna_interop.case import Unexpected
from sterna_interop.contract import Order, Params, Role
from sterna_interop.door import Door
from sterna_interop.guest import GuestSpec
from sterna_interop.implementations import Implementation
from sterna_interop.matrix import Scenario, Transport, judge
from sterna_interop.process import GO, Ended, run_shim
from sterna_interop.recording import CaseRecording, Recorded
from sterna_interop.relay import relay
from sterna_interop.results import CaseResult, Kind, Verdict
from sterna_interop.runner import RECORDING, Cell, Settings, artifacts, judged, not_judged

ROUNDS: Final = 2  # of the running guest, so that there is something of everything to cut off

NO_DEMAND: Final = "the source opens no demand connection, or no data connection was granted beside it"


def matrix_cell(
    settings: Settings,
    scenario: Scenario,
    transport: Transport,
    source: Implementation,
    destination: Implementation,
) -> Cell:
    """Two implementations, one scenario."""
    blank = CaseResult(
        case=scenario.id,
        kind=Kind.MATRIX,
        source=source.name,
        destination=destination.name,
        transport=transport,
        verdict=Verdict.SKIP,
    )
    pair = _Pair(settings, scenario, transport, source, destination, blank)
    return Cell(blank, pair.run, settings.place(blank))


@dataclass(slots=True)
class _Pair:
    """One cell of the matrix."""

    settings: Settings
    scenario: Scenario
    transport: Transport
    source: Implementation
    destination: Implementation
    blank: CaseResult
    connections: int = 0
    unexpected: Unexpected | None = None

    @property
    def guest(self) -> GuestSpec:
        """The scenario's, with the run's seed."""
        return replace(self.scenario.guest, seed=self.settings.seed)

    async def run(self) -> CaseResult:
        doors = {role: Door() for role in Role}
        ends: dict[Role, Ended] = {}

        async def one(role: Role, implementation: Implementation) -> None:
            directory = self.settings.place(self.blank) / role
            directory.mkdir(parents=True)
            door = doors[role]
            ends[role] = await run_shim(
                self.settings.starts(implementation),
                self._params(role),
                directory,
                door.come,
                timeout_s=self.scenario.timeout_s,
                more=door.come if self.scenario.streams else None,
            )
            door.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._between, doors[Role.SOURCE], doors[Role.DESTINATION])
            async with trio.open_nursery() as shims:
                shims.start_soon(one, Role.SOURCE, self.source)
                shims.start_soon(one, Role.DESTINATION, self.destination)
            nursery.cancel_scope.cancel()
        return self._verdict({role: ends[role] for role in Role})

    def _params(self, role: Role) -> Params:
        tls = self.settings.credentials.files(role) if self.transport is Transport.TLS else None
        order = self.scenario.orders.get(role, Order())
        if role is Role.SOURCE:
            order = replace(order, rounds=ROUNDS)
        return Params(
            case=self.scenario.id,
            role=role,
            connect="",
            token=b"",
            tls=tls,
            guest=self.guest,
            order=order,
            epoch=self.scenario.epoch,
            limits=self.scenario.limits.get(role, {}),
            deadline_s=self.scenario.deadline_s,
            streams=self.scenario.streams,
            follows=self.scenario.follows,
            chooses=self.scenario.chooses,
        )

    async def _between(self, calls: Door, waits: Door) -> None:
        """Relay between the connections of both, each pair as soon as it is there."""
        try:
            pair = await _both(calls, waits)
            if pair is None:
                return
            with self._recorded() as recording:
                async with trio.open_nursery() as nursery:
                    while pair is not None:
                        fault = self.scenario.fault_on(self.connections, self.settings.seed)
                        on_bytes = None if recording is None else recording(self.connections).on_relay
                        self.connections += 1
                        nursery.start_soon(partial(relay, *pair, fault, on_bytes=on_bytes))
                        pair = await _both(calls, waits)
        except ConfigError as error:
            for sock in pair or ():
                sock.close()
            self.unexpected = Unexpected(f"nothing of a shim's named {RECORDING}", str(error))
        finally:
            calls.close()
            waits.close()

    @contextmanager
    def _recorded(self) -> Iterator[Callable[[int], Recorded] | None]:
        """Where a connection is recorded; nothing under TLS."""
        if self.transport is Transport.TLS:
            yield None
            return
        with CaseRecording(self.settings.place(self.blank) / RECORDING) as recording:
            yield lambda number: recording.another() if number else recording.first

    def _verdict(self, sides: dict[Role, Ended]) -> CaseResult:
        result = replace(self.blank, artifacts=artifacts(sides, self.settings.place(self.blank)))
        if self.unexpected is not None:
            return judged(result, self.unexpected)
        if (nothing := not_judged(result, sides)) is not None:
            return nothing
        source, destination = sides[Role.SOURCE].report, sides[Role.DESTINATION].report
        assert source is not None
        assert destination is not None
        code = source.code or destination.code or ""
        difference = judge(self.scenario, self.guest, source, destination)
        if difference is None and self.connections < min(self.scenario.streams, 1) + 1:
            difference = Unexpected("data connections", "none")
        if difference is None and self.scenario.follows and self.connections < self.scenario.streams + 2:
            return replace(result, verdict=Verdict.UNSUPPORTED, detail=NO_DEMAND)
        return judged(replace(result, code=code), difference)


async def _both(calls: Door, waits: Door) -> tuple[socket.socket, socket.socket] | None:
    """A connection of each; None, and whichever has come is closed, if one of them comes no more."""
    came: dict[Door, socket.socket] = {}
    try:
        async with trio.open_nursery() as nursery:

            async def one(door: Door) -> None:
                sock = await door.next()
                if sock is None:
                    nursery.cancel_scope.cancel()
                else:
                    came[door] = sock

            nursery.start_soon(one, calls)
            nursery.start_soon(one, waits)
    finally:
        if len(came) < 2:
            for sock in came.values():
                sock.close()
    if len(came) < 2:
        return None
    for sock in came.values():
        with suppress(OSError):  # it may have gone again
            sock.send(GO)  # both are there, so neither has waited for the other one's start
    return came[calls], came[waits]
