"""Starts commands without starting Python for each: ``python -m sterna_interop.zygote MODULE [DIRECTORY]``.

Importing Sterna takes longer than most of what is asked of such a command. So this process imports a module
once, from the directory or from where Python looks, and forks for each: what runs then is a process of its
own, in a session of its own, with its own stdout and stderr, which calls the module's `main` with its
arguments and ends as Python ends a program.

It serves one socket, its standard input. A request is JSON, ``{"arguments": [...], "environment": {...}}``,
with three descriptors: stdout, stderr, and where it is told what becomes of the command, a line each: its id
once it has its session, `STOPPED` every time that it has stopped, and how it has ended, as a number that is
negative for a signal. The end of the socket is the end of the zygote, and a pipe that ends without the last
line tells of that.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress
from typing import Final

REQUEST_BYTES_MAX: Final = 64 * 1024
STOPPED: Final = "stopped"
_FDS: Final = 3


def serve(sock: socket.socket) -> list[str] | None:
    """Fork for each request, until the socket ends; in a fork: the arguments of its command."""
    told: dict[int, int] = {}
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # or nothing would be written there
    signal.set_wakeup_fd(wakes.fileno())
    with selectors.DefaultSelector() as selector, sock, woken, wakes:
        selector.register(sock, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                woken.recv(4096)
                _tell_changes(told)
            if sock not in ready:
                continue
            data, descriptors, _flags, _address = socket.recv_fds(sock, REQUEST_BYTES_MAX, _FDS)
            if not data:
                signal.set_wakeup_fd(-1)
                return None
            *output, tell = descriptors
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in told.values():
                    os.close(descriptor)
                return _become(json.loads(data), output, tell)
            told[pid] = tell
            for descriptor in output:
                os.close(descriptor)


def _tell_changes(told: dict[int, int]) -> None:
    """Of every command that has ended, or stopped."""
    with suppress(ChildProcessError):
        while (change := os.waitpid(-1, os.WNOHANG | os.WUNTRACED))[0]:
            pid, status = change
            if os.WIFSTOPPED(status):
                _tell(told[pid], STOPPED)
            else:
                _tell(told[pid], str(os.waitstatus_to_exitcode(status)))
                os.close(told.pop(pid))


def _tell(descriptor: int, line: str) -> None:
    with suppress(BrokenPipeError):  # nobody wants to know any more
        os.write(descriptor, f"{line}\n".encode())


def _become(request: dict[str, object], output: list[int], tell: int) -> list[str]:
    """Be the process of a command."""
    os.setsid()
    _tell(tell, str(os.getpid()))  # not before: whoever hears it may kill the whole group
    os.close(tell)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for standard, descriptor in enumerate((nothing, *output)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    arguments, environment = request["arguments"], request["environment"]
    assert isinstance(arguments, list)
    assert isinstance(environment, dict)
    os.environ.update(environment)
    return arguments


if __name__ == "__main__":
    name, *directories = sys.argv[1:]
    sys.path[:0] = directories
    module = importlib.import_module(name)
    gc.freeze()  # or the first collection of each command would copy all of it
    if (words := serve(socket.socket(fileno=os.dup(0)))) is not None:
        sys.exit(module.main(words))
