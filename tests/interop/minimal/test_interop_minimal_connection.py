"""Prefaces and headers of the vectors, and the frames that may come at any time."""

from __future__ import annotations

import socket
import threading

import pytest
from minimal_support import Vector, connections, vectors

from sterna.wire import unchecked
from sterna_interop.minimal.codes import SessionError
from sterna_interop.minimal.connection import PREFACE, Connection, Times

PREFACES = vectors("preface")
HEADERS = [one for one in vectors("header") if not one.group["context"].get("stream")]
QUICK = Times(heartbeat=0.02, silence=0.1, stall=5, wait=5)


def fed(data: bytes, limits: dict[str, int] | None = None, *, eof: bool = True) -> Connection:
    """A destination's connection that has received `data`, and the end unless it is not `eof`."""
    near, far = socket.socketpair()
    near.sendall(data)
    if eof:
        near.shutdown(socket.SHUT_WR)
    line = Connection(far, "D", limits or {}, Times())
    line.peer = near  # type: ignore[attr-defined]
    return line


def close(line: Connection) -> None:
    line._sock.close()
    line.peer.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("vector", PREFACES, ids=[vector.test["id"] for vector in PREFACES])
def test_a_preface(vector: Vector) -> None:
    """[PRE-2 to PRE-7]"""
    decided = vector.test.get("decided_by")
    line = fed(vector.data if decided is None else vector.data[:decided], eof=bool(vector.test.get("eof")))
    if vector.test["result"] == "valid":
        line.open()
    else:
        with pytest.raises(SessionError) as error:
            line.open()
        assert error.value.code == vector.test["error"]
    close(line)


@pytest.mark.parametrize("vector", HEADERS, ids=[vector.test["id"] for vector in HEADERS])
def test_a_header(vector: Vector) -> None:
    """[HDR-2 to HDR-9, HDR-11] A good one is followed by an end where its body should be."""
    line = fed(vector.data, {name: int(v) for name, v in vector.group["context"].get("limits", {}).items()})
    line.greeted = not vector.group["context"].get("handshake")
    line._next_in = int(vector.group["context"].get("sequence", 0))
    expected = vector.test.get("error")
    code = code_of(line)
    assert code == expected or (expected is None and code in {"truncated", "", "malformed"})
    close(line)


def test_nothing_follows_bye() -> None:
    """[PNG-1] [PNG-3] No answer to a PING, no heartbeat, and no ABORT when the peer says no more."""
    near, far = socket.socketpair()
    near.sendall(unchecked.frame(0x8050, bytes(8)))
    line = Connection(far, "S", {}, QUICK)
    line.greeted = True
    line.send("BYE")
    with pytest.raises(SessionError) as caught:
        line.receive()
    assert caught.value.code == "peer_silent"
    near.shutdown(socket.SHUT_WR)
    line.abort(caught.value)
    far.close()
    with near.makefile("rb") as said:
        assert said.read() == unchecked.frame(0x8043)
    near.close()


def code_of(line: Connection) -> str:
    try:
        line._frame(line._deadline())
    except SessionError as error:
        return error.code
    return ""


def test_prefaces_and_frames_go_both_ways() -> None:
    with connections() as (source, destination):
        other = threading.Thread(target=destination.open)
        other.start()
        source.open()
        other.join()
        source.greeted = destination.greeted = True
        source.send("PING", id=7)
        source.grease()
        source.send("RELEASE", epoch=3)
        frame = destination.receive()
        assert (frame.name, frame.fields, frame.sequence) == ("RELEASE", {"epoch": 3}, 2)
        source._pings.add(7)
        destination.send("COMPLETE", epoch=3, digest=b"d" * 16)
        assert source.receive().fields["digest"] == b"d" * 16
        assert not source._pings


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (unchecked.frame(0x8051, bytes(8)), "unsolicited"),
        (unchecked.frame(0x0052, b"\4" + bytes(55)), "not_selected"),
        (unchecked.frame(0x8041, bytes(24)), "wrong_direction"),
        (unchecked.frame(0x8053, b"\1\4" + bytes(23)), "refused"),
        (unchecked.frame(0x8053, b"\xee\xee" + bytes(23)), "internal"),
        (unchecked.frame(0x8999), "unknown_critical"),
        (b"".join(unchecked.frame(0x7F00, sequence=number) for number in range(257)), "limit_rate"),
        (unchecked.frame(0x8042, bytes(8))[:20], "truncated"),
        (b"", "connection_lost"),
    ],
)
def test_what_ends_a_session_at_any_time(frame: bytes, code: str) -> None:
    """[PNG-2, PRG-1, CON-4, ABT-3, FRM-6, FRM-8, FRM-10, CON-69]"""
    line = fed(frame)
    line.greeted = True
    with pytest.raises(SessionError) as error:
        line.receive()
    assert (error.value.code, error.value.by_peer) == (code, code in {"refused", "internal"})
    close(line)


def test_silence_is_noticed_and_filled_with_pings() -> None:
    """[CON-75] [CON-76]"""
    near, far = socket.socketpair()
    line = Connection(far, "D", {}, QUICK)
    line.greeted = True
    with pytest.raises(SessionError, match="peer_silent"):
        line.receive()
    assert near.recv(2) == b"\x50\x80"
    near.close()
    far.close()


def test_a_wait_has_an_end() -> None:
    """[CON-74]"""
    near, far = socket.socketpair()
    line = Connection(far, "D", {}, Times(0.02, 5, 5, 5, 0.1))
    with pytest.raises(SessionError, match="phase_deadline"):
        line.receive()
    near.close()
    far.close()


def test_a_peer_that_reads_nothing_is_noticed() -> None:
    """[CON-77]"""
    near, far = socket.socketpair()
    line = Connection(far, "D", {}, Times(0.02, 5, 0.1, 5))
    with pytest.raises(SessionError, match="peer_stalled"):
        line.send("PAGES", [bytes(1 << 24)])
    near.close()
    far.close()


def test_the_last_word_is_heard() -> None:
    """[CON-65 to CON-67]"""
    near, far = socket.socketpair()
    line = Connection(far, "D", {}, Times())
    near.sendall(PREFACE + b"unread")
    near.shutdown(socket.SHUT_WR)
    line.abort(SessionError("bad_value", 40))
    said = near.recv(1000)
    assert said[:2] == b"\x53\x80"
    assert said[32:34] == b"\x0b\x01"
    assert near.recv(1) == b""
    near.close()
