from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from records_support import EVERYTHING, GUEST, RECEIVING
from sterna.core.records import (
    KINDS,
    Claiming,
    Complete,
    Decided,
    Granted,
    HandBack,
    Record,
    Released,
    Resolved,
    RunnerRecord,
    SessionRecord,
    Side,
    Start,
    Voided,
)  # fmt: skip
from sterna.host.records_codec import (
    LINE_BYTES_MAX,
    PLACE_BYTES,
    Head,
    Header,
    check_of,
    decode_head,
    decode_header,
    decode_record,
    encode_head,
    encode_header,
    encode_record,
)  # fmt: skip
from sterna.host.sealed import seal
from sterna.registry import Owner
from sterna.testing.strategies import ids, runners, texts, tokens, u64
from sterna.wire.records import NO_ID

LAST = "0123456789abcdef" * 2
sound = runners().filter(lambda runner: runner.host and runner.id != NO_ID)
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(SessionRecord, ids(), u64(), st.sampled_from(Side), tokens(), texts(), texts()),
    st.builds(RunnerRecord, ids(), u64(), sound, ids()),
    st.builds(Claiming, ids(), u64(), sound, ids(), st.just(b"") | ids()),
    st.builds(Granted, ids(), u64(), st.booleans()),
    st.builds(Voided, ids(), u64()),
    st.builds(Decided, ids(), u64(), st.sampled_from(Owner)),
    st.builds(Resolved, ids(), u64(), st.sampled_from(Owner), texts(), texts()),
    st.builds(Start, u64(), texts(), texts()),
    st.builds(HandBack, u64(), texts(), texts()),
    st.builds(Complete, ids(), u64(), ids()),
    st.builds(Released, ids()),
)
heads = st.builds(Head, ids(), u64(), u64(), st.just(LAST), u64())


@given(records, st.integers(1, 1 << 40))
def test_what_is_written_is_read(record: Record, number: int) -> None:
    """[LOG-1, LOG-2]"""
    line = encode_record(record, number, LAST)
    assert decode_record(line, number, LAST) == record
    assert len(line) <= LINE_BYTES_MAX
    assert line.count(b"\n") == 1
    assert decode_record(line, number + 1, LAST) is None
    assert decode_record(line, number, LAST[::-1]) is None
    assert len(check_of(line)) == 32


def test_a_decision_of_before_operators_were_named_is_one() -> None:
    """[LOG-2] Else an older log has lost its end, and none of its records counts [LOG-5]."""
    said = {
        "number": 1,
        "last": LAST,
        "kind": "resolved",
        "session": "00" * 16,
        "epoch": 2,
        "owner": "source",
    }
    line, record = seal({**said, "fenced": "there"}), Resolved(NO_ID, 2, Owner.SOURCE, "there")
    assert decode_record(line, 1, LAST) == record
    assert encode_record(record, 1, LAST) == line
    assert decode_record(seal({**said, "fenced": "there", "operator": ""}), 1, LAST) is None


@pytest.mark.parametrize("kind", [Start, HandBack])
def test_a_fate_of_before_fenced_hosts_were_noted_is_one(kind: type[Start | HandBack]) -> None:
    """[LOG-2] As above; what is empty is left out."""
    said = {"number": 1, "last": LAST, "kind": kind.kind, "epoch": 2, "operator": "me@here"}
    line, record = seal(said), kind(2, "me@here")
    assert decode_record(line, 1, LAST) == record
    assert encode_record(record, 1, LAST) == line
    assert decode_record(seal({**said, "fenced": ""}), 1, LAST) is None
    assert decode_record(seal({**said, "fenced": "there"}), 1, LAST) == kind(2, "me@here", "there")


def test_the_longest_line() -> None:
    longest = SessionRecord(NO_ID, (1 << 64) - 1, Side.DESTINATION, bytes(32), '"' * 255, "\\" * 255)
    assert len(encode_record(longest, (1 << 64) - 1, LAST)) <= LINE_BYTES_MAX


@given(ids(), ids())
def test_a_header(guest: bytes, log: bytes) -> None:
    line = encode_header(Header(guest, log))
    assert decode_header(line) == Header(guest, log)
    for wrong in (line[:-1], line.replace(b'records":1', b'records":2'), seal({"sterna_records": 1}), b""):
        assert decode_header(wrong) is None


@given(heads, st.data())
def test_a_head(head: Head, data: st.DataObject) -> None:
    """A place is a sector, and a changed one is none [LOG-4]."""
    place = encode_head(head)
    assert len(place) == PLACE_BYTES
    assert decode_head(place) == head
    byte = data.draw(st.integers(0, PLACE_BYTES - 1))
    changed = bytearray(place)
    changed[byte] ^= data.draw(st.integers(1, 255))
    assert decode_head(bytes(changed)) is None
    assert decode_head(place[:byte]) is None
    assert decode_head(place[:byte].ljust(PLACE_BYTES)) is None


@pytest.mark.parametrize(
    "said",
    [
        {"kind": "start", "epoch": -1, "operator": ""},
        {"kind": "start", "epoch": True, "operator": ""},
        {"kind": "start", "epoch": 1 << 64, "operator": ""},
        {"kind": "start", "epoch": 1.0, "operator": ""},
        {"kind": "start", "epoch": 1},
        {"kind": "start", "epoch": 1, "operator": "\n"},
        {"kind": "start", "epoch": 1, "operator": "x" * 256},
        {"kind": "start", "epoch": 1, "operator": 5},
        {"kind": "start", "operator": "", "epoch": 1},
        {"kind": "start", "epoch": 1, "operator": "", "more": 1},
        {"kind": "begin", "epoch": 1},
        {"kind": ["start"], "epoch": 1, "operator": ""},
        {"kind": "granted", "session": "00" * 16, "epoch": 2, "follows": False},
        {"kind": "granted", "session": "00" * 16, "epoch": 2, "follows": 1},
        {"kind": "released", "session": "00"},
        {"kind": "released", "session": "0" * 31 + "G"},
        {"kind": "released", "session": "0 " * 16},
        {"kind": "released", "session": "AB" * 16},
        {"kind": "decided", "session": "00" * 16, "epoch": 1, "owner": "me"},
        {"kind": "claiming", "session": "00" * 16, "epoch": 1, "runner": "x", "image": "00" * 16},
        {"kind": "claiming", "session": "00" * 16, "epoch": 1, "runner": {"host": "a"}, "image": "00" * 16},
    ],
)
def test_lines_that_are_sealed_and_wrong(said: dict[str, object]) -> None:
    """[LOG-2]"""
    line = seal({"number": 1, "last": LAST, **said})
    assert decode_record(line, 1, LAST) is None


def test_what_cannot_be_written() -> None:
    for wrong in (
        replace(RECEIVING, session=b"short"),
        replace(RECEIVING, token=b""),
        replace(RECEIVING, epoch=-1),
        replace(RECEIVING, peer="x" * 256),
        replace(RECEIVING, peer="\ud800"),
    ):
        with pytest.raises(ValueError, match=r"not |control|surrogate"):
            encode_record(wrong, 1, LAST)


def test_every_kind_is_covered() -> None:
    assert {type(record) for record in EVERYTHING} == set(KINDS)
    for record in EVERYTHING:
        assert decode_record(encode_record(record, 1, LAST), 1, LAST) == record
        assert all(each.name in repr(record) or each.name == "token" for each in fields(record))
    assert decode_header(encode_header(Header(GUEST, GUEST))) == Header(GUEST, GUEST)
