"""What `sterna serve` and `sterna migrate` share: who they are, how long they wait, and how they end."""

from __future__ import annotations

import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import trio
from cyclopts import Parameter

from sterna.cli.follow import ConnectionReporter, Reporter
from sterna.core.deadlines import Deadlines
from sterna.errors import ConfigError, GuestError
from sterna.host.evidence import WARNING
from sterna.host.peers import PeerList
from sterna.linux.pidfd import Pidfd
from sterna.net.identity import CA_CERTIFICATE, check_name, is_name
from sterna.net.recorder import record
from sterna.net.tls import CheckPeer, TlsConfig
from sterna.net.transport import Transport
from sterna.observe.recording import Side

Flag = Annotated[bool, Parameter(negative=(), show_default=False)]
ProcessOption = Annotated[int | None, Parameter(show_default=False)]
PathOption = Annotated[Path | None, Parameter(show_default=False)]

Emitter: TypeAlias = Reporter | ConnectionReporter

PROGRESS_S: Final = 0.2

UNVERIFIED: Final = (
    "--unverified: pages are not verified if the other side says so, too. Bytes that change in memory, or on "
    "a connection without TLS, are found by nobody then, and the guest runs with them."
)
INSECURE: Final = (
    "--insecure: no TLS. Everybody on the network can read the guest's memory, change it on its way, "
    "and send or take guests. For tests on a network of your own only."
)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """Who this host is and whom it talks to."""

    pki: PathOption = None
    """directory with ca.pem, NAME.pem and NAME.key (`sterna pki`)."""

    insecure: Flag = False
    """plaintext, with everybody; instead of --pki."""

    name: Annotated[str, Parameter(show_default=False)] = ""
    """this host's identity; by default the machine's name."""

    peers: PathOption = None
    """peer list (TOML): which hosts are known, and which guests they may send or receive."""

    @property
    def own_name(self) -> str:
        """The name to use.

        Raises:
            ConfigError: it can be no host's identity.
        """
        if self.name:
            return check_name(self.name)
        machine = socket.gethostname().lower()
        return machine if is_name(machine) else "localhost"

    def peer_list(self) -> PeerList | None:
        """The peer list, None if none was given.

        Raises:
            ConfigError: it is not usable.
        """
        if self.peers is not None and self.insecure:
            raise ConfigError("--peers goes with --pki: without certificates nobody knows who a peer is")
        return None if self.peers is None else PeerList.load(self.peers)

    def tls(self, check_peer: CheckPeer) -> TlsConfig | None:
        """This side of TLS, None for plaintext.

        Raises:
            ConfigError: neither or both of --pki and --insecure were given; there is no certificate, or it
                cannot be read.
        """
        if (self.pki is None) == (not self.insecure):
            raise ConfigError("say either --pki DIR (see `sterna pki`) or --insecure, which is plaintext")
        if self.pki is None:
            return None
        name = self.own_name
        certificate = self.pki / f"{name}.pem"
        try:
            certificate.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                f"there is no {certificate}: this host calls itself {name!r}, so give it another --name, or "
                f"make one where the CA's key is: sterna pki issue DIR {name}"
            ) from error
        except OSError as error:
            raise ConfigError(f"cannot read {certificate}: {error.strerror}") from error
        return TlsConfig(certificate, self.pki / f"{name}.key", self.pki / CA_CERTIFICATE, check_peer)


def deadlines(patience_s: float | None) -> Deadlines:
    """The deadlines for an operator who waits no longer than this for a peer, in any phase.

    Raises:
        ConfigError: too short for a heartbeat to arrive in.
    """
    usual = Deadlines()
    if patience_s is None:
        return usual
    if patience_s < 0.1:
        raise ConfigError("--patience: less than 100ms is less than a peer needs to answer")
    all_alike = dict.fromkeys((field.name for field in fields(Deadlines)), patience_s)
    return replace(
        Deadlines(**all_alike),
        heartbeat_s=min(usual.heartbeat_s, patience_s / 4),
        silence_s=min(usual.silence_s, patience_s),
        stall_s=min(usual.stall_s, patience_s),
    )


def ending_signals() -> tuple[signal.Signals, ...]:
    """Signals that end a command in order; a terminal that is closed does not if `nohup` said so."""
    wanted = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    return tuple(one for one in wanted if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN)


class Ending:
    """How a command ends before its time: SIGINT, SIGTERM, SIGHUP, or the end of another process.

    Attributes:
        ask: what the first wish to end does; None, and any later wish, cancels `scope`.
        interrupted: whether it did.
        late: whether a wish came when the guest might have left: it only asks then [CON-72].
    """

    def __init__(self, scope: trio.CancelScope) -> None:
        self.ask: Callable[[str], None] | None = None
        self.interrupted = False
        self.late = False
        self._scope = scope

    async def watch(
        self, *, process: int | None = None, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Wait for reasons to end; the end of `process` is one."""
        with trio.open_signal_receiver(*ending_signals()) as signals:
            async with trio.open_nursery() as nursery:
                if process is not None:
                    nursery.start_soon(self._watch_process, process)
                task_status.started()
                async for number in signals:
                    self.end(signal.Signals(number).name)

    def end(self, why: str) -> None:
        """Somebody wishes this command to end."""
        ask, self.ask = self.ask, None
        if ask is not None:
            ask(why)
        else:
            self.interrupted = True
            self._scope.cancel()

    async def _watch_process(self, number: int) -> None:
        watched = open_process(number)
        if watched is not None:
            try:
                await trio.lowlevel.wait_readable(watched)
            finally:
                watched.close()
        self.end(f"process {number} has ended")


def open_process(number: int) -> Pidfd | None:
    """A process to be watched; None if it has ended already.

    Whoever starts a command with --die-with says its own number: asking the system for the parent would
    answer wrongly when that has ended before the command could ask.
    """
    try:
        return Pidfd.open(number)
    except ProcessLookupError:
        return None


def holder_missing(error: GuestError, path: Path, options: str) -> GuestError:
    """The same, with what to do about it.

    Args:
        error: of `connect_holder`.
        path: the holder's socket.
        options: of the `sterna holder` that would help.
    """
    match error.__cause__:
        case ConnectionRefusedError() if not path.is_socket():
            return GuestError(f"{error.detail}: that is no holder's socket")
        case ConnectionRefusedError() | FileNotFoundError():
            start = f"start one with sterna holder --socket {path} {options}".rstrip()
            return GuestError(f"{error.detail}: {start}")
        case _:
            return error


@dataclass(slots=True)
class Recording:
    """What --record asks for.

    Attributes:
        wrap: puts a recording transport around another; without --record the other one itself.
        failures: what could not be recorded, in words.
    """

    wrap: Callable[[Transport], Transport] = lambda transport: transport
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def recorded(
    path: Path | None, side: Side, reporter: Reporter, *, aloud: bool = True
) -> AsyncIterator[Recording]:
    """Record to this file; None records nothing.

    Args:
        path: where to.
        side: which endpoint this is.
        reporter: told of what goes wrong.
        aloud: say what the file will hold, unless somebody has done that [SEC-15].

    Raises:
        ConfigError: the file cannot be made.
    """
    recording = Recording()
    if path is None:
        yield recording
        return

    def failed(text: str) -> None:
        recording.failures.append(f"{path}: {text}")
        reporter.notice(f"{path}: {text}")

    async with record(path, side, failed) as recorder:
        if aloud:
            reporter.notice(f"{path} {WARNING}")
        recording.wrap = recorder.wrap
        yield recording


async def tell_progress(reporter: Emitter, passed: Callable[[], tuple[int, int]]) -> None:
    """Report how many bytes were sent and received, on all connections, until cancelled."""
    while True:
        sent, received = passed()
        reporter.emit({"event": "progress", "bytes_sent": sent, "bytes_received": received})
        await trio.sleep(PROGRESS_S)
