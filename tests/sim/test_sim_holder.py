"""A holder of a world does what a holder does, and its guest's memory is what its count says."""

from __future__ import annotations

import numpy as np
import pytest

from sterna.sim.holder import (
    PAGE_BYTES,
    PAGES,
    Collected,
    CountingPages,
    Holder,
    HolderError,
    Stage,
    bitmap_of,
    count_in,
    is_left,
    leave,
    memory_of,
    new_room,
    pages_in,
    state_of,
    written,
)
from sterna.wire.records import Runner


def test_what_is_left_to_the_guest():
    _, room = new_room()
    leave(room, {1, 2})
    assert is_left(room, {1, 2})
    assert not is_left(room, {0})
    room[3 * PAGE_BYTES - 1] = 0
    assert is_left(room, {1})
    assert not is_left(room, {1, 2})
    assert pages_in(None) == frozenset()
    assert pages_in(bitmap_of((0, 3))) == {0, 3}


def versions(memory):
    pages = np.frombuffer(memory, np.uint64).reshape(PAGES, -1)
    assert (pages == pages[:, :1]).all()
    return pages[:, 0].tolist()


def test_memory_is_what_the_instructions_have_written():
    expected = [0] * PAGES
    for count in range(1, 12):
        expected[count % PAGES] = count if count % 3 else 0
        assert versions(memory_of(count)) == expected
    assert versions(memory_of(0)) == [0] * PAGES
    assert len(memory_of(3)) == PAGES * PAGE_BYTES


def test_the_pages_written_between_two_counts():
    assert written(4, 4) == ()
    assert written(4, 6) == (1, 2)
    assert written(0, 100) == (0, 1, 2, 3)
    assert bitmap_of((1, 3)).count() == 2
    holder = stopped()
    assert holder.collect() == Collected((0, 1, 2), 6)
    assert holder.collect() == Collected((), 6)


def test_state_is_the_count():
    assert count_in(state_of(77)) == 77


def test_pages_go_over_as_they_are():
    holder = stopped()
    holder.count = 7
    batch = CountingPages(holder).encode(0, [0], [PAGES])
    sink, memory = new_room()
    for place, data in zip(sink.targets(batch.table(1, 1)), batch.buffers, strict=True):
        place[:] = data
    assert sink.commit(batch.table(1, 1)) == []
    assert memory == memory_of(7)
    holder.load(7, memory)
    assert (holder.stage, holder.intact) == (Stage.READY, True)
    holder.load(6, memory)
    assert not holder.intact


def late(missing=frozenset({0, 3})):
    """A holder whose guest runs and lacks pages, of which one has an old version and one is none."""
    holder = Holder("beta", b"r" * 16)
    _, holder.memory = new_room()
    holder.memory[:] = memory_of(4)
    holder.missing, holder.notes, holder.stage = missing, bytearray(8), Stage.RUNS
    return holder


def test_memory_outlives_who_has_filled_it():
    """[HOL-41] What is missing is as it was left; what the guest has, nobody reads."""
    holder = late()
    memory = bytearray(holder.remains().memory)
    assert (holder.remains().missing, holder.remains().notes) == ({0, 3}, bytes(8))
    assert is_left(memory, {1, 2})
    assert memory[:PAGE_BYTES] == memory_of(4)[:PAGE_BYTES]
    assert not is_left(holder.memory, {1}), "only what is found is changed"
    holder.free()
    assert holder.memory == b""


def test_holders_differ_by_memory_that_may_be_read_still():
    """Only where a later endpoint may take the guest over, and only in pages that are missing."""
    one, other = late(), late()
    other.memory[PAGE_BYTES] = 9
    assert one.key({}) == other.key({}), "it is the guest's page"
    other.memory[0] = 9
    assert one.key({}) != other.key({})
    one.notes = bytearray(b"12345678")
    assert one.key({}) != other.key({})
    one.notes = other.notes = None
    assert one.key({}) == other.key({})
    one.stage = other.stage = Stage.ROOM
    assert one.key({}) != other.key({}), "it is to be filled"


def stopped(epoch=1):
    holder = Holder("alpha", b"i" * 16, Stage.STOPPED)
    holder.count, holder.epoch = 6, epoch
    holder.collected = 3
    return holder


def test_a_mark_is_for_the_next_epoch_of_a_paused_guest():
    holder = stopped()
    with pytest.raises(HolderError):
        holder.set_mark(3, 1)
    holder.set_mark(2, 1)
    holder.set_mark(2, 5)
    with pytest.raises(HolderError, match="another"):
        holder.take_mark_off(5)
    with pytest.raises(HolderError):
        holder.may_resume()
    holder.take_mark_off(1)
    holder.may_resume()
    holder.stage = Stage.RUNS
    with pytest.raises(HolderError):
        holder.set_mark(2, 1)


def test_who_may_be_run():
    """[ONE-23]"""
    holder = stopped(epoch=4)
    holder.set_mark(5, 1)
    with pytest.raises(HolderError, match="newest epoch is 5"):
        holder.may_run(4)
    holder.may_run(5)
    holder.mark = 0
    with pytest.raises(HolderError):
        holder.may_run(5)
    room = Holder("beta", b"r" * 16)
    with pytest.raises(HolderError):
        room.may_run(5)
    room.load(3, memory_of(3))
    room.may_run(5)
    with pytest.raises(HolderError):
        room.may_resume()
    room.free()
    assert not room.lives
    assert not room.is_whole


def test_holders_are_copied_and_compared():
    holder = stopped()
    other = holder.copy()
    assert other.key({}) == holder.key({})
    for name in ("collected", "paused_at"):  # what is sent next depends on it, and whether it is right
        setattr(other, name, 5)
        assert other.key({}) != holder.key({})
        setattr(other, name, getattr(holder, name))
    other.runner = Runner("alpha", bytes(16))
    other.mark = 2
    assert other.key({}) != holder.key({})
    assert holder.mark == 0
    holder.controller = 4
    assert holder.key({4: 1}) != holder.key({}) == holder.key({5: 1}), "the dead are all one"
