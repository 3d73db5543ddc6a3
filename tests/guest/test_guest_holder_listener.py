from __future__ import annotations

import contextlib
import os
import resource
import socket
import stat
from pathlib import Path

import pytest

from descriptors_support import nothing_stays_open
from sterna.errors import GuestError
from sterna.guest.holder_listener import Listener


def connected(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    peer.settimeout(30.0)
    peer.connect(str(path))
    return peer


def test_appears_with_its_mode_and_leaves_nothing(tmp_path: Path) -> None:
    """[HOL-1]"""
    path = tmp_path / "holder"
    with nothing_stays_open():
        listener = Listener(path, 4)
        assert os.listdir(tmp_path) == ["holder"]
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        with connected(path):
            accepted = listener.accept()
            assert accepted is not None
            accepted.close()
            assert listener.accept() is None
        listener.close()
        assert not os.listdir(tmp_path)


def test_another_holders_path_is_not_taken(tmp_path: Path) -> None:
    """Its guest would run on, and nobody could reach it any more."""
    path = tmp_path / "holder"
    first = Listener(path, 4)
    with pytest.raises(GuestError, match="another process listens"):
        Listener(path, 4)
    with connected(path):
        for _ in ("the one that asked", "the one that connects"):
            accepted = first.accept()
            assert accepted is not None
            accepted.close()
    first.close()


def test_a_socket_that_was_left_is_replaced(tmp_path: Path) -> None:
    """A holder that was killed leaves its own behind."""
    path = tmp_path / "holder"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    listener = Listener(path, 4)
    with connected(path):
        accepted = listener.accept()
        assert accepted is not None
        accepted.close()
    assert os.listdir(tmp_path) == ["holder"]
    listener.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling"])
def test_anything_else_is_left_alone(tmp_path: Path, kind: str) -> None:
    path, elsewhere = tmp_path / "holder", tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(elsewhere if kind == "link" else tmp_path / "none")
    before = path.lstat()
    with pytest.raises(GuestError, match="something else"):
        Listener(path, 4)
    assert os.path.samestat(before, path.lstat())
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "holder"]
    assert elsewhere.read_text() == "precious"


def test_a_path_that_is_another_ones_by_now_stays(tmp_path: Path) -> None:
    path = tmp_path / "holder"
    first = Listener(path, 4)
    path.unlink()
    second = Listener(path, 4)
    first.close()
    assert stat.S_ISSOCK(path.lstat().st_mode)
    second.close()
    second = Listener(path, 4)
    path.unlink()
    second.close()


def test_without_descriptors_who_connects_is_turned_away(tmp_path: Path) -> None:
    """Left in the queue he would keep the holder awake for nothing."""
    listener = Listener(tmp_path / "holder", 4)
    peers = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, limits[1])
        )
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(listener.fileno()))
        for peer in peers:
            peer.connect(str(tmp_path / "holder"))
            assert listener.accept() is None
            assert peer.recv(1) == b""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in taken:
            os.close(descriptor)
        for peer in peers:
            peer.close()
        listener.close()
