"""The demo with a process or KVM guest: two holders and two endpoints, four processes of the usual commands.

This one watches them: it follows what they say on stdout, looks at the holders as an observer, and ends what
is left of them in any case. They also end by themselves when this process is gone, however it went.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import trio

from sterna.cli.demo_costs import Costs
from sterna.cli.demo_run import AFTER_S, BEFORE_S, DemoRun, Wishes
from sterna.cli.events import Fields
from sterna.cli.follow import Reporter
from sterna.cli.output import SCHEMA
from sterna.cli.units import format_rate, format_streams
from sterna.errors import ConfigError, GuestError
from sterna.guest.holder_client import HolderStatus, connect_holder
from sterna.host.evidence import JOURNAL

SOURCE: Final = "source"
DESTINATION: Final = "destination"
SOURCE_HOLDER: Final = "source_holder"
DESTINATION_HOLDER: Final = "destination_holder"
ROLES: Final = (SOURCE, DESTINATION, SOURCE_HOLDER, DESTINATION_HOLDER)

_SOCKET_PATH_BYTES: Final = 107  # of a Unix socket's address; fixed by the kernel
_START_WITHIN_S: Final = 60.0
_LOOK_WITHIN_S: Final = 10.0
_POLL_S: Final = 0.05
_END_WITHIN_S: Final = 5.0
_LINE_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 2000


class ChildError(GuestError):
    """A process of the demo has ended before its time."""


@dataclass
class Child:
    """One of the processes.

    Attributes:
        name: for people.
        process: ours to end.
        log: file with what it wrote to stderr.
        last: the newest line of stdout that was read, decoded.
    """

    name: str
    process: trio.Process
    log: Path
    last: Fields = field(default_factory=dict)
    _received: bytearray = field(default_factory=bytearray)

    async def next_line(self) -> Fields | None:
        """The next object that it says; None when it has ended."""
        assert self.process.stdout is not None
        while b"\n" not in self._received:
            data = await self.process.stdout.receive_some()
            if not data:
                return None
            self._received += data
            if len(self._received) > _LINE_BYTES:
                raise ChildError(f"{self.name}: a line without end")
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        decoded = json.loads(bytes(line))
        if not isinstance(decoded, dict) or decoded.get("schema") != SCHEMA:
            raise ChildError(f"{self.name} says something unknown")
        self.last = decoded
        return decoded

    async def until(self, event: str) -> Fields:
        """Read on to this event.

        Raises:
            ChildError: it has ended without it.
        """
        while (line := await self.next_line()) is not None:
            if line.get("event") == event:
                return line
        raise await self.failed()

    async def failed(self) -> ChildError:
        """What is known of its end, which is waited for."""
        code = await self.process.wait()
        said = self.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
        return ChildError(f"the {self.name} has ended with exit code {code}: {said}")


class ProcessDemo:
    """One run, in `directory`, which is the caller's to remove.

    Args:
        wishes: what was asked for.
        reporter: told of the source's events.
        directory: for sockets and logs.
        security: options of both endpoints that say how they authenticate.
        kind: of guest, ``process`` or ``kvm``.
    """

    def __init__(
        self,
        wishes: Wishes,
        reporter: Reporter,
        directory: Path,
        security: Mapping[str, Sequence[str]],
        kind: str = "process",
    ) -> None:
        self._kind = kind
        self._wishes = wishes
        self._reporter = reporter
        self._directory = directory
        self._security = security
        self._children: dict[str, Child] = {}
        self._costs: Costs | None = None
        self._sockets = {name: directory / f"{name}.sock" for name in (SOURCE, DESTINATION)}
        if len(str(self._sockets[DESTINATION])) > _SOCKET_PATH_BYTES:
            raise ConfigError(f"{directory} is too long a path for a socket: set TMPDIR to a shorter one")

    async def run(self) -> DemoRun:
        """Let the guest run, move it, let it run on, audit it; leave no process behind."""
        try:
            return await self._run()
        finally:
            with trio.CancelScope(shield=True):
                await self._end_all()

    async def _run(self) -> DemoRun:
        with trio.move_on_after(_START_WITHIN_S) as starting:
            await self._start_holders()
            port = await self._start_destination()
        if starting.cancelled_caught:
            raise ChildError(f"not everything has started within {_START_WITHIN_S:g} s")
        before = await self._look(SOURCE, lambda status: status.figure("running_s") >= BEFORE_S)
        holders = {SOURCE_HOLDER: before, DESTINATION_HOLDER: await self._look(DESTINATION, lambda _: True)}
        source = await self._migrate(port, holders)
        destination = await self._end_of_destination()
        left = _mapping(source, "holder")
        if self._costs is not None:
            self._costs.note_holder(SOURCE_HOLDER, left)
            self._costs.note_holder(DESTINATION_HOLDER, _mapping(destination, "holder"))
        run = DemoRun(
            guest=self._kind,
            tracker=before.tracker,
            hot_bytes=int(before.figure("hot_set_bytes")),
            source=source,
            destination=destination,
            write_rate_bytes_s=int(before.figure("rate_bytes_s")),
            dirty_rate_bytes_s=int(before.figure("distinct_bytes_s")),
            blackout_guest_s=None,
            writes_before=_count(left, "writes"),
            audit=None,
            processes={name: self._children[name].process.pid for name in ROLES},
            cpu_seconds=None if self._costs is None else self._costs.seconds,
            failures=_failures(source) + _failures(destination),
        )
        return await self._look_after(run, left) if destination.get("runs") else run

    async def _start_holders(self) -> None:
        wishes = self._wishes
        common = ["--json", "--die-with", str(os.getpid()), "--guest", self._kind]
        if wishes.evidence is not None:
            common += ["--journal", str(wishes.evidence.path(JOURNAL))]
        rate = ["--dirty-rate", f"{wishes.rate_bytes_s}B/s"]
        make = ["--memory", f"{wishes.memory_bytes}B", "--hot", f"{wishes.hot_bytes}B", *rate]
        if wishes.heads:
            make.append("--heads")
        if self._kind == "kvm":
            make += ["--vcpus", str(wishes.vcpus)]
        if wishes.store:  # whoever starts a guest claims its first epoch, on record
            make += ["--host", SOURCE, *self._ownership(SOURCE)]
        await self._start(SOURCE_HOLDER, ["holder", "--socket", str(self._sockets[SOURCE]), *make, *common])
        # The rate belongs to the host: at the destination the guest shall write as fast as at the source.
        room = ["holder", "--socket", str(self._sockets[DESTINATION]), "--destination", *rate, *common]
        if wishes.room:
            room += ["--room", f"{wishes.memory_bytes}B"]
        await self._start(DESTINATION_HOLDER, room)
        for name in (SOURCE_HOLDER, DESTINATION_HOLDER):
            if await self._children[name].next_line() is None:
                raise await self._children[name].failed()

    async def _start_destination(self) -> int:
        command = ["serve", "--listen", "127.0.0.1:0", "--holder", str(self._sockets[DESTINATION]), "--once"]
        child = await self._start(DESTINATION, [*command, *self._endpoint_options(DESTINATION)])
        addresses = (await child.until("listening")).get("addresses")
        assert isinstance(addresses, list)
        return int(str(addresses[0]).rpartition(":")[2])

    async def _migrate(self, port: int, holders: Mapping[str, HolderStatus]) -> Fields:
        """Send the guest, showing what the source says; its result, or its error."""
        command = ["migrate", "--to", f"127.0.0.1:{port}", "--holder", str(self._sockets[SOURCE])]
        command += ["--switchover", self._wishes.switchover, "--downtime", f"{self._wishes.downtime_s}s"]
        command += ["--streams", format_streams(self._wishes.streams), "--compress", self._wishes.compress]
        if self._wishes.bandwidth_bytes_s is not None:
            command += ["--bandwidth", format_rate(self._wishes.bandwidth_bytes_s)]
        if self._wishes.record is not None:
            command += ["--record", str(self._wishes.record)]
        child = await self._start(SOURCE, [*command, *self._endpoint_options(SOURCE)])
        while (line := await child.next_line()) is not None:
            if line.get("event") in {"result", "error"}:
                self._note(SOURCE)
                break
            if line.get("event") == "migration":
                pids = {name: self._children[name].process.pid for name in (SOURCE, DESTINATION)}
                self._costs = Costs(pids, holders)
            if line.get("event") != "notice":  # this command has said it itself
                self._reporter.emit(line)
        else:
            raise await child.failed()
        await child.process.wait()
        if child.last.get("event") == "error":
            raise await child.failed()
        return child.last

    async def _end_of_destination(self) -> Fields:
        child = self._children[DESTINATION]
        with trio.move_on_after(_END_WITHIN_S):
            while (line := await child.next_line()) is not None:
                if line.get("event") == "result":
                    self._note(DESTINATION)
                    return line
        return {}

    def _note(self, role: str) -> None:
        if self._costs is not None:
            self._costs.note_endpoint(role)

    def _ownership(self, name: str) -> list[str]:
        records = self._wishes.records or self._directory
        return ["--records", str(records / f"records-{name}"), *self._wishes.store]

    def _endpoint_options(self, name: str) -> list[str]:
        options = [*self._security[name], *self._ownership(name), "--follow", "--die-with", str(os.getpid())]
        if self._wishes.unverified:
            options.append("--unverified")
        if not self._wishes.early_pages:
            options.append("--no-early-pages")
        if self._wishes.evidence is not None:
            options += ["--evidence", str(self._wishes.evidence.directory)]
        return options

    async def _look(self, name: str, satisfied: Callable[[HolderStatus], bool]) -> HolderStatus:
        """Watch a held guest until it is as wished; after a while take it as it is."""
        async with await connect_holder(self._sockets[name], role="observer") as connection:
            status = await connection.status()
            with trio.move_on_after(_LOOK_WITHIN_S):
                while not satisfied(status):
                    await trio.sleep(_POLL_S)
                    status = await connection.status()
            return status

    async def _look_after(self, run: DemoRun, left: Mapping[str, object]) -> DemoRun:
        """See how the guest does at the destination."""
        status = await self._look(
            DESTINATION,
            lambda status: bool(status.figure("first_write_ns")) and status.figure("running_s") >= AFTER_S,
        )
        # Endpoints have let go of the holder by now; an audit is for a controller.
        async with await connect_holder(self._sockets[DESTINATION]) as connection:
            audit = await connection.audit()
        stood_ns = status.figure("first_write_ns") - _count(left, "last_write_ns")
        return replace(
            run,
            blackout_guest_s=stood_ns / 1e9,
            faults=_faults(status),
            cpu=_cpu(left, status, audit) if self._kind == "kvm" else None,
            audit={
                "pages_checked": _count(audit, "pages_checked"),
                "errors": _count(audit, "errors") + _count(audit, "errors_while_running"),
                "writes": _count(audit, "writes"),
            },
        )

    async def _start(self, name: str, arguments: Sequence[str]) -> Child:
        log = self._directory / f"{name}.log"
        with log.open("wb") as stderr:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", "sterna", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                # Ctrl-C in the terminal is this process's to hand on, in the right order.
                start_new_session=True,
            )
        child = self._children[name] = Child(name.replace("_", " "), process, log)
        return child

    async def _end_all(self) -> None:
        """End what is left, endpoints before holders: while one asks, the guest is where it should be."""
        for names in ((SOURCE, DESTINATION), (SOURCE_HOLDER, DESTINATION_HOLDER)):
            with trio.move_on_after(_END_WITHIN_S):
                async with trio.open_nursery() as nursery:
                    for name in names:
                        if name in self._children:
                            nursery.start_soon(_end, self._children[name].process)
        for child in self._children.values():
            if child.process.returncode is None:
                child.process.kill()
                await child.process.wait()
            if child.process.stdout is not None:
                await child.process.stdout.aclose()


async def _end(process: trio.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        await process.wait()


def _faults(status: HolderStatus) -> Mapping[str, float] | None:
    """The guest's own measure of its waits for pages."""
    count = status.figure("fault_count")
    if not count:
        return None
    names = {"p50_s": "fault_p50_ns", "p99_s": "fault_p99_ns", "max_s": "fault_max_ns"}
    names |= {"first_p50_s": "fault_first_p50_ns", "first_p99_s": "fault_first_p99_ns"}
    found = {"count": count, "first_count": status.figure("fault_first_count")}
    return {**found, **{name: status.figure(figure) / 1e9 for name, figure in names.items()}}


def _cpu(
    left: Mapping[str, object], status: HolderStatus, audit: Mapping[str, object]
) -> Mapping[str, float]:
    """What host and guest have looked at of the processors, and of time while the guest moved."""
    looked = _count(audit, "registers_looked_at")
    stood_ns = int(status.figure("all_ran_ns")) - _count(left, "idle_since_ns")
    return {
        "sections": int(status.figure("sections")),
        "registers_checked": int(status.figure("registers_checked")) + looked,
        "mismatches": _count(audit, "register_mismatches"),
        "time_backwards": _count(audit, "time_backwards"),
        "time_jump_s": _count(audit, "time_jump_ns") / 1e9,
        "stood_s": stood_ns / 1e9,
    }


def _mapping(fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _count(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) else 0


def _failures(fields: Mapping[str, object]) -> tuple[str, ...]:
    found = (fields.get("evidence_failures"), fields.get("recording_failures"))
    return tuple(str(each) for listed in found if isinstance(listed, list) for each in listed)
