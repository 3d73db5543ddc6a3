"""What mutators stand on: headers, numbers and bodies of frames that are right, but for what was changed."""

from __future__ import annotations

from sterna.registry import FrameType
from sterna.wire import decode_header, unchecked
from sterna.wire.records import Abort, Round, RoundEnd, Seal
from sterna_fuzz import drafts
from sterna_fuzz.conversations import DESTINATION, HEADER_BYTES, SOURCE, conversation
from sterna_fuzz.drafts import Draft, field, with_field


def draft(name="dirty"):
    whole = conversation(name)
    frames = whole.frames[SOURCE]
    return Draft(list(frames), whole.frames[DESTINATION][1:], frames[1:], whole.regions)


def index_of(found, kind):
    return next(index for index in range(1, len(found.parts)) if isinstance(found.record(index), kind))


def test_fields_of_headers():
    frame = unchecked.frame(FrameType.ROUND, b"body", sequence=7)
    assert [field(frame, offset) for offset in (drafts.TYPE, drafts.SEQUENCE, drafts.BODY)] == [
        FrameType.ROUND,
        7,
        4,
    ]
    changed = with_field(frame, drafts.SEQUENCE, 1 << 63)
    assert decode_header(changed[:HEADER_BYTES]).sequence == 1 << 63
    assert changed[HEADER_BYTES:] == b"body"
    assert with_field(frame, drafts.STREAM, 1 << 16 | 3) == with_field(frame, drafts.STREAM, 3)


def test_frames_are_picked_around():
    found = draft()
    assert found.pick(0) == 1
    assert found.pick(len(found.parts) - 1) == 1
    assert found.place(len(found.parts) - 1) == len(found.parts)
    assert Draft([b"preface"], (), (), ()).pick(5) == 0


def test_what_is_put_in_has_the_right_number():
    found = draft()
    found.insert(3, unchecked.frame(0x7F01), unchecked.frame(0x7F02))
    numbers = [field(part, drafts.SEQUENCE) for part in found.parts[1:]]
    assert numbers == list(range(len(numbers)))
    assert [field(part, drafts.TYPE) for part in found.parts[4:6]] == [0x7F01, 0x7F02]


def test_who_names_a_frame_goes_on_naming_it():
    """[STR-8] ROUND_END and SEAL repeat numbers of PAGES, which move."""
    found = draft()
    before = {kind: found.record(index_of(found, kind)).last_sequences for kind in (RoundEnd, Seal)}
    found.insert(0, unchecked.frame(0x7F01))
    for kind, last in before.items():
        assert found.record(index_of(found, kind)).last_sequences == ((0, last[0][1] + 1),)


def test_what_is_no_frame_is_left_alone():
    found = draft()
    found.parts[2] = b"short"
    found.renumber()
    assert found.parts[2] == b"short"
    assert field(found.parts[3], drafts.SEQUENCE) == 1
    assert found.body_of(2) == b""
    assert found.record(2) is None


def test_bodies_are_replaced_with_right_checksums():
    found = draft()
    index = index_of(found, Round)
    found.put_body(index, unchecked.body(Round(1, 9, 9)))
    assert found.record(index) == Round(1, 9, 9)
    found.put_body(index, b"nonsense")
    assert found.record(index) is None


def test_an_honest_draft_is_the_conversation():
    found = draft()
    found.renumber()
    assert found.data == b"".join(conversation("dirty").frames[SOURCE])
    assert found.record(len(found.parts) - 1).type is FrameType.BYE
    assert not isinstance(found.record(1), Abort)
