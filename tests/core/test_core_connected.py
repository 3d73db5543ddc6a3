"""What passes on a session's connections, whatever it means. With frames in them: test_core_session.py."""

from __future__ import annotations

from core_support import DestinationRig, SourceRig

from sterna.core.tables import DestinationState, SourceState
from sterna.errors import TransportError
from sterna.registry import ErrorCode


def test_a_connection_that_is_not_there_has_nothing_and_takes_nothing():
    for rig in (SourceRig().until(SourceState.ROUND), DestinationRig().until(DestinationState.RECEIVING)):
        machine, state = rig.machine, rig.machine.state
        assert machine.poll_transmit(rig.now, 3) == []
        assert not machine.is_held(3)
        assert len(machine.get_buffer(3)) > 0
        machine.buffer_updated(1, rig.now, 3)
        machine.receive_data(b"?", rig.now, 3)
        machine.transmitted(1, rig.now, 3)
        machine.connection_lost(TransportError(ErrorCode.CONNECTION_LOST, "?"), rig.now, 3)
        assert machine.state is state
        assert machine.result is None
