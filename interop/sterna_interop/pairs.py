"""One cell of the matrix: two shims, each with the relay for a peer, and the verdict over both."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import trio

from sterna_interop.contract import Order, Params, Role
from sterna_interop.guest import GuestSpec
from sterna_interop.implementations import Implementation
from sterna_interop.matrix import Scenario, Transport, judge
from sterna_interop.process import GO, Ended, run_shim
from sterna_interop.recording import CaseRecording
from sterna_interop.relay import relay
from sterna_interop.results import CaseResult, Kind, Verdict
from sterna_interop.runner import RECORDING, Cell, Settings, artifacts, judged, not_judged

ROUNDS: Final = 2  # of the running guest, so that there is something of everything to cut off


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

    @property
    def guest(self) -> GuestSpec:
        """The scenario's, with the run's seed."""
        return replace(self.scenario.guest, seed=self.settings.seed)

    async def run(self) -> CaseResult:
        send, receive = trio.open_memory_channel[tuple[Role, socket.socket | None]](4)
        ends: dict[Role, Ended] = {}

        async def one(role: Role, implementation: Implementation) -> None:
            async def serve(sock: socket.socket) -> None:
                await send.send((role, sock))

            directory = self.settings.place(self.blank) / role
            directory.mkdir(parents=True)
            ends[role] = await run_shim(
                self.settings.starts(implementation),
                self._params(role),
                directory,
                serve,
                timeout_s=self.scenario.timeout_s,
            )
            if not ends[role].dialled:
                await send.send((role, None))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._between, receive)
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
        )

    async def _between(self, receive: trio.MemoryReceiveChannel[tuple[Role, socket.socket | None]]) -> None:
        """Wait for both, then relay."""
        sockets: dict[Role, socket.socket] = {}
        alone = False
        try:
            while len(sockets) < 2:
                role, arrived = await receive.receive()
                alone |= arrived is None
                if arrived is not None:
                    sockets[role] = arrived
                for sock in sockets.values() if alone else ():
                    sock.close()  # the other one has ended without coming here: this one need not wait
        except trio.Cancelled:
            for sock in sockets.values():
                sock.close()
            raise
        for sock in sockets.values():
            with suppress(OSError):  # it may have gone again
                sock.send(GO)  # both are there, so neither has waited for the other one's start
        fault = self.scenario.fault(self.settings.seed)
        ends = sockets[Role.SOURCE], sockets[Role.DESTINATION]
        if self.transport is Transport.TLS:
            await relay(*ends, fault)
            return
        with CaseRecording(self.settings.place(self.blank) / RECORDING) as recording:
            await relay(*ends, fault, on_bytes=recording.on_relay)

    def _verdict(self, sides: dict[Role, Ended]) -> CaseResult:
        result = replace(self.blank, artifacts=artifacts(sides, self.settings.place(self.blank)))
        if (nothing := not_judged(result, sides)) is not None:
            return nothing
        source, destination = sides[Role.SOURCE].report, sides[Role.DESTINATION].report
        assert source is not None
        assert destination is not None
        code = source.code or destination.code or ""
        return judged(replace(result, code=code), judge(self.scenario, self.guest, source, destination))
