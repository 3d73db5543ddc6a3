"""What a fork of the zygote is: a process like any other; test_interop_start.py has the kit's side."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
            [sys.executable, "-m", "sterna_interop.zygote", "shim_of_the_test"],
            stdin=theirs.fileno(),
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        )
    with ours:
        yield ours
    assert process.wait(10) == 0


def run(sock: socket.socket, *arguments: str) -> tuple[str, str, int]:
    """One request: what it printed, and its status."""
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    rights = array.array("i", [out_end, err_end])
    sock.sendmsg([json.dumps(arguments).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())])
    os.close(out_end)
    os.close(err_end)
    answers = [json.loads(sock.recv(1000)) for _ in range(2)]
    begun, ended = sorted(answers, key=len)  # a short process may have ended before it is told of
    assert begun == {"pid": ended["pid"]}
    texts = []
    for end in (out, err):
        with open(end) as file:
            texts.append(file.read())
    return texts[0], texts[1], ended["status"]


def test_requests(sock: socket.socket) -> None:
    assert run(sock, "say", "hello") == ("hello True ''\n", "", 3)
    assert run(sock, "leave") == ("", "", 4)
    assert run(sock, "die") == ("", "", -9)
    assert run(sock, "descriptors") == ("[]\n", "", 0)
    out, err, status = run(sock, "fail")
    assert (out, status) == ("", 1)
    assert "RuntimeError: a bug" in err
