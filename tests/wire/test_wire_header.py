"""Preface and header: layout against the schema, and what is said about first bytes that are no preface."""

import pytest
from construct import ConstructError
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import PeerMisbehaved
from sterna.registry import MAGIC, VERSION_DRAFT, VERSION_MAJOR, ErrorCode
from sterna.testing import strategies
from sterna.wire import Header, decode_header, encode_header, encode_preface, schema, unchecked
from sterna.wire.header import VERSION, VERSIONS, decode_preface, diagnose_preface
from sterna.wire.integrity import crc32
from sterna.wire.rules import DEFAULT_BOUNDS, Violation

NUMBERS = (strategies.u16(), strategies.u16(), strategies.u64(), st.binary(max_size=50), strategies.u32())


@given(*NUMBERS)
def test_a_header_has_the_layout_of_the_schema(kind, stream, sequence, body, bulk_bytes):
    """[HDR-1] The other direction, too."""
    raw = encode_header(kind, stream, sequence, body, bulk_bytes)
    found = schema.HEADER.parse(raw)
    assert schema.HEADER.build(found) == raw
    expected = (kind, 0, stream, 0, sequence, len(body), bulk_bytes, crc32(body), crc32(raw[:28]))
    assert tuple(value for name, value in found.items() if name != "_io") == expected
    assert decode_header(raw) == Header(kind, stream, sequence, len(body), bulk_bytes, crc32(body))
    assert unchecked.frame(kind, body, stream=stream, sequence=sequence, bulk_bytes=bulk_bytes) == raw + body
    with pytest.raises(ConstructError):
        schema.HEADER.parse(raw + b"\0")


def test_the_critical_bit():
    assert Header(0x8001, 0, 0, 0, 0, 0).critical
    assert not Header(0x7FFF, 0, 0, 0, 0, 0).critical


@given(st.tuples(*NUMBERS), st.integers(0, 32 * 8 - 1))
def test_a_header_with_one_wrong_bit_is_not_believed(numbers, bit):
    """[HDR-2]"""
    raw = bytearray(encode_header(*numbers))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerMisbehaved) as caught:
        decode_header(raw)
    assert (caught.value.code, caught.value.clause) == (ErrorCode.HEADER_CHECKSUM, "HDR-2")


@pytest.mark.parametrize("bit", range(16))
def test_flags_and_reserved_fields_are_zero(bit):
    """[HDR-3] [HDR-4] Flags first."""
    for fields, clause, offset in (
        ({"flags": 1 << bit, "reserved": 1}, "HDR-3", 2),
        ({"reserved": 1 << bit}, "HDR-4", 6),
    ):
        with pytest.raises(PeerMisbehaved) as caught:
            decode_header(unchecked.frame(0x8001, **fields))
        error = caught.value
        assert (error.code, error.clause, error.offset) == (ErrorCode.BAD_HEADER, clause, offset)
        assert error.frame == 0x8001


@given(strategies.u16(), strategies.u16())
def test_a_preface_has_the_layout_of_the_schema(major, draft):
    """[PRE-1] [PRE-6] No version is refused here."""
    preface = encode_preface(major, draft)
    assert len(preface) == 16
    assert all(diagnose_preface(preface[:size]) is None for size in range(17))
    assert decode_preface(preface) == (major, draft)
    assert unchecked.preface(major=major, draft=draft) == preface
    found = schema.PREFACE.parse(preface, bounds=DEFAULT_BOUNDS)
    assert (found.magic, found.major, found.draft) == (MAGIC, major, draft)
    assert schema.PREFACE.build(found, bounds=DEFAULT_BOUNDS) == preface


def test_the_preface_names_this_release():
    """[PRE-6] [VRS-1] The newest version that it speaks."""
    assert decode_preface(encode_preface()) == (VERSION_MAJOR, VERSION_DRAFT)
    assert VERSION == VERSION_MAJOR * 65536 + VERSION_DRAFT
    assert VERSION in VERSIONS


def test_the_schema_knows_the_magic():
    """[PRE-2]"""
    with pytest.raises(Violation) as caught:
        schema.PREFACE.parse(b"x" * 16, bounds=DEFAULT_BOUNDS)
    assert caught.value.clause == "PRE-2"


FOREIGN = [
    (b"\x16\x03\x01\x02\x00\x01", "PRE-4", ErrorCode.TLS_ON_PLAIN, 2),
    (b"\x15\x03\x03\x00\x02", "PRE-4", ErrorCode.TLS_ON_PLAIN, 2),
    (b"GET / HTTP/1.1\r\n", "PRE-5", ErrorCode.HTTP_ON_PLAIN, 4),
    (b"OPTIONS * HTTP/1", "PRE-5", ErrorCode.HTTP_ON_PLAIN, 8),
    (b"PRI * HTTP/2.0\r\n", "PRE-5", ErrorCode.HTTP_ON_PLAIN, 4),
    (b"HTTP/1.1 400 Bad", "PRE-5", ErrorCode.HTTP_ON_PLAIN, 5),
    (b"\tSTERNA\r\n\x1a\n\0", "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 7),  # seven bits
    (b"?STERNA\r\n\x1a\n\0", "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 7),  # no ASCII
    (b"STERNA\r\n\x1a\n\0", "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 6),  # dropped
    (MAGIC.decode("latin-1").encode(), "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 8),
    (MAGIC.decode("utf-8", "replace").encode(), "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 9),
    (MAGIC.replace(b"\r\n", b"\n"), "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 8),
    (MAGIC.replace(b"\n", b"\r\n"), "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 9),
    (MAGIC.replace(b"\x1a\n", b"\x1a\r\n"), "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 11),
    (MAGIC.replace(b"\r", b"\n"), "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 8),
    (MAGIC.replace(b"\x1a", b""), "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 10),
    (MAGIC.replace(b"\0", b" "), "PRE-3", ErrorCode.TEXT_MODE_DAMAGE, 12),
    (b"SSH-2.0-OpenSSH_", "PRE-2", ErrorCode.BAD_MAGIC, 2),
    (b"\0", "PRE-2", ErrorCode.BAD_MAGIC, 1),
    (b"GOT", "PRE-2", ErrorCode.BAD_MAGIC, 2),
    (b"PUSH x", "PRE-2", ErrorCode.BAD_MAGIC, 3),
    (b"\x16\x04", "PRE-2", ErrorCode.BAD_MAGIC, 2),
    (b"\x89PNG\r\n\x1a\n", "PRE-2", ErrorCode.BAD_MAGIC, 2),
]


@pytest.mark.parametrize(("start", "clause", "code", "decided"), FOREIGN)
def test_foreign_first_bytes_are_named_at_once(start, clause, code, decided):
    """[PRE-2] [PRE-3] [PRE-4] [PRE-5] The verdict comes with byte `decided` and never changes."""
    for size in range(len(start) + 1):
        error = diagnose_preface(start[:size])
        if size < decided:
            assert error is None
        else:
            assert (error.clause, error.code, error.offset) == (clause, code, 0)


@given(st.binary(max_size=16))
def test_a_verdict_on_first_bytes_is_final(start):
    """[PRE-2] At most the nine bytes of the longest signature are waited for, unless the magic comes on."""
    verdicts = [diagnose_preface(start[:size]) for size in range(len(start) + 1)]
    codes = [None if error is None else error.code for error in verdicts]
    decided = [code for code in codes if code is not None]
    assert codes == [None] * (len(codes) - len(decided)) + decided
    assert len(set(decided)) <= 1
    if len(start) >= 9 and not MAGIC.startswith(start[:9]):
        assert decided
