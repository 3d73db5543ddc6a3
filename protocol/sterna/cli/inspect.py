"""`sterna inspect`: what passed on a connection, frame by frame, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, BinaryIO, Final, Literal

from cyclopts import Parameter

from sterna.cli.endpoint import Flag
from sterna.cli.events import Fields
from sterna.cli.exits import Exit
from sterna.cli.inspect_text import fields_text, hex_lines, masked
from sterna.cli.output import SCHEMA, printable, write_line, write_text
from sterna.cli.reading import (
    DEFAULT_MEMORY,
    File,
    Memory,
    fault_fields,
    fault_text,
    opened,
    recording_fields,
    session_fields,
    session_lines,
    side_name,
)
from sterna.core.words import count_text, size_text
from sterna.errors import ConfigError
from sterna.limits import HEADER_BYTES
from sterna.observe.budget import Budget
from sterna.observe.describe import describe, frame_name
from sterna.observe.direction import Frame, Preface
from sterna.observe.follow import Follower, Seen
from sterna.observe.recording import (
    DirectionEnded,
    How,
    Passed,
    RecordClock,
    RecordingError,
    RecordingItem,
    RecordingReader,
    Side,
)
from sterna.observe.sessions import GaveUp, Happened, Over, Sessions, Step, Stopped
from sterna.registry import Sender

# What --hex shows of a frame: its header, and as much of a body as somebody reads.
HEX_BYTES: Final = HEADER_BYTES + 4096
_PIECE_BYTES: Final = 1 << 16
_SENDERS: Final = {"source": Sender.SOURCE, "destination": Sender.DESTINATION}
_ARROWS: Final = {Sender.SOURCE: "->", Sender.DESTINATION: "<-"}


def inspect(
    file: File,
    /,
    *,
    only: Annotated[tuple[str, ...], Parameter(show_default=False, negative=())] = (),
    connection: Annotated[int | None, Parameter(show_default=False)] = None,
    hex: Flag = False,  # noqa: A002 - the option's name
    raw: Annotated[Literal["source", "destination"] | None, Parameter(show_default=False)] = None,
    hex_input: Flag = False,
    memory: Memory = DEFAULT_MEMORY,
    json: Annotated[
        bool, Parameter(negative=(), show_default=False, help="one JSON object a line on stdout.")
    ] = False,
) -> int:
    """Show what a recording holds: a line for each frame, and at the end what became of each session.

    Lines go to stdout while the recording is read, so it may be a pipe, and of any size. A line has the time,
    the connection, the direction (-> is from the source), the frame's number, its name, its fields, and how
    many bytes it has. Texts of a peer are quoted; tokens are not shown.

    The first thing that is wrong with a session is told where it is, and what follows is still shown as far
    as it can be read. Exit code 1 if there was such a thing, 2 if the recording is damaged or is none.

    With --json, each line is an object with `schema` and `event`: `recording` first, `preface`, `frame`,
    `wrong`, `session` for each connection that is over, `notice`, and `end` last.

    Args:
        file: a recording (`--record`), or - for stdin.
        only: show these frames only, by name: --only PAGES --only 'ROUND*'.
        connection: show this connection only.
        hex: show the bytes of headers and bodies, too.
        raw: the file is no recording, but the bytes that this side sent.
        hex_input: the file has hex digits instead of bytes; with --raw.
        memory: keep at most this much of guests, batches and state in memory.
        json: one JSON object a line on stdout.
    """
    if hex_input and raw is None:
        raise ConfigError("--hex-input is for the bytes of one side: say whose they are with --raw")
    globs = tuple(each.upper() for each in only)
    view = _View(globs, connection, hex=hex, json=json)
    with opened(file) as stream:
        if raw is not None:
            view.show(_raw_steps(stream, _SENDERS[raw], Budget(memory), hex_input=hex_input, keep=hex))
        else:
            reader = RecordingReader(stream)
            view.begin(reader)
            view.show(_steps(reader, Budget(memory), keep=hex))
            if reader.cut_off:
                view.notice("the recording was cut off: its recorder was ended before it could close it")
    view.end()
    return view.exit_code


def _steps(reader: RecordingReader, budget: Budget, *, keep: bool) -> Iterator[Step | RecordingError]:
    """What happens in a recording; its damage, if it is damaged, before the ends of its sessions."""
    sessions = Sessions(reader.side, reader.clock, keep_bytes=HEX_BYTES if keep else 0, budget=budget)
    try:
        yield from sessions.follow(reader)
    except RecordingError as error:
        yield error
        yield from sessions.end()


def _raw_steps(
    stream: BinaryIO, sender: Sender, budget: Budget, *, hex_input: bool, keep: bool
) -> Iterator[Step]:
    """The bytes of one side, as a connection without another one."""
    keep_bytes = HEX_BYTES if keep else 0
    sessions = Sessions(Side.BETWEEN, RecordClock.NONE, keep_bytes=keep_bytes, budget=budget, alone=True)
    yield from sessions.follow(_raw_items(stream, sender, hex_input=hex_input))


def _raw_items(stream: BinaryIO, sender: Sender, *, hex_input: bool) -> Iterator[RecordingItem]:
    left = b""
    while piece := stream.read(_PIECE_BYTES):
        data = piece
        if hex_input:
            digits = left + b"".join(piece.split())
            left = digits[len(digits) & ~1 :]
            data = _unhex(digits[: len(digits) & ~1])
        if data:
            yield Passed(1, sender, 0, data)
    if left:
        raise ConfigError("--hex-input: an odd number of hex digits")
    yield DirectionEnded(1, sender, 0, How.PROPERLY)


def _unhex(digits: bytes) -> bytes:
    try:
        return bytes.fromhex(digits.decode("ascii"))
    except ValueError as error:
        raise ConfigError(f"--hex-input: not hex digits: {digits[:40]!r}") from error


@dataclass
class _View:
    """What is shown, and how."""

    globs: tuple[str, ...]
    connection: int | None
    hex: bool
    json: bool
    wrong: bool = False
    trouble: bool = False
    frames: int = 0
    _gone: bool = False  # nobody reads any more

    @property
    def exit_code(self) -> Exit:
        """FAILED for something wrong, USAGE for something that could not be read."""
        if self.wrong:
            return Exit.FAILED
        return Exit.USAGE if self.trouble else Exit.OK

    def begin(self, reader: RecordingReader) -> None:
        """The recording's own header."""
        between = reader.side is Side.BETWEEN
        where = "between the two sides" if between else f"at the {reader.side.name.lower()}"
        self._put({"event": "recording", **recording_fields(reader)}, [f"recorded {where}"])

    def show(self, steps: Iterable[Step | RecordingError]) -> None:
        """All that happens, until nobody reads any more."""
        for step in steps:
            match step:
                case Happened(connection, seen) if self._chosen(connection):
                    self._happened(connection, seen)
                case Stopped(connection, follower) if self._chosen(connection):
                    self._stopped(connection, follower)
                case Over(connection, follower) if self._chosen(connection):
                    self._over(connection, follower)
                case GaveUp(text):
                    self.notice(f"the recorder gave up: {text}")
                case RecordingError():
                    self.trouble = True
                    self.notice(f"the recording is damaged, and what follows cannot be read: {step}")
                case _:
                    pass
            if self._gone:
                return

    def notice(self, text: str) -> None:
        """Something about the recording itself."""
        self._put({"event": "notice", "text": text}, [text])

    def end(self) -> None:
        """The last line, for programs."""
        self._put({"event": "end", "frames": self.frames, "ok": self.exit_code is Exit.OK}, [])

    def _chosen(self, connection: int) -> bool:
        return self.connection in {None, connection}

    def _wanted(self, name: str) -> bool:
        return not self.globs or any(fnmatchcase(name.upper(), each) for each in self.globs)

    def _happened(self, connection: int, seen: Seen) -> None:
        what = seen.what
        if isinstance(what, Preface):
            if not self.globs:
                self._preface(connection, seen, what)
            return
        self.frames += 1
        name = frame_name(what.header.type)
        if seen.fault is not None or self._wanted(name):
            self._frame(connection, seen, what, name)
        if seen.fault is not None:
            self.wrong = True
            self._put(
                {"event": "wrong", "connection": connection, **fault_fields(seen.fault)},
                [f"  WRONG: {fault_text(seen.fault)}"],
            )

    def _preface(self, connection: int, seen: Seen, what: Preface) -> None:
        fields = _common("preface", connection, seen) | {"major": what.major, "draft": what.draft}
        text = f"{_stem(connection, seen)}    preface, newest version {what.major}-draft.{what.draft}"
        self._put(fields, [text, *(hex_lines(what.raw) if self.hex else ())])

    def _frame(self, connection: int, seen: Seen, frame: Frame, name: str) -> None:
        header, record = frame.header, frame.record
        said = {} if record is None else describe(record)
        damaged = sum(each.count for each in frame.damaged)
        shown = masked(header.type, frame.raw)
        fields = _common("frame", connection, seen) | {
            "sequence": header.sequence,
            "offset": frame.offset,
            "type": header.type,
            "name": name,
            "body_bytes": header.body_bytes,
            "bulk_bytes": header.bulk_bytes,
            "damaged_pages": damaged,
            "fields": said,
        }
        if self.hex:
            fields["hex"] = shown[: HEADER_BYTES + header.body_bytes].hex()
        size = f"{header.body_bytes} B" + (f" + {size_text(header.bulk_bytes)}" if header.bulk_bytes else "")
        told = fields_text(said) if record is not None else "skipped"
        hurt = f"; {count_text(damaged, 'page')} with a wrong hash" if damaged else ""
        line = f"{_stem(connection, seen)} {header.sequence:>5} {name:<10} {told}{hurt} ({size})"
        self._put(fields, [line, *(hex_lines(shown[: HEADER_BYTES + header.body_bytes]) if self.hex else ())])

    def _stopped(self, connection: int, follower: Follower) -> None:
        if follower.fault is None:
            self.trouble = True
            text = f"connection {connection} cannot be judged any more: {follower.trouble}"
            self._put({"event": "notice", "connection": connection, "text": text}, [f"  {text}"])
            return
        self.wrong = True
        rest = follower.directions[follower.fault.sender].raw_rest()
        rest = masked(int.from_bytes(rest[:2], "little"), rest)
        fields: Fields = {"event": "wrong", "connection": connection, **fault_fields(follower.fault)}
        if self.hex:
            fields["hex"] = rest.hex()
        lines = [f"  WRONG: {fault_text(follower.fault)}", *(hex_lines(rest) if self.hex else ())]
        self._put(fields, lines)

    def _over(self, connection: int, follower: Follower) -> None:
        kind = "session" if follower.session is None else "data_connection"
        fields: Fields = {"event": kind, **session_fields(connection, follower)}
        lines = session_lines(connection, follower) if follower.session is None else ()
        self._put(fields, ["", *lines] if lines else [])

    def _put(self, fields: Fields, lines: Iterable[str]) -> None:
        """One event: a line for programs, or some for people."""
        if self.json:
            alive = write_line({"schema": SCHEMA, **fields})
        else:
            alive = write_text("".join(f"{printable(line)}\n" for line in lines))
        self._gone = self._gone or not alive


def _common(event: str, connection: int, seen: Seen) -> Fields:
    return {
        "event": event,
        "connection": connection,
        "from": side_name(seen.sender),
        "time_ns": seen.time_ns,
    }


def _stem(connection: int, seen: Seen) -> str:
    return f"{seen.time_ns / 1e9:12.6f} {connection:>2} {_ARROWS[seen.sender]}"
