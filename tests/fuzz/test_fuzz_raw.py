"""Raw bytes are checked as they are, and with right checksums."""

from __future__ import annotations

import pytest

from sterna.registry import FrameType
from sterna.wire import unchecked
from sterna.wire.framing import FrameReader
from sterna_fuzz import raw
from sterna_fuzz.conversations import SOURCE, conversation
from sterna_fuzz.raw import body_input, mend, one_body, one_stream
from sterna_fuzz.streams import read

STREAM = b"".join(conversation("plain").frames[SOURCE])


def test_good_receivers_pass():
    for data in (b"", b"\x89", STREAM, STREAM[:700], b"GET / HTTP/1.1\r\n"):
        one_stream(data)
    for data in (b"", b"\0", body_input(FrameType.ROUND, bytes(16)), body_input(FrameType.BYE, b"")):
        one_body(data)


def test_what_is_right_needs_no_mending():
    assert mend(STREAM) == STREAM
    assert mend(STREAM[:300]) != STREAM[:300], "a body that is cut has another checksum"
    assert len(mend(STREAM[:300])) == 300
    assert mend(b"short") == b"short"


def test_mended_frames_are_read():
    frames = [unchecked.frame(FrameType.BYE, sequence=9, body_crc=1, header_crc=2)] * 3
    data = unchecked.preface() + b"".join(frames) + b"rest"
    assert read([data]).ending.code == "header_checksum"
    assert [kind for kind, _, _ in read([mend(data)]).events] == ["preface", "frame", "frame", "frame"]


def test_a_body_is_of_the_frame_that_it_names(monkeypatch):
    seen = []
    monkeypatch.setattr(raw, "check_body", lambda frame, body: seen.append((frame, body)))
    for frame in FrameType:
        one_body(body_input(frame, b"body"))
    assert seen == [(frame, b"body") for frame in FrameType]


def test_a_cut_that_matters_is_noticed(monkeypatch):
    """[FRM-13]"""
    receive = FrameReader.receive_data

    def forgetful(self, data):
        receive(self, data[:100])

    monkeypatch.setattr(FrameReader, "receive_data", forgetful)
    with pytest.raises(AssertionError, match="in pieces of 7"):
        one_stream(STREAM)
