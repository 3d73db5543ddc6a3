"""State sections on their way: cut into STATE frames by the source, put together by the destination."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sterna.core.words import count_text
from sterna.errors import GuestError, remote_error
from sterna.registry import ErrorCode, FrameType
from sterna.wire.records import NO_VCPU, State, StateSection

# Small enough that heartbeats pass between two fragments, and below the least control limit [LIM-7].
FRAGMENT_BYTES: Final = 32 * 1024


def fragments(section: StateSection, attempt: int, control_bytes: int) -> Iterator[State]:
    """The STATE frames of a section, none with a body above `control_bytes`."""
    step = min(FRAGMENT_BYTES, control_bytes // 2)
    total = len(section.data)
    for offset in range(0, max(total, 1), step):
        data = section.data[offset : offset + step]
        yield State(
            attempt,
            section.architecture,
            section.vcpu,
            section.kind,
            section.version,
            section.instance,
            total,
            offset,
            offset + len(data) == total,
            data,
        )


def check_sections(
    sections: Sequence[StateSection], limit_bytes: int, limit_sections: int, vcpus: int
) -> int:
    """Whether a destination with these limits can take the sections of such a guest; their size in bytes.

    Raises:
        GuestError: LIMIT_MISMATCH, or GUEST_FAILED for two sections of one name or one of a vCPU too many.
    """
    total = sum(len(section.data) for section in sections)
    if total > limit_bytes or len(sections) > limit_sections:
        size = f"{count_text(len(sections), 'state section')} of {count_text(total, 'byte')}"
        detail = f"{size}: more than GUEST or the peer's limits say"
        raise GuestError(detail, ErrorCode.LIMIT_MISMATCH)
    if len({_name(section) for section in sections}) < len(sections):
        raise GuestError("two state sections of one name")
    if any(section.vcpu >= vcpus and section.vcpu != NO_VCPU for section in sections):
        raise GuestError(f"state of a vCPU that is none of the {vcpus}")
    return total


class StateAssembler:
    """Collects the sections of one attempt. Holds at most `limit_bytes`, in at most `limit_sections`."""

    def __init__(self, limit_bytes: int, limit_sections: int, vcpus: int) -> None:
        self._limit_bytes = limit_bytes
        self._limit_sections = limit_sections
        self._vcpus = vcpus
        self._sections: list[StateSection] = []
        self._names: set[tuple[int, ...]] = set()
        self._open: State | None = None
        self._data = bytearray()
        self.bytes = 0

    @property
    def sections(self) -> tuple[StateSection, ...]:
        """The sections that are whole."""
        return tuple(self._sections)

    @property
    def has_begun(self) -> bool:
        """Whether any fragment has come."""
        return bool(self._sections) or self._open is not None

    @property
    def is_whole(self) -> bool:
        """Whether no section is still open."""
        return self._open is None

    def add(self, fragment: State) -> None:
        """Take the next fragment.

        Raises:
            RemoteProtocolError: BAD_FRAGMENT, for a section that came before too; LIMIT_STATE; or BAD_VALUE
                for a vCPU that the guest does not have.
        """
        if self._open is None:
            self._begin(fragment)
        elif _fields(fragment) != _fields(self._open) or fragment.offset != len(self._data):
            here = f"{len(self._data)} bytes of {_name(self._open)}"
            detail = f"offset {fragment.offset} of {_name(fragment)} after {here}"
            raise remote_error(ErrorCode.BAD_FRAGMENT, detail, clause="STA-5", frame=FrameType.STATE)
        self._open = fragment
        self._data += fragment.data
        if fragment.last:
            self._end(fragment)

    def _begin(self, fragment: State) -> None:
        if fragment.offset:
            detail = f"a section begins at offset {fragment.offset}"
            raise remote_error(ErrorCode.BAD_FRAGMENT, detail, clause="STA-5", frame=FrameType.STATE)
        if len(self._sections) >= self._limit_sections:
            detail = f"more than {self._limit_sections} sections"
            raise remote_error(ErrorCode.LIMIT_STATE, detail, clause="STA-7", frame=FrameType.STATE)
        self.bytes += fragment.total_bytes
        if self.bytes > self._limit_bytes:
            detail = f"more than {self._limit_bytes} bytes"
            raise remote_error(ErrorCode.LIMIT_STATE, detail, clause="STA-1", frame=FrameType.STATE)
        if _name(fragment) in self._names:
            detail = f"section {_name(fragment)} twice"
            raise remote_error(ErrorCode.BAD_FRAGMENT, detail, clause="STA-8", frame=FrameType.STATE)
        if fragment.vcpu >= self._vcpus and fragment.vcpu != NO_VCPU:
            detail = f"vCPU {fragment.vcpu} of {self._vcpus}"
            raise remote_error(ErrorCode.BAD_VALUE, detail, clause="STA-9", frame=FrameType.STATE)
        self._names.add(_name(fragment))

    def _end(self, last: State) -> None:
        data = bytes(self._data)
        self._data.clear()
        self._open = None
        self._sections.append(
            StateSection(last.kind, last.version, data, last.architecture, last.vcpu, last.instance)
        )


def _name(of: State | StateSection) -> tuple[int, ...]:
    """What identifies a section."""
    return (of.architecture, of.kind, of.vcpu, of.version, of.instance)


def _fields(fragment: State) -> tuple[int, ...]:
    """What all fragments of a section have in common."""
    return (*_name(fragment), fragment.total_bytes)
