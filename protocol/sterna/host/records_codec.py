"""Records as lines of a log, each chained to the one before, and the head that says how many there are.

A log is a header and one sealed line a record. A line names its number and the checksum of the line before
it: lines that were lost, exchanged, or left from another log do not fit. What a chain cannot show is that its
end is missing. That is the head's part: a small file with the number and checksum of the last record that
was reported durable, written after it, in two places by turns, so that one of them is whole at any time.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Final

from sterna.core.records import KINDS, Record, Side
from sterna.host.sealed import seal, unseal
from sterna.host.slots import EPOCH_MAX, check_runner
from sterna.limits import TEXT_BYTES
from sterna.registry import Owner
from sterna.wire.records import NO_ID, NO_TOKEN, Runner

VERSION: Final = 1
PLACE_BYTES: Final = 512  # of one of the head's two places: a sector, which disks write whole
LINE_BYTES_MAX: Final = 4096  # two texts of 255 bytes, each byte of them two in JSON, and the rest

_BY_KIND: Final[dict[str, type[Record]]] = {kind.kind: kind for kind in KINDS}

# Fields that a kind has not had from the start. Empty ones are left out, so lines of before are still lines.
_LATER: Final = frozenset(
    {
        ("session", "store"),
        ("resolved", "operator"),
        ("claiming", "digest"),
        ("granted", "follows"),
        ("start", "fenced"),
        ("handback", "fenced"),
    }
)


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a log: whose it is, and its own random id."""

    guest: bytes
    log: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """What was last reported durable.

    Attributes:
        log: the id of the log.
        turn: counts the writes of the head; the higher of two counts.
        count: how many records there are at least.
        last: the checksum of the last of them, or of the header.
        inode: the log's file number. A log that was restored from a backup has another.
    """

    log: bytes
    turn: int
    count: int
    last: str
    inode: int


def encode_header(header: Header) -> bytes:
    """The first line."""
    return seal({"sterna_records": VERSION, "guest": header.guest.hex(), "log": header.log.hex()})


def decode_header(line: bytes) -> Header | None:
    """The header in a line; None if there is none of this version."""
    found = unseal(line) or {}
    try:
        header = Header(_bytes(found["guest"], len(NO_ID)), _bytes(found["log"], len(NO_ID)))
    except (ValueError, LookupError):
        return None
    return header if encode_header(header) == line else None


def check_of(line: bytes) -> str:
    """The checksum at the end of a sealed line."""
    return line[-35:-3].decode()


def encode_record(record: Record, number: int, last: str) -> bytes:
    """The line of record `number`, counted from 1, behind a line with the checksum `last`.

    Raises:
        ValueError: a field of the record cannot be written.
    """
    said: dict[str, object] = {"number": number, "last": last, "kind": record.kind}
    for each in fields(record):
        encode, _ = _FIELDS[each.name]
        value = getattr(record, each.name)
        if value or (record.kind, each.name) not in _LATER:
            said[each.name] = encode(value)
    return seal(said)


def decode_record(line: bytes, number: int, last: str) -> Record | None:
    """The record in a line, None unless it is number `number` behind `last`."""
    found = unseal(line) or {}
    try:
        kind = _BY_KIND[str(found["kind"])]
        make: Callable[..., Record] = kind
        names = [each.name for each in fields(kind)]
        there = [name for name in names if name in found or (kind.kind, name) not in _LATER]
        record = make(**{name: _FIELDS[name][1](found[name]) for name in there})
        good = encode_record(record, number, last) == line
    except (ValueError, LookupError):
        return None
    return record if good else None


def encode_head(head: Head) -> bytes:
    """One place of the head."""
    line = seal(
        {
            "sterna_head": VERSION,
            "log": head.log.hex(),
            "turn": head.turn,
            "count": head.count,
            "last": head.last,
            "inode": head.inode,
        }
    )
    return line[:-1].ljust(PLACE_BYTES - 1) + b"\n"


def decode_head(place: bytes) -> Head | None:
    """The head in one of its places; None if that was never written, or not to its end."""
    found = unseal(place.rstrip(b" \n") + b"\n") or {}
    try:
        turn, count, inode = (_number(found[name]) for name in ("turn", "count", "inode"))
        head = Head(_bytes(found["log"], len(NO_ID)), turn, count, str(found["last"]), inode)
    except (ValueError, LookupError):
        return None
    return head if encode_head(head) == place else None


# ---- fields ----


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= EPOCH_MAX:
        raise ValueError("not a number of 64 bits")
    return value


def _true(value: object) -> bool:
    """Of a field that is left out where it is false."""
    if value is not True:
        raise ValueError("not true")
    return True


def _bytes(value: object, size: int) -> bytes:
    found = bytes.fromhex(value) if isinstance(value, str) else b""
    if len(found) != size:
        raise ValueError(f"not {size} bytes in hexadecimal digits")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value.encode()) > TEXT_BYTES:
        raise ValueError(f"not a text of at most {TEXT_BYTES} bytes")
    if any(unicodedata.category(each) == "Cc" for each in value):
        raise ValueError("a text with control characters")
    return value


def _encode_runner(value: object) -> object:
    assert isinstance(value, Runner)
    check_runner(value)
    return {"host": value.host, "id": value.id.hex()}


def _decode_runner(value: object) -> Runner:
    found = value if isinstance(value, dict) else {}
    return Runner(_text(found.get("host")), _bytes(found.get("id"), len(NO_ID)))


def _encode_owner(value: object) -> object:
    assert isinstance(value, Owner)
    return value.name.lower()


def _decode_owner(value: object) -> Owner:
    return Owner[str(value).upper()]


def _encode_side(value: object) -> object:
    assert isinstance(value, Side)
    return value.value


def _hexadecimal(size: int) -> tuple[Callable[[object], object], Callable[[object], object]]:
    def encode(value: object) -> object:
        assert isinstance(value, bytes)
        return _bytes(value.hex(), size).hex()

    return encode, lambda value: _bytes(value, size)


_FIELDS: Final[dict[str, tuple[Callable[[object], object], Callable[[object], object]]]] = {
    "session": _hexadecimal(len(NO_ID)),
    "image": _hexadecimal(len(NO_ID)),
    "digest": _hexadecimal(len(NO_ID)),
    "token": _hexadecimal(len(NO_TOKEN)),
    "epoch": (_number, _number),
    "follows": (_true, _true),
    "store": (_true, _true),
    "runner": (_encode_runner, _decode_runner),
    "owner": (_encode_owner, _decode_owner),
    "side": (_encode_side, Side),
    "peer": (_text, _text),
    "address": (_text, _text),
    "fenced": (_text, _text),
    "operator": (_text, _text),
}
