from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from descriptors_support import nothing_stays_open
from sterna.linux.byte_locks import ByteLocks
from sterna.linux.memfd import MemoryFile


@pytest.fixture
def file() -> Iterator[MemoryFile]:
    with contextlib.closing(MemoryFile("test", 4096)) as file:
        yield file


def test_one_description_at_a_time_has_a_byte(file: MemoryFile) -> None:
    with nothing_stays_open(), ByteLocks.on(file.fileno()) as one, ByteLocks.on(file.fileno()) as other:
        assert one.try_lock(0)
        assert one.try_lock(0)
        assert one.is_free(0)
        assert not other.try_lock(0)
        assert not other.is_free(0)
        assert other.try_lock(1)
        one.unlock(0)
        assert other.is_free(0)
        other.lock(0)
        assert not one.try_lock(0)


def test_closing_lets_go(file: MemoryFile) -> None:
    with ByteLocks.on(file.fileno()) as other:
        with ByteLocks.on(file.fileno()) as one:
            one.lock(1)
            assert not other.try_lock(1)
        assert other.try_lock(1)


def test_another_description_has_none_of_the_locks_before(file: MemoryFile) -> None:
    with ByteLocks.on(file.fileno()) as one:
        kept = os.dup(one.fileno())  # as the parent of a forked process has it
        one.lock(0)
        one.anew()
        assert not one.is_free(0)
        assert not one.try_lock(0)
        os.close(kept)
        assert one.try_lock(0)


def test_the_end_of_a_process_lets_go(file: MemoryFile) -> None:
    """However it ends: the kernel does."""
    reader, writer = os.pipe()
    with ByteLocks.on(file.fileno()) as one:
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                one.anew()
                one.lock(0)
                os.write(writer, b"!")
                os.kill(os.getpid(), 9)
            os._exit(1)
        assert os.read(reader, 1) == b"!"
        one.lock(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    os.close(reader)
    os.close(writer)


def test_a_failure_that_is_no_lock_of_somebody_else_is_told(file: MemoryFile) -> None:
    read_only = file.open_read_only()
    with ByteLocks(read_only) as locks, pytest.raises(OSError, match="Bad file"):
        locks.try_lock(0)
