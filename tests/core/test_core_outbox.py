"""Frames on their way out."""

from __future__ import annotations

import pytest

from sterna.core.outbox import Grease, Outbox
from sterna.errors import LocalProtocolError
from sterna.limits import Limits
from sterna.registry import GREASE_FIRST, GREASE_LAST, MAGIC, ErrorCode, Phase
from sterna.wire import records as r
from sterna.wire.header import decode_header
from sterna.wire.writing import GREASE_BODY_BYTES


def taken(outbox):
    """Everything that is queued, as (type, sequence); 0 for the preface."""
    found = []
    while buffers := outbox.take():
        data = b"".join(buffers)
        outbox.left(len(data))
        header = None if data.startswith(MAGIC) else decode_header(memoryview(data)[:32])
        found.append(0 if header is None else (header.type, header.sequence))
    return found


def test_the_preface_comes_first():
    """[PRE-1]"""
    outbox = Outbox()
    assert outbox
    outbox.send(r.Ping(1))
    outbox.send(r.Ping(2))
    assert taken(outbox) == [0, (r.Ping.type, 0), (r.Ping.type, 1)]
    assert not outbox


def test_bytes_are_counted_on_their_way():
    outbox = Outbox()
    assert (outbox.queued_bytes, outbox.in_flight_bytes, outbox.sent_bytes) == (16, 0, 0)
    assert outbox.has_unsent
    assert b"".join(outbox.take()).startswith(MAGIC)
    assert not outbox
    assert outbox.in_flight_bytes == 16
    outbox.left(10)
    assert (outbox.in_flight_bytes, outbox.sent_bytes) == (6, 10)
    assert outbox.has_unsent
    outbox.left(6)
    assert not outbox.has_unsent
    assert outbox.take() == []
    assert outbox.sent_bytes == outbox.queued_bytes == 16


@pytest.mark.parametrize("count", [-1, 17])
def test_no_more_leaves_than_was_taken(count):
    outbox = Outbox()
    outbox.take()
    with pytest.raises(LocalProtocolError, match="of 16 have left"):
        outbox.left(count)
    assert outbox.in_flight_bytes == 16


@pytest.mark.parametrize(
    "last", [r.Abort(1, Phase.ANY), r.Refuse(1), r.Bye()], ids=lambda each: each.type.name
)
def test_nothing_follows_the_last_frame(last):
    """[ABT-1] [PNG-3] Not even GREASE."""
    outbox = Outbox([Grease(0, GREASE_FIRST)])
    outbox.greases = True
    assert outbox.takes
    outbox.send(last)
    assert not outbox.takes
    outbox.send(r.Ping(1))
    outbox.send(last)
    assert taken(outbox) == [0, (last.type, 0)]


def test_without_a_connection_nothing_is_queued():
    outbox = Outbox()
    outbox.send(r.Ping(1))
    outbox.take()
    outbox.disconnect()
    assert not outbox
    assert not outbox.has_unsent
    outbox.send(r.Ping(2))
    assert outbox.take() == []
    outbox.left(5)  # a driver may tell late what had left
    assert (outbox.in_flight_bytes, outbox.sent_bytes) == (0, 0)


def test_a_frame_that_cannot_be_encoded_is_not_queued():
    outbox = Outbox()
    with pytest.raises(LocalProtocolError):
        outbox.send(r.Round(1, 0, 0))  # round 0
    outbox.send(r.Ping(1))
    assert taken(outbox) == [0, (r.Ping.type, 0)]


def test_limits_of_the_peer_are_kept():
    """[LIM-6]"""
    outbox = Outbox()
    outbox.writer.set_limits(Limits(control_bytes=65536))
    with pytest.raises(LocalProtocolError) as caught:
        outbox.send(r.State(1, 0, 0, 1, 1, 0, 70000, 0, True, bytes(70000)))
    assert caught.value.code is ErrorCode.LIMIT_CONTROL


def test_grease_goes_out_where_the_dice_put_it():
    """[FRM-9]"""
    ping = r.Ping.type
    outbox = Outbox(
        [Grease(4, GREASE_LAST, b"late"), Grease(1, GREASE_FIRST, b"early"), Grease(90, GREASE_FIRST)]
    )
    outbox.send(r.Ping(1))
    assert taken(outbox) == [0, (ping, 0)]  # not before WELCOME
    outbox.greases = True
    outbox.send(r.Ping(2))
    assert taken(outbox) == [(ping, 1), (GREASE_FIRST, 2)]
    outbox.send(r.Ping(3))
    assert taken(outbox) == [(ping, 3), (GREASE_LAST, 4)]
    outbox.send(r.Ping(4))
    assert taken(outbox) == [(ping, 5)]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(GREASE_FIRST - 1, b""), (GREASE_LAST + 1, b""), (GREASE_FIRST, bytes(GREASE_BODY_BYTES + 1))],
    ids=["below", "above", "long"],
)
def test_what_is_no_grease(kind, payload):
    """[FRM-9]"""
    with pytest.raises(LocalProtocolError) as caught:
        Grease(0, kind, payload)
    assert caught.value.code is ErrorCode.BAD_VALUE
