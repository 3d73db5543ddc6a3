"""Cells with real processes: two holders with a guest that writes, two endpoints, TLS between them.

Each cell has a directory of its own. What is seen of it is judged by a program of its own (judge.py), which
is started as anybody else would start it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

from sterna.core.events import Outcome
from sterna.errors import GuestError
from sterna.guest.holder_client import HolderStatus, connect_holder
from sterna.host.failpoint import FAILS, VARIABLE
from sterna.host.lease_files import create_file_store
from sterna.host.pki import init_ca, issue
from sterna.matrix.cable import Cable
from sterna.matrix.outcome import NOBODY, Done, Report, conclude
from sterna.matrix.processes import DEADLINE_S, CellFailed, Command, Line
from sterna.matrix.table import Cell, Recovery, Survivor
from sterna.registry import ErrorCode

SOURCE: Final = Survivor.SOURCE
DESTINATION: Final = Survivor.DESTINATION
HOSTS: Final = {SOURCE: "host-a", DESTINATION: "host-b"}

JOURNAL: Final = "journal.ndjson"
AFTER: Final = "after.json"

# Small, so that a cell is over soon, and with enough writes for an audit to mean something.
_GUEST: Final = ("--memory", "4MiB", "--hot", "1MiB", "--dirty-rate", "2MiB/s")
_VCPUS: Final = 2  # of a virtual machine
_ROOM: Final = ("--destination", "--dirty-rate", "2MiB/s")
# A side that stands still is given up after this; who only waits for the fault is not.
_PATIENCE: Final = {"source_frozen": "3s", "destination_frozen": "3s", "store_gone": "2s"}
_PATIENT: Final = "20s"
# A machine that is busy makes every step of a migration slow; the cell is not about that.
_DOWNTIME: Final = "10s"
_POLL_S: Final = 0.01
_WRITES_SEEN: Final = 100
_UNDECIDED_AFTER: Final = "10s"
_RESUME: Final = "30s"
_RUNS_WITHIN_S: Final = 5.0
_TRIES: Final = 3
_EARLY: Final = ("hello", "admitted", "describe", "reserved", "accepted", "round")
_BEFORE_LOADED: Final = frozenset({*_EARLY, "prepare", "paused", "saved", "loading"})
_NOBODY: Final = 1  # a port on which nobody listens: for a source that shall recover, and send nothing again

_PEERS: Final = "".join(
    f'[[peer]]\nidentity = "{name}"\nmay_send = ["*"]\nmay_receive = ["*"]\n\n' for name in HOSTS.values()
)


def can_show(cell: Cell, guest: str = "process") -> bool:
    """Whether real processes can carry this cell out: all, with a process guest.

    Not records that cannot grow, as long as the state of a virtual machine has to go through a memory file of
    the same process: it is larger than they are, and it is the state that fails then.
    """
    return guest != "kvm" or cell.fault.name != "destination_record" or cell.step.name not in _BEFORE_LOADED


def make_hosts(directory: Path) -> None:
    """Certificates and a peer list for both hosts: once for all cells."""
    init_ca(directory, name="matrix")
    for name in HOSTS.values():
        issue(directory, name, hosts=("127.0.0.1",))
    (directory / "peers.toml").write_text(_PEERS)


async def run_cell(
    cell: Cell, directory: Path, hosts: Path, guest: str = "process", *, streams: int = 0
) -> Report:
    """Carry out one cell.

    Args:
        cell: which.
        directory: empty, with a short path; its sockets, logs and evidence are there afterwards.
        hosts: what `make_hosts` has made.
        guest: ``process`` or ``kvm``.
        streams: data connections; a cut goes through all of them.
    """
    began = time.monotonic()
    done = Done()
    try:
        async with trio.open_nursery() as nursery:
            run = _Run(cell, directory, hosts, guest, streams, nursery, done)
            try:
                await run.carry_out()
            finally:
                with trio.CancelScope(shield=True):
                    await run.close()
                nursery.cancel_scope.cancel()
    except* (CellFailed, GuestError) as group:
        done.failures += [str(error) for error in _leaves(group)]
    return conclude(cell, "real", done, time.monotonic() - began)


def _leaves(group: BaseException) -> list[BaseException]:
    if isinstance(group, BaseExceptionGroup):
        return [leaf for each in group.exceptions for leaf in _leaves(each)]
    return [group]


@dataclass
class _Run:
    cell: Cell
    directory: Path
    hosts: Path
    guest: str
    streams: int
    nursery: trio.Nursery
    done: Done
    holders: dict[Survivor, Command] = field(default_factory=dict)
    endpoints: dict[Survivor, Command] = field(default_factory=dict)
    cable: Cable = field(default_factory=lambda: Cable(0))
    _first: dict[Survivor, Command] = field(default_factory=dict)
    _started: list[Command] = field(default_factory=list)

    async def carry_out(self) -> None:
        """From the first process to the judge's word."""
        await self._start_holders()
        await self._start_endpoints()
        stopping = self.endpoints[self.cell.step.side]
        if not await stopping.stopped():
            raise CellFailed(f"the {stopping.name} has ended before it stopped: {stopping.said()}")
        await self._inject()
        if self.cell.step.side is not self._frozen:
            stopping.thaw()
        await self._meanwhile()
        await self._bring_back()
        await self._settle()
        await self._look_after()

    # ---- before ----

    async def _start_holders(self) -> None:
        if self.cell.store:
            create_file_store(self._store)
        journal = ("--journal", self.directory / JOURNAL, "--json", "--die-with", os.getpid())
        vcpus = ("--vcpus", self._vcpus) if self._vcpus else ()
        for side, options in ((SOURCE, (*_GUEST, *vcpus)), (DESTINATION, _ROOM)):
            owned = (*self._owned(side), "--host", HOSTS[side]) if side is SOURCE else ()
            arguments = ["holder", "--socket", self._socket(side), "--guest", self.guest, *options, *owned]
            self.holders[side] = await self._start(f"{side} holder", [*arguments, *journal])
        for holder in self.holders.values():
            await holder.until(lambda _: True, "being ready")
        await self._status(SOURCE, lambda status: status.figure("writes") > _WRITES_SEEN)

    async def _start_endpoints(self) -> None:
        await self._serve(self._stop_of(DESTINATION))
        await self.nursery.start(self.cable.run)
        await self._migrate(self.cable.port, self._stop_of(SOURCE))
        self._first.update(self.endpoints)

    async def _serve(self, environment: Mapping[str, str] | None = None) -> None:
        arguments = ["serve", "--listen", "127.0.0.1:0", *self._common(DESTINATION)]
        serve = self.endpoints[DESTINATION] = await self._start("destination", arguments, environment)
        line = await serve.until(lambda line: line.get("event") == "listening", "listening")
        addresses = line["addresses"]
        assert isinstance(addresses, list)
        self.cable.target = int(str(addresses[0]).rpartition(":")[2])

    async def _migrate(self, port: int, environment: Mapping[str, str] | None = None) -> None:
        arguments: list[object] = ["migrate", "--to", f"127.0.0.1:{port}", "--peer", HOSTS[DESTINATION]]
        arguments += [*self._common(SOURCE), "--undecided-after", _UNDECIDED_AFTER]
        arguments += ["--resume", _RESUME if self.cell.expected.resumes else "0s"]
        arguments += [
            "--streams",
            self.streams,
            "--switchover",
            self.cell.style.name.lower().replace("_", "-"),
        ]
        arguments += ["--downtime", _DOWNTIME]
        self.endpoints[SOURCE] = await self._start("source", arguments, environment)

    def _common(self, side: Survivor) -> list[object]:
        patience = _PATIENCE.get(self.cell.fault.name, _PATIENT)
        common = ["--holder", self._socket(side), "--follow", "--die-with", os.getpid()]
        who = ["--pki", self.hosts, "--name", HOSTS[side], "--peers", self.hosts / "peers.toml"]
        return [*common, *who, "--patience", patience, *self._owned(side)]

    def _owned(self, side: Survivor) -> list[object]:
        store = ["--store", self._store] if self.cell.store else []
        return ["--records", self._records(side), *store]

    def _stop_of(self, side: Survivor) -> Mapping[str, str]:
        stop, fails = self.cell.stop if self.cell.step.side is side else "", self.cell.step.fails
        return {name: value for name, value in ((VARIABLE, stop), (FAILS, fails)) if value}

    @property
    def _vcpus(self) -> int:
        return _VCPUS if self.guest == "kvm" else 0

    @property
    def _store(self) -> Path:
        return self.directory / "store"

    def _records(self, side: Survivor) -> Path:
        return self.directory / f"records-{side.value}"

    # ---- the fault ----

    async def _inject(self) -> None:
        match self.cell.fault.name:
            case "cut":
                self.cable.cut()
            case "source_killed":
                await self.endpoints[SOURCE].kill()
            case "destination_killed":
                await self.endpoints[DESTINATION].kill()
            case "source_holder_killed":
                await self.holders[SOURCE].kill()
            case "destination_holder_killed":
                await self.holders[DESTINATION].kill()
            case "source_frozen":
                self.endpoints[SOURCE].freeze()
            case "destination_frozen":
                self.endpoints[DESTINATION].freeze()
            case "store_gone":
                self._store.rename(self._aside)
            case "source_record":
                self.endpoints[SOURCE].may_write(self._written(SOURCE))
            case "destination_record":
                self.endpoints[DESTINATION].may_write(self._written(DESTINATION))
            case other:
                raise CellFailed(f"{other} is not known here")

    def _written(self, side: Survivor) -> int:
        """Bytes of the log so far: nothing can be appended, and small files can be written elsewhere."""
        logs = (path.read_bytes().rstrip(b"\0") for path in self._records(side).rglob("log*"))
        return max(map(len, logs), default=0)

    @property
    def _aside(self) -> Path:
        return self.directory / "store-out-of-reach"

    @property
    def _frozen(self) -> Survivor | None:
        return {"source_frozen": SOURCE, "destination_frozen": DESTINATION}.get(self.cell.fault.name)

    # ---- what follows ----

    async def _meanwhile(self) -> None:
        """The others do what they can while what failed has not come back."""
        expected = self.cell.expected
        waiting = [side for side in HOSTS if self._is_told(side) and side is not self._frozen]
        for side in waiting:
            await self._first[side].until(self._knows, "the session's end")
        alone = expected.recovery is Recovery.ITSELF and Survivor.LOST not in expected.runs
        if SOURCE in waiting and alone and expected.runs == {SOURCE}:
            await self._first[SOURCE].end()
        self.done.meanwhile = await self._runs_alone(DEADLINE_S if alone else 0)

    async def _runs_alone(self, within_s: float) -> str:
        """Who runs the guest and has all of its pages, once somebody does."""
        begun = trio.current_time()
        while True:
            for side in HOSTS:
                with suppress(GuestError, CellFailed):
                    status = await self._status(side)
                    if status.state == "running" and not status.missing:
                        return side.value
            if trio.current_time() >= begun + within_s:
                return NOBODY
            await trio.sleep(_POLL_S)

    def _knows(self, line: Line) -> bool:
        """Whether a side has come to the session's end, or waits for store or peer."""
        if self.cell.fault.name == "store_gone" and "store does not answer" in str(line.get("text")):
            return True
        lost = line.get("event") == "link_lost" or "who owns the guest" in str(line.get("text"))
        return _is_finished(line) or (self.cell.expected.resumes and lost)

    def _is_told(self, side: Survivor) -> bool:
        expected = self.cell.expected
        return bool(expected.source if side is SOURCE else expected.destination)

    async def _bring_back(self) -> None:
        match self.cell.fault.name:
            case "source_killed":
                await self._migrate(_NOBODY)
            case "destination_killed":
                await self._serve()
            case "source_frozen":
                self.endpoints[SOURCE].thaw()
            case "destination_frozen":
                self.endpoints[DESTINATION].thaw()
            case "store_gone":
                self._aside.rename(self._store)
            case "source_record":
                self.endpoints[SOURCE].may_write(None)
            case "destination_record":
                self.endpoints[DESTINATION].may_write(None)

    async def _settle(self) -> None:
        """Both have come to the end."""
        for side in HOSTS:
            if self._is_told(side):
                line = await self._first[side].until(_is_finished, "the session's end")
                self.done.told[side] = (str(line.get("outcome")), _text(line.get("code")))
        serving, expected = self.endpoints[SOURCE], self.cell.expected
        await serving.end()
        if expected.resumes and expected.runs == {DESTINATION} and self._frozen is None:
            # The destination may have had all pages when the link was lost: for it the session ends then.
            # Behind one that stands still a deadline may be over before the silence is: then another serves.
            end = serving.find(_is_finished) or {}
            if end.get("outcome") != Outcome.COMPLETED:
                self.done.failures.append("the source has not served its pages to the end")
        await self._run_somewhere()
        if expected.resumes and await self._lacks_pages():
            await self._migrate(_NOBODY)
            await self.endpoints[SOURCE].end()
            if await self._lacks_pages():
                self.done.failures.append("nor has the one that was started again")

    async def _run_somewhere(self) -> None:
        """Somebody runs the guest, if need be when a source that was left undecided is started again."""
        survivors = self.cell.expected.runs - {Survivor.LOST}
        for _ in range(_TRIES):
            if not survivors or await self._comes_to_run(survivors):
                return
            if SOURCE in survivors:
                await self._migrate(_NOBODY)
                await self.endpoints[SOURCE].end()

    async def _lacks_pages(self) -> bool:
        return bool(await self._runs(DESTINATION) and (await self._status(DESTINATION)).missing)

    async def _comes_to_run(self, survivors: frozenset[Survivor]) -> bool:
        with trio.move_on_after(_RUNS_WITHIN_S):
            while not any([await self._runs(side) for side in survivors]):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(_POLL_S)
            return True
        return False

    # ---- afterwards ----

    async def _look_after(self) -> None:
        """Who runs the guest when its endpoints have gone; its audit; the judge."""
        for endpoint in self.endpoints.values():
            await endpoint.finish()
        after = {side.value: await self._seen(side) for side in HOSTS}
        (self.directory / AFTER).write_text(json.dumps(after))
        judge = Path(__file__).with_name("judge.py")
        found = await trio.run_process(
            [sys.executable, "-I", "-S", str(judge), str(self.directory)], capture_stdout=True
        )
        self.done.judged = json.loads(found.stdout)

    async def _runs(self, side: Survivor) -> bool:
        try:
            status = await self._status(side)
        except (GuestError, CellFailed):
            return False
        return status.state == "running"

    async def _seen(self, side: Survivor) -> dict[str, object] | None:
        """Of one holder, what `judge.py` wants to know; None if it is gone."""
        holder = self.holders[side]
        if not holder.alive:
            return None
        try:
            first = await self._status(side)
        except GuestError:
            await holder.end()  # its guest has moved away: before it ends it takes its socket away
            return None
        if first.state != "running":
            return {"state": first.state, "writes": [0, 0], "lines": 0, "audit": None}
        begin = first.figure("writes")
        last = await self._status(side, lambda status: status.figure("writes") >= begin + _WRITES_SEEN)
        return {
            "state": last.state,
            "runner": f"{last.runner.host}:{last.runner.id.hex()}",
            "writes": [begin, last.figure("writes")],
            "vcpus": self._vcpus,
            "lines": len((self.directory / JOURNAL).read_text().splitlines()),
            "audit": await self._audit(side),
        }

    async def _audit(self, side: Survivor) -> dict[str, object]:
        with trio.move_on_after(DEADLINE_S):
            while True:
                try:
                    async with await connect_holder(self._socket(side)) as connection:
                        audit: dict[str, object] = {**await connection.audit()}
                        await connection.detach()
                        return audit
                except GuestError as error:
                    if error.code is not ErrorCode.BUSY:
                        raise
                await trio.sleep(_POLL_S)
        raise CellFailed(f"the {side} holder is busy for too long")

    async def _status(
        self, side: Survivor, wanted: Callable[[HolderStatus], bool] = lambda _: True
    ) -> HolderStatus:
        """Of a holder, once it is as wanted."""
        with trio.move_on_after(DEADLINE_S):
            async with await connect_holder(self._socket(side), role="observer") as connection:
                while not wanted(status := await connection.status()):  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(_POLL_S)
                return status
        raise CellFailed(f"the {side} holder does not come to what was waited for")

    def _socket(self, side: Survivor) -> Path:
        return self.directory / f"{side.value[0]}.sock"

    async def _start(
        self, name: str, arguments: list[object], environment: Mapping[str, str] | None = None
    ) -> Command:
        command = await Command.start(self.nursery, self.directory, name, arguments, environment)
        self._started.append(command)
        return command

    async def close(self) -> None:
        """Nothing is left behind."""
        for command in self._started:
            with suppress(CellFailed):
                await command.kill()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _is_finished(line: Line) -> bool:
    """Of the migration's session: what comes over later connections of a destination are questions."""
    return line.get("event") in {"finished", "error"} and line.get("connection", 1) == 1
