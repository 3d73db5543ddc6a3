from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from sterna.linux.pidfd import Pidfd, peer_credentials

SLEEPER = (sys.executable, "-c", "import signal; signal.pause()")


def test_ends_once_and_for_all() -> None:
    process = subprocess.Popen(SLEEPER)
    pidfd = Pidfd.open(process.pid)
    assert pidfd.pid == process.pid
    assert not pidfd.ended()
    pidfd.kill()
    assert pidfd.ended(timeout_s=30.0)
    assert process.wait() == -signal.SIGKILL
    assert pidfd.ended()
    pidfd.kill()  # hits nobody, whoever has the number now
    pidfd.close()
    pidfd.close()
    assert pidfd.fileno() == -1


def test_a_process_that_is_not_there() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(ProcessLookupError):
        Pidfd.open(process.pid)


def test_the_peer_of_a_socket() -> None:
    one, other = socket.socketpair()
    with one, other:
        credentials = peer_credentials(one)
        assert (credentials.pid, credentials.uid) == (os.getpid(), os.geteuid())
        pidfd = Pidfd.of_peer(one)
        assert pidfd.pid == os.getpid()
        assert not pidfd.ended()
        pidfd.close()


class OldSocket:
    """A socket of a kernel without SO_PEERPIDFD, or one whose peer is long gone."""

    def __init__(self, real: socket.socket, code: int) -> None:
        self.real = real
        self.code = code

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        if option == socket.SO_PEERCRED:
            return self.real.getsockopt(level, option, size)
        raise OSError(self.code, os.strerror(self.code))


def test_a_kernel_without_peer_pidfds() -> None:
    one, other = socket.socketpair()
    with one, other:
        pidfd = Pidfd.of_peer(OldSocket(one, errno.ENOPROTOOPT))
        assert pidfd.pid == os.getpid()
        pidfd.close()
        for code in (errno.ESRCH, errno.EINVAL):  # its number is not asked for: it may be another's by now
            with pytest.raises(ProcessLookupError):
                Pidfd.of_peer(OldSocket(one, code))


def test_processes_of_a_foreign_namespace_are_not_one() -> None:
    """The kernel calls each of them 0."""
    one, other = socket.socketpair()
    with one, other:
        mine, again = Pidfd.of_peer(one), Pidfd.of_peer(other)
        assert mine.is_process_of(again)
        again.pid = 1
        assert not mine.is_process_of(again)
        mine.pid = again.pid = 0
        assert not mine.is_process_of(again)
        mine.close()
        again.close()
