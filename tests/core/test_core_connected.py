"""What passes on a session's connections, whatever it means. With frames in them: test_core_session.py."""

from __future__ import annotations

from dataclasses import replace

from core_support import GUEST, PAGE, DestinationRig, SourceRig

from sterna.core.tables import DestinationState, SourceState
from sterna.errors import TransportError
from sterna.memory.pages import RegionPages
from sterna.registry import ErrorCode
from sterna.wire.framing import READ_AHEAD_BYTES
from sterna.wire.records import Ping, Region


def test_a_connection_that_is_not_there_has_nothing_and_takes_nothing():
    for rig in (SourceRig().until(SourceState.ROUND), DestinationRig().until(DestinationState.RECEIVING)):
        machine, state = rig.machine, rig.machine.state
        assert machine.poll_transmit(rig.now, 3) == []
        assert not machine.is_held(3)
        assert len(machine.get_buffer(3)) > 0
        assert len(machine.get_buffers(3)) == 1
        assert not machine.owed_bytes(3)
        assert machine.buffer_updated(1, rig.now, 3)  # which is no reason not to look at the machine
        machine.receive_data(b"?", rig.now, 3)
        machine.transmitted(1, rig.now, 3)
        machine.connection_lost(TransportError(ErrorCode.CONNECTION_LOST, "?"), rig.now, 3)
        assert machine.state is state
        assert machine.result is None


def test_who_sends_is_woken_for_what_is_queued():
    """A source queues pages only when it is asked for them, so there it may always be worth the while."""
    rig = DestinationRig()
    assert rig.machine.may_transmit()  # the preface
    rig.drain()
    assert not rig.machine.may_transmit()
    rig.until(DestinationState.RECEIVING)
    rig.drain()
    assert not rig.machine.may_transmit()
    rig.say(Ping(7))
    assert rig.machine.may_transmit()
    source = SourceRig().until(SourceState.ROUND)
    source.drain()
    assert source.machine.may_transmit()


def test_while_pages_come_there_is_nothing_new():
    """Unless something else comes, or somebody has to be told something: drivers need not look in vain."""
    size = 32 * PAGE
    rig = DestinationRig(guest=replace(GUEST, regions=(Region(0, 0, 2 * size),)))
    rig.image = bytearray(b"x" * 2 * size)
    rig.until(DestinationState.RECEIVING)  # with the round begun
    pages = RegionPages(rig.table, {0: memoryview(rig.image)})
    for first in (0, 32):
        table = pages.encode(0, [first], [32]).table(1, 1)
        rig.say_bytes(rig.encode(table, bytes(size))[:-size])
        rig.drain()
        rig.events()
        owed = size
        for count in (PAGE, size - PAGE - 1, 1):
            assert rig.machine.owed_bytes() == owed
            (place, *_) = rig.machine.get_buffers() if first else [rig.machine.get_buffer()]
            place[:count] = b"x" * count
            assert not rig.machine.buffer_updated(count, rig.now)
            owed -= count
        assert not rig.machine.owed_bytes()
    assert rig.memory[0] == rig.image
    for frame, bulk in (Ping(7), b""), (table, bytes(size)):  # more pages than there are
        data = rig.encode(frame, bulk)[:READ_AHEAD_BYTES]
        rig.machine.get_buffer()[: len(data)] = data
        assert rig.machine.buffer_updated(len(data), rig.now)
