from __future__ import annotations

import os

import pytest

from sterna.linux.descriptor import Descriptor


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_it_is_given_back_once() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    owner = Descriptor(fd)
    assert owner.fileno() == fd
    owner.close()
    assert owner.fileno() == -1
    assert not is_open(fd)
    another = os.open(os.devnull, os.O_RDONLY)  # of the same number, as it is free
    owner.close()
    assert is_open(another)
    os.close(another)


def test_it_is_given_back_whatever_happens() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)

    def fail() -> None:
        with Descriptor(fd) as owner:
            raise RuntimeError(owner.fileno())

    with pytest.raises(RuntimeError, match=str(fd)):
        fail()
    assert not is_open(fd)
