"""The recorded conversations are what their scripts say."""

from __future__ import annotations

import pytest

from sterna.registry import FrameType
from sterna.wire.records import Pages
from sterna_fuzz.conversations import DESTINATION, SCRIPTS, SOURCE, conversation, split
from sterna_fuzz.peers import understand

F = FrameType


def types(name, side):
    return [int.from_bytes(frame[:2], "little") for frame in conversation(name).frames[side][1:]]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_conversation_ends_as_its_script_says(name):
    found = conversation(name)
    assert found.completed is (SCRIPTS[name].fault is None)
    assert len(found.image) == (SCRIPTS[name].pages * 4096 if found.completed else 0)
    if found.completed:
        assert types(name, SOURCE)[0] == F.HELLO
        assert types(name, SOURCE)[-2:] == [F.RELEASE, F.BYE]
        assert types(name, DESTINATION)[-3:] == [F.RUNNING, F.COMPLETE, F.BYE]


def test_rounds_are_as_many_as_wanted():
    assert types("plain", SOURCE).count(F.ROUND) == 1 + 1
    assert types("dirty", SOURCE).count(F.ROUND) == 3 + 1


def test_each_peculiarity_is_there():
    assert types("regions", SOURCE).count(F.PAGES) == 3 + 1 + 1
    assert any(0x7F00 <= number <= 0x7FFF for number in types("grease", SOURCE))
    assert any(0x7F00 <= number <= 0x7FFF for number in types("grease", DESTINATION))
    assert types("not_ready", DESTINATION).count(F.NOT_READY) == 1
    assert types("state", SOURCE).count(F.STATE) == 1 + 1 + 1 + 2
    assert types("refused", DESTINATION)[-1] == F.REFUSE
    assert types("aborted", SOURCE)[-1] == F.ABORT


def test_rejected_pages_are_sent_again():
    """Page bytes are damaged on their way, not where they come from."""
    damaged, honest = conversation("rejected").frames[SOURCE], conversation("dirty").frames[SOURCE]
    sizes = [len(frame) for frame in damaged if int.from_bytes(frame[:2], "little") == F.PAGES]
    assert len(sizes) == 2
    assert sizes[1] > 4 * 4096, "all pages of the damaged chunk"
    assert len(honest) > len(damaged)


def test_a_page_that_becomes_zero_is_sent_twice():
    whole = conversation("wiped")
    assert types("wiped", SOURCE).count(F.PAGES) == 2
    assert not any(whole.image[-4096:])
    assert any(frame.count(b"\1" * 4096) for frame in whole.frames[SOURCE])


def test_zeros_travel_as_bytes_where_they_must():
    assert max(map(len, conversation("bytes_only").frames[SOURCE])) > 6 * 4096
    assert max(map(len, conversation("plain").frames[SOURCE])) < 5 * 4096


def test_pages_go_without_hashes_where_that_is_agreed():
    """[PGS-25]"""
    whole = conversation("unhashed")
    words = understand(b"".join(whole.frames[SOURCE]), whole.regions)
    hashes = [each.hashes.tolist() for each in words if isinstance(each, Pages)]
    assert len(hashes) == 3
    assert not any(map(any, hashes))


def test_streams_are_split_at_their_frames():
    frames = conversation("plain").frames[SOURCE]
    assert split(b"".join(frames)) == frames
    assert len(frames[0]) == 16
