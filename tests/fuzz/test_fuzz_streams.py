"""What is read off a stream can be compared, and each check fails where its statement does not hold."""

from __future__ import annotations

import pytest

from sterna.wire import unchecked
from sterna.wire.framing import FrameReader
from sterna_fuzz.conversations import DESTINATION, SCRIPTS, SOURCE, conversation
from sterna_fuzz.mutators import Step
from sterna_fuzz.plans import Plan
from sterna_fuzz.streams import check_chunking, check_refusal, check_skipping, pieces, read

FLIP = Plan("dirty", SOURCE, (Step("flip_body", 3, 5),))
UNKNOWN = Plan("dirty", SOURCE, (Step("unknown", 3, 5, 0x123),))


@pytest.mark.parametrize("side", [SOURCE, DESTINATION])
@pytest.mark.parametrize("name", SCRIPTS)
def test_what_was_said_is_read(name, side):
    whole = conversation(name)
    found = read(whole.frames[side], whole.regions)
    assert found.ending is None
    assert len(found.events) == len(whole.frames[side])


def test_page_bytes_are_part_of_what_was_read():
    whole = conversation("plain")
    stream = bytearray(b"".join(whole.frames[SOURCE]))
    before = read([bytes(stream)])
    stream[stream.index(whole.image[4096 : 4096 + 64])] ^= 1
    assert read([bytes(stream)]).events != before.events
    assert (
        read([bytes(stream)], place=False).events
        == read([b"".join(whole.frames[SOURCE])], place=False).events
    )


def test_pieces_are_the_whole():
    assert list(pieces(b"abcdefg", (1, 2))) == [b"a", b"bc", b"d", b"ef", b"g"]
    assert list(pieces(b"abc", ())) == [b"abc"]


def test_good_receivers_pass():
    assert check_chunking(FLIP, (1,)) == ("body_checksum",)
    assert check_refusal(FLIP) == ("body_checksum",)
    assert check_refusal(Plan("dirty", SOURCE, (Step("end_early", 3),))) == ("read to its end",)
    assert check_skipping(UNKNOWN) == ("read to its end",)
    assert check_skipping(Plan("dirty", SOURCE, (Step("unknown_critical", 3),))) == ("unknown_critical",)


def test_who_looks_at_pieces_is_noticed(monkeypatch):
    """[FRM-13]"""
    receive_data = FrameReader.receive_data

    def forgetful(self, data):
        receive_data(self, data[:100] if len(data) > 1 else data)

    monkeypatch.setattr(FrameReader, "receive_data", forgetful)
    with pytest.raises(AssertionError, match=r"in pieces"):
        check_chunking(FLIP, (1,))


def test_who_checks_no_checksum_is_noticed(monkeypatch):
    """[HDR-10]"""
    monkeypatch.setattr(FrameReader, "_check_crc", lambda self, crc: None)
    with pytest.raises(AssertionError, match=r"flip_body was not noticed|instead of body_checksum"):
        check_refusal(Plan("dirty", SOURCE, (Step("flip_body", 2, 5),)))


def test_who_takes_an_end_for_a_success_is_noticed(monkeypatch):
    """[FRM-10]"""
    monkeypatch.setattr(FrameReader, "receive_eof", lambda self: None)
    with pytest.raises(AssertionError, match="truncate was not noticed"):
        check_refusal(Plan("dirty", SOURCE, (Step("truncate", 3, 5),)))


def test_who_stumbles_over_unknown_frames_is_noticed(monkeypatch):
    """[FRM-7]"""
    admit = FrameReader._admit

    def strict(self, header):
        header = decoy if (decoy := header).type == 0x123 and decoy.body_bytes else header
        if header.type == 0x123:
            self._sequence += 1
        admit(self, header)

    monkeypatch.setattr(FrameReader, "_admit", strict)
    with pytest.raises(AssertionError, match="where nothing is wrong"):
        check_skipping(UNKNOWN)


def test_an_error_without_a_clause_is_noticed(monkeypatch):
    from sterna.errors import PeerMisbehaved
    from sterna.registry import ErrorCode

    def refuse(self, header):
        raise PeerMisbehaved(ErrorCode.BAD_HEADER)

    monkeypatch.setattr(FrameReader, "_admit", refuse)
    with pytest.raises(AssertionError, match="names no clause"):
        read([unchecked.preface() + unchecked.frame(1)])
