"""The shim around Sterna's own endpoints: ``python -m sterna_interop.shim --params FILE --out DIR``.

Every implementation has such a program of its own, in its own language; README.md says what it must do.
This one is meant to be read by those who write theirs. It dials out in either role, shows its token, does
what the order says, and tells in `result.json` what has become of the guest.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import trio

from sterna.core.deadlines import Deadlines
from sterna.core.events import Event, Outcome, PhaseEntered, Result, RoundFinished, RoundStarted
from sterna.core.policy import PolicySettings
from sterna.errors import SternaError, TransportError
from sterna.host.farewells import refusal, rejection
from sterna.limits import Limits
from sterna.net.connect import take_socket
from sterna.net.destination import Destination, MakeGuest
from sterna.net.handshake import accept_tls, dial_tls
from sterna.net.hosting import LocalHost
from sterna.net.kept import Sessions
from sterna.net.options import Options
from sterna.net.source import Source
from sterna.net.tcp import DEFAULT_OPTIONS, TcpTransport
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna.registry import ErrorCode, Phase
from sterna.wire.records import Runner
from sterna_interop import contract
from sterna_interop.contract import RESULT, Do, Exit, GuestState, Params, Report, Role
from sterna_interop.shim_following import FollowedRoom
from sterna_interop.shim_guest import RoomForGuest, ScriptedSource

HANDSHAKE_S = 10.0

_ORDERS = {
    Role.SOURCE: {Do.MIGRATE, Do.CANCEL},
    Role.DESTINATION: {Do.MIGRATE, Do.REFUSE, Do.NOT_READY, Do.REJECT_STATE},
}


def supported(params: Params) -> bool:
    """Whether everything in the parameters is known here; what is not known is answered with exit code 89."""
    order = params.order
    known_limits = {each.name for each in fields(Limits)}
    return (
        order.do in _ORDERS[params.role]
        and params.limits.keys() <= known_limits
        and (order.do != Do.REFUSE or order.code.upper() in ErrorCode.__members__)
    )


@dataclass(slots=True)
class Rounds:
    """Watches a session: counts its rounds, and cancels it at the right one."""

    params: Params
    endpoint: Source | Destination | None = None
    counted: int = 0
    _last: bool = field(default=False)

    def on_event(self, event: Event) -> None:
        """Called by the endpoint with everything that happens."""
        match event:
            case PhaseEntered(phase=Phase.ROUNDS) if not self.counted:
                self._maybe_cancel()
            case RoundStarted(last=last):
                self._last = last
            case RoundFinished() if not self._last:
                self.counted += 1
                self._maybe_cancel()
            case _:
                pass

    def _maybe_cancel(self) -> None:
        order = self.params.order
        if order.do == Do.CANCEL and order.round == self.counted and self.endpoint is not None:
            self.endpoint.cancel("as ordered")


async def dial(params: Params) -> Transport:
    """Dial, show the token, and do TLS: as its client if we are the source, as its server if not.

    Raises:
        TransportError: the TLS handshake failed, or the peer is another one than we were told.
        OSError: nobody listens, or the kit has no use for the connection.
    """
    return await secure(await dial_plain(params), params)


async def dial_plain(params: Params) -> socket.socket:
    """Dial, show the token, and wait for the kit's sign. Raises OSError as `dial` does."""
    host, _, port = params.connect.rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    sign = b""
    try:
        with suppress(trio.BrokenResourceError):
            await stream.send_all(params.token)
            sign = await stream.receive_some(1)  # when the peer is there
    finally:
        if not sign:
            stream.socket.close()
    if not sign:
        raise ConnectionError("the kit has closed the connection")
    return take_socket(stream, DEFAULT_OPTIONS)


async def secure(sock: socket.socket, params: Params) -> Transport:
    """What the parameters say of TLS. Raises TransportError as `dial` does."""
    if (files := params.tls) is None:
        return TcpTransport(sock)

    def check_peer(identity: str, fingerprint: bytes) -> None:
        del fingerprint
        if identity != files.peer:
            raise TransportError(ErrorCode.PEER_NOT_LISTED, f"{identity!r} is not {files.peer!r}")

    config = TlsConfig(Path(files.certificate), Path(files.key), Path(files.authority), check_peer)
    with trio.fail_after(params.deadline_s or HANDSHAKE_S):
        if params.role is Role.SOURCE:
            context = config.context(server=False)
            return await dial_tls(sock, config, context, expected=files.peer, farewell=rejection)
        return await accept_tls(sock, config, config.context(server=True), farewell=refusal)


def deadlines(wait: float) -> Deadlines:
    """Every deadline the same; 0 leaves them as usual."""
    if not wait:
        return Deadlines()
    return Deadlines(**{each.name: wait for each in fields(Deadlines)} | {"heartbeat_s": wait / 4})


def options(params: Params, rounds: Rounds) -> Options:
    """What the parameters ask of the endpoint."""
    # No case is lost because this machine is busy: after the last round the guest is moved all the same.
    policy = PolicySettings(on_exhausted="switch")
    if params.order.rounds:  # with a cost that no round can lower, all of them are used up
        policy = replace(policy, allowed_downtime_s=0.001, max_rounds=params.order.rounds, fixed_cost_s=1.0)
    if params.follows:
        policy = replace(policy, switchover="auto" if params.chooses else "post-copy")
    return Options(
        limits=Limits(**params.limits),
        policy=policy,
        deadlines=deadlines(params.deadline_s),
        on_event=rounds.on_event,
        streams=params.streams,
        verified=not params.unverified,
        post_copy=params.follows,
        early_pages=params.follows,
        resume_s=0,  # the kit's relay cuts for good
    )


def room_for(params: Params) -> RoomForGuest:
    """Room at the destination."""
    return FollowedRoom(params.order) if params.follows else RoomForGuest(params.order)


async def migrate(params: Params) -> Report:
    """One session, and what is to be said about it."""
    with closing(room_for(params)) as room:
        return await _migrate(params, room)


async def _migrate(params: Params, room: RoomForGuest) -> Report:
    rounds = Rounds(params)
    source = ScriptedSource(params.guest)
    guest: ScriptedSource | RoomForGuest = source if params.role is Role.SOURCE else room
    try:
        transport = await dial(params)
    except (TransportError, trio.TooSlowError) as error:
        code = error.code if isinstance(error, TransportError) else ErrorCode.TLS_FAILED
        return report(params, Result(Outcome.ROLLED_BACK, code, epoch=params.epoch), guest, 0)
    if params.role is Role.SOURCE:
        runner = Runner(params.runner_host, params.runner)
        rounds.endpoint = endpoint = Source(
            source,
            transport,
            epoch=params.epoch,
            runner=runner,
            options=options(params, rounds),
            reconnect=partial(dial_again, params) if params.streams else None,
        )
        return report(params, await endpoint.run(), guest, rounds.counted)
    welcome = Visitors(params, options(params, rounds), lambda _: room)
    return report(params, await welcome.first(transport), guest, rounds.counted)


async def dial_again(params: Params) -> Transport:
    """One data connection."""
    try:
        return await dial(params)
    except (OSError, trio.TooSlowError) as error:
        raise TransportError(ErrorCode.CONNECTION_LOST, str(error)) from error


class Visitors:
    """A destination that takes further connections for its session: it dials for them, one ahead.

    Args:
        params: what was told.
        options: of the endpoint.
        make_guest: the room, for the session of the first connection.
    """

    def __init__(self, params: Params, options: Options, make_guest: MakeGuest) -> None:
        self._params = params
        self._options = options
        self._make_guest = make_guest
        self._sessions = Sessions() if params.streams else None

    async def first(self, transport: Transport) -> Result:
        """The session that comes on this connection, to its end."""
        async with trio.open_nursery() as nursery:
            if self._sessions is not None:
                nursery.start_soon(self._dial_ahead, nursery)
            result = await self._endpoint(transport).run()
            nursery.cancel_scope.cancel()
        return result

    def _endpoint(self, transport: Transport) -> Destination:
        host = LocalHost("interop-destination")
        return Destination(
            self._make_guest, transport, host=host, options=self._options, sessions=self._sessions
        )

    async def _dial_ahead(self, nursery: trio.Nursery) -> None:
        """Whenever somebody has come, wait for the next one."""
        with suppress(OSError):
            while True:
                nursery.start_soon(self._receive, await dial_plain(self._params))

    async def _receive(self, sock: socket.socket) -> None:
        with suppress(TransportError, trio.TooSlowError):  # whoever it was, the session does not mind
            await self._endpoint(await secure(sock, self._params)).run()


def report(params: Params, result: Result, guest: ScriptedSource | RoomForGuest, rounds: int) -> Report:
    """`result.json` from an endpoint's result and the guest itself."""
    memory, state = guest.hashes()
    here = (result.outcome is Outcome.UNDECIDED and any(result.session)) or (
        params.role is Role.SOURCE and result.outcome is Outcome.GUEST_FAILED
    )
    # For the contract a guest that waits for pages which nobody sends has moved, and lacks some of them.
    outcome = Outcome.MOVED if result.outcome is Outcome.STRANDED else result.outcome
    return Report(
        outcome=contract.Outcome(outcome.value),
        guest=GuestState.RUNNING if guest.running else GuestState.PAUSED if here else GuestState.NONE,
        code=None if result.code is None else result.code.name.lower(),
        by_peer=result.by_peer,
        epoch=result.epoch,
        memory=memory,
        state=state,
        digest=result.digest.hex(),
        rounds=rounds,
        bytes_sent=result.bytes_sent,
        bytes_received=result.bytes_received,
        agent="sterna",
        text="" if result.error is None else str(result.error)[:4096],
    )


def main(arguments: Sequence[str]) -> int:
    """One case; the exit code."""
    parser = argparse.ArgumentParser(prog="sterna_interop.shim")
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    params = Params.from_json(options.params.read_text())
    if not supported(params):
        return Exit.UNSUPPORTED
    try:
        result = trio.run(migrate, params)
    except (OSError, SternaError) as error:
        print(f"shim: {error}", file=sys.stderr)
        return Exit.FAILED
    with suppress(FileExistsError):
        options.out.mkdir(parents=True)
    (options.out / RESULT).write_text(result.to_json())
    return Exit.BEHAVED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
