"""How a destination says no; the refusals of HELLO and GUEST are in test_core_destination.py."""

from __future__ import annotations

import pytest
from lanes_support import encode

from sterna.core.destination import DestinationConfig, DestinationMachine
from sterna.registry import ErrorCode
from sterna.wire import FrameReader, unchecked
from sterna.wire import records as r

ATTACH = r.Attach(bytes(16), bytes(32), 2, 0)


@pytest.mark.parametrize(
    ("data", "stream", "code"),
    [
        (encode(ATTACH, 3, 0)[:-1] + b"\xff", 3, ErrorCode.BODY_CHECKSUM),
        (encode(ATTACH, 0, 0), 0, ErrorCode.BAD_HEADER),
        (encode(r.Ping(1), 3, 0), 0, ErrorCode.BAD_HEADER),
    ],
    ids=["of a data connection", "of a control connection", "of neither"],
)
def test_the_last_words_bear_the_number_of_their_connection(data, stream, code):
    """[HDR-5]"""
    machine = DestinationMachine(DestinationConfig(), 0.0)
    machine.receive_data(unchecked.preface() + data, 0.0)
    reader = FrameReader(stream=stream)
    while buffers := machine.poll_transmit(0.0):
        reader.receive_data(b"".join(map(bytes, buffers)))
        while (event := reader.next_event()) is not None:
            last = event
    assert last.record.code == code
