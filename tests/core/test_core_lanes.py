"""The connections of a session, one by one. What they do together: test_core_joining.py."""

from __future__ import annotations

from sterna.core.lanes import Lane, Lanes, Mark


def sent(lane: Lane, count: int) -> None:
    lane.outbox.take()
    lane.outbox.left(count)


def test_what_is_left_of_a_connection_that_is_gone():
    """[HDR-6] Its generation, its last number, and what it has carried."""
    lanes = Lanes(Lane(0, 0.0))
    assert lanes.mark(1) == Mark(-1, 0)
    lane = Lane(1, 0.0, mark=Mark(3, 70))
    lanes.add(lane)
    sent(lane, 16)
    lane.sequence = 80
    assert lanes.mark(1) == Mark(3, 80)
    assert lanes.sent_bytes == 16
    lanes.remove(1)
    lanes.remove(1)
    assert lanes.get(1) is None
    assert 1 not in lanes
    assert lanes.mark(1) == Mark(3, 80)
    assert lanes.sent_bytes == 16
    lanes.marks = {2: Mark(1, 5)}
    assert lanes.mark(2) == Mark(1, 5)


def test_a_connection_takes_the_place_of_the_one_before():
    """[STR-6]"""
    lanes = Lanes(Lane(0, 0.0))
    older, newer = Lane(1, 0.0), Lane(1, 0.0)
    lanes.add(older)
    sent(older, 10)
    lanes.add(newer)
    assert lanes.data == [newer]
    assert lanes[1] is newer
    assert lanes.sent_bytes == 10


def test_the_one_that_has_stood_still_the_longest_counts():
    """[CON-77]"""
    lanes = Lanes(Lane(0, 1.0))
    lanes.add(Lane(1, 2.0))
    assert lanes.stalled_since is None
    for lane in lanes:
        lane.outbox.take()
    assert lanes.stalled_since == 1.0
    lanes.control.left = 5.0
    assert lanes.stalled_since == 2.0


def test_guest_memory_is_let_go_of():
    lane = Lane(1, 0.0)
    reader = lane.reader
    assert lane.outbox.has_unsent
    lane.forget()
    assert lane.reader is not reader
    assert not lane.outbox.has_unsent
    control = Lane(0, 0.0)
    control.forget()
    assert control.outbox.has_unsent, "the last words are still to be said"
