"""One control connection: preface, headers, liveness, and the frames that may come at any time."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from sterna_interop.minimal.checks import DEFAULT_LIMITS, Known
from sterna_interop.minimal.codes import NUMBERS, SessionError, from_peer
from sterna_interop.minimal.frames import HEADER_BYTES, LAYOUTS, NAMES, SENDERS, TYPES, decode, encode

PREFACE: Final = bytes.fromhex("89535445524E410D0A1A0A00") + struct.pack("<HH", 1, 1)
HANDSHAKE_BODY_BYTES: Final = 65536  # LIM-5
SKIPPED_MAX: Final = 256  # FRM-8
LINGER_S: Final = 2.0
SENTENCE: Final = "the session has failed; the code says why"

_HEADER: Final = struct.Struct("<HHHHQIIII")
_TEXT: Final = [prefix + b"STERNA" for prefix in (b"\x09", b"\x3f", b"\xc2\x89", b"\xef\xbf\xbd", b"")]
_METHODS: Final = "GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH PRI"
_STRANGERS: Final = [
    *((start, "text_mode_damage") for start in _TEXT),
    *((start, "tls_on_plain") for start in (b"\x16\x03", b"\x15\x03")),
    *((method.encode() + b" ", "http_on_plain") for method in _METHODS.split()),
    (b"HTTP/", "http_on_plain"),
]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds (8.11)."""

    heartbeat: float = 1.0
    silence: float = 5.0
    stall: float = 10.0
    wait: float = 30.0
    handshake: float = 10.0  # TLS, and every wait up to WELCOME


@dataclass(frozen=True, slots=True)
class Frame:
    """A known frame whose body is in order; `later` is the error of a value in HELLO that can wait."""

    name: str
    fields: dict[str, Any]
    sequence: int
    bulk_bytes: int
    later: SessionError | None = None


class Connection:
    """Sends and receives frames; answers PING, and ends the session for ABORT, silence and stall.

    Attributes:
        limits: what we have announced.
        peer_limits: what the peer has.
        regions: of GUEST, by id, when it has gone over.
        greeted: WELCOME has gone over.
        phase: for ABORT.
    """

    def __init__(self, sock: socket.socket, sends: str, limits: Mapping[str, int], times: Times) -> None:
        self.limits = {**DEFAULT_LIMITS, **limits}
        self.peer_limits = dict(DEFAULT_LIMITS)
        self.regions: dict[int, dict[str, Any]] = {}
        self.greeted = False
        self.phase = 1
        self.sent = self.received = 0
        self._sock = sock
        self._sends = sends  # "S" or "D"
        self._times = times
        self._buffer = bytearray()
        self._next_out = self._next_in = 0
        self._said = self._heard = time.monotonic()
        self._silent = False  # BYE has been sent: nothing may follow it (PNG-3)
        self._pings: set[int] = set()
        self._skipped = 0
        self._last: tuple[int, int] = (0, 0)  # type and sequence of the newest frame, for ABORT

    # ---- sending ----

    def open(self) -> None:
        """Send our preface and check the peer's (PRE-1 to PRE-7)."""
        self._write(PREFACE)
        deadline = self._deadline()
        for size in range(1, len(PREFACE) + 1):
            if not self._fill(size, deadline):
                _end_of_preface(bytes(self._buffer))
            _check_preface(bytes(self._buffer[:size]))
        del self._buffer[: len(PREFACE)]

    def send(self, name: str, bulk: Iterable[bytes] = (), /, **fields: object) -> int:
        """Send a frame; its sequence number."""
        body, parts = encode(name, fields), list(bulk)
        size = sum(map(len, parts))
        self._write(b"".join([self._header(TYPES[name], body, size), body, *parts]))
        self._silent = name == "BYE"
        return self._next_out - 1

    def grease(self) -> None:
        """A frame that means nothing, once (FRM-9)."""
        self._write(self._header(0x7F17, b"grease", 0) + b"grease")

    def _header(self, number: int, body: bytes, bulk_bytes: int) -> bytes:
        head = struct.pack(
            "<HHHHQIII", number, 0, 0, 0, self._next_out, len(body), bulk_bytes, zlib.crc32(body)
        )
        self._next_out += 1
        return head + struct.pack("<I", zlib.crc32(head))

    def _write(self, data: bytes) -> None:
        self._sock.settimeout(self._times.stall)
        try:
            self._sock.sendall(data)
        except TimeoutError:
            raise SessionError("peer_stalled", mute=True) from None
        except OSError as error:
            raise _lost(error) from error
        self._said = time.monotonic()
        self.sent += len(data)

    # ---- receiving ----

    def receive(self) -> Frame:
        """The next frame that is neither skipped nor for this class to answer."""
        deadline = self._deadline()
        while (frame := self._one(deadline)) is None:
            pass
        return frame

    def attend(self) -> None:
        """Answer what has come while we were busy; only frames that may come at any time may have."""
        while self._buffer or self._readable():
            if self._one(self._deadline()) is not None:
                raise SessionError("unexpected_frame")

    def _one(self, deadline: float) -> Frame | None:
        """One frame; None if it was skipped, or answered here."""
        frame = self._frame(deadline)
        if frame is None:
            return None
        if SENDERS[frame.name] == self._sends:
            raise SessionError("wrong_direction")
        match frame.name:
            case "PING":
                if not self._silent:
                    self.send("PONG", id=frame.fields["id"])
            case "PONG":
                if frame.fields["id"] not in self._pings:
                    raise SessionError("unsolicited")
                self._pings.remove(frame.fields["id"])
            case "PROGRESS":
                raise SessionError("not_selected")  # we never offer or select it
            case "ABORT":
                raise from_peer(frame.fields["code"])
            case _:
                return frame
        return None

    def read(self, size: int) -> bytes:
        """The next bytes of a bulk part."""
        if not self._fill(size, self._deadline()):
            raise SessionError("truncated")
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _frame(self, deadline: float) -> Frame | None:
        """A frame, in the order of HDR-11; None for one that is skipped."""
        self._last = (0, 0)
        if not self._fill(HEADER_BYTES, deadline):
            if self._buffer:
                raise SessionError("truncated")
            raise SessionError("connection_lost", mute=True)
        header = bytes(self._buffer[:HEADER_BYTES])
        number, flags, stream, reserved, sequence, body_bytes, bulk_bytes, body_crc, crc = _HEADER.unpack(
            header
        )
        _header(zlib.crc32(header[:28]) == crc, "header_checksum", 28)
        self._last = (number, sequence)
        _header(not flags, "bad_header", 2)
        _header(not reserved, "bad_header", 6)
        _header(not stream, "bad_header", 4)
        _header(sequence == self._next_in, "bad_sequence", 8)
        name = NAMES.get(number, "")
        _header(bool(name) or not number & 0x8000, "unknown_critical", 0)
        _header(name == "PAGES" or not bulk_bytes, "bad_header", 20)
        control = self.limits["control_bytes"] if self.greeted else HANDSHAKE_BODY_BYTES
        _header(body_bytes <= control, "limit_control", 16)
        _header(bulk_bytes <= (self.limits["bulk_bytes"] if self.greeted else 0), "limit_bulk", 20)
        self._skipped = 0 if name else self._skipped + 1
        _header(self._skipped <= SKIPPED_MAX, "limit_rate", 0)
        if not self._fill(HEADER_BYTES + body_bytes, deadline):
            raise SessionError("truncated")
        body = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + body_bytes])
        del self._buffer[: HEADER_BYTES + body_bytes]
        _header(zlib.crc32(body) == body_crc, "body_checksum", 24)
        self._next_in += 1
        if not name:
            return None
        if name not in LAYOUTS:
            return Frame(name, {}, sequence, bulk_bytes)
        fields, later = decode(name, body, Known(self.limits, self.regions))
        return Frame(name, fields, sequence, bulk_bytes, later)

    def _deadline(self) -> float:
        return time.monotonic() + (self._times.wait if self.greeted else self._times.handshake)

    def _readable(self) -> bool:
        pending = isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0
        return pending or bool(select.select([self._sock], [], [], 0)[0])

    def _fill(self, size: int, deadline: float) -> bool:
        """Have `size` bytes in the buffer; False if the stream ended properly before (CON-74 to CON-76)."""
        while len(self._buffer) < size:
            now = time.monotonic()
            if now >= deadline:
                raise SessionError("phase_deadline")
            if now - self._heard > self._times.silence and self.greeted:
                raise SessionError("peer_silent")
            if self.greeted and not self._silent and now - self._said >= self._times.heartbeat:
                self._pings.add(len(self._pings) + self._next_out)
                self.send("PING", id=max(self._pings))
            self._sock.settimeout(min(self._times.heartbeat, deadline - now))
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                continue
            except OSError as error:
                raise _lost(error) from error
            if not data:
                return False
            self._heard = time.monotonic()
            self.received += len(data)
            self._buffer += data
        return True

    # ---- the end ----

    def abort(self, error: SessionError, *, refuse: bool = False) -> None:
        """Say why the session ends, if anybody can hear it (CON-65 to CON-68), and close."""
        with suppress(SessionError):
            if not error.mute and not self._silent:
                number, sequence = self._last
                if refuse:
                    self.send("REFUSE", code=NUMBERS[error.code], text=SENTENCE)
                else:
                    self.send(
                        "ABORT",
                        code=NUMBERS[error.code],
                        phase=self.phase,
                        frame=number,
                        sequence=sequence,
                        offset=error.offset,
                        text=SENTENCE,
                    )
        self.close()

    def close(self) -> None:
        """End our direction (TLS-20), and let the peer read what we sent last."""
        with suppress(OSError, ValueError):
            self._sock.settimeout(LINGER_S)
            plain: Any = self._sock
            if isinstance(self._sock, ssl.SSLSocket):
                with suppress(OSError):
                    plain = self._sock.unwrap()
            plain.shutdown(socket.SHUT_WR)
            until = time.monotonic() + LINGER_S
            while time.monotonic() < until and plain.recv(65536):
                pass
        self._sock.close()


def _header(good: bool, code: str, offset: int) -> None:
    if not good:
        raise SessionError(code, offset)


def _check_preface(begun: bytes) -> None:
    """Decide as early as PRE-2 asks; major and draft are not looked at (PRE-6)."""
    magic = PREFACE[:12]
    if magic.startswith(begun[:12]):
        return
    if begun.startswith(magic[:7]):
        raise SessionError("text_mode_damage")
    for start, code in _STRANGERS:
        if begun.startswith(start):
            raise SessionError(code)
    if not any(start.startswith(begun) for start, _ in _STRANGERS):
        raise SessionError("bad_magic")


def _end_of_preface(begun: bytes) -> NoReturn:
    if not begun:
        raise SessionError("connection_lost", mute=True)
    raise SessionError("truncated" if PREFACE[:12].startswith(begun[:12]) else "bad_magic")


def _lost(error: OSError) -> SessionError:
    if isinstance(error, ssl.SSLEOFError):
        return SessionError("not_closed", mute=True)
    if isinstance(error, ssl.SSLZeroReturnError):
        return SessionError("connection_lost", mute=True)
    return SessionError("tls_failed" if isinstance(error, ssl.SSLError) else "connection_lost", mute=True)
