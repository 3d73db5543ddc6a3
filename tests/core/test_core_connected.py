"""What passes on a session's connections, whatever it means. With frames in them: test_core_session.py."""

from __future__ import annotations

from dataclasses import replace

from core_support import GUEST, PAGE, DestinationRig, SourceRig

from sterna.core.tables import DestinationState, SourceState
from sterna.errors import TransportError
from sterna.memory.pages import RegionPages
from sterna.registry import ErrorCode
from sterna.wire.records import Region


def test_a_connection_that_is_not_there_has_nothing_and_takes_nothing():
    for rig in (SourceRig().until(SourceState.ROUND), DestinationRig().until(DestinationState.RECEIVING)):
        machine, state = rig.machine, rig.machine.state
        assert machine.poll_transmit(rig.now, 3) == []
        assert not machine.is_held(3)
        assert len(machine.get_buffer(3)) > 0
        assert machine.buffer_updated(1, rig.now, 3)  # which is no reason not to look at the machine
        machine.receive_data(b"?", rig.now, 3)
        machine.transmitted(1, rig.now, 3)
        machine.connection_lost(TransportError(ErrorCode.CONNECTION_LOST, "?"), rig.now, 3)
        assert machine.state is state
        assert machine.result is None


def test_while_pages_are_filled_there_is_nothing_new():
    """Not before the last of their bytes, which a driver may know."""
    size = 32 * PAGE
    rig = DestinationRig(guest=replace(GUEST, regions=(Region(0, 0, size),)))
    rig.image = bytearray(b"x" * size)
    rig.until(DestinationState.RECEIVING)  # with the round begun
    batch = RegionPages(rig.table, {0: memoryview(rig.image)}).encode(0, [0], [32])
    frame = rig.encode(batch.table(1, 1), bytes(rig.image))
    rig.say_bytes(frame[:-size])
    for count, is_new in ((PAGE, False), (size - PAGE - 1, False), (1, True)):
        rig.machine.get_buffer()[:count] = b"x" * count
        assert rig.machine.buffer_updated(count, rig.now) is is_new
    assert rig.memory[0] == rig.image
