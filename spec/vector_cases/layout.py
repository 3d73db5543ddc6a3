"""The layouts of chapter 5 of protocol.md as tables, and bytes from them.

Written by hand from the document and independent of the reference implementation: a body that both make the
same has been made twice. Only numbers come from elsewhere, from registry.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

REGISTRY: Final[dict[str, Any]] = tomllib.loads(
    (Path(__file__).resolve().parents[1] / "registry.toml").read_text(encoding="utf-8")
)

# A value by the names of the document: integers, bytes, text (bytes for text that is wrong), lists of these.
Value: TypeAlias = Mapping[str, Any]

JSON_SAFE_MAX: Final = 2**53 - 1  # what every JSON reader keeps exact; larger integers are decimal strings


@dataclass(frozen=True)
class Field:
    """One row of a layout table.

    Attributes:
        kind: uint, bool, res, raw, text, count, list or blob.
        size: bytes; 0 where the length is the value's.
        of: a count's list.
        items: fields of a list's items; one without a name stands for the item itself.
        table: the registry's table of names.
        closed: the table has all numbers that are allowed [FRM-4].
    """

    name: str
    kind: str
    size: int = 0
    of: str = ""
    items: tuple[Field, ...] = ()
    table: str = ""
    closed: bool = False


@dataclass(frozen=True)
class Part:
    """A field of one body with its bytes; `path` is like `regions.0.address`, `res@6` for reserved bytes."""

    path: str
    field: Field
    raw: bytes
    offset: int


def u8(name: str, table: str = "", *, closed: bool = False) -> Field:
    """An integer of one byte."""
    return Field(name, "uint", 1, table=table, closed=closed)


def u16(name: str, table: str = "") -> Field:
    """An integer of two bytes."""
    return Field(name, "uint", 2, table=table)


def u32(name: str) -> Field:
    """An integer of four bytes."""
    return Field(name, "uint", 4)


def u64(name: str) -> Field:
    """An integer of eight bytes."""
    return Field(name, "uint", 8)


def flag(name: str) -> Field:
    """A bool."""
    return Field(name, "bool", 1)


def res(size: int) -> Field:
    """Reserved bytes."""
    return Field("", "res", size)


def raw(name: str, size: int) -> Field:
    """An id, token, digest or address of fixed length."""
    return Field(name, "raw", size)


def text(name: str) -> Field:
    """A text field."""
    return Field(name, "text")


def count(name: str, of: str, size: int = 2) -> Field:
    """The number of items of a list, or of bytes of data."""
    return Field(name, "count", size, of=of)


def rows(name: str, *items: Field) -> Field:
    """A list."""
    return Field(name, "list", items=items)


def blob(name: str) -> Field:
    """Bytes whose number came before."""
    return Field(name, "blob")


_LIMIT_ROWS = rows("limits", u16("id", "limits"), res(2), res(4), u64("value"))
_STREAM_ROWS = rows("streams", u16("stream"), res(2), res(4), u64("sequence"))


def _bitmap(first: str, *ninth: Field) -> tuple[Field, ...]:
    head = (u32(first), u32("region"), u8("encoding", "bitmap_encodings", closed=True), *ninth, res(2))
    return (*head, count("data_bytes", "data", 4), u64("first"), u64("bits"), blob("data"))


_RUNNING = (u64("epoch"), raw("runner", 16), text("runner_host"))

LAYOUTS: Final[dict[str, tuple[Field, ...]]] = {
    "HELLO": (
        u8("mode", "modes", closed=True),
        res(1),
        count("version_count", "versions"),
        count("feature_count", "features"),
        count("limit_count", "limits"),
        u64("epoch"),
        u32("generation"),
        res(4),
        raw("guest", 16),
        raw("runner", 16),
        raw("session", 16),
        raw("token", 32),
        text("runner_host"),
        text("agent"),
        rows("versions", u32("")),
        rows("features", u16("id", "features"), flag("required"), res(1), res(4), u64("parameter")),
        _LIMIT_ROWS,
    ),
    "WELCOME": (
        u32("version"),
        count("feature_count", "features"),
        count("limit_count", "limits"),
        u32("generation"),
        u32("complete_round"),
        u32("held_frames"),
        res(4),
        raw("session", 16),
        raw("token", 32),
        text("agent"),
        rows("features", u16("id", "features"), res(2), res(4), u64("parameter")),
        _LIMIT_ROWS,
    ),
    "REFUSE": (
        u16("code", "errors"),
        count("item_count", "items"),
        u32("retry_after_ms"),
        text("text"),
        rows("items", text("")),
    ),
    "GUEST": (
        u16("architecture", "architectures"),
        count("region_count", "regions"),
        count("cpu_feature_count", "cpu_features"),
        count("nic_count", "nics"),
        count("disk_count", "disks"),
        res(2),
        u32("vcpus"),
        u64("state_bytes"),
        text("name"),
        rows(
            "regions",
            u32("id"),
            u8("granule_log2"),
            u8("fault_granule_log2"),
            u8("kind", "region_kinds", closed=True),
            u8("transfer", "transfers", closed=True),
            u64("address"),
            u64("size_bytes"),
        ),
        rows("cpu_features", text("")),
        rows("nics", raw("mac", 6), text("name")),
        rows("disks", u64("size_bytes"), text("name"), text("identity")),
    ),
    "ACCEPT": (u64("reserved_bytes"), u16("data_streams"), res(2), res(4)),
    "ATTACH": (raw("session", 16), raw("token", 32), u32("generation"), u16("index"), res(2)),
    "ATTACHED": (u64("last_sequence"), u32("generation"), u16("index"), res(2)),
    "HELD": _bitmap("round", flag("rejected")),
    "ROUND": (u32("attempt"), u32("round"), u64("pages")),
    "PAGES": (
        u32("attempt"),
        u32("round"),
        u32("region"),
        count("run_count", "runs", 4),
        count("hash_count", "hashes", 4),
        res(4),
        rows(
            "runs",
            u64("first"),
            u32("count"),
            u32("size_bytes"),
            u8("encoding", "encodings", closed=True),
            res(7),
        ),
        rows("hashes", u64("")),
    ),
    "ROUND_END": (
        u32("attempt"),
        u32("round"),
        u64("pages"),
        u64("bulk_bytes"),
        count("stream_count", "streams"),
        res(2),
        res(4),
        _STREAM_ROWS,
    ),
    "ROUND_ACK": (
        u32("attempt"),
        u32("round"),
        u64("pages"),
        u64("receive_rate_bytes_s"),
        count("rejected_count", "rejected", 4),
        res(4),
        rows("rejected", u32("region"), res(4), u64("first"), u64("count")),
    ),
    "SWITCHOVER": (
        u32("attempt"),
        u8("style", "styles", closed=True),
        res(1),
        res(2),
        u64("predicted_downtime_us"),
    ),
    "READY": (u32("attempt"), res(4)),
    "NOT_READY": (u32("attempt"), u16("code", "errors"), res(2), text("text")),
    "DIRTY_BITMAP": _bitmap("attempt", res(1)),
    "STATE": (
        u32("attempt"),
        u16("architecture", "architectures"),
        u16("kind", "state_kinds"),
        u32("vcpu"),
        u32("version"),
        u32("instance"),
        count("data_bytes", "data", 4),
        u64("total_bytes"),
        u64("offset"),
        flag("last"),
        res(7),
        blob("data"),
    ),
    "SEAL": (
        u32("attempt"),
        u8("algorithm", "checksums", closed=True),
        res(1),
        count("stream_count", "streams"),
        u32("state_sections"),
        res(4),
        u64("state_bytes"),
        raw("digest", 16),
        raw("state_digest", 16),
        _STREAM_ROWS,
    ),
    "LOADED": (u32("attempt"), res(4), raw("digest", 16)),
    "HANDOVER": (u32("attempt"), res(4), u64("epoch")),
    "RUNNING": _RUNNING,
    "HANDBACK": _RUNNING,
    "PAGE_REQUEST": (u32("region"), flag("urgent"), res(1), res(2), u64("first"), u64("count")),
    "COMPLETE": (u64("epoch"), raw("digest", 16)),
    "RELEASE": (u64("epoch"),),
    "BYE": (),
    "PING": (u64("id"),),
    "PONG": (u64("id"),),
    "PROGRESS": (
        u8("phase", "phases", closed=True),
        res(1),
        res(2),
        u32("round"),
        u64("pages_total"),
        u64("pages_remaining"),
        u64("bulk_bytes"),
        u64("dirty_rate_bytes_s"),
        u64("bandwidth_bytes_s"),
        u64("predicted_downtime_us"),
    ),
    "ABORT": (
        u16("code", "errors"),
        u16("phase", "phases"),
        u16("frame", "frames"),
        res(2),
        u64("sequence"),
        u32("offset"),
        res(4),
        text("text"),
    ),
    "VERDICT": (
        u8("owner", "owners", closed=True),
        flag("handed_back"),
        flag("complete"),
        res(1),
        res(4),
        u64("epoch"),
        raw("runner", 16),
        raw("digest", 16),
        text("runner_host"),
    ),
    "END": (u64("frames"),),
}


def _number(row: Any) -> int:
    if isinstance(row, int):
        return row
    return int(next(row[key] for key in ("id", "code", "type") if key in row))


def numbers(table: str) -> dict[int, str]:
    """Names of a table of the registry by their numbers."""
    return {_number(row): name for name, row in REGISTRY[table].items()}


def _bytes(field: Field, value: Any) -> bytes:
    if field.kind == "text":
        encoded = value.encode() if isinstance(value, str) else bytes(value)
        return bytes([len(encoded)]) + encoded
    if field.kind in {"raw", "blob"}:
        return bytes(value)
    return int(value).to_bytes(field.size, "little")


def _fields(layout: Sequence[Field], value: Value, prefix: str, counts: Value) -> Iterator[Part]:
    at = 0
    for field in layout:
        path = prefix + field.name
        if field.kind == "res":
            yield Part(f"{prefix}res@{at}", field, bytes(field.size), 0)
        elif field.kind == "count":
            yield Part(path, field, _bytes(field, counts.get(field.name, len(value[field.of]))), 0)
        elif field.kind != "list":
            yield Part(path, field, _bytes(field, value[field.name]), 0)
        elif not field.items[0].name and len(field.items) == 1:
            for number, item in enumerate(value[field.name]):
                yield Part(f"{path}.{number}", field.items[0], _bytes(field.items[0], item), 0)
        else:
            for number, item in enumerate(value[field.name]):
                yield from _fields(field.items, item, f"{path}.{number}.", {})
        at += field.size


def lay(frame: str, value: Value, **counts: int) -> list[Part]:
    """The parts of a frame's body; `counts` are stated instead of the right ones."""
    parts, offset = [], 0
    for part in _fields(LAYOUTS[frame], value, "", counts):
        parts.append(Part(part.path, part.field, part.raw, offset))
        offset += len(part.raw)
    return parts


def join(parts: Sequence[Part]) -> bytes:
    """The bytes of a body."""
    return b"".join(part.raw for part in parts)


def patched(parts: Sequence[Part], path: str, new: bytes) -> bytes:
    """The bytes of a body, those of one path replaced."""
    assert any(part.path == path for part in parts), path
    return b"".join(new if part.path == path else part.raw for part in parts)


def _plain(field: Field, value: Any) -> Any:
    if field.kind == "list":
        if not field.items[0].name and len(field.items) == 1:
            return [_plain(field.items[0], item) for item in value]
        return [plain(field.items, item) for item in value]
    if field.kind in {"raw", "blob"}:
        return bytes(value).hex()
    if field.kind == "bool":
        return bool(value)
    if field.kind == "uint":
        return integer(value)
    return value


def integer(number: int) -> int | str:
    """An integer for JSON."""
    return number if number <= JSON_SAFE_MAX else str(number)


def plain(layout: Sequence[Field], value: Value) -> dict[str, Any]:
    """A value for JSON; counts and reserved fields follow from the rest."""
    return {f.name: _plain(f, value[f.name]) for f in layout if f.kind not in {"count", "res"}}


def names(parts: Sequence[Part]) -> dict[str, str]:
    """The registry's names of the numbers in a body, by path."""
    found = {}
    for part in parts:
        if part.field.table:
            known = numbers(part.field.table).get(int.from_bytes(part.raw, "little"))
            if known is not None:
                found[part.path] = known
    return found
