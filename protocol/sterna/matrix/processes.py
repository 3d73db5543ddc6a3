"""Commands as processes that are watched, stopped, killed and set going again.

Nothing here sleeps to wait: a command tells by its `--follow` what has become of a session, and the kernel
when a process stands still. Deadlines end what hangs.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

import trio

from sterna.errors import GuestError

Line: TypeAlias = Mapping[str, object]

DEADLINE_S: Final = 60.0
_LINE_BYTES: Final = 1 << 20
_TAIL_BYTES: Final = 600


class CellFailed(GuestError):  # noqa: N818 - it names what is wrong
    """A cell did not go as it should; the text says how."""


class Command:
    """A running `sterna` command with `--follow` or `--json`.

    Attributes:
        name: for people.
        pid: its own, and that of its process group.
        lines: what it has said on stdout, decoded.
    """

    def __init__(self, name: str, process: trio.Process, log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self.lines: list[Line] = []
        self._process = process
        self._log = log
        self._ended = trio.Event()
        self._changed = trio.lowlevel.ParkingLot()

    @classmethod
    async def start(
        cls,
        nursery: trio.Nursery,
        directory: Path,
        name: str,
        arguments: list[object],
        environment: Mapping[str, str] | None = None,
    ) -> Command:
        """Start one, and read what it says for as long as `nursery` is open."""
        log = directory / f"{name}.log"
        with log.open("ab") as stderr:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-P", "-m", "sterna", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        command = cls(name, process, log)
        nursery.start_soon(command._read)
        return command

    async def _read(self) -> None:
        assert self._process.stdout is not None
        received = b""
        async for data in self._process.stdout:
            *whole, received = (received + data).split(b"\n")
            self.lines += [json.loads(line) for line in whole]
            self._changed.unpark_all()
            if len(received) > _LINE_BYTES:
                raise CellFailed(f"the {self.name} says a line without end")
        await self._process.wait()
        self._ended.set()
        self._changed.unpark_all()

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self._ended.is_set()

    def find(self, wanted: Callable[[Line], bool]) -> Line | None:
        """The first line that is as wanted, None if there is none yet."""
        return next((line for line in self.lines if wanted(line)), None)

    async def until(self, wanted: Callable[[Line], bool], what: str) -> Line:
        """The first line that is as wanted, now or later.

        Raises:
            CellFailed: it ends without, or goes on for too long.
        """
        with trio.move_on_after(DEADLINE_S):
            while (line := self.find(wanted)) is None:
                if not self.alive:
                    raise CellFailed(f"the {self.name} has ended without {what}: {self.said()}")
                await self._changed.park()
            return line
        raise CellFailed(f"the {self.name} does not come to {what}: {self.said()}")

    async def end(self) -> int:
        """Its exit code, when it has ended.

        Raises:
            CellFailed: it goes on for too long.
        """
        with trio.move_on_after(DEADLINE_S):
            await self._ended.wait()
            return self._process.returncode or 0
        raise CellFailed(f"the {self.name} does not end: {self.said()}")

    async def stopped(self) -> bool:
        """Wait until it stands still; False if it has ended instead."""

        def wait() -> bool:
            try:
                found = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            except ChildProcessError:  # its end was seen by whoever reads it
                return False
            return found is not None and found.si_code == os.CLD_STOPPED

        with trio.move_on_after(DEADLINE_S):
            return await trio.to_thread.run_sync(wait, abandon_on_cancel=True)
        raise CellFailed(f"the {self.name} does not stop: {self.said()}")

    def freeze(self) -> None:
        """It stands still, if it does not already."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        self._signal(signal.SIGCONT)

    async def kill(self) -> None:
        """It is gone when this returns, with nothing done any more."""
        self._signal(signal.SIGKILL)
        await self._process.wait()  # not for its last words, which nobody may read any more

    async def finish(self) -> None:
        """It is asked to end, and does, one way or the other."""
        self.thaw()
        self._signal(signal.SIGTERM)
        with trio.move_on_after(DEADLINE_S / 6):
            await self._ended.wait()
        await self.kill()

    def may_write(self, size: int | None) -> None:
        """No file of it grows beyond this; None lifts that. As a full disk does, it ends no process."""
        with suppress(ProcessLookupError):
            _, most = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (most if size is None else size, most))

    def said(self) -> str:
        """The end of what it wrote for people."""
        return self._log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()

    def _signal(self, number: int) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)
