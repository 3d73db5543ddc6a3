"""The shim around Sterna's own endpoints: ``python -m sterna_interop.shim --params FILE --out DIR``.

Every implementation has such a program of its own, in its own language; README.md says what it must do.
This one is meant to be read by those who write theirs. It dials out in either role, shows its token, does
what the order says, and tells in `result.json` what has become of the guest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import trio

from sterna.core.deadlines import Deadlines
from sterna.core.events import Event, Outcome, PhaseEntered, Result, RoundFinished, RoundStarted
from sterna.core.policy import PolicySettings
from sterna.errors import SternaError, TransportError
from sterna.host.agent import refusal, rejection
from sterna.limits import Limits
from sterna.net.connect import take_socket
from sterna.net.endpoint import Destination, LocalHost, Options, Source
from sterna.net.handshake import accept_tls, dial_tls
from sterna.net.tcp import DEFAULT_OPTIONS, TcpTransport
from sterna.net.tls import TlsConfig
from sterna.net.transport import Transport
from sterna.registry import ErrorCode, Phase
from sterna.wire.records import Runner
from sterna_interop import contract
from sterna_interop.contract import RESULT, Do, Exit, GuestState, Params, Report, Role
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
        OSError: nobody listens.
    """
    host, _, port = params.connect.rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    await stream.send_all(params.token)
    if not await stream.receive_some(1):  # the kit's sign that the peer is there
        raise ConnectionError("the kit has closed the connection")
    sock = take_socket(stream, DEFAULT_OPTIONS)
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
    return Options(
        limits=Limits(**params.limits),
        policy=policy,
        deadlines=deadlines(params.deadline_s),
        on_event=rounds.on_event,
    )


async def migrate(params: Params) -> Report:
    """One session, and what is to be said about it."""
    rounds = Rounds(params)
    source = ScriptedSource(params.guest)
    room = RoomForGuest(params.order)
    guest: ScriptedSource | RoomForGuest = source if params.role is Role.SOURCE else room
    try:
        transport = await dial(params)
    except (TransportError, trio.TooSlowError) as error:
        code = error.code if isinstance(error, TransportError) else ErrorCode.TLS_FAILED
        return report(params, Result(Outcome.ROLLED_BACK, code, epoch=params.epoch), guest, 0)
    if params.role is Role.SOURCE:
        runner = Runner(params.runner_host, params.runner)
        rounds.endpoint = Source(
            source, transport, epoch=params.epoch, runner=runner, options=options(params, rounds)
        )
    else:
        host = LocalHost("interop-destination")
        rounds.endpoint = Destination(lambda _: room, transport, host=host, options=options(params, rounds))
    return report(params, await rounds.endpoint.run(), guest, rounds.counted)


def report(params: Params, result: Result, guest: ScriptedSource | RoomForGuest, rounds: int) -> Report:
    """`result.json` from an endpoint's result and the guest itself."""
    memory, state = guest.hashes()
    here = (result.outcome is Outcome.UNDECIDED and any(result.session)) or (
        params.role is Role.SOURCE and result.outcome is Outcome.GUEST_FAILED
    )
    return Report(
        outcome=contract.Outcome(result.outcome.value),
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
