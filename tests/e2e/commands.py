"""Real processes for the end-to-end tests: the commands as users call them, watched by their `--follow`.

Nothing here sleeps to wait: everything waits for an event, a state or an end, with a deadline that only a
hang reaches.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio

from sterna.errors import GuestError
from sterna.guest.holder_client import HolderStatus, connect_holder
from sterna.host.failpoint import VARIABLE
from sterna.host.pki import init_ca, issue
from sterna.registry import ErrorCode
from sterna_interop.start import Zygote
from sterna_interop.zygote import STOPPED

DEADLINE_S = 60.0
POLL_S = 0.01

PEERS = """
[[peer]]
identity = "host-a"
may_send = ["*"]
may_receive = ["*"]

[[peer]]
identity = "host-b"
may_send = ["*"]
may_receive = ["*"]
"""


def forked(zygote: Zygote, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
    """A command that the zygote starts."""
    (stdout, stdout_end), (told, told_end) = os.pipe(), os.pipe()
    try:
        with log.open("ab") as stderr:
            zygote.ask(arguments, environment, [stdout_end, stderr.fileno(), told_end])
    except OSError:
        os.close(stdout)
        os.close(told)
        raise
    finally:
        os.close(stdout_end)
        os.close(told_end)
    return Process(stdout, told)


class Process:
    """A process that the zygote has started.

    Attributes:
        pid: of it.
        returncode: None as long as it is there; negative for a signal.
        stdout: what it writes.
    """

    def __init__(self, stdout: int, told: int) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self.stdout = trio.lowlevel.FdStream(stdout)
        self._told = trio.lowlevel.FdStream(told)
        self._changed = trio.lowlevel.ParkingLot()
        self._stopped = False

    async def watch(self) -> None:
        """Hear what becomes of it, until it has ended."""
        async with self._told:
            async for line in _lines(self._told):
                if line == STOPPED:
                    self._stopped = True
                elif self.pid:
                    self.returncode = int(line)
                else:
                    self.pid = int(line)
                self._changed.unpark_all()
        assert self.returncode is not None, "the zygote has died"

    async def begins(self) -> None:
        """Wait until it is there."""
        while not self.pid:
            await self._changed.park()

    async def stops(self) -> None:
        """Wait until it has stopped itself, or has ended."""
        while not (self._stopped or self.returncode is not None):
            await self._changed.park()

    def send_signal(self, number: int) -> None:
        """A signal. It is not sent to whoever has the same id later."""
        if self.returncode is None:
            if number == signal.SIGCONT:
                self._stopped = False
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    received = b""
    async for data in stream:
        *whole, received = (received + data).split(b"\n")
        for line in whole:
            yield line.decode()


class Command:
    """A running `sterna` command. With --follow, or --json, `lines` are the objects that it has written."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.lines: list[dict] = []
        self.ended = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()

    async def read(self) -> None:
        """Read everything that it writes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.process.watch)
            async with self.process.stdout:
                async for line in _lines(self.process.stdout):
                    self.lines.append(json.loads(line))
                    self._changed.unpark_all()
        self.ended.set()
        self._changed.unpark_all()

    async def until(
        self, event: str, found: Callable[[dict], bool] = lambda _: True, *, since: int = 0
    ) -> dict:
        """The first line of this event that is as wished, now or later, behind the first `since` lines."""
        with trio.fail_after(DEADLINE_S):
            while True:
                for line in self.lines[since:]:
                    if line.get("event", event) == event and found(line):
                        return line
                assert not self.ended.is_set(), f"{self.name} has ended without {event}: {self.said()}"
                await self._changed.park()

    async def end(self) -> int:
        """Its exit code, when it has ended."""
        with trio.fail_after(DEADLINE_S):
            await self.ended.wait()
        return self.process.returncode

    @property
    def last(self) -> dict:
        """The last line: its result, or its error."""
        return self.lines[-1]

    def send(self, number: int) -> None:
        """A signal."""
        self.process.send_signal(number)

    async def stops(self) -> None:
        """Wait until it has stopped itself."""
        with trio.fail_after(DEADLINE_S):
            await self.process.stops()
        assert self.process.returncode is None, f"{self.name} has not come to its place: {self.said()}"

    async def dies(self) -> None:
        """Kill it where it has stopped itself: no handler runs, no file is closed."""
        await self.stops()
        self.send(signal.SIGKILL)
        assert await self.end() == -signal.SIGKILL

    def said(self) -> str:
        """What it wrote for people."""
        return self.log.read_text(errors="replace")

    async def says(self, text: str) -> None:
        """Wait until it has written this for people, which may be later than the line for programs."""
        with trio.fail_after(DEADLINE_S):
            while True:
                if text in self.said():
                    return
                await trio.sleep(POLL_S)


class World:
    """A directory with certificates and sockets, and the processes that were started in it."""

    def __init__(self, directory: Path, pki: Path, zygote: Zygote, nursery: trio.Nursery) -> None:
        self.directory = directory
        self.pki = pki
        self.peers = directory / "peers.toml"
        self.peers.write_text(PEERS)
        self.journal = directory / "journal.ndjson"
        self._zygote = zygote
        self._nursery = nursery
        self._commands: list[Command] = []

    async def start(self, *arguments: object, stop: str = "") -> Command:
        """A `sterna` command; one that stops itself at this place (sterna.host.failpoint)."""
        name = f"{arguments[0]}-{len(self._commands)}"
        log = self.directory / f"{name}.log"
        log.touch()
        environment = {VARIABLE: stop} if stop else {}
        process = forked(self._zygote, [*map(str, arguments)], log, environment)
        command = Command(name, process, log)
        self._commands.append(command)
        self._nursery.start_soon(command.read)
        await process.begins()
        return command

    def socket(self, name: str) -> Path:
        """Where a holder of this name is."""
        return self.directory / f"{name}.sock"

    async def holder(self, name: str, *options: object) -> Command:
        """A holder that is ready; all write one journal."""
        arguments = [
            "--socket",
            self.socket(name),
            "--journal",
            self.journal,
            "--json",
            "--die-with",
            os.getpid(),
        ]
        command = await self.start("holder", *arguments, *options)
        await command.until("ready")
        return command

    async def source(self, name: str = "s", *options: object) -> Command:
        """A holder with a small guest that writes."""
        sizes = ["--memory", "16MiB", "--hot", "4MiB", "--dirty-rate", "4MiB/s"]
        return await self.holder(name, *sizes, *options)

    async def room(self, name: str = "d", *options: object) -> Command:
        """A holder without a guest."""
        return await self.holder(name, "--destination", "--dirty-rate", "4MiB/s", *options)

    def secured(self, name: str, pki: Path | None = None) -> list[object]:
        """Options of an endpoint with certificates."""
        return ["--pki", pki or self.pki, "--name", name]

    def records(self, host: str) -> list[object]:
        """Options that say where the records of a host are."""
        return ["--records", self.directory / f"records-{host}"]

    async def serve(
        self, *options: object, insecure: bool = False, holder: str = "d", host: str = "b", stop: str = ""
    ) -> tuple[Command, int]:
        """A destination that listens, and its port."""
        security = ["--insecure"] if insecure else [*self.secured("host-b"), "--peers", self.peers]
        arguments = ["--listen", "127.0.0.1:0", "--holder", self.socket(holder), "--follow", *security]
        arguments += [*self.records(host), "--die-with", os.getpid()]
        command = await self.start("serve", *arguments, *options, stop=stop)
        address = (await command.until("listening"))["addresses"][0]
        return command, int(address.rpartition(":")[2])

    async def migrate(
        self,
        port: int,
        *options: object,
        insecure: bool = False,
        holder: str = "s",
        security: Sequence[object] = (),
        host: str = "a",
        stop: str = "",
    ) -> Command:
        """A source that sends the guest there."""
        usual = ["--insecure"] if insecure else [*self.secured("host-a"), "--peer", "host-b"]
        arguments = ["--to", f"127.0.0.1:{port}", "--holder", self.socket(holder), "--follow"]
        if "--resume" not in options:
            arguments += ["--resume", "2s"]  # the faults of most tests are for good
        if "--undecided-after" not in options:
            arguments += ["--undecided-after", "500ms"]
        arguments += [*self.records(host), "--die-with", os.getpid()]
        return await self.start("migrate", *arguments, *(security or usual), *options, stop=stop)

    async def status(self, holder: str = "s") -> HolderStatus:
        """How a held guest does."""
        with trio.fail_after(DEADLINE_S):
            async with await connect_holder(self.socket(holder), role="observer") as connection:
                return await connection.status()

    async def wait_for(self, holder: str, found: Callable[[HolderStatus], bool]) -> HolderStatus:
        """A held guest's status, once it is as wished."""
        with trio.fail_after(DEADLINE_S):
            async with await connect_holder(self.socket(holder), role="observer") as connection:
                while True:
                    status = await connection.status()
                    if found(status):
                        return status
                    await trio.sleep(POLL_S)

    async def check_runs(self, holder: str = "s") -> None:
        """The guest runs in this holder, unthrottled, untracked, and with nothing lost."""
        before = await self.wait_for(holder, lambda status: status.state == "running" and not status.tracking)
        await self.wait_for(holder, lambda status: status.figure("writes") >= before.figure("writes") + 200)
        audit = await self.audit(holder)
        assert audit["errors"] == audit["errors_while_running"] == 0
        assert audit["registers_good"]

    async def audit(self, holder: str = "s") -> dict:
        """The guest's check of all its memory; an endpoint that has just ended may have to be waited for."""
        with trio.fail_after(DEADLINE_S):
            while True:
                try:
                    async with await connect_holder(self.socket(holder)) as connection:
                        audit = await connection.audit()
                        await connection.detach()
                        return audit
                except GuestError as error:
                    if error.code is not ErrorCode.BUSY:
                        raise
                await trio.sleep(POLL_S)

    async def close(self) -> None:
        """End what is left."""
        for command in self._commands:
            if command.process.returncode is None:
                command.process.send_signal(signal.SIGCONT)
                command.process.kill()
        for command in self._commands:
            await command.end()


def make_pki(directory: Path, *names: str) -> Path:
    """A certificate authority, and certificates for these hosts."""
    init_ca(directory)
    for name in names:
        issue(directory, name, hosts=("127.0.0.1",))
    return directory


def alive(pid: int) -> bool:
    """Whether there is such a process (a zombie is none)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def children_of(pid: int) -> set[int]:
    """Process ids of the children of all its threads."""
    found: set[int] = set()
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        found |= set(map(int, tasks.read_text().split()))
    return found
