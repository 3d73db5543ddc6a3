"""What a fork of the zygote is: a process like any other; test_interop_start.py has the kit's side."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import pytest

from sterna_interop.zygote import STOPPED

SHIM = """
import os, sys

def main(arguments):
    match arguments[0]:
        case "say":
            print(arguments[1], os.getsid(0) == os.getpid(), repr(sys.stdin.read()))
            return 3
        case "leave":
            sys.exit(4)
        case "die":
            os.kill(os.getpid(), 9)
        case "stop":
            os.kill(os.getpid(), 19)
            return 5
        case "environment":
            print(os.environ["OF_THE_TEST"])
            return 0
        case "descriptors":
            print(sorted(int(each) for each in os.listdir("/proc/self/fd"))[3:-1])
            return 0
    raise RuntimeError("a bug")
"""


@pytest.fixture
def sock(tmp_path: Path) -> Iterator[socket.socket]:
    """The kit's end of the socket of a zygote with the shim above."""
    (tmp_path / "shim_of_the_test.py").write_text(SHIM)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "sterna_interop.zygote", "shim_of_the_test", str(tmp_path)],
            stdin=theirs.fileno(),
        )
    with ours:
        yield ours
    assert process.wait(10) == 0


def run(sock: socket.socket, *arguments: str, **environment: str) -> tuple[str, str, list[str]]:
    """One request: what it printed, and what was told of it behind its id."""
    request = json.dumps({"arguments": arguments, "environment": environment}).encode()
    ours, theirs = zip(*(os.pipe() for _ in range(3)), strict=True)
    socket.send_fds(sock, [request], theirs)
    for descriptor in theirs:
        os.close(descriptor)
    with ExitStack() as stack:
        out, err, told = (stack.enter_context(open(descriptor)) for descriptor in ours)
        _, *lines = heard(told)
        return out.read(), err.read(), lines


def heard(told: TextIO) -> list[str]:
    """Each line; a command that has stopped is set going."""
    lines = []
    for line in told:
        lines.append(line.rstrip())
        if lines[-1] == STOPPED:
            os.kill(int(lines[0]), signal.SIGCONT)
    return lines


def test_requests(sock: socket.socket) -> None:
    assert run(sock, "say", "hello") == ("hello True ''\n", "", ["3"])
    assert run(sock, "leave") == ("", "", ["4"])
    assert run(sock, "die") == ("", "", ["-9"])
    assert run(sock, "stop") == ("", "", [STOPPED, "5"])
    assert run(sock, "descriptors") == ("[]\n", "", ["0"])
    assert run(sock, "environment", OF_THE_TEST="its own") == ("its own\n", "", ["0"])
    out, err, lines = run(sock, "fail")
    assert (out, lines) == ("", ["1"])
    assert "RuntimeError: a bug" in err
