"""What a case has recorded, the readers read."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import trio

from observe_support import D, S, migration
from sterna.observe.outcome import Ended
from sterna.observe.recording import DirectionEnded, Passed, RecordingReader, Side
from sterna.observe.sessions import Over, Sessions
from sterna_interop.faults import Clean, Way
from sterna_interop.recording import CaseRecording
from sterna_interop.relay import relay

TAPE = migration()


def test_what_a_relay_passes_on(tmp_path: Path) -> None:
    path = tmp_path / "x.rec"
    with CaseRecording(path) as recording:
        for unit in TAPE:
            recording.first.on_relay(Way.TO_DESTINATION if unit.sender is S else Way.TO_SOURCE, unit.raw)
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("rb") as file:
        reader = RecordingReader(file)
        *_, over = Sessions(reader.side, reader.clock).follow(reader)
    assert reader.side is Side.BETWEEN
    assert not reader.cut_off
    assert isinstance(over, Over)
    assert over.follower.fault is None
    assert over.follower.outcome().ended is Ended.COMPLETED


def test_what_a_peer_of_the_kit_sends_and_receives(tmp_path: Path) -> None:
    for side, own in ((Side.SOURCE, S), (Side.DESTINATION, D)):
        with CaseRecording(tmp_path / "x.rec", side) as recording:
            recording.first.on_peer(True, b"ours")
            recording.first.on_peer(False, b"theirs")
        with (tmp_path / "x.rec").open("rb") as file:
            first, second, *_ = RecordingReader(file)
        assert isinstance(first, Passed)
        assert isinstance(second, Passed)
        assert (first.sender, first.data, second.data) == (own, b"ours", b"theirs")
        assert second.sender is not own
        assert second.time_ns >= first.time_ns


def test_several_connections_in_one_file(tmp_path: Path) -> None:
    with CaseRecording(tmp_path / "x.rec") as recording:
        for number, each in enumerate((recording.first, recording.another(), recording.another())):
            each.on_relay(Way.TO_SOURCE, bytes([number]))
    with (tmp_path / "x.rec").open("rb") as file:
        passed = [item for item in RecordingReader(file) if isinstance(item, Passed)]
    assert len({item.connection for item in passed}) == 3
    assert [bytes(item.data) for item in passed] == [b"\0", b"\1", b"\2"]


def test_connections_are_numbered_in_the_order_of_their_first_records(tmp_path: Path) -> None:
    """[REC-7] Whatever the order was in which they came; one that nothing passed on is the last."""
    with CaseRecording(tmp_path / "x.rec") as recording:
        recording.another()
        for byte, each in ((b"a", recording.another()), (b"b", recording.first)):
            each.on_relay(Way.TO_DESTINATION, byte)
    with (tmp_path / "x.rec").open("rb") as file:
        items = list(RecordingReader(file))
    passed = [(item.connection, bytes(item.data)) for item in items if isinstance(item, Passed)]
    assert passed == [(1, b"a"), (2, b"b")]
    assert {item.connection for item in items if isinstance(item, DirectionEnded)} == {1, 2, 3}


async def test_with_the_relay_itself(tmp_path: Path) -> None:
    (near, inward), (outward, far) = socket.socketpair(), socket.socketpair()
    for sock in (near, inward, outward, far):
        sock.setblocking(False)
    with CaseRecording(tmp_path / "x.rec") as recording:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(relay, inward, outward, Clean(), on_bytes=recording.first.on_relay))
            near.send(b"over")
            await trio.lowlevel.wait_readable(far)
            assert far.recv(10) == b"over"
            near.close()
            far.close()
    with (tmp_path / "x.rec").open("rb") as file:
        first, *_ = RecordingReader(file)
    assert isinstance(first, Passed)
    assert (first.sender, first.data) == (S, b"over")
