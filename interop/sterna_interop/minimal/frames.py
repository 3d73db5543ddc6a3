"""Frames and their bodies (chapters 4 to 6): every layout as a line of text, read and written by one codec.

A layout lists fields in their order. ``name:4`` is an integer of 4 bytes, ``-:2`` are reserved bytes,
``name#2`` counts the list ``name{...}`` that follows further on, and ``bool``, ``text``, ``id`` are
what their names say. What a field may be on its own stands in `_BOUNDS`; `decode` reports the first error
in the order of HDR-11. Clauses about several fields are in `checks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sterna_interop.minimal.checks import ITEMS, LISTS, Known
from sterna_interop.minimal.codes import SessionError

HEADER_BYTES: Final = 32

# Type, sender (S, D, B) and name; a frame without a layout is reserved in draft 1 and not implemented.
_TABLE: Final = """
8001 S HELLO mode:1 -:1 versions#2 features#2 limits#2 epoch:8 generation:4 -:4 guest:id runner:id
    session:id token:token runner_host:text agent:text versions{version:4}
    features{id:2 required:bool -:1 -:4 parameter:8} limits{id:2 -:2 -:4 value:8}
8002 D WELCOME version:4 features#2 limits#2 generation:4 complete_round:4 held_frames:4 -:4 session:id
    token:token agent:text features{id:2 -:2 -:4 parameter:8} limits{id:2 -:2 -:4 value:8}
8003 D REFUSE code:2 items#2 retry_after_ms:4 text:text items{item:text}
8004 S GUEST architecture:2 regions#2 cpu_features#2 nics#2 disks#2 -:2 vcpus:4 state_bytes:8 name:text
    regions{id:4 granule_log2:1 fault_granule_log2:1 kind:1 transfer:1 address:8 size_bytes:8}
    cpu_features{name:text} nics{mac:mac name:text} disks{size_bytes:8 name:text identity:text}
8005 D ACCEPT reserved_bytes:8 data_streams:2 -:2 -:4
8006 S ATTACH reserved
8007 D ATTACHED reserved
8008 D HELD reserved
8010 S ROUND attempt:4 round:4 pages:8
8011 S PAGES attempt:4 round:4 region:4 runs#4 hashes#4 -:4
    runs{first:8 count:4 size_bytes:4 encoding:1 -:7} hashes{hash:8}
8012 S ROUND_END attempt:4 round:4 pages:8 bulk_bytes:8 streams#2 -:2 -:4
    streams{stream:2 -:2 -:4 sequence:8}
8013 D ROUND_ACK attempt:4 round:4 pages:8 rate:8 rejected#4 -:4 rejected{region:4 -:4 first:8 count:8}
8020 S SWITCHOVER attempt:4 style:1 -:1 -:2 predicted_downtime_us:8
8021 D READY attempt:4 -:4
8022 D NOT_READY attempt:4 code:2 -:2 text:text
8023 S DIRTY_BITMAP reserved
8024 S STATE attempt:4 architecture:2 kind:2 vcpu:4 version:4 instance:4 data#4 total_bytes:8 offset:8
    last:bool -:7 data:counted
8025 S SEAL attempt:4 algorithm:1 -:1 streams#2 state_sections:4 -:4 state_bytes:8 digest:id
    state_digest:id streams{stream:2 -:2 -:4 sequence:8}
8026 D LOADED attempt:4 -:4 digest:id
8030 S HANDOVER attempt:4 -:4 epoch:8
8031 D RUNNING epoch:8 runner:id runner_host:text
8032 D HANDBACK reserved
8040 D PAGE_REQUEST reserved
8041 D COMPLETE epoch:8 digest:id
8042 S RELEASE epoch:8
8043 B BYE
8050 B PING id:8
8051 B PONG id:8
0052 B PROGRESS phase:1 -:1 -:2 round:4 pages_total:8 pages_remaining:8 bulk_bytes:8 dirty_rate_bytes_s:8
    bandwidth_bytes_s:8 predicted_downtime_us:8
8053 B ABORT code:2 phase:2 frame:2 -:2 sequence:8 offset:4 -:4 text:text
8060 D VERDICT reserved
8061 S END reserved
"""
_ROWS: Final = [row.split(maxsplit=3) for row in _TABLE.replace("\n    ", " ").strip().splitlines()]
TYPES: Final = {row[2]: int(row[0], 16) for row in _ROWS}
NAMES: Final = {number: name for name, number in TYPES.items()}
SENDERS: Final = {row[2]: row[1] for row in _ROWS}

# Least, most and code of a field or count (#) alone; a most that is text names a limit of the receiver's.
_BOUNDS: Final[Mapping[str, tuple[int, int | str, str]]] = {
    "HELLO.#versions": (1, 16, "bad_value"),
    "HELLO.#features": (0, 64, "bad_value"),
    "HELLO.#limits": (0, 64, "bad_value"),
    "WELCOME.#features": (0, 64, "bad_value"),
    "WELCOME.#limits": (0, 64, "bad_value"),
    "REFUSE.#items": (0, 64, "bad_value"),
    "GUEST.#cpu_features": (0, 1024, "bad_value"),
    "GUEST.#nics": (0, 64, "bad_value"),
    "GUEST.#disks": (0, 64, "bad_value"),
    "GUEST.state_bytes": (0, "state_bytes", "limit_state"),
    "GUEST.granule_log2": (12, 16, "bad_region"),
    "GUEST.fault_granule_log2": (12, 30, "bad_region"),
    "GUEST.kind": (0, 3, "bad_value"),
    "GUEST.transfer": (0, 3, "bad_value"),
    "ACCEPT.data_streams": (0, 16, "bad_value"),
    "ROUND.round": (1, 1 << 32, "bad_value"),
    "ROUND_END.round": (1, 1 << 32, "bad_value"),
    "ROUND_END.#streams": (0, 17, "bad_value"),
    "ROUND_END.stream": (0, 16, "bad_value"),
    "PAGES.#runs": (1, 1 << 32, "bad_value"),
    "PAGES.count": (1, 1 << 32, "bad_value"),
    "PAGES.encoding": (0, 4, "bad_value"),
    "ROUND_ACK.round": (1, 1 << 32, "bad_value"),
    "ROUND_ACK.#rejected": (0, "rejected_runs", "limit_rejected"),
    "STATE.total_bytes": (0, "state_bytes", "limit_state"),
    "SWITCHOVER.style": (0, 2, "bad_value"),
    "SEAL.algorithm": (3, 3, "bad_value"),
    "SEAL.#streams": (0, 17, "bad_value"),
    "SEAL.stream": (0, 16, "bad_value"),
    "HANDOVER.epoch": (0, (1 << 64) - 2, "bad_value"),
    "PROGRESS.phase": (0, 11, "bad_value"),
}
_SIZES: Final = {"id": 16, "token": 32, "mac": 6}
_FIELD: Final = re.compile(r"(-|\w+)([:#])(\w+)|(\w+)\{([^}]*)\}")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: str  # a number: its bytes; "#n": a count of n bytes; "{}": a list; or text, bool, ...
    rows: tuple[_Field, ...] = ()

    @property
    def least(self) -> int:
        """Bytes of the shortest value."""
        if self.kind in {"text", "bool"}:
            return 1
        return _SIZES.get(self.kind) or int(self.kind)


def _layout(text: str) -> tuple[_Field, ...]:
    fields = []
    for match in _FIELD.finditer(text):
        name, mark, kind, listed, inner = match.groups()
        if listed:
            fields.append(_Field(listed, "{}", _layout(inner)))
        else:
            fields.append(_Field(name, "#" + kind if mark == "#" else kind))
    return tuple(fields)


LAYOUTS: Final = {row[2]: _layout("".join(row[3:])) for row in _ROWS if row[3:] != ["reserved"]}


class _Reader:
    def __init__(self, frame: str, body: bytes, known: Known, *, defer: bool) -> None:
        self._frame, self._body, self._at = frame, body, 0
        self._known, self._limits = known, known.limits
        self._counts: dict[str, int] = {}
        self._defer = defer
        self.deferred: SessionError | None = None

    def fail(self, code: str, *, value: bool = False) -> None:
        """An error at the present place; one of a mere value can wait (VRS-3)."""
        error = SessionError(code, HEADER_BYTES + self._at)
        if not (value and self._defer):
            raise error
        self.deferred = self.deferred or error

    def take(self, size: int) -> bytes:
        if size > len(self._body) - self._at:
            self.fail("malformed")
        piece = self._body[self._at : self._at + size]
        self._at += size
        return piece

    def fields(self, layout: tuple[_Field, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in layout:
            if field.kind == "{}":
                count, least = self._counts[field.name], sum(one.least for one in field.rows)
                if count * least > len(self._body) - self._at:
                    self.fail("malformed")
                found[field.name] = self._rows(field, count)
            elif field.name == "-":
                if any(self.take(int(field.kind))):
                    self.fail("bad_value", value=True)
            elif field.kind.startswith("#"):
                self._counts[field.name] = self._number(int(field.kind[1:]), "#" + field.name)
            else:
                found[field.name] = self._value(field)
        return found

    def _rows(self, field: _Field, count: int) -> list[dict[str, Any]]:
        rows, name = [], f"{self._frame}.{field.name}"
        for _ in range(count):
            rows.append(self.fields(field.rows))
            if name in ITEMS:
                ITEMS[name](rows[-1], self._known)
        if name in LISTS:
            LISTS[name](rows, self._known)
        return rows

    def _value(self, field: _Field) -> object:
        match field.kind:
            case "text":
                return self._text()
            case "bool":
                number = self._number(1, field.name)
                if number > 1:
                    self.fail("bad_value", value=True)
                return bool(number)
            case "counted":
                return self.take(self._counts[field.name])
            case kind if kind in _SIZES:
                return self.take(_SIZES[kind])
            case kind:
                return self._number(int(kind), field.name)

    def _number(self, size: int, name: str) -> int:
        number = int.from_bytes(self.take(size), "little")
        least, most, code = _BOUNDS.get(f"{self._frame}.{name}", (0, 1 << 64, ""))
        if not least <= number <= (self._limits[most] if isinstance(most, str) else most):
            self.fail(code)
        if self._frame == "GUEST" and name == "#regions":
            if not number:
                self.fail("bad_region")
            if number > self._limits["regions"]:
                self.fail("limit_regions")
        if self._frame == "PAGES" and name == "#runs" and number > self._limits["batch_runs"]:
            self.fail("limit_runs")
        return number

    def _text(self) -> str:
        data = self.take(self.take(1)[0])
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.fail("bad_text")
            raise
        if _CONTROL.search(text):
            self.fail("bad_text")
        return text

    def end(self) -> None:
        if self._at < len(self._body):
            self.fail("trailing_bytes")


def decode(frame: str, body: bytes, known: Known) -> tuple[dict[str, Any], SessionError | None]:
    """The fields of a body, and an error that waits until the version is known (HELLO alone).

    Raises:
        SessionError: with the code of the first clause that is broken.
    """
    reader = _Reader(frame, body, known, defer=frame == "HELLO")
    fields = reader.fields(LAYOUTS[frame])
    reader.end()
    return fields, reader.deferred


def encode(frame: str, fields: Mapping[str, Any]) -> bytes:
    """The body of a frame; fields that are left out are zero or empty."""
    return b"".join(_written(LAYOUTS[frame], fields))


def _written(layout: tuple[_Field, ...], fields: Mapping[str, Any]) -> Iterator[bytes]:
    for field in layout:
        value = fields.get(field.name, 0)
        if field.kind == "{}":
            for row in value or ():
                yield from _written(field.rows, row)
        elif field.kind.startswith("#"):
            yield len(value or ()).to_bytes(int(field.kind[1:]), "little")
        elif field.name == "-":
            yield bytes(int(field.kind))
        elif field.kind == "text":
            data = (value or "").encode()
            yield bytes([len(data)]) + data
        elif field.kind in _SIZES:
            yield value or bytes(_SIZES[field.kind])
        elif field.kind == "counted":
            yield value or b""
        else:
            yield int(value).to_bytes(1 if field.kind == "bool" else int(field.kind), "little")
