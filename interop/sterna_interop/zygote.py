"""Starts the kit's own shims without starting Python for each: ``python -m sterna_interop.zygote MODULE``.

Importing Sterna takes longer than most cases. So this process imports a shim's module once and forks for
each case: what runs then is a process of its own, in a session of its own, with its own stdout and stderr,
exactly as if it had been started from nothing. It serves one socket, its standard input: a request is a JSON
list of arguments with two file descriptors, the answers are ``{"pid": N}`` at once and ``{"pid": N,
"status": S}`` when that process has ended. The end of the socket is the end of the zygote.
"""

from __future__ import annotations

import array
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Final

REQUEST_BYTES_MAX: Final = 64 * 1024
FDS: Final = 2

Main = Callable[[list[str]], int]


def serve(sock: socket.socket, main: Main) -> None:
    """Fork for each request, and report ends, until the socket ends."""
    woken, wakes = socket.socketpair()
    for end in (woken, wakes):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # or nothing would be written there
    signal.set_wakeup_fd(wakes.fileno())
    with selectors.DefaultSelector() as selector, woken, wakes:
        selector.register(sock, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            try:
                if woken in ready:
                    woken.recv(4096)
                    _report(sock)
                if sock in ready and not _start(sock, main):
                    return
            except BrokenPipeError:
                return  # the kit has gone


def _start(sock: socket.socket, main: Main) -> bool:
    """Serve one request; False if there will be none any more."""
    room = socket.CMSG_SPACE(FDS * array.array("i").itemsize)
    data, control, _flags, _address = sock.recvmsg(REQUEST_BYTES_MAX, room)
    if not data:
        return False
    descriptors = array.array("i")
    for level, kind, payload in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(payload)
    pid = os.fork()
    if not pid:
        _become(list(descriptors), json.loads(data), main)
    for descriptor in descriptors:
        os.close(descriptor)
    sock.send(json.dumps({"pid": pid}).encode())
    return True


def _become(descriptors: list[int], arguments: list[str], main: Main) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for standard, descriptor in enumerate((nothing, *descriptors)):
            os.dup2(descriptor, standard)
        os.closerange(3, 1024)
        code = main(arguments)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - as Python ends a program
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _report(sock: socket.socket) -> None:
    """Tell of every process that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        sock.send(json.dumps({"pid": pid, "status": os.waitstatus_to_exitcode(status)}).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=os.dup(0)), importlib.import_module(sys.argv[1]).main)
