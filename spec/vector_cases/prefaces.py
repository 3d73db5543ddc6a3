"""Chapter 3: prefaces, and what other protocols begin with."""

from __future__ import annotations

from typing import Final

from vector_cases.book import Group
from vector_cases.wholes import MAGIC, frame, preface

PING: Final = 0x8050
U16_MAX: Final = 2**16 - 1


def prefaces() -> list[Group]:
    """Chapter 3."""
    group = Group("preface", "preface", "", ["PRE-2", "PRE-3", "PRE-4", "PRE-5", "PRE-6", "PRE-7"])
    for name, comment, major, draft, flag in (
        ("basic", "version 1, draft 1", 1, 1, "Basic"),
        ("frozen", "version 1, frozen", 1, 0, "Version"),
        ("newer-draft", "a newer draft", 1, 2, "Version"),
        ("newer-major", "a newer major version", 0x0203, 0x0405, "Version"),
        ("zero", "version 0, draft 0", 0, 0, "Version"),
        ("max", "the largest numbers", U16_MAX, U16_MAX, "Version"),
    ):
        group.add(
            name,
            comment,
            [flag],
            "PRE-6",
            preface(MAGIC, major, draft),
            value={"major": major, "draft": draft},
        )
    _foreign(group)
    for size in (*range(1, 16),):
        comment = f"the connection ends behind {size} bytes of the preface"
        group.add(
            f"cut-{size}", comment, ["Truncated"], "PRE-7", preface()[:size], error="truncated", eof=True
        )
    for name, start in (
        ("g", b"G"),
        ("get", b"GET"),
        ("09-st", b"\tST"),
        ("sterna-cut", b"STERN"),
        ("16", b"\x16"),
        ("ef-bb", b"\xef\xbf"),
    ):
        comment = "the connection ends before it can be said what it is, and it is no preface"
        group.add(
            f"cut-{name}", comment, ["Truncated", "Preface"], "PRE-2", start, error="bad_magic", eof=True
        )
    return [group]


def _foreign(group: Group) -> None:
    """PRE-2 to PRE-5; `decided_by` is how many bytes a receiver may wait for before it names what it sees."""
    name_ = b"STERNA"
    rest = MAGIC[7:]

    def case(name: str, comment: str, clause: str, error: str, data: bytes, decided_by: int) -> None:
        group.add(name, comment, ["Preface"], clause, data, error=error, decided_by=decided_by)

    for name, comment, lead in (
        ("eighth-bit", "the eighth bit was stripped", b"\x09"),
        ("question-mark", "0x89 was no character, and became a question mark", b"?"),
        ("latin-1-to-utf-8", "Latin-1 was converted to UTF-8", b"\xc2\x89"),
        ("replacement", "0x89 became the replacement character U+FFFD", b"\xef\xbf\xbd"),
        ("dropped", "0x89 was dropped", b""),
    ):
        data = (lead + name_ + rest + b"\1\0\1\0")[:20]
        case(name, comment, "PRE-3", "text_mode_damage", data, len(lead) + 6)
    for name, comment, tail in (
        ("crlf-to-lf", "CR LF became LF", b"\n\x1a\n\0"),
        ("lf-to-crlf", "LF became CR LF", b"\r\n\x1a\r\n\0"),
        ("lf-to-cr", "LF became CR", b"\r\r\x1a\r\0"),
        ("crlf-doubled", "CR LF became CR CR LF", b"\r\r\n\x1a\n\0"),
        ("sub-dropped", "SUB was dropped", b"\r\n\n\0"),
        ("nul-dropped", "NUL was dropped", b"\r\n\x1a\n\1\0\1\0"),
        ("nul-to-space", "NUL became a space", b"\r\n\x1a\n "),
    ):
        data = b"\x89" + name_ + tail + b"\1\0\1\0"
        differs = next(
            at for at, (one, other) in enumerate(zip(data, MAGIC + b"\1\0\1\0", strict=False)) if one != other
        )
        case(name, comment, "PRE-3", "text_mode_damage", data, differs + 1)
    for name, comment, data in (
        ("tls-client-hello", "a TLS ClientHello", bytes.fromhex("1603010200010001fc0303")),
        ("tls-1-2", "a TLS record of version 1.2", bytes.fromhex("16030300c8")),
        ("tls-short", "two bytes are enough", bytes.fromhex("1603")),
        ("tls-alert", "a TLS alert", bytes.fromhex("15030300020246")),
    ):
        case(name, comment, "PRE-4", "tls_on_plain", data, 2)
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PRI"):
        data = f"{method} / HTTP/1.1\r\n".encode()
        case(
            f"http-{method.lower()}",
            f"an HTTP request, {method}",
            "PRE-5",
            "http_on_plain",
            data,
            len(method) + 1,
        )
    case("http-response", "an HTTP response", "PRE-5", "http_on_plain", b"HTTP/1.1 400 Bad Request\r\n", 5)
    for name, comment, data, decided_by in (
        ("zero", "zeros", bytes(16), 1),
        ("ff", "ones", b"\xff" * 16, 1),
        ("ssh", "an SSH greeting, which begins as the bare name does", b"SSH-2.0-OpenSSH_9.2\r\n", 2),
        ("png", "the file format that the magic is modelled on", b"\x89PNG\r\n\x1a\n", 2),
        ("lower-case", "the name in small letters", b"\x89sterna\r\n\x1a\n\0", 2),
        ("other-name", "another name of the same length", b"\x89STERNE\r\n\x1a\n\0", 7),
        ("tls-2", "a record of no TLS version", b"\x16\x02\x00\x00", 2),
        ("get-no-space", "a word that begins as a method does", b"GETTER /", 4),
        ("get-small", "a method in small letters", b"get / HTTP/1.1", 1),
        ("frame", "a frame without a preface", frame(0x8001, bytes(8), sequence=0), 1),
        ("ping", "a PING without a preface, which begins as POST does", frame(PING, bytes(8), sequence=0), 2),
        ("second-half", "the second half of a preface", preface()[8:], 1),
        ("utf-16", "a byte order mark of UTF-16", b"\xff\xfeS\0T\0", 1),
        ("utf-8-bom", "a byte order mark before the name", b"\xef\xbb\xbf\x89STERNA", 2),
    ):
        case(f"not-{name}", comment, "PRE-2", "bad_magic", data, decided_by)
