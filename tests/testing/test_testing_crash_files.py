"""A disk that does its worst keeps what was synced, loses and tears what was not, and fails when told to."""

from __future__ import annotations

import errno
import random
from contextlib import suppress

import pytest

from sterna.testing import Crashed, CrashFiles


def outcomes(seeds: int = 200) -> set[tuple[str, ...]]:
    """What crashes leave of two writes and two names of which the first of each was synced."""
    found = set()
    for seed in range(seeds):
        files = CrashFiles(random.Random(seed))
        files.create("/synced", b"aaaa", 0o600)
        files.sync_directory("/")
        files.write("/synced", 4, b"bbbb")
        files.create("/unsynced", b"cccc", 0o600)
        left = files.restarted()
        texts = (left.read(path, 99) for path in ("/synced", "/unsynced"))
        found.add(tuple("none" if text is None else text.decode() for text in texts))
    return found


def test_what_was_synced_stays_and_the_rest_is_anything() -> None:
    found = outcomes()
    assert all(synced.startswith("aaaa") for synced, _ in found)
    assert {synced for synced, _ in found} >= {"aaaa", "aaaabbbb", "aaaab"}
    assert any("\0" in synced for synced, _ in found)
    assert {unsynced for _, unsynced in found} == {"none", "cccc"}


def test_a_name_may_survive_without_its_removal() -> None:
    left = set()
    for seed in range(50):
        files = CrashFiles(random.Random(seed))
        files.make_directory("/d", 0o700)
        files.create("/d/a", b"x", 0o600)
        files.sync_directory("/d")
        files.sync_directory("/")
        files.link("/d/a", "/d/b")
        files.remove("/d/a")
        left.add(tuple(sorted(files.restarted().names("/d", 9) or ())))
    assert left == {(), ("a",), ("b",), ("a", "b")}


def test_a_planned_crash_and_a_planned_error() -> None:
    files = CrashFiles(random.Random(1), crash_at=3)
    files.create("/a", b"", 0o600)
    files.write("/a", 0, b"x")
    with pytest.raises(Crashed):
        files.sync("/a")
    files = CrashFiles(random.Random(1), fail_at=2, fail_with=errno.ENOSPC)
    files.create("/a", b"", 0o600)
    with pytest.raises(OSError, match="planned"):
        files.write("/a", 0, b"xxxx")
    files.write("/a", 0, b"yyyy")
    assert files.read("/a", 9) == b"yyyy"
    assert files.operations == 4


def test_a_failed_sync_forgets_what_it_should_have_written() -> None:
    """As Linux does: the next one succeeds, and the data is in the cache alone."""
    lost = False
    for seed in range(20):
        files = CrashFiles(random.Random(seed), fail_at=3)
        files.create("/a", b"", 0o600)
        files.sync_directory("/")
        files.plan(fail_at=2)
        files.write("/a", 0, b"x")
        with suppress(OSError):
            files.sync("/a")
        files.sync("/a")
        assert files.read("/a", 9) == b"x"
        lost |= files.restarted().read("/a", 9) == b""
    assert lost


def test_errors_are_those_of_files() -> None:
    files = CrashFiles(random.Random(0))
    files.create("/a", b"0123", 0o600)
    files.make_directory("/d", 0o700)
    files.make_directory("/d", 0o700)
    with pytest.raises(FileExistsError):
        files.create("/a", b"", 0o600)
    with pytest.raises(FileExistsError):
        files.make_directory("/a", 0o700)
    with pytest.raises(FileExistsError):
        files.link("/a", "/d")
    with pytest.raises(FileNotFoundError):
        files.write("/b", 0, b"")
    with pytest.raises(FileNotFoundError):
        files.create("/x/a", b"", 0o600)
    with pytest.raises(NotADirectoryError):
        files.names("/a", 9)
    with pytest.raises(OSError, match="not a plain file"):
        files.read("/d", 9)
    assert (files.read("/b", 9), files.names("/x", 9)) == (None, None)
    files.truncate("/a", 2)
    files.reserve("/a", 2, 3)
    files.reserve("/a", 0, 1)
    assert files.read("/a", 99) == b"01\0\0\0"
    files.link("/a", "/d/a")
    assert files.inode("/a") == files.inode("/d/a")
