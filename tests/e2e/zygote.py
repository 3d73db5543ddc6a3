"""Starts `sterna` commands without starting Python for each: ``python zygote.py``.

To import what a command needs takes longer than most of what the tests have it do. So this process does that
once, and forks for each: what runs then is a process in a session of its own, which calls what
``python -m sterna`` calls, and ends as that does. What such a command starts itself, as `sterna demo` does,
and the README's commands, are started from nothing.

It serves one socket, its standard input. A request is JSON, with two descriptors: stdout of the command, and
where a process that waits for the command tells what becomes of it, a line each: its id, every time that
it has stopped, and how it has ended. The end of the socket is the end of the zygote.
"""

from __future__ import annotations

import gc
import json
import os
import pkgutil
import signal
import socket
import sys
from importlib import import_module

import sterna.cli
from sterna.cli.main import main

REQUEST_BYTES_MAX = 64 * 1024
STOPPED = "stopped"


def serve(sock: socket.socket) -> bool:
    """Fork for each request. True in a process that is a command, with its arguments in `sys.argv`."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait
    while True:
        data, descriptors, _, _ = socket.recv_fds(sock, REQUEST_BYTES_MAX, 2)
        if not data:
            return False
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            sock.close()
            return _watch(json.loads(data), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(request: dict, stdout: int, told: int) -> bool:
    """Start a command, and tell what becomes of it."""
    pid = os.fork()
    if not pid:
        os.close(told)
        _become(request, stdout)
        return True
    os.close(stdout)
    _tell(told, str(pid))
    while True:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            _tell(told, STOPPED)
        else:
            _tell(told, str(os.waitstatus_to_exitcode(status)))
            os._exit(0)


def _tell(told: int, line: str) -> None:
    try:
        os.write(told, f"{line}\n".encode())
    except BrokenPipeError:
        os._exit(0)  # the test is over


def _become(request: dict, stdout: int) -> None:
    os.setsid()
    stderr = os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for standard, descriptor in enumerate((nothing, stdout, stderr)):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.environ.update(request["environment"])
    sys.argv = ["sterna", *request["arguments"]]


def import_everything() -> None:
    """What a command would import when it is called, or later."""
    for module in pkgutil.iter_modules(sterna.cli.__path__, "sterna.cli."):
        import_module(module.name)


if __name__ == "__main__":
    import_everything()
    gc.freeze()  # or the first collection of each would copy all of it
    if serve(socket.socket(fileno=os.dup(0))):
        sys.exit(main())
