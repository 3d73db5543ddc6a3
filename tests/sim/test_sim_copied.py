"""A copy is made of the like, and what lies in one piece of memory there lies in one here, too."""

from __future__ import annotations

from itertools import chain

import numpy as np

from sterna.sim.copied import copied, written


def test_who_writes_to_memory_writes_for_all_that_lie_there():
    memory = bytearray(range(64))
    entries, view = np.frombuffer(memory, "<u8", 4, 8), memoryview(memory)[16:32]
    room, found, seen = copied(written([memory, entries, view]))
    assert (room, found.tolist(), seen.tobytes()) == (memory, entries.tolist(), view.tobytes())
    room[17] = 77
    assert (seen[1], int(found[1]) >> 8 & 255) == (77, 77)
    found[0] = 0
    assert room[8:16] == bytes(8)
    assert memory == bytearray(range(64))


def test_parts_of_an_array_are_parts_of_one():
    whole = np.arange(10)
    array, some, none, view = copied(written([whole, whole[2:8:2], whole[:0], memoryview(whole)]))
    array[4] = 1000
    assert some.tolist() == [2, 1000, 6]
    assert none.tolist() == []
    assert view.cast("B").cast("q")[4] == 1000


def test_what_is_one_object_is_one():
    one = {1}
    first, second = copied(written((one, one)))
    assert first is second is not one


def test_what_was_to_be_given_out_is_not():
    """[RES-9] In a session that is left, that is an open round."""
    given = copied(written([(number for number in range(3)), chain([1], [2]), iter(())]))
    assert [list(each) for each in given] == [[], [], []]
