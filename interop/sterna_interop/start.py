"""Two ways to start a shim: as a new program, or as a fork of a zygote that has everything imported."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

import trio

from sterna_interop.zygote import STOPPED

_DEAD: Final = "the process that shims are forked from has died"


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


class _Forked:
    """A process of a zygote's."""

    def __init__(self, stdout: int, stderr: int, told: int) -> None:
        self.pid = 0
        self.stdout: trio.lowlevel.FdStream = trio.lowlevel.FdStream(stdout)
        self.stderr: trio.lowlevel.FdStream = trio.lowlevel.FdStream(stderr)
        self._told = trio.lowlevel.FdStream(told)
        self._received = b""
        self._waiting = trio.Lock()
        self._code: int | None = None

    async def begins(self) -> None:
        self.pid = int(await self._next())

    async def wait(self) -> int:
        async with self._waiting:
            while self._code is None:
                if (line := await self._next()) != STOPPED:
                    self._code = int(line)
                    self._told.close()
        return self._code

    async def _next(self) -> str:
        while b"\n" not in self._received:
            if not (data := await self._told.receive_some()):
                raise OSError(_DEAD)
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        for stream in (self.stdout, self.stderr, self._told):
            stream.close()


class Zygote:
    """The other side of `sterna_interop.zygote`."""

    def __init__(self, *module: str) -> None:
        """Starts the process, which then imports this: a name, and where it is unless Python looks there."""
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sterna_interop.zygote", *module],
                stdin=theirs.fileno(),
                # numpy's threads would not survive the fork.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the kit, which then closes the socket
            )

    async def start(self, arguments: Sequence[str]) -> Started:
        """A fork for one case.

        Raises:
            OSError: the zygote has died.
        """
        pipes = [os.pipe() for _ in range(3)]
        process = _Forked(*(ours for ours, _ in pipes))
        try:
            try:
                self.ask(arguments, {}, [theirs for _, theirs in pipes])
            finally:
                for _, theirs in pipes:
                    os.close(theirs)
            with trio.CancelScope(shield=True):  # or nobody would know whom to kill
                await process.begins()
        except BaseException:
            process.close()
            raise
        return process

    def ask(
        self, arguments: Sequence[str], environment: Mapping[str, str], descriptors: Sequence[int]
    ) -> None:
        """Request a fork: these are its stdout, its stderr, and where it is told what becomes of it.

        Raises:
            OSError: the zygote has died.
        """
        request = json.dumps({"arguments": list(arguments), "environment": dict(environment)})
        try:
            socket.send_fds(self._sock, [request.encode()], descriptors)
        except OSError:
            raise OSError(_DEAD) from None

    def close(self) -> None:
        """End the zygote."""
        self._sock.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
