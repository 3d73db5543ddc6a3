"""2.3 on the text of ABORT, and ABORT itself."""

from __future__ import annotations

from typing import Any, Final

from vector_cases.book import Group, derive, text_lengths
from vector_cases.layout import join, lay, patched

_GOOD: Final = (
    ("ascii", "every printable character of ASCII", bytes(range(0x20, 0x7F))),
    ("latin", "U+00A0, the first character behind the C1 controls, to U+00FF", bytes(range(0xA0, 0x100))),
    (
        "bmp-ends",
        "the ends of what two and three bytes hold",
        "\u0100\u07ff\u0800\ud7ff\ue000\uffff".encode(),
    ),
    ("astral", "the ends of what four bytes hold", "\U00010000\U0010ffff".encode()),
    ("bidi", "marks of direction are no control characters", "\u200f\u202e".encode()),
    ("bom", "a byte order mark is a character like any other", "\ufeffx".encode()),
    ("separators", "U+2028 and U+2029 are no control characters", "\u2028\u2029".encode()),
    ("decomposed", "nothing is normalised", "e\u0301\u00e9".encode()),
)
_BAD: Final = (
    ("lone-80", "a continuation byte alone", "TXT-2", b"\x80"),
    ("lone-bf", "a continuation byte alone, at the end", "TXT-2", b"abc\xbf"),
    ("cut-2", "a character of two bytes without its second", "TXT-2", b"a\xc3"),
    ("cut-3", "a character of three bytes without its third", "TXT-2", b"a\xe2\x82"),
    ("cut-4", "a character of four bytes without its fourth", "TXT-2", b"a\xf0\x9f\x90"),
    ("cut-middle", "a cut character before another one", "TXT-2", b"\xe2\x82a"),
    ("overlong-nul", "NUL in two bytes, as Java writes it", "TXT-2", b"\xc0\x80"),
    ("overlong-2", "a slash in two bytes", "TXT-2", b"\xc0\xaf"),
    ("overlong-c1", "DEL in two bytes", "TXT-2", b"\xc1\xbf"),
    ("overlong-3", "a slash in three bytes", "TXT-2", b"\xe0\x80\xaf"),
    ("overlong-3-max", "U+07FF in three bytes", "TXT-2", b"\xe0\x9f\xbf"),
    ("overlong-4", "a slash in four bytes", "TXT-2", b"\xf0\x80\x80\xaf"),
    ("overlong-4-max", "U+FFFF in four bytes", "TXT-2", b"\xf0\x8f\xbf\xbf"),
    ("surrogate-low", "the first surrogate, U+D800", "TXT-2", b"\xed\xa0\x80"),
    ("surrogate-high", "the last surrogate, U+DFFF", "TXT-2", b"\xed\xbf\xbf"),
    (
        "surrogate-pair",
        "a pair of surrogates, as CESU-8 writes U+10000",
        "TXT-2",
        b"\xed\xa0\x80\xed\xb0\x80",
    ),
    ("beyond", "U+110000", "TXT-2", b"\xf4\x90\x80\x80"),
    ("f5", "a byte that UTF-8 never has", "TXT-2", b"\xf5\x80\x80\x80"),
    ("five-bytes", "a form of five bytes", "TXT-2", b"\xf8\x88\x80\x80\x80"),
    ("fe", "a byte order mark of UTF-16", "TXT-2", b"\xfe\xff\0a"),
    ("ff", "a byte that UTF-8 never has, alone", "TXT-2", b"\xff"),
    ("latin-1", "an umlaut in Latin-1", "TXT-2", b"gr\xfc\xdfe"),
    ("nul-only", "NUL alone", "TXT-3", b"\0"),
    ("nul-end", "NUL at the end", "TXT-3", b"text\0"),
    ("tab", "a tabulator", "TXT-3", b"a\tb"),
    ("lf", "a line feed", "TXT-3", b"a\nb"),
    ("cr", "a carriage return at the end", "TXT-3", b"a\r"),
    ("esc", "ESC", "TXT-3", b"\x1b]0;x"),
    ("us", "U+001F, the last of C0", "TXT-3", b"\x1f"),
    ("del", "DEL", "TXT-3", b"\x7f"),
    ("c1-first", "U+0080, the first of C1", "TXT-3", b"\xc2\x80"),
    ("csi", "U+009B, the escape sequence of eight-bit terminals", "TXT-3", b"\xc2\x9b2J"),
    ("c1-last", "U+009F, the last of C1", "TXT-3", b"\xc2\x9f"),
)
ABORT: Final[dict[str, Any]] = {
    "code": 0x0109,
    "phase": 4,
    "frame": 0x8011,
    "sequence": 0x0102030405060708,
    "offset": 0x11223344,
    "text": "a frame body does not have its layout",
}


def texts() -> list[Group]:
    """2.3, on the text of ABORT."""
    group = Group("text", "body", "ABORT", ["TXT-1", "TXT-2", "TXT-3", "TXT-4"])
    parts = lay("ABORT", ABORT)
    for name, comment, encoded in _GOOD:
        content = encoded.decode("latin-1") if name == "latin" else encoded.decode()
        group.valid(name, comment, {**ABORT, "text": content}, "Boundary", clause="TXT-2")
    text_lengths(group, ABORT, "text")
    wide = "\u00fc" * 127 + "x"
    group.valid(
        "255-wide",
        "255 bytes, of which the last is a character",
        {**ABORT, "text": wide},
        "Boundary",
        clause="TXT-4",
    )
    for name, comment, clause, encoded in _BAD:
        new = bytes([len(encoded)]) + encoded
        group.wrong(name, comment, clause, "bad_text", patched(parts, "text", new), "Text")
    cut = b"\xff" + "\u00fc".encode() * 128
    comment = "256 bytes shortened to 255 in the middle of a character"
    group.wrong(
        "255-cut", comment, "TXT-2", "bad_text", patched(parts, "text", cut[:256]), "Text", "Boundary"
    )
    comment = "256 characters; their number does not fit the length byte, which wraps to 0"
    group.wrong(
        "256-wrapped",
        comment,
        "FRM-2",
        "trailing_bytes",
        patched(parts, "text", b"\0" + b"x" * 256),
        "Boundary",
    )
    comment = "256 characters behind a length of 255"
    group.wrong(
        "256-behind-255",
        comment,
        "FRM-2",
        "trailing_bytes",
        patched(parts, "text", b"\xff" + b"x" * 256),
        "Boundary",
    )
    comment = "a length of 255 before 254 bytes"
    group.wrong(
        "254-behind-255",
        comment,
        "TXT-1",
        "malformed",
        patched(parts, "text", b"\xff" + b"x" * 254),
        "Truncated",
    )
    comment = "a text that is none, before bytes that do not belong to the body: fields come in their order"
    group.wrong(
        "text-before-trailing", comment, "TXT-3", "bad_text", patched(parts, "text", b"\1\0") + b"z", "Order"
    )
    comment = "a cut text of bytes that are no UTF-8: its length comes first"
    group.wrong(
        "length-before-text", comment, "TXT-1", "malformed", patched(parts, "text", b"\3\xff\xff"), "Order"
    )
    comment = "bytes that are no UTF-8 behind a NUL"
    group.wrong(
        "utf-8-before-control", comment, "TXT-2", "bad_text", patched(parts, "text", b"\2\0\xff"), "Order"
    )
    return [group]


def abort() -> list[Group]:
    """5.18."""
    group = Group("abort", "body", "ABORT", ["FRM-15", "ABT-3"])
    group.valid("basic", "an end with its frame, place and sentence", ABORT)
    nothing = {"code": 0x0601, "phase": 0, "frame": 0, "sequence": 0, "offset": 0, "text": ""}
    group.valid("bare", "an end without an offending frame", nothing, clause="ABT-2")
    group.valid(
        "unknown",
        "code, phase and frame of no registry",
        {**ABORT, "code": 0xEEEE, "phase": 0xDDDD, "frame": 0x7F42},
        "OpenEnum",
        clause="ABT-3",
    )
    derive(group, ABORT, extremes=["code", "phase", "frame", "sequence", "offset"])
    assert len(join(lay("ABORT", nothing))) == 25
    return [group]
