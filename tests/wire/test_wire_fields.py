"""The building blocks on their own."""

from enum import IntEnum

import pytest
from construct import ConstructError, Int8ul, Struct, Terminated

from sterna.registry import ErrorCode
from sterna.wire.fields import FLAG, TEXT, Blob, Fields, Rows, Ruled, closed, count, exact, reserved
from sterna.wire.rules import DEFAULT_BOUNDS, Rule, Violation, at_most


class Colour(IntEnum):
    RED = 1
    BLUE = 4


def parse(construct, data):
    return construct.parse(data, bounds=DEFAULT_BOUNDS)


def build(construct, value, **options):
    return construct.build(value, bounds=DEFAULT_BOUNDS, **options)


def violation(call, *arguments) -> tuple[str, ErrorCode, int]:
    with pytest.raises(Violation) as caught:
        call(*arguments)
    return caught.value.clause, caught.value.code, caught.value.offset


def test_a_rule_knows_where_its_value_begins():
    small: Rule[int] = at_most("ABC-1", 9, "things")
    struct = Struct("first" / Int8ul, "second" / Ruled(Int8ul, small))
    assert parse(struct, b"\x0a\x09").second == 9
    assert violation(parse, struct, b"\x09\x0a") == ("ABC-1", ErrorCode.BAD_VALUE, 1)
    assert violation(build, struct, {"first": 1, "second": 10}) == ("ABC-1", ErrorCode.BAD_VALUE, 1)
    assert build(struct, {"first": 1, "second": 10}, unchecked=True, counts={}) == b"\x01\x0a"


def test_closed_enumerations():
    """[FRM-4]"""
    colour = closed(Colour)
    assert parse(colour, b"\4") is Colour.BLUE
    assert build(colour, Colour.RED) == build(colour, 1) == b"\1"
    assert violation(parse, colour, b"\2") == violation(build, colour, 2) == ("FRM-4", ErrorCode.BAD_VALUE, 0)
    assert build(colour, 2, unchecked=True) == b"\2"


def test_flags():
    """[FRM-5]"""
    assert parse(FLAG, b"\1") is True
    assert parse(FLAG, b"\0") is False
    assert build(FLAG, True) == b"\1"
    assert violation(parse, FLAG, b"\2")[0] == "FRM-5"
    assert violation(build, FLAG, 2)[0] == "FRM-5"
    assert build(FLAG, 2, unchecked=True) == b"\2"


def test_reserved_fields():
    """[FRM-3]"""
    struct = Struct(reserved(2), "value" / Int8ul)
    assert build(struct, {"value": 5}) == b"\0\0\5"
    assert parse(struct, b"\0\0\5").value == 5
    assert violation(parse, struct, b"\0\1\5") == ("FRM-3", ErrorCode.BAD_VALUE, 0)


def test_exact_bytes():
    assert parse(exact(3), b"abc") == b"abc"
    assert build(exact(3), b"abc") == b"abc"
    for wrong in (b"ab", b"abcd", 7, "abc", None):
        assert violation(build, exact(3), wrong)[0] == "FRM-1"


def test_texts():
    """[TXT-1] [TXT-2] [TXT-3]"""
    assert build(TEXT, "é") == b"\2\xc3\xa9"
    assert parse(TEXT, b"\2\xc3\xa9") == "é"
    assert parse(TEXT, b"\0") == ""
    assert violation(parse, TEXT, b"\1\xc3")[0] == "TXT-2"
    assert violation(parse, TEXT, b"\1\n")[0] == "TXT-3"
    with pytest.raises(ConstructError):
        parse(TEXT, b"\2a")
    assert build(TEXT, "\n", unchecked=True) == b"\1\n"
    assert build(TEXT, b"\xff", unchecked=True) == b"\1\xff"


def test_counts_rows_and_blobs():
    """[FRM-12] What is written follows the list; what is stated may lie only unchecked."""
    struct = Struct(
        "row_count" / count("rows", at_most("ABC-1", 2, "rows"), width=Int8ul),
        "size" / count("data", width=Int8ul),
        "rows" / Rows("row_count", Int8ul),
        "data" / Blob("size"),
        Terminated,
    )
    value = {"rows": (1, 2), "data": b"abc"}
    assert build(struct, value) == b"\2\3\1\2abc"
    found = parse(struct, b"\2\3\1\2abc")
    assert (found.rows, found.data) == ((1, 2), b"abc")
    assert violation(parse, struct, b"\3\0\1\2\3")[0] == "ABC-1"
    assert violation(build, struct, {"rows": (1, 2, 3), "data": b""})[0] == "ABC-1"
    assert build(struct, value, unchecked=True, counts={"rows": 9}) == b"\x09\3\1\2abc"
    for cut in range(7):
        with pytest.raises((ConstructError, Violation)):
            parse(struct, b"\2\3\1\2abc"[:cut])
    assert violation(parse, struct, b"\2\0\1")[::2] == ("FRM-12", 2)
    assert violation(parse, struct, b"\1\3\1ab")[::2] == ("FRM-12", 3)


def test_fields_are_a_struct():
    """Names, order, counts and what is left out, as Construct's own class has them."""
    declared = (
        "count" / count("rows", width=Int8ul),
        reserved(1),
        "colour" / closed(Colour),
        "rows" / Rows("count", Int8ul),
        Terminated,
    )
    ours, theirs = Fields(*declared), Struct(*declared)
    value = {"colour": Colour.RED, "rows": (7, 8)}
    raw = build(ours, value)
    assert raw == build(theirs, value) == b"\2\0\1\7\x08"
    found = parse(ours, raw)
    del found["_params"]
    names = ("count", "colour", "rows")
    assert found == {name: parse(theirs, raw)[name] for name in names} == {"count": 2, **value}
    for broken in (b"", b"\2", b"\2\0\1\7", raw + b"\0"):
        with pytest.raises((ConstructError, Violation)) as expected:
            parse(theirs, broken)
        with pytest.raises(expected.type):
            parse(ours, broken)
    with pytest.raises(KeyError):
        build(ours, {"rows": ()})
    with pytest.raises(ConstructError, match=r"building\) -> rows"):
        build(ours, {"colour": 1, "rows": (256,)})
