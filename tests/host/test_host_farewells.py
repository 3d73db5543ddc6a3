"""What is said to peers that are not let in."""

from __future__ import annotations

import pytest

from sterna.errors import TransportError
from sterna.host.farewells import refusal, rejection
from sterna.registry import ERRORS, ErrorCode
from sterna.wire import FrameReader, FrameReceived, PrefaceReceived
from sterna.wire.records import Abort, Refuse


@pytest.mark.parametrize("code", [ErrorCode.PEER_NOT_LISTED, ErrorCode.FULL])
def test_a_farewell_is_a_preface_and_one_frame_and_tells_no_details(code: ErrorCode) -> None:
    error = TransportError(code, "secret detail of /etc/sterna/peers.toml")
    for said, record_type in ((refusal(error), Refuse), (rejection(error), Abort)):
        reader = FrameReader()
        reader.receive_data(said)
        assert isinstance(reader.next_event(), PrefaceReceived)
        event = reader.next_event()
        assert isinstance(event, FrameReceived)
        assert type(event.record) is record_type
        assert isinstance(event.record, Refuse | Abort)
        assert (event.record.code, event.record.text) == (code, ERRORS[code].text)
        assert reader.next_event() is None
        assert b"secret" not in said
