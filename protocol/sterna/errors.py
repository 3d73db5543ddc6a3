"""Every exception that Sterna raises.

::

    SternaError
    ├── ProtocolError(code, clause, offset, frame)    abstract: something is wrong with the conversation
    │   ├── LocalProtocolError                        this side was used against its contract (API misuse)
    │   └── RemoteProtocolError                       the peer's bytes
    │       ├── PeerMisbehaved                        broke the specification
    │       ├── PeerIncompatible                      legal, but not supported here
    │       └── LimitExceeded                         more than was announced
    ├── PeerAborted                                   the peer said ABORT or REFUSE, with its code
    ├── TransportError                                connection, TLS, deadlines
    ├── GuestError                                    the guest or its holder
    ├── StoreError                                    the lease store gave no answer that decides anything
    │   ├── StoreUnavailable                          ask again, identically
    │   └── StoreDamaged                              an operator has to look
    ├── RecordError                                   durable records: unwritable, damaged, or another's
    ├── ConfigError                                   a file or an argument of the operator's
    └── MigrationFailed                               how a migration ended, for the embedder

The split is rustls': whoever reads a log wants to know first whose fault it was. `text` of a peer is
hostile input: it was checked by the codec and is still shown only quoted. What these exceptions say in
`str()` is for the local log; the wire gets code, phase, frame, offset and the registry's sentence.
"""

from __future__ import annotations

from sterna.registry import ERRORS, ErrorClass, ErrorCode

_KNOWN = {int(code): code for code in ErrorCode}


class SternaError(Exception):
    """Base of everything raised on purpose."""

    code: ErrorCode = ErrorCode.INTERNAL


class ProtocolError(SternaError):
    """Something is wrong with the conversation.

    Attributes:
        code: the registry's error code.
        clause: id of the clause of spec/protocol.md that was broken, for example ``HDR-3``.
        offset: where in its frame the trouble is, in bytes from the header's first; None if nowhere.
        frame: type number of the offending frame, None outside of frames.
        detail: what exactly, for the local log. Never sent to the peer.
    """

    def __init__(
        self,
        code: ErrorCode,
        detail: str = "",
        *,
        clause: str = "",
        offset: int | None = None,
        frame: int | None = None,
    ) -> None:
        super().__init__(code, detail, clause, offset, frame)
        self.code = code
        self.detail = detail
        self.clause = clause
        self.offset = offset
        self.frame = frame

    def __str__(self) -> str:
        parts = [f"{self.code.name.lower()}: {self.detail or ERRORS[self.code].text}"]
        if self.frame is not None:
            parts.append(f"frame 0x{self.frame:04x}")
        if self.offset is not None:
            parts.append(f"offset {self.offset}")
        if self.clause:
            parts.append(f"[{self.clause}]")
        return ", ".join(parts)


class LocalProtocolError(ProtocolError):
    """This side was used against its contract; the connection is as it was."""


class RemoteProtocolError(ProtocolError):
    """The peer's bytes end the session."""


class PeerMisbehaved(RemoteProtocolError):
    """The peer broke the specification."""


class PeerIncompatible(RemoteProtocolError):
    """The peer asks for something legal that this side lacks."""


class LimitExceeded(RemoteProtocolError):
    """The peer sent more than this side announced."""


class PeerAborted(SternaError):
    """The peer ended the session with ABORT or REFUSE.

    Attributes:
        code: the peer's code; `ErrorCode.INTERNAL` if it is not in our registry.
        wire_code: the number as it was sent.
        text: the peer's sentence, checked UTF-8, not trusted.
        retry_after_ms: a REFUSE's hint, 0 for none.
        items: what a REFUSE lists as missing.
    """

    def __init__(
        self, wire_code: int, text: str = "", retry_after_ms: int = 0, items: tuple[str, ...] = ()
    ) -> None:
        super().__init__(wire_code, text)
        self.items = items
        self.wire_code = wire_code
        self.code = _KNOWN.get(wire_code, ErrorCode.INTERNAL)
        self.text = text
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        name = self.code.name.lower() if self.wire_code == self.code else f"code 0x{self.wire_code:04x}"
        missing = f" ({', '.join(map(repr, self.items))})" if self.items else ""
        return f"the peer ended the session: {name}: {self.text!r}{missing}"


class TransportError(SternaError):
    """The connection, TLS, or a deadline."""

    def __init__(self, code: ErrorCode, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code.name.lower()}: {self.detail or ERRORS[self.code].text}"


class GuestError(SternaError):
    """The guest or its holder failed, or refuses what was asked."""

    def __init__(self, detail: str, code: ErrorCode = ErrorCode.GUEST_FAILED) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code.name.lower()}: {self.detail}"


class StoreError(SternaError):
    """The lease store gave no answer, which decides nothing: a claim may still take effect [ONE-8]."""

    code = ErrorCode.UNDECIDED

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


class StoreUnavailable(StoreError):
    """No answer for now. A claim is repeated, identically, until there is one [ONE-7]."""


class StoreDamaged(StoreError):
    """The store breaks its own promises, or is another one than it was, or none. Asking again is no help."""


class RecordError(SternaError):
    """A durable record could not be written or read, or another process has the records (BUSY)."""

    def __init__(self, detail: str, code: ErrorCode = ErrorCode.RECORD_FAILED) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code.name.lower()}: {self.detail}"


class ConfigError(SternaError):
    """A file or an argument of the operator's is wrong. The text says where, and what to do about it.

    Never sent to a peer.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


def remote_error(
    code: ErrorCode,
    detail: str = "",
    *,
    clause: str,
    offset: int | None = None,
    frame: int | None = None,
) -> RemoteProtocolError:
    """The exception of the class that the registry gives to `code`."""
    kinds = {ErrorClass.INCOMPATIBLE: PeerIncompatible, ErrorClass.LIMIT: LimitExceeded}
    kind = kinds.get(ERRORS[code].kind, PeerMisbehaved)
    return kind(code, detail, clause=clause, offset=offset, frame=frame)
