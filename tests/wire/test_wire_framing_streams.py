"""Connections that tell by their first frame what they are, and numbers that go on from one to the next."""

from __future__ import annotations

import pytest

from sterna.errors import RemoteProtocolError
from sterna.registry import GREASE_FIRST, ErrorCode, FrameType
from sterna.wire import FrameReader, FrameReceived, FrameWriter, UnknownFrame, unchecked
from sterna.wire.records import Attach, Ping


def first_frames(*frames: tuple[int, int]) -> list:
    """What a reader makes of frames of these (type, stream), on a connection that nobody has named."""
    reader = FrameReader(stream=None)
    assert reader.stream is None
    bodies = {FrameType.ATTACH: unchecked.body(Attach(bytes(16), bytes(32), 2, 0)), FrameType.PING: bytes(8)}
    data = b"".join(
        unchecked.frame(kind, bodies.get(kind, b""), stream=stream, sequence=number)
        for number, (kind, stream) in enumerate(frames)
    )
    reader.receive_data(unchecked.preface() + data)
    events = []
    while (event := reader.next_event()) is not None:
        events.append(event)
    return [reader.stream, *(type(event) for event in events[1:])]


def test_the_first_known_frame_tells_what_a_connection_is():
    """[HDR-5] [ATT-1] What is skipped in front of it does not count."""
    known, skipped = FrameReceived, UnknownFrame
    attach, ping = FrameType.ATTACH, FrameType.PING
    assert first_frames((attach, 3)) == [3, known]
    assert first_frames((GREASE_FIRST, 3), (attach, 3), (ping, 3)) == [3, skipped, known, known]
    assert first_frames((GREASE_FIRST, 0), (ping, 0)) == [0, skipped, known]
    assert first_frames((GREASE_FIRST, 16)) == [16, skipped]


@pytest.mark.parametrize(
    "frames",
    [
        [(FrameType.ATTACH, 0)],
        [(FrameType.ATTACH, 17)],
        [(FrameType.PING, 3)],
        [(GREASE_FIRST, 0), (FrameType.ATTACH, 3)],
        [(GREASE_FIRST, 3), (FrameType.PING, 0)],
        [(GREASE_FIRST, 3), (FrameType.PING, 3)],
        [(GREASE_FIRST, 3), (GREASE_FIRST, 4)],
        [(FrameType.ATTACH, 3), (FrameType.PING, 0)],
    ],
)
def test_frames_that_do_not_belong_to_one_connection(frames):
    """[HDR-5]"""
    with pytest.raises(RemoteProtocolError) as caught:
        first_frames(*frames)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.BAD_HEADER, "HDR-5")


def test_a_reader_may_be_told_what_its_connection_is_and_where_numbers_go_on():
    """[HDR-6] [ATT-5]"""
    reader = FrameReader()
    reader.set_stream(2)
    reader.go_on_from(7)
    writer = FrameWriter(stream=2)
    writer.go_on_from(7)
    reader.receive_data(unchecked.preface() + b"".join(map(bytes, writer.frame(Ping(1)))))
    assert not reader.is_drained
    reader.next_event()
    event = reader.next_event()
    assert reader.is_drained
    assert (event.header.stream, event.header.sequence) == (2, 7)
    assert (reader.next_sequence, writer.next_sequence) == (8, 8)
