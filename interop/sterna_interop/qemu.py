"""QEMU as the peer of a benchmark: machines whose memory is a file of ours.

A source without a program is never started, so what its memory holds is what was put into the file; a
destination waits for it. Both map their files from the start and populate the mapping, so that no page is
touched for the first time while the clock runs. Bandwidth is unlimited. The time is that from the command to
the destination's event that says the machine is there and could run.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from sterna.errors import ConfigError, GuestError
from sterna.linux.cpu_time import process_cpu_s, thread_cpu_s

PROGRAM: Final = "qemu-system-x86_64"
UNLIMITED_BYTES_S: Final = 1 << 40
ANSWER_WITHIN_S: Final = 60.0

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None)

Reply: TypeAlias = Mapping[str, object]


def program() -> str:
    """Where QEMU is.

    Raises:
        ConfigError: it is not installed.
    """
    found = shutil.which(PROGRAM)
    if found is None:
        raise ConfigError(
            f"{PROGRAM} is not installed: apt-get install --no-install-recommends qemu-system-x86, "
            "or leave --against out"
        )
    return found


def version() -> str:
    """QEMU's own words, for example ``7.2.22``."""
    done = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True)
    words = done.stdout.split()
    return words[words.index("version") + 1]


@dataclass(frozen=True, slots=True)
class Tls:
    """Where QEMU finds certificates, in the names that it wants.

    Attributes:
        directory: has ca-cert.pem, and {client,server}-{cert,key}.pem.
        hostname: that the destination's certificate bears.
    """

    directory: Path
    hostname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How QEMU migrates.

    Attributes:
        channels: 1 is the classic stream; more are multifd with so many.
        tls: mutual TLS, None for plain TCP.
        downtime_ms: how long the machine may stand still.
        parameters: of ``migrate-set-parameters``, more than these.
        capabilities: to be switched on, more than these.
    """

    channels: int = 1
    tls: Tls | None = None
    downtime_ms: int = 20
    parameters: Mapping[str, object] | None = None
    capabilities: Sequence[str] = ()

    def all_capabilities(self) -> list[Mapping[str, object]]:
        """As QMP wants them."""
        names = ["events", *self.capabilities, *(["multifd"] if self.channels > 1 else [])]
        return [{"capability": name, "state": True} for name in names]

    def all_parameters(self, *, source: bool) -> Mapping[str, object]:
        """As QMP wants them."""
        found: dict[str, object] = {"max-bandwidth": UNLIMITED_BYTES_S, "downtime-limit": self.downtime_ms}
        if self.channels > 1:
            found["multifd-channels"] = self.channels
        if self.tls is not None:
            found |= {"tls-creds": "tls", **({"tls-hostname": self.tls.hostname} if source else {})}
        return found | dict(self.parameters or {})


class Machine:
    """A QEMU over the memory in `path`."""

    def __init__(
        self,
        directory: Path,
        name: str,
        path: str,
        size_bytes: int,
        settings: Settings,
        *,
        source: bool,
        kernel: Path | None = None,
    ) -> None:
        """`kernel`: what runs in it, in the format of multiboot; without one it stands still."""
        self._name = name
        self._socket = directory / f"{name}.qmp"
        self._log = directory / f"{name}.log"
        self._received = b""
        self._events: list[Reply] = []
        self._stack = ExitStack()
        command = [
            *(program(), "-nodefaults", "-display", "none", "-accel", "tcg"),
            *(["-S"] if kernel is None else ["-kernel", str(kernel)]),
            *("-m", f"{size_bytes >> 10}k", "-machine", "pc,memory-backend=pc.ram"),
            "-object",
            f"memory-backend-file,id=pc.ram,size={size_bytes},mem-path={path},share=on,prealloc=on",
            *("-qmp", f"unix:{self._socket},server=on,wait=off"),
        ]
        if settings.tls is not None:
            end = "client" if source else "server"
            command += [
                "-object",
                f"tls-creds-x509,id=tls,dir={settings.tls.directory},endpoint={end},verify-peer=on",
            ]
        if not source:
            command += ["-incoming", "defer"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # benchmarks fork, and so have no threads
            )
        self._stack.callback(self._end)
        try:
            self._connection = self._stack.enter_context(self._connect())
            self._read()  # its greeting
            self.ask("qmp_capabilities")
            self.ask("migrate-set-capabilities", capabilities=settings.all_capabilities())
            self.ask("migrate-set-parameters", **settings.all_parameters(source=source))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU seconds so far, of all its threads, those included that have ended."""
        return process_cpu_s(self.pid)

    def guest_cpu_s(self) -> float:
        """Of these, what the threads of its vCPUs have spent."""
        vcpus = self.ask("query-cpus-fast")
        assert isinstance(vcpus, list)
        return sum(thread_cpu_s(self.pid, int(each["thread-id"])) for each in vcpus)

    def ask(self, command: str, **arguments: object) -> object:
        """Execute a command of QMP.

        Raises:
            GuestError: it fails, or QEMU is gone.
        """
        request = {"execute": command, "arguments": arguments}
        self._connection.sendall(json.dumps(request).encode())
        while True:
            reply = self._read()
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise GuestError(f"QEMU, {command}: {reply['error']}")
            self._events.append(reply)

    def until(self, name: str, **wanted: object) -> Reply:
        """Wait for an event with these data.

        Raises:
            GuestError: its migration failed meanwhile, or it is gone.
        """
        while True:
            while self._events:
                event = self._events.pop(0)
                data = event.get("data")
                data = data if isinstance(data, dict) else {}
                if event.get("event") == name and wanted.items() <= data.items():
                    return event
                if event.get("event") == "MIGRATION" and data.get("status") == "failed":
                    raise GuestError(f"QEMU's migration failed: {self.ask('query-migrate')}; {self._said()}")
            reply = self._read()
            if "event" in reply:
                self._events.append(reply)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ANSWER_WITHIN_S)
        until = time.monotonic() + ANSWER_WITHIN_S
        while True:
            try:
                connection.connect(str(self._socket))
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process.poll() is not None or time.monotonic() > until:
                    connection.close()
                    raise GuestError(f"QEMU does not start: {self._said()}") from None
                time.sleep(0.005)
            else:
                return connection

    def _read(self) -> Reply:
        while b"\n" not in self._received:
            try:
                data = self._connection.recv(1 << 16)
            except TimeoutError:
                raise GuestError(f"QEMU says nothing for {ANSWER_WITHIN_S:g} s") from None
            except ConnectionResetError:
                data = b""
            if not data:
                self._process.wait(ANSWER_WITHIN_S)
                raise GuestError(f"QEMU has ended: {self._said()}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        reply: Reply = json.loads(line)
        return reply

    def _said(self) -> str:
        return self._log.read_text(errors="replace").strip()[-500:] or "without a word"

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.unlink(missing_ok=True)


def _die_with_parent() -> None:
    """A benchmark that is killed leaves no machine behind."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
