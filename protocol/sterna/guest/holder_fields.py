"""Reading and writing the fields of holder messages: spec/holder.md, section 3.

Every reader checks type and range and raises `GuestError` with BAD_VALUE; what it returns can be believed.
Numbers of 64 bits are strings ("0x..."), because JSON libraries keep 53; bytes are lower-case hexadecimal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, TypeVar

from sterna import limits
from sterna.errors import GuestError
from sterna.guest.api import GuestDescription, StateSection
from sterna.guest.holder_frames import INTEGER_MAX, Json, JsonObject
from sterna.registry import DEFAULT_LIMITS, ErrorCode, Limit, RegionKind, Transfer
from sterna.wire.records import NO_ID, Disk, Nic, Region, Runner

STATE_BYTES: Final = DEFAULT_LIMITS[Limit.STATE_BYTES]
STATE_SECTIONS: Final = DEFAULT_LIMITS[Limit.STATE_SECTIONS]
REGIONS: Final = DEFAULT_LIMITS[Limit.REGIONS]
_U32: Final = (1 << 32) - 1
_HEX: Final = re.compile("[0-9a-f]*")
_WORD: Final = re.compile("0x[0-9a-f]{1,16}")

EnumT = TypeVar("EnumT", bound=IntEnum)


def bad_value(detail: str) -> GuestError:
    """The error for a field that is missing, of the wrong type or out of range."""
    return GuestError(detail, ErrorCode.BAD_VALUE)


def integer(fields: JsonObject, name: str, low: int = 0, high: int = INTEGER_MAX) -> int:
    """A whole number within bounds."""
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise bad_value(f"{name}: not an integer in {low}..{high}")
    return value


def number(fields: JsonObject, name: str, low: float, high: float) -> float:
    """A number within bounds."""
    value = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise bad_value(f"{name}: not a number in {low}..{high}")
    return float(value)


def text(fields: JsonObject, name: str, default: str | None = None) -> str:
    """A string of at most 255 bytes of UTF-8 without control characters."""
    value = fields.get(name, default)
    if not isinstance(value, str) or not _encodable(value):
        raise bad_value(f"{name}: not a string")
    if len(value.encode()) > limits.TEXT_BYTES or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value):
        raise bad_value(f"{name}: too long, or has control characters")
    return value


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can spell
        return False
    return True


def hex_bytes(fields: JsonObject, name: str, size: int) -> bytes:
    """Exactly `size` bytes in hexadecimal."""
    value = fields.get(name)
    if not isinstance(value, str) or len(value) != 2 * size or not _HEX.fullmatch(value):
        raise bad_value(f"{name}: not {size} bytes in hexadecimal")
    return bytes.fromhex(value)


def image(fields: JsonObject) -> bytes:
    """The id of an image that is to be kept; zeros stand for none."""
    value = hex_bytes(fields, "image", len(NO_ID))
    if value == NO_ID:
        raise bad_value("image: zeros")
    return value


def word(fields: JsonObject, name: str) -> int:
    """An unsigned number of 64 bits, as "0x" and hexadecimal digits."""
    value = fields.get(name)
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise bad_value(f'{name}: not a string "0x..." of up to 64 bits')
    return int(value, 16)


def objects(fields: JsonObject, name: str, most: int) -> list[JsonObject]:
    """A list of at most `most` objects; missing means empty."""
    value = fields.get(name, [])
    if not isinstance(value, list) or len(value) > most:
        raise bad_value(f"{name}: not a list of at most {most}")
    found = [entry for entry in value if isinstance(entry, dict)]
    if len(found) != len(value):
        raise bad_value(f"{name}: not a list of objects")
    return found


def an_object(fields: JsonObject, name: str) -> JsonObject:
    """An object."""
    value = fields.get(name)
    if not isinstance(value, dict):
        raise bad_value(f"{name}: not an object")
    return value


def _member(kind: type[EnumT], fields: JsonObject, name: str, code: ErrorCode) -> EnumT:
    value = integer(fields, name, 0, _U32)
    try:
        return kind(value)
    except ValueError as error:
        raise GuestError(f"{name}: {value} is not known here", code) from error


def runner_to_json(runner: Runner) -> JsonObject:
    """A runner as an object."""
    return {"host": runner.host, "id": runner.id.hex()}


def runner_from_json(fields: JsonObject) -> Runner:
    """A runner from its object."""
    return Runner(text(fields, "host"), hex_bytes(fields, "id", 16))


def _region_to_json(region: Region) -> Json:
    return {
        "id": region.id,
        "address": f"0x{region.address:x}",
        "bytes": region.size_bytes,
        "granule_log2": region.granule_log2,
        "fault_granule_log2": region.fault_granule_log2,
        "kind": int(region.kind),
        "transfer": int(region.transfer),
    }


def _region_from_json(fields: JsonObject) -> Region:
    return Region(
        id=integer(fields, "id", 0, _U32),
        address=word(fields, "address"),
        size_bytes=integer(fields, "bytes", 1),
        granule_log2=integer(fields, "granule_log2", limits.GRANULE_MIN_LOG2, 30),
        fault_granule_log2=integer(fields, "fault_granule_log2", limits.GRANULE_MIN_LOG2, 30),
        kind=_member(RegionKind, fields, "kind", ErrorCode.REGION_KIND),
        transfer=_member(Transfer, fields, "transfer", ErrorCode.REGION_KIND),
    )


def description_to_json(description: GuestDescription) -> JsonObject:
    """A description as an object."""
    return {
        "id": description.id.hex(),
        "name": description.name,
        "architecture": description.architecture,
        "vcpus": description.vcpus,
        "state_bytes": description.state_bytes,
        "cpu_features": list(description.cpu_features),
        "regions": [_region_to_json(region) for region in description.regions],
        "nics": [{"name": nic.name, "mac": nic.mac.hex()} for nic in description.nics],
        "disks": [
            {"name": disk.name, "identity": disk.identity, "bytes": disk.size_bytes}
            for disk in description.disks
        ],
    }


def description_from_json(fields: JsonObject) -> GuestDescription:
    """A description from its object. Whether the guest fits is not judged here."""
    features = fields.get("cpu_features", [])
    if not isinstance(features, list) or len(features) > limits.CPU_FEATURES:
        raise bad_value("cpu_features: not a list, or too long")
    return GuestDescription(
        id=hex_bytes(fields, "id", 16),
        name=text(fields, "name"),
        regions=tuple(_region_from_json(entry) for entry in objects(fields, "regions", REGIONS)),
        architecture=integer(fields, "architecture", 0, 0xFFFF),
        vcpus=integer(fields, "vcpus", 0, _U32),
        state_bytes=integer(fields, "state_bytes"),
        cpu_features=tuple(text({"cpu_features": entry}, "cpu_features") for entry in features),
        nics=tuple(
            Nic(text(entry, "name"), hex_bytes(entry, "mac", 6))
            for entry in objects(fields, "nics", limits.NICS)
        ),
        disks=tuple(
            Disk(text(entry, "name"), text(entry, "identity"), integer(entry, "bytes"))
            for entry in objects(fields, "disks", limits.DISKS)
        ),
    )


def sections_to_json(sections: Sequence[StateSection]) -> tuple[list[Json], bytes]:
    """State sections as a table, and the bytes that it points into."""
    table: list[Json] = []
    offset = 0
    for section in sections:
        table.append(
            {
                "kind": section.kind,
                "version": section.version,
                "architecture": section.architecture,
                "vcpu": section.vcpu,
                "instance": section.instance,
                "offset": offset,
                "bytes": len(section.data),
            }
        )
        offset += len(section.data)
    return table, b"".join(section.data for section in sections)


def sections_from_json(fields: JsonObject, data: bytes) -> tuple[StateSection, ...]:
    """State sections from their table and their bytes; together they have no more bytes than there are."""
    sections = []
    left = len(data)
    for entry in objects(fields, "sections", STATE_SECTIONS):
        offset = integer(entry, "offset", 0, len(data))
        size = integer(entry, "bytes", 0, len(data) - offset)
        # Told before it is copied: sections that overlap would let a small file stand for terabytes.
        left -= size
        if left < 0:
            raise bad_value("sections: they overlap")
        sections.append(
            StateSection(
                kind=integer(entry, "kind", 0, 0xFFFF),
                version=integer(entry, "version", 0, 0xFFFF),
                data=data[offset : offset + size],
                architecture=integer(entry, "architecture", 0, 0xFFFF),
                vcpu=integer(entry, "vcpu", 0, _U32),
                instance=integer(entry, "instance", 0, _U32),
            )
        )
    return tuple(sections)
