"""One run of a shim: a process group, a listener that only this process can reach the kit by, and an end.

The listener is open before the process is started, and whoever connects has to show the token of this run, so
neither a stray connection nor a shim that was thought dead gets into a case. Everything ends: what is
left of the process group is killed when the run is over, however it went, and what the shim prints is read
to its end and kept only in part.
"""

from __future__ import annotations

import hmac
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from sterna.net.connect import take_socket
from sterna.net.tcp import DEFAULT_OPTIONS
from sterna_interop.contract import TOKEN_BYTES, ContractError, Exit, Params, Report, read_report
from sterna_interop.start import Start, Started

PARAMS: Final = "params.json"
TEXT_BYTES_MAX: Final = 16 * 1024  # kept of each of stdout and stderr
GO: Final = b"\x01"  # what the kit answers to the token when the peer is there: the session begins
TOKEN_S: Final = 5.0  # for who has connected; another shim may be waiting
GRACE_S: Final = 2.0  # for the kit's side of the connection, when the shim has ended
MORE_MAX: Final = 64  # connections beside the first one; a case with data connections needs a few

Serve = Callable[[socket.socket], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a shim ended.

    Attributes:
        exit_code: None if it did not end in time; negative for a signal.
        report: what it left; None with a reason in `no_report`.
        dialled: whether it connected and showed its token.
    """

    exit_code: int | None
    stdout: str
    stderr: str
    report: Report | None = None
    no_report: str = ""
    dialled: bool = False
    timeout_s: float = 0.0

    @property
    def supported(self) -> bool:
        """False for exit code 89."""
        return self.exit_code != Exit.UNSUPPORTED

    @property
    def trouble(self) -> tuple[bool, str] | None:
        """Why there is nothing to be judged: whether that was a crash, and a sentence; None if there is."""
        match self.exit_code:
            case None:
                what = "" if self.dialled else ", and had not even connected"
                return False, f"the shim had not ended after {self.timeout_s:g} s{what}; killed"
            case Exit.BEHAVED:
                return None if self.report is not None else (False, f"exit code 0, but {self.no_report}")
            case Exit.FAILED:
                return False, "the shim says that it failed (exit code 1)"
            case int(code) if code < 0:
                with suppress(ValueError):
                    return True, f"the shim was ended by {signal.Signals(-code).name}"
                return True, f"the shim was ended by signal {-code}"
            case code:
                return True, f"exit code {code}, which the contract does not have"


async def run_shim(
    start: Start,
    params: Params,
    directory: Path,
    serve: Serve,
    *,
    timeout_s: float,
    more: Serve | None = None,
) -> Ended:
    """Run a shim once.

    Args:
        start: starts it with the arguments of the contract.
        params: without `connect` and `token`, which are filled in here.
        directory: an empty one, for `params.json` and `result.json`.
        serve: called with the connection when the token has come; owns it, and sends `GO`. It is cancelled
            `GRACE_S` after the shim has ended.
        timeout_s: for all of it.
        more: called as `serve` is, with each connection that comes after the first; None: nothing else may.

    Raises:
        OSError: the command cannot be started.
    """
    token = secrets.token_bytes(TOKEN_BYTES)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        port = listener.socket.getsockname()[1]
        params = replace(params, connect=f"127.0.0.1:{port}", token=token)
        (directory / PARAMS).write_text(params.to_json())
        process = await start(["--params", str(directory / PARAMS), "--out", str(directory)])
        run = _Run(process, token, serve, more)
        try:
            with trio.move_on_after(timeout_s):
                await run.drive(listener)
        finally:
            _kill(process)
            with trio.CancelScope(shield=True), trio.move_on_after(GRACE_S):
                await process.wait()
        return run.ended(directory, timeout_s)


class _Run:
    def __init__(self, process: Started, token: bytes, serve: Serve, more: Serve | None) -> None:
        self._process = process
        self._token = token
        self._serve = serve
        self._more = more
        self._more_left = 0 if more is None else MORE_MAX
        self._texts = [bytearray(), bytearray()]
        self._dialled = False
        self._served = trio.Event()
        self._code: int | None = None

    async def drive(self, listener: trio.SocketListener) -> None:
        process = self._process
        assert process.stdout is not None
        assert process.stderr is not None
        async with trio.open_nursery() as nursery:
            read = [trio.Event(), trio.Event()]
            nursery.start_soon(_keep, process.stdout, self._texts[0], read[0])
            nursery.start_soon(_keep, process.stderr, self._texts[1], read[1])
            nursery.start_soon(self._door, listener, nursery)
            self._code = await process.wait()
            _kill(process)  # children of it would keep the pipes open
            with trio.move_on_after(GRACE_S):
                for event in (*read, *([self._served] if self._dialled else [])):
                    await event.wait()
            nursery.cancel_scope.cancel()

    async def _door(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        while not self._dialled or self._more_left:
            nursery.start_soon(self._meet, await listener.accept())

    async def _meet(self, stream: trio.SocketStream) -> None:
        try:
            known = await self._knows_token(stream)
        except BaseException:
            stream.socket.close()
            raise
        if self._dialled and known and self._more is not None and self._more_left:
            self._more_left -= 1
            await self._more(take_socket(stream, DEFAULT_OPTIONS))
            return
        if self._dialled or not known:
            stream.socket.close()
            return
        self._dialled = True
        try:
            await self._serve(take_socket(stream, DEFAULT_OPTIONS))
        finally:
            self._served.set()

    async def _knows_token(self, stream: trio.SocketStream) -> bool:
        shown = b""
        with trio.move_on_after(TOKEN_S), suppress(trio.BrokenResourceError):
            # Not a byte more: what follows is the protocol's, or TLS's.
            while len(shown) < TOKEN_BYTES and (part := await stream.receive_some(TOKEN_BYTES - len(shown))):
                shown += part
        return hmac.compare_digest(shown, self._token)

    def ended(self, directory: Path, timeout_s: float) -> Ended:
        stdout, stderr = (_text(bytes(kept)) for kept in self._texts)
        report, reason = None, ""
        if self._code == Exit.BEHAVED:
            try:
                report = read_report(directory)
            except ContractError as error:
                reason = str(error)
        return Ended(self._code, stdout, stderr, report, reason, self._dialled, timeout_s)


async def _keep(stream: trio.abc.ReceiveStream, kept: bytearray, read: trio.Event) -> None:
    """Read a pipe to its end, so that its writer never waits, and keep the beginning."""
    async with stream:
        async for data in stream:
            kept += data[: TEXT_BYTES_MAX - len(kept)]
    read.set()


def _text(data: bytes) -> str:
    cut = "\n(and more, which was not kept)" if len(data) >= TEXT_BYTES_MAX else ""
    return data.decode(errors="backslashreplace") + cut


def _kill(process: Started) -> None:
    """The whole group, the leader's children included; a group that is gone has nobody to kill."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
