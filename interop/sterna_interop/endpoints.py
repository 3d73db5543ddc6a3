"""An endpoint case: one shim with a script of the kit as its peer; and the probe that comes before all."""

from __future__ import annotations

import secrets
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import trio

from sterna.errors import ConfigError, TransportError
from sterna.net.handshake import accept_tls, dial_tls
from sterna.net.tcp import TcpTransport
from sterna.net.transport import Transport
from sterna.observe.recording import Side
from sterna.registry import ErrorCode
from sterna_interop.case import Case, Line, NotStrict, NotTried, Unexpected, Wire, completed
from sterna_interop.contract import Exit, Order, Params, Role
from sterna_interop.credentials import STRANGER, Credentials
from sterna_interop.door import Door
from sterna_interop.guest import GuestSpec
from sterna_interop.implementations import Implementation
from sterna_interop.matrix import judge_side
from sterna_interop.process import GO, Ended, run_shim
from sterna_interop.recording import CaseRecording
from sterna_interop.results import KIT, CaseResult, Kind, Verdict
from sterna_interop.runner import RECORDING, Cell, Settings, artifacts, judged, not_judged

HANDSHAKE_S: Final = 10.0
PROBE_S: Final = 10.0
PROBE: Final = "contract-001"
PROBE_TITLE: Final = "an order that nobody knows is answered with exit code 89"


def endpoint_cell(settings: Settings, case: Case, implementation: Implementation) -> Cell:
    """One implementation, one case."""
    names = {case.role: implementation.name, case.role.other: KIT}
    blank = CaseResult(
        case=case.id,
        kind=Kind.ENDPOINT,
        source=names[Role.SOURCE],
        destination=names[Role.DESTINATION],
        transport="plain" if case.wire is Wire.PLAIN else "tls",
        verdict=Verdict.SKIP,
    )
    conversation = _Conversation(settings, case, implementation, blank)
    return Cell(blank, conversation.run, settings.place(blank))


@dataclass(slots=True)
class _Conversation:
    settings: Settings
    case: Case
    implementation: Implementation
    blank: CaseResult
    unexpected: Unexpected | None = None
    untried: str = ""
    no_tls: str = ""
    door: Door = field(default_factory=Door)

    async def run(self) -> CaseResult:
        case = self.case
        directory = self.settings.place(self.blank)
        directory.mkdir(parents=True)
        params = Params(
            case=case.id,
            role=case.role,
            connect="",
            token=b"",
            tls=None if case.wire is Wire.PLAIN else self.settings.credentials.files(case.role),
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

        async def serve(sock: socket.socket) -> None:
            await self._serve(sock, params)

        start = self.settings.starts(self.implementation)
        more = self.door.come if case.streams else None
        ended = await run_shim(start, params, directory, serve, timeout_s=case.timeout_s, more=more)
        self.door.close()
        return self._verdict(ended)

    async def _serve(self, sock: socket.socket, params: Params) -> None:
        case = self.case
        with suppress(OSError):  # it may have gone again
            sock.send(GO)
        try:
            transport = await _wrap(sock, case, self.settings.credentials)
        except (TransportError, trio.TooSlowError) as error:
            self.no_tls = str(error) or "the TLS handshake took too long"
            return
        side = Side.DESTINATION if case.role is Role.SOURCE else Side.SOURCE
        try:
            recording = CaseRecording(self.settings.place(self.blank) / RECORDING, side)
        except ConfigError as error:
            self.unexpected = Unexpected(f"nothing of the shim's named {RECORDING} in DIR", str(error))
            transport.abort()
            return
        with recording:
            line = Line(transport, recording.first.on_peer, partial(self._another, recording))
            try:
                try:
                    await case.play(line, params)
                except NotTried as reason:
                    self.untried = str(reason)
                await line.end()
            except Unexpected as difference:
                self.unexpected = difference
            except (TransportError, trio.ClosedResourceError):
                pass  # the endpoint has ended the connection; what it makes of that is in its report
            finally:
                line.cut()

    async def _another(self, recording: CaseRecording, wire: Wire | None) -> Line:
        """A further connection of the case."""
        with trio.fail_after(HANDSHAKE_S):
            sock = await self.door.next()
        if sock is None:
            raise TransportError(ErrorCode.CONNECTION_LOST, "the shim makes no further connection")
        with suppress(OSError):
            sock.send(GO)
        case = self.case if wire is None else replace(self.case, wire=wire)
        transport = await _wrap(sock, case, self.settings.credentials)
        return Line(transport, recording.another().on_peer, partial(self._another, recording))

    def _verdict(self, ended: Ended) -> CaseResult:
        case, sides = self.case, {self.case.role: ended}
        result = replace(self.blank, artifacts=artifacts(sides, self.settings.place(self.blank)))
        nothing = not_judged(result, sides)
        if nothing is not None and nothing.verdict in {Verdict.UNSUPPORTED, Verdict.CRASH}:
            return nothing
        if self.unexpected is not None and not isinstance(self.unexpected, NotStrict):
            detail = "" if nothing is None else nothing.detail
            return judged(replace(result, detail=detail), self.unexpected)
        if nothing is not None:
            return nothing
        report = ended.report
        assert report is not None
        result = replace(result, code=report.code or "")
        if self.no_tls and case.wire is Wire.TLS:
            return judged(result, Unexpected("a TLS handshake", self.no_tls))
        expect = completed(case.role) if self.untried else case.expect
        difference = expect.mismatch(report)
        for ends, reason in case.tolerated if difference is not None else ():
            if ends.mismatch(report) is None:
                return replace(result, verdict=Verdict.NON_STRICT, detail=reason)
        difference = difference or judge_side(case.role, case.guest, report, memory=expect.memory)
        if difference is None and self.untried:
            return replace(result, verdict=Verdict.UNSUPPORTED, detail=self.untried)
        if difference is None and self.unexpected is not None:
            legal = judged(result, self.unexpected)
            return replace(legal, verdict=Verdict.NON_STRICT, detail="legal, but not what is recommended")
        return judged(result, difference)


async def _wrap(sock: socket.socket, case: Case, credentials: Credentials) -> Transport:
    """The kit's side of TLS, where the case has any."""
    if case.wire in {Wire.PLAIN, Wire.NAKED}:
        return TcpTransport(sock)
    endpoint, ours = case.role, case.role.other
    config = credentials.config(STRANGER if case.wire is Wire.STRANGER else ours, endpoint)
    server = ours is Role.DESTINATION
    context = config.context(server=server)
    if case.wire is Wire.OTHER_ALPN:
        _speak_something_else(context)
    with trio.fail_after(HANDSHAKE_S):
        if server:
            return await accept_tls(sock, config, context)
        return await dial_tls(sock, config, context, expected=endpoint)


def _speak_something_else(context: ssl.SSLContext) -> None:
    context.set_alpn_protocols(["http/1.1"])


def probe_cell(settings: Settings, implementation: Implementation) -> Cell:
    """Whether this shim knows what it does not know: its other answers mean something only then.

    Running it raises ConfigError if the command cannot be started.
    """
    role = Role.SOURCE if Role.SOURCE in implementation.roles else Role.DESTINATION
    names = {role: implementation.name, role.other: KIT}
    blank = CaseResult(
        case=PROBE,
        kind=Kind.ENDPOINT,
        source=names[Role.SOURCE],
        destination=names[Role.DESTINATION],
        transport="plain",
        verdict=Verdict.SKIP,
    )

    async def run() -> CaseResult:
        word = secrets.token_hex(6)
        directory = settings.place(blank)
        directory.mkdir(parents=True)
        params = Params(
            case=f"unknown-{word}",
            role=role,
            connect="",
            token=b"",
            guest=GuestSpec(),
            order=Order(do=f"unknown_{word}"),
        )

        async def serve(sock: socket.socket) -> None:
            sock.close()

        try:
            start = settings.starts(implementation)
            ended = await run_shim(start, params, directory, serve, timeout_s=PROBE_S)
        except OSError as error:
            command = implementation.command[0]
            raise ConfigError(f"{implementation.name}: cannot start {command!r}: {error.strerror}") from error
        result = replace(blank, artifacts=artifacts({role: ended}, directory))
        if ended.exit_code == Exit.UNSUPPORTED:
            return replace(result, verdict=Verdict.PASS)
        actual = "no end" if ended.exit_code is None else f"exit code {ended.exit_code}"
        return judged(result, Unexpected(f"exit code {int(Exit.UNSUPPORTED)}", actual))

    return Cell(blank, run, settings.place(blank))
