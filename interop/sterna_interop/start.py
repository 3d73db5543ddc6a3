"""Two ways to start a shim: as a new program, or as a fork of a zygote that has everything imported."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import trio

from sterna_interop.zygote import REQUEST_BYTES_MAX


class Started(Protocol):
    """A shim that has been started, in a process group of its own; `trio.Process` is one."""

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        ...

    @property
    def stdout(self) -> trio.abc.ReceiveStream | None:
        """What it prints."""
        ...

    @property
    def stderr(self) -> trio.abc.ReceiveStream | None:
        """What it complains of."""
        ...

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""
        ...


Start = Callable[[Sequence[str]], Awaitable[Started]]


def program(command: Sequence[str]) -> Start:
    """Start `command` with the arguments of each case."""

    async def start(arguments: Sequence[str]) -> Started:
        return await trio.lowlevel.open_process(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    return start


@dataclass(slots=True)
class _Forked:
    """A process of a zygote's."""

    pid: int
    stdout: trio.abc.ReceiveStream | None
    stderr: trio.abc.ReceiveStream | None
    ended: trio.Event = field(default_factory=trio.Event)
    code: int | None = None

    async def wait(self) -> int:
        await self.ended.wait()
        if self.code is None:
            raise OSError("the process that shims are forked from has died")
        return self.code


class Zygote:
    """The kit's side of `sterna_interop.zygote`; `run` has to run somewhere."""

    def __init__(self, module: str) -> None:
        """Starts the process, which then imports `module`."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sterna_interop.zygote", module],
                stdin=theirs.fileno(),
                # numpy's threads would not survive the fork.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the kit, which then closes the socket
            )
        self._sock = trio.socket.from_stdlib_socket(ours)
        self._asking = trio.Lock()
        self._answers, self._answered = trio.open_memory_channel[int](1)
        self._running: dict[int, _Forked] = {}
        self._early: dict[int, int] = {}  # ended before `start` knew of it

    async def run(self) -> None:
        """Listen to the zygote until it ends."""
        try:
            while data := await self._receive():
                answer = json.loads(data)
                pid, status = answer["pid"], answer.get("status")
                if status is None:
                    await self._answers.send(pid)
                elif (process := self._running.pop(pid, None)) is not None:
                    process.code = status
                    process.ended.set()
                else:
                    self._early[pid] = status
        finally:
            self._answers.close()
            for process in self._running.values():
                process.ended.set()

    async def _receive(self) -> bytes:
        try:
            return await self._sock.recv(REQUEST_BYTES_MAX)
        except OSError:
            return b""

    async def start(self, arguments: Sequence[str]) -> Started:
        """A fork for one case.

        Raises:
            OSError: the zygote has died.
        """
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        try:
            async with self._asking:
                rights = array.array("i", [out_end, err_end])
                control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())]
                await self._sock.sendmsg([json.dumps(list(arguments)).encode()], control)
                pid = await self._answered.receive()
        except (trio.EndOfChannel, OSError):
            os.close(out)
            os.close(err)
            raise OSError("the process that shims are forked from has died") from None
        finally:
            os.close(out_end)
            os.close(err_end)
        process = _Forked(pid, trio.lowlevel.FdStream(out), trio.lowlevel.FdStream(err))
        if pid in self._early:
            process.code = self._early.pop(pid)
            process.ended.set()
        else:
            self._running[pid] = process
        return process

    def close(self) -> None:
        """End the zygote."""
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
